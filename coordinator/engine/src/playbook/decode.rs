//! Tree → types, reporting everything that is wrong on the way.
//!
//! Serde stops at the first error. So each error is reported, the place mended (a bad value becomes a [`Kind::Hole`], an
//! unknown key is taken out, a missing one is put in as a hole), and the document decoded again, until nothing is wrong. A
//! hole decodes to whatever is wanted there, and lint says nothing more about it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
        value::{MapDeserializer, SeqDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{
    findings::Findings,
    tree::{Key, Kind, Node, Path, Segment},
};

/// Findings times values: a bound for the work on a hopeless document.
const MAX_WORK: usize = 2_000_000;

/// Decodes what can be decoded. Returns none where the rest is not worth looking at.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(tree: &mut Node, findings: &mut Findings) -> Option<T> {
    report_duplicates(tree, &Path::default(), findings);
    let size = size_of(tree);
    let mut work = 0;
    loop {
        let error = match T::deserialize(&*tree) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        report(tree, &error, findings);
        mend(tree, error);
        work += size;
        if findings.is_full() || work > MAX_WORK {
            findings.stop();
            return None;
        }
    }
}

/// Why a value can't be decoded, and where.
#[derive(Debug)]
pub(crate) struct DecodeError {
    fault: Fault,
    /// The innermost first.
    path: Vec<Segment>,
}

#[derive(Debug)]
enum Fault {
    UnknownKey { name: String, known: &'static [&'static str] },
    MissingKey(&'static str),
    UnknownWord { word: String, known: &'static [&'static str] },
    Value(String),
}

impl DecodeError {
    fn new(fault: Fault) -> Self {
        Self { fault, path: Vec::new() }
    }

    fn below(mut self, segment: Segment) -> Self {
        self.path.push(segment);
        self
    }

    fn path(&self) -> Path {
        let mut path = Path(self.path.iter().rev().cloned().collect());
        match &self.fault {
            Fault::UnknownKey { name, .. } => path = path.key(name),
            Fault::MissingKey(name) => path = path.key(name),
            Fault::UnknownWord { .. } | Fault::Value(_) => {}
        }
        path
    }
}

fn report(tree: &Node, error: &DecodeError, findings: &mut Findings) {
    let path = error.path();
    match &error.fault {
        Fault::UnknownKey { name, known } => {
            let latest = findings.error_at(
                tree.key_position(&path),
                &path,
                "UNKNOWN_KEY",
                format!("there is no key {name:?} here"),
            );
            latest.hint(nearest_word(name, known));
        }
        Fault::MissingKey(name) => {
            findings.error(&path, "MISSING_KEY", format!("{name:?} is missing")).hint(format!("add {name}:"));
        }
        Fault::UnknownWord { word, known } => {
            let message = format!("{word:?} is none of the possible values");
            findings.error(&path, "INVALID_VALUE", message).hint(nearest_word(word, known));
        }
        Fault::Value(message) => {
            findings.error(&path, "INVALID_TYPE", message.clone()).hint("see docs/reference/playbook.md");
        }
    }
}

fn mend(tree: &mut Node, error: DecodeError) {
    let path = Path(error.path.iter().rev().cloned().collect());
    let Some(node) = tree.at_mut(&path.0) else {
        tree.kind = Kind::Hole;
        return;
    };
    match (error.fault, &mut node.kind) {
        (Fault::UnknownKey { name, .. }, Kind::Map(entries)) => entries.retain(|(key, _)| key.name != name),
        (Fault::MissingKey(name), Kind::Map(entries)) => {
            entries.push((Key { at: node.at, name: name.to_owned() }, Node::hole(node.at)));
        }
        _ => node.kind = Kind::Hole,
    }
}

/// Reports keys that stand twice in one map and keeps the first.
fn report_duplicates(node: &mut Node, path: &Path, findings: &mut Findings) {
    match &mut node.kind {
        Kind::Map(entries) => {
            let mut seen = std::collections::BTreeMap::new();
            entries.retain(|(key, _)| {
                let Some(first) = seen.insert(key.name.clone(), key.at) else {
                    return true;
                };
                seen.insert(key.name.clone(), first);
                findings
                    .error_at(
                        key.at,
                        &path.key(&key.name),
                        "DUPLICATE_KEY",
                        format!("{:?} stands here twice", key.name),
                    )
                    .hint(format!("it stands in line {} already; keep one", first.line));
                false
            });
            for (key, value) in entries {
                report_duplicates(value, &path.key(&key.name), findings);
            }
        }
        Kind::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                report_duplicates(item, &path.index(index), findings);
            }
        }
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::Hole => {}
    }
}

fn size_of(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::Map(entries) => entries.iter().map(|(_, node)| size_of(node)).sum(),
        Kind::List(items) => items.iter().map(size_of).sum(),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::Hole => 0,
    }
}

/// What was probably meant, or what there is.
pub(crate) fn nearest_word(word: &str, known: &[&str]) -> String {
    let lower = word.to_lowercase();
    let nearest = known.iter().map(|k| (distance(&lower, &k.to_lowercase()), *k)).min();
    match nearest {
        Some((distance, known)) if distance <= 2 && distance < known.len() => format!("did you mean {known:?}?"),
        Some(_) => format!("possible: {}", known.join(", ")),
        None => "remove it".to_owned(),
    }
}

/// Levenshtein distance; long words are never near.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 40 || b.len() > 40 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(from != *to)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::UnknownKey { name, .. } => write!(f, "unknown key {name:?}"),
            Fault::MissingKey(name) => write!(f, "missing key {name:?}"),
            Fault::UnknownWord { word, .. } => write!(f, "unknown word {word:?}"),
            Fault::Value(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Fault::Value(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match unexpected {
            Unexpected::Bool(value) => format!("the boolean {value}"),
            Unexpected::Unsigned(value) => format!("the number {value}"),
            Unexpected::Signed(value) => format!("the number {value}"),
            Unexpected::Float(value) => format!("the number {value}"),
            Unexpected::Str(text) if text.chars().count() <= 40 => format!("the text {text:?}"),
            Unexpected::Str(_) => "a text".to_owned(),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a map".to_owned(),
            Unexpected::Char(_)
            | Unexpected::Bytes(_)
            | Unexpected::Option
            | Unexpected::NewtypeStruct
            | Unexpected::Enum
            | Unexpected::UnitVariant
            | Unexpected::NewtypeVariant
            | Unexpected::TupleVariant
            | Unexpected::StructVariant
            | Unexpected::Other(_) => unexpected.to_string(),
        };
        let expected = match expected.to_string() {
            text if text == "a string" => "a text".to_owned(),
            text if text == "a sequence" => "a list".to_owned(),
            text if text.starts_with("struct ") => "a map".to_owned(),
            text if text == "u32" => "a whole number".to_owned(),
            text if text == "f64" => "a number".to_owned(),
            text => text,
        };
        Self::new(Fault::Value(format!("expected {expected}, found {found}")))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownWord { word: word.to_owned(), known })
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownKey { name: name.to_owned(), known })
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(Fault::MissingKey(name))
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.kind {
            Kind::Null | Kind::Hole => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or_default()),
            },
            Kind::Text(text) => visitor.visit_borrowed_str(text),
            Kind::List(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Kind::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.kind {
            Kind::Null | Kind::Hole => visitor.visit_none(),
            Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Map(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.kind {
            Kind::Hole => visitor.visit_str(""),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Map(_) => {
                self.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.kind {
            Kind::Hole => visitor.visit_seq(SeqDeserializer::<_, DecodeError>::new(std::iter::empty::<()>())),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Map(_) => {
                self.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.kind {
            Kind::Hole => visitor.visit_map(MapDeserializer::<_, DecodeError>::new(std::iter::empty::<(&str, &str)>())),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Map(_) => {
                self.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.kind {
            Kind::Hole => visitor.visit_map(Holes { fields: fields.iter(), node: self }),
            Kind::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &"a map")),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::Map(_) => {
                self.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.kind {
            Kind::Text(word) => visitor.visit_enum(Word(word)),
            Kind::Hole => visitor.visit_enum(Word(words.first().copied().unwrap_or_default())),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => {
                Err(de::Error::custom(format!("expected one of {}", words.join(", "))))
            }
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if matches!(self.kind, Kind::Hole) { visitor.visit_u32(1) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if matches!(self.kind, Kind::Hole) { visitor.visit_f64(1.0) } else { self.deserialize_any(visitor) }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if matches!(self.kind, Kind::Hole) { visitor.visit_bool(false) } else { self.deserialize_any(visitor) }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.below(Segment::Index(index)))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de (Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, DecodeError> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, DecodeError> {
        let (key, node) = self.value.ok_or_else(|| de::Error::custom("a value before its key"))?;
        seed.deserialize(node).map_err(|error| error.below(Segment::Key(key.name.clone())))
    }
}

/// A struct whose every field is a hole.
struct Holes<'de> {
    fields: std::slice::Iter<'static, &'static str>,
    node: &'de Node,
}

impl<'de> MapAccess<'de> for Holes<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let Some(field) = self.fields.next() else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, DecodeError> = (*field).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.node)
    }
}

/// A word of an enumeration.
struct Word<'de>(&'de str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), DecodeError> {
        let word: StrDeserializer<'_, DecodeError> = self.0.into_deserializer();
        seed.deserialize(word).map(|value| (value, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, DecodeError> {
        Err(de::Error::custom("expected one word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, DecodeError> {
        Err(de::Error::custom("expected one word"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, DecodeError> {
        Err(de::Error::custom("expected one word"))
    }
}
