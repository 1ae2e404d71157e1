//! Splits a JSON object into its fields, so that one that cannot be read costs no other.
//!
//! This module uses no other module of the crate, so that every module may use it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Fields of an object, at most: of another object, each costs memory in addition to its text.
pub const FIELDS: usize = 1024;

/// The fields of an object: each value is checked to be JSON, and not parsed.
pub struct RawFields<'a>(pub Vec<(String, &'a str)>);

impl<'de> Deserialize<'de> for RawFields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct RawFieldsVisitor;

        impl<'de> Visitor<'de> for RawFieldsVisitor {
            type Value = RawFields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                let mut count = 0;
                while let Some(Name(name)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    count += 1;
                    if count > FIELDS {
                        return Err(A::Error::custom("too many fields"));
                    }
                    // Nothing reads a field whose name is not text.
                    if let Some(name) = name {
                        fields.push((name, value.get()));
                    }
                }
                Ok(RawFields(fields))
            }
        }

        from.deserialize_map(RawFieldsVisitor)
    }
}

/// The name of a field; `None` where it holds a lone surrogate.
struct Name(Option<String>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Name, E> {
                Ok(Name(std::str::from_utf8(bytes).ok().map(str::to_owned)))
            }
        }

        // Bytes may hold a name that is not text.
        from.deserialize_bytes(Bytes)
    }
}
