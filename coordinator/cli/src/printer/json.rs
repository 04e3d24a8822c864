//! Messages of the API as canonical protobuf JSON, the same that grpcurl prints: camelCase keys, times in RFC 3339, enums
//! by name, unset fields absent.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage};
use serde_json::Value;

use crate::error::{CliError, Result};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(muster_proto::FILE_DESCRIPTOR_SET).expect("the build wrote a whole descriptor set")
});

/// A message that can be printed.
pub(crate) trait Described {
    /// With its fields by name; serialises as canonical protobuf JSON, in the order of the definition.
    fn described(&self) -> Result<DynamicMessage>;
}

impl<M: Message + Name> Described for M {
    fn described(&self) -> Result<DynamicMessage> {
        let unprintable = |why: String| CliError::failed("OUTPUT_FAILED", format!("{} as JSON: {why}", M::full_name()));
        let descriptor = POOL
            .get_message_by_name(&M::full_name())
            .ok_or_else(|| unprintable("it is not in the descriptor set".to_owned()))?;
        let mut dynamic = DynamicMessage::new(descriptor);
        dynamic.transcode_from(self).map_err(|e| unprintable(e.to_string()))?;
        Ok(dynamic)
    }
}

/// A well-known type as plain JSON, on one line.
pub(crate) fn compact<M: ReflectMessage>(message: &M) -> String {
    // What came over the wire has no text or number that JSON lacks, but for NaN: that is shown as nothing.
    serde_json::to_string(&message.transcode_to_dynamic()).unwrap_or_default()
}

/// Plain JSON as a well-known type.
pub(crate) fn to_message<M: ReflectMessage + Default>(value: Value) -> Result<M> {
    let unusable = |why: String| CliError::usage("JSON_INVALID", why);
    DynamicMessage::deserialize(M::default().descriptor(), value)
        .map_err(|e| unusable(e.to_string()))?
        .transcode_to()
        .map_err(|e| unusable(e.to_string()))
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
        assert_eq!(shown["inputs"]["count"].as_f64(), Some(3.0));
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
