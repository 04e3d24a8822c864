//! What can be said of an expression without evaluating it: its type as far as it is known, names that mean nothing,
//! functions that do not exist, operations that can't work.

use cel::{
    common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, SelectExpr, operators},
    parser::Expression,
};

use super::{ExprError, children, eval_bool, parse, path_of};
use crate::playbook::{decode::nearest_word, scope::Scope};

/// A type, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Not known before it is evaluated.
    Any,
    Bool,
    Int,
    Uint,
    Double,
    /// A whole or a fractional number, as the data has it.
    Number,
    Text,
    Bytes,
    List,
    Map,
    Null,
}

/// A path that an expression names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reference<'a> {
    /// `inputs`, `domain`.
    pub(crate) path: &'a [&'a str],
    /// Inside `has(…)`: it need not be there, but it has to be possible.
    pub(crate) tested: bool,
}

/// Something wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `UPPER_SNAKE_CASE`.
    pub(crate) code: &'static str,
    /// It may be wanted.
    pub(crate) warning: bool,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: String,
    /// Where in the expression, in characters from 0.
    pub(crate) offset: usize,
}

/// Tells what a name means; adds to the problems where it means nothing.
pub(crate) type Names<'a> = dyn Fn(Reference<'_>, &mut Vec<Problem>) -> Type + 'a;

/// Checks an expression. Its type is not known where it has a problem.
pub(crate) fn check(expression: &str, names: &Names<'_>) -> (Type, Vec<Problem>) {
    let ast = match parse(expression) {
        Ok(ast) => ast,
        Err(error) => return (Type::Any, vec![unparsed(&error)]),
    };
    let mut checker = Checker { source: expression, names, problems: Vec::new(), bound: Vec::new() };
    let found = checker.type_of(&ast);
    (if checker.problems.is_empty() { found } else { Type::Any }, checker.problems)
}

fn unparsed(error: &ExprError) -> Problem {
    let message = error.to_string();
    let (code, offset, hint) = match error {
        ExprError::Syntax { column, .. } => ("EXPRESSION_SYNTAX", column - 1, "write a CEL expression"),
        ExprError::Limit(_) => ("EXPRESSION_LIMIT", 0, "write a simpler expression, or let an action work it out"),
        ExprError::Evaluation(_) | ExprError::NotBool(_) | ExprError::Cut(_) => ("EXPRESSION_TYPE", 0, ""),
    };
    Problem { code, warning: false, message, hint: hint.to_owned(), offset }
}

impl Type {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "of any type",
            Self::Bool => "a boolean",
            Self::Int => "a whole number",
            Self::Uint => "an unsigned number",
            Self::Double => "a fractional number",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::Bytes => "bytes",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Null => "null",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double | Self::Number)
    }

    /// Whether values of both can be equal or ordered.
    fn compares_with(self, other: Self) -> bool {
        self == other || self == Self::Any || other == Self::Any || self.is_number() && other.is_number()
    }

    /// The type of `self + other`, `self - other` and so on; none where there is none.
    fn combined_with(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Any, other) | (other, Self::Any) => Some(other),
            (a, b) if a == b => Some(a),
            (Self::Number, number) | (number, Self::Number) if number.is_number() => Some(number),
            _ => None,
        }
    }
}

struct Checker<'a> {
    source: &'a str,
    names: &'a Names<'a>,
    problems: Vec<Problem>,
    bound: Vec<(&'a str, Type)>,
}

impl Checker<'_> {
    /// The tree is no deeper than [`super::MAX_EXPRESSION_DEPTH`].
    fn type_of(&mut self, node: &Expression) -> Type {
        if let Some(path) = path_of(&node.expr) {
            return self.name(&path, false);
        }
        match &node.expr {
            Expr::Unspecified | Expr::Ident(_) => Type::Any,
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::Text,
                LiteralValue::UInt(_) => Type::Uint,
            },
            Expr::Select(select) => self.select(select),
            Expr::List(_) => self.all_below(node, Type::List),
            Expr::Map(_) => self.all_below(node, Type::Map),
            Expr::Struct(message) => {
                self.problem("EXPRESSION_TYPE", &message.type_name, format!("there is no type {}", message.type_name));
                Type::Any
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(call),
        }
    }

    fn all_below(&mut self, node: &Expression, own: Type) -> Type {
        for child in children(&node.expr) {
            self.type_of(child);
        }
        own
    }

    fn name(&mut self, path: &[&str], tested: bool) -> Type {
        if let Some((_, bound)) = self.bound.iter().rev().find(|(name, _)| *name == path[0]) {
            return if path.len() == 1 { *bound } else { Type::Any };
        }
        let mut problems = Vec::new();
        let found = (self.names)(Reference { path, tested }, &mut problems);
        let offset = offset_of(self.source, &path.join("."));
        self.problems.extend(problems.into_iter().map(|problem| Problem { offset, ..problem }));
        found
    }

    fn select(&mut self, select: &SelectExpr) -> Type {
        if let (true, Some(mut path)) = (select.test, path_of(&select.operand.expr)) {
            path.push(&select.field);
            self.name(&path, true);
            return Type::Bool;
        }
        let operand = self.type_of(&select.operand);
        if !matches!(operand, Type::Any | Type::Map) {
            self.problem("EXPRESSION_TYPE", &select.field, format!("{} has no field {}", operand.name(), select.field));
        }
        if select.test { Type::Bool } else { Type::Any }
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Type {
        let range = self.type_of(&comprehension.iter_range);
        if !matches!(range, Type::Any | Type::List | Type::Map) {
            self.problem("EXPRESSION_TYPE", "", format!("{} has no elements", range.name()));
        }
        let start = self.type_of(&comprehension.accu_init);
        let before = self.bound.len();
        // The names live as long as the tree, which outlives the walk; the walk forgets them again below.
        let mut inner = Checker {
            source: self.source,
            names: self.names,
            problems: std::mem::take(&mut self.problems),
            bound: self.bound[..before].to_vec(),
        };
        inner.bound.push((&comprehension.iter_var, Type::Any));
        if let Some(second) = &comprehension.iter_var2 {
            inner.bound.push((second, Type::Any));
        }
        inner.bound.push((&comprehension.accu_var, start));
        inner.type_of(&comprehension.loop_cond);
        inner.type_of(&comprehension.loop_step);
        let result = inner.type_of(&comprehension.result);
        self.problems = inner.problems;
        result
    }

    fn call(&mut self, call: &CallExpr) -> Type {
        let target = call.target.as_deref().map(|target| self.type_of(target));
        let args: Vec<Type> = call.args.iter().map(|arg| self.type_of(arg)).collect();
        let name = call.func_name.as_str();
        match (name, target, &args[..]) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR, None, [_, _])
            | (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, None, [_]) => self.booleans(name, &args),
            (operators::EQUALS | operators::NOT_EQUALS, None, [a, b]) => self.equality(name, *a, *b),
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                None,
                [a, b],
            ) => self.order(name, *a, *b),
            (operators::IN, None, [_, range]) => {
                if !matches!(range, Type::Any | Type::List | Type::Map) {
                    self.problem("EXPRESSION_TYPE", " in ", format!("nothing can be in {}", range.name()));
                }
                Type::Bool
            }
            (operators::ADD, None, [a, b]) => self.arithmetic(name, *a, *b, &[Type::Text, Type::List, Type::Bytes]),
            (operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO, None, [a, b]) => {
                self.arithmetic(name, *a, *b, &[])
            }
            (operators::NEGATE, None, [a]) => self.arithmetic(name, *a, *a, &[]),
            (operators::CONDITIONAL, None, [condition, then, otherwise]) => {
                self.booleans(name, &[*condition]);
                if then == otherwise { *then } else { Type::Any }
            }
            (operators::INDEX, None, [of, _]) => {
                if !matches!(of, Type::Any | Type::List | Type::Map) {
                    self.problem("EXPRESSION_TYPE", "[", format!("{} has no elements", of.name()));
                }
                Type::Any
            }
            _ => self.function(call, target, &args),
        }
    }

    fn function(&mut self, call: &CallExpr, target: Option<Type>, args: &[Type]) -> Type {
        let name = call.func_name.as_str();
        let on: Vec<Type> = target.iter().chain(args).copied().collect();
        let convertible = |of: Type| of.is_number() || matches!(of, Type::Any | Type::Text);
        let (fits, gives) = match (name, target.is_some(), &on[..]) {
            ("size", _, [of]) => {
                (matches!(of, Type::Any | Type::Text | Type::List | Type::Map | Type::Bytes), Type::Int)
            }
            ("contains" | "startsWith" | "endsWith" | "matches", true, [of, arg]) | ("matches", false, [of, arg]) => {
                (of.compares_with(Type::Text) && arg.compares_with(Type::Text), Type::Bool)
            }
            ("trim" | "lowerAscii" | "upperAscii", true, [of]) => (of.compares_with(Type::Text), Type::Text),
            ("join", true, [of, separator]) => {
                (of.compares_with(Type::List) && separator.compares_with(Type::Text), Type::Text)
            }
            ("string", false, [of]) => (!matches!(of, Type::List | Type::Map | Type::Null), Type::Text),
            ("int", false, [of]) => (convertible(*of), Type::Int),
            ("uint", false, [of]) => (convertible(*of), Type::Uint),
            ("double", false, [of]) => (convertible(*of), Type::Double),
            ("bool", false, [of]) => (matches!(of, Type::Any | Type::Text | Type::Bool), Type::Bool),
            ("bytes", false, [of]) => (matches!(of, Type::Any | Type::Text | Type::Bytes), Type::Bytes),
            ("dyn" | "type", false, [_]) => (true, Type::Any),
            _ => {
                self.unknown_function(name);
                return Type::Any;
            }
        };
        if !fits {
            let of: Vec<&str> = on.iter().map(|of| of.name()).collect();
            self.problem("EXPRESSION_TYPE", name, format!("{name} can't work on {}", of.join(" and ")));
        }
        if name == "matches" {
            self.pattern(call);
        }
        gives
    }

    /// A pattern that is written out can be tried.
    fn pattern(&mut self, call: &CallExpr) {
        let Some(Expr::Literal(LiteralValue::String(pattern))) = call.args.last().map(|arg| &arg.expr) else {
            return;
        };
        let nothing = serde_json::Value::Null;
        let no_steps = std::collections::BTreeMap::new();
        let scope = Scope { inputs: &nothing, steps: &no_steps, output: None, run: "" };
        let quoted = serde_json::Value::from(pattern.inner()).to_string();
        if let Err(error) = eval_bool(&format!("''.matches({quoted})"), &scope) {
            let message = error.to_string();
            let why = message.rsplit("error: ").next().unwrap_or(&message);
            self.problem("EXPRESSION_TYPE", "matches", format!("the pattern can't be used: {why}"));
        }
    }

    fn unknown_function(&mut self, name: &str) {
        const FUNCTIONS: &[&str] = &[
            "all",
            "bool",
            "bytes",
            "contains",
            "double",
            "dyn",
            "endsWith",
            "exists",
            "exists_one",
            "filter",
            "has",
            "int",
            "join",
            "lowerAscii",
            "map",
            "matches",
            "size",
            "startsWith",
            "string",
            "trim",
            "type",
            "uint",
            "upperAscii",
        ];
        let (message, hint) = if FUNCTIONS.contains(&name) {
            (format!("{name} does not take these arguments"), "write size(x), x.contains(y), int(x)".to_owned())
        } else {
            (format!("there is no function {name}"), nearest_word(name, FUNCTIONS))
        };
        self.problem("UNKNOWN_FUNCTION", name, message);
        if let Some(problem) = self.problems.last_mut() {
            problem.hint = hint;
        }
    }

    fn booleans(&mut self, operator: &str, operands: &[Type]) -> Type {
        if let Some(wrong) = operands.iter().find(|of| !matches!(of, Type::Any | Type::Bool)) {
            let sign = sign(operator);
            self.problem("EXPRESSION_TYPE", sign, format!("{sign} needs booleans, this is {}", wrong.name()));
        }
        Type::Bool
    }

    fn equality(&mut self, operator: &str, a: Type, b: Type) -> Type {
        if !a.compares_with(b) && a != Type::Null && b != Type::Null {
            let message = format!("{} never equals {}", a.name(), b.name());
            self.problem("EXPRESSION_TYPE", sign(operator), message);
        }
        Type::Bool
    }

    fn order(&mut self, operator: &str, a: Type, b: Type) -> Type {
        let ordered = |of: Type| of.is_number() || matches!(of, Type::Any | Type::Text | Type::Bool | Type::Bytes);
        if !(a.compares_with(b) && ordered(a) && ordered(b)) {
            let sign = sign(operator);
            self.problem("EXPRESSION_TYPE", sign, format!("{sign} can't compare {} with {}", a.name(), b.name()));
        }
        Type::Bool
    }

    fn arithmetic(&mut self, operator: &str, a: Type, b: Type, also: &[Type]) -> Type {
        let possible = |of: Type| of.is_number() || of == Type::Any || also.contains(&of);
        match a.combined_with(b) {
            Some(found) if possible(a) && possible(b) => return found,
            _ => {}
        }
        let sign = sign(operator);
        self.problem("EXPRESSION_TYPE", sign, format!("{sign} can't work on {} and {}", a.name(), b.name()));
        if let (true, true, Some(problem)) = (a.is_number(), b.is_number(), self.problems.last_mut()) {
            "convert one of them: int(…), double(…)".clone_into(&mut problem.hint);
        }
        Type::Any
    }

    fn problem(&mut self, code: &'static str, near: &str, message: String) {
        let offset = offset_of(self.source, near.trim());
        let hint = "both sides of an operator have one type; string(…), int(…) and double(…) convert".to_owned();
        self.problems.push(Problem { code, warning: false, message, hint, offset });
    }
}

/// Where a piece of text stands in an expression, in characters; 0 where it does not.
fn offset_of(source: &str, piece: &str) -> usize {
    source.find(piece).map_or(0, |at| source[..at].chars().count())
}

/// How an operator is written.
fn sign(operator: &str) -> &str {
    match operator {
        operators::CONDITIONAL => "?",
        operators::NOT_STRICTLY_FALSE => "all",
        _ => operator.trim_matches('_'),
    }
}
