//! How the lab's servers are: their files, their settings as they say themselves, their answers, their processes.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use muster_integration_tests::{
    lab::{self, Lab},
    process::wait_for,
};
use sha2::{Digest, Sha256};

/// Each thing that was looked at, and how it is.
pub(crate) struct Fingerprint(BTreeMap<String, String>);

/// What is not compared below the lab's folder, and why. A name without a slash is a name at any depth.
const NOT_COMPARED: &[(&str, &str)] = &[
    (".muster-undo", "copies of what was replaced: they are kept for the undo, and for people"),
    ("supervise", "the service manager's own state; what it does is seen by its processes and answers"),
    ("sides/sides/green/release", "what the start script was asked for last; a side that is down runs nothing"),
    ("postgres/data", "the data, which a backup makes checkpoints of; settings and tables are asked of the server"),
    ("replica/data", "the same"),
    ("redis/appendonlydir", "Redis leaves the files of an append-only log that is off, and does not read them"),
    ("redis/dump.rdb", "data: what undo keeps, it keeps on purpose; settings are asked of the server"),
    ("nats", "not a server that a playbook changes"),
    ("tmp", "nginx' bodies of requests under way"),
];

impl Fingerprint {
    /// Looks at all of it.
    pub(crate) fn take(lab: &Lab) -> Result<Self> {
        let mut all = BTreeMap::new();
        files(lab.dir(), lab.dir(), &mut all)?;
        settings(lab, &mut all)?;
        answers(lab, &mut all)?;
        processes(lab.dir(), &mut all)?;
        Ok(Self(all))
    }

    /// What is different, a line each.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(other.0.keys().filter(|key| !self.0.contains_key(*key)));
        let different = keys.filter(|key| self.0.get(*key) != other.0.get(*key));
        different.map(|key| format!("{key}: {}", first_difference(self.0.get(key), other.0.get(key)))).collect()
    }

    /// Waits for it to be so again: former workers of nginx and connections of pools end in their own time.
    pub(crate) fn same_as_now(&self, lab: &Lab) -> Result<()> {
        wait_for("the servers are as they were", Duration::from_secs(20), || {
            let different = self.differences(&Self::take(lab)?);
            let shown = different[..different.len().min(SHOWN)].join("\n");
            ensure!(different.is_empty(), "{} things are not as they were:\n{shown}", different.len());
            Ok(Some(()))
        })
    }
}

/// So many differences are shown; a backup that is left has a thousand files.
const SHOWN: usize = 30;

/// The first line that is different, and what it is instead.
fn first_difference(was: Option<&String>, is: Option<&String>) -> String {
    let (Some(was), Some(is)) = (was, is) else {
        return if was.is_some() { "it is gone".into() } else { "it was not there".into() };
    };
    let (mut was, mut is) = (was.lines(), is.lines());
    loop {
        match (was.next(), is.next()) {
            (None, None) => return "the ends of its lines".into(),
            (was, is) if was == is => {}
            (was, is) => return format!("{:?} -> {:?}", was.unwrap_or_default(), is.unwrap_or_default()),
        }
    }
}

/// Mode, owner and digest of each file and folder.
fn files(root: &Path, folder: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let below = path.strip_prefix(root)?.display().to_string();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_log = path.extension().is_some_and(|ending| ending == "log");
        if is_log || NOT_COMPARED.iter().any(|(not, _)| below == *not || !not.contains('/') && name == *not) {
            continue;
        }
        let about = fs::symlink_metadata(&path)?;
        let who = format!("{:o} {}:{}", about.mode(), about.uid(), about.gid());
        let content = if about.is_dir() {
            files(root, &path, all)?;
            String::new()
        } else if about.is_symlink() {
            fs::read_link(&path)?.display().to_string()
        } else if about.is_file() {
            hex(&Sha256::digest(fs::read(&path)?))
        } else {
            continue;
        };
        all.insert(format!("file {below}"), format!("{who} {content}"));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}"))
}

/// What is at work, as the servers say.
fn settings(lab: &Lab, all: &mut BTreeMap<String, String>) -> Result<()> {
    let asked = [
        ("Redis", lab.redis.cli(&["CONFIG", "GET", "*"])?),
        ("Redis' users", lab.redis.cli(&["ACL", "LIST"])?),
        ("PgBouncer", lab.pgbouncer.console("show config")?),
        ("PgBouncer's databases", columns(&lab.pgbouncer.console("show databases")?, &[0, 1, 2, 3, 4, 5, 6, 8, 9])),
        ("PostgreSQL", lab.postgres.sql(lab::DATABASE, "select name, setting from pg_settings order by name")?),
        ("PostgreSQL's tables", lab.postgres.sql(lab::DATABASE, "select relname from pg_class order by 1")?),
        ("PostgreSQL's replicas", lab.postgres.sql(lab::DATABASE, "select state from pg_stat_replication")?),
    ];
    all.extend(asked.into_iter().map(|(whose, said)| (format!("settings of {whose}"), said)));
    Ok(())
}

fn columns(table: &str, which: &[usize]) -> String {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        which.iter().map(|i| fields.get(*i).copied().unwrap_or_default()).collect::<Vec<_>>().join("|")
    };
    table.lines().map(row).collect::<Vec<_>>().join("\n")
}

/// What comes back at each address, by curl; and the certificate, by openssl.
fn answers(lab: &Lab, all: &mut BTreeMap<String, String>) -> Result<()> {
    let inputs = lab.inputs()?;
    let (http, https) = (format!("http://{}", inputs.http_address), format!("https://{}", inputs.https_address));
    let sides =
        [&inputs.front, &inputs.blue, &inputs.green, &inputs.upstream_ask].map(|address| format!("http://{address}"));
    let curl = lab::program("curl", "curl")?;
    for address in [http, https].iter().chain(&sides) {
        for path in ["/version", "/.well-known/muster-site", "/.well-known/muster-upstream"] {
            let mut ask = Command::new(&curl);
            ask.args(["-s", "-k", "-i", "--noproxy", "*", "-m", "5", "-H", &format!("Host: {}", inputs.domain)]);
            let out = ask.arg(format!("{address}{path}")).output()?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            let moves = |line: &&str| !line.to_ascii_lowercase().starts_with("date:");
            let said: Vec<&str> = said.lines().filter(moves).collect();
            all.insert(format!("answer of {address}{path}"), format!("{:?} {}", out.status.code(), said.join("\n")));
        }
    }
    let shown = Command::new(lab::program("openssl", "openssl")?)
        .args(["s_client", "-connect", &inputs.https_address, "-servername", &inputs.domain])
        .stdin(std::process::Stdio::null())
        .output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let certificate = shown.split("-----").skip(2).step_by(4).take(1).collect::<String>();
    ensure!(!certificate.is_empty(), "the site shows a certificate: {shown}");
    all.insert("certificate".into(), certificate);
    Ok(())
}

/// Processes that work in the lab's folder, by their command line, each with how many there are. What PostgreSQL starts for
/// clients, and nginx in place of a worker, comes and goes.
fn processes(dir: &Path, all: &mut BTreeMap<String, String>) -> Result<()> {
    let mut count = BTreeMap::<String, u32>::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let Ok(line) = fs::read(process.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let passing = line.starts_with("postgres: ") || line.starts_with("nginx: worker");
        if (here || line.contains(&*dir.to_string_lossy())) && !passing {
            *count.entry(line).or_default() += 1;
        }
    }
    all.extend(count.into_iter().map(|(line, count)| (format!("process {line}"), count.to_string())));
    Ok(())
}
