//! `users.toml`: who has which public key. No secrets, and all that `nats.conf` is made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use muster_bus::subject::is_token;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result};

/// The name of the one user that always has a key.
pub(super) const COORDINATOR: &str = "coordinator";

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Users {
    /// Where nats-server listens.
    pub(super) listen: String,
    /// Certificate chain of nats-server; empty: no TLS.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(super) tls_cert: PathBuf,
    /// Its private key.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(super) tls_key: PathBuf,
    /// The coordinator.
    #[serde(default)]
    pub(super) coordinator: Coordinator,
    /// Agents by name, over all namespaces.
    #[serde(default)]
    pub(super) agents: BTreeMap<String, User>,
    /// Who may signal runs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) signallers: BTreeMap<String, User>,
    /// Who may read events, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) readers: BTreeMap<String, User>,
}

/// What a user is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Coordinator,
    Agent,
    Signaller,
    Reader,
}

impl Kind {
    /// For people.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Signaller => "signaller",
            Self::Reader => "reader",
        }
    }
}

/// The coordinator.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Coordinator {
    /// Public key; empty: none yet.
    pub(super) key: String,
}

/// An agent, or an outsider.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    /// Where it works; empty for a reader, who is told of all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    /// Public key.
    pub(super) key: String,
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

impl Users {
    /// As they are in the file; without one: nobody.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::none()),
            Err(e) => return Err(CliError::file(path, "read", &e)),
        };
        let bad = |why: String| {
            CliError::usage("NATS_USERS_INVALID", why)
                .at(path.display().to_string())
                .hint("mend it, or give another folder with --out for new keys of all")
        };
        let users: Self = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        users.check().map_err(|e| bad(e.message))?;
        Ok(users)
    }

    fn none() -> Self {
        Self {
            listen: "127.0.0.1:4222".to_owned(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            coordinator: Coordinator::default(),
            agents: BTreeMap::new(),
            signallers: BTreeMap::new(),
            readers: BTreeMap::new(),
        }
    }

    /// Everybody but the coordinator.
    pub(super) fn all(&self) -> impl Iterator<Item = (Kind, &String, &User)> {
        let agents = self.agents.iter().map(|(name, user)| (Kind::Agent, name, user));
        let signallers = self.signallers.iter().map(|(name, user)| (Kind::Signaller, name, user));
        agents.chain(signallers).chain(self.readers.iter().map(|(name, user)| (Kind::Reader, name, user)))
    }

    /// A user that is not the coordinator.
    pub(super) fn find(&self, name: &str) -> Option<&User> {
        self.all().find(|(_, there, _)| *there == name).map(|(_, _, user)| user)
    }

    /// Those of a kind; the coordinator is of none of them.
    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut BTreeMap<String, User> {
        match kind {
            Kind::Coordinator | Kind::Agent => &mut self.agents,
            Kind::Signaller => &mut self.signallers,
            Kind::Reader => &mut self.readers,
        }
    }

    /// As it is written.
    pub(super) fn text(&self) -> Result<String> {
        let users = toml::to_string(self).map_err(|e| CliError::failed("INTERNAL", e.to_string()))?;
        Ok(format!("# Who may connect to NATS; `muster nats config` writes it, and makes nats.conf from it.\n{users}"))
    }

    /// The public key of a user, if it has one.
    pub(super) fn key(&self, name: &str) -> &str {
        if name == COORDINATOR { &self.coordinator.key } else { self.find(name).map_or("", |user| &user.key) }
    }

    /// What is in here goes into a configuration that decides who may do what: nothing may end a text of it early.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |why: String| CliError::usage("NATS_USERS_INVALID", why);
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]*".contains(c);
        if self.listen.is_empty() || !self.listen.chars().all(is_host) {
            return Err(bad(format!("listen: {:?} is no address", self.listen)).hint("such as 127.0.0.1:4222"));
        }
        for path in [&self.tls_cert, &self.tls_key] {
            let text = path.to_str().ok_or_else(|| bad(format!("{} is not UTF-8", path.display())))?;
            if text.contains(['"', '\\', '$']) || text.chars().any(char::is_control) {
                return Err(bad(format!("{text:?} can't stand in a configuration of nats-server")));
            }
        }
        let mut names = BTreeSet::from([COORDINATOR]);
        for (kind, name, user) in self.all() {
            let is_of_all = kind == Kind::Reader && user.namespace.is_empty();
            if !is_token(name) || !(is_of_all || is_token(&user.namespace)) {
                return Err(bad(format!("{name:?} in namespace {:?} is no name of a user", user.namespace)));
            }
            if !names.insert(name) {
                return Err(bad(format!("{name:?} is the name of two users")));
            }
        }
        let keys = self.all().map(|(_, _, user)| &user.key).chain([&self.coordinator.key]);
        let is_user = |key: &str| KeyPair::from_public_key(key).is_ok_and(|k| k.key_pair_type() == KeyPairType::User);
        // A key that two names share would have what both may do.
        let mut seen = BTreeSet::new();
        for key in keys.filter(|key| !key.is_empty()) {
            if !is_user(key) || !seen.insert(key) {
                return Err(bad(format!("{key:?} is no public key of an NKEY user, or that of two users")));
            }
        }
        Ok(())
    }

    /// Whether TLS is on.
    pub(super) fn has_tls(&self) -> bool {
        !is_empty(&self.tls_cert)
    }

    /// Whether others on the network can listen in.
    pub(super) fn is_exposed(&self) -> bool {
        let host = self.listen.rsplit_once(':').map_or(self.listen.as_str(), |(host, _)| host);
        let is_loopback = |ip: IpAddr| ip.is_loopback();
        let loopback = self.listen.parse::<SocketAddr>().is_ok_and(|a| is_loopback(a.ip())) || host == "localhost";
        !loopback && !self.has_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_text_of_the_configuration_early() {
        let users = |change: fn(&mut Users)| {
            let mut users = Users::none();
            change(&mut users);
            users.check().map_err(|e| e.reason)
        };
        assert_eq!(users(|_| ()), Ok(()));
        let bad: [fn(&mut Users); 8] = [
            |u| u.listen = "127.0.0.1:4222\nno_auth_user: x".to_owned(),
            |u| u.tls_cert = PathBuf::from("a\" } no_auth_user: \"x"),
            |u| u.coordinator.key = "UABC".to_owned(),
            |u| drop(u.agents.insert("infra.*".to_owned(), agent("default"))),
            |u| drop(u.agents.insert("infra-1".to_owned(), agent("*"))),
            |u| drop(u.signallers.insert("ci".to_owned(), agent(""))),
            |u| drop(u.readers.insert("tickets.>".to_owned(), agent(""))),
            |u| {
                u.agents.insert("ci".to_owned(), agent("default"));
                u.readers.insert("ci".to_owned(), agent(""));
            },
        ];
        for change in bad {
            assert_eq!(users(change), Err("NATS_USERS_INVALID".to_owned()));
        }
    }

    fn agent(namespace: &str) -> User {
        User { namespace: namespace.to_owned(), key: KeyPair::new_user().public_key() }
    }

    #[test]
    fn only_a_network_without_tls_is_exposed() {
        for (listen, cert, exposed) in [
            ("127.0.0.1:4222", "", false),
            ("[::1]:4222", "", false),
            ("localhost:4222", "", false),
            ("0.0.0.0:4222", "", true),
            ("nats.example.org:4222", "", true),
            ("4222", "", true),
            ("0.0.0.0:4222", "nats.crt", false),
        ] {
            let users = Users { listen: listen.to_owned(), tls_cert: PathBuf::from(cert), ..Users::none() };
            assert_eq!(users.is_exposed(), exposed, "{listen}");
        }
    }
}
