//! Enums of the API as people read them: `STATE_ROLLING_BACK` is `rolling back`.

use muster_proto::v1;

use crate::printer::Tone;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident($type:ty) strips $prefix:literal;)+) => {$(
        $(#[$doc])*
        pub(crate) fn $name(value: $type) -> String {
            plain(value.as_str_name(), $prefix)
        }
    )+};
}

words! {
    /// What a run is doing.
    run_state(v1::run::State) strips "STATE_";
    /// Where a phase is.
    phase_state(v1::phase::State) strips "STATE_";
    /// Where a step is.
    step_state(v1::step::State) strips "STATE_";
    /// What an attempt is for.
    purpose(v1::attempt::Purpose) strips "PURPOSE_";
    /// Where an agent is.
    agent_state(v1::agent::State) strips "STATE_";
    /// What a coordinator does.
    coordinator_state(v1::coordinator::State) strips "STATE_";
    /// Where a milestone is.
    milestone_state(v1::milestone::State) strips "STATE_";
    /// A gate's judgement.
    verdict(v1::gate::Verdict) strips "VERDICT_";
    /// How urgent a phase is.
    priority(v1::Priority) strips "PRIORITY_";
    /// What a token allows.
    role(v1::Role) strips "ROLE_";
}

fn plain(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase().replace('_', " ")
}

/// The colour of a run's state.
pub(crate) fn run_tone(state: v1::run::State) -> Tone {
    use v1::run::State;
    match state {
        State::Succeeded => Tone::Good,
        State::Waiting | State::Paused | State::Cancelling | State::RollingBack | State::Finishing => Tone::Warn,
        State::Failed | State::Cancelled | State::Quarantined => Tone::Bad,
        State::Unspecified | State::Running => Tone::Plain,
    }
}

/// The colour of a step's state.
pub(crate) fn step_tone(state: v1::step::State) -> Tone {
    use v1::step::State;
    match state {
        State::Succeeded => Tone::Good,
        State::Asking | State::Undone => Tone::Warn,
        State::Failed => Tone::Bad,
        State::Pending | State::Skipped | State::Cancelled => Tone::Faint,
        State::Unspecified | State::Queued | State::Active | State::Waiting => Tone::Plain,
    }
}

/// The colour of a milestone's state.
pub(crate) fn milestone_tone(state: v1::milestone::State) -> Tone {
    use v1::milestone::State;
    match state {
        State::Reached => Tone::Good,
        State::AtRisk | State::ReachedLate => Tone::Warn,
        State::Missed => Tone::Bad,
        State::Unspecified | State::Pending | State::Skipped => Tone::Plain,
    }
}

/// Whether a run is over.
pub(crate) fn has_ended(state: v1::run::State) -> bool {
    use v1::run::State;
    match state {
        State::Succeeded | State::Failed | State::Cancelled => true,
        State::Unspecified
        | State::Running
        | State::Waiting
        | State::Paused
        | State::Cancelling
        | State::RollingBack
        | State::Finishing
        | State::Quarantined => false,
    }
}

/// Whether a run goes on only when a person does something.
pub(crate) fn needs_person(state: v1::run::State) -> bool {
    use v1::run::State;
    matches!(state, State::Waiting | State::Paused | State::Quarantined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_are_words() {
        assert_eq!(run_state(v1::run::State::RollingBack), "rolling back");
        assert_eq!(milestone_state(v1::milestone::State::AtRisk), "at risk");
        assert_eq!(priority(v1::Priority::Critical), "critical");
    }
}
