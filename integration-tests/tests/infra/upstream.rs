//! The servers behind nginx: shared by weight, taken out, drained, dead, hanging, refused by nginx and undone.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::nginx::{Site, Upstream};
use muster_integration_tests::lab::{self, Certificates, DOMAIN, Nginx, SampleService};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, mute, undoes};

/// Fields are dropped in this order.
struct Front {
    nginx: Nginx,
    one: SampleService,
    two: SampleService,
    ask: String,
    _dir: lab::Folder,
}

fn front() -> Front {
    let dir = lab::folder().unwrap();
    let one = SampleService::start_release(&dir.path().join("one"), "1").unwrap();
    let two = SampleService::start_release(&dir.path().join("two"), "2").unwrap();
    let certificates = Certificates::make(&dir.path().join("tls"), &Nginx::user().unwrap(), DOMAIN, 60).unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), DOMAIN, &certificates, &one.address()).unwrap();
    let ask = format!("127.0.0.1:{}", lab::free_port().unwrap());
    Front { nginx, one, two, ask, _dir: dir }
}

impl Front {
    fn file(&self) -> PathBuf {
        self.nginx.site().with_file_name("servers.conf")
    }

    fn upstream(&self, servers: &Value) -> Value {
        json!({
            "file": self.file(), "config": self.nginx.config(), "pid_file": self.nginx.pid_file(), "name": "shop",
            "servers": servers, "ask": self.ask, "path": "/version", "requests": 40, "tolerance_percent": 1,
        })
    }

    fn both(&self, weights: (u32, u32)) -> Value {
        self.upstream(&json!([
            {"address": self.one.address(), "weight": weights.0}, {"address": self.two.address(), "weight": weights.1},
        ]))
    }

    fn site(&self) -> Value {
        json!({
            "site": self.nginx.site(), "config": self.nginx.config(), "pid_file": self.nginx.pid_file(),
            "server_name": DOMAIN, "listen_http": self.nginx.http_address(), "upstream": "shop",
        })
    }

    /// Which versions the site's visitors get, of so many.
    fn visitors(&self, count: usize) -> BTreeMap<String, usize> {
        let mut got = BTreeMap::new();
        for _ in 0..count {
            let body =
                get(&self.nginx.http_address(), "/version").split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
            *got.entry(body.trim().to_owned()).or_default() += 1;
        }
        got
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {DOMAIN}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn versions<const N: usize>(versions: [(&str, usize); N]) -> BTreeMap<String, usize> {
    versions.map(|(version, count)| (format!("{{\"version\":\"{version}\"}}"), count)).into()
}

#[tokio::test]
async fn requests_are_shared_by_weight_and_a_site_uses_them() {
    let front = front();
    let with = front.both((3, 1));
    let (prepared, done) = does(&Upstream, &with).await;
    assert_eq!((&done.output["asked"], &done.output["success_percent"]), (&json!(40), &json!(100.0)));
    assert_eq!(done.output["servers"][front.one.address()]["requests"], 30, "{}", done.output);
    assert!(done.observations.iter().any(|o| o.name == "share" && o.unit == "percent" && o.samples == Some(40)));
    let (site_prepared, _) = does(&Site, &front.site()).await;
    assert_eq!(front.visitors(8), versions([("1", 6), ("2", 2)]));

    // One is taken out and comes back by undo.
    let out = front.upstream(&json!([
        {"address": front.one.address()}, {"address": front.two.address(), "state": "down"},
    ]));
    let found = fs::read(front.file()).unwrap();
    let (out_prepared, done) = does(&Upstream, &out).await;
    assert_eq!(done.output["servers"][front.two.address()]["requests"], 0);
    assert_eq!(front.visitors(6), versions([("1", 6)]));
    undoes(&Upstream, &out, &out_prepared).await;
    assert_eq!(fs::read(front.file()).unwrap(), found);
    assert_eq!(front.visitors(8), versions([("1", 6), ("2", 2)]));

    // In the wrong order nginx would not start again: it is said, and the site goes on.
    let refused = Upstream.undo(&context(), &with, &prepared).await.unwrap_err();
    assert!(
        matches!(refused, ActionError::Permanent { .. }) && refused.to_string().contains("undo first"),
        "{refused}"
    );
    assert_eq!(front.visitors(4).values().sum::<usize>(), 4);
    Site.undo(&context(), &front.site(), &site_prepared).await.unwrap();
    undoes(&Upstream, &with, &prepared).await;
    assert!(!front.file().exists() && TcpStream::connect(&front.ask).is_err());
}

#[tokio::test]
async fn a_backup_answers_only_when_nobody_else_does() {
    let mut front = front();
    let dead = format!("127.0.0.1:{}", lab::free_port().unwrap());
    let with =
        |first: &str| front.upstream(&json!([{"address": first}, {"address": front.two.address(), "state": "backup"}]));
    let (healthy, broken) = (with(&front.one.address()), with(&dead));
    let (_, done) = does(&Upstream, &healthy).await;
    assert_eq!(done.output["servers"][front.two.address()]["requests"], 0);
    let prepared = Upstream.prepare(&context(), &broken).await.unwrap();
    let failed = Upstream.run(&context(), &broken).await;
    let Err(ActionError::Retry { message, output: Some(output) }) = failed else { panic!("it is well: {failed:?}") };
    assert!(message.contains(&dead) && message.contains("100 % wanted"), "{message}");
    assert!(output["servers"][front.two.address()]["requests"].as_u64().unwrap() > 30, "{output}");
    let Checked::Different { diff } = Upstream.check(&context(), &broken).await.unwrap() else { panic!("it is well") };
    assert!(diff.starts_with("the file is right, but"), "{diff}");
    Upstream.undo(&context(), &broken, &prepared).await.unwrap();
    assert!(matches!(Upstream.check(&context(), &healthy).await.unwrap(), Checked::Satisfied(_)));

    front.nginx.stop();
    assert!(matches!(Upstream.check(&context(), &healthy).await.unwrap(), Checked::Different { .. }));
    assert!(assert_gave_up(Instant::now(), Upstream.run(&context(), &healthy).await).contains("not running"));
    Upstream.undo(&context(), &broken, &prepared).await.unwrap();
    front.nginx.restart().unwrap();
    assert!(matches!(Upstream.check(&context(), &healthy).await.unwrap(), Checked::Satisfied(_)));
}

#[tokio::test]
async fn a_stopped_or_hanging_nginx_keeps_its_servers() {
    let mut front = front();
    let (with, mut other) = (front.both((1, 1)), front.both((3, 1)));
    does(&Upstream, &with).await;
    let found = fs::read_to_string(front.file()).unwrap();
    other["settle_ms"] = json!(1500);
    front.nginx.stop();
    assert!(assert_gave_up(Instant::now(), Upstream.run(&context(), &other).await).contains("not running"));
    assert_eq!(fs::read_to_string(front.file()).unwrap(), found, "nothing was begun");
    front.nginx.restart().unwrap();
    assert!(matches!(Upstream.check(&context(), &with).await.unwrap(), Checked::Satisfied(_)));

    let to_nginx = |signal| {
        let pid = fs::read_to_string(front.nginx.pid_file()).unwrap();
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    };
    let other_prepared = Upstream.prepare(&context(), &other).await.unwrap();
    to_nginx("-STOP");
    let (start, hung) = (Instant::now(), Upstream.run(&context(), &other).await);
    to_nginx("-CONT");
    assert!(assert_gave_up(start, hung).contains("former configuration"));
    // It has woken: what was asked of it is finished, or taken back.
    Upstream.run(&context(), &other).await.unwrap();
    to_nginx("-STOP");
    let (start, hung) = (Instant::now(), Upstream.undo(&context(), &other, &other_prepared).await);
    to_nginx("-CONT");
    assert!(assert_gave_up(start, hung).contains("former configuration"));
    undoes(&Upstream, &other, &other_prepared).await;
    assert_eq!(fs::read_to_string(front.file()).unwrap(), found);
    assert!(matches!(Upstream.check(&context(), &with).await.unwrap(), Checked::Satisfied(_)));
}

#[tokio::test]
async fn what_nginx_refuses_what_is_half_done_and_another_hand() {
    let front = front();
    let with = front.both((1, 1));
    let (prepared, _) = does(&Upstream, &with).await;
    let written = fs::read(front.file()).unwrap();
    let mut twice = with.clone();
    twice["file"] = json!(front.nginx.site().with_file_name("twice.conf"));
    let refused = Upstream.run(&context(), &twice).await.unwrap_err();
    assert!(matches!(refused, ActionError::Permanent { .. }), "{refused}");
    assert!(
        refused.to_string().contains("duplicate upstream") && refused.to_string().contains("taken back"),
        "{refused}"
    );
    assert!(!front.nginx.site().with_file_name("twice.conf").exists());

    fs::write(front.file(), [&written[..], b"# by hand\n"].concat()).unwrap();
    let before_hand = Upstream.prepare(&context(), &with).await.unwrap();
    does(&Upstream, &with).await;
    undoes(&Upstream, &with, &before_hand).await;
    assert!(fs::read_to_string(front.file()).unwrap().ends_with("# by hand\n"));
    // Written, and not reloaded: as after a crash in between.
    Upstream.undo(&context(), &with, &prepared).await.unwrap();
    fs::write(front.file(), &written).unwrap();
    does(&Upstream, &with).await;
    // Between prepare and run: it can't be put back, and is not guessed.
    let other = front.both((2, 1));
    fs::write(front.file(), b"# one hand\n").unwrap();
    let prepared = Upstream.prepare(&context(), &other).await.unwrap();
    fs::write(front.file(), b"# another hand\n").unwrap();
    Upstream.run(&context(), &other).await.unwrap();
    assert!(matches!(Upstream.undo(&context(), &other, &prepared).await, Err(ActionError::NeedsPerson { .. })));
}

#[tokio::test]
async fn servers_that_hang_are_given_up_in_time() {
    let front = front();
    let (_listener, address) = mute();
    let with = front.upstream(&json!([{"address": address}]));
    let message = assert_gave_up(Instant::now(), Upstream.run(&context(), &with).await);
    assert!(message.contains("no answer from nginx"), "{message}");
}

/// Answers at once; but `/hold` only when it is let go. Says when it holds one.
fn holder() -> (String, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ((holds, held), (release, released)) = (mpsc::channel(), mpsc::channel());
    thread::spawn(move || {
        let mut request = [0; 1024];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let length = stream.read(&mut request).unwrap_or(0);
            if request[..length].starts_with(b"GET /hold") {
                holds.send(()).unwrap();
                released.recv().unwrap();
            }
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nheld\n");
        }
    });
    (address, held, release)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_answers_what_it_was_asked_before() {
    let front = front();
    let (address, held, release) = holder();
    does(&Upstream, &front.upstream(&json!([{"address": address}]))).await;
    let ask = front.ask.clone();
    let visitor = thread::spawn(move || get(&ask, "/hold"));
    held.recv_timeout(Duration::from_secs(20)).unwrap();

    let servers = json!([{"address": address, "state": "down"}, {"address": front.two.address()}]);
    let mut with = front.upstream(&servers);
    with["drain_ms"] = json!(300);
    let message = assert_gave_up(Instant::now(), Upstream.run(&context(), &with).await);
    assert!(message.contains("not answered yet"), "{message}");
    let Checked::Different { diff } = Upstream.check(&context(), &with).await.unwrap() else { panic!("it is drained") };
    assert!(diff.contains("earlier requests"), "{diff}");
    release.send(()).unwrap();
    with["drain_ms"] = json!(20_000);
    Upstream.run(&context(), &with).await.unwrap();
    assert!(visitor.join().unwrap().ends_with("held\n"));
    assert!(matches!(Upstream.check(&context(), &with).await.unwrap(), Checked::Satisfied(_)));
}
