//! What a follower sees: bars on a terminal, one line an event elsewhere.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use muster_proto::v1;

use crate::{
    commands::run::view,
    printer::{Printer, Tone, one_line, time},
    words,
};

/// Steps shown at once under the bars.
const STEPS_SHOWN: usize = 12;
const WIDEST: usize = 110;

/// Shows a run while it goes on.
pub(super) struct Display {
    printer: Printer,
    live: Option<Live>,
    /// What was said last of what it waits for.
    waits: Option<String>,
}

struct Live {
    head: ProgressBar,
    phases: Vec<ProgressBar>,
    steps: ProgressBar,
}

impl Display {
    /// Of a run, as it is.
    pub(super) fn new(printer: &Printer, run: &v1::Run) -> Self {
        let display =
            Self { live: printer.live().map(|bars| Live::new(bars, run)), printer: printer.clone(), waits: None };
        display.run(run);
        display
    }

    /// Something happened. On a terminal only what a person should read later stays above the bars.
    pub(super) fn event(&self, event: &v1::RunEvent) {
        if self.live.is_some() && !stays(&event.r#type) {
            return;
        }
        let at = time(event.time.as_ref());
        let clock = at.split_once('T').map_or(at.as_str(), |(_, clock)| clock);
        let tone = match event.r#type.as_str() {
            "milestone_reached" => Tone::Good,
            "milestone_at_risk" | "run_paused" | "records_lost" | "rollback_started" | "cancel_requested" => Tone::Warn,
            "milestone_missed" => Tone::Bad,
            _ => Tone::Plain,
        };
        self.printer.say(&[(clock, Tone::Faint), (" ", Tone::Plain), (&one_line(&event.summary), tone)]);
    }

    /// The run is like this.
    pub(super) fn run(&self, run: &v1::Run) {
        if let Some(live) = &self.live {
            live.show(&self.printer, run);
        }
    }

    /// Nothing has happened for a while: the first thing that waits and is not at work, unless it was the last one said.
    pub(super) fn waits(&mut self, run: &v1::Run, waiting: &[v1::Waiting]) {
        let goes_on = |w: &v1::Waiting| {
            let step = w.subject.strip_prefix("step ");
            w.subject.starts_with("milestone ")
                || run.steps.iter().any(|s| s.state() == v1::step::State::Active && step == Some(s.id.as_str()))
        };
        let Some(first) = waiting.iter().find(|w| !goes_on(w)) else { return };
        let line = one_line(&format!("waiting: {}: {}", first.subject, first.waits_for));
        if self.waits.as_ref() != Some(&line) {
            self.printer.note(&self.printer.painted(&[(&line, Tone::Warn)]));
            self.waits = Some(line);
        }
    }

    /// The bars go; what was noted stays.
    pub(super) fn end(self) {
        if let Some(live) = self.live {
            live.steps.finish_and_clear();
            live.phases.iter().for_each(ProgressBar::finish_and_clear);
            live.head.finish_and_clear();
        }
    }
}

fn stays(event: &str) -> bool {
    event.starts_with("milestone_")
        || event.starts_with("run_")
        || matches!(event, "gate_judged" | "rollback_started" | "cancel_requested" | "step_resolved" | "attempt_lost")
}

impl Live {
    fn new(bars: &MultiProgress, run: &v1::Run) -> Self {
        let style = |template: &str| {
            ProgressStyle::with_template(template).expect("the templates are literals").progress_chars("━━─")
        };
        let bar = |template: &str| bars.add(ProgressBar::new(0).with_style(style(template)));
        let head = bar("{spinner} {msg} ({elapsed})");
        head.enable_steady_tick(Duration::from_millis(200));
        let phases = run.phases.iter().map(|_| bar("  {prefix} {bar:20} {pos}/{len} {msg}")).collect();
        Self { head, phases, steps: bar("{msg}") }
    }

    fn show(&self, printer: &Printer, run: &v1::Run) {
        let state = words::run_state(run.state());
        self.head.set_message(printer.painted(&[
            (&run.run_id, Tone::Plain),
            (" ", Tone::Plain),
            (&state, words::run_tone(run.state())),
        ]));
        let width = run.phases.iter().map(|phase| phase.id.chars().count()).max().unwrap_or(0);
        for (bar, phase) in self.phases.iter().zip(&run.phases) {
            let (done, all) = view::progress(run, phase);
            bar.set_prefix(printer.painted(&[(&format!("{:width$}", phase.id), Tone::Plain)]));
            bar.set_length(u64::try_from(all).unwrap_or(u64::MAX));
            bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
            bar.set_message(milestone(printer, phase));
        }
        self.steps.set_message(steps(printer, run));
    }
}

fn milestone(printer: &Printer, phase: &v1::Phase) -> String {
    let Some(milestone) = &phase.milestone else { return words::phase_state(phase.state()) };
    let due = match time(milestone.due_time.as_ref()) {
        due if due.is_empty() => due,
        due => format!(", due {due}"),
    };
    printer.painted(&[
        (&milestone.display_name, Tone::Plain),
        (": ", Tone::Plain),
        (&words::milestone_state(milestone.state()), words::milestone_tone(milestone.state())),
        (&due, Tone::Plain),
    ])
}

/// The steps that a person can do something about, or that are at work.
fn steps(printer: &Printer, run: &v1::Run) -> String {
    use v1::step::State;
    let shown: Vec<&v1::Step> = run
        .steps
        .iter()
        .filter(|s| matches!(s.state(), State::Active | State::Queued | State::Waiting | State::Asking | State::Failed))
        .collect();
    let mut lines: Vec<String> = shown.iter().take(STEPS_SHOWN).map(|step| line(printer, step)).collect();
    if shown.len() > STEPS_SHOWN {
        lines.push(format!("    and {} more", shown.len() - STEPS_SHOWN));
    }
    lines.join("\n")
}

fn line(printer: &Printer, step: &v1::Step) -> String {
    let attempt = step.attempts.last().map(|a| format!(" attempt {} on {}", a.number, a.agent)).unwrap_or_default();
    let percent = step.attempts.last().and_then(|a| a.percent).map(|p| format!(" {p}%")).unwrap_or_default();
    let why: String = one_line(&view::why(step)).chars().take(WIDEST).collect();
    let colon = if why.is_empty() { "" } else { ": " };
    printer.painted(&[
        (&format!("    {} ", step.id), Tone::Plain),
        (&view::step_state(step), words::step_tone(step.state())),
        (&format!("{attempt}{percent}{colon}{why}"), Tone::Plain),
    ])
}
