//! Processes of agents that have ended as planned: that is journalled, so that nobody takes them for lost after a restart.

use std::sync::Arc;

use tracing::{debug, info};

use super::Shared;
use crate::registry::records::AgentEvent;

impl Shared {
    /// Journal those who have said goodbye; who could not be journalled is tried again at the next look.
    pub(super) fn end_leavers(self: &Arc<Self>) {
        for leaver in self.registry.leavers() {
            let shared = Arc::clone(self);
            self.tasks.spawn(async move {
                let event = AgentEvent::AgentEnded { instance: leaver.instance.clone() };
                let (namespace, name, by) = (&leaver.namespace, &leaver.name, Self::actor_of(&leaver.name));
                let at = shared.clock.now();
                match shared.append_agent(namespace, name, leaver.seq, &event, by, at, None).await {
                    Ok(noting) => {
                        shared.registry.ended(&leaver);
                        shared.projector.agent_changed(namespace, name);
                        drop(noting);
                        info!(agent = %name, instance = %leaver.instance, "an agent has ended");
                    }
                    Err(e) => {
                        debug!(agent = %name, "that it has ended is not journalled yet: {e}");
                        shared.registry.not_ended(&leaver);
                    }
                }
            });
        }
    }
}
