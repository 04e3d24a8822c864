//! Messages of the API as canonical protobuf JSON, the same that grpcurl prints: camelCase keys, times in RFC 3339, enums
//! by name, unset fields absent.

use std::{fmt, sync::LazyLock};

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::error::{CliError, Result};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(muster_proto::FILE_DESCRIPTOR_SET).expect("the build wrote a whole descriptor set")
});

/// A message that can be printed.
pub(crate) trait Described {
    /// Canonical protobuf JSON, in the order of the definition.
    fn described(&self) -> Result<Plain>;
}

impl<M: Message + Name> Described for M {
    fn described(&self) -> Result<Plain> {
        let unprintable = |why: String| CliError::failed("OUTPUT_FAILED", format!("{} as JSON: {why}", M::full_name()));
        let descriptor = POOL
            .get_message_by_name(&M::full_name())
            .ok_or_else(|| unprintable("it is not in the descriptor set".to_owned()))?;
        let mut dynamic = DynamicMessage::new(descriptor);
        dynamic.transcode_from(self).map_err(|e| unprintable(e.to_string()))?;
        let mut plain = Plain::of(&dynamic).map_err(|e| unprintable(e.to_string()))?;
        plain.sort_maps(&dynamic.descriptor());
        Ok(plain)
    }
}

/// A well-known type as plain JSON, on one line.
pub(crate) fn compact<M: ReflectMessage>(message: &M) -> String {
    // What came over the wire has no text or number that JSON lacks, but for NaN: that is shown as nothing.
    let plain = Plain::of(&message.transcode_to_dynamic());
    plain.and_then(|plain| serde_json::to_string(&plain)).unwrap_or_default()
}

/// Plain JSON as a well-known type.
pub(crate) fn to_message<M: ReflectMessage + Default>(value: Value) -> Result<M> {
    let unusable = |why: String| CliError::usage("JSON_INVALID", why);
    DynamicMessage::deserialize(M::default().descriptor(), value)
        .map_err(|e| unusable(e.to_string()))?
        .transcode_to()
        .map_err(|e| unusable(e.to_string()))
}

/// The JSON text of an option as a well-known type.
pub(crate) fn message_of<M: ReflectMessage + Default>(option: &str, text: &str) -> Result<M> {
    let value = serde_json::from_str(text);
    to_message(value.map_err(|e| CliError::usage("JSON_INVALID", format!("{option} is no JSON: {e}")))?)
}

/// JSON that keeps the order of its keys, and numbers without a fraction as integers: protobuf knows no integers in
/// free-form values, people do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A number without a fraction.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Plain>),
    /// An object.
    Object(Vec<(String, Plain)>),
}

/// Up to here every integer is a double.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

impl Plain {
    fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::from_str(&serde_json::to_string(value)?)
    }

    /// Maps come in any order; the fields of messages in that of the definition.
    fn sort_maps(&mut self, message: &MessageDescriptor) {
        let Self::Object(fields) = self else { return };
        for (name, value) in fields {
            let Some(field) = message.get_field_by_json_name(name) else { continue };
            match (&mut *value, field.kind()) {
                (Self::Object(entries), _) if field.is_map() => entries.sort_by(|(a, _), (b, _)| a.cmp(b)),
                (Self::List(values), Kind::Message(inner)) => values.iter_mut().for_each(|v| v.sort_maps(&inner)),
                (_, Kind::Message(inner)) => value.sort_maps(&inner),
                (_, _) => {}
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is within the bounds of what a double holds exactly")]
    fn number(value: f64) -> Self {
        if value.fract() == 0.0 && value.abs() < MAX_EXACT { Self::Integer(value as i64) } else { Self::Number(value) }
    }
}

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Number(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(values) => serializer.collect_seq(values),
            Self::Object(entries) => serializer.collect_map(entries.iter().map(|(key, value)| (key, value))),
        }
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Plain, E> {
        Ok(Plain::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Plain, E> {
        Ok(Plain::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Plain, E> {
        i64::try_from(value).map(Plain::Integer).map_err(E::custom)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Plain, E> {
        Ok(Plain::number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Plain, E> {
        Ok(Plain::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Plain, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Plain::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Plain, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Plain::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1;
    use serde_json::json;

    use super::*;

    #[test]
    fn inputs_go_there_and_back() {
        let inputs = json!({"domain": "example.org", "count": 3, "deep": {"list": [true, null, 1.5]}});
        let message: prost_types::Struct = to_message(inputs.clone()).unwrap();
        let request = v1::StartRunRequest { inputs: Some(message), ..v1::StartRunRequest::default() };
        let shown = serde_json::to_value(request.described().unwrap()).unwrap();
        assert_eq!(shown["inputs"]["deep"], inputs["deep"]);
        assert_eq!(shown["inputs"]["count"].as_i64(), Some(3));
    }

    #[test]
    fn maps_are_sorted_and_fields_are_not() {
        let labels = ["z", "a", "m", "k"].map(|key| (key.to_owned(), String::new())).into();
        let agent = v1::AgentSelector { role: "infra".to_owned(), labels, ..v1::AgentSelector::default() };
        let step = v1::Step { id: "s".to_owned(), agent: Some(agent), ..v1::Step::default() };
        let run = v1::Run { name: "r".to_owned(), steps: vec![step], ..v1::Run::default() };
        let expected =
            r#"{"name":"r","steps":[{"id":"s","agent":{"role":"infra","labels":{"a":"","k":"","m":"","z":""}}}]}"#;
        assert_eq!(serde_json::to_string(&run.described().unwrap()).unwrap(), expected);
    }

    #[test]
    fn messages_are_canonical_json() {
        let run = v1::Run {
            run_id: "r".to_owned(),
            state: v1::run::State::RollingBack.into(),
            start_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..v1::Run::default()
        };
        let expected = r#"{"runId":"r","state":"STATE_ROLLING_BACK","startTime":"1970-01-01T00:00:01Z"}"#;
        assert_eq!(serde_json::to_string(&run.described().unwrap()).unwrap(), expected);
    }
}
