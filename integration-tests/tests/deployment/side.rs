//! Two sides behind nginx, a load on them, and what comes out at the front.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_agent::{Action, Done, allow::Allow};
use muster_deployment::switch::Switch;
use muster_integration_tests::lab::{self, BlueGreen, NEXT};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{allowing, trial};

/// Fields are dropped in this order.
pub(crate) struct Front {
    pub(crate) sides: BlueGreen,
    pub(crate) dir: lab::Folder,
}

pub(crate) fn front() -> Front {
    let dir = lab::folder().unwrap();
    Front { sides: BlueGreen::start(dir.path()).unwrap(), dir }
}

impl Front {
    pub(crate) fn allow(&self) -> Allow {
        allowing(&[&self.sides.start_program(), &self.sides.stop_program()])
    }

    pub(crate) fn switch(&self) -> Switch {
        Switch::new(self.allow())
    }

    pub(crate) fn service(&self) -> Value {
        let nginx = &self.sides.nginx;
        json!({
            "nginx": {
                "upstream_file": self.sides.upstream_file(), "config": nginx.config(), "pid_file": nginx.pid_file(),
            },
            "sides": {"blue": self.sides.blue(), "green": self.sides.green()},
            "front": {"url": format!("http://{}/version", lab::DOMAIN), "connect": nginx.http_address()},
        })
    }

    pub(crate) fn with(&self, release: &str) -> Value {
        json!({
            "service": self.service(), "release": release,
            "start": {"command": "start-side", "args": ["{side}", "{address}", "{release}"]}, "start_within_ms": 20000,
            "stop": {"command": "stop-side", "args": ["{side}"]},
            "watch": {"for_ms": 1000, "every_ms": 20},
        })
    }

    /// Blue with the first release is left for green with the next one, which takes the requests from then on.
    pub(crate) async fn switched(&self) -> (Value, Done) {
        let with = self.with(NEXT);
        let prepared = self.switch().prepare(&trial().context(), &with).await.unwrap();
        (prepared, self.switch().run(&trial().context(), &with).await.unwrap())
    }

    /// What curl gets at the front.
    pub(crate) fn release(&self) -> String {
        get(&self.sides.nginx.http_address())
    }

    pub(crate) fn upstream(&self) -> String {
        fs::read_to_string(self.sides.upstream_file()).unwrap()
    }

    /// Whether a turn is written down that was not seen to its end.
    pub(crate) fn unfinished(&self) -> bool {
        self.sides.upstream_file().with_file_name(".upstream.conf.muster-switch").exists()
    }

    /// Requests without a pause, each on a connection of its own, until it is ended.
    pub(crate) fn load(&self) -> Load {
        // An error means that another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (stop, mut askers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let url = format!("http://{}/version", self.sides.nginx.http_address());
        for _ in 0..4 {
            let (stop, url) = (Arc::clone(&stop), url.clone());
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
            let client = client.retry(reqwest::retry::never()).timeout(Duration::from_secs(20)).build().unwrap();
            askers.spawn(async move {
                let mut seen = BTreeMap::<String, u64>::new();
                while !stop.load(Ordering::Relaxed) {
                    let answer = async { client.get(&url).send().await?.error_for_status()?.text().await };
                    let what = answer.await.unwrap_or_else(|e| format!("failed: {e:?}"));
                    *seen.entry(what).or_default() += 1;
                }
                seen
            });
        }
        Load { stop, askers }
    }
}

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    askers: JoinSet<BTreeMap<String, u64>>,
}

impl Load {
    /// Ends it; every answer, with how often it came.
    pub(crate) async fn end(mut self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        while let Some(seen) = self.askers.join_next().await {
            for (what, count) in seen.unwrap() {
                *all.entry(what).or_default() += count;
            }
        }
        all
    }
}

/// What a release answers.
pub(crate) fn says(release: &str) -> String {
    format!("{{\"version\":\"{release}\"}}\n")
}

/// What curl gets from `/version` there, with `down` for no answer.
pub(crate) fn get(address: &str) -> String {
    let out = Command::new(lab::program("curl", "curl").unwrap())
        .args(["-s", "--noproxy", "*", "-m", "5", &format!("http://{address}/version")])
        .output()
        .unwrap();
    if out.status.success() { String::from_utf8(out.stdout).unwrap() } else { "down".into() }
}

/// Turns a fault of a side on or off.
pub(crate) fn fault(address: &str, mode: &str) {
    let url = format!("http://{address}/admin/fault/{mode}");
    let curl = lab::program("curl", "curl").unwrap();
    let put = Command::new(curl).args(["-sf", "--noproxy", "*", "-X", "PUT", &url]).output().unwrap();
    assert!(put.status.success(), "{put:?}");
}

/// Sends a signal to the process that a pid file names.
pub(crate) fn signal(pid_file: &Path, signal: &str) {
    let pid = fs::read_to_string(pid_file).unwrap();
    assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
}
