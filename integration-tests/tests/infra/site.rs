//! A site of nginx and the checks over HTTP, with every fault of the lab.

use std::{fs, process::Command, time::Instant};

use muster_agent::{Action, ActionError, Checked};
use muster_infra::{http::Check, nginx::Site};
use muster_integration_tests::lab::{self, Certificates, DOMAIN, Nginx, SampleService};
use serde_json::{Value, json};

use crate::{assert_gave_up, context, does, mute, undoes};

/// Fields are dropped in this order.
struct Front {
    nginx: Nginx,
    service: SampleService,
    certificates: Certificates,
    _dir: lab::Folder,
}

fn front() -> Front {
    let dir = lab::folder().unwrap();
    let service = SampleService::start(&dir.path().join("service")).unwrap();
    let certificates = Certificates::make(&dir.path().join("tls"), &Nginx::user().unwrap(), DOMAIN, 60).unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), DOMAIN, &certificates, &service.address()).unwrap();
    Front { nginx, service, certificates, _dir: dir }
}

impl Front {
    fn site(&self) -> Value {
        json!({
            "site": self.nginx.site(), "config": self.nginx.config(), "pid_file": self.nginx.pid_file(),
            "server_name": DOMAIN, "listen_http": self.nginx.http_address(), "listen_https": self.nginx.https_address(),
            "cert": self.certificates.cert(), "key": self.certificates.key(), "upstreams": [self.service.address()],
            "headers": {"Strict-Transport-Security": "max-age=31536000"},
        })
    }

    /// What curl gets: status, redirect target, body.
    fn curl(&self, scheme: &str) -> String {
        let address = if scheme == "https" { self.nginx.https_address() } else { self.nginx.http_address() };
        let out = Command::new(lab::program("curl", "curl").unwrap())
            .args(["-s", "--noproxy", "*", "-m", "5", "-w", "%{http_code} %{redirect_url}", "--cacert"])
            .arg(self.certificates.ca())
            .args(["--connect-to", &format!("::{address}"), &format!("{scheme}://{DOMAIN}/version")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn check(&self, scheme: &str, expect: &Value) -> Value {
        let address = if scheme == "https" { self.nginx.https_address() } else { self.nginx.http_address() };
        json!({
            "url": format!("{scheme}://{DOMAIN}/version"), "connect": address, "ca_file": self.certificates.ca(),
            "expect": expect, "timeout_ms": 5000,
        })
    }
}

#[tokio::test]
async fn a_redirect_is_put_in_place_and_taken_away() {
    let front = front();
    let (found, with) = (fs::read(front.nginx.site()).unwrap(), front.site());
    assert_eq!(front.curl("http"), "{\"version\":\"1.0.0\"}\n200 ");
    let wanted = front.check("http", &json!({"redirect_to_https": true}));
    let before = Check.run(&context(), &wanted).await;
    assert!(matches!(before, Err(ActionError::Retry { output: Some(_), .. })), "{before:?}");

    let (prepared, _) = does(&Site, &with).await;
    let port = front.nginx.https_address().replace("127.0.0.1:", "");
    assert!(front.curl("http").ends_with(&format!("301 https://{DOMAIN}:{port}/version")), "{}", front.curl("http"));
    assert_eq!(front.curl("https"), "{\"version\":\"1.0.0\"}\n200 ");
    let done = Check.run(&context(), &wanted).await.unwrap();
    assert_eq!((&done.output["status"], &done.output["redirects_to_https"]), (&json!(301), &json!(true)));
    let header = json!({"status": 200, "headers": {"strict-transport-security": "max-age"}, "body_contains": "1.0.0"});
    let done = Check.run(&context(), &front.check("https", &header)).await.unwrap();
    assert_eq!(done.output["body_bytes"], 20);
    assert!(done.observations.iter().any(|o| o.name == "ttfb" && o.unit == "ms" && o.value > 0.0));

    undoes(&Site, &with, &prepared).await;
    assert_eq!(fs::read(front.nginx.site()).unwrap(), found);
    assert_eq!(front.curl("http"), "{\"version\":\"1.0.0\"}\n200 ");
}

#[tokio::test]
async fn a_configuration_that_nginx_refuses_is_taken_back_at_once() {
    let front = front();
    let (found, mut with) = (fs::read(front.nginx.site()).unwrap(), front.site());
    with["cert"] = json!("/nonexistent/site.crt");
    let refused = Site.run(&context(), &with).await.unwrap_err();
    assert!(matches!(&refused, ActionError::Permanent { .. }), "{refused}");
    assert!(refused.to_string().contains("/nonexistent/site.crt"), "{refused}");
    assert_eq!(fs::read(front.nginx.site()).unwrap(), found);
    assert_eq!(front.curl("http"), "{\"version\":\"1.0.0\"}\n200 ");
}

#[tokio::test]
async fn a_change_by_hand_and_a_missed_reload_are_seen() {
    let mut front = front();
    let with = front.site();
    let (prepared, _) = does(&Site, &with).await;
    let written = fs::read(front.nginx.site()).unwrap();
    fs::write(front.nginx.site(), [&written[..], b"# by hand\n"].concat()).unwrap();
    does(&Site, &with).await;
    // nginx works with another configuration than the file says: as after a crash between writing and reloading.
    Site.undo(&context(), &with, &prepared).await.unwrap();
    fs::write(front.nginx.site(), &written).unwrap();
    does(&Site, &with).await;

    front.nginx.stop();
    assert!(matches!(Site.check(&context(), &with).await.unwrap(), Checked::Different { .. }));
    assert!(assert_gave_up(Instant::now(), Site.run(&context(), &with).await).contains("not running"));
    // A stopped nginx reads the former file when it starts again.
    Site.undo(&context(), &with, &prepared).await.unwrap();
    front.nginx.restart().unwrap();
    assert_eq!(front.curl("http"), "{\"version\":\"1.0.0\"}\n200 ");
}

#[tokio::test]
async fn http_check_sees_the_services_faults() {
    let front = front();
    let ok = json!({"status": 200, "ttfb_ms_below": 900});
    let switch = |mode: &str| {
        let url = format!("http://{}/admin/fault/{mode}", front.service.address());
        let curl = lab::program("curl", "curl").unwrap();
        assert!(
            Command::new(curl).args(["-sf", "--noproxy", "*", "-X", "PUT", &url]).output().unwrap().status.success()
        );
    };
    Check.run(&context(), &front.check("https", &ok)).await.unwrap();
    switch("failing");
    let message = assert_gave_up(Instant::now(), Check.run(&context(), &front.check("https", &ok)).await);
    assert!(message.contains("503"), "{message}");
    let seen = Check.run(&context(), &front.check("https", &json!({}))).await.unwrap();
    assert_eq!(seen.output["status"], 503, "without an expectation it is an output");
    switch("slow");
    let message = assert_gave_up(Instant::now(), Check.run(&context(), &front.check("https", &ok)).await);
    assert!(message.contains("time to first byte"), "{message}");
    switch("ok");
    Check.run(&context(), &front.check("https", &ok)).await.unwrap();
}

#[tokio::test]
async fn http_check_gives_up_in_time_and_trusts_nobody_unasked() {
    let (_listener, address) = mute();
    let start = Instant::now();
    for scheme in ["http", "https"] {
        let with = json!({"url": format!("{scheme}://{address}/"), "timeout_ms": 300});
        assert_gave_up(start, Check.run(&context(), &with).await);
    }
    let closed = json!({"url": format!("http://127.0.0.1:{}/", lab::free_port().unwrap())});
    assert_gave_up(start, Check.run(&context(), &closed).await);
    let front = front();
    let mut with = front.check("https", &json!({}));
    with["ca_file"] = Value::Null;
    let message = assert_gave_up(Instant::now(), Check.run(&context(), &with).await);
    assert!(message.contains("certificate"), "{message}");
}
