//! `muster journal …`: the files of a stopped coordinator. Only `restored` changes them.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use muster_coordinator::journal::{
    Journal as _, StreamId,
    log::{LogJournal, LogOptions, Loss, OpenError},
    tools::{self, Report},
};
use serde_json::{Value, json};

use super::{App, serve::not_opened};
use crate::{
    args::{JournalArgs, JournalCommand},
    error::{CliError, Exit, Result},
    printer::{Block, Printer, Table, View},
};

pub(super) fn run(app: &App, command: &JournalCommand) -> Result<Exit> {
    match command {
        JournalCommand::Verify(args) => verify(app, args),
        JournalCommand::Head(args) => head(app, args),
        JournalCommand::Export { journal, stream } => export(app, journal, stream.as_deref()),
        JournalCommand::Restored(args) => restored(app, args),
    }
}

fn verify(app: &App, args: &JournalArgs) -> Result<Exit> {
    let folder = folder(app, args)?;
    let report = tools::verify(&folder).map_err(|e| not_opened(&e))?;
    let value = json!({
        "whole": report.whole,
        "cluster": report.cluster,
        "position": report.head.position.0,
        "chain": report.head.chain,
        "segments": report.segments,
        "batches": report.batches,
        "records": report.records,
        "streams": report.streams,
        "tornBytes": report.torn_bytes,
        "losses": report.losses.iter().map(loss_json).collect::<Vec<_>>(),
    });
    app.printer.value(&value, || view(&report))?;
    whole(&report, &folder)
}

fn head(app: &App, args: &JournalArgs) -> Result<Exit> {
    let head = tools::head(&folder(app, args)?).map_err(|e| not_opened(&e))?;
    let value = json!({"position": head.position.0, "chain": head.chain});
    app.printer.value(&value, || {
        View::new(vec![Block::Fields(vec![("Position", head.position.0.to_string()), ("Chain", head.chain.clone())])])
    })?;
    Ok(Exit::Succeeded)
}

fn export(app: &App, args: &JournalArgs, stream: Option<&str>) -> Result<Exit> {
    let folder = folder(app, args)?;
    let stream = stream.map(|stream| StreamId(stream.into()));
    match tools::export(&folder, stream.as_ref(), &mut Printer::raw()) {
        // The reader has seen enough.
        Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => Ok(Exit::Succeeded),
        Err(e) => Err(not_opened(&e)),
        Ok(report) => whole(&report, &folder),
    }
}

fn restored(app: &App, args: &JournalArgs) -> Result<Exit> {
    let folder = folder(app, args)?;
    let options = LogOptions { restored: true, ..LogOptions::default() };
    let (journal, _) =
        LogJournal::open(&folder, options).map_err(|e| not_opened(&e).at(folder.display().to_string()))?;
    let (cluster, head) = (journal.cluster().to_owned(), journal.head());
    let value = json!({"cluster": cluster, "position": head.position.0});
    app.printer.value(&value, || {
        View::new(vec![Block::Fields(vec![("Cluster", cluster), ("Position", head.position.0.to_string())])])
    })?;
    Ok(Exit::Succeeded)
}

fn folder(app: &App, args: &JournalArgs) -> Result<PathBuf> {
    let folder = args.data_dir.clone().unwrap_or_else(|| app.settings.serve.data_dir());
    if folder.join("log").is_dir() {
        return Ok(folder);
    }
    Err(CliError::usage("JOURNAL_NOT_FOUND", "there is no journal here")
        .at(folder.display().to_string())
        .hint("name the coordinator's data directory with --data-dir"))
}

fn whole(report: &Report, folder: &Path) -> Result<Exit> {
    if report.whole {
        return Ok(Exit::Succeeded);
    }
    let losses = report.losses.len();
    let message = format!("the log is not whole: {losses} place{}", if losses == 1 { "" } else { "s" });
    Err(CliError::failed("JOURNAL_DAMAGED", message)
        .at(folder.display().to_string())
        .hint("restore a backup\nor go on without the lost records: muster serve --accept-loss"))
}

fn loss_json(loss: &Loss) -> Value {
    json!({
        "file": loss.file,
        "from": loss.from,
        "to": loss.to,
        "what": loss.what,
        "streams": loss.streams,
        "allNamed": loss.all_named,
    })
}

fn view(report: &Report) -> View {
    let mut blocks = vec![Block::Fields(vec![
        ("Whole", if report.whole { "yes" } else { "no" }.to_owned()),
        ("Cluster", report.cluster.clone()),
        ("Position", report.head.position.0.to_string()),
        ("Chain", report.head.chain.clone()),
        ("Segments", report.segments.to_string()),
        ("Batches", report.batches.to_string()),
        ("Records", report.records.to_string()),
        ("Streams", report.streams.to_string()),
        ("Torn", if report.torn_bytes == 0 { String::new() } else { format!("{} bytes", report.torn_bytes) }),
    ])];
    if !report.losses.is_empty() {
        let rows = report.losses.iter().map(|loss| {
            let streams = loss.streams.iter().map(|s| &*s.0).collect::<Vec<_>>().join(", ");
            let streams = match (loss.all_named, streams.is_empty()) {
                (true, _) => streams,
                (false, true) => "not known".to_owned(),
                (false, false) => streams + ", and others that are not known",
            };
            vec![loss.file.clone(), loss.from.to_string(), loss.to.to_string(), loss.what.clone(), streams]
        });
        blocks.push(Block::Table(Table::new(&["FILE", "FROM", "TO", "WHAT", "STREAMS"], "").rows(rows)));
    }
    View::new(blocks)
}
