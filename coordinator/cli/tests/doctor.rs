//! `muster doctor`: a system that is sound, and each check turned by a fault that is really there.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use muster_bus::testkit::NatsServer;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::Value;
use support::{
    Session,
    server::{Server, wait_for},
};

/// What a check said: its state, its message, its hint.
struct Seen(BTreeMap<String, [String; 3]>);

impl Seen {
    fn of(output: &Output) -> Self {
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let checks = said["checks"].as_array().unwrap().iter();
        let seen = Self(
            checks.map(|c| (text(&c["name"]), [text(&c["state"]), text(&c["message"]), text(&c["hint"])])).collect(),
        );
        let problems = seen.0.values().filter(|check| check[0] == "problem").count();
        assert_eq!(said["problems"], problems, "{said}");
        assert_eq!(output.status.code(), Some(i32::from(problems > 0)), "{said}");
        assert!(
            seen.0.values().all(|check| (check[0] == "ok") == check[2].is_empty()),
            "what is wrong has a hint: {said}"
        );
        seen
    }

    /// This check is in this state, for a reason that says this.
    fn is(&self, name: &str, state: &str, why: &str) -> &Self {
        let check = self.0.get(name).unwrap_or_else(|| panic!("no check {name}: {:?}", self.0));
        assert!(check[0] == state && check[1].contains(why), "{name} is not {state} by {why:?}: {check:?}");
        self
    }

    /// All is well, but for what a busy machine or a full disk may be blamed for.
    fn is_sound(&self) {
        let machine = ["disk_space", "disk_sync", "nats_round_trip"];
        let bad: Vec<_> = self.0.iter().filter(|(name, c)| c[0] != "ok" && !machine.contains(&name.as_str())).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
}

fn doctor(session: &Session, args: &[&str]) -> Seen {
    Seen::of(&session.quietly(&[&["doctor", "-o", "json"], args].concat()))
}

/// A session that talks to nobody yet.
fn session() -> Session {
    let mut session = Session::new();
    session.env("MUSTER_SERVER", &format!("http://127.0.0.1:{}", support::closed_port()));
    session.env("MUSTER_DATA_DIR", "data");
    session
}

#[test]
fn before_the_first_start_all_is_well_once_nats_is_there() {
    let mut session = session();
    let nobody = format!("nats://127.0.0.1:{}", support::closed_port());
    session.env("MUSTER_NATS", &nobody);
    doctor(&session, &[]).is("nats", "problem", "BUS_UNREACHABLE").is("coordinator", "warning", "without NATS");
    let table = String::from_utf8(session.quietly(&["doctor"]).stdout).unwrap();
    let (checks, to_do) = table.split_once("\nCHECK        TO DO\n").unwrap_or_else(|| panic!("no hints: {table}"));
    assert!(checks.starts_with("CHECK        IS       WHAT\nnats         problem  BUS_UNREACHABLE"), "{table}");
    assert!(to_do.contains("nats         start nats-server"), "{table}");

    let nats = NatsServer::start().unwrap();
    session.env("MUSTER_NATS", &nats.url());
    let seen = doctor(&session, &[]);
    seen.is_sound();
    seen.is("nats", "ok", "nats-server 2.").is("journal", "ok", "none in data yet").is(
        "coordinator",
        "ok",
        "none runs",
    );
    seen.is("api", "ok", "nobody listens").is("clock", "ok", "not compared");
    assert!(!session.folder(".").join("data").exists(), "nothing is made");
}

#[test]
fn of_a_coordinator_that_runs_and_that_has_stopped() {
    let mut session = session();
    let nats = NatsServer::start().unwrap();
    session.env("MUSTER_NATS", &nats.url());
    let listen = format!("127.0.0.1:{}", support::closed_port());
    session.env("MUSTER_SERVER", &format!("http://{listen}"));
    let server = Server::start(&session, &["serve", "--listen", &listen]);
    wait_for("it answers", || session.quietly(&["agent", "list"]).status.success().then_some(()));

    let seen = doctor(&session, &[]);
    seen.is_sound();
    seen.is("journal", "ok", "has data open").is("coordinator", "ok", "one answers").is(
        "api",
        "ok",
        "takes this token",
    );
    let changed = |word| assert!(session.quietly(&["coordinator", word]).status.success());
    changed("drain");
    doctor(&session, &[]).is("drain", "warning", "draining, by person/admin, since 2");
    changed("resume");
    doctor(&session, &[]).is("drain", "ok", "the coordinator serves");
    seen.is("clock", "ok", "the coordinator's is at").is("admin_token", "ok", "alone").is("data_dir", "ok", "alone");

    doctor(&session, &["--data-dir", "other"]).is("coordinator", "warning", "a second one will not start");
    let elsewhere = NatsServer::start().unwrap();
    doctor(&session, &["--nats", &elsewhere.url()]).is(
        "coordinator",
        "problem",
        "no coordinator answers over this NATS",
    );
    session.write("wrong.token", "muster_not_a_token");
    session.mode("wrong.token", 0o600);
    doctor(&session, &["--token-file", "wrong.token"]).is("api", "problem", "TOKEN_INVALID");
    session.mode("wrong.token", 0o604);
    doctor(&session, &["--token-file", "wrong.token"]).is("token_file", "problem", "mode 604");

    session.mode("data/admin.token", 0o640);
    doctor(&session, &[]).is("admin_token", "problem", "mode 640");
    session.mode("data/admin.token", 0o600);
    for (mode, state) in [(0o750, "warning"), (0o777, "problem"), (0o700, "ok")] {
        session.mode("data", mode);
        doctor(&session, &[]).is("data_dir", state, "");
    }
    server.stop();

    let seen = doctor(&session, &[]);
    seen.is_sound();
    seen.is("journal", "ok", "records, whole").is("coordinator", "ok", "none runs").is("api", "ok", "nobody listens");
    let log = std::fs::read_dir(session.folder("data/log")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(12).position(|w| w == b"person/admin").unwrap();
    bytes[at] = b'P';
    std::fs::write(&log, bytes).unwrap();
    doctor(&session, &[]).is("journal", "problem", "not whole");
}

#[test]
fn a_nats_server_that_will_not_do() {
    let mut session = session();
    let small = |limit: &str| {
        let config = session.write("nats.conf", &format!("max_payload: {limit}\n"));
        let server = NatsServer::start_with(&["-c", config.to_str().unwrap()]).unwrap();
        doctor(&session, &["--nats", &server.url()])
    };
    small("65536").is("nats_max_payload", "warning", "48 KiB");
    small("32768").is("nats_max_payload", "problem", "16 KiB");
    session.quietly(&["nats", "config", "--out", "keys", "--agent", "infra-1"]);
    let config = session.folder("keys").join("nats.conf");
    let nats = NatsServer::start_with(&["-c", config.to_str().unwrap()]).unwrap();
    session.env("MUSTER_NATS", &nats.url());
    let keyed = |user: &str| doctor(&session, &["--nats-nkey", &format!("keys/seeds/{user}.nk")]);
    doctor(&session, &[]).is("nats", "problem", "BUS_REFUSED");
    let seen = keyed("coordinator");
    seen.is_sound();
    seen.is("nats_nkey", "ok", "alone");
    keyed("infra-1").is("nats", "problem", "but not as muster");
    session.mode("keys/seeds/coordinator.nk", 0o644);
    keyed("coordinator").is("nats", "problem", "SECRET_EXPOSED").is("nats_nkey", "problem", "mode 644");

    let old = old_server();
    doctor(&session, &["--nats", &old]).is("nats", "problem", "2.8.4 is too old");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("nats://{}", silent.local_addr().unwrap());
    doctor(&session, &["--nats", &silent]).is("nats", "problem", "");
}

/// A server of before 2.9, as far as a client looks.
fn old_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"INFO {\"server_id\":\"A\",\"version\":\"2.8.4\",\"headers\":true,\"max_payload\":1048576}\r\n")
            .unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
            // The client may have seen enough.
            if line == "PING" && stream.write_all(b"PONG\r\n").is_err() {
                return;
            }
        }
    });
    url
}

#[test]
fn a_nats_server_that_is_far_away() {
    let nats = NatsServer::start().unwrap();
    for (delay_ms, state) in [(80, "warning"), (700, "problem")] {
        let near = far(nats.port(), Duration::from_millis(delay_ms));
        doctor(&session(), &["--nats", &near]).is("nats_round_trip", state, " ms");
    }
}

/// The same server over a line that takes its time.
fn far(port: u16, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut up, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut up, &mut to_server));
        let (mut server, mut client, mut buffer) = (server, client, [0; 4096]);
        while let Ok(n @ 1..) = server.read(&mut buffer) {
            // The fault itself, not a wait for something.
            std::thread::sleep(delay);
            if client.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    url
}

/// Somebody else's coordinator, whose clock is a minute late.
#[test]
fn a_clock_that_is_wrong() {
    let nats = NatsServer::start().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async_nats::connect(nats.url())).unwrap();
    let mut beats = runtime.block_on(client.subscribe("muster.v1.*.beat.*")).unwrap();
    runtime.block_on(client.flush()).unwrap();
    runtime.spawn(async move {
        while let Some(beat) = futures_util::StreamExt::next(&mut beats).await {
            let now_ms = jiff::Timestamp::now().as_millisecond() - 60_000;
            let reply = format!("{{\"now_ms\":{now_ms},\"register_again\":true}}");
            client.publish(beat.reply.unwrap(), reply.into()).await.unwrap();
            client.flush().await.unwrap();
        }
    });
    let ask = || doctor(&session(), &["--nats", &nats.url()]);
    let seen = wait_for("it is heard", || Some(ask()).filter(|seen| seen.0["clock"][1].contains("coordinator's is")));
    seen.is("clock", "warning", "is at -").is("coordinator", "warning", "will not start");
}

#[test]
fn a_disk_that_will_not_do() {
    let session = session();
    doctor(&session, &["--data-dir", "/dev/shm/muster"]).is("disk_sync", "problem", "in memory");
    doctor(&session, &["--data-dir", "/proc/muster"]).is("disk_sync", "problem", "can't be written");
    let mut slow = Command::new("strace");
    slow.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=250000"]);
    slow.args([env!("CARGO_BIN_EXE_muster"), "doctor", "-o", "json", "--data-dir"]).arg(session.folder("data"));
    slow.env_remove("MUSTER_NATS").env("MUSTER_SERVER", format!("http://127.0.0.1:{}", support::closed_port()));
    let slow = slow.output().expect("strace is there: make tools");
    Seen::of(&slow).is("disk_sync", "problem", "ms until 4 KiB are on disk");
    assert_eq!(std::fs::read_dir(session.folder("data")).unwrap().count(), 0, "nothing is left behind");
}

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate from and until so many days from now, and its key.
fn certificate(folder: &Path, name: &str, (from, until): (i64, i64)) -> [String; 2] {
    let at = |days: i64| {
        let distance = DAY * u32::try_from(days.unsigned_abs()).unwrap() + Duration::from_secs(60);
        if days < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (at(from).into(), at(until).into());
    let key = KeyPair::generate().unwrap();
    let files = ["crt", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
    std::fs::write(&files[0], params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files[1], key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files[1], std::fs::Permissions::from_mode(0o600)).unwrap();
    files.map(|file| file.to_str().unwrap().to_owned())
}

#[test]
fn certificates_and_keys_that_will_not_do() {
    let session = session();
    let folder = session.folder("tls");
    for (name, days, state, why) in [
        ("good", (-1, 90), "ok", "90 days"),
        ("ending", (-1, 5), "warning", "5 days"),
        ("expired", (-30, -1), "problem", "has expired"),
        ("early", (3, 90), "problem", "not good yet"),
    ] {
        let [cert, key] = certificate(&folder, name, days);
        let seen = doctor(&session, &["--tls-cert", &cert, "--tls-key", &key, "--ca", &cert]);
        seen.is("tls_cert", state, why).is("ca", state, why).is("tls_pair", "ok", "").is("tls_key", "ok", "alone");
        doctor(&session, &["--nats-ca", &cert]).is("nats_ca", state, why);
    }
    let good = certificate(&folder, "good", (-1, 90));
    let other = certificate(&folder, "other", (-1, 90));
    doctor(&session, &["--tls-cert", &good[0], "--tls-key", &other[1]]).is("tls_pair", "problem", "is not the key");
    doctor(&session, &["--tls-cert", &good[0], "--tls-key", &good[0]]).is("tls_pair", "problem", "no private key");
    doctor(&session, &["--tls-cert", &good[0]]).is("tls_pair", "problem", "its key");
    doctor(&session, &["--ca", &good[1]]).is("ca", "problem", "no certificate in it");
    doctor(&session, &["--tls-cert", "missing.crt", "--tls-key", "missing.key"])
        .is("tls_cert", "problem", "missing.crt")
        .is("tls_key", "problem", "missing.key");
    session.mode("tls/good.key", 0o644);
    let exposed = doctor(&session, &["--tls-cert", &good[0], "--tls-key", &good[1]]);
    exposed.is("tls_key", "problem", "mode 644");
}
