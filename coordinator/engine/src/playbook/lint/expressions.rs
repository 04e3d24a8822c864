//! Conditions and templates: what they name, and what type they have.

use serde_json::{Map, Value};

use super::{Document, Lint};
use crate::{
    plan::{Catalogue, graph::Graph},
    playbook::{
        decode::nearest_word,
        expr::{self, Problem, Reference, Type},
        render::{Piece, pieces},
        schema::Undo,
        tree::{Path, Position},
    },
};

/// Longest text with expressions in it, in bytes.
const MAX_TEMPLATE_BYTES: usize = 64 * 1024;
/// Most expressions, and texts between them, in one text.
const MAX_PIECES: usize = 512;

/// What an expression may name at its place.
struct View<'v> {
    /// Of each step: it is done when this is evaluated.
    steps: Vec<bool>,
    /// `output`, and the action it is of.
    output: Option<&'v str>,
}

/// What is known of a value.
enum Known {
    Type(Type),
    /// There is no such name; the names that there are, and whether that is certain.
    Missing {
        names: Vec<String>,
        certain: bool,
    },
}

impl Lint<'_> {
    pub(super) fn expressions(&mut self, graph: &Graph) {
        self.in_phases();
        for index in 0..self.steps.len() {
            self.in_step(index, graph);
        }
        let everything = View { steps: vec![true; self.steps.len()], output: None };
        let playbook = self.playbook;
        for (name, expression) in &playbook.spec.outputs {
            let path = Path::of("spec.outputs").key(name);
            self.id(&path, name, "an output");
            self.expression(&path, expression, 0, expression, &everything);
        }
    }

    fn in_phases(&mut self) {
        let playbook = self.playbook;
        for (index, phase) in playbook.spec.phases.iter().enumerate() {
            let path = Path::of("spec").item("phases", index);
            if let Some(when) = &phase.when {
                let view = View { steps: self.steps_until(index), output: None };
                self.condition(&path.key("when"), when, &view);
            }
            let Some(gate) = &phase.gate else {
                continue;
            };
            let view = View { steps: self.steps_until(index + 1), output: None };
            for (key, conditions) in
                [("successCondition", &gate.success_condition), ("failureCondition", &gate.failure_condition)]
            {
                for (place, condition) in conditions.iter().enumerate() {
                    self.condition(&path.key("gate").item(key, place), condition, &view);
                }
            }
        }
    }

    fn in_step(&mut self, index: usize, graph: &Graph) {
        let (step, path) = (self.steps[index].step, self.steps[index].path.clone());
        let mut steps = self.steps_until(self.steps[index].phase);
        graph.mark_ancestors(index, &mut steps);
        steps[index] = false;
        let mut view = View { steps, output: None };
        if let Some(when) = &step.when {
            self.condition(&path.key("when"), when, &view);
        }
        self.templates(&path.key("with"), step.with.as_ref(), &view);
        if let Some(until) = step.wait.as_ref().and_then(|wait| wait.until.as_ref()).filter(|u| u.contains("{{")) {
            self.text(&path.key("wait").key("until"), until, &view);
        }
        // Both come after the step itself.
        view.steps[index] = true;
        if let Some(Undo::Action(undo)) = &step.undo {
            self.templates(&path.key("undo").key("with"), undo.with.as_ref(), &view);
        }
        if let Some(verify) = &step.verify {
            let path = path.key("verify");
            self.templates(&path.key("with"), verify.with.as_ref(), &view);
            view.output = Some(&verify.action);
            for (place, condition) in verify.expect.iter().enumerate() {
                self.condition(&path.item("expect", place), condition, &view);
            }
        }
    }

    fn steps_until(&self, phase: usize) -> Vec<bool> {
        self.steps.iter().map(|step| step.phase < phase).collect()
    }

    fn condition(&mut self, path: &Path, condition: &str, view: &View<'_>) {
        let found = self.expression(path, condition, 0, condition, view);
        if !matches!(found, Type::Any | Type::Bool) {
            let at = self.inside(path, condition, 0);
            self.findings
                .error_at(
                    at,
                    path,
                    "EXPRESSION_TYPE",
                    format!("a condition has to be true or false, this one is {}", found.name()),
                )
                .hint("compare it with something");
        }
    }

    fn templates(&mut self, path: &Path, with: Option<&Map<String, Value>>, view: &View<'_>) {
        for (name, value) in with.into_iter().flatten() {
            self.template(&path.key(name), value, view);
        }
    }

    fn template(&mut self, path: &Path, value: &Value, view: &View<'_>) {
        match value {
            Value::String(text) if text.contains("{{") => self.text(path, text, view),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.template(&path.index(index), item, view);
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    self.template(&path.key(name), field, view);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn text(&mut self, path: &Path, text: &str, view: &View<'_>) {
        let Ok(pieces) = pieces(text) else {
            let at = self.inside(path, text, text[..text.find("{{").unwrap_or(0)].chars().count());
            self.findings
                .error_at(at, path, "TEMPLATE_SYNTAX", "a {{ is not closed")
                .hint("close it with }}; a literal {{ is {{ '{{' }}");
            return;
        };
        if text.len() > MAX_TEMPLATE_BYTES || pieces.len() > MAX_PIECES {
            let message =
                format!("a text with {{{{ }}}} has at most {MAX_TEMPLATE_BYTES} bytes and {MAX_PIECES} pieces");
            self.error(path, "EXPRESSION_LIMIT", message).hint("let an action put it together");
            return;
        }
        let alone = pieces.len() == 1;
        for piece in pieces {
            let Piece::Expression(expression) = piece else {
                continue;
            };
            let start = expression.as_ptr() as usize - text.as_ptr() as usize;
            let offset = text[..start].chars().count();
            let found = self.expression(path, expression, offset, text, view);
            if !alone && matches!(found, Type::List | Type::Map | Type::Null | Type::Bytes) {
                let at = self.inside(path, text, offset);
                self.findings
                    .error_at(at, path, "EXPRESSION_TYPE", format!("{} can't stand inside a text", found.name()))
                    .hint("only strings, numbers and booleans can");
            }
        }
    }

    /// Checks an expression that begins at a character of the text at `path`.
    fn expression(&mut self, path: &Path, expression: &str, offset: usize, text: &str, view: &View<'_>) -> Type {
        let names =
            |reference: Reference<'_>, problems: &mut Vec<Problem>| self.name(expression, reference, view, problems);
        let (found, problems) = expr::check(expression, &names);
        for problem in problems {
            let at = self.inside(path, text, offset + problem.offset);
            let message =
                if expression.len() <= 80 { format!("{expression}: {}", problem.message) } else { problem.message };
            if problem.warning {
                self.findings.warning_at(at, path, problem.code, message).hint(problem.hint);
            } else {
                self.findings.error_at(at, path, problem.code, message).hint(problem.hint);
            }
        }
        found
    }

    fn name(&self, expression: &str, reference: Reference<'_>, view: &View<'_>, problems: &mut Vec<Problem>) -> Type {
        let path = reference.path;
        match path[0] {
            "inputs" => self.input(expression, reference, problems),
            "steps" => self.step_output(path, view, problems),
            "output" if view.output.is_some() => {
                known(output_of(self.catalogue, view.output, &path[1..]), "UNKNOWN_OUTPUT", path, problems)
            }
            "run" if path.len() == 1 => Type::Map,
            "run" if path == ["run", "id"] => Type::Text,
            root => {
                let hint = match root {
                    "output" => "output is known in verify alone; write steps.<id>.output".to_owned(),
                    "run" => "there is run.id".to_owned(),
                    _ => nearest_word(root, &["inputs", "steps", "run"]),
                };
                problems.push(undefined(format!("there is no {}", path.join(".")), hint));
                Type::Any
            }
        }
    }

    fn input(&self, expression: &str, reference: Reference<'_>, problems: &mut Vec<Problem>) -> Type {
        let path = reference.path;
        let nothing = Map::new();
        let schema = self.playbook.spec.inputs.as_ref().unwrap_or(&nothing);
        let Some(name) = path.get(1) else {
            return Type::Map;
        };
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&nothing);
        let Some(property) = properties.get(*name) else {
            if allows_more(schema) == Some(true) {
                return Type::Any;
            }
            let names: Vec<&str> = properties.keys().map(String::as_str).collect();
            let hint = if names.is_empty() {
                "declare it under spec.inputs.properties".to_owned()
            } else {
                nearest_word(name, &names)
            };
            problems.push(undefined(format!("there is no input {name:?}"), hint));
            return Type::Any;
        };
        let required = schema.get("required").and_then(Value::as_array);
        let given = property.get("default").is_some()
            || required.is_some_and(|required| required.iter().any(|other| other == name));
        if !given && !reference.tested && !expression.contains(&format!("has(inputs.{name}")) {
            problems.push(Problem {
                code: "INPUT_MAY_BE_MISSING",
                warning: true,
                message: format!("the input {name:?} is neither required nor has it a default"),
                hint: format!("require it, give it a default, or test it: has(inputs.{name})"),
                offset: 0,
            });
        }
        known(look_up(property, &path[2..]), "UNDEFINED_VARIABLE", path, problems)
    }

    fn step_output(&self, path: &[&str], view: &View<'_>, problems: &mut Vec<Problem>) -> Type {
        let Some(id) = path.get(1) else {
            problems.push(undefined("steps alone is no value", "write steps.<id>.output"));
            return Type::Any;
        };
        let Some(index) = self.by_id.get(id) else {
            let known: Vec<&str> = self.by_id.keys().copied().take(20).collect();
            problems.push(undefined(format!("there is no step {id:?}"), nearest_word(id, &known)));
            return Type::Any;
        };
        if !view.steps[*index] {
            problems.push(Problem {
                code: "STEP_NOT_BEFORE",
                warning: false,
                message: format!("the step {id:?} does not come before this"),
                hint: format!("add it: needs: [{id}]"),
                offset: 0,
            });
            return Type::Any;
        }
        match path.get(2) {
            None => Type::Map,
            Some(&"output") => {
                let action = self.steps[*index].step.action.as_deref();
                known(output_of(self.catalogue, action, &path[3..]), "UNKNOWN_OUTPUT", path, problems)
            }
            Some(other) => {
                problems.push(undefined(format!("a step has no {other:?}"), format!("write steps.{id}.output")));
                Type::Any
            }
        }
    }

    /// The position of a character of a text, if the text stands in one line as it is; else of its beginning.
    pub(super) fn inside(&self, path: &Path, text: &str, offset: usize) -> Position {
        self.document.map_or_else(Position::default, |document| document.inside(path, text, offset))
    }
}

impl Document<'_> {
    fn inside(&self, path: &Path, text: &str, offset: usize) -> Position {
        let at = self.tree.nearest(path).at;
        let line = usize::try_from(at.line).ok().and_then(|line| self.lines.get(line.checked_sub(1)?));
        let start = usize::try_from(at.column).ok().and_then(|column| column.checked_sub(1));
        let rest = line.zip(start).and_then(|(line, start)| line.get(line.char_indices().nth(start)?.0..));
        let Some(rest) = rest else {
            return at;
        };
        let quoted = rest.starts_with(['"', '\'']);
        if !rest[usize::from(quoted)..].starts_with(text) {
            return at;
        }
        let shift = u32::try_from(offset + usize::from(quoted)).unwrap_or(0);
        Position { line: at.line, column: at.column + shift }
    }
}

fn undefined(message: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem { code: "UNDEFINED_VARIABLE", warning: false, message: message.into(), hint: hint.into(), offset: 0 }
}

fn known(known: Known, code: &'static str, path: &[&str], problems: &mut Vec<Problem>) -> Type {
    match known {
        Known::Type(found) => found,
        Known::Missing { names, certain } => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let last = path.last().copied().unwrap_or_default();
            problems.push(Problem {
                code,
                warning: !certain,
                message: format!("there is no {}", path.join(".")),
                hint: nearest_word(last, &names),
                offset: 0,
            });
            Type::Any
        }
    }
}

fn output_of(catalogue: &Catalogue, action: Option<&str>, path: &[&str]) -> Known {
    match action.and_then(|action| catalogue.get(action)).and_then(|entry| entry.output_schema.as_ref()) {
        Some(schema) => look_up(schema, path),
        None if path.is_empty() => Known::Type(Type::Map),
        None => Known::Type(Type::Any),
    }
}

/// What a JSON Schema says of the value at a path.
fn look_up(schema: &Value, path: &[&str]) -> Known {
    let Some(fields) = schema.as_object() else {
        return Known::Type(Type::Any);
    };
    let Some((name, rest)) = path.split_first() else {
        return Known::Type(type_of(fields));
    };
    let Some(properties) = fields.get("properties").and_then(Value::as_object) else {
        return Known::Type(Type::Any);
    };
    let open = ["anyOf", "oneOf", "allOf", "$ref", "patternProperties"].iter().any(|key| fields.contains_key(*key));
    match (properties.get(*name), allows_more(fields)) {
        (Some(property), _) => look_up(property, rest),
        (None, Some(true)) => Known::Type(Type::Any),
        (None, _) if open => Known::Type(Type::Any),
        (None, more) => Known::Missing { names: properties.keys().cloned().collect(), certain: more == Some(false) },
    }
}

/// Whether a schema says that there may be other keys than its properties.
fn allows_more(schema: &Map<String, Value>) -> Option<bool> {
    match schema.get("additionalProperties")? {
        Value::Bool(allowed) => Some(*allowed),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => Some(true),
    }
}

fn type_of(schema: &Map<String, Value>) -> Type {
    let of_value = |value: &Value| match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Number(_) => Type::Number,
        Value::String(_) => Type::Text,
        Value::Array(_) => Type::List,
        Value::Object(_) => Type::Map,
    };
    match schema.get("type").and_then(Value::as_str) {
        Some("boolean") => Type::Bool,
        Some("integer" | "number") => Type::Number,
        Some("string") => Type::Text,
        Some("array") => Type::List,
        Some("object") => Type::Map,
        Some("null") => Type::Null,
        Some(_) => Type::Any,
        None => {
            let words = schema.get("enum").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let first = words.first().map_or(Type::Any, of_value);
            if words.iter().all(|word| of_value(word) == first) { first } else { Type::Any }
        }
    }
}
