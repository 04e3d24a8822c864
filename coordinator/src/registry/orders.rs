//! What an agent's process is given along with an answer: orders to stop attempts, and its next task if it takes that there.

use muster_bus::message::{AttemptKey, Order};
use muster_engine::ids::{AgentName, InstanceId, Namespace};

use super::{Registry, State};

impl Registry {
    /// What a process shall do about its attempts.
    pub(crate) fn orders(&self, instance: &str) -> Vec<Order> {
        orders_of(&self.lock(), &InstanceId::from(instance))
    }

    /// Whether this is the agent's process, and takes tasks in the answers to its reports.
    pub(crate) fn takes_in_answers(&self, namespace: &Namespace, name: &AgentName, instance: &InstanceId) -> bool {
        let state = self.lock();
        let agent = state.agents.get(&(namespace.clone(), name.clone()));
        agent.is_some_and(|agent| agent.tasks_in_answers && agent.record.profile.instance == *instance)
    }

    /// An attempt shall be stopped, until it or its run has ended.
    pub(crate) fn order_cancel(&self, instance: &InstanceId, key: AttemptKey) {
        self.lock().orders.entry(instance.clone()).or_default().insert(key);
    }

    /// An attempt, or its run, has ended.
    pub(crate) fn forget_order(&self, instance: &InstanceId, key: &AttemptKey) {
        let mut state = self.lock();
        if let Some(keys) = state.orders.get_mut(instance) {
            keys.remove(key);
            if keys.is_empty() {
                state.orders.remove(instance);
            }
        }
    }
}

/// Attempts of open runs to be stopped, and what ended runs have left.
pub(super) fn orders_of(state: &State, instance: &InstanceId) -> Vec<Order> {
    let ordered = state.orders.get(instance).into_iter().flatten();
    ordered.chain(state.table.left_to_stop(instance)).map(|key| Order::Cancel { key: key.clone() }).collect()
}
