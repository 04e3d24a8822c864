//! JSON values, times and durations.

use jiff::Timestamp;
use prost_types::{ListValue, Struct, Value as PbValue, value::Kind};
use serde_json::{Map, Number, Value};

/// Integers above this are not exact in a double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// JSON as it travels.
pub fn to_value(value: &Value) -> PbValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() }),
        Value::Object(map) => Kind::StructValue(to_struct_of(map)),
    };
    PbValue { kind: Some(kind) }
}

/// An object as it travels; anything else is none.
pub fn to_struct(value: &Value) -> Option<Struct> {
    value.as_object().map(to_struct_of)
}

fn to_struct_of(map: &Map<String, Value>) -> Struct {
    Struct { fields: map.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() }
}

/// JSON as it arrived. A number without a fraction and below 2^53 becomes an integer, NaN and the infinities null.
pub fn from_value(value: PbValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::NumberValue(n)) => from_number(n),
        Some(Kind::StringValue(s)) => Value::String(s),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(from_value).collect()),
        Some(Kind::StructValue(fields)) => from_struct(fields),
    }
}

/// An object as it arrived.
pub fn from_struct(value: Struct) -> Value {
    Value::Object(value.fields.into_iter().map(|(k, v)| (k, from_value(v))).collect())
}

#[expect(clippy::cast_possible_truncation, reason = "checked to be integral and within 2^53")]
fn from_number(n: f64) -> Value {
    if n.fract() == 0.0 && n.abs() < EXACT {
        Value::Number(Number::from(n as i64))
    } else {
        Number::from_f64(n).map_or(Value::Null, Value::Number)
    }
}

/// A moment as it travels.
pub fn to_time(at: Timestamp) -> prost_types::Timestamp {
    let nanos = at.subsec_nanosecond();
    if nanos < 0 {
        // Before 1970 jiff counts both parts down; the wire wants nanos that count up.
        return prost_types::Timestamp { seconds: at.as_second() - 1, nanos: nanos + 1_000_000_000 };
    }
    prost_types::Timestamp { seconds: at.as_second(), nanos }
}

/// A length of time as it travels.
pub fn to_duration(ms: u64) -> prost_types::Duration {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0);
    prost_types::Duration { seconds, nanos }
}

/// A length of time as it arrived; none where it is negative or out of range.
pub fn from_duration(duration: prost_types::Duration) -> Option<std::time::Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok().filter(|n| *n < 1_000_000_000)?;
    Some(std::time::Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_come_back() {
        let value = json!({"a": [1, 2.5, -3, null, true, "x"], "b": {"c": {}}, "big": 9_007_199_254_740_991_i64});
        assert_eq!(from_value(to_value(&value)), value);
        assert_eq!(from_struct(to_struct(&value).unwrap()), value);
        assert!(to_struct(&json!([1])).is_none());
    }

    #[test]
    fn numbers_that_json_has_not_become_null() {
        for n in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(from_value(PbValue { kind: Some(Kind::NumberValue(n)) }), Value::Null);
        }
        assert_eq!(from_value(PbValue { kind: Some(Kind::NumberValue(1e300)) }), json!(1e300));
    }

    #[test]
    fn times_before_1970_count_up() {
        let at: Timestamp = "1969-12-31T23:59:58.5Z".parse().unwrap();
        assert_eq!(to_time(at), prost_types::Timestamp { seconds: -2, nanos: 500_000_000 });
        let at: Timestamp = "2026-01-07T10:03:00.25Z".parse().unwrap();
        assert_eq!(to_time(at).nanos, 250_000_000);
    }

    #[test]
    fn durations_come_back() {
        let d = from_duration(to_duration(61_500)).unwrap();
        assert_eq!(d, std::time::Duration::from_millis(61_500));
        assert_eq!(from_duration(prost_types::Duration { seconds: -1, nanos: 0 }), None);
        assert_eq!(from_duration(prost_types::Duration { seconds: 1, nanos: -5 }), None);
    }
}
