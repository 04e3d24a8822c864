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

use super::entry::View;
use crate::{
    control::{Explanation, MilestoneView, MostUrgent, RunSummary, run_state, state_reason},
    store::{MilestoneRow, RunRow, StoreWrite},
};

/// What a run in quarantine is listed as.
pub(super) const QUARANTINED: &str = "QUARANTINED";

/// The stored word as the constant it was.
fn state_word(stored: &str) -> &'static str {
    let open = ["RUNNING", "WAITING", "PAUSED", "CANCELLING", "ROLLING_BACK", "FINISHING"];
    let mut words = open.into_iter().chain(["SUCCEEDED", "FAILED", "CANCELLED"]);
    words.find(|w| *w == stored).unwrap_or(QUARANTINED)
}

/// Longest reason in a list, in characters.
const REASON_LIMIT: usize = 200;

fn brief(reason: &str) -> String {
    match reason.char_indices().nth(REASON_LIMIT) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

/// The most urgent of what a run waits for, as lists give it.
pub(super) fn most_urgent(all: impl IntoIterator<Item = Explanation>) -> Option<MostUrgent> {
    let Explanation { subject, waits_for, on_whom, on, since, .. } = all.into_iter().min_by_key(|one| one.on)?;
    Some(MostUrgent { subject, waits_for: brief(&waits_for), on_whom: brief(&on_whom), on, since })
}

/// What a passive run waits for: it says the same at any time.
pub(super) fn waiting_of(run: &Run) -> Option<MostUrgent> {
    run.rest()?;
    most_urgent(run.explain(run.updated_at).into_iter().map(Explanation::from))
}

/// A row as lists give it. Rows are written when a run's state changes: why it is in it, and what it waits for, is newer in memory,
/// where every open run is that is not passive.
pub(super) fn summary_of(row: RunRow, held: Option<View>, waiting: Option<MostUrgent>) -> RunSummary {
    let reason = match held {
        Some(View { quarantine: Some(why), .. }) => brief(&why),
        Some(View { run: Some(run), quarantine: None }) if run_state(&run) == row.state => brief(&state_reason(&run)),
        Some(View { .. }) | None => row.state_reason,
    };
    RunSummary {
        state: state_word(&row.state),
        state_reason: reason,
        id: row.id,
        namespace: row.namespace,
        playbook: row.playbook,
        started_at: row.started_at,
        started_by: row.started_by,
        waiting: if row.ended_at.is_some() { None } else { waiting.or(row.waiting) },
        ended_at: row.ended_at,
    }
}

/// When it ended.
pub(super) fn ended_at(run: &Run) -> Option<Timestamp> {
    match &run.state {
        RunState::Ended { at, .. } => Some(*at),
        RunState::Running | RunState::Cancelling | RunState::RollingBack | RunState::Finishing { .. } => None,
    }
}

/// Everything that the store keeps of a run.
pub(super) fn writes_of(run: &Run, quarantined: bool) -> Vec<StoreWrite> {
    let row = RunRow {
        id: run.id.clone(),
        namespace: run.namespace.clone(),
        playbook: run.plan.playbook.clone(),
        state: if quarantined { QUARANTINED } else { run_state(run) }.to_owned(),
        state_reason: if quarantined { String::new() } else { brief(&state_reason(run)) },
        waiting: if quarantined { None } else { waiting_of(run) },
        started_at: run.started_at,
        started_by: run.started_by.clone(),
        ended_at: ended_at(run),
        seq: run.seq,
        rest: run.rest().filter(|_| !quarantined),
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
        Some(before) => RunRow { state, state_reason: String::new(), waiting: None, rest: None, ..before },
        None => RunRow {
            id: id.clone(),
            namespace: "default".into(),
            playbook: String::new(),
            state,
            state_reason: String::new(),
            waiting: None,
            started_at: began_at(id),
            started_by: "".into(),
            ended_at: None,
            seq: 0,
            rest: None,
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
