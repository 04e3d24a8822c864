//! The one placement table: which instance takes which queued step.
//!
//! First come, first served per role; urgent phases before others; between runs of one urgency in turns, so that a run
//! with a hundred ready steps does not keep out one with a single step. A slot that becomes free is reserved for the first
//! waiter that fits at once, and that run is poked; so whoever finds a free slot takes it from nobody.
//!
//! The table is memory: after a restart it is filled again from the attempts of the replayed runs and from registrations.

mod why_not;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use muster_bus::message::AttemptKey;
use muster_engine::{
    ids::{ActionName, AgentName, HostLabel, InstanceId, Namespace},
    plan::{AgentSelector, PinnedAction, Priority},
    run::Place,
};

use crate::driver::entry::RunEntry;

/// A place at an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Which agent.
    pub(crate) agent: AgentName,
    /// Which process of it.
    pub(crate) instance: InstanceId,
    /// Where that works.
    pub(crate) host: Option<HostLabel>,
}

/// What a queued step asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) selector: Arc<AgentSelector>,
    /// The only host where it may go.
    pub(crate) host: Option<HostLabel>,
    pub(crate) excluded: BTreeSet<InstanceId>,
    pub(crate) action: Arc<PinnedAction>,
    pub(crate) priority: Priority,
}

impl Wish {
    /// What the engine asks for.
    pub(crate) fn of(place: Place) -> Self {
        let Place { action, selector, host, excluded, priority, .. } = place;
        Self { selector, host, excluded, action, priority }
    }
}

/// What placement knows of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) agent: AgentName,
    pub(crate) namespace: Namespace,
    pub(crate) role: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) host: HostLabel,
    pub(crate) slots: u32,
    /// Versions by action.
    pub(crate) actions: BTreeMap<ActionName, String>,
}

/// Whether an instance may be given something new, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Availability {
    /// It may.
    Open,
    /// Known from the journal; it has not registered since the coordinator started.
    Away,
    /// No beat for a while.
    Suspect,
    /// No beat for so long that its lease is over.
    Lost,
    /// It takes nothing new.
    Draining,
    /// It has said that it ends.
    Ended,
    /// Another process has its agent's name, or it is proven dead.
    Replaced,
}

/// A step of a run, by the run's key in memory and the step's index.
pub(crate) type StepKey = (u64, usize);

type RoleKey = (Namespace, String);

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    instances: HashMap<InstanceId, Instance>,
    roles: HashMap<RoleKey, Role>,
    seats: HashMap<StepKey, InstanceId>,
    waiters: HashMap<StepKey, RoleKey>,
    /// No seat is given.
    held: bool,
}

struct Instance {
    offer: Option<Offer>,
    availability: Availability,
    held: HashMap<StepKey, Arc<RunEntry>>,
    /// Attempts of runs that have ended without them, and whether the process is to stop them: each takes a slot of it all the same,
    /// until it no longer holds it.
    left: BTreeMap<AttemptKey, bool>,
}

#[derive(Default)]
struct Role {
    instances: Vec<InstanceId>,
    cursor: usize,
    waiting: BTreeMap<Ticket, Waiter>,
    tickets: HashMap<StepKey, Ticket>,
    round: u64,
    arrivals: u64,
    next_round_of_run: HashMap<u64, u64>,
}

type Ticket = (Priority, u64, u64);

struct Waiter {
    run: Arc<RunEntry>,
    step: usize,
    wish: Wish,
}

impl Table {
    /// A seat for a step, reserved until [`Table::release`]; or none, and then the run is poked once a seat is reserved
    /// for it. Asking again changes nothing but the wish.
    pub(crate) fn place(&mut self, run: &Arc<RunEntry>, step: usize, wish: Wish) -> Option<Seat> {
        let key = (run.key, step);
        if let Some(id) = self.seats.get(&key) {
            let instance = &self.instances[id];
            if instance.fits(id, &wish).is_ok() {
                return instance.seat(id);
            }
            self.release(run, step);
        }
        let role_key = (run.namespace.clone(), wish.selector.role.clone());
        let role = self.roles.entry(role_key.clone()).or_default();
        let count = if self.held { 0 } else { role.instances.len() };
        for offset in 0..count {
            let at = (role.cursor + offset) % count;
            let id = role.instances[at].clone();
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            if !instance.has_room() || instance.fits(&id, &wish).is_err() {
                continue;
            }
            role.cursor = at + 1;
            role.leave(key);
            self.waiters.remove(&key);
            instance.held.insert(key, Arc::clone(run));
            let seat = instance.seat(&id);
            self.seats.insert(key, id);
            return seat;
        }
        role.wait(key, run, wish);
        self.waiters.insert(key, role_key);
        None
    }

    /// The step needs its seat, or its place in the queue, no longer.
    pub(crate) fn release(&mut self, run: &RunEntry, step: usize) {
        let key = (run.key, step);
        if let Some(id) = self.seats.remove(&key) {
            let Some(instance) = self.instances.get_mut(&id) else { return };
            instance.held.remove(&key);
            if instance.held.is_empty() && instance.offer.is_none() {
                self.instances.remove(&id);
            } else {
                self.grant(&id);
            }
        } else if let Some(role) = self.waiters.remove(&key).and_then(|role| self.roles.get_mut(&role)) {
            role.leave(key);
        }
    }

    /// Give no seat, reserve none; or again, to those first who wait the longest.
    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
        let ids: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for id in &ids {
            self.grant(id);
        }
    }

    /// As [`Table::release`], for an attempt that may still run though its run has ended: the slot is taken until the instance says
    /// that it no longer holds the attempt. To give it to another step would only be answered with `busy`. `told`: until then it is told
    /// to stop it.
    pub(crate) fn leave_behind(&mut self, run: &RunEntry, step: usize, attempt: AttemptKey, told: bool) {
        let at = self.seats.get(&(run.key, step)).and_then(|id| self.instances.get_mut(id));
        if let Some(instance) = at.filter(|instance| instance.offer.is_some()) {
            instance.left.insert(attempt, told);
        }
        self.release(run, step);
    }

    /// What an instance that registers holds of runs that have nothing there: it is left of runs that have ended.
    pub(crate) fn registers_with(&mut self, id: &InstanceId, holds: &[AttemptKey]) {
        let instance = self.instances.entry(id.clone()).or_insert_with(Instance::unknown);
        let open: HashSet<&str> = instance.held.values().map(|run| run.id.as_str()).collect();
        let left = holds.iter().filter(|attempt| !open.contains(attempt.run.as_str()));
        let stops = |attempt: &AttemptKey| instance.left.get(attempt).copied().unwrap_or_default();
        instance.left = left.map(|attempt| (attempt.clone(), stops(attempt))).collect();
    }

    /// What an instance says that it holds; `left`: what of that is of runs that have ended, and whether it is to stop it.
    pub(crate) fn says_it_holds(
        &mut self,
        id: &InstanceId,
        holds: &HashSet<AttemptKey>,
        left: Vec<(AttemptKey, bool)>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let had = instance.left.len();
        instance.left.retain(|attempt, _| holds.contains(attempt));
        let let_go = instance.left.len() < had;
        instance.left.extend(left);
        if let_go {
            self.grant(id);
        }
    }

    /// An instance has reported the end of what a run had left there.
    pub(crate) fn let_go(&mut self, id: &InstanceId, attempt: &AttemptKey) {
        if self.instances.get_mut(id).is_some_and(|instance| instance.left.remove(attempt).is_some()) {
            self.grant(id);
        }
    }

    /// What runs that have ended have left at an instance, to be stopped.
    pub(crate) fn left_to_stop(&self, id: &InstanceId) -> impl Iterator<Item = &AttemptKey> {
        let left = self.instances.get(id).into_iter().flat_map(|instance| &instance.left);
        left.filter(|(_, told)| **told).map(|(attempt, _)| attempt)
    }

    /// A replayed attempt is at an instance, known or not.
    pub(crate) fn occupy(&mut self, run: &Arc<RunEntry>, step: usize, at: &InstanceId) {
        let key = (run.key, step);
        if self.seats.insert(key, at.clone()).is_some_and(|old| old != *at) {
            for instance in self.instances.values_mut() {
                instance.held.remove(&key);
            }
        }
        let instance = self.instances.entry(at.clone()).or_insert_with(Instance::unknown);
        instance.held.insert(key, Arc::clone(run));
    }

    /// An instance is there, or is there with other offers, or may (no longer) be given something new.
    pub(crate) fn set(&mut self, id: &InstanceId, offer: Offer, availability: Availability) {
        let role_key = (offer.namespace.clone(), offer.role.clone());
        let instance = self.instances.entry(id.clone()).or_insert_with(Instance::unknown);
        let old_role = instance.offer.as_ref().map(|o| (o.namespace.clone(), o.role.clone()));
        instance.offer = Some(offer);
        instance.availability = availability;
        if old_role.as_ref() != Some(&role_key) {
            if let Some(role) = old_role.and_then(|key| self.roles.get_mut(&key)) {
                role.instances.retain(|i| i != id);
            }
            self.roles.entry(role_key).or_default().instances.push(id.clone());
        }
        self.grant(id);
    }

    /// Whether an instance may be given something new has changed.
    pub(crate) fn set_availability(&mut self, id: &InstanceId, availability: Availability) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.availability = availability;
        if availability == Availability::Replaced {
            instance.left.clear();
            if let Some(offer) = instance.offer.take()
                && let Some(role) = self.roles.get_mut(&(offer.namespace, offer.role))
            {
                role.instances.retain(|i| i != id);
            }
            if self.instances.get(id).is_some_and(|i| i.held.is_empty()) {
                self.instances.remove(id);
            }
        } else {
            self.grant(id);
        }
    }

    /// The runs that have attempts, or seats reserved for one, at an instance.
    pub(crate) fn runs_at(&self, id: &InstanceId) -> Vec<Arc<RunEntry>> {
        let held = self.instances.get(id).map(|i| &i.held);
        let by_key: BTreeMap<u64, &Arc<RunEntry>> = held.into_iter().flatten().map(|(k, run)| (k.0, run)).collect();
        by_key.into_values().map(Arc::clone).collect()
    }

    /// How many slots of an instance are taken, seats reserved for an attempt included, and how many of them by attempts of runs that have
    /// ended without them.
    pub(crate) fn busy(&self, id: &InstanceId) -> (u32, u32) {
        let Some(instance) = self.instances.get(id) else { return (0, 0) };
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (number(instance.taken()), number(instance.left.len()))
    }

    /// Whether an instance holds an attempt of a run that has ended without it, as far as it has said.
    pub(crate) fn is_left(&self, id: &InstanceId, attempt: &AttemptKey) -> bool {
        self.instances.get(id).is_some_and(|instance| instance.left.contains_key(attempt))
    }

    /// How many steps wait for a seat.
    pub(crate) fn waiting(&self) -> usize {
        self.roles.values().map(|r| r.waiting.len()).sum()
    }

    /// Reserve the free slots of an instance for those who wait for them, and poke their runs.
    fn grant(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if self.held || instance.availability != Availability::Open || !instance.has_room() {
            return;
        }
        let Some(offer) = &instance.offer else { return };
        let Some(role) = self.roles.get_mut(&(offer.namespace.clone(), offer.role.clone())) else { return };
        if role.waiting.is_empty() {
            return;
        }
        let room = (instance.slots() as usize).saturating_sub(instance.taken());
        let fitting: Vec<Ticket> = role
            .waiting
            .iter()
            .filter(|(_, w)| instance.fits(id, &w.wish).is_ok())
            .take(room)
            .map(|(t, _)| *t)
            .collect();
        for ticket in fitting {
            let Some(waiter) = role.waiting.remove(&ticket) else { continue };
            let key = (waiter.run.key, waiter.step);
            role.tickets.remove(&key);
            self.waiters.remove(&key);
            role.round = role.round.max(ticket.1);
            instance.held.insert(key, Arc::clone(&waiter.run));
            self.seats.insert(key, id.clone());
            waiter.run.seat_reserved();
        }
        if role.waiting.is_empty() {
            role.next_round_of_run.clear();
        }
    }
}

impl Instance {
    fn unknown() -> Self {
        Self { offer: None, availability: Availability::Away, held: HashMap::new(), left: BTreeMap::new() }
    }

    fn slots(&self) -> u32 {
        self.offer.as_ref().map_or(0, |o| o.slots)
    }

    fn has_room(&self) -> bool {
        self.taken() < self.slots() as usize
    }

    fn taken(&self) -> usize {
        self.held.len() + self.left.len()
    }

    fn seat(&self, id: &InstanceId) -> Option<Seat> {
        let offer = self.offer.as_ref()?;
        Some(Seat { agent: offer.agent.clone(), instance: id.clone(), host: Some(offer.host.clone()) })
    }

    /// Whether it may be given the step, slots aside.
    fn fits(&self, id: &InstanceId, wish: &Wish) -> Result<(), Misfit> {
        self.misfits(id, wish).next().map_or(Ok(()), Err)
    }

    /// Everything that keeps the step from it, slots aside.
    fn misfits<'a>(&'a self, id: &'a InstanceId, wish: &'a Wish) -> impl Iterator<Item = Misfit> + 'a {
        let checks: [Check; 5] = [
            |at, _, _| match at.availability {
                Availability::Open if at.offer.is_none() => Some(Misfit::Not(Availability::Away)),
                Availability::Open => None,
                other @ (Availability::Away
                | Availability::Suspect
                | Availability::Lost
                | Availability::Draining
                | Availability::Ended
                | Availability::Replaced) => Some(Misfit::Not(other)),
            },
            |_, id, wish| wish.excluded.contains(id).then_some(Misfit::Refused),
            |at, _, wish| {
                let (wanted, offer) = (wish.host.as_ref()?, at.offer.as_ref()?);
                (*wanted != offer.host).then_some(Misfit::Host)
            },
            |at, _, wish| {
                let offer = at.offer.as_ref()?;
                let differs = wish.selector.labels.iter().any(|(k, v)| offer.labels.get(k) != Some(v));
                differs.then_some(Misfit::Labels)
            },
            |at, _, wish| match at.offer.as_ref()?.actions.get(&wish.action.name) {
                None => Some(Misfit::Action),
                Some(version) if can_stand_for(version, &wish.action.version) => None,
                Some(_) => Some(Misfit::Version),
            },
        ];
        checks.into_iter().filter_map(move |check| check(self, id, wish))
    }
}

/// Whether an action of the offered version does what the planned one promised: the same version, or a newer one that is
/// compatible in the sense of semantic versioning.
fn can_stand_for(offered: &str, planned: &str) -> bool {
    let parts = |version: &str| -> Option<[u64; 3]> {
        // What stands behind a plus says how it was built, and counts for nothing.
        let version = version.split('+').next().unwrap_or(version);
        let parts: Option<Vec<u64>> = version.split('.').map(|part| part.parse().ok()).collect();
        parts?.try_into().ok()
    };
    match (parts(offered), parts(planned)) {
        (Some(offered), Some(planned)) => {
            // 0.3 promises nothing to who knows 0.2.
            let same = if planned[0] == 0 { 2 } else { 1 };
            offered[..same] == planned[..same] && offered >= planned
        }
        _ => offered == planned,
    }
}

/// Whether one thing keeps a step from an instance.
type Check = fn(&Instance, &InstanceId, &Wish) -> Option<Misfit>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    Not(Availability),
    Refused,
    Host,
    Labels,
    Action,
    Version,
}

impl Role {
    fn leave(&mut self, key: StepKey) {
        if let Some(ticket) = self.tickets.remove(&key) {
            self.waiting.remove(&ticket);
        }
    }

    fn wait(&mut self, key: StepKey, run: &Arc<RunEntry>, wish: Wish) {
        if let Some(ticket) = self.tickets.get(&key) {
            if let Some(waiter) = self.waiting.get_mut(ticket) {
                waiter.wish = wish;
            }
            return;
        }
        let next = self.next_round_of_run.entry(key.0).or_insert(0);
        let round = (*next).max(self.round);
        *next = round + 1;
        self.arrivals += 1;
        let ticket = (wish.priority, round, self.arrivals);
        self.tickets.insert(key, ticket);
        self.waiting.insert(ticket, Waiter { run: Arc::clone(run), step: key.1, wish });
    }
}
