//! How runs look.

use muster_proto::v1;

use crate::{
    printer::{Block, Table, View, compact, one_line, time},
    words,
};

/// What is said of an output that its agent had to cut.
const CUT: &str = "its output was too large and is cut";

/// A run with its phases and steps.
pub(crate) fn run(run: &v1::Run) -> View {
    let mut blocks = vec![Block::Fields(fields(run)), Block::Table(phases(run)), Block::Table(steps(run))];
    let gates = gates(run);
    if !gates.is_empty() {
        blocks.push(Block::Table(Table::new(&["GATE", "HOLDS", "CRITERION"], "").rows(gates)));
    }
    let outputs = outputs(run);
    if !outputs.is_empty() {
        blocks.push(Block::Table(Table::new(&["OUTPUT", "VALUE"], "").rows(outputs)));
    }
    View::new(blocks)
}

/// What the run gives, at its end.
fn outputs(run: &v1::Run) -> Vec<Vec<String>> {
    let Some(prost_types::value::Kind::StructValue(outputs)) = run.outputs.as_ref().and_then(|o| o.kind.as_ref())
    else {
        return Vec::new();
    };
    outputs.fields.iter().map(|(name, value)| vec![name.clone(), plain(value)]).collect()
}

/// A text as it is, on one line; everything else as JSON.
fn plain(value: &prost_types::Value) -> String {
    match &value.kind {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        Some(_) => compact(value),
        None => String::new(),
    }
}

fn fields(run: &v1::Run) -> Vec<(&'static str, String)> {
    vec![
        ("Run", run.run_id.clone()),
        ("Playbook", short_playbook(&run.playbook)),
        ("State", words::run_state(run.state())),
        ("Why", run.state_reason.clone()),
        ("Waits for", run.waiting.as_ref().filter(|_| !says_question(run)).map(waits_for).unwrap_or_default()),
        ("Note", run.note.clone()),
        ("Owner", run.owner.clone()),
        ("Plan", run.plan_digest.clone()),
        ("Started", time(run.start_time.as_ref())),
        ("Ended", time(run.end_time.as_ref())),
    ]
}

/// Whether its state has the question itself.
fn says_question(run: &v1::Run) -> bool {
    words::needs_person(run.state()) && !run.state_reason.is_empty()
}

/// What it waits for most urgently, on whom and since when.
fn waits_for(waiting: &v1::Waiting) -> String {
    let v1::Waiting { subject, waits_for, on_whom, since, .. } = waiting;
    format!("{} (on {on_whom}, since {})", format!("{subject}: {waits_for}").trim_end(), time(since.as_ref()))
}

/// The name alone, of `namespaces/{ns}/playbooks/{playbook}@{revision}`.
fn short_playbook(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split('@').next().unwrap_or(last).to_owned()
}

fn phases(run: &v1::Run) -> Table {
    let head = ["PHASE", "STATE", "STEPS", "GATE", "MILESTONE", "REACHED", "DUE"];
    Table::new(&head, "no phases").rows(run.phases.iter().map(|phase| {
        let (done, all) = progress(run, phase);
        let milestone = phase.milestone.as_ref();
        vec![
            phase.id.clone(),
            words::phase_state(phase.state()),
            format!("{done}/{all}"),
            phase.gate.as_ref().map(|gate| words::verdict(gate.verdict())).unwrap_or_default(),
            milestone.map(|m| m.display_name.clone()).unwrap_or_default(),
            milestone.map(|m| words::milestone_state(m.state())).unwrap_or_default(),
            time(phase.due_time.as_ref()),
        ]
    }))
}

/// How many steps of a phase need nothing more, and how many there are.
pub(crate) fn progress(run: &v1::Run, phase: &v1::Phase) -> (usize, usize) {
    use v1::step::State;
    let of_phase = || run.steps.iter().filter(|step| step.phase == phase.id);
    let done = of_phase().filter(|step| matches!(step.state(), State::Succeeded | State::Skipped)).count();
    (done, of_phase().count())
}

fn steps(run: &v1::Run) -> Table {
    let head = ["STEP", "PHASE", "STATE", "ACTION", "ATTEMPTS", "AGENT", "WHY"];
    Table::new(&head, "no steps").rows(run.steps.iter().map(|step| {
        let last = step.attempts.last();
        vec![
            step.id.clone(),
            step.phase.clone(),
            step_state(step),
            step.action.clone(),
            step.attempts.len().to_string(),
            last.map(|attempt| attempt.agent.clone()).unwrap_or_default(),
            why(step),
        ]
    }))
}

/// The state, with what an attempt is for where that is not the usual.
pub(crate) fn step_state(step: &v1::Step) -> String {
    use v1::{attempt::Purpose, step::State};
    let purpose = match step.state() {
        State::Queued => step.queued_purpose(),
        State::Active => step.attempts.last().map_or(Purpose::Unspecified, v1::Attempt::purpose),
        State::Unspecified
        | State::Pending
        | State::Waiting
        | State::Asking
        | State::Succeeded
        | State::Failed
        | State::Skipped
        | State::Cancelled
        | State::Undone => Purpose::Unspecified,
    };
    if is_unchanged(step) {
        return "unchanged".to_owned();
    }
    let state = words::step_state(step.state());
    match purpose {
        Purpose::Unspecified | Purpose::Run => state,
        Purpose::Probe | Purpose::Verify | Purpose::Undo => format!("{state} ({})", words::purpose(purpose)),
    }
}

/// Whether a step that is done was found done by its own check, and no attempt at it can have changed anything.
fn is_unchanged(step: &v1::Step) -> bool {
    use v1::attempt::{Purpose, State};
    let mut tries =
        step.attempts.iter().filter(|a| a.purpose() == Purpose::Run && a.state() != State::NotStarted).peekable();
    step.state() == v1::step::State::Succeeded
        && tries.peek().is_some()
        && tries.all(|a| a.state() == State::Succeeded && a.unchanged)
}

/// Whether its agent had to cut the output that a step gives.
fn is_cut(step: &v1::Step) -> bool {
    use v1::attempt::{Purpose, State};
    let gives =
        |a: &&v1::Attempt| matches!(a.purpose(), Purpose::Run | Purpose::Probe) && a.state() == State::Succeeded;
    step.output.is_some() && step.attempts.iter().rev().find(gives).is_some_and(|a| a.truncated)
}

/// Why a step is where it is: its own reason, else what its agent said last, or its last error. Of one whose output is not
/// whole, that too.
pub(crate) fn why(step: &v1::Step) -> String {
    let why = reason(step);
    match (is_cut(step), why.is_empty()) {
        (true, true) => CUT.to_owned(),
        (true, false) => format!("{why}; {CUT}"),
        (false, _) => why,
    }
}

fn reason(step: &v1::Step) -> String {
    let last = step.attempts.last();
    let said = || last.map(|a| a.status.clone()).filter(|s| !s.is_empty());
    let failed = || last.map(|a| a.message.clone());
    if step.state_reason.is_empty() {
        match step.state() {
            v1::step::State::Active => said().unwrap_or_default(),
            v1::step::State::Succeeded | v1::step::State::Pending => String::new(),
            v1::step::State::Unspecified
            | v1::step::State::Queued
            | v1::step::State::Waiting
            | v1::step::State::Asking
            | v1::step::State::Failed
            | v1::step::State::Skipped
            | v1::step::State::Cancelled
            | v1::step::State::Undone => failed().unwrap_or_default(),
        }
    } else {
        step.state_reason.clone()
    }
}

fn gates(run: &v1::Run) -> Vec<Vec<String>> {
    let of_phase = |phase: &v1::Phase| -> Vec<Vec<String>> {
        let criteria = phase.gate.iter().flat_map(|gate| &gate.criteria);
        let holds = |criterion: &v1::Criterion| match criterion.value {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => format!("unknown: {}", criterion.error),
        };
        criteria.map(|c| vec![phase.id.clone(), holds(c), c.expression.clone()]).collect()
    };
    run.phases.iter().flat_map(of_phase).collect()
}

/// Runs in a list.
pub(crate) fn runs(runs: &[v1::Run]) -> Table {
    let head = ["RUN", "PLAYBOOK", "STATE", "STARTED", "ENDED", "BY", "WHY"];
    Table::new(&head, "no runs").rows(runs.iter().map(|run| {
        vec![
            run.run_id.clone(),
            short_playbook(&run.playbook),
            words::run_state(run.state()),
            time(run.start_time.as_ref()),
            time(run.end_time.as_ref()),
            run.creator.clone(),
            why_listed(run),
        ]
    }))
}

/// Why a run is in its state; of one that is open: for what it waits, on whom and since when.
fn why_listed(run: &v1::Run) -> String {
    let Some(waiting) = &run.waiting else { return run.state_reason.clone() };
    if says_question(run) {
        let since = time(waiting.since.as_ref());
        return format!("{} (on {}, since {since})", run.state_reason.trim_end(), waiting.on_whom);
    }
    waits_for(waiting)
}

/// An event on a line.
pub(crate) fn event(event: &v1::RunEvent) -> String {
    format!("{:>5}  {}  {:<24}  {}", event.sequence, time(event.time.as_ref()), event.actor, one_line(&event.summary))
}

/// What a run waits for.
pub(crate) fn waiting(answer: &v1::ExplainRunResponse) -> View {
    if answer.waiting.is_empty() {
        return View::new(vec![Block::Text("the run has ended: it waits for nothing".to_owned())]);
    }
    let block = |w: &v1::Waiting| {
        let next = match time(w.next_time.as_ref()) {
            at if at.is_empty() => w.next_action.clone(),
            at => format!("{} at {at}", w.next_action),
        };
        Block::Fields(vec![
            ("What", w.subject.clone()),
            ("Waits for", w.waits_for.clone()),
            ("On whom", w.on_whom.clone()),
            ("Since", time(w.since.as_ref())),
            ("Next", next),
            ("Hint", w.hint.clone()),
        ])
    };
    View::new(answer.waiting.iter().map(block).collect())
}
