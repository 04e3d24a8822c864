//! What can be done, by whom ever: the actions that agents offer, as the engine needs to know them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ids::ActionName, plan::ActionFacts};

/// Every action somebody offers, by name.
pub type Catalogue = BTreeMap<ActionName, CatalogueEntry>;

/// One action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// The version that a plan pins.
    pub version: String,
    /// What the action promises.
    pub facts: ActionFacts,
    /// JSON Schema of its parameters, where its agent declares one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params_schema: Option<Value>,
    /// JSON Schema of its output, where its agent declares one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
}
