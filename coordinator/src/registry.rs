//! Which agents and instances there are, what they can do, what they hold, and whether they answer.
//!
//! What has to survive a restart is journalled ([`records`]); leases, holds and placement are memory, and are filled again
//! by the registrations that follow a restart. Nothing here does I/O: callers journal first and tell afterwards.

mod leave;
mod limits;
mod orders;
pub(crate) mod placement;
pub(crate) mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use muster_bus::message::{ActionOffer, AttemptKey, Beat, Order, Register};
use muster_engine::ids::{AgentName, InstanceId, Namespace, RunId};

use self::{
    orders::orders_of,
    placement::{Availability, Offer, Seat, Table, Wish},
    records::{AgentRecord, Profile},
};
use crate::{control::AgentView, driver::entry::RunEntry};

/// How long an instance may be silent, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    /// Without a beat for this long nothing new is given to it.
    pub(crate) suspect_after_ms: u64,
    /// Without a beat for this long its lease is over.
    pub(crate) lost_after_ms: u64,
}

/// See the module. One lock: everything under it is short and none of it waits.
pub(crate) struct Registry {
    leases: Leases,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts changes of what agents offer.
    generation: u64,
    agents: BTreeMap<(Namespace, AgentName), Agent>,
    table: Table,
    orders: HashMap<InstanceId, BTreeSet<AttemptKey>>,
}

struct Agent {
    record: AgentRecord,
    lease: Lease,
    /// None: not heard since the coordinator started.
    last_beat_at: Option<Timestamp>,
    /// Its silence counts from here: the last beat, or the end of a time in which nobody could be heard.
    lease_from: Timestamp,
    /// Its process said that it takes nothing new.
    leaving: bool,
    goodbye: Goodbye,
    holds: HashSet<AttemptKey>,
    /// It takes tasks in the answers to its reports.
    tasks_in_answers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// Not registered since the coordinator started.
    Away,
    Alive,
    Suspect,
    Lost,
    /// It has said that it ends, and that is journalled.
    Ended,
}

/// Whether a process has said its last word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    No,
    Said,
    /// It is on its way into the journal.
    Noted,
}

/// What a registration comes to.
pub(crate) enum Admission {
    /// Not like this.
    Refused(String),
    /// Another process of the agent still answers.
    InUse(InstanceId),
    /// It is welcome; when there is something new, that has to be journalled at this sequence number first.
    Welcome {
        /// None: the journal says the same already.
        journal: Option<(u64, Profile)>,
    },
}

/// Whether an agent can be forgotten.
pub(crate) enum Forgettable {
    /// It answers, or may do so yet.
    Answers,
    /// These runs wait for what it holds.
    MayBeAtWork(Vec<RunId>),
    /// This process of it will not come back.
    Yes {
        /// The last record of its stream.
        seq: u64,
        /// Which process.
        instance: InstanceId,
    },
}

/// Runs to be told of something about an instance.
pub(crate) type AtInstance = (InstanceId, Vec<Arc<RunEntry>>);

/// What an admitted registration changes for runs.
#[derive(Default)]
pub(crate) struct Admitted {
    /// The runs that have something at the instance.
    pub(crate) at_instance: Vec<Arc<RunEntry>>,
    /// Earlier instances that are proven dead, with the runs that have something there.
    pub(crate) buried: Vec<AtInstance>,
    /// The instance that this one has replaced without such proof.
    pub(crate) replaced: Option<AtInstance>,
}

/// What a beat comes to.
pub(crate) enum Pulse {
    /// This instance has to register (again).
    Unknown,
    /// Fine.
    Alive {
        /// What it shall do.
        orders: Vec<Order>,
        /// It was lost before; these runs have something there.
        found: Vec<Arc<RunEntry>>,
    },
}

impl Registry {
    pub(crate) fn new(leases: Leases) -> Self {
        Self { leases, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent that the journal knows; its lease starts now.
    pub(crate) fn restore(&self, namespace: Namespace, name: AgentName, record: AgentRecord, now: Timestamp) {
        let mut state = self.lock();
        let offer = offer_of(&namespace, &name, &record.profile);
        let instance = record.profile.instance.clone();
        let lease = if record.forgotten {
            Lease::Lost
        } else if record.ended {
            state.table.set(&instance, offer, Availability::Ended);
            Lease::Ended
        } else {
            state.table.set(&instance, offer, Availability::Away);
            Lease::Away
        };
        let (goodbye, holds) = (Goodbye::No, HashSet::new());
        let agent = Agent {
            record,
            lease,
            last_beat_at: None,
            lease_from: now,
            leaving: false,
            goodbye,
            holds,
            tasks_in_answers: false,
        };
        state.agents.insert((namespace, name), agent);
        state.generation += 1;
    }

    /// Another number whenever what agents offer may have changed.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Whether a process may register, and what has to be journalled first.
    pub(crate) fn consider(&self, namespace: &Namespace, register: &Register) -> Admission {
        let state = self.lock();
        let key = (namespace.clone(), AgentName::from(register.agent.as_str()));
        // Whoever was here before is never shut out by those that came after.
        let is_known = state.agents.get(&key).is_some_and(|agent| !agent.record.forgotten);
        let others = if is_known { 0 } else { state.agents.values().filter(|agent| !agent.record.forgotten).count() };
        if let Err(why) = limits::check(register, others) {
            return Admission::Refused(why);
        }
        let profile = Profile::of(register);
        let twin = state.agents.iter().find(|(key, agent)| {
            agent.record.profile.instance == profile.instance
                && (key.0 != *namespace || key.1.as_str() != register.agent)
        });
        if let Some(((_, name), _)) = twin {
            let why = format!("instance {} is one of agent {name}: make a new id at each start", profile.instance);
            return Admission::Refused(why);
        }
        let Some(agent) = state.agents.get(&key) else {
            return Admission::Welcome { journal: Some((0, profile)) };
        };
        let current = &agent.record.profile;
        if current.instance != profile.instance {
            let answers = matches!(agent.lease, Lease::Alive | Lease::Away);
            if answers && !proves_dead(register, current) {
                return Admission::InUse(current.instance.clone());
            }
        }
        let is_new = *current != profile || agent.record.forgotten || agent.record.ended;
        let journal = is_new.then_some((agent.record.seq, profile));
        Admission::Welcome { journal }
    }

    /// A registration that is welcome and journalled takes effect.
    pub(crate) fn admit(
        &self,
        namespace: &Namespace,
        register: &Register,
        seq: Option<u64>,
        now: Timestamp,
    ) -> Admitted {
        let mut guard = self.lock();
        let state = &mut *guard;
        let name: AgentName = register.agent.as_str().into();
        let profile = Profile::of(register);
        let instance = profile.instance.clone();
        let key = (namespace.clone(), name.clone());
        let before = state.agents.remove(&key);
        let had_ended = before.as_ref().is_some_and(|b| b.lease == Lease::Ended);
        let mut admitted = Admitted::default();
        if let Some(old) = before.as_ref().map(|b| &b.record.profile)
            && old.instance != instance
        {
            let at_old = (old.instance.clone(), state.table.runs_at(&old.instance));
            if !proves_dead(register, old) && !had_ended {
                admitted.replaced = Some(at_old);
            }
            state.table.set_availability(&old.instance, Availability::Replaced);
            state.orders.remove(&old.instance);
        }
        if register.durable {
            let dead = register.dead.iter().map(|d| InstanceId::from(d.as_str())).filter(|d| *d != instance);
            admitted.buried = dead.map(|d| (d.clone(), state.table.runs_at(&d))).collect();
        }
        let draining = before.as_ref().is_some_and(|b| b.record.draining && b.record.profile.instance == instance);
        if before.as_ref().is_none_or(|b| b.record.forgotten || b.record.profile.actions != profile.actions) {
            state.generation += 1;
        }
        let seq = seq.or_else(|| before.map(|b| b.record.seq)).unwrap_or(0);
        let offer = offer_of(namespace, &name, &profile);
        let availability = if draining { Availability::Draining } else { Availability::Open };
        state.table.registers_with(&instance, &register.holds);
        state.table.set(&instance, offer, availability);
        let agent = Agent {
            record: AgentRecord { seq, profile, draining, ended: false, forgotten: false },
            lease: Lease::Alive,
            last_beat_at: Some(now),
            lease_from: now,
            leaving: false,
            goodbye: Goodbye::No,
            holds: register.holds.iter().cloned().collect(),
            tasks_in_answers: register.tasks_in_answers,
        };
        state.agents.insert(key, agent);
        admitted.at_instance = state.table.runs_at(&instance);
        admitted
    }

    /// An instance lives. `left` is what it holds of runs that have ended, as [`Table::says_it_holds`] takes it.
    pub(crate) fn beat(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        beat: Beat,
        left: Vec<(AttemptKey, bool)>,
        now: Timestamp,
    ) -> Pulse {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(agent) = state.agents.get_mut(&(namespace.clone(), name.clone())) else { return Pulse::Unknown };
        let instance = agent.record.profile.instance.clone();
        let gone = agent.record.forgotten || agent.record.ended;
        if agent.lease == Lease::Away || gone || instance.as_str() != beat.instance {
            return Pulse::Unknown;
        }
        let was_lost = agent.lease == Lease::Lost;
        let leaving = beat.draining || beat.ending;
        let was_open = agent.lease == Lease::Alive && agent.leaving == leaving;
        (agent.last_beat_at, agent.lease_from) = (Some(now), now);
        agent.lease = Lease::Alive;
        agent.leaving = leaving;
        agent.goodbye = if beat.ending { Goodbye::Said } else { Goodbye::No };
        agent.holds = beat.holds.into_iter().collect();
        state.table.says_it_holds(&instance, &agent.holds, left);
        let draining = agent.record.draining;
        if !was_open {
            let closed = draining || leaving;
            let availability = if closed { Availability::Draining } else { Availability::Open };
            state.table.set_availability(&instance, availability);
        }
        let mut orders = orders_of(state, &instance);
        if draining {
            orders.push(Order::Drain);
        }
        let found = if was_lost { state.table.runs_at(&instance) } else { Vec::new() };
        Pulse::Alive { orders, found }
    }

    /// Look at all leases: who has been silent for too long. Gives the instances whose lease has just run out.
    pub(crate) fn sweep(&self, now: Timestamp) -> Vec<AtInstance> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut lost = Vec::new();
        for agent in state.agents.values_mut() {
            let silent_ms = ms_between(agent.lease_from, now);
            let instance = &agent.record.profile.instance;
            // Who has said goodbye is not lost, unless something may be at work there.
            let leaves = agent.goodbye != Goodbye::No && state.table.busy(instance).0 == 0;
            let may_be_lost = !matches!(agent.lease, Lease::Lost | Lease::Ended) && !leaves;
            if may_be_lost && silent_ms >= self.leases.lost_after_ms {
                agent.lease = Lease::Lost;
                state.table.set_availability(instance, Availability::Lost);
                lost.push((instance.clone(), state.table.runs_at(instance)));
            } else if agent.lease == Lease::Alive && !leaves && silent_ms >= self.leases.suspect_after_ms {
                agent.lease = Lease::Suspect;
                state.table.set_availability(instance, Availability::Suspect);
            }
        }
        lost
    }

    /// All leases start again: it was we who could not hear. Who has not been heard for long is suspect all the same.
    pub(crate) fn restart_leases(&self, now: Timestamp) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for agent in state.agents.values_mut() {
            agent.lease_from = now;
            let silent_ms = agent.last_beat_at.map_or(0, |at| ms_between(at, now));
            if agent.lease == Lease::Alive && silent_ms >= self.leases.suspect_after_ms {
                agent.lease = Lease::Suspect;
                state.table.set_availability(&agent.record.profile.instance, Availability::Suspect);
            }
        }
    }

    /// Which process an agent is to be drained of, and the sequence number to journal that at; none: no such agent.
    pub(crate) fn drain_at(&self, namespace: &Namespace, name: &AgentName) -> Option<(u64, InstanceId, bool)> {
        let state = self.lock();
        let agent = state.agents.get(&(namespace.clone(), name.clone()));
        let record = &agent.filter(|agent| !agent.record.forgotten)?.record;
        Some((record.seq, record.profile.instance.clone(), record.draining))
    }

    /// A journalled drain takes effect.
    pub(crate) fn drain(&self, namespace: &Namespace, name: &AgentName, seq: u64) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(agent) = state.agents.get_mut(&(namespace.clone(), name.clone())) else { return };
        agent.record.draining = true;
        agent.record.seq = seq;
        if agent.lease == Lease::Alive {
            state.table.set_availability(&agent.record.profile.instance, Availability::Draining);
        }
    }

    /// Which process an agent is to be forgotten with, and the sequence number to journal that at; none: no such agent.
    pub(crate) fn forget_at(&self, namespace: &Namespace, name: &AgentName) -> Option<Forgettable> {
        let state = self.lock();
        let agent = state.agents.get(&(namespace.clone(), name.clone())).filter(|agent| !agent.record.forgotten)?;
        let (seq, instance) = (agent.record.seq, agent.record.profile.instance.clone());
        if !matches!(agent.lease, Lease::Lost | Lease::Ended) {
            return Some(Forgettable::Answers);
        }
        // Attempts of runs that have ended are waited for by nobody.
        let runs = state.table.runs_at(&instance);
        Some(if runs.is_empty() {
            Forgettable::Yes { seq, instance }
        } else {
            Forgettable::MayBeAtWork(runs.iter().map(|run| run.id.clone()).collect())
        })
    }

    /// That an agent is forgotten is journalled, and takes effect.
    pub(crate) fn forget(&self, namespace: &Namespace, name: &AgentName, seq: u64) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(agent) = state.agents.get_mut(&(namespace.clone(), name.clone())) else { return };
        (agent.record.forgotten, agent.record.seq) = (true, seq);
        state.table.set_availability(&agent.record.profile.instance, Availability::Replaced);
        state.generation += 1;
    }

    /// Whether an instance that answers says that it holds an attempt.
    pub(crate) fn says_it_holds(
        &self,
        namespace: &Namespace,
        name: &AgentName,
        instance: &InstanceId,
        key: &AttemptKey,
    ) -> bool {
        let state = self.lock();
        let Some(agent) = state.agents.get(&(namespace.clone(), name.clone())) else { return false };
        agent.record.profile.instance == *instance && agent.lease == Lease::Alive && agent.holds.contains(key)
    }

    /// See [`Table::place`].
    pub(crate) fn place(&self, run: &Arc<RunEntry>, step: usize, wish: Wish) -> Option<Seat> {
        self.lock().table.place(run, step, wish)
    }

    /// See [`Table::hold`].
    pub(crate) fn hold_seats(&self, held: bool) {
        self.lock().table.hold(held);
    }

    /// See [`Table::release`].
    pub(crate) fn release(&self, run: &RunEntry, step: usize) {
        self.lock().table.release(run, step);
    }

    /// See [`Table::leave_behind`].
    pub(crate) fn leave_behind(&self, run: &RunEntry, step: usize, attempt: AttemptKey, told: bool) {
        self.lock().table.leave_behind(run, step, attempt, told);
    }

    /// See [`Table::let_go`].
    pub(crate) fn let_go(&self, instance: &InstanceId, attempt: &AttemptKey) {
        self.lock().table.let_go(instance, attempt);
    }

    /// See [`Table::occupy`].
    pub(crate) fn occupy(&self, run: &Arc<RunEntry>, step: usize, at: &InstanceId) {
        self.lock().table.occupy(run, step, at);
    }

    /// See [`Table::is_left`].
    pub(crate) fn is_left(&self, instance: &InstanceId, attempt: &AttemptKey) -> bool {
        self.lock().table.is_left(instance, attempt)
    }

    /// See [`Table::why_not`].
    pub(crate) fn why_not(&self, namespace: &Namespace, wish: &Wish) -> String {
        let state = self.lock();
        let heard = |id: &InstanceId| {
            let of =
                state.agents.iter().find(|((ns, _), agent)| ns == namespace && agent.record.profile.instance == *id);
            of.and_then(|(_, agent)| agent.last_beat_at)
        };
        state.table.why_not(namespace, wish, heard)
    }

    /// How many steps wait for an agent, and how many agents answer.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let state = self.lock();
        (state.table.waiting(), state.agents.values().filter(|a| a.lease == Lease::Alive).count())
    }

    /// Every action that agents of a namespace offer.
    pub(crate) fn offers(&self, namespace: &Namespace) -> Vec<ActionOffer> {
        let state = self.lock();
        let known = |((ns, _), agent): &(&(Namespace, AgentName), &Agent)| ns == namespace && !agent.record.forgotten;
        let agents = state.agents.iter().filter(known);
        agents.flat_map(|(_, agent)| agent.record.profile.actions.iter().cloned()).collect()
    }

    /// What is journalled of an agent, for the projection.
    pub(crate) fn record(&self, namespace: &Namespace, name: &AgentName) -> Option<AgentRecord> {
        self.lock().agents.get(&(namespace.clone(), name.clone())).map(|a| a.record.clone())
    }

    /// One agent, forgotten or not.
    pub(crate) fn known(&self, namespace: &Namespace, name: &AgentName) -> Option<AgentView> {
        let state = self.lock();
        let key = (namespace.clone(), name.clone());
        state.agents.get(&key).map(|agent| view_of(&state.table, &key, agent))
    }

    /// One agent.
    pub(crate) fn view(&self, namespace: &Namespace, name: &AgentName) -> Option<AgentView> {
        let state = self.lock();
        let key = (namespace.clone(), name.clone());
        let known = state.agents.get(&key).filter(|agent| !agent.record.forgotten);
        known.map(|agent| view_of(&state.table, &key, agent))
    }

    /// Agents of a namespace by name, after one, at most so many.
    pub(crate) fn views(&self, namespace: &Namespace, after: &str, limit: usize) -> Vec<AgentView> {
        let state = self.lock();
        let from = (namespace.clone(), AgentName::from(after));
        let behind = (std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded);
        let agents = state.agents.range(behind).take_while(|((ns, _), _)| ns == namespace);
        let agents = agents.filter(|(_, agent)| !agent.record.forgotten);
        agents.take(limit).map(|(key, agent)| view_of(&state.table, key, agent)).collect()
    }
}

/// A durable agent on the same host found the process, and everything it had started, dead.
fn proves_dead(register: &Register, old: &Profile) -> bool {
    let host = register.host.as_ref().unwrap_or(&register.agent);
    register.durable && *host == old.host && register.dead.iter().any(|d| d == old.instance.as_str())
}

fn offer_of(namespace: &Namespace, name: &AgentName, profile: &Profile) -> Offer {
    Offer {
        agent: name.clone(),
        namespace: namespace.clone(),
        role: profile.role.clone(),
        labels: profile.labels.clone(),
        host: profile.host.as_str().into(),
        slots: profile.slots,
        actions: profile.actions.iter().map(|a| (a.name.as_str().into(), a.version.clone())).collect(),
    }
}

fn ms_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

fn view_of(table: &Table, key: &(Namespace, AgentName), agent: &Agent) -> AgentView {
    let profile = &agent.record.profile;
    let state = match agent.lease {
        Lease::Lost => "LOST",
        Lease::Ended => "ENDED",
        Lease::Away | Lease::Alive if agent.record.draining || agent.leaving => "DRAINING",
        Lease::Away | Lease::Suspect => "SUSPECT",
        Lease::Alive => "READY",
    };
    let (busy, busy_of_ended_runs) = table.busy(&profile.instance);
    AgentView {
        namespace: key.0.clone(),
        name: key.1.clone(),
        role: profile.role.clone(),
        labels: profile.labels.clone(),
        host: profile.host.clone(),
        state,
        instance: profile.instance.as_str().to_owned(),
        slots: profile.slots,
        busy,
        busy_of_ended_runs,
        last_beat_at: agent.last_beat_at,
        actions: profile.actions.iter().map(|a| (a.name.clone(), a.version.clone())).collect(),
        software: profile.software.clone(),
    }
}
