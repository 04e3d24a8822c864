//! Before and after, seen from outside: by openssl, curl, psql, redis-cli and `pg_verifybackup`, with nothing of the agents' code.

mod front;
mod stores;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lab::{DATABASE, Inputs, program, psql_program};

/// What was seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// All of it is well.
    pub ok: bool,
    /// The certificate that the site shows.
    pub certificate: Certificate,
    /// What HTTP answers.
    pub redirect: Redirect,
    /// Whether several clients of the pool are served at once.
    pub pooling: Pooling,
    /// Whether Redis keeps its data over a restart.
    pub persistence: Seen,
    /// Whether lookups find what they look for.
    pub cache: Seen,
    /// Whether both doors get requests.
    pub doors: Seen,
    /// Whether there is a good backup.
    pub backup: Seen,
    /// Whether the site answers with the release that is to be brought.
    pub release: Seen,
}

/// Whether something is well, and what was seen of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// It is well.
    pub ok: bool,
    /// For people.
    pub said: String,
}

/// The certificate that the site shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// Chain, name and dates are right.
    pub ok: bool,
    /// openssl's verdict: `0 (ok)`, `10 (certificate has expired)`.
    pub verdict: String,
    /// When it ends.
    pub not_after: String,
}

/// What HTTP answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redirect {
    /// 301 to HTTPS.
    pub ok: bool,
    /// The status code; 0 for none.
    pub status: u16,
    /// Where it points.
    pub location: String,
}

/// Whether several clients of the pool are served at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pooling {
    /// All of them are, half of them within 50 ms: they all begin at once, on a machine that may have two cores.
    pub ok: bool,
    /// Clients that were connected at once.
    pub clients: usize,
    /// Clients that got an answer; three seconds without another one end the counting.
    pub served: usize,
    /// The slowest answer, in milliseconds, as psql measured it; absent when there was none.
    pub slowest_ms: Option<f64>,
    /// The one in the middle.
    pub median_ms: Option<f64>,
}

const CLIENTS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(3);
const POOL_LIMIT_MS: f64 = 50.0;

/// Looks at all of it. An error means that it could not be looked at; what is wrong is in the report.
pub fn probe(inputs: &Inputs) -> Result<Report> {
    let mut report = Report {
        ok: false,
        certificate: certificate(inputs)?,
        redirect: redirect(inputs)?,
        pooling: pooling(inputs)?,
        persistence: stores::persistence(inputs)?,
        cache: stores::cache(inputs)?,
        doors: front::doors(inputs)?,
        backup: stores::backup(inputs)?,
        release: front::release(inputs)?,
    };
    report.ok = report.all().iter().all(|(_, ok)| *ok);
    Ok(report)
}

impl Report {
    /// Each thing that was looked at, and whether it is well.
    pub fn all(&self) -> [(&'static str, bool); 8] {
        [
            ("certificate", self.certificate.ok),
            ("redirect", self.redirect.ok),
            ("pooling", self.pooling.ok),
            ("persistence", self.persistence.ok),
            ("cache", self.cache.ok),
            ("doors", self.doors.ok),
            ("backup", self.backup.ok),
            ("release", self.release.ok),
        ]
    }

    /// A line for each, for people.
    pub fn lines(&self) -> Vec<String> {
        let mark = |ok| if ok { "ok    " } else { "BROKEN" };
        let times = self.pooling.median_ms.zip(self.pooling.slowest_ms);
        let times = times.map_or_else(|| "none answered".into(), |(m, s)| format!("median {m} ms, slowest {s} ms"));
        let seen = [
            ("Redis keeps", &self.persistence),
            ("cache", &self.cache),
            ("load balancing", &self.doors),
            ("backups", &self.backup),
            ("release", &self.release),
        ];
        let mut lines = vec![
            format!(
                "{} certificate: verify {}, until {}",
                mark(self.certificate.ok),
                self.certificate.verdict,
                self.certificate.not_after
            ),
            format!(
                "{} HTTP to HTTPS: status {} {}",
                mark(self.redirect.ok),
                self.redirect.status,
                self.redirect.location
            ),
            format!(
                "{} pooling: {} of {} clients served at once, {times}",
                mark(self.pooling.ok),
                self.pooling.served,
                self.pooling.clients
            ),
        ];
        lines.extend(seen.map(|(what, seen)| format!("{} {what}: {}", mark(seen.ok), seen.said)));
        lines
    }
}

/// What `openssl s_client` says of the site's certificate.
pub fn certificate(inputs: &Inputs) -> Result<Certificate> {
    let openssl = program("openssl", "openssl")?;
    let ca = inputs.tls_directory.join("ca.crt").display().to_string();
    let (name, address) = (inputs.domain.as_str(), inputs.https_address.as_str());
    let shown = output(
        Command::new(&openssl).args([
            "s_client",
            "-connect",
            address,
            "-servername",
            name,
            "-verify_hostname",
            name,
            "-CAfile",
            &ca,
        ]),
        "",
    )?;
    let verdict = shown.lines().filter_map(|line| line.trim().strip_prefix("Verify return code: ")).next_back();
    let verdict = verdict.unwrap_or("no TLS").to_owned();
    let end = output(Command::new(&openssl).args(["x509", "-noout", "-enddate"]), &shown)?;
    let not_after = end.trim().strip_prefix("notAfter=").unwrap_or("?").to_owned();
    Ok(Certificate { ok: verdict == "0 (ok)", verdict, not_after })
}

/// What curl gets from the site's HTTP side.
pub fn redirect(inputs: &Inputs) -> Result<Redirect> {
    let curl = program("curl", "curl")?;
    let there = format!("::{}", inputs.http_address);
    let url = format!("http://{}/", inputs.domain);
    let form = "%{http_code} %{redirect_url}";
    let said = output(
        Command::new(curl).args([
            "-s",
            "-o",
            "/dev/null",
            "--noproxy",
            "*",
            "-m",
            "5",
            "-w",
            form,
            "--connect-to",
            &there,
            &url,
        ]),
        "",
    )?;
    let (status, location) = said.trim().split_once(' ').unwrap_or_else(|| (said.trim(), ""));
    let status = status.parse().unwrap_or(0);
    let ok = status == 301 && location.starts_with(&format!("https://{}", inputs.domain));
    Ok(Redirect { ok, status, location: location.to_owned() })
}

/// Connects several psql at once, and lets each stay until nobody gets an answer any more.
pub fn pooling(inputs: &Inputs) -> Result<Pooling> {
    let (sender, answers) = mpsc::channel();
    let clients = (0..CLIENTS).map(|_| Client::start(inputs, sender.clone())).collect::<Result<Vec<_>>>()?;
    drop(sender);
    let mut times: Vec<f64> = Vec::new();
    while let Ok(time) = answers.recv_timeout(PATIENCE) {
        times.push(time);
        if times.len() == CLIENTS {
            break;
        }
    }
    drop(clients);
    times.sort_by(f64::total_cmp);
    let (slowest_ms, median_ms) = (times.last().copied(), times.get(times.len() / 2).copied());
    let served = times.len();
    let ok = served == CLIENTS && median_ms.is_some_and(|ms| ms < POOL_LIMIT_MS);
    Ok(Pooling { ok, clients: CLIENTS, served, slowest_ms, median_ms })
}

/// A psql that stays connected.
struct Client(Child);

impl Client {
    /// Starts it; it sends the time of its measured question, in milliseconds, when that is answered.
    fn start(inputs: &Inputs, answered: mpsc::Sender<f64>) -> Result<Self> {
        let password = fs::read_to_string(&inputs.password_file).context("the password file can't be read")?;
        let (host, port, user) = (&inputs.pgbouncer_host, inputs.pgbouncer_port, &inputs.database_user);
        let url = format!("host={host} port={port} user={user} dbname={DATABASE} connect_timeout=5");
        let mut psql = Command::new(psql_program()?)
            .args(["-X", "-q", "-A", "-t", "-d", &url])
            .env("PGPASSWORD", password.trim())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(Path::new("/"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = psql.stdin.take().context("psql has no standard input")?;
        // A psql that could not connect has ended: it will be seen by its missing answer. The first question pays for
        // the start of the server connection and is not the one that is measured.
        drop(stdin.write_all(b"select 1;\n\\timing on\nselect 2;\n").and_then(|()| stdin.flush()));
        psql.stdin = Some(stdin);
        let stdout = BufReader::new(psql.stdout.take().context("psql has no standard output")?);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let time = line.strip_prefix("Time: ").and_then(|rest| rest.split(' ').next());
                if let Some(ms) = time.and_then(|ms| ms.parse().ok()) {
                    // Nobody may wait for it any more.
                    let _ = answered.send(ms);
                }
            }
        });
        Ok(Self(psql))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn output(command: &mut Command, stdin: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{name} can't be started"))?;
    if let Some(mut input) = child.stdin.take() {
        // It may have ended before it read everything; what it said by then counts.
        drop(input.write_all(stdin.as_bytes()));
    }
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}
