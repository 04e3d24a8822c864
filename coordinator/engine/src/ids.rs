//! Names of things. Cheap to clone, ordered, and written as plain strings in JSON.
//!
//! Construction does not validate: documents are validated by `playbook::lint`, messages by `muster-bus`.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

macro_rules! string_ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $name {
            fn from(s: &str) -> Self {
                Self(s.into())
            }
        }
        impl From<String> for $name {
            fn from(s: String) -> Self {
                Self(s.into())
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    )+};
}

string_ids! {
    /// A run: a UUID v7, made at the edge.
    RunId,
    /// A namespace, `[a-z0-9_-]{1,63}`.
    Namespace,
    /// A phase of a plan, `[a-z][a-z0-9_]*`.
    PhaseId,
    /// A step of a plan, `[a-z][a-z0-9_]*`; unique in the plan, not only in its phase.
    StepId,
    /// An agent's name, `[a-z0-9_-]{1,63}`.
    AgentName,
    /// One process of an agent: an id made new at each start of it.
    InstanceId,
    /// Where an agent works; steps of a host-scoped action stay on one.
    HostLabel,
    /// `<system>.<verb>`, such as `tls.certificate`.
    ActionName,
    /// Who did it: `person/<id>`, `service/<id>`, `agent/<name>` or `muster` itself.
    Actor,
    /// `sha256:<64 hex digits>` of canonical bytes.
    Digest,
}

/// A numbered try within a step, from 1; one counter over all purposes.
pub type AttemptNumber = u32;
