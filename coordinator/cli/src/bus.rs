//! How NATS is reached, and as whom.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use muster_bus::{
    NatsOptions,
    nats::{self, Login, NatsError},
};
use nkeys::{KeyPair, KeyPairType};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    client::{hint_of, of_tls},
    error::{CliError, Result, chain},
};

/// Where NATS is, and what proves who is who.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access<'a> {
    /// Servers, separated by commas.
    pub(crate) servers: &'a str,
    /// File with an NKEY seed; empty: none.
    pub(crate) nkey: &'a Path,
    /// Authority of the server's certificate; empty: the system's.
    pub(crate) ca: &'a Path,
}

impl Access<'_> {
    /// The servers, for people: without what a URL may say of a user.
    pub(crate) fn shown(&self) -> String {
        nats::shown(&self.servers.split(',').map(|server| server.trim().to_owned()).collect::<Vec<_>>())
    }

    /// For an agent of this name, or for a coordinator.
    pub(crate) fn options(&self, agent: Option<&str>) -> Result<NatsOptions> {
        let servers = self.servers.split(',').map(str::trim).filter(|s| !s.is_empty());
        let mut options = match agent {
            Some(agent) => NatsOptions::for_agent(servers, agent),
            None => NatsOptions::for_coordinator(servers),
        };
        if !self.nkey.as_os_str().is_empty() {
            options.login = Login::NkeySeed(seed(self.nkey)?.expose_secret().to_owned());
        }
        if !self.ca.as_os_str().is_empty() {
            check_authority(self.ca)?;
            options.tls.authorities = Some(self.ca.to_owned());
            options.tls.required = true;
        }
        Ok(options)
    }
}

/// A file that holds nothing would let the connection fail with another reason, one that hides this one.
fn check_authority(path: &Path) -> Result<()> {
    let pem = std::fs::read(path).map_err(|e| CliError::file(path, "read", &e))?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err(CliError::usage("CA_INVALID", "the file holds no certificate in PEM form")
            .at(path.display().to_string())
            .hint("it begins with -----BEGIN CERTIFICATE-----")),
    }
}

/// The seed of a user in a file that nobody else can read.
pub(crate) fn seed(path: &Path) -> Result<SecretString> {
    let unreadable = |e: &std::io::Error| CliError::file(path, "read", e);
    let mode = std::fs::metadata(path).map_err(|e| unreadable(&e))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(CliError::usage("SECRET_EXPOSED", "others can read or write this NKEY seed")
            .at(path.display().to_string())
            .hint(format!("chmod 600 {}", path.display())));
    }
    let text = SecretString::from(std::fs::read_to_string(path).map_err(|e| unreadable(&e))?.trim());
    match KeyPair::from_seed(text.expose_secret()) {
        Ok(pair) if pair.key_pair_type() == KeyPairType::User => Ok(text),
        Ok(_) | Err(_) => Err(CliError::usage("NKEY_INVALID", "the file holds no seed of an NKEY user")
            .at(path.display().to_string())
            .hint("`muster nats config` writes one for each agent and for the coordinator; it begins with SU")),
    }
}

/// Why there is no connection, and what to do about it.
pub(crate) fn not_connected(error: &NatsError) -> CliError {
    let (reason, hint) = match error {
        NatsError::Connect { .. } => ("BUS_UNREACHABLE", "start nats-server, or name another one with --nats"),
        NatsError::Refused { .. } => (
            "BUS_REFUSED",
            "--nats-nkey FILE holds the seed of a key that nats-server knows\n\
             `muster nats config` writes keys and the server's configuration; reload it after a change",
        ),
        NatsError::Untrusted { source, .. } => {
            return CliError::failed("BUS_UNTRUSTED", chain(error)).hint(match of_tls(source) {
                Some(rustls::Error::InvalidCertificate(fault)) => hint_of(fault, "--nats", "--nats-ca"),
                Some(_) | None => "nats-server has no TLS, or another kind of it: look at its configuration".to_owned(),
            });
        }
        NatsError::NotAllowed { .. } => (
            "BUS_REFUSED",
            "a key is good for one agent, or for the coordinator: look at --nats-nkey and at the agent's name\n\
             `muster nats config` writes the permissions that go with it",
        ),
        NatsError::Address { .. } | NatsError::NoAddress => ("BUS_UNREACHABLE", "such as --nats nats://127.0.0.1:4222"),
        NatsError::Credentials { .. } => ("BUS_UNREACHABLE", "look at the file's owner and mode"),
        NatsError::TooOld { .. } => ("BUS_TOO_OLD", "install a newer nats-server"),
    };
    CliError::failed(reason, chain(error)).hint(hint)
}
