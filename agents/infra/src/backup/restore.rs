//! The proof: a server on a copy of the backup, and its answer to one question.
//!
//! The copy must not touch anything outside of its folder: it listens on a socket in that folder alone, which only its user
//! can reach (so it needs no port and no password), and it neither archives, replicates nor subscribes.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use muster_agent::{ActionError, Context};
use muster_kit::{
    bound::{blocking, until, within},
    files,
    measure::ms_since,
};

use tokio_postgres::error::SqlState;

use super::programs::{Programs, last_words};
use crate::postgres::{Target, refused_credentials, said};

/// What is asked, of whom.
pub(super) struct Question<'a> {
    pub(super) database: &'a str,
    pub(super) user: &'a str,
    pub(super) query: &'a str,
}

/// What a restored server answered, and after how long.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) restore_ms: f64,
}

/// The longest path of a socket that the kernel takes.
const SOCKET_BYTES: usize = 107;
/// Its name in its folder is fixed by the port, which nothing listens on.
const PORT: u16 = 5432;
/// What goes into the journal.
const ANSWER_CHARS: usize = 200;
const STOP_WITHIN_S: &str = "30";

/// Copies the backup in `work`, starts a server on the copy, asks it, and ends it.
pub(super) async fn prove(
    programs: &Programs<'_>,
    work: &Path,
    question: &Question<'_>,
    limit_ms: u64,
) -> Result<Answer, ActionError> {
    let (data, copy) = (work.join("data"), work.join("copy"));
    let socket = work.join(format!(".s.PGSQL.{PORT}"));
    if socket.as_os_str().len() > SOCKET_BYTES {
        return Err(ActionError::permanent(format!("{} is too long for a socket's path", socket.display())));
    }
    let (from, to) = (data.display().to_string(), copy.display().to_string());
    programs.run("cp", &["-a", "--reflink=auto", &from, &to], &[]).await?;
    let (folder, prepared) = (work.to_owned(), copy.clone());
    blocking(move || set_up(&folder, &prepared)).await?;
    let config = format!("config_file={}", work.join("server.conf").display());
    let start = Instant::now();
    let server = programs.run_as.command(programs.ctx, programs.path("postgres"));
    let server = server.args(["-D", &to, "-c", &config]).limit(64 * 1024).output();
    tokio::pin!(server);
    let asked = tokio::select! {
        biased;
        ended = &mut server => {
            let ended = ended?;
            let said = last_words(&ended.stderr).to_owned();
            return Err(ActionError::retry(format!("no server starts on a copy of the backup: {said}")));
        }
        asked = ask(programs.ctx, work, question, limit_ms) => asked,
    };
    let restore_ms = ms_since(start);
    let stopped = programs.run("pg_ctl", &["stop", "-D", &to, "-m", "fast", "-t", STOP_WITHIN_S], &[]).await;
    let text = asked?;
    stopped?;
    within(programs.ctx, limit_ms, "the end of the copy's server", server).await??;
    blocking(move || files::remove_folder(&copy)).await?;
    Ok(Answer { text, restore_ms })
}

/// The copy's own configuration, and nothing of the original's.
fn set_up(work: &Path, copy: &Path) -> Result<(), ActionError> {
    // What ALTER SYSTEM wrote would overrule the file, and a signal file would make it follow somebody.
    for name in ["postgresql.auto.conf", "standby.signal", "recovery.signal"] {
        match std::fs::remove_file(copy.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(ActionError::retry(format!("{name} can't be removed from the copy: {e}")));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let hba = work.join("hba.conf");
    files::write(&hba, b"local all all trust\n", 0o600)?;
    let config = format!(
        "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {PORT}\nhba_file = '{}'\nssl = off\narchive_mode = \
         off\nlogging_collector = off\nlog_destination = 'stderr'\nfsync = off\nautovacuum = off\njit = off\nhuge_pages = \
         off\nshared_buffers = 16MB\ndynamic_shared_memory_type = mmap\nmax_connections = 10\nmax_prepared_transactions \
         = 100\nmax_logical_replication_workers = 0\nmax_wal_senders = 0\nwal_level = minimal\n",
        work.display(),
        hba.display(),
    );
    files::write(&work.join("server.conf"), config.as_bytes(), 0o600)
}

async fn ask(ctx: &Context, work: &Path, question: &Question<'_>, limit_ms: u64) -> Result<String, ActionError> {
    let target = Target::local(work, PORT, question.user, question.database);
    let what = "the server on a copy of the backup";
    until(ctx, limit_ms, 50, what, || async {
        match target.connect().await {
            // Starting up: it says so, or does not listen yet. Any other refusal is its answer.
            Err(e) if e.as_db_error().is_none_or(|e| *e.code() == SqlState::CANNOT_CONNECT_NOW) => Err(said(&e)),
            Ok(_) | Err(_) => Ok(()),
        }
    })
    .await?;
    let wrong = |e: &tokio_postgres::Error| {
        let hint = if refused_credentials(e) { "; name its user in `proof`" } else { "" };
        ActionError::permanent(format!("the restored server does not answer the proof's query: {}{hint}", said(e)))
    };
    let asked = within(ctx, limit_ms, what, async {
        let client = target.connect().await?;
        client.rows(question.query).await
    });
    let rows = asked.await?.map_err(|e| wrong(&e))?;
    let answer = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
    Ok(answer.chars().take(ANSWER_CHARS).collect())
}

/// What was made for the proof beside the copy.
pub(super) fn leftovers(work: &Path) -> [PathBuf; 2] {
    ["hba.conf", "server.conf"].map(|name| work.join(name))
}
