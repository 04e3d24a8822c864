//! The certificates that are configured: how long they are good, and whether a key belongs to its certificate.

use std::{fs, path::Path};

use jiff::Timestamp;
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Check;
use crate::config::Settings;

const DAY_S: i64 = 86_400;
/// Time enough for a person who is on holiday.
const SOON_DAYS: i64 = 21;

pub(super) fn look(settings: &Settings, checks: &mut Vec<Check>) {
    let serve = &settings.serve;
    let files = [("tls_cert", &serve.tls_cert), ("nats_ca", &serve.nats_ca), ("ca", &settings.ca)];
    for (name, path) in files.into_iter().filter(|(_, path)| !path.as_os_str().is_empty()) {
        checks.push(certificates(name, path));
    }
    match (serve.tls_cert.as_os_str().is_empty(), serve.tls_key.as_os_str().is_empty()) {
        (false, false) => checks.extend(pair(&serve.tls_cert, &serve.tls_key)),
        (true, true) => {}
        (true, false) | (false, true) => checks.push(Check::problem(
            "tls_pair",
            "TLS needs a certificate and its key",
            "give both --tls-cert and --tls-key",
        )),
    }
}

/// The one of a file that ends first.
fn certificates(name: &'static str, path: &Path) -> Check {
    let shown = path.display();
    let bad =
        |why: String| Check::problem(name, format!("{shown}: {why}"), "name a file with certificates in PEM form");
    let chain = match read(path) {
        Ok(chain) => chain,
        Err(why) => return bad(why),
    };
    let mut first: Option<(i64, i64, String)> = None;
    for der in &chain {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return bad("a certificate in it can't be read".to_owned());
        };
        let (begin, end) =
            (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
        if first.as_ref().is_none_or(|(_, first, _)| end < *first) {
            first = Some((begin, end, certificate.subject().to_string()));
        }
    }
    match first {
        Some((begin, end, subject)) => judge(name, &format!("{subject} in {shown}"), begin, end),
        None => bad("there is no certificate in it".to_owned()),
    }
}

fn judge(name: &'static str, what: &str, begin: i64, end: i64) -> Check {
    let now = Timestamp::now().as_second();
    let days = (end - now).div_euclid(DAY_S);
    if now < begin {
        return Check::problem(
            name,
            format!("{what} is not good yet"),
            "wait for it, or set the clock of this machine",
        );
    }
    if now >= end {
        return Check::problem(name, format!("{what} has expired"), "get another certificate");
    }
    let message = format!("{what} is good for {days} days");
    if days < SOON_DAYS {
        Check::warning(name, message, "get another certificate in time")
    } else {
        Check::ok(name, message)
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|e| e.to_string())?;
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

/// Whether they belong together; nothing when one of them can't be read, which is said elsewhere.
fn pair(cert: &Path, key: &Path) -> Option<Check> {
    let (name, chain) = ("tls_pair", read(cert).ok().filter(|chain| !chain.is_empty())?);
    let shown = key.display();
    let hint = "give the key that the certificate was made for";
    let bytes = fs::read(key).ok()?;
    let Ok(signer) =
        PrivateKeyDer::from_pem_slice(&bytes).map_err(drop).and_then(|key| any_supported_type(&key).map_err(drop))
    else {
        return Some(Check::problem(name, format!("{shown} holds no private key in PEM form"), hint));
    };
    Some(match CertifiedKey::new(chain, signer).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Check::ok(name, "the key belongs to the certificate")
        }
        Err(_) => Check::problem(name, format!("{shown} is not the key of {}", cert.display()), hint),
    })
}
