//! The servers of an upstream as text, and the share of requests that each should get.

use std::{collections::BTreeSet, path::PathBuf};

use muster_agent::ActionError;
use muster_kit::{
    files::digest,
    measure::percent,
    params::{self, plain},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::server::{Nginx, plain_path};

/// Parameters of `nginx.upstream`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamParams {
    /// Absolute path of the upstream's own file, which the main configuration includes in its `http` block.
    pub file: PathBuf,
    /// Absolute path of the main configuration.
    pub config: PathBuf,
    /// Absolute path of the running nginx' pid file.
    pub pid_file: PathBuf,
    /// Absolute path of the program.
    #[serde(default = "nginx")]
    pub binary: PathBuf,
    /// Its prefix (`-p`); the built-in one when absent.
    #[serde(default)]
    pub prefix: Option<PathBuf>,
    /// The upstream's name: what sites say in `proxy_pass`, and `nginx.site` in `upstream`.
    pub name: String,
    /// The servers.
    #[schemars(length(min = 1, max = 64))]
    pub servers: Vec<Member>,
    /// A free address on loopback, `127.0.0.1:8089`: there this host asks nginx which of the servers answers.
    pub ask: String,
    /// What the servers are asked for: a path that any of them answers at any time, with a status below 500.
    #[serde(default = "slash")]
    pub path: String,
    /// The host name that they are asked under.
    #[serde(default = "localhost")]
    pub host: String,
    /// How many times they are asked.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 1000))]
    pub requests: u32,
    /// By so many percentage points a share may be off: others ask, too.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: f64,
    /// Wait so long, in milliseconds, until requests that began before the change have their answers; 0 does not wait.
    #[serde(default)]
    #[schemars(range(max = 3_600_000))]
    pub drain_ms: u64,
    /// How long a reload may take until the new configuration answers, in milliseconds.
    #[serde(default = "ten_seconds")]
    #[schemars(range(min = 1, max = 120_000))]
    pub settle_ms: u64,
}

/// A server behind nginx.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// `host:port`.
    pub address: String,
    /// How many requests it gets for one of a server with weight 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: u32,
    /// Whether it gets requests.
    #[serde(default)]
    pub state: State,
}

/// Whether a server gets requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    #[default]
    Up,
    /// Only when none that is up answers.
    Backup,
    /// It gets no new ones; those that it has, it may end.
    Down,
}

fn nginx() -> PathBuf {
    "/usr/sbin/nginx".into()
}

fn slash() -> String {
    "/".into()
}

fn localhost() -> String {
    "localhost".into()
}

fn hundred() -> u32 {
    100
}

fn ten() -> f64 {
    10.0
}

fn ten_seconds() -> u64 {
    10_000
}

fn one() -> u32 {
    1
}

/// Where nginx says at the address `ask` which configuration is at work.
pub(super) const MARK_PATH: &str = "/.well-known/muster-upstream";
/// What it says begins with this.
pub(super) const MARK: &str = "muster-upstream-";
/// The header in which it says which server has answered.
pub(super) const ANSWERED_BY: &str = "x-muster-server";

impl UpstreamParams {
    /// Reads them, and refuses what could break out of its place in the configuration or does not fit together.
    pub(super) fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        with.nginx().validate()?;
        plain_path("file", &with.file)?;
        plain("name", &with.name, "._-")?;
        plain("ask", &with.ask, ".:[]")?;
        plain("path", &with.path, "/._-~")?;
        plain("host", &with.host, ".-_")?;
        if !["127.", "[::1]:"].iter().any(|loopback| with.ask.starts_with(loopback)) || port(&with.ask).is_none() {
            return Err(ActionError::permanent("ask: an address on loopback is needed, like 127.0.0.1:8089"));
        }
        if with.servers.is_empty() || with.servers.len() > 64 {
            return Err(ActionError::permanent("servers: 1 to 64 are needed"));
        }
        let mut seen = BTreeSet::new();
        for server in &with.servers {
            plain("servers.address", &server.address, ".:-_[]")?;
            if port(&server.address).is_none() || !(1..=1000).contains(&server.weight) {
                let address = &server.address;
                return Err(ActionError::permanent(format!(
                    "servers: {address} needs a port, and a weight of 1 to 1000"
                )));
            }
            if !seen.insert(&server.address) {
                return Err(ActionError::permanent(format!("servers: {} is there twice", server.address)));
            }
        }
        if with.all_weight() == 0 {
            return Err(ActionError::permanent("servers: one of them must be up"));
        }
        if !(1..=1000).contains(&with.requests)
            || !(0.0..=100.0).contains(&with.tolerance_percent)
            || !with.path.starts_with('/')
        {
            return Err(ActionError::permanent(
                "requests must be 1 to 1000, tolerance_percent 0 to 100, path begin with a slash",
            ));
        }
        Ok(with)
    }

    /// The nginx that it is for.
    pub(super) fn nginx(&self) -> Nginx<'_> {
        Nginx {
            config: &self.config,
            pid_file: &self.pid_file,
            binary: &self.binary,
            prefix: self.prefix.as_ref(),
            settle_ms: self.settle_ms,
        }
    }

    /// The share of requests that a server should get, in percent.
    pub(super) fn share(&self, server: &Member) -> f64 {
        if server.state == State::Up { percent(u64::from(server.weight), self.all_weight()) } else { 0.0 }
    }

    fn all_weight(&self) -> u64 {
        self.servers.iter().filter(|server| server.state == State::Up).map(|server| u64::from(server.weight)).sum()
    }

    /// The file's text and its mark. Same servers, same text.
    pub(super) fn render(&self) -> (String, String) {
        let mark = format!("{MARK}{}", &digest(self.text("").as_bytes())[..16]);
        (self.text(&mark), mark)
    }

    fn text(&self, mark: &str) -> String {
        let servers = self.servers.iter().fold(String::new(), |all, server| {
            let weight = if server.weight == 1 { String::new() } else { format!(" weight={}", server.weight) };
            let state = match server.state {
                State::Up => "",
                State::Backup => " backup",
                State::Down => " down",
            };
            format!("{all}    server {}{weight}{state};\n", server.address)
        });
        // The zone: all workers count together, so that the shares are those of the whole.
        format!(
            "# Written by muster (nginx.upstream); changes made by hand are overwritten.\nupstream {name} {{\n    zone \
             {name} 64k;\n{servers}}}\nserver {{\n    listen {ask};\n    location = {MARK_PATH} {{\n        default_type \
             text/plain;\n        return 200 \"{mark}\";\n    }}\n    location / {{\n        proxy_pass \
             http://{name};\n        proxy_next_upstream off;\n        proxy_set_header Host $host;\n        \
             proxy_connect_timeout 2s;\n        proxy_hide_header {ANSWERED_BY};\n        add_header {ANSWERED_BY} \
             $upstream_addr always;\n    }}\n}}\n",
            name = self.name,
            ask = self.ask,
        )
    }
}

fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':').filter(|(host, _)| !host.is_empty())?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: &Value) -> Result<UpstreamParams, ActionError> {
        let mut with = json!({
            "file": "/etc/nginx/sites/shop-servers.conf", "config": "/etc/nginx/nginx.conf",
            "pid_file": "/run/nginx.pid", "name": "shop", "ask": "127.0.0.1:8089",
            "servers": [
                {"address": "10.0.0.1:80", "weight": 3}, {"address": "10.0.0.2:80"},
                {"address": "10.0.0.3:80", "state": "backup"}, {"address": "10.0.0.4:80", "weight": 2, "state": "down"},
            ],
        });
        with.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        UpstreamParams::read(&with)
    }

    #[test]
    fn servers_are_written_with_weight_and_state_and_share_by_it() {
        let with = read(&json!({})).unwrap();
        let (text, mark) = with.render();
        for line in ["10.0.0.1:80 weight=3;", "10.0.0.2:80;", "10.0.0.3:80 backup;", "10.0.0.4:80 weight=2 down;"] {
            assert!(text.contains(&format!("    server {line}\n")), "{text}");
        }
        assert!(text.contains(&format!("return 200 \"{mark}\"")));
        let shares: Vec<_> = with.servers.iter().map(|server| with.share(server)).collect();
        assert_eq!(shares, [75.0, 25.0, 0.0, 0.0]);
        let other = read(&json!({"servers": [{"address": "10.0.0.1:80"}]})).unwrap();
        assert_ne!(other.render().1, mark, "the mark follows the content");
    }

    #[test]
    fn nothing_breaks_out_of_its_place() {
        for change in [
            json!({"name": "a {"}),
            json!({"file": "relative.conf"}),
            json!({"file": "/etc/a b.conf"}),
            json!({"ask": "0.0.0.0:8089"}),
            json!({"ask": "127.0.0.1"}),
            json!({"ask": "127.0.0.1:80 ssl"}),
            json!({"path": "/a;b"}),
            json!({"path": "health"}),
            json!({"host": "a b"}),
            json!({"requests": 0}),
            json!({"servers": []}),
            json!({"servers": [{"address": "10.0.0.1"}]}),
            json!({"servers": [{"address": "a:1;}"}]}),
            json!({"servers": [{"address": "a:1", "weight": 0}]}),
            json!({"servers": [{"address": "a:1", "state": "down"}]}),
            json!({"servers": [{"address": "a:1"}, {"address": "a:1"}]}),
        ] {
            assert!(matches!(read(&change), Err(ActionError::Permanent { .. })), "{change}");
        }
    }
}
