//! Settings: defaults, below the configuration file, below environment and command line (which clap has already joined).
//!
//! Every key is in `docs/reference/config.toml`; an unknown key in the file is an error.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Config, File, FileFormat};
use muster_coordinator::{driver::Retention, logs};
use serde::{Deserialize, Serialize};

use crate::{
    args::{AgentRunArgs, DoctorArgs, Format, GlobalArgs, LogFormat, Role, ServeArgs},
    bus::Access,
    error::{CliError, Result},
};

const DAYS: NonZeroU32 = NonZeroU32::new(30).expect("30 is not 0");
const DAY_MS: u64 = 24 * 3_600_000;
/// What is open for longer than this is mostly passive, and not read at a start.
const PACK_AFTER_MS: u64 = 7 * DAY_MS;
/// Between two looks at what the journal need not keep.
const RETENTION_LOOK: Duration = Duration::from_secs(3_600);

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Where the coordinator answers.
    pub(crate) server: String,
    /// File with the bearer token; empty: `admin.token` of the local data directory, for a local server.
    pub(crate) token_file: PathBuf,
    /// Certificate authority of the server's certificate (PEM); empty: the system's.
    pub(crate) ca: PathBuf,
    /// Of playbooks, runs and agents.
    pub(crate) namespace: String,
    /// Longest time a command may take; empty: 30 s, without limit where a run is followed.
    pub(crate) timeout: String,
    /// How data is printed.
    pub(crate) output: Format,
    /// `muster serve`.
    pub(crate) serve: ServeSettings,
    /// `muster agent run`.
    pub(crate) agent: AgentSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server: "http://127.0.0.1:7400".to_owned(),
            token_file: PathBuf::new(),
            ca: PathBuf::new(),
            namespace: "default".to_owned(),
            timeout: String::new(),
            output: Format::Table,
            serve: ServeSettings::default(),
            agent: AgentSettings::default(),
        }
    }
}

/// Of `muster serve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServeSettings {
    /// Journal, store and first token; empty: the state folder of the user.
    pub(crate) data_dir: PathBuf,
    /// Address of the API.
    pub(crate) listen: String,
    /// Address of `/metrics`; empty: nowhere.
    pub(crate) metrics_listen: String,
    /// NATS servers, separated by commas.
    pub(crate) nats: String,
    /// File with an NKEY seed; empty: none.
    pub(crate) nats_nkey: PathBuf,
    /// Certificate authority of the certificate of NATS (PEM); empty: the system's.
    pub(crate) nats_ca: PathBuf,
    /// No events for outsiders.
    pub(crate) no_events: bool,
    /// How long events are kept.
    pub(crate) events_keep: String,
    /// Certificate chain of the API; empty: no TLS.
    pub(crate) tls_cert: PathBuf,
    /// Its private key.
    pub(crate) tls_key: PathBuf,
    /// Clear text on an address that others can reach.
    pub(crate) clear_text: bool,
    /// Requests need no token.
    pub(crate) insecure: bool,
    /// So much of the logs of runs is kept.
    pub(crate) run_logs_mib: u32,
    /// For so long after its last line the log of a run is kept.
    pub(crate) run_logs_days: NonZeroU32,
    /// For so long at least runs that have ended are kept in the journal; 0: for ever.
    pub(crate) journal_days: u32,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Which log lines.
    pub(crate) log: String,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            listen: "127.0.0.1:7400".to_owned(),
            metrics_listen: String::new(),
            nats: "nats://127.0.0.1:4222".to_owned(),
            nats_nkey: PathBuf::new(),
            nats_ca: PathBuf::new(),
            no_events: false,
            events_keep: "720h".to_owned(),
            tls_cert: PathBuf::new(),
            tls_key: PathBuf::new(),
            clear_text: false,
            insecure: false,
            run_logs_mib: 1_024,
            run_logs_days: DAYS,
            journal_days: 365,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
        }
    }
}

impl ServeSettings {
    /// Where journal, store and first token live.
    pub(crate) fn data_dir(&self) -> PathBuf {
        if self.data_dir.as_os_str().is_empty() { state_dir("muster") } else { self.data_dir.clone() }
    }

    /// What is kept of the logs of runs.
    pub(crate) fn log_limits(&self) -> logs::Limits {
        logs::Limits {
            total_bytes: u64::from(self.run_logs_mib) << 20,
            max_age_ms: u64::from(self.run_logs_days.get()) * DAY_MS,
            ..logs::Limits::default()
        }
    }

    /// How long the journal keeps what has ended.
    pub(crate) fn retention(&self) -> Retention {
        let keep_ms = (self.journal_days > 0).then(|| u64::from(self.journal_days) * DAY_MS);
        Retention { keep_ms, pack_after_ms: PACK_AFTER_MS, look_every: RETENTION_LOOK }
    }

    /// How NATS is reached.
    pub(crate) fn access(&self) -> Access<'_> {
        Access { servers: &self.nats, nkey: &self.nats_nkey, ca: &self.nats_ca }
    }
}

/// Of `muster agent run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AgentSettings {
    /// Which actions it has.
    pub(crate) role: Option<Role>,
    /// Its name; empty: `<role>-1`.
    pub(crate) name: String,
    /// What steps may ask for besides the role.
    pub(crate) labels: BTreeMap<String, String>,
    /// Where it works; empty: its name.
    pub(crate) host: String,
    /// How many attempts at once.
    pub(crate) slots: u32,
    /// Lock file and spool; empty: a folder of its name in the state folder of the user.
    pub(crate) data_dir: PathBuf,
    /// Programs that `command.run` may start; empty: none.
    pub(crate) allow: PathBuf,
    /// Folder with a file for each secret; empty: none.
    pub(crate) secrets: PathBuf,
    /// NATS servers, separated by commas.
    pub(crate) nats: String,
    /// File with an NKEY seed; empty: none.
    pub(crate) nats_nkey: PathBuf,
    /// Certificate authority of the certificate of NATS (PEM); empty: the system's.
    pub(crate) nats_ca: PathBuf,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Which log lines.
    pub(crate) log: String,
}

impl Default for AgentSettings {
    fn default() -> Self {
        let serve = ServeSettings::default();
        Self {
            role: None,
            name: String::new(),
            labels: BTreeMap::new(),
            host: String::new(),
            slots: 4,
            data_dir: PathBuf::new(),
            allow: PathBuf::new(),
            secrets: PathBuf::new(),
            nats: serve.nats,
            nats_nkey: PathBuf::new(),
            nats_ca: PathBuf::new(),
            log_format: serve.log_format,
            log: serve.log,
        }
    }
}

impl AgentSettings {
    /// How NATS is reached.
    pub(crate) fn access(&self) -> Access<'_> {
        Access { servers: &self.nats, nkey: &self.nats_nkey, ca: &self.nats_ca }
    }
}

/// What was typed, as a layer over the file.
#[derive(Default, Serialize)]
pub(crate) struct Typed<'a> {
    #[serde(flatten)]
    global: Option<&'a GlobalArgs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serve: Option<TypedServe<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<TypedAgent<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum TypedServe<'a> {
    Serve(&'a ServeArgs),
    Doctor(&'a DoctorArgs),
}

#[derive(Serialize)]
struct TypedAgent<'a> {
    #[serde(flatten)]
    args: &'a AgentRunArgs,
    labels: BTreeMap<String, String>,
}

impl<'a> Typed<'a> {
    /// What every command knows.
    pub(crate) fn global(global: &'a GlobalArgs) -> Self {
        Self { global: Some(global), ..Self::default() }
    }

    /// With what `serve` was given.
    pub(crate) fn serve(self, args: &'a ServeArgs) -> Self {
        Self { serve: Some(TypedServe::Serve(args)), ..self }
    }

    /// With what `doctor` was given: it looks at what `serve` would use.
    pub(crate) fn doctor(self, args: &'a DoctorArgs) -> Self {
        Self { serve: Some(TypedServe::Doctor(args)), ..self }
    }

    /// With what `agent run` was given.
    pub(crate) fn agent(self, args: &'a AgentRunArgs) -> Result<Self> {
        let mut labels = BTreeMap::new();
        for label in &args.labels {
            let (key, value) = label.split_once('=').ok_or_else(|| {
                CliError::usage("LABEL_INVALID", format!("the label {label:?} has no =")).hint("--label site=eu")
            })?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self { agent: Some(TypedAgent { args, labels }), ..self })
    }
}

impl Settings {
    /// Defaults, file, then what was typed.
    pub(crate) fn load(typed: &Typed<'_>) -> Result<Self> {
        let file = typed.global.and_then(|g| g.config.clone());
        let path = file.clone().unwrap_or_else(|| config_dir().join("config.toml"));
        let mut builder = Config::builder();
        if file.is_some() || path.is_file() {
            builder = builder.add_source(read(&path)?);
        }
        builder
            .add_source(layer(typed)?)
            .build()
            .and_then(Config::try_deserialize)
            .map_err(|e| CliError::usage("CONFIG_INVALID", e.to_string()).hint("see docs/reference/config.toml"))
    }

    /// The longest time a command may take; none: without limit.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>> {
        if self.timeout.is_empty() {
            return Ok(None);
        }
        duration(&self.timeout).map(Some)
    }
}

/// A duration as people write it: `30s`, `5m`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let bad = || {
        CliError::usage("DURATION_INVALID", format!("{text:?} is no duration above zero"))
            .hint("such as 30s, 5m or 1h30m")
    };
    let span: jiff::SignedDuration = text.parse().map_err(|_| bad())?;
    Duration::try_from(span).ok().filter(|d| !d.is_zero()).ok_or_else(bad)
}

/// The file alone must stand by itself, so that its errors name it.
fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::file(path, "read", &e))?;
    let bad = |e: config::ConfigError| {
        CliError::usage("CONFIG_INVALID", e.to_string())
            .at(path.display().to_string())
            .hint("every key is in docs/reference/config.toml")
    };
    let config = Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build().map_err(bad)?;
    config.clone().try_deserialize::<Settings>().map_err(bad)?;
    Ok(config)
}

fn layer(typed: &Typed<'_>) -> Result<Config> {
    Config::try_from(typed).map_err(|e| CliError::usage("CONFIG_INVALID", e.to_string()))
}

fn config_dir() -> PathBuf {
    home("XDG_CONFIG_HOME", ".config").join("muster")
}

/// A folder of ours where the user keeps state.
pub(crate) fn state_dir(name: &str) -> PathBuf {
    home("XDG_STATE_HOME", ".local/state").join(name)
}

fn home(variable: &str, below_home: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set(variable).unwrap_or_else(|| set("HOME").unwrap_or_else(|| PathBuf::from(".")).join(below_home))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &tempfile::TempDir, text: &str) -> GlobalArgs {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        GlobalArgs { config: Some(path), ..GlobalArgs::default() }
    }

    #[test]
    fn what_was_typed_wins_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let mut global =
            write(&dir, "namespace = 'blue'\noutput = 'yaml'\n[serve]\nlisten = '127.0.0.1:1'\nlog = 'warn'\n");
        global.output = Some(Format::Json);
        let serve = ServeArgs { listen: Some("127.0.0.1:2".to_owned()), ..ServeArgs::default() };
        let settings = Settings::load(&Typed::global(&global).serve(&serve)).unwrap();
        assert_eq!(settings.namespace, "blue");
        assert_eq!(settings.output, Format::Json);
        assert_eq!(settings.serve.listen, "127.0.0.1:2");
        assert_eq!(settings.serve.log, "warn");
        assert_eq!(settings.serve.nats, "nats://127.0.0.1:4222");
    }

    #[test]
    fn labels_and_flags_reach_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let global = write(&dir, "[agent]\nrole = 'infra'\nslots = 9\nlabels = {site = 'eu', tier = 'a'}\n");
        let args = AgentRunArgs { labels: vec!["site=us".to_owned()], ..AgentRunArgs::default() };
        let agent = Settings::load(&Typed::global(&global).agent(&args).unwrap()).unwrap().agent;
        assert_eq!((agent.role, agent.slots), (Some(Role::Infra), 9));
        assert_eq!(agent.labels["site"], "us");
        assert_eq!(agent.labels["tier"], "a");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = Settings::load(&Typed::global(&write(&dir, "[serve]\nlisen = 'x'\n"))).unwrap_err();
        assert_eq!(error.reason, "CONFIG_INVALID");
        assert!(error.message.contains("lisen"), "{error:?}");
        assert!(error.place.unwrap().ends_with("config.toml"));
    }

    #[test]
    fn the_reference_names_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/config.toml");
        let text = std::fs::read_to_string(path).unwrap();
        let is_text = |line: &&str| *line == "#" || line.starts_with("# ");
        let keys: Vec<&str> =
            text.lines().filter(|line| !is_text(line)).map(|line| line.trim_start_matches('#')).collect();
        let keys = keys.join("\n");
        let documented: toml_keys::Keys = toml_keys::of(&keys);
        let known = toml_keys::of_settings();
        assert_eq!(documented, known);
        let settings: Settings = Config::builder()
            .add_source(File::from_str(&keys, FileFormat::Toml))
            .build()
            .unwrap()
            .try_deserialize()
            .unwrap();
        let expected = Settings {
            agent: AgentSettings { role: Some(Role::Infra), ..AgentSettings::default() },
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    /// Flattened keys, to compare what is documented with what is known.
    mod toml_keys {
        use std::collections::BTreeSet;

        use config::{Config, File, FileFormat};
        use serde_json::Value;

        use super::Settings;

        pub(super) type Keys = BTreeSet<String>;

        pub(super) fn of(toml: &str) -> Keys {
            let config = Config::builder().add_source(File::from_str(toml, FileFormat::Toml)).build().unwrap();
            flat(&config.try_deserialize::<Value>().unwrap())
        }

        pub(super) fn of_settings() -> Keys {
            flat(&serde_json::to_value(Settings::default()).unwrap())
        }

        fn flat(value: &Value) -> Keys {
            let mut keys = Keys::new();
            for (key, value) in value.as_object().unwrap() {
                match value.as_object() {
                    Some(inner) => keys.extend(inner.keys().map(|inner| format!("{key}.{inner}"))),
                    None => keys.extend([key.clone()]),
                }
            }
            keys
        }
    }
}
