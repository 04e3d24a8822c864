//! Conditions and values in CEL, behind a small API: the only place that knows the CEL library.
//!
//! CEL has no fuel, so work is bounded here: length, nesting, no comprehension inside another, and a budget for the
//! values an evaluation may touch. Nothing here panics, whatever the text.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use cel::{
    Context, Env,
    common::{
        ast::{EntryExpr, Expr, IdedEntryExpr},
        value::CowVal,
    },
    context::VariableResolver,
    objects::{Key, Map},
    parser::{Expression, ParseErrors, PrattParser},
};
use serde_json::Value;

use super::scope::{Found, Scope};

mod check;
mod functions;

pub(crate) use check::{Problem, Reference, Type, check};

/// Longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 4096;
/// Deepest nesting of an expression, counting operators, calls, lists and maps (`a && b && c` counts little, `a + b + c`
/// two). The evaluator takes nearly 40 KiB of stack for each in a debug build, and has to fit a thread of 2 MiB.
pub const MAX_EXPRESSION_DEPTH: usize = 24;
/// Deepest recursion of the parser.
const MAX_PARSER_DEPTH: u16 = 64;
/// Longest path of names.
const MAX_PATH: usize = 32;
/// Deepest nesting of brackets, checked before anything is parsed.
const MAX_BRACKETS: usize = 32;
/// How much one evaluation may look at: one for each value, and one for each 16 bytes of text.
const MAX_WORK: usize = 200_000;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    functions::add(&mut env).expect("no standard function has one of these names");
    Arc::new(env)
});

/// Why an expression has no value. The text around it says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// It is not CEL.
    #[error("{message} (at character {column})")]
    Syntax {
        /// What the parser found.
        message: String,
        /// Where in the expression, from 1.
        column: usize,
    },
    /// It is longer, deeper or heavier than allowed.
    #[error("{0}")]
    Limit(String),
    /// It could not be evaluated: a missing value, a wrong type, a division by zero.
    #[error("{0}")]
    Evaluation(String),
    /// It reads what may not be whole.
    #[error(
        "the output of step {0} was cut, and this reads a text or a list of it, which may not be whole; judge a number of it, or give less"
    )]
    Cut(String),
    /// A condition gave something else than true or false.
    #[error("a condition has to be true or false, this one is {0}")]
    NotBool(&'static str),
}

/// Evaluates a condition: exactly true or false, anything else is an error.
pub fn eval_bool(expression: &str, scope: &Scope<'_>) -> Result<bool, ExprError> {
    if let Some(found) = fast_path(expression, scope) {
        return match found {
            Found::Value(Value::Bool(value)) => Ok(*value),
            Found::Value(value) => Err(ExprError::NotBool(kind_of(value))),
            Found::Step(_) | Found::Run { id: false } => Err(ExprError::NotBool("a map")),
            Found::Run { id: true } => Err(ExprError::NotBool("a string")),
        };
    }
    let value = eval(expression, scope)?;
    if let cel::Value::Bool(value) = value {
        return Ok(value);
    }
    Err(ExprError::NotBool(from_cel(&value, 0).as_ref().map_or("of another type", kind_of)))
}

/// Evaluates an expression to a JSON value of its own type.
pub fn eval_value(expression: &str, scope: &Scope<'_>) -> Result<Value, ExprError> {
    match fast_path(expression, scope) {
        Some(Found::Value(value)) => Ok(value.clone()),
        Some(Found::Run { id: true }) => Ok(Value::String(scope.run.to_owned())),
        Some(Found::Step(_) | Found::Run { id: false }) | None => from_cel(&eval(expression, scope)?, 0),
    }
}

/// A plain path that leads somewhere needs no parser.
pub(crate) fn fast_path<'a>(expression: &str, scope: &Scope<'a>) -> Option<Found<'a>> {
    let expression = expression.trim();
    if expression.len() > MAX_EXPRESSION_BYTES || !is_path(expression) {
        return None;
    }
    scope.find(expression)
}

/// Identifiers joined by dots.
fn is_path(text: &str) -> bool {
    text.split('.').all(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

fn eval(expression: &str, scope: &Scope<'_>) -> Result<cel::Value, ExprError> {
    let ast = parse(expression)?;
    let names = Resolver { scope: *scope, left: AtomicUsize::new(MAX_WORK), cut: OnceLock::new() };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(&names);
        cel::Value::resolve(&ast, &context).map_err(|e| ExprError::Evaluation(short(&e.to_string())))
    }))
    .unwrap_or_else(|_| Err(ExprError::Evaluation("the evaluation broke off".to_owned())));
    // Before any other error: what is missing may be what was cut off.
    if let Some(step) = names.cut.into_inner() {
        return Err(ExprError::Cut(step));
    }
    if names.left.load(Ordering::Relaxed) == 0 {
        return Err(ExprError::Limit("the expression looks at too many values".to_owned()));
    }
    result
}

/// Parses within limits. The tree is shallow enough to be walked by recursion.
pub(crate) fn parse(expression: &str) -> Result<Expression, ExprError> {
    if expression.len() > MAX_EXPRESSION_BYTES {
        return Err(ExprError::Limit(format!(
            "the expression has {} bytes, at most {MAX_EXPRESSION_BYTES} are allowed",
            expression.len()
        )));
    }
    if expression.trim().is_empty() {
        return Err(ExprError::Syntax { message: "there is no expression".to_owned(), column: 1 });
    }
    if brackets(expression) > MAX_BRACKETS {
        return Err(ExprError::Limit(format!("brackets are nested deeper than {MAX_BRACKETS}")));
    }
    let ast = catch_unwind(AssertUnwindSafe(|| {
        PrattParser::new().max_recursion_depth(MAX_PARSER_DEPTH).error_recovery_limit(1).parse(expression)
    }))
    .map_err(|_| ExprError::Syntax { message: "not an expression".to_owned(), column: 1 })?
    .map_err(|errors| syntax_error(&errors))?;
    if depth(&ast) > MAX_EXPRESSION_DEPTH {
        return Err(ExprError::Limit(format!("the expression is nested deeper than {MAX_EXPRESSION_DEPTH}")));
    }
    if has_nested_comprehension(&ast) {
        return Err(ExprError::Limit(
            "all, exists, exists_one, map and filter can't stand inside one another".to_owned(),
        ));
    }
    Ok(ast)
}

fn syntax_error(errors: &ParseErrors) -> ExprError {
    let Some(first) = errors.errors.first() else {
        return ExprError::Syntax { message: "not an expression".to_owned(), column: 1 };
    };
    let message = first.msg.trim_start_matches("Syntax error: ").replace("<EOF>", "the end");
    ExprError::Syntax { message: short(&message), column: usize::try_from(first.pos.1).unwrap_or(1).max(1) }
}

/// Deepest nesting of brackets, not looking for strings: a bound, not a parse.
fn brackets(text: &str) -> usize {
    let (mut open, mut deepest) = (0usize, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Depth of the tree, found without recursion.
fn depth(ast: &Expression) -> usize {
    let (mut stack, mut deepest) = (vec![(ast, 1usize)], 0);
    while let Some((node, level)) = stack.pop() {
        deepest = deepest.max(level);
        if path_of(&node.expr).is_none_or(|path| path.len() > MAX_PATH) {
            stack.extend(children(&node.expr).into_iter().map(|child| (child, level + 1)));
        }
    }
    deepest
}

/// Whether a comprehension is evaluated once for each element of another; `a.filter(…).map(…)` is not.
fn has_nested_comprehension(ast: &Expression) -> bool {
    let mut stack = vec![(ast, false)];
    while let Some((node, inside)) = stack.pop() {
        if let Expr::Comprehension(c) = &node.expr {
            if inside {
                return true;
            }
            stack.push((&c.iter_range, false));
            stack.extend([&c.accu_init, &c.loop_cond, &c.loop_step, &c.result].map(|body| (body, true)));
        } else {
            stack.extend(children(&node.expr).into_iter().map(|child| (child, inside)));
        }
    }
    false
}

/// The names of `a.b.c`, where an expression is just that; the evaluator takes it in one go.
fn path_of(expr: &Expr) -> Option<Vec<&str>> {
    let (mut names, mut at) = (Vec::new(), expr);
    loop {
        match at {
            Expr::Ident(name) => {
                names.push(name.as_str());
                names.reverse();
                return Some(names);
            }
            Expr::Select(select) if !select.test => {
                names.push(select.field.as_str());
                at = &select.operand.expr;
            }
            Expr::Select(_)
            | Expr::Unspecified
            | Expr::Call(_)
            | Expr::Comprehension(_)
            | Expr::List(_)
            | Expr::Literal(_)
            | Expr::Map(_)
            | Expr::Struct(_) => return None,
        }
    }
}

/// The expressions directly inside one.
fn children(expr: &Expr) -> Vec<&Expression> {
    match expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Map(map) => entries(&map.entries),
        Expr::Struct(value) => entries(&value.entries),
    }
}

fn entries(entries: &[IdedEntryExpr]) -> Vec<&Expression> {
    entries
        .iter()
        .flat_map(|entry| match &entry.expr {
            EntryExpr::StructField(field) => vec![&field.value],
            EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
        })
        .collect()
}

/// Resolves names from a scope, lazily, within a budget.
struct Resolver<'a> {
    scope: Scope<'a>,
    left: AtomicUsize,
    /// The first step of whose output something was read that may not be whole.
    cut: OnceLock<String>,
}

impl VariableResolver for Resolver<'_> {
    /// CEL asks for the longest dotted name first, so that only the value at its end is converted.
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let found = self.scope.find(variable)?;
        if let Some(step) = self.scope.cut_step(variable, &found) {
            self.cut.get_or_init(|| step);
        }
        let value = match found {
            Found::Value(value) => self.to_cel(value)?,
            Found::Step(None) => to_map(std::iter::empty()),
            Found::Step(Some(output)) => to_map([("output", self.to_cel(output)?)].into_iter()),
            Found::Run { id: false } => {
                to_map([("id", cel::Value::String(Arc::new(self.scope.run.to_owned())))].into_iter())
            }
            Found::Run { id: true } => cel::Value::String(Arc::new(self.scope.run.to_owned())),
        };
        value.try_into().ok().map(CowVal::Owned)
    }
}

impl Resolver<'_> {
    /// None once the budget is used up.
    fn to_cel(&self, value: &Value) -> Option<cel::Value> {
        let cost = 1 + value.as_str().map_or(0, |text| text.len() / 16);
        let left = self.left.load(Ordering::Relaxed).saturating_sub(cost);
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            return None;
        }
        Some(match value {
            Value::Null => cel::Value::Null,
            Value::Bool(value) => cel::Value::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => cel::Value::Int(int),
                (None, Some(uint)) => cel::Value::UInt(uint),
                (None, None) => cel::Value::Float(number.as_f64()?),
            },
            Value::String(text) => cel::Value::String(Arc::new(text.clone())),
            Value::Array(items) => {
                cel::Value::List(Arc::new(items.iter().map(|item| self.to_cel(item)).collect::<Option<_>>()?))
            }
            Value::Object(fields) => {
                let mut map = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    map.push((name.as_str(), self.to_cel(value)?));
                }
                to_map(map.into_iter())
            }
        })
    }
}

fn to_map<'a>(fields: impl Iterator<Item = (&'a str, cel::Value)>) -> cel::Value {
    let map = fields.map(|(name, value)| (Key::String(Arc::new(name.to_owned())), value)).collect();
    cel::Value::Map(Map { map: Arc::new(map) })
}

/// What has no JSON form is an error, never `null`.
fn from_cel(value: &cel::Value, level: usize) -> Result<Value, ExprError> {
    let no_json = |what: &str| Err(ExprError::Evaluation(format!("{what} can't be written as JSON")));
    if level > 128 {
        return Err(ExprError::Limit("the value is nested deeper than 128".to_owned()));
    }
    Ok(match value {
        cel::Value::Null => Value::Null,
        cel::Value::Bool(value) => Value::Bool(*value),
        cel::Value::Int(value) => Value::from(*value),
        cel::Value::UInt(value) => Value::from(*value),
        cel::Value::Float(value) => match serde_json::Number::from_f64(*value) {
            Some(number) => Value::Number(number),
            None => return no_json("a number that is infinite, or none at all,"),
        },
        cel::Value::String(text) => Value::String((**text).clone()),
        cel::Value::List(items) => {
            Value::Array(items.iter().map(|item| from_cel(item, level + 1)).collect::<Result<_, _>>()?)
        }
        cel::Value::Map(map) => {
            let mut fields = serde_json::Map::new();
            for (key, value) in map.map.iter() {
                let Key::String(name) = key else {
                    return no_json("a map with keys that are no text");
                };
                fields.insert((**name).clone(), from_cel(value, level + 1)?);
            }
            Value::Object(fields)
        }
        cel::Value::Bytes(_) => return no_json("a value of bytes"),
        cel::Value::Function(..) | cel::Value::Opaque(_) | cel::Value::Struct(_) => return no_json("this value"),
    })
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// CEL's messages quote whole values; a person needs the beginning.
fn short(message: &str) -> String {
    const LONGEST: usize = 300;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}
