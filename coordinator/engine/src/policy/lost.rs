//! What happens to a step whose attempt has ended with an outcome that nobody knows.

use crate::plan::{ActionFacts, OnLost};

/// A look that was itself lost is tried again so often before a person is asked.
pub const MAX_LOST_LOOKS: u32 = 3;

/// A step whose attempts were lost so often is not done again without a person: something at it may end its agents.
pub const MAX_LOST_RUNS: u32 = 3;

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    /// Ask the action's own check.
    Probe,
    /// Do it again: a lost attempt counts as no failed one.
    RunAgain,
    /// Ask a person.
    Ask,
}

/// After a lost attempt of purpose `run`.
pub fn after_lost_run(on_lost: OnLost, facts: ActionFacts) -> AfterLoss {
    match on_lost {
        OnLost::Probe if facts.read_only => AfterLoss::RunAgain,
        OnLost::Probe if facts.checkable => AfterLoss::Probe,
        OnLost::Retry if facts.idempotent || facts.read_only => AfterLoss::RunAgain,
        OnLost::Probe | OnLost::Retry | OnLost::Ask => AfterLoss::Ask,
    }
}

/// After a probe that found the wanted state missing.
pub fn after_unsatisfied_probe(facts: ActionFacts) -> AfterLoss {
    if facts.idempotent || facts.read_only { AfterLoss::RunAgain } else { AfterLoss::Ask }
}
