//! What lists, and the next start, are told of a run: not of each turn, since most change nothing of it.

use muster_engine::run::{Rest, Run, Touched};

use super::{rows::waiting_of, run_task::RunTask};
use crate::control::{MostUrgent, run_state, state_reason};

/// What lists and the next start are told of a run, besides its phases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// The word for its state.
    state: &'static str,
    /// See [`Run::rest`].
    rest: Option<Rest>,
}

impl Listed {
    pub(super) fn of(run: &Run) -> Self {
        Self { state: run_state(run), rest: run.rest() }
    }
}

/// What lists say of a run in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Why {
    reason: String,
    waiting: Option<MostUrgent>,
}

impl Why {
    pub(super) fn of(run: &Run) -> Self {
        Self { reason: state_reason(run), waiting: waiting_of(run) }
    }
}

impl RunTask {
    /// Most turns change nothing that a list says.
    pub(super) fn note_for_lists(&mut self, touched: &Touched) {
        let listed = Listed::of(&self.run);
        if listed != self.listed || !touched.phases.is_empty() {
            self.listed = listed;
            self.listed_why = Why::of(&self.run);
            self.shared.projector.changed(&self.entry, &self.run);
        }
    }

    /// The run is another one than the one that lists were told of.
    pub(super) fn note_all_for_lists(&mut self) {
        self.listed = Listed::of(&self.run);
        self.listed_why = Why::of(&self.run);
        self.shared.projector.changed(&self.entry, &self.run);
    }

    /// What a list says of a run that is not in memory is what it was told.
    pub(super) fn note_why(&mut self) {
        let why = Why::of(&self.run);
        if why != self.listed_why {
            self.listed_why = why;
            self.shared.projector.changed(&self.entry, &self.run);
        }
    }
}
