//! Deserializes a value by its exact type. What serde derives takes a list as a struct, its entries
//! as the fields in their order; and its messages name types of Rust and quote whole values.

use serde::{
    Deserializer,
    de::{
        Error as _, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer, StringDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

use crate::telemetry::printable::shortened;

/// A value that is read by its exact type.
#[derive(Debug, Clone)]
pub(super) struct Strict(pub(super) Value);

impl Strict {
    /// Returns the error for a value of another type.
    fn reject(&self, expected: &str) -> Error {
        Error::custom(format_args!("expected {expected}, got {}", kind(&self.0)))
    }

    fn unsigned(&self, max: u64) -> Result<u64, Error> {
        match (self.0.as_u64(), &self.0) {
            (Some(number), _) if number <= max => Ok(number),
            (Some(number), _) => {
                let message = format_args!("expected at most {max}, got {number}");
                Err(Error::custom(message))
            }
            (None, Value::Number(number)) => {
                let message = format_args!("expected a whole number from 0 on, got {number}");
                Err(Error::custom(message))
            }
            (None, _) => Err(self.reject("a whole number from 0 on")),
        }
    }
}

/// Returns the type of a value, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Returns names as a choice: `a, b or c`.
fn choice(names: &[&str]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        names => names.join(", "),
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Strict)))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_object() {
            self.deserialize_any(visitor)
        } else {
            Err(self.reject("a map"))
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_array() {
            self.deserialize_any(visitor)
        } else {
            Err(self.reject("a list"))
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Bool(_) | Value::Number(_) => {
                let message = format_args!("expected a text in quotes, got {}", kind(&self.0));
                Err(Error::custom(message))
            }
            _ => Err(self.reject("a text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bool(given) => visitor.visit_bool(given),
            _ => Err(self.reject("true or false")),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(self.unsigned(u32::MAX.into())?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(self.unsigned(u64::MAX)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Reads one of several names; no enum of the file has more than a name.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let expected = choice(names);
        match self.0 {
            Value::String(name) if names.contains(&&*name) => {
                let name: StringDeserializer<Error> = name.into_deserializer();
                visitor.visit_enum(name)
            }
            Value::String(other) => {
                let other = shortened(&other);
                Err(Error::custom(format_args!(
                    "expected {expected}, got {other:?}"
                )))
            }
            _ => Err(self.reject(&expected)),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}
