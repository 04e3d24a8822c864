//! The variants of the state machine's types, by name. One that is new breaks the build here, and once it is listed, the tests
//! of the tables and of the search fail until they have it, too.

use std::collections::BTreeSet;

use muster_engine::run::{
    Command, Event, Resolution, Verdict,
    event::{
        AttemptEnd, EndedBy, FailureKind, GateVerdict, NotStarted, Outcome, PhaseOutcome, Purpose, QuestionKind,
        RunOutcome, StepNext,
    },
    state::{MilestoneState, PhaseState, RunState, StepState},
};

/// A type whose variants are all listed.
pub trait Variants {
    /// The names of all of them.
    const ALL: &'static [&'static str];

    /// The name of this one.
    fn variant(&self) -> &'static str;

    /// The place of this one among them.
    fn place(&self) -> u8;
}

macro_rules! variants {
    ($($type:ident: $($variant:ident)+;)+) => {
        $(impl Variants for $type {
            const ALL: &'static [&'static str] = &[$(stringify!($variant)),+];

            fn variant(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => stringify!($variant),)+
                }
            }

            fn place(&self) -> u8 {
                enum Place { $($variant),+ }
                match self {
                    $(Self::$variant { .. } => Place::$variant as u8,)+
                }
            }
        })+
    };
}

variants! {
    Event: RunStarted PhaseStarted StepMoved StepResolved AttemptAssigned AttemptPrepared StatusReported AttemptLost
        AttemptFound AttemptExtended AttemptEnded ReportArrivedStale OwnerReminded GateJudged SignalReceived
        QueueClocksRestarted WallClockMoved PhaseEnded MilestoneAtRisk MilestoneMissed MilestoneReached RunPaused RecordsLost
        RunResumed CancelRequested RollbackRequested RollbackStarted FinishStarted RunEnded;
    Command: Assign Prepare Finish ReportStatus Deny LoseInstance FindInstance BuryInstance RestartClocks RestartQueueClocks
        FollowWallClock Tick Cancel Pause AcceptLoss Resume Signal RetryStep ResolveStep;
    Verdict: New Repeated Stale Conflict Unknown;
    StepNext: Queued Asking Waiting Succeeded Failed Skipped Cancelled Undone;
    StepState: Pending Queued Active Waiting Asking Succeeded Failed Skipped Cancelled Undone;
    RunState: Running Cancelling RollingBack Finishing Ended;
    PhaseState: Pending Active Ended;
    MilestoneState: Pending AtRisk Missed Reached ReachedLate Skipped;
    Purpose: Run Probe Verify Undo;
    QuestionKind: Failed NeedsPerson MayHaveRun UndoFailed;
    AttemptEnd: Finished NotStarted Unknown;
    NotStarted: Busy Draining Refused Denied Unsent;
    EndedBy: InstanceGone Clock Superseded Person;
    Outcome: Succeeded NotSatisfied Failed Cancelled;
    FailureKind: Retry Permanent NeedsPerson;
    Resolution: Succeeded Failed Retry Skip;
    GateVerdict: Passed Failed Inconclusive;
    PhaseOutcome: Completed Skipped Failed;
    RunOutcome: Succeeded Failed Cancelled;
}

/// Every variant has to be among these.
pub fn assert_all<T: Variants>(what: &str, found: impl IntoIterator<Item = T>) {
    let found: BTreeSet<_> = found.into_iter().map(|one| one.variant()).collect();
    let missing: Vec<_> = T::ALL.iter().filter(|name| !found.contains(**name)).collect();
    assert!(missing.is_empty(), "{what} has no {missing:?}");
}
