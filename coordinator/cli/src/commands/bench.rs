//! `bench`: how fast it is here, beside what this machine can do.

use super::App;
use crate::{
    bench::{self, BenchArgs, BenchReport, Figure, PeerArgs},
    error::{CliError, Exit, Result},
    printer::{Block, Table, View},
};

/// Measure, then print every figure beside its limit.
pub(super) async fn run(app: &App, args: &BenchArgs) -> Result<Exit> {
    let say = |line: &str| app.printer.note(&format!("bench: {line}"));
    let report = Box::pin(bench::run(args, &say)).await.map_err(|e| failed(&e))?;
    let value = serde_json::to_value(&report).map_err(|e| failed(&e.into()))?;
    app.printer.value(&value, || view(&report))?;
    Ok(Exit::Succeeded)
}

/// Answer what a limit is measured against, until ended.
pub(super) async fn peer(args: &PeerArgs) -> Result<Exit> {
    bench::peer(args).await.map_err(|e| failed(&e))?;
    Ok(Exit::Succeeded)
}

fn failed(error: &anyhow::Error) -> CliError {
    CliError::failed("BENCH_FAILED", format!("{error:#}")).hint("nats-server has to be installed")
}

fn view(report: &BenchReport) -> View {
    let rows = report.figures.iter().map(row);
    let head = ["FIGURE", "VALUE", "UNIT", "LIMIT", "RATIO", "FLOOR", "AIM", "LIMIT IS"];
    View::new(vec![
        Block::Fields(vec![
            ("Machine", report.machine.clone()),
            ("Journal", format!("{} batches, all verified", report.journal_batches)),
        ]),
        Block::Table(Table::new(&head, "Nothing was measured.").rows(rows)),
    ])
}

fn row(figure: &Figure) -> Vec<String> {
    vec![
        figure.name.clone(),
        number(figure.value),
        figure.unit.to_owned(),
        figure.limit.map(number).unwrap_or_default(),
        figure.ratio.map(number).unwrap_or_default(),
        figure.floor.to_owned(),
        figure.aim.to_owned(),
        figure.limit_is.to_owned(),
    ]
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
