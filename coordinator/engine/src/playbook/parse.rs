//! YAML → a tree with positions, within budgets: the only place that knows the YAML library.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Options, Spanned, UserMessageFormatter};

use super::{
    Finding, Level,
    tree::{Key, Kind, Node, Position},
};

/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// Deepest nesting of lists and maps: the YAML library takes about 45 KiB of stack for each in a debug build.
pub const MAX_DEPTH: usize = 24;
/// Most values in a document, after aliases are expanded.
pub const MAX_NODES: usize = 50_000;

/// Reads one YAML document. What is wrong with the YAML itself is one finding: a parser can't go on after it.
pub(crate) fn parse(document: &[u8]) -> Result<Node, Finding> {
    if document.len() > MAX_DOCUMENT_BYTES {
        return Err(too_large(document.len()));
    }
    let text = std::str::from_utf8(document).map_err(|e| not_utf8(document, e.valid_up_to()))?;
    serde_saphyr::from_str_with_options::<Node>(text, options()).map_err(|error| finding(&error))
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 3 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_anchors: 1000,
            max_aliases: 1000,
            max_recorded_anchor_events: 2 * MAX_NODES,
            max_recorded_anchor_bytes: 4 * MAX_DOCUMENT_BYTES,
            max_total_scalar_bytes: 4 * MAX_DOCUMENT_BYTES,
            max_merge_keys: 1000,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 16,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}

fn finding(error: &Error) -> Finding {
    let whole = error.render_with_formatter(&UserMessageFormatter);
    // The place stands in the finding itself.
    let mut message = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
    let at = error.location().map_or_else(Position::default, position);
    let inner = innermost(error);
    if let Error::AliasReplayLimitExceeded { .. } = inner {
        message = format!("with its aliases written out, the document has more than {MAX_NODES} values");
    }
    let (code, hint) = if matches!(inner, Error::MultipleDocuments { .. }) {
        ("YAML_SYNTAX", "write one playbook in one document")
    } else if is_limit(inner) {
        ("DOCUMENT_TOO_LARGE", "write a smaller, flatter document")
    } else {
        ("YAML_SYNTAX", "mend the YAML; nothing after this place was checked")
    };
    Finding {
        level: Level::Error,
        code,
        message,
        path: String::new(),
        line: at.line,
        column: at.column,
        hint: hint.to_owned(),
    }
}

/// The error itself, without the aliases through which it was met.
fn innermost(error: &Error) -> &Error {
    let error = error.without_snippet();
    if let Error::AliasError { error, .. } = error { innermost(error) } else { error }
}

fn is_limit(error: &Error) -> bool {
    matches!(
        error,
        Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
    ) || error.render_with_formatter(&UserMessageFormatter).starts_with("recursion limit exceeded")
}

fn too_large(bytes: usize) -> Finding {
    Finding {
        level: Level::Error,
        code: "DOCUMENT_TOO_LARGE",
        message: format!("the document has {bytes} bytes, at most {MAX_DOCUMENT_BYTES} are allowed"),
        path: String::new(),
        line: 0,
        column: 0,
        hint: "split it, or keep data in files of an action".to_owned(),
    }
}

fn not_utf8(document: &[u8], valid: usize) -> Finding {
    let before = &document[..valid];
    let line = 1 + before.split(|byte| *byte == b'\n').skip(1).count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let column = 1 + String::from_utf8_lossy(&before[start..]).chars().count();
    Finding {
        level: Level::Error,
        code: "YAML_SYNTAX",
        message: "the document is not UTF-8 here".to_owned(),
        path: String::new(),
        line: u32::try_from(line).unwrap_or(0),
        column: u32::try_from(column).unwrap_or(0),
        hint: "save it as UTF-8".to_owned(),
    }
}

fn position(location: Location) -> Position {
    Position {
        line: u32::try_from(location.line()).unwrap_or(0),
        column: u32::try_from(location.column()).unwrap_or(0),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Kind>::deserialize(deserializer)?;
        Ok(Node { at: position(spanned.referenced), kind: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        Number::from_f64(value).map(Kind::Number).ok_or_else(|| E::custom("a number has to be finite"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Kind, E> {
        Ok(Kind::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Kind, E> {
        Ok(Kind::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Kind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<Kind>, Node>()? {
            let name = match key.value {
                Kind::Text(text) => text,
                Kind::Number(number) => number.to_string(),
                Kind::Bool(value) => value.to_string(),
                Kind::Null | Kind::List(_) | Kind::Map(_) | Kind::Hole => {
                    return Err(A::Error::custom("a key has to be a text"));
                }
            };
            entries.push((Key { at: position(key.referenced), name }, node));
        }
        Ok(Kind::Map(entries))
    }
}
