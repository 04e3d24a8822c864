//! JSON Schema: the only place that knows the library for it. Never fetches anything; patterns take linear time.

use jsonschema::{PatternOptions, ValidationError};
use serde_json::{Map, Value};

use super::tree::Segment;

/// What does not fit a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Where in the value.
    pub(crate) path: Vec<Segment>,
    /// What is wrong.
    pub(crate) message: String,
    /// It is about which keys there are, not about a value.
    pub(crate) about_keys: bool,
}

/// A schema that can be used.
pub(crate) struct Schema(jsonschema::Validator);

impl Schema {
    /// Compiles a schema. The error says what is wrong with it.
    pub(crate) fn new(schema: &Value) -> Result<Self, Misfit> {
        Self::compile(schema, true)
    }

    /// Agents describe their parameters with formats of their own (`uint16`); a playbook's inputs have only known ones.
    fn compile(schema: &Value, any_format: bool) -> Result<Self, Misfit> {
        jsonschema::draft202012::options()
            .offline()
            .with_pattern_options(PatternOptions::regex())
            .should_validate_formats(true)
            .should_ignore_unknown_formats(any_format)
            .build(schema)
            .map(Self)
            .map_err(|error| misfit(schema, &error))
    }

    /// Everything about the value that does not fit.
    pub(crate) fn misfits(&self, value: &Value) -> Vec<Misfit> {
        self.0.iter_errors(value).take(20).map(|error| misfit(value, &error)).collect()
    }
}

/// Everything that is wrong with a schema itself.
pub(crate) fn faults(schema: &Value) -> Vec<Misfit> {
    let validator = jsonschema::draft202012::meta::validator();
    let mut faults: Vec<Misfit> = validator.iter_errors(schema).take(20).map(|error| misfit(schema, &error)).collect();
    texts(schema, &mut Vec::new(), &mut faults);
    if let (true, Err(fault)) = (faults.is_empty(), Schema::new(schema)) {
        faults.push(fault);
    }
    faults
}

/// Patterns and formats, each by itself: compiling the whole stops at the first.
fn texts(schema: &Value, path: &mut Vec<Segment>, faults: &mut Vec<Misfit>) {
    let alone = |keyword: &str, text: &str, path: &[Segment]| {
        let fault = Schema::compile(&Value::from_iter([(keyword, text)]), false).err()?;
        let message = if keyword == "format" { format!("{text:?} is no known format") } else { fault.message };
        Some(Misfit { path: path.to_vec(), message, ..fault })
    };
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                path.push(Segment::Key(name.clone()));
                match (name.as_str(), value) {
                    ("default" | "enum" | "const" | "examples", _) => {}
                    ("pattern" | "format", Value::String(text)) => faults.extend(alone(name, text, path)),
                    ("patternProperties", Value::Object(patterns)) => {
                        faults.extend(patterns.keys().filter_map(|pattern| alone("pattern", pattern, path)));
                        texts(value, path, faults);
                    }
                    _ => texts(value, path, faults),
                }
                path.pop();
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                path.push(Segment::Index(i));
                texts(item, path, faults);
                path.pop();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Puts the defaults of `properties` where nothing is given, at every level that is there.
pub(crate) fn fill_defaults(schema: &Map<String, Value>, value: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = schema.get("properties") else {
        return;
    };
    for (name, property) in properties {
        if let (false, Some(default)) = (value.contains_key(name), property.get("default")) {
            value.insert(name.clone(), default.clone());
        }
        if let (Value::Object(schema), Some(Value::Object(value))) = (property, value.get_mut(name)) {
            fill_defaults(schema, value);
        }
    }
}

fn misfit(value: &Value, error: &ValidationError<'_>) -> Misfit {
    Misfit {
        path: segments(value, &error.instance_path().to_string()),
        message: match error.kind().keyword() {
            "anyOf" | "oneOf" => "fits none of the possible forms".to_owned(),
            _ => short(&error.masked_with("the value").to_string(), error),
        },
        about_keys: matches!(error.kind().keyword(), "required" | "additionalProperties" | "unevaluatedProperties"),
    }
}

/// Values in messages are masked when they are long; a schema's own words stay.
fn short(masked: &str, error: &ValidationError<'_>) -> String {
    let whole = error.to_string();
    if whole.len() <= 160 { whole } else { masked.chars().take(300).collect() }
}

/// A JSON pointer as a path through `value`.
fn segments(value: &Value, pointer: &str) -> Vec<Segment> {
    let mut at = Some(value);
    pointer
        .split('/')
        .skip(1)
        .map(|token| {
            let name = token.replace("~1", "/").replace("~0", "~");
            let index = name.parse::<usize>().ok().filter(|_| at.is_some_and(Value::is_array));
            at = at.and_then(|at| match index {
                Some(index) => at.get(index),
                None => at.get(&name),
            });
            index.map_or(Segment::Key(name), Segment::Index)
        })
        .collect()
}
