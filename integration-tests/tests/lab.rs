//! The lab leaves nothing behind, however it ends.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::ensure;
use muster_integration_tests::lab::{self, Lab, Pooling, program, wait_until};

/// A running `muster-lab up`, and what it printed.
fn up() -> (Child, BTreeMap<String, String>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_muster-lab"))
        .arg("up")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = BTreeMap::new();
    for line in lines {
        let (key, value) = line.split_once('=').unwrap();
        said.insert(key.to_owned(), value.to_owned());
        if key == "READY" {
            break;
        }
    }
    (child, said)
}

fn addresses(said: &BTreeMap<String, String>) -> Vec<String> {
    let nats = said["NATS_URL"].replace("nats://", "");
    let others =
        ["HTTP", "HTTPS", "BLUE", "FRONT", "POSTGRES", "REPLICA", "PGBOUNCER", "REDIS"].map(|key| said[key].clone());
    others.into_iter().chain([nats]).collect()
}

fn listened(addresses: &[String]) -> Vec<&String> {
    addresses.iter().filter(|address| TcpStream::connect(address.as_str()).is_ok()).collect()
}

fn wait_for_silence(addresses: &[String]) {
    let silent = || {
        let left = listened(addresses);
        ensure!(left.is_empty(), "something still listens on {left:?}");
        Ok(())
    };
    wait_until(Duration::from_secs(20), silent).unwrap();
}

#[test]
fn the_end_of_input_ends_all_and_removes_all() {
    let (mut lab, said) = up();
    let addresses = addresses(&said);
    assert_eq!(listened(&addresses).len(), 9, "{said:?}");
    drop(lab.stdin.take());
    assert!(lab.wait().unwrap().success());
    assert_eq!(listened(&addresses), Vec::<&String>::new());
    assert!(!Path::new(&said["LAB_DIR"]).exists());
}

#[test]
fn no_server_outlives_a_lab_that_is_killed() {
    let (mut lab, said) = up();
    lab.kill().unwrap();
    lab.wait().unwrap();
    wait_for_silence(&addresses(&said));
    std::fs::remove_dir_all(&said["LAB_DIR"]).unwrap();
}

#[test]
fn servers_come_back_at_their_address() {
    let mut lab = Lab::start(Pooling::NoDatabase).unwrap();
    lab.nats.kill();
    wait_for_silence(&[lab.nats.address()]);
    lab.nats.restart().unwrap();
    lab.postgres.restart().unwrap();
    assert_eq!(lab.postgres.sql("revenue_engine", "select 40 + 2").unwrap(), "42");
    assert!(TcpStream::connect(lab.nats.address()).is_ok());
}

#[test]
fn a_missing_server_is_an_error_that_says_how_to_install_it() {
    let error = program("no-such-server", "its-package").unwrap_err().to_string();
    assert!(error.ends_with("apt-get install -y --no-install-recommends its-package"), "{error}");
    assert_ne!(lab::free_port().unwrap(), lab::free_port().unwrap());
}
