//! The columns: a run for each state that a step, a run, a phase and a milestone can be in, and the names of these states.

use muster_engine::{
    plan::{OnFailure, OnLost, PlannedPhase, PlannedStep},
    run::{
        Command, Resolution, Run,
        event::{FailureKind, Outcome, PhaseOutcome, Purpose, QuestionKind},
        state::{MilestoneState, PhaseState, RunState, StepState},
    },
};
use serde_json::json;

use crate::common::{self, World, failed, ok, simple, step};

/// A state and a run that is in it.
pub(crate) type Column = (&'static str, World);

/// `s` is the step that is looked at; `o` is another one that keeps the run going, `p` is behind that.
fn world(change: impl FnOnce(&mut PlannedStep)) -> World {
    let mut s = step("s", &[]);
    s.on_failure = OnFailure::Continue;
    change(&mut s);
    World::new(simple(vec![s, step("o", &[]), step("p", &[1])]))
}

fn in_state(build: impl FnOnce(&mut World)) -> World {
    let mut world = world(|_| {});
    build(&mut world);
    world
}

/// The step is what `change` makes of it, and then this happens.
fn of(change: fn(&mut PlannedStep), build: impl FnOnce(&mut World)) -> World {
    let mut world = world(change);
    build(&mut world);
    world
}

fn fails(world: &mut World, step: &str, kind: FailureKind) {
    world.assign(step);
    world.finish(step, failed(kind));
}

fn cancel(force: bool) -> Command {
    Command::Cancel { reason: "enough".to_owned(), force }
}

fn pause() -> Command {
    Command::Pause { reason: "stop".to_owned() }
}

fn lose() -> Command {
    Command::LoseInstance { instance: "infra-1-a".into() }
}

fn bury() -> Command {
    Command::BuryInstance { instance: "infra-1-a".into() }
}

/// A run that walks back: of `s` and `o`, the one named first is undone after the other.
fn walking_back(order: [&str; 2], build: impl FnOnce(&mut World)) -> World {
    let mut world = world(|s| s.on_failure = OnFailure::Undo);
    for id in order {
        world.change(id);
    }
    fails(&mut world, "p", FailureKind::Permanent);
    build(&mut world);
    world
}

/// A run that is over but for `s`, which is done always.
fn coming_last(build: impl FnOnce(&mut World)) -> World {
    let mut world = world(|s| s.always = true);
    fails(&mut world, "o", FailureKind::Permanent);
    build(&mut world);
    world
}

/// `s` is behind the other step that is done always.
fn pending_last() -> World {
    let (mut o, mut s) = (step("o", &[]), step("s", &[0]));
    (o.always, s.always) = (true, true);
    let mut world = World::new(simple(vec![o, s, step("p", &[])]));
    fails(&mut world, "p", FailureKind::Permanent);
    world
}

fn lost(world: &mut World) {
    world.assign("s");
    world.command(&lose());
}

fn gone(world: &mut World) {
    world.assign("s");
    world.command(&bury());
}

/// `s` in every state of a run that goes on.
pub(crate) fn steps() -> Vec<Column> {
    let pending = {
        let mut s = step("s", &[0]);
        s.on_failure = OnFailure::Continue;
        World::new(simple(vec![step("o", &[]), s]))
    };
    let mut all = vec![("pending", pending)];
    all.extend(with_agents());
    let wanting = |kind| move |w: &mut World| fails(w, "s", kind);
    all.extend([
        ("waiting", world(|s| common::waits(s, common::for_signal("go", None)))),
        ("waiting (moment)", world(|s| common::waits(s, common::for_moment(600)))),
        ("asking", in_state(wanting(FailureKind::NeedsPerson))),
        ("asking (failed)", of(|s| s.on_failure = OnFailure::Pause, wanting(FailureKind::Permanent))),
        ("asking (may have run)", of(|s| s.on_lost = OnLost::Ask, gone)),
        ("succeeded", in_state(|w| drop(w.succeed("s")))),
        ("failed", in_state(wanting(FailureKind::Permanent))),
        ("skipped", world(|s| s.when = Some("false".to_owned()))),
    ]);
    all.extend(paused_steps());
    all
}

/// `s` waits for an agent, or one is at work on it.
fn with_agents() -> Vec<Column> {
    let verified = |s: &mut PlannedStep| s.verify = Some(common::verify("output.fine", 10_000, 5_000));
    let prepared = |w: &mut World| {
        w.assign("s");
        w.prepare("s", json!("was"));
    };
    let probed = |w: &mut World| {
        gone(w);
        w.assign("s");
    };
    let looked_at = |w: &mut World| {
        w.succeed("s");
        w.assign("s");
    };
    vec![
        ("queued", in_state(|_| {})),
        ("queued (timeout)", of(|s| s.queue_timeout_ms = Some(600_000), |_| {})),
        ("queued (probe)", in_state(gone)),
        ("queued (verify)", of(verified, |w| drop(w.succeed("s")))),
        ("active", in_state(|w| drop(w.assign("s")))),
        ("active (begun)", in_state(prepared)),
        ("active (lost)", in_state(lost)),
        ("active (probe)", in_state(probed)),
        ("active (verify)", of(verified, looked_at)),
    ]
}

/// The failure of a step decides about a run once that is no longer paused.
fn paused_steps() -> Vec<Column> {
    let undoing = |s: &mut PlannedStep| s.on_failure = OnFailure::Undo;
    let given_up = Command::ResolveStep {
        step: "s".into(),
        resolution: Resolution::Failed,
        reason: "no".to_owned(),
        output: None,
    };
    let paused = |build: &dyn Fn(&mut World)| {
        of(undoing, |w| {
            build(w);
            w.command(&pause());
        })
    };
    let mut failed = paused(&|_| {});
    failed.command(&given_up);
    vec![
        ("queued (paused)", paused(&|_| {})),
        ("active (paused)", paused(&|w| drop(w.assign("s")))),
        ("failed (paused)", failed),
    ]
}

/// `s` in every state of a run that is stopped, is walked back, does its last steps, or has ended.
pub(crate) fn stopped_steps() -> Vec<Column> {
    let walking = |build: fn(&mut World)| walking_back(["o", "s"], build);
    vec![
        ("cancelled", held_after_the_cancellation()),
        (
            "active (stopped)",
            in_state(|w| {
                w.assign("s");
                w.command(&cancel(false));
            }),
        ),
        ("to be undone", walking_back(["s", "o"], |_| {})),
        ("queued (undo)", walking(|_| {})),
        ("active (undo)", walking(|w| drop(w.assign("s")))),
        ("asking (undo)", walking(|w| fails(w, "s", FailureKind::Permanent))),
        ("undone", walking(|w| drop(w.succeed("s")))),
        ("pending (last)", pending_last()),
        ("queued (last)", coming_last(|_| {})),
        ("active (last)", coming_last(|w| drop(w.assign("s")))),
        ("asking (last)", coming_last(|w| fails(w, "s", FailureKind::NeedsPerson))),
        (
            "active (left)",
            in_state(|w| {
                w.assign("s");
                w.command(&cancel(true));
            }),
        ),
        (
            "succeeded (ended)",
            in_state(|w| {
                w.succeed("s");
                w.command(&cancel(true));
            }),
        ),
    ]
}

/// A cancelled run that a pause holds: all attempts have ended, and `s`, which is done always, has not had its turn.
fn held_after_the_cancellation() -> World {
    of(
        |s| s.always = true,
        |w| {
            w.assign("o");
            w.command(&cancel(false));
            w.command(&pause());
            w.finish("o", Outcome::Cancelled { may_have_changed: false });
        },
    )
}

/// A run in every state.
pub(crate) fn runs() -> Vec<Column> {
    // `o` fails while `s` is at work; where the run is paused, `s` has ended since.
    let stopping = |pauses: bool| {
        of(
            |s| s.always = true,
            |w| {
                w.assign("s");
                fails(w, "o", FailureKind::Permanent);
                if pauses {
                    w.command(&pause());
                    w.finish("s", Outcome::Cancelled { may_have_changed: false });
                }
            },
        )
    };
    vec![
        ("running", in_state(|_| {})),
        ("running (paused)", in_state(|w| drop(w.command(&pause())))),
        ("running (question)", in_state(|w| drop(w.command(&Command::AcceptLoss)))),
        (
            "cancelling",
            in_state(|w| {
                w.assign("o");
                w.command(&cancel(false));
            }),
        ),
        ("cancelling (paused)", held_after_the_cancellation()),
        ("stopping", stopping(false)),
        ("stopping (paused)", stopping(true)),
        ("rolling back", walking_back(["o", "s"], |_| {})),
        ("rolling back (paused)", walking_back(["o", "s"], |w| drop(w.command(&pause())))),
        ("finishing", coming_last(|_| {})),
        ("finishing (paused)", coming_last(|w| drop(w.command(&pause())))),
        ("ended", in_state(|w| drop(w.command(&cancel(true))))),
    ]
}

/// Three phases with a step each: `o`, `s`, `p`. The second is looked at.
fn phased(change: impl FnOnce(&mut PlannedPhase)) -> World {
    let mut steps = ["o", "s", "p"].map(|id| step(id, &[]));
    for (phase, step) in steps.iter_mut().enumerate() {
        (step.phase, step.on_failure) = (phase, OnFailure::Continue);
    }
    let mut phases = ["first", "second", "third"].map(common::phase);
    change(&mut phases[1]);
    World::new(common::plan(phases.into(), steps.into()))
}

fn in_phase(build: impl FnOnce(&mut World)) -> World {
    let mut world = phased(|_| {});
    world.succeed("o");
    build(&mut world);
    world
}

/// The second phase is left out.
fn skipped() -> World {
    let mut world = phased(|phase| phase.when = Some("false".to_owned()));
    world.succeed("o");
    world
}

/// A phase in every state.
pub(crate) fn phases() -> Vec<Column> {
    let gated = |phase: &mut PlannedPhase| phase.gate = Some(common::gate(&["steps.s.output.ok"], &[]));
    let mut at_its_gate = phased(gated);
    at_its_gate.succeed("o");
    at_its_gate.succeed("s");
    vec![
        ("pending", phased(|_| {})),
        ("active", in_phase(|_| {})),
        ("active (steps over)", at_its_gate),
        ("completed", in_phase(|w| drop(w.succeed("s")))),
        ("failed", in_phase(|w| fails(w, "s", FailureKind::Permanent))),
        ("skipped", skipped()),
    ]
}

/// A milestone in every state: 70 % of its time is gone after 21 minutes, all of it after 30.
pub(crate) fn milestones() -> Vec<Column> {
    let at = |seconds| in_phase(|w| drop(w.go_to(seconds).tick()));
    let mut late = at(1_800);
    late.assign("s");
    late.finish("s", ok(json!({})));
    vec![
        ("none", phased(|phase| phase.milestone = None)),
        ("pending", phased(|_| {})),
        ("at risk", at(1_260)),
        ("missed", at(1_800)),
        ("reached", in_phase(|w| drop(w.succeed("s")))),
        ("reached late", late),
        ("skipped", skipped()),
    ]
}

/// The name of the column that the step is in.
pub(crate) fn step_name(run: &Run) -> String {
    let i = run.step_index(&"s".into()).expect("s is in the plan");
    let step = &run.steps[i];
    if run.rollback.as_ref().is_some_and(|r| r.remaining.contains(&i)) && !run.awake.contains(&i) {
        return "to be undone".to_owned();
    }
    let stage = match &run.state {
        RunState::Running if run.pause.is_some() => "paused",
        RunState::Running => "",
        RunState::Cancelling | RunState::RollingBack => "stopped",
        RunState::Finishing { .. } => "last",
        RunState::Ended { .. } => "ended",
    };
    let with =
        |name: &str, suffix: &str| if suffix.is_empty() { name.to_owned() } else { format!("{name} ({suffix})") };
    let only = |stages: &[&str]| if stages.contains(&stage) { stage } else { "" };
    match &step.state {
        StepState::Pending => with("pending", only(&["last"])),
        StepState::Queued { purpose, .. } => match purpose {
            Purpose::Run if stage.is_empty() && run.plan.steps[i].queue_timeout_ms.is_some() => {
                with("queued", "timeout")
            }
            Purpose::Run => with("queued", stage),
            Purpose::Probe => with("queued", "probe"),
            Purpose::Verify => with("queued", "verify"),
            Purpose::Undo => with("queued", "undo"),
        },
        StepState::Active => with("active", active(run, i, stage)),
        StepState::Waiting { signal: Some(_), .. } => "waiting".to_owned(),
        StepState::Waiting { signal: None, .. } => with("waiting", "moment"),
        StepState::Asking { kind, .. } => match kind {
            QuestionKind::UndoFailed => with("asking", "undo"),
            QuestionKind::NeedsPerson | QuestionKind::Failed | QuestionKind::MayHaveRun if stage == "last" => {
                with("asking", "last")
            }
            QuestionKind::NeedsPerson => "asking".to_owned(),
            QuestionKind::Failed => with("asking", "failed"),
            QuestionKind::MayHaveRun => with("asking", "may have run"),
        },
        StepState::Succeeded => with("succeeded", only(&["ended"])),
        StepState::Failed { .. } => with("failed", only(&["paused"])),
        StepState::Skipped { .. } => "skipped".to_owned(),
        StepState::Cancelled => "cancelled".to_owned(),
        StepState::Undone => "undone".to_owned(),
    }
}

fn active(run: &Run, i: usize, stage: &'static str) -> &'static str {
    let (_, attempt) = run.steps[i].live_attempt().expect("an active step has an attempt at work");
    match (stage, attempt.purpose) {
        ("ended", _) => "left",
        (_, Purpose::Undo) => "undo",
        ("", Purpose::Run) if attempt.lost_at.is_some() => "lost",
        ("", Purpose::Run) if run.live_attempt_has_begun(i) => "begun",
        ("", Purpose::Probe) => "probe",
        ("", Purpose::Verify) => "verify",
        (stage, Purpose::Run | Purpose::Probe | Purpose::Verify) => stage,
    }
}

/// The name of the column that the run is in.
pub(crate) fn run_name(run: &Run) -> String {
    let name = match run.state {
        RunState::Running => "running",
        RunState::Cancelling => "cancelling",
        RunState::RollingBack if run.rollback.is_none() => "stopping",
        RunState::RollingBack => "rolling back",
        RunState::Finishing { .. } => "finishing",
        RunState::Ended { .. } => "ended",
    };
    match &run.pause {
        Some(pause) if pause.question.is_some() && run.state == RunState::Running => format!("{name} (question)"),
        Some(_) => format!("{name} (paused)"),
        None => name.to_owned(),
    }
}

/// The name of the column that the second phase is in.
pub(crate) fn phase_name(run: &Run) -> String {
    let name = match run.phases[1].state {
        PhaseState::Pending => "pending",
        PhaseState::Active if run.phases[1].open_steps == 0 => "active (steps over)",
        PhaseState::Active => "active",
        PhaseState::Ended(PhaseOutcome::Completed) => "completed",
        PhaseState::Ended(PhaseOutcome::Failed) => "failed",
        PhaseState::Ended(PhaseOutcome::Skipped) => "skipped",
    };
    name.to_owned()
}

/// The name of the column that the milestone of the second phase is in.
pub(crate) fn milestone_name(run: &Run) -> String {
    let name = match run.phases[1].milestone.as_ref().map(|m| m.state) {
        None => "none",
        Some(MilestoneState::Pending) => "pending",
        Some(MilestoneState::AtRisk) => "at risk",
        Some(MilestoneState::Missed) => "missed",
        Some(MilestoneState::Reached) => "reached",
        Some(MilestoneState::ReachedLate) => "reached late",
        Some(MilestoneState::Skipped) => "skipped",
    };
    name.to_owned()
}
