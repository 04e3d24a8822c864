//! What is journalled of agents, in the stream `agent/{namespace}/{name}`, and what it folds to.

use std::collections::BTreeMap;

use muster_bus::message::{ActionOffer, Register};
use muster_engine::ids::{AgentName, InstanceId, Namespace};
use serde::{Deserialize, Serialize};

use crate::journal::StreamId;

/// Something that happened to an agent and has to survive a restart. Beats are none of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the names are in the journal")]
pub(crate) enum AgentEvent {
    /// A process of it registered, for the first time or with other offers.
    AgentRegistered(Box<Profile>),
    /// A person wants this process to be given nothing new.
    AgentDrained {
        /// Which process.
        instance: InstanceId,
    },
    /// This process has said that it ends, and held nothing.
    AgentEnded {
        /// Which process.
        instance: InstanceId,
    },
    /// A person says that this process will not come back: the agent is listed no more, until it registers again.
    AgentForgotten {
        /// Which process.
        instance: InstanceId,
    },
}

/// What a process of an agent said of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) instance: InstanceId,
    pub(crate) role: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) host: String,
    pub(crate) slots: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) durable: bool,
    pub(crate) actions: Vec<ActionOffer>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) software: String,
}

/// An agent as its stream has made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    /// The last record of its stream.
    pub(crate) seq: u64,
    pub(crate) profile: Profile,
    /// The process that registered last shall be given nothing new.
    #[serde(default)]
    pub(crate) draining: bool,
    /// The process that registered last has ended as planned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ended: bool,
    /// It is listed no more, and offers nothing; what it was is kept for the numbers of its stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) forgotten: bool,
}

impl Profile {
    /// What a registration says, without what is only of the moment.
    pub(crate) fn of(register: &Register) -> Self {
        Self {
            instance: register.instance.as_str().into(),
            role: register.role.clone(),
            labels: register.labels.clone(),
            host: register.host.clone().unwrap_or_else(|| register.agent.clone()),
            slots: register.slots,
            durable: register.durable,
            actions: register.actions.clone(),
            software: register.software.clone(),
        }
    }
}

impl AgentRecord {
    /// The agent after one more record of its stream; none while it has never registered.
    pub(crate) fn after(before: Option<Self>, seq: u64, event: AgentEvent) -> Option<Self> {
        match event {
            AgentEvent::AgentRegistered(profile) => {
                let draining = before.is_some_and(|b| b.draining && b.profile.instance == profile.instance);
                Some(Self { seq, profile: *profile, draining, ended: false, forgotten: false })
            }
            AgentEvent::AgentDrained { instance } => {
                before.map(|b| Self { seq, draining: b.draining || b.profile.instance == instance, ..b })
            }
            AgentEvent::AgentEnded { instance } => {
                before.map(|b| Self { seq, ended: b.ended || b.profile.instance == instance, ..b })
            }
            AgentEvent::AgentForgotten { instance } => {
                before.map(|b| Self { seq, forgotten: b.forgotten || b.profile.instance == instance, ..b })
            }
        }
    }
}

/// The stream of an agent.
pub(crate) fn stream_of(namespace: &Namespace, name: &AgentName) -> StreamId {
    StreamId(format!("agent/{namespace}/{name}").into())
}

/// Namespace and name of an agent's stream, if it is one.
pub(crate) fn agent_of(stream: &StreamId) -> Option<(Namespace, AgentName)> {
    let (namespace, name) = stream.0.strip_prefix("agent/")?.split_once('/')?;
    Some((namespace.into(), name.into()))
}
