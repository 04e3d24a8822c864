//! The API as a stranger on the network meets it: over TLS, with tokens of several roles, and in clear text nowhere but on
//! loopback.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Result, ensure};
use muster_bus::testkit::NatsServer;
use muster_integration_tests::{
    lab::{Certificates, RunAs},
    process::{Process, binary, tail, wait_for},
    sweep::Folder,
    system::{SOON, free_address, path},
};

/// Run the CLI against a server that proves itself by `ca`.
fn cli(server: &str, ca: &Path, token: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("muster", "muster"));
    command
        .env("MUSTER_SERVER", server)
        .env("MUSTER_CA", ca)
        .env("MUSTER_TOKEN_FILE", token)
        .env("NO_COLOR", "1")
        .args(args);
    Ok(command.output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_api_over_tls_lets_in_who_has_a_token_and_that_far() -> Result<()> {
    let dir = Folder::of(tempfile::tempdir()?);
    let nats = NatsServer::start()?;
    let certificates = Certificates::make(&dir.path().join("tls"), &RunAs::ordinary("nobody")?, "localhost", 30)?;
    let (data, listen) = (dir.path().join("data"), free_address()?);
    let mut command = Command::new(binary("muster", "muster"));
    command.args(["serve", "--nats", &nats.url(), "--listen", &listen, "--data-dir", path(&data)?]);
    command.arg("--tls-cert").arg(certificates.cert()).arg("--tls-key").arg(certificates.key());
    let mut coordinator = Process::start("coordinator", dir.path(), &mut command)?;
    let server = format!("https://localhost:{}", listen.rsplit(':').next().unwrap_or_default());
    let (ca, admin) = (certificates.ca(), data.join("admin.token"));
    wait_for("the coordinator answers over TLS", SOON, || {
        ensure!(coordinator.is_running(), "it has ended:\n{}", tail(&coordinator.output()));
        let answer = cli(&server, &ca, &admin, &["agent", "list"])?;
        ensure!(answer.status.success(), "{}", stderr(&answer));
        Ok(Some(()))
    })?;

    let other = Certificates::make(&dir.path().join("other"), &RunAs::ordinary("nobody")?, "localhost", 30)?;
    let refused = cli(&server, &other.ca(), &admin, &["agent", "list"])?;
    assert_eq!(refused.status.code(), Some(1), "an authority that did not sign it is not believed");
    let said = stderr(&refused);
    ensure!(said.contains("error: TLS_UNTRUSTED ") && said.contains("--ca FILE"), "{said}");
    let misnamed = cli(&server.replace("localhost", "127.0.0.1"), &ca, &admin, &["agent", "list"])?;
    let said = stderr(&misnamed);
    ensure!(said.contains("error: TLS_UNTRUSTED ") && said.contains("as its certificate does"), "{said}");
    let clear = cli(&server.replace("https", "http"), &ca, &admin, &["agent", "list"])?;
    assert_eq!(clear.status.code(), Some(1), "{}", stderr(&clear));
    let said = stderr(&clear);
    ensure!(said.contains("error: CONNECTION_BROKEN ") && said.contains("use https://"), "{said}");

    let made = cli(&server, &ca, &admin, &["token", "create", "person/dba-1", "--role", "viewer", "-o", "json"])?;
    ensure!(made.status.success(), "{}", stderr(&made));
    let viewer = dir.path().join("viewer.token");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    fs::write(&viewer, made["secret"].as_str().unwrap_or_default())?;
    ensure!(cli(&server, &ca, &viewer, &["run", "list"])?.status.success(), "a viewer may look");
    let denied = cli(&server, &ca, &viewer, &["run", "start", "hello"])?;
    ensure!(stderr(&denied).contains("error: ROLE_TOO_LOW "), "a viewer may not start: {}", stderr(&denied));
    let wrong = dir.path().join("wrong.token");
    fs::write(&wrong, "muster_not_a_token")?;
    let stranger = cli(&server, &ca, &wrong, &["run", "list"])?;
    let said = stderr(&stranger);
    ensure!(said.contains("error: TOKEN_INVALID "), "nobody gets in with a token that was never made: {said}");
    coordinator.terminate(SOON)?;
    Ok(())
}
