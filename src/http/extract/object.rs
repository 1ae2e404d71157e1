//! Parses the JSON object of a client. An unreadable field is refused only where it is read.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::raw_fields::RawFields;

/// The byte order mark that some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON object, of which some fields may be unreadable.
#[derive(Debug, Default)]
pub struct Object {
    fields: Map<String, Value>,
    unreadable: HashMap<String, FieldFault>,
}

/// Why a field of valid JSON cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldFault {
    /// The field holds half of a surrogate pair, which is not a character.
    LoneSurrogate,
    /// The field is nested too deeply, or holds a number that no float can hold.
    BeyondBounds,
}

/// Why a text is not a JSON object.
#[derive(Debug)]
pub enum NotAnObject {
    /// The text is JSON of another type.
    OtherJson,
    /// The text is not JSON.
    Invalid(serde_json::Error),
}

impl From<Map<String, Value>> for Object {
    fn from(fields: Map<String, Value>) -> Self {
        Self { fields, unreadable: HashMap::new() }
    }
}

impl Object {
    /// Parses an object, without a byte order mark before it.
    ///
    /// # Errors
    /// Where the text is not JSON, or not an object.
    pub fn parse(text: &[u8]) -> Result<Self, NotAnObject> {
        let text = without_bom(text);
        match serde_json::from_slice(text) {
            Ok(PlainValue(Value::Object(fields))) => Ok(fields.into()),
            Ok(_) => Err(NotAnObject::OtherJson),
            // One unreadable field fails the whole parse. Reading each field finds it.
            Err(_) => Self::parse_field_by_field(text),
        }
    }

    fn parse_field_by_field(text: &[u8]) -> Result<Self, NotAnObject> {
        let RawFields(raw) = serde_json::from_slice(text).map_err(|error| {
            // The parser refuses another JSON type at its first byte, and has not checked the rest.
            match serde_json::from_slice::<&RawValue>(text) {
                Ok(_) => NotAnObject::OtherJson,
                Err(syntax) if error.is_data() => NotAnObject::Invalid(syntax),
                Err(_) => NotAnObject::Invalid(error),
            }
        })?;
        let mut object = Self::default();
        for (name, value) in raw {
            // Of two fields with one name, the last one counts.
            object.fields.remove(&name);
            object.unreadable.remove(&name);
            if let Ok(PlainValue(value)) = serde_json::from_str(value) {
                object.fields.insert(name, value);
            } else {
                let fault = if has_lone_surrogate(value) {
                    FieldFault::LoneSurrogate
                } else {
                    FieldFault::BeyondBounds
                };
                object.unreadable.insert(name, fault);
            }
        }
        Ok(object)
    }

    /// Returns the fields that can be read, without the others.
    pub fn into_fields(self) -> Map<String, Value> {
        self.fields
    }

    /// Returns the fields that can be read.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Returns the fields that cannot be read.
    pub fn unreadable(&self) -> impl Iterator<Item = (&str, FieldFault)> {
        self.unreadable.iter().map(|(name, fault)| (name.as_str(), *fault))
    }

    /// Returns the value of a field. `null` counts as absent.
    ///
    /// # Errors
    /// Where the field is present and unreadable.
    pub fn get(&self, name: &str) -> Result<Option<&Value>, FieldFault> {
        match self.unreadable.get(name) {
            Some(fault) => Err(*fault),
            None => Ok(self.fields.get(name).filter(|value| !value.is_null())),
        }
    }
}

/// Returns a text without a byte order mark at its beginning.
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Returns the text of the value at this path in the text of an object.
pub fn raw_value<'a>(text: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let mut text = std::str::from_utf8(without_bom(text)).ok()?;
    for name in path {
        let RawFields(fields) = serde_json::from_str(text).ok()?;
        // Of two fields with one name, the last one counts.
        text = fields.into_iter().rev().find(|(field, _)| field == name)?.1;
    }
    Some(text)
}

/// A JSON value in which no name of a field has a special meaning. `Value` itself parses the text of
/// a field that has the name of the library's `RawValue` marker.
struct PlainValue(Value);

impl<'de> Deserialize<'de> for PlainValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = PlainValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<PlainValue, E> {
                Ok(PlainValue(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_str<E>(self, value: &str) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<PlainValue, E> {
                Ok(PlainValue(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PlainValue, A::Error> {
                let mut items = Vec::new();
                while let Some(PlainValue(item)) = list.next_element()? {
                    items.push(item);
                }
                Ok(PlainValue(Value::Array(items)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PlainValue, A::Error> {
                let mut fields = Map::new();
                while let Some((name, PlainValue(value))) =
                    map.next_entry::<String, PlainValue>()?
                {
                    fields.insert(name, value);
                }
                Ok(PlainValue(Value::Object(fields)))
            }
        }

        from.deserialize_any(Any)
    }
}

/// Returns whether valid JSON holds `\ud800` to `\udfff` outside of a pair.
fn has_lone_surrogate(json: &str) -> bool {
    let mut high_before = false;
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        if high_before && at > 0 {
            return true;
        }
        let escape = &rest[at + 1..];
        let unit = escape
            .strip_prefix('u')
            .and_then(|digits| digits.get(..4))
            .and_then(|digits| u16::from_str_radix(digits, 16).ok());
        match (unit, high_before) {
            (Some(0xd800..=0xdbff), false) => high_before = true,
            (Some(0xdc00..=0xdfff), true) => high_before = false,
            (Some(0xd800..=0xdfff), _) | (_, true) => return true,
            _ => {}
        }
        rest = escape.get(if unit.is_some() { 5 } else { 1 }..).unwrap_or_default();
    }
    high_before
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Object {
        Object::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    #[test]
    fn a_lone_surrogate_is_found_at_any_position_and_a_pair_is_not_one() {
        for lone in [
            r#""\ud800""#,
            r#""\uDC00""#,
            r#""\ud83d \ude00""#,
            r#""\ude00\ud83d""#,
            r#""\ud83d\ud83d\ude00""#,
            r#""a\ud83d\n""#,
            r#"["\ud800x"]"#,
            r#"{"a\udfff": 1}"#,
        ] {
            assert!(has_lone_surrogate(lone), "{lone}");
        }
        for whole in [r#""\ud83d\ude00""#, r#""\\ud800""#, r#""\u00e9\\\u0041""#, "12", r#""\\""#] {
            assert!(!has_lone_surrogate(whole), "{whole}");
        }
    }

    #[test]
    fn an_unreadable_field_affects_no_other_field() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let object = parse(&format!(
            r#"{{"a": "x", "b": "\ud800", "\udc00": 1, "c": {deep}, "d": 1e999, "e": "\ud800", "e": 2}}"#
        ));
        assert_eq!(object.get("a"), Ok(Some(&Value::from("x"))));
        assert_eq!(object.get("b"), Err(FieldFault::LoneSurrogate));
        assert_eq!(object.get("c"), Err(FieldFault::BeyondBounds));
        assert_eq!(object.get("d"), Err(FieldFault::BeyondBounds));
        assert_eq!(object.get("e"), Ok(Some(&Value::from(2))));
        assert_eq!(object.get("f"), Ok(None));
    }

    #[test]
    fn other_json_is_distinguished_from_invalid_json() {
        assert!(matches!(Object::parse(b"[1]"), Err(NotAnObject::OtherJson)));
        assert!(matches!(Object::parse(br#"["\ud800"]"#), Err(NotAnObject::OtherJson)));
        for text in ["12", "1e999", "null", "true", "\"x\"", "[[1], {\"a\": 2}]", " [1] "] {
            let parsed = Object::parse(text.as_bytes());
            assert!(matches!(parsed, Err(NotAnObject::OtherJson)), "{text}: {parsed:?}");
        }
        for text in [
            r#"{"a": "\ud800""#,
            r#"{"a": "\ud800", b}"#,
            "{",
            "",
            r#"{"a": "\ud80"}"#,
            "[1,",
            "[1",
            "12x",
            "[] x",
            "{} x",
            "[1, {\"a\": }]",
            "\"x",
            "\"x\" y",
            "tru",
            "nul",
            "01",
            "-",
        ] {
            let parsed = Object::parse(text.as_bytes());
            assert!(matches!(parsed, Err(NotAnObject::Invalid(_))), "{text}: {parsed:?}");
        }
        assert!(matches!(Object::parse(b"{\"a\": \"\\ud800\xff\"}"), Err(NotAnObject::Invalid(_))));
    }

    #[test]
    fn no_name_of_a_field_has_a_special_meaning_for_the_parser() {
        let name = "$serde_json::private::RawValue";
        let text = json!({name: r#"{"message": "hi"}"#, "a": {name: "[1]"}, "b": [{name: "{"}]});
        let object = parse(&text.to_string());
        assert_eq!(object.get("message"), Ok(None));
        for field in [name, "a", "b"] {
            assert_eq!(object.get(field), Ok(text.get(field)), "{field}");
        }
        // The same holds where the object is parsed field by field.
        let unreadable = text.to_string().replacen('{', r#"{"c": "\ud800", "#, 1);
        assert_eq!(parse(&unreadable).get("message"), Ok(None));
        assert_eq!(parse(&unreadable).get("a"), Ok(text.get("a")));
        let number = json!({"$serde_json::private::Number": "1"});
        assert_eq!(
            parse(&number.to_string()).get("$serde_json::private::Number"),
            Ok(Some(&Value::from("1")))
        );
    }

    #[test]
    fn values_of_every_kind_are_read_as_the_library_reads_them() {
        for text in [
            r#"{"a": [null, true, -1, 1, 18446744073709551615, 1.5, -0.0, 1e300, "é\n", {}, []]}"#,
            r#"{"a": 1, "a": {"b": 1, "b": 2}}"#,
        ] {
            let expected: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(parse(text).get("a"), Ok(expected.get("a")), "{text}");
        }
    }

    #[test]
    fn a_byte_order_mark_before_an_object_is_skipped() {
        assert_eq!(parse("\u{feff}{\"a\": 1}").get("a"), Ok(Some(&Value::from(1))));
        assert_eq!(parse("\u{feff}{\"a\": \"\\ud800\"}").get("a"), Err(FieldFault::LoneSurrogate));
        assert!(Object::parse("{\u{feff}}".as_bytes()).is_err());
    }
}
