//! What a run waits for: what its state says, and what only placement knows.

use jiff::Timestamp;
use muster_engine::run::{Outstanding, Waiting, WaitingSubject, WaitsOn, event::Subject};
use tracing::warn;

use super::{Shared, entry::RunEntry, errors, rows::most_urgent, run_task::RunTask};
use crate::{
    control::{Explanation, MostUrgent},
    registry::placement::Wish,
    store::RunRow,
};

/// How it goes on while NATS can't be reached, and while the coordinator drains.
const CUT_OFF_HINT: &str = "start nats-server again, or mend the network between";
const DRAIN_HINT: &str = "muster coordinator resume";

impl Shared {
    /// Everything of a run that waits. What the run itself asks of a person comes first: that is answered even while NATS can't be
    /// reached, or the coordinator drains.
    pub(super) fn explain(&self, entry: &RunEntry) -> Vec<Explanation> {
        let (mut all, held) = self.explain_itself(entry);
        let held = self.outage.since().filter(|_| !all.is_empty()).map(Self::cut_off).or(held);
        let asked = all.iter().take_while(|one| one.on == WaitsOn::Person).count();
        all.splice(asked..asked, held);
        all
    }

    /// What lists say.
    pub(super) fn most_urgent(&self, entry: &RunEntry) -> Option<MostUrgent> {
        most_urgent(self.explain(entry))
    }

    /// What holds every run that waits for anything.
    fn cut_off(since: Timestamp) -> Explanation {
        Explanation {
            subject: "run".to_owned(),
            waits_for: "NATS, which can't be reached".to_owned(),
            on_whom: "whoever operates NATS".to_owned(),
            on: WaitsOn::Person,
            since,
            next_action:
                "it is tried again by itself; until then nothing is given out, and no clock of an attempt runs out"
                    .to_owned(),
            next_at: None,
            hint: CUT_OFF_HINT.to_owned(),
        }
    }

    /// What the run waits for, and the drain that holds it.
    fn explain_itself(&self, entry: &RunEntry) -> (Vec<Explanation>, Option<Explanation>) {
        let view = entry.view();
        let now = self.clock.now();
        if let Some(why) = view.quarantine {
            let (since, remind_at) = self.quarantine.times(&entry.id).unzip();
            let last = view.run.as_ref().map_or(now, |run| run.updated_at);
            let quarantine = Explanation {
                subject: "run".to_owned(),
                waits_for: format!("its records to be whole: {why}"),
                on_whom: "whoever operates this coordinator".to_owned(),
                on: WaitsOn::Person,
                since: since.unwrap_or(last),
                next_action: "the run is left as it is; the log names it again".to_owned(),
                next_at: remind_at,
                hint: errors::QUARANTINE_HINT.to_owned(),
            };
            return (vec![quarantine], None);
        }
        let Some(run) = view.run else { return (Vec::new(), None) };
        let mut reasons = Vec::new();
        let drain = self.drain.now();
        for one in run.outstanding(now) {
            if let Outstanding::Place(place) = one {
                let step = place.step.clone();
                let (why, hint) = match (self.outage.since(), &drain) {
                    (Some(_), _) => ("NATS can't be reached".to_owned(), Some(CUT_OFF_HINT)),
                    (None, Some(drain)) => (drain.why(), Some(DRAIN_HINT)),
                    (None, None) => (self.registry.why_not(&run.namespace, &Wish::of(place)), None),
                };
                reasons.push((step, why, hint));
            }
        }
        let drained = drain.filter(|_| !reasons.is_empty()).map(|drain| Explanation {
            subject: "run".to_owned(),
            waits_for: format!("its coordinator, which {} is draining", drain.by),
            on_whom: drain.by.to_string(),
            on: WaitsOn::Person,
            since: drain.since,
            next_action: "nothing new is given out until somebody ends that, or the coordinator is started again"
                .to_owned(),
            next_at: None,
            hint: DRAIN_HINT.to_owned(),
        });
        let waiting = run.explain(now).into_iter().map(|w| {
            let reason = match &w.subject {
                WaitingSubject::Step(step) => reasons.iter().find(|(of, _, _)| of == step),
                WaitingSubject::Run | WaitingSubject::Milestone(_) | WaitingSubject::Gate(_) => None,
            };
            let mut explained = Explanation::from(w);
            if let Some((_, why, hint)) = reason {
                explained.waits_for = format!("{}: {why}", explained.waits_for);
                explained.hint = hint.map_or(explained.hint, str::to_owned);
            }
            explained
        });
        (waiting.collect(), drained)
    }

    /// On what kind of party a listed run waits most urgently.
    pub(super) fn waits_on(&self, row: &RunRow) -> Option<WaitsOn> {
        if row.ended_at.is_some() {
            return None;
        }
        let Some(entry) = self.runs.get(&row.id) else { return row.waiting.as_ref().map(|waiting| waiting.on) };
        let view = entry.view();
        if view.quarantine.is_some() || self.outage.since().is_some() {
            return Some(WaitsOn::Person);
        }
        let run = view.run?;
        if self.is_held_by_drain(&run) {
            return Some(WaitsOn::Person);
        }
        run.explain(self.clock.now()).into_iter().map(|one| one.on).min()
    }
}

impl RunTask {
    /// The owner is told by the log: whoever watches it sees what waits, again and again.
    pub(super) fn remind(&self, subject: &Subject, now: Timestamp) {
        let is_meant = |waiting: &Waiting| match (subject, &waiting.subject) {
            (Subject::Step { step }, WaitingSubject::Step(of)) => step == of,
            (Subject::Run, WaitingSubject::Run | WaitingSubject::Gate(_)) => true,
            (Subject::Step { .. } | Subject::Run, _) => false,
        };
        let Some(waiting) = self.run.explain(now).into_iter().find(is_meant) else { return };
        let Waiting { subject, waits_for, on_whom, since, hint, .. } = waiting;
        warn!(run_id = %self.entry.id, owner = self.run.plan.owner, %since, "{subject} waits for {waits_for} (on {on_whom}): {hint}");
    }
}
