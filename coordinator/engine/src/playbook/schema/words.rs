//! What the words of the grammar are called in a plan.

use super::{OnCancel, OnFailure, OnLost, Priority};
use crate::plan;

impl From<Priority> for plan::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Critical => Self::Critical,
            Priority::High => Self::High,
            Priority::Medium => Self::Medium,
            Priority::Low => Self::Low,
        }
    }
}

impl From<OnCancel> for plan::OnCancel {
    fn from(on_cancel: OnCancel) -> Self {
        match on_cancel {
            OnCancel::Keep => Self::Keep,
            OnCancel::Undo => Self::Undo,
        }
    }
}

impl From<OnLost> for plan::OnLost {
    fn from(on_lost: OnLost) -> Self {
        match on_lost {
            OnLost::Probe => Self::Probe,
            OnLost::Retry => Self::Retry,
            OnLost::Ask => Self::Ask,
        }
    }
}

impl From<OnFailure> for plan::OnFailure {
    fn from(on_failure: OnFailure) -> Self {
        match on_failure {
            OnFailure::Undo => Self::Undo,
            OnFailure::Pause => Self::Pause,
            OnFailure::Continue => Self::Continue,
        }
    }
}
