//! What lists say of a run, made from its state.

use jiff::Timestamp;
use muster_engine::{
    ids::RunId,
    run::{
        Run,
        state::{Milestone, RunState},
    },
};
use uuid::Uuid;

use crate::{
    control::{MilestoneView, run_state},
    store::{MilestoneRow, RunRow, StoreWrite},
};

/// What a run in quarantine is listed as.
pub(super) const QUARANTINED: &str = "QUARANTINED";

/// The stored word as the constant it was.
pub(super) fn state_word(stored: &str) -> &'static str {
    let words = ["RUNNING", "WAITING", "PAUSED", "CANCELLING", "ROLLING_BACK", "SUCCEEDED", "FAILED", "CANCELLED"];
    words.into_iter().find(|w| *w == stored).unwrap_or(QUARANTINED)
}

/// When it ended.
pub(super) fn ended_at(run: &Run) -> Option<Timestamp> {
    match &run.state {
        RunState::Ended { at, .. } => Some(*at),
        RunState::Running | RunState::Cancelling | RunState::RollingBack => None,
    }
}

/// Everything that the store keeps of a run.
pub(super) fn writes_of(run: &Run, quarantined: bool) -> Vec<StoreWrite> {
    let row = RunRow {
        id: run.id.clone(),
        namespace: run.namespace.clone(),
        playbook: run.plan.playbook.clone(),
        state: if quarantined { QUARANTINED } else { run_state(run) }.to_owned(),
        started_at: run.started_at,
        started_by: run.started_by.clone(),
        ended_at: ended_at(run),
        seq: run.seq,
    };
    let mut writes = vec![StoreWrite::Run(row)];
    for (ordinal, milestone) in milestones(run) {
        let phase = run.plan.phases[ordinal].id.clone();
        writes.push(StoreWrite::Milestone(MilestoneRow {
            namespace: run.namespace.clone(),
            run: run.id.clone(),
            playbook: run.plan.playbook.clone(),
            phase,
            ordinal: u32::try_from(ordinal).unwrap_or(u32::MAX),
            name: milestone.name.clone(),
            state: milestone.state,
            since: milestone.since,
            due_at: milestone.due_at,
        }));
    }
    writes
}

/// What is listed of a run of which nothing can be read: what was known of it before, or its id alone.
pub(super) fn quarantined(id: &RunId, before: Option<RunRow>) -> RunRow {
    let state = QUARANTINED.to_owned();
    match before {
        Some(before) => RunRow { state, ..before },
        None => RunRow {
            id: id.clone(),
            namespace: "default".into(),
            playbook: String::new(),
            state,
            started_at: began_at(id),
            started_by: "".into(),
            ended_at: None,
            seq: 0,
        },
    }
}

/// The ids of runs are UUIDs of version 7, which begin with a time.
fn began_at(id: &RunId) -> Timestamp {
    let made = Uuid::try_parse(id.as_str()).ok().and_then(|uuid| uuid.get_timestamp());
    let (seconds, nanos) = made.map_or((0, 0), |made| made.to_unix());
    let at = i64::try_from(seconds).ok().zip(i32::try_from(nanos).ok()).map(|(s, n)| Timestamp::new(s, n));
    at.and_then(Result::ok).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A phase's milestone, for people.
pub(super) fn milestone_view(run: &Run, phase: usize) -> Option<MilestoneView> {
    let milestone = run.phases.get(phase)?.milestone.as_ref()?;
    Some(MilestoneView {
        run: run.id.clone(),
        playbook: run.plan.playbook.clone(),
        phase: run.plan.phases[phase].id.as_str().to_owned(),
        name: milestone.name.clone(),
        state: milestone.state,
        since: milestone.since,
        due_at: milestone.due_at,
    })
}

fn milestones(run: &Run) -> impl Iterator<Item = (usize, &Milestone)> {
    run.phases.iter().enumerate().filter_map(|(i, p)| p.milestone.as_ref().map(|m| (i, m)))
}
