//! JSON as google.protobuf.Struct and back. prost has the types, not the conversions.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;

/// The Struct of a JSON object.
pub fn structure(object: Json) -> Struct {
    let Json::Object(members) = object else { panic!("{object} is no object") };
    Struct { fields: members.into_iter().map(|(key, value)| (key, from_json(value))).collect() }
}

/// The JSON object of a Struct.
pub fn object(structure: &Struct) -> Json {
    structure.fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect()
}

fn from_json(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // A Struct has doubles only: integers beyond 2^53 lose precision here.
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(from_json).collect() }),
        object @ Json::Object(_) => Kind::StructValue(structure(object)),
    };
    Value { kind: Some(kind) }
}

fn to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::from(*value),
        Some(Kind::NumberValue(value)) => Json::from(*value),
        Some(Kind::StringValue(value)) => Json::from(value.as_str()),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(value)) => object(value),
    }
}
