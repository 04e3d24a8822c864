//! TLS between our processes and nats-server: it is believed who can prove its name by the authority that was given.

use std::path::Path;

use anyhow::{Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    lab::{Certificates, RunAs},
    process::Process,
    system::{SOON, System, path},
};

use super::keys::{Keys, USUAL, agent_run};

const NOTHING: &str = "
apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: nothing, owner: ops}
spec:
  phases:
    - id: main
      milestone: Nothing was done
      steps:
        - {id: only, agent: {role: bench}, action: noop.run}
";

fn certificates(dir: &Path, name: &str, days: i64) -> Result<Certificates> {
    Certificates::make(&dir.join(name), &RunAs::ordinary("nobody")?, "localhost", days)
}

fn server(keys: &Keys) -> Result<(NatsServer, String)> {
    let nats = NatsServer::start_program(Path::new(USUAL), &["-c", &keys.config()?])?;
    let url = format!("tls://localhost:{}", nats.port());
    Ok((nats, url))
}

#[test]
fn a_coordinator_and_an_agent_talk_over_tls() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (site, other) = (certificates(dir.path(), "site", 30)?, certificates(dir.path(), "other", 30)?);
    let (cert, key) = (site.cert(), site.key());
    let tls = ["--tls-cert", path(&cert)?, "--tls-key", path(&key)?];
    let keys = Keys::write(dir.path(), &[&["--agent", "bench-1"], &tls[..]].concat())?;
    let (nats, url) = server(&keys)?;
    let (seed, ca, wrong) = (keys.seed("bench-1"), site.ca(), other.ca());

    let cases = [
        (url.clone(), Some(&wrong), "--nats-ca FILE"),
        (url.clone(), None, "--nats-ca FILE"),
        (nats.url(), Some(&ca), "as its certificate does"),
    ];
    for (url, authority, hint) in cases {
        let mut options = vec!["--nats-nkey", &*seed];
        if let Some(authority) = authority {
            options.extend(["--nats-ca", path(authority)?]);
        }
        let said = agent_run(dir.path(), &url, &options)?;
        ensure!(said.contains("error: BUS_UNTRUSTED ") && said.contains(hint), "{url}: {said}");
    }

    let coordinator = keys.seed("coordinator");
    let serve = ["--nats-nkey", &coordinator, "--nats-ca", path(&ca)?];
    let mut system = System::start_on(dir, nats, &url, &serve)?;
    system.start_agent("bench-1", "bench", &["--nats-nkey", &seed, "--nats-ca", path(&ca)?])?;
    let run = system.start_run(&system.submit(NOTHING)?)?;
    system.wait_run(&run, &["SUCCEEDED"], SOON)?;
    let said: Vec<_> = system.agents.values().chain(&system.coordinator).map(Process::output).collect();
    ensure!(said.iter().all(|said| !said.contains("WARN")), "{said:?}");
    Ok(())
}

#[test]
fn what_can_not_be_trusted_is_not_waited_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let past = certificates(dir.path(), "past", -1)?;
    let (cert, key, ca) = (past.cert(), past.key(), past.ca());
    let keys = Keys::write(dir.path(), &["--tls-cert", path(&cert)?, "--tls-key", path(&key)?])?;
    let (_nats, url) = server(&keys)?;
    let expired = agent_run(dir.path(), &url, &["--nats-ca", path(&ca)?])?;
    ensure!(expired.contains("error: BUS_UNTRUSTED ") && expired.contains("another certificate"), "{expired}");

    let open = NatsServer::start_program(Path::new(USUAL), &[])?;
    let clear = agent_run(dir.path(), &open.url(), &["--nats-ca", path(&ca)?])?;
    ensure!(clear.contains("error: BUS_UNTRUSTED ") && clear.contains("has no TLS"), "{clear}");
    let no_pem = keys.config()?;
    let bad = agent_run(dir.path(), &url, &["--nats-ca", &no_pem])?;
    ensure!(bad.contains("error: CA_INVALID "), "{bad}");
    Ok(())
}
