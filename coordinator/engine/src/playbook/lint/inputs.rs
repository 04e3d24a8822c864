//! The JSON Schema of the inputs.

use serde_json::Value;

use super::Lint;
use crate::playbook::{
    json_schema::{self, Schema, fill_defaults},
    tree::Path,
};

impl Lint<'_> {
    pub(super) fn inputs(&mut self) {
        let Some(inputs) = &self.playbook.spec.inputs else {
            return;
        };
        let path = Path::of("spec.inputs");
        if inputs.get("type").is_none_or(|kind| kind != "object") {
            self.error(&path, "INVALID_SCHEMA", "the schema of the inputs is not one of an object")
                .hint("add type: object");
        }
        let schema = Value::Object(inputs.clone());
        if self.references(&path, &schema) {
            return;
        }
        let faults = json_schema::faults(&schema);
        let sound = faults.is_empty();
        for fault in faults {
            let mut place = path.clone();
            place.0.extend(fault.path);
            self.error(&place, "INVALID_SCHEMA", fault.message).hint("write a JSON Schema of draft 2020-12");
        }
        if sound {
            self.defaults(&path, inputs);
        }
    }

    /// A schema that refers to another, or to itself, could be without end.
    fn references(&mut self, path: &Path, schema: &Value) -> bool {
        match schema {
            Value::Object(fields) => {
                let mut found = false;
                for (name, value) in fields {
                    if matches!(name.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef" | "$schema")
                        && value.is_string()
                    {
                        self.error(&path.key(name), "INVALID_SCHEMA", format!("{name} is not possible here"))
                            .hint("write out what it stands for");
                        found = true;
                    } else if !matches!(name.as_str(), "default" | "enum" | "const" | "examples") {
                        found |= self.references(&path.key(name), value);
                    }
                }
                found
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .fold(false, |found, (index, item)| self.references(&path.index(index), item) || found),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    /// Each default alone has to fit its own schema.
    fn defaults(&mut self, path: &Path, inputs: &serde_json::Map<String, Value>) {
        let mut filled = serde_json::Map::new();
        fill_defaults(inputs, &mut filled);
        let Some(Value::Object(properties)) = inputs.get("properties") else {
            return;
        };
        for (name, value) in &filled {
            let Some(Ok(schema)) = properties.get(name).map(Schema::new) else {
                continue;
            };
            if let Some(misfit) = schema.misfits(value).into_iter().next() {
                let place = path.key("properties").key(name).key("default");
                self.error(&place, "INVALID_SCHEMA", format!("the default does not fit: {}", misfit.message))
                    .hint("change the default, or the schema");
            }
        }
    }
}
