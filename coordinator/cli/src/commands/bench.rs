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
    let head = ["FIGURE", "VALUE", "UNIT", "LIMIT", "RATIO", "FLOOR", "MET", "AIM", "LIMIT IS"];
    View::new(vec![
        Block::Fields(vec![
            ("Machine", report.machine.clone()),
            ("Journal", format!("{} batches, all verified", report.journal_batches)),
        ]),
        Block::Table(Table::new(&head, "Nothing was measured.").rows(rows)),
        Block::Text(summary(&report.figures)),
    ])
}

/// How many floors there are, and which are missed.
fn summary(figures: &[Figure]) -> String {
    let held = figures.iter().filter(|figure| figure.met.is_some()).count();
    let missed: Vec<&str> = figures.iter().filter(|f| f.met == Some(false)).map(|f| f.name.as_str()).collect();
    match missed.len() {
        0 => format!("none of {held} floors missed"),
        count => format!("{count} of {held} floors missed: {}", missed.join(", ")),
    }
}

fn row(figure: &Figure) -> Vec<String> {
    vec![
        figure.name.clone(),
        number(figure.value),
        figure.unit.to_owned(),
        figure.limit.map(number).unwrap_or_default(),
        figure.ratio.map(number).unwrap_or_default(),
        figure.floor.clone(),
        match figure.met {
            Some(true) => "yes".to_owned(),
            Some(false) => "MISSED".to_owned(),
            None => String::new(),
        },
        figure.aim.to_owned(),
        figure.limit_is.to_owned(),
    ]
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_floor_is_marked_in_table_json_and_last_line() {
        let report = BenchReport { machine: "a machine".to_owned(), figures: bench::samples(), journal_batches: 7 };
        let text = view(&report).to_string();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).expect("it is shown").to_owned();
        for (name, word) in [
            ("fast", "yes"),
            ("slow", "MISSED"),
            ("small", "yes"),
            ("big", "MISSED"),
            ("near", "yes"),
            ("far", "MISSED"),
        ] {
            assert!(line(name).contains(word), "{name}: {text}");
        }
        assert!(!line("free").contains("yes") && !line("free").contains("MISSED"), "{text}");
        assert_eq!(text.lines().last(), Some("3 of 6 floors missed: slow, big, far"));
        let json = serde_json::to_value(&report).unwrap();
        let met: Vec<_> = json["figures"].as_array().unwrap().iter().map(|figure| figure["met"].as_bool()).collect();
        assert_eq!(met, [Some(true), Some(false), Some(true), Some(false), Some(true), Some(false), None]);
        assert_eq!(summary(&report.figures[..1]), "none of 1 floors missed");
    }
}
