//! `muster run logs`: what is kept, and what comes, until the run ends.

use std::cell::Cell;

use muster_proto::v1::{self, run_log_entry::Lost};
use tonic::Status;

use super::super::{App, follow, goes_on, page_size};
use crate::{
    args::LogsArgs,
    client::Client,
    error::{Exit, Result},
    printer::time,
};

pub(super) async fn run(app: &App, args: &LogsArgs) -> Result<Exit> {
    let client = app.client().await?;
    let name = client.name("runs", &args.run);
    if args.follow {
        let heard = Cell::new(false);
        follow::within(&client, &name, &heard, Box::pin(follow_to_end(app, &client, &name, args, &heard))).await?;
    } else {
        list(app, &client, &name, args).await?;
    }
    Ok(Exit::Succeeded)
}

async fn list(app: &App, client: &Client, name: &str, args: &LogsArgs) -> Result<()> {
    let (mut printed, mut page_token) = (0, String::new());
    loop {
        let request = v1::ListRunLogsRequest {
            parent: name.to_owned(),
            page_size: page_size(args.limit, printed),
            page_token,
            filter: filter(args),
        };
        let answer = client.runs().list_run_logs(client.soon(request)).await.map_err(|s| client.error(&s))?;
        let answer = answer.into_inner();
        page_token = answer.next_page_token;
        for entry in &answer.entries {
            app.printer.item(entry, line)?;
            printed += 1;
        }
        if !goes_on(args.limit, printed, &page_token) {
            break;
        }
    }
    super::super::note_rest(app, &page_token);
    Ok(())
}

/// Over restarts of the coordinator: each stream goes on after the last line that was printed.
async fn follow_to_end(app: &App, client: &Client, name: &str, args: &LogsArgs, heard: &Cell<bool>) -> Result<()> {
    let mut seen = Seen { position: 0, printed: 0 };
    let mut patience = follow::Patience::default();
    loop {
        match follow_once(app, client, name, args, &mut seen, &mut patience, heard).await? {
            Ok(()) => return Ok(()),
            Err(status) => patience.spend(app, client, &status).await?,
        }
    }
}

struct Seen {
    position: u64,
    printed: usize,
}

/// Until the stream ends: with the run, or with why it broke.
async fn follow_once(
    app: &App,
    client: &Client,
    name: &str,
    args: &LogsArgs,
    seen: &mut Seen,
    patience: &mut follow::Patience,
    heard: &Cell<bool>,
) -> Result<std::result::Result<(), Status>> {
    let request =
        v1::WatchRunLogsRequest { name: name.to_owned(), filter: filter(args), after_position: seen.position };
    let mut stream = match client.runs().watch_run_logs(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    heard.set(true);
    loop {
        let entry = match stream.message().await {
            Ok(Some(v1::WatchRunLogsResponse { entry: Some(entry) })) => entry,
            Ok(Some(v1::WatchRunLogsResponse { entry: None })) => continue,
            Ok(None) => return Ok(Ok(())),
            Err(status) => return Ok(Err(status)),
        };
        patience.restore();
        seen.position = entry.position;
        app.printer.item(&entry, line)?;
        seen.printed += 1;
        if args.limit > 0 && seen.printed >= args.limit {
            return Ok(Ok(()));
        }
    }
}

fn filter(args: &LogsArgs) -> String {
    let step = args.step.iter().map(|step| format!("step = \"{step}\""));
    let attempt = args.attempt.iter().map(|attempt| format!("attempt = {attempt}"));
    step.chain(attempt).collect::<Vec<_>>().join(" AND ")
}

/// Time, step with attempt, and what was written: on one line, whatever that holds.
fn line(entry: &v1::RunLogEntry) -> String {
    let of = format!("{}#{}", entry.step, entry.attempt);
    let at = time(entry.time.as_ref());
    if entry.lost_lines == 0 {
        let text = entry.text.trim_end_matches(['\r', '\n']).replace('\r', r"\u{d}").replace('\n', r"\u{a}");
        return format!("{at}  {of:<24}  {text}");
    }
    let lines = if entry.lost_lines == 1 { "line" } else { "lines" };
    let why = match entry.lost() {
        Lost::OnTheWay => "lost on the way",
        Lost::OverLimit => "over the limit of what is kept",
        Lost::NotWritten => "not taken by the coordinator's disk",
        Lost::Unspecified => "missing",
    };
    format!("{at}  {of:<24}  … {} {lines} {why}", entry.lost_lines)
}
