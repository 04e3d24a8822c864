//! `muster nats config`: what it writes, what it keeps, and who can read it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _};

use support::Session;

fn mode(session: &Session, path: &str) -> u32 {
    fs::metadata(session.folder(".").join(path)).unwrap().permissions().mode() & 0o777
}

fn seed(session: &Session, user: &str) -> Option<String> {
    fs::read_to_string(session.folder("keys/seeds").join(format!("{user}.nk"))).ok()
}

#[test]
fn keys_are_added_kept_renewed_and_removed() {
    let mut session = Session::new();
    session.run(&["nats", "config", "--out", "keys", "--agent", "infra-1", "--agent", "infra-2"]);
    let (coordinator, first, second) =
        (seed(&session, "coordinator"), seed(&session, "infra-1"), seed(&session, "infra-2"));
    let different: BTreeSet<_> = [&coordinator, &first, &second].into_iter().flatten().collect();
    assert_eq!(different.len(), 3);
    for user in ["coordinator", "infra-1", "infra-2"] {
        assert_eq!(mode(&session, &format!("keys/seeds/{user}.nk")), 0o600);
    }
    assert_eq!((mode(&session, "keys/seeds"), mode(&session, "keys/nats.conf")), (0o700, 0o644));
    let config = fs::read_to_string(session.folder("keys").join("nats.conf")).unwrap();
    assert!(different.iter().all(|seed| !config.contains(seed.trim())), "the server's configuration holds no seed");

    // A seed that was moved to the host of its agent.
    fs::remove_file(session.folder("keys/seeds").join("infra-1.nk")).unwrap();
    session.run(&["nats", "config", "--out", "keys", "--agent", "infra-3", "--listen", "0.0.0.0:4222"]);
    let added = fs::read_to_string(session.folder("keys").join("nats.conf")).unwrap();
    for key in config.lines().filter(|line| line.contains("nkey:")) {
        assert!(added.contains(key), "keys of before stay: {key}");
    }
    session.run(&[
        "nats",
        "config",
        "--out",
        "keys",
        "--renew",
        "infra-2",
        "--renew",
        "coordinator",
        "--remove",
        "infra-1",
    ]);
    assert!(seed(&session, "infra-2").is_some_and(|new| Some(new) != second), "another key");
    assert!(seed(&session, "coordinator").is_some_and(|new| Some(new) != coordinator), "another key");
    session.run(&[
        "nats",
        "config",
        "--out",
        "keys",
        "--remove",
        "infra-3",
        "--tls-cert",
        "/tls/a.crt",
        "--tls-key",
        "/tls/a.key",
    ]);
    assert_eq!(seed(&session, "infra-3"), None);
    session.run(&["nats", "config", "--out", "keys"]);
    session.run(&["nats", "config", "--out", "keys", "--signaller", "ci", "--reader", "tickets"]);
    session.run(&["nats", "config", "--out", "keys", "--remove", "ci", "--renew", "tickets"]);
    assert_eq!(seed(&session, "ci"), None);
    session.check("nats_config");
}

/// A run was cut off between a seed and `users.toml`: the seed may be in use already.
#[test]
fn a_seed_without_a_user_is_taken_up() {
    let session = Session::new();
    session.quietly(&["nats", "config", "--out", "keys", "--agent", "infra-1"]);
    let file = session.folder("keys").join("nats.conf");
    let config = fs::read_to_string(&file).unwrap();
    fs::remove_file(session.folder("keys").join("users.toml")).unwrap();
    fs::remove_file(&file).unwrap();
    let again = session.quietly(&["nats", "config", "--out", "keys", "--agent", "infra-1"]);
    assert!(again.status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), config);
}

#[test]
fn what_can_not_be_written_is_said_and_nothing_is() {
    let mut session = Session::new();
    session.run(&["nats", "config", "--out", "keys", "--agent", "infra.*"]);
    session.run(&["nats", "config", "--out", "keys", "--agent", "coordinator"]);
    session.run(&["nats", "config", "--out", "keys", "--renew", "infra-9"]);
    session.run(&["nats", "config", "--out", "keys", "--listen", "4222 }"]);
    session.run(&["nats", "config", "--out", "keys", "--tls-cert", "a.crt"]);
    assert!(!session.folder(".").join("keys").exists());
    session.quietly(&["nats", "config", "--out", "keys", "--agent", "infra-1"]);
    session.run(&["nats", "config", "--out", "keys", "--namespace", "blue", "--agent", "infra-1"]);
    session.run(&["nats", "config", "--out", "keys", "--signaller", "infra-1"]);
    session.run(&["nats", "config", "--out", "keys", "--signaller", "ci", "--reader", "ci"]);
    session
        .write("keys/users.toml", "listen = '127.0.0.1:4222'\n[agents.infra-1]\nnamespace = 'default'\nkey = 'U\"'\n");
    session.run(&["nats", "config", "--out", "keys"]);
    session.write("keys/users.toml", "listen = 127\n");
    session.run(&["nats", "config", "--out", "keys"]);
    session.check("nats_config_refused");
}
