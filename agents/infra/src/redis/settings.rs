//! The wanted settings: the parameters, as Redis shows them and as lines of its file.

use std::{collections::BTreeMap, path::PathBuf};

use muster_agent::ActionError;
use muster_kit::params::{self, absolute};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    client::Address,
    conf::{Conf, bytes},
};

/// Parameters of `redis.configure`. What is absent stays as it is; at least one setting must be there.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigureParams {
    /// Absolute path of the configuration file that the running server was started with.
    pub config: PathBuf,
    /// The server; a user that may use `CONFIG`, `INFO` and `BGSAVE`.
    pub target: Address,
    /// Whether each write goes into the append-only file.
    #[serde(default)]
    pub append_only: Option<bool>,
    /// When that file is synced.
    #[serde(default)]
    pub append_fsync: Option<AppendFsync>,
    /// When a snapshot is saved; an empty list is never.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub save_points: Option<Vec<SavePoint>>,
    /// Limit of the data's memory, in bytes; 0 is none.
    #[serde(default)]
    pub max_memory_bytes: Option<u64>,
    /// What goes when that limit is reached.
    #[serde(default)]
    pub max_memory_policy: Option<MaxMemoryPolicy>,
    /// Limit for each exchange with the server, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1, max = 60000))]
    pub timeout_ms: u64,
    /// Limit for a snapshot, and for the first append-only file, in milliseconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub settle_ms: u64,
}

/// A snapshot is saved when both are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SavePoint {
    /// So many seconds since the last one.
    #[schemars(range(min = 1))]
    pub after_s: u32,
    /// So many changes since the last one.
    #[schemars(range(min = 1))]
    pub changes: u32,
}

/// When the append-only file is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppendFsync {
    /// After each write.
    Always,
    /// Each second.
    Everysec,
    /// When the operating system likes.
    No,
}

/// What goes when the memory limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MaxMemoryPolicy {
    /// Nothing: writes are refused.
    Noeviction,
    /// The key that was not used for longest.
    AllkeysLru,
    /// The key that is used least often.
    AllkeysLfu,
    /// Any key.
    AllkeysRandom,
    /// Of the keys that expire, the one that was not used for longest.
    VolatileLru,
    /// Of the keys that expire, the one that is used least often.
    VolatileLfu,
    /// Any of the keys that expire.
    VolatileRandom,
    /// The key that expires first.
    VolatileTtl,
}

fn five_seconds() -> u64 {
    5_000
}

fn minute() -> u64 {
    60_000
}

/// Settings by Redis' name, as `CONFIG GET` shows them.
pub(super) type Values = BTreeMap<String, String>;

/// All settings that this action knows. None of them holds a secret.
pub(super) const NAMES: [&str; 5] = ["appendfsync", "appendonly", "maxmemory", "maxmemory-policy", "save"];

impl ConfigureParams {
    /// Reads and checks them.
    pub(super) fn read(with: &Value) -> Result<Self, ActionError> {
        let with: Self = params::read(with)?;
        absolute("config", &with.config)?;
        if with.wanted().is_empty() {
            return Err(ActionError::permanent(
                "nothing is wanted: name append_only, append_fsync, save_points, max_memory_bytes or max_memory_policy",
            ));
        }
        let points = with.save_points.as_deref().unwrap_or_default();
        if points.len() > 16 || points.iter().any(|point| point.after_s == 0 || point.changes == 0) {
            return Err(ActionError::permanent("save_points: at most 16, each with after_s and changes of at least 1"));
        }
        Ok(with)
    }

    /// The settings that are named.
    pub(super) fn wanted(&self) -> Values {
        let save = self.save_points.as_ref().map(|points| {
            points.iter().map(|point| format!("{} {}", point.after_s, point.changes)).collect::<Vec<_>>().join(" ")
        });
        let settings = [
            ("appendfsync", self.append_fsync.map(|fsync| word(&fsync))),
            ("appendonly", self.append_only.map(|on| if on { "yes" } else { "no" }.to_owned())),
            ("maxmemory", self.max_memory_bytes.map(|bytes| bytes.to_string())),
            ("maxmemory-policy", self.max_memory_policy.map(|policy| word(&policy))),
            ("save", save),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

fn word(value: &impl Serialize) -> String {
    params::output(value).as_str().unwrap_or_default().to_owned()
}

/// What a file says of a setting, as `CONFIG GET` would show it; `None` when it says nothing, or when a file that it
/// includes may have the last word.
pub(super) fn in_file(conf: &Conf, name: &str) -> Option<String> {
    let all = conf.all(name);
    let last = all.last().filter(|_| !conf.may_be_overruled(name))?;
    Some(match name {
        "save" => {
            let start = all.iter().rposition(String::is_empty).map_or(0, |empty| empty + 1);
            all[start..].join(" ")
        }
        "maxmemory" => bytes(last).map_or_else(|| last.clone(), |bytes| bytes.to_string()),
        _ => last.to_ascii_lowercase(),
    })
}

/// The file with these settings in it. What it says already stays as it is spelled.
pub(super) fn merged(there: &str, wanted: &Values) -> String {
    let mut conf = Conf::parse(there);
    let before = conf.clone();
    for (name, value) in wanted.iter().filter(|(name, value)| in_file(&before, name).as_ref() != Some(value)) {
        let words: Vec<_> = value.split(' ').collect();
        // One point a line: servers before version 7 read no more.
        let lines =
            if name == "save" { words.chunks(2).map(|pair| pair.join(" ")).collect() } else { vec![value.clone()] };
        conf.set(name, &lines);
    }
    if conf == before { there.to_owned() } else { conf.text() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(settings: &Value) -> Values {
        let mut with = json!({"config": "/etc/redis.conf", "target": {"address": "127.0.0.1:6379"}});
        with.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        ConfigureParams::read(&with).unwrap().wanted()
    }

    #[test]
    fn what_the_file_says_already_is_not_written_again() {
        let file = "maxmemory 100MB\nsave 900 1\nsave 300 10\nappendonly yes";
        let points = json!([{"after_s": 900, "changes": 1}, {"after_s": 300, "changes": 10}]);
        let same = wanted(&json!({"max_memory_bytes": 100 << 20, "save_points": points, "append_only": true}));
        assert_eq!(merged(file, &same), file);
        let none = wanted(&json!({"save_points": [], "max_memory_policy": "allkeys-lru"}));
        assert_eq!(merged(file, &none), "maxmemory 100MB\nsave \"\"\nappendonly yes\nmaxmemory-policy allkeys-lru\n");
    }

    #[test]
    fn save_lines_add_up_until_an_empty_one() {
        assert_eq!(
            in_file(&Conf::parse("save 1 1\nsave \"\"\nsave 2 2\nsave 3 3"), "save").as_deref(),
            Some("2 2 3 3")
        );
        assert_eq!(in_file(&Conf::parse("save \"\""), "save").as_deref(), Some(""));
        assert_eq!(in_file(&Conf::parse("port 1"), "save"), None);
    }

    #[test]
    fn nothing_wanted_is_an_error() {
        let with = json!({"config": "/etc/redis.conf", "target": {"address": "127.0.0.1:6379"}});
        assert!(matches!(ConfigureParams::read(&with), Err(ActionError::Permanent { .. })));
    }
}
