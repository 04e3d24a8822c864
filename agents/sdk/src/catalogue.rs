//! What an agent can do: its actions by name.

use std::{collections::BTreeMap, sync::Arc};

use muster_bus::message::ActionOffer;
use serde_json::Value;

use crate::action::Action;

/// The actions of an agent.
#[derive(Clone, Default)]
pub struct Catalogue {
    entries: BTreeMap<String, Arc<Entry>>,
}

/// An action with what is known of it before the first task.
pub(crate) struct Entry {
    pub(crate) action: Arc<dyn Action>,
    pub(crate) offer: ActionOffer,
    params: Option<jsonschema::Validator>,
}

/// Why actions can't stand in one catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Two actions of one name.
    #[error("two actions are called {0:?}; an agent offers each name once")]
    Twice(String),
    /// Not `<system>.<verb>`.
    #[error("{0:?} is not an action's name; write <system>.<verb> in lower case")]
    Name(String),
    /// Not `major.minor.patch`.
    #[error("action {name}: {version:?} is not a version; write major.minor.patch")]
    Version {
        /// Of the action.
        name: String,
        /// What it says.
        version: String,
    },
    /// Its `params_schema` is no JSON Schema.
    #[error("action {name}: its params_schema is not a JSON Schema: {why}")]
    Schema {
        /// Of the action.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Catalogue {
    /// All of `actions`.
    pub fn new(actions: impl IntoIterator<Item = Arc<dyn Action>>) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::default();
        for action in actions {
            catalogue.add(action)?;
        }
        Ok(catalogue)
    }

    /// One more.
    pub fn add(&mut self, action: Arc<dyn Action>) -> Result<(), CatalogueError> {
        let offer = action.spec();
        let name = offer.name.clone();
        if !is_action_name(&name) {
            return Err(CatalogueError::Name(name));
        }
        if major(&offer.version).is_none() {
            return Err(CatalogueError::Version { name, version: offer.version });
        }
        if self.entries.contains_key(&name) {
            return Err(CatalogueError::Twice(name));
        }
        let params = match &offer.params_schema {
            Some(schema) => Some(
                jsonschema::validator_for(schema)
                    .map_err(|e| CatalogueError::Schema { name: name.clone(), why: e.to_string() })?,
            ),
            None => None,
        };
        self.entries.insert(name, Arc::new(Entry { action, offer, params }));
        Ok(())
    }

    /// What the coordinator is told.
    pub fn offers(&self) -> Vec<ActionOffer> {
        self.entries.values().map(|entry| entry.offer.clone()).collect()
    }

    /// An action by its name.
    pub fn action(&self, name: &str) -> Option<Arc<dyn Action>> {
        self.entries.get(name).map(|entry| entry.action.clone())
    }

    /// The entry that can do `name` as a plan for `version` expects it, or why there is none.
    pub(crate) fn find(&self, name: &str, version: &str) -> Result<Arc<Entry>, String> {
        let Some(entry) = self.entries.get(name) else {
            return Err(format!("this agent has no action {name}"));
        };
        if entry.offer.version == version || major(version).is_some_and(|m| Some(m) == major(&entry.offer.version)) {
            return Ok(entry.clone());
        }
        Err(format!("this agent has {name} {}, and the plan was made for {version}", entry.offer.version))
    }
}

impl Entry {
    /// What is wrong with the parameters, if anything.
    pub(crate) fn refuse_params(&self, with: &Value) -> Option<String> {
        let faults: Vec<String> =
            self.params.as_ref()?.iter_errors(with).take(10).map(|fault| describe(&fault)).collect();
        (!faults.is_empty()).then(|| format!("the parameters do not fit: {}", faults.join("; ")))
    }
}

fn describe(fault: &jsonschema::ValidationError<'_>) -> String {
    let place = fault.instance_path().to_string();
    // Masked: a parameter may be a secret.
    let what = fault.masked().to_string();
    if place.is_empty() { what } else { format!("{place}: {what}") }
}

fn is_action_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    name.len() <= 63 && name.split_once('.').is_some_and(|(system, verb)| part(system) && part(verb))
}

/// What has to be equal for two versions to fit: the major version, or the minor one as long as the major is 0.
fn major(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split(['-', '+']).next()?.split('.').map(|n| n.parse::<u64>().ok());
    let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some((major, if major == 0 { minor } else { 0 }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ActionError, ActionSpec, Context, Done};

    struct Fake(ActionOffer);

    #[async_trait::async_trait]
    impl Action for Fake {
        fn spec(&self) -> ActionSpec {
            self.0.clone()
        }

        async fn run(&self, _ctx: &Context, _with: &Value) -> Result<Done, ActionError> {
            Ok(Done::default())
        }
    }

    fn fake(name: &str, version: &str, schema: Option<Value>) -> Arc<dyn Action> {
        Arc::new(Fake(ActionOffer { params_schema: schema, ..ActionOffer::new(name, version) }))
    }

    #[test]
    fn refuses_what_it_can_not_offer() {
        let refused = |action| Catalogue::new([fake("a.b", "1.0.0", None), action]).err().unwrap().to_string();
        assert!(refused(fake("a.b", "2.0.0", None)).contains("two actions"));
        for name in ["", "ab", "A.b", "a.", ".b", "a.b.c", "a b.c"] {
            assert!(refused(fake(name, "1.0.0", None)).contains("not an action's name"), "{name}");
        }
        for version in ["", "1", "1.0", "1.0.0.0", "1.x.0"] {
            assert!(refused(fake("a.c", version, None)).contains("not a version"), "{version}");
        }
        assert!(refused(fake("a.c", "1.0.0", Some(json!({"type": 7})))).contains("not a JSON Schema"));
    }

    #[test]
    fn a_plan_fits_within_the_major_version() {
        let catalogue = Catalogue::new([fake("a.b", "1.2.0", None), fake("z.b", "0.2.1", None)]).unwrap();
        for (name, version) in [("a.b", "1.2.0"), ("a.b", "1.0.7"), ("a.b", "1.9.0"), ("z.b", "0.2.0")] {
            assert!(catalogue.find(name, version).is_ok(), "{name} {version}");
        }
        for (name, version) in [("a.c", "1.2.0"), ("a.b", "2.0.0"), ("a.b", ""), ("z.b", "0.3.0")] {
            assert!(catalogue.find(name, version).is_err(), "{name} {version}");
        }
    }

    #[test]
    fn says_what_is_wrong_with_parameters_but_not_their_values() {
        let schema = json!({"type": "object", "required": ["domain"], "properties": {"port": {"type": "integer"}}});
        let catalogue = Catalogue::new([fake("a.b", "1.0.0", Some(schema))]).unwrap();
        let entry = catalogue.find("a.b", "1.0.0").unwrap();
        assert_eq!(entry.refuse_params(&json!({"domain": "d", "port": 1})), None);
        let why = entry.refuse_params(&json!({"port": "hunter2"})).unwrap();
        assert!(why.contains("domain") && why.contains("/port") && !why.contains("hunter2"), "{why}");
    }
}
