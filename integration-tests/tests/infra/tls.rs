//! Certificates: issued, renewed, taken back, and looked at by a real handshake.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Instant};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::tls::{Certificate, Inspect};
use muster_integration_tests::lab::{self, Certificates, Nginx, RunAs};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, mute, undoes};

const NAME: &str = "shop.example.org";

fn params(dir: &Path) -> Value {
    json!({
        "domain": NAME, "alt_names": ["127.0.0.1"],
        "cert": dir.join("site.crt"), "key": dir.join("site.key"), "ca": dir.join("ca.crt"), "ca_key": dir.join("ca.key"),
    })
}

fn openssl(args: &[&str]) -> String {
    let openssl = lab::program("openssl", "openssl").unwrap();
    let out = Command::new(openssl).args(args).output().unwrap();
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// All files of a folder, with their content; what is kept for undo is left out.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file());
    let mut files: Vec<_> = files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_certificate_is_made_from_nothing_and_goes_away_again() {
    let dir = lab::folder().unwrap();
    let with = params(dir.path());
    let (prepared, done) = does(&Certificate, &with).await;
    assert_eq!(done.output["days_left"], 90);
    assert_eq!((mode(&dir.path().join("site.key")), mode(&dir.path().join("ca.key"))), (0o600, 0o600));
    let path = |name: &str| dir.path().join(name).display().to_string();
    let verify = ["verify", "-x509_strict", "-CAfile", &path("ca.crt"), "-verify_hostname", NAME, &path("site.crt")];
    assert!(openssl(&verify).ends_with(": OK\n"), "{}", openssl(&verify));
    let other = ["verify", "-CAfile", &path("ca.crt"), "-verify_hostname", "other.example.org", &path("site.crt")];
    assert!(!openssl(&other).ends_with(": OK\n"));
    let fingerprint = openssl(&["x509", "-in", &path("site.crt"), "-noout", "-fingerprint", "-sha256"]);
    let hex = fingerprint.trim().rsplit('=').next().unwrap().replace(':', "").to_ascii_lowercase();
    assert_eq!(done.output["fingerprint"], hex);
    undoes(&Certificate, &with, &prepared).await;
    assert_eq!(files(dir.path()), Vec::new());
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_by_the_same_authority_and_comes_back_byte_for_byte() {
    let dir = lab::folder().unwrap();
    Certificates::make(dir.path(), &RunAs::same(), NAME, -5).unwrap();
    let before = files(dir.path());
    let mut with = params(dir.path());
    with["alt_names"] = json!([]);
    let (prepared, _) = does(&Certificate, &with).await;
    let ca = |files: &[(String, Vec<u8>)]| files.iter().find(|(name, _)| name.ends_with("ca.crt")).cloned();
    assert_eq!(ca(&before), ca(&files(dir.path())), "the authority stays");
    assert!(!prepared.to_string().contains("PRIVATE"), "no key in what is journalled");
    undoes(&Certificate, &with, &prepared).await;
    assert_eq!(files(dir.path()), before);
}

#[tokio::test]
async fn each_defect_is_seen_by_the_check_and_mended_by_a_run() {
    let dir = lab::folder().unwrap();
    let mut with = params(dir.path());
    does(&Certificate, &with).await;
    let key = dir.path().join("site.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    does(&Certificate, &with).await;
    // As after a crash between the two files.
    fs::write(&key, fs::read(dir.path().join("ca.key")).unwrap()).unwrap();
    does(&Certificate, &with).await;
    with["domain"] = json!("other.example.org");
    does(&Certificate, &with).await;
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(matches!(Certificate.check(&context(), &with).await.unwrap(), Checked::Satisfied(_)));
    with["renew_before_days"] = json!(89);
    with["days"] = json!(100);
    fs::write(dir.path().join("ca.crt"), "no certificate").unwrap();
    does(&Certificate, &with).await;
}

#[tokio::test]
async fn without_leave_to_make_an_authority_a_person_is_asked() {
    let dir = lab::folder().unwrap();
    let mut with = params(dir.path());
    with["make_ca"] = json!(false);
    assert!(matches!(Certificate.run(&context(), &with).await, Err(ActionError::NeedsPerson { .. })));
    assert_eq!(files(dir.path()), Vec::new());
}

async fn inspect(nginx: &Nginx, certificates: &Certificates, name: &str) -> Value {
    let with = json!({"address": nginx.https_address(), "server_name": name, "ca_file": certificates.ca()});
    Inspect.run(&context(), &with).await.unwrap().output
}

#[tokio::test]
async fn inspect_says_what_is_wrong_and_does_not_fail() {
    let dir = lab::folder().unwrap();
    let user = Nginx::user().unwrap();
    let good = Certificates::make(&dir.path().join("good"), &user, NAME, 60).unwrap();
    let expired = Certificates::make(&dir.path().join("expired"), &user, NAME, -5).unwrap();
    // Nothing listens there: the site's content is of no matter here.
    let upstream = "127.0.0.1:1";
    let nginx = Nginx::start(&dir.path().join("a"), NAME, &good, upstream).unwrap();
    let seen = inspect(&nginx, &good, NAME).await;
    assert_eq!((&seen["chain_valid"], &seen["name_valid"], &seen["error"]), (&json!(true), &json!(true), &Value::Null));
    assert!((59..=60).contains(&seen["days_left"].as_i64().unwrap()) && seen["protocol"] == "TLSv1.2", "{seen}");
    assert_eq!(seen["subject"], format!("CN={NAME}"));
    let seen = inspect(&nginx, &good, "other.example.org").await;
    assert_eq!((&seen["chain_valid"], &seen["name_valid"]), (&json!(true), &json!(false)));
    let seen = inspect(&nginx, &expired, NAME).await;
    assert_eq!((&seen["chain_valid"], &seen["name_valid"]), (&json!(false), &json!(true)), "another authority");
    let nginx = Nginx::start(&dir.path().join("b"), NAME, &expired, upstream).unwrap();
    let seen = inspect(&nginx, &expired, NAME).await;
    assert_eq!((&seen["chain_valid"], seen["days_left"].as_i64() < Some(-4)), (&json!(false), true));
    assert!(seen["error"].as_str().unwrap().contains("expired"), "{seen}");
}

/// As after a crash between the new files and the signal.
#[tokio::test]
async fn a_server_that_has_missed_its_reload_is_seen() {
    let dir = lab::folder().unwrap();
    let certificates = Certificates::make(&dir.path().join("tls"), &Nginx::user().unwrap(), NAME, -5).unwrap();
    let mut nginx = Nginx::start(&dir.path().join("nginx"), NAME, &certificates, "127.0.0.1:1").unwrap();
    let mut with = params(certificates.dir());
    does(&Certificate, &with).await;
    with["served_at"] = json!(nginx.https_address());
    with["reload"] = json!({"pid_file": nginx.pid_file(), "process": "nginx"});
    let (prepared, done) = does(&Certificate, &with).await;
    assert_eq!(inspect(&nginx, &certificates, NAME).await["fingerprint"], done.output["fingerprint"]);
    nginx.stop();
    assert!(assert_gave_up(Instant::now(), Certificate.run(&context(), &with).await).contains("does not run"));
    undoes(&Certificate, &with, &prepared).await;
}

#[tokio::test]
async fn inspect_gives_up_in_time() {
    let dir = lab::folder().unwrap();
    let good = Certificates::make(dir.path(), &RunAs::same(), NAME, 60).unwrap();
    let (_listener, address) = mute();
    let with = json!({"address": address, "server_name": NAME, "ca_file": good.ca(), "timeout_ms": 300});
    let start = Instant::now();
    assert!(assert_gave_up(start, Inspect.run(&context(), &with).await).contains("300 ms"));
    let with = json!({"address": format!("127.0.0.1:{}", lab::free_port().unwrap()), "ca_file": good.ca()});
    assert_gave_up(start, Inspect.run(&context(), &with).await);
    let ctx = context();
    ctx.cancelled.cancel();
    let with = json!({"address": address, "ca_file": good.ca(), "timeout_ms": 60_000});
    assert_gave_up(start, Inspect.run(&ctx, &with).await);
}
