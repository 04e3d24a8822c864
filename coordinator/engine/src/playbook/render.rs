//! Parameters with `{{ … }}` in them.
//!
//! What stands between the braces is CEL, the same language as in conditions. A text that is one `"{{ expression }}"` and
//! nothing else takes the expression's own type; in a longer text the values are written out, and have to be strings,
//! numbers or booleans.

use std::{borrow::Cow, fmt::Write};

use serde_json::Value;

use super::{
    expr::{self, ExprError},
    scope::{Found, Scope},
};

/// Largest result of one rendering, in bytes of text.
pub const MAX_RENDERED_BYTES: usize = 256 * 1024;

/// Why parameters could not be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// An expression gave no value.
    #[error("{path}: {{{{ {expression} }}}}: {why}")]
    Expression {
        /// Where in the parameters: `with.hosts[0]`.
        path: String,
        /// The expression.
        expression: String,
        /// Why.
        why: ExprError,
    },
    /// A value inside a longer text is not a string, number or boolean.
    #[error("{path}: {{{{ {expression} }}}} is {kind} and can't stand inside a text")]
    NotText {
        /// Where in the parameters.
        path: String,
        /// The expression.
        expression: String,
        /// What it is.
        kind: &'static str,
    },
    /// `{{` without `}}`.
    #[error("{path}: a {{{{ is not closed")]
    Unclosed {
        /// Where in the parameters.
        path: String,
    },
    /// The result is larger than [`MAX_RENDERED_BYTES`].
    #[error("{path}: the result is larger than {MAX_RENDERED_BYTES} bytes")]
    TooLarge {
        /// Where in the parameters.
        path: String,
    },
}

/// Renders every text in a value. What has no `{{` is borrowed unchanged.
pub fn render<'v>(value: &'v Value, scope: &Scope<'_>) -> Result<Cow<'v, Value>, RenderError> {
    if !has_template(value) {
        return Ok(Cow::Borrowed(value));
    }
    let mut renderer = Renderer { scope, path: "with".to_owned(), left: MAX_RENDERED_BYTES };
    renderer.value(value).map(Cow::Owned)
}

/// Whether any text in the value has a `{{`.
pub fn has_template(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{"),
        Value::Array(items) => items.iter().any(has_template),
        Value::Object(fields) => fields.values().any(has_template),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'t> {
    /// As it stands.
    Text(&'t str),
    /// What stands between `{{` and `}}`, trimmed.
    Expression(&'t str),
}

/// A `{{` without `}}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclosed;

/// Cuts a text into pieces; quotes and braces inside an expression do not end it.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, Unclosed> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(start) = rest.find("{{") {
        if start > 0 {
            pieces.push(Piece::Text(&rest[..start]));
        }
        let inside = &rest[start + 2..];
        let end = end_of_expression(inside).ok_or(Unclosed)?;
        pieces.push(Piece::Expression(inside[..end].trim()));
        rest = &inside[end + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

fn end_of_expression(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut quote, mut braces, mut at) = (None, 0usize, 0);
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None => match byte {
                b'\'' | b'"' => quote = Some(byte),
                b'{' => braces += 1,
                b'}' if braces > 0 => braces -= 1,
                b'}' if bytes.get(at + 1) == Some(&b'}') => return Some(at),
                _ => {}
            },
        }
        at += 1;
    }
    None
}

struct Renderer<'r, 's> {
    scope: &'r Scope<'s>,
    path: String,
    left: usize,
}

impl Renderer<'_, '_> {
    fn value(&mut self, value: &Value) -> Result<Value, RenderError> {
        Ok(match value {
            Value::String(text) => return self.text(text),
            Value::Array(items) => {
                let mut rendered = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    rendered.push(self.inside(|path| write!(path, "[{index}]"), item)?);
                }
                Value::Array(rendered)
            }
            Value::Object(fields) => {
                let mut rendered = serde_json::Map::new();
                for (name, field) in fields {
                    rendered.insert(name.clone(), self.inside(|path| write!(path, ".{name}"), field)?);
                }
                Value::Object(rendered)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
    }

    fn inside(
        &mut self,
        name: impl FnOnce(&mut String) -> std::fmt::Result,
        value: &Value,
    ) -> Result<Value, RenderError> {
        let length = self.path.len();
        name(&mut self.path).expect("writing to a String does not fail");
        let rendered = self.value(value)?;
        self.path.truncate(length);
        Ok(rendered)
    }

    fn text(&mut self, text: &str) -> Result<Value, RenderError> {
        if !text.contains("{{") {
            self.charge(text.len())?;
            return Ok(Value::String(text.to_owned()));
        }
        let pieces = pieces(text).map_err(|Unclosed| RenderError::Unclosed { path: self.path.clone() })?;
        if let [Piece::Expression(expression)] = pieces[..] {
            let value =
                expr::eval_value(expression, self.scope).map_err(|why| self.expression_error(expression, why))?;
            self.charge(weight(&value))?;
            return Ok(value);
        }
        let mut rendered = String::with_capacity(text.len());
        for piece in pieces {
            let before = rendered.len();
            match piece {
                Piece::Text(text) => rendered.push_str(text),
                Piece::Expression(expression) => self.write(expression, &mut rendered)?,
            }
            self.charge(rendered.len() - before)?;
        }
        Ok(Value::String(rendered))
    }

    fn write(&self, expression: &str, to: &mut String) -> Result<(), RenderError> {
        let evaluated;
        let value = match expr::fast_path(expression, self.scope) {
            Some(Found::Value(value)) => value,
            Some(Found::Step(_) | Found::Run { .. }) | None => {
                evaluated =
                    expr::eval_value(expression, self.scope).map_err(|why| self.expression_error(expression, why))?;
                &evaluated
            }
        };
        match value {
            Value::String(text) => to.push_str(text),
            Value::Number(number) => write!(to, "{number}").expect("writing to a String does not fail"),
            Value::Bool(value) => to.push_str(if *value { "true" } else { "false" }),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(RenderError::NotText {
                    path: self.path.clone(),
                    expression: expression.to_owned(),
                    kind: expr::kind_of(value),
                });
            }
        }
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), RenderError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| RenderError::TooLarge { path: self.path.clone() })?;
        Ok(())
    }

    fn expression_error(&self, expression: &str, why: ExprError) -> RenderError {
        RenderError::Expression { path: self.path.clone(), expression: expression.to_owned(), why }
    }
}

/// About how many bytes a value has as JSON.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| 1 + weight(item)).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(name, value)| 4 + name.len() + weight(value)).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}
