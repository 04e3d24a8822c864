//! A process that says goodbye, and that nothing is at, has ended; it is not lost. Its word proves nothing of what it may have
//! at work: that goes the way of every silence.

use muster_engine::ids::{AgentName, InstanceId, Namespace};

use super::{Goodbye, Lease, Registry, placement::Availability};

/// A process that has ended, which is to be journalled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leaver {
    pub(crate) namespace: Namespace,
    pub(crate) name: AgentName,
    pub(crate) instance: InstanceId,
    /// The last record of its agent's stream.
    pub(crate) seq: u64,
}

impl Registry {
    /// Those who have said goodbye and have nothing at work, each once: say what became of it with [`Registry::ended`] or
    /// [`Registry::not_ended`].
    pub(crate) fn leavers(&self) -> Vec<Leaver> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut leavers = Vec::new();
        for ((namespace, name), agent) in &mut state.agents {
            let (record, instance) = (&agent.record, &agent.record.profile.instance);
            if agent.goodbye != Goodbye::Said || agent.lease != Lease::Alive || state.table.busy(instance).0 > 0 {
                continue;
            }
            let (namespace, name, instance, seq) = (namespace.clone(), name.clone(), instance.clone(), record.seq);
            agent.goodbye = Goodbye::Noted;
            leavers.push(Leaver { namespace, name, instance, seq });
        }
        leavers
    }

    /// That a process has ended is journalled, and takes effect; not if another one has its agent's name by now.
    pub(crate) fn ended(&self, leaver: &Leaver) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let key = (leaver.namespace.clone(), leaver.name.clone());
        let Some(agent) = state.agents.get_mut(&key) else { return };
        if agent.record.profile.instance == leaver.instance {
            (agent.record.ended, agent.record.seq) = (true, leaver.seq + 1);
            agent.lease = Lease::Ended;
            agent.holds.clear();
            state.table.set_availability(&leaver.instance, Availability::Ended);
        }
    }

    /// It could not be journalled: it is tried again.
    pub(crate) fn not_ended(&self, leaver: &Leaver) {
        let mut guard = self.lock();
        let agent = guard.agents.get_mut(&(leaver.namespace.clone(), leaver.name.clone()));
        if let Some(agent) = agent.filter(|agent| agent.record.profile.instance == leaver.instance)
            && agent.goodbye == Goodbye::Noted
        {
            agent.goodbye = Goodbye::Said;
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use muster_bus::message::{Beat, PROTOCOL, Register};

    use super::*;
    use crate::registry::{Admission, Leases, Pulse};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn registered(registry: &Registry, instance: &str, now: Timestamp) {
        let register = Register {
            protocol: PROTOCOL,
            agent: "infra-1".to_owned(),
            instance: instance.to_owned(),
            role: "infra".to_owned(),
            labels: std::collections::BTreeMap::new(),
            host: None,
            slots: 1,
            durable: false,
            actions: Vec::new(),
            holds: Vec::new(),
            spooled: Vec::new(),
            dead: Vec::new(),
            tasks_in_answers: false,
            software: String::new(),
        };
        let Admission::Welcome { journal: Some((seq, _)) } = registry.consider(&"default".into(), &register) else {
            panic!("{instance} may not register")
        };
        assert!(registry.admit(&"default".into(), &register, Some(seq + 1), now).replaced.is_none());
    }

    fn beat(registry: &Registry, instance: &str, ending: bool, now: Timestamp) -> bool {
        let (cluster, instance) = (String::new(), instance.to_owned());
        let beat = Beat { cluster, instance, holds: Vec::new(), draining: ending, ending };
        let (namespace, name) = ("default".into(), "infra-1".into());
        matches!(registry.beat(&namespace, &name, beat, Vec::new(), now), Pulse::Alive { .. })
    }

    fn state(registry: &Registry) -> &'static str {
        registry.view(&"default".into(), &"infra-1".into()).unwrap().state
    }

    fn registry() -> Registry {
        let registry = Registry::new(Leases { suspect_after_ms: 15_000, lost_after_ms: 30_000 });
        registered(&registry, "i1", at(0));
        registry
    }

    #[test]
    fn who_says_goodbye_has_ended_and_is_never_lost() {
        let registry = registry();
        assert_eq!(registry.leavers(), [], "nobody has said a word");
        assert!(beat(&registry, "i1", true, at(1)));
        let leavers = registry.leavers();
        assert_eq!((leavers.len(), leavers[0].instance.as_str(), leavers[0].seq), (1, "i1", 1));
        assert_eq!(registry.leavers(), [], "it is journalled once");
        assert!(registry.sweep(at(100)).is_empty(), "the journal takes its time");
        registry.not_ended(&leavers[0]);
        assert_eq!(registry.leavers(), leavers);
        registry.ended(&leavers[0]);
        assert_eq!(state(&registry), "ENDED");
        assert!(registry.sweep(at(1_000)).is_empty());
        assert!(!beat(&registry, "i1", false, at(1_001)), "who lives after all registers again");
        registered(&registry, "i1", at(1_002));
        assert_eq!(state(&registry), "READY");
    }

    #[test]
    fn a_goodbye_ends_no_other_process() {
        let registry = registry();
        assert!(!beat(&registry, "i0", true, at(1)), "a process of before");
        assert!(registry.leavers().is_empty());
        beat(&registry, "i1", true, at(2));
        let leavers = registry.leavers();
        registry.ended(&leavers[0]);
        registered(&registry, "i2", at(3));
        assert!(!beat(&registry, "i1", true, at(4)), "a late one");
        registry.ended(&leavers[0]);
        registry.not_ended(&leavers[0]);
        assert!(registry.leavers().is_empty());
        assert_eq!(state(&registry), "READY");
    }
}
