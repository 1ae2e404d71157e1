//! Parses the JSON object of a client, field by field: a field is parsed where it is read. So one that
//! nobody reads costs no memory in addition to its text, and one that is unreadable affects no other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::raw_fields::RawFields;

/// The byte order mark that some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Values in the fields that are read of one object, at most, which take about 18 MiB in the worst case.
/// Requests have fewer: 1,000 messages with 2,000 calls of tools and 128 tools with 116 KiB of schemas count
/// as 74,000, and as 116,000 in Ollama's API, where the arguments of calls are objects.
const VALUES: usize = 128 << 10;
/// The number of values that an object counts as: its first field takes 640 bytes, and a value in a list 32.
const OBJECT: usize = 8;
/// The kind of the error of a field that holds more values, and the code of its request.
pub const TOO_MANY_VALUES: &str = "too_many_values";

/// A JSON object, of which some fields may be unreadable.
#[derive(Debug, Default)]
pub struct Object {
    text: Bytes,
    fields: BTreeMap<String, Field>,
    budget: ValueBudget,
}

/// A field of an object, parsed once it was read.
#[derive(Debug)]
struct Field {
    /// Where its text is.
    at: Range<usize>,
    value: OnceLock<Result<Value, FieldFault>>,
}

/// Why a field of valid JSON cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldFault {
    /// The field holds half of a surrogate pair, which is not a character.
    LoneSurrogate,
    /// The field is nested too deeply, or holds a number that no float can hold.
    BeyondBounds,
    /// The field holds more values than the fields of one object may.
    TooManyValues,
}

/// Why a text is not a JSON object.
#[derive(Debug)]
pub enum NotAnObject {
    /// The text is JSON of another type.
    OtherJson,
    /// The text is an object of more fields than one may have.
    TooManyFields,
    /// The text is not JSON.
    Invalid(serde_json::Error),
}

impl FieldFault {
    /// Returns what is wrong with the field, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::LoneSurrogate => {
                "holds a lone surrogate (one half of a \\u pair), which is no character; send both \
                 halves, or the character itself"
            }
            Self::BeyondBounds => "is nested too deeply, or holds a number that is too large",
            Self::TooManyValues => TOO_MANY_VALUES_TEXT,
        }
    }
}

/// The complaint about a field of too many values, for people.
const TOO_MANY_VALUES_TEXT: &str = "holds, with the other fields, more than 131072 values, of which an \
    object counts as eight; send fewer";

/// The complaint about an object of too many fields, for people.
pub const TOO_MANY_FIELDS_TEXT: &str = "has more than 1024 fields; send fewer";

impl From<Map<String, Value>> for Object {
    fn from(fields: Map<String, Value>) -> Self {
        let read = |value| Field { at: 0..0, value: OnceLock::from(Ok(value)) };
        let fields = fields.into_iter().map(|(name, value)| (name, read(value))).collect();
        Self { fields, ..Self::default() }
    }
}

impl Object {
    /// Parses an object, without a byte order mark before it.
    ///
    /// # Errors
    /// Where the text is not JSON, or not an object.
    pub fn parse(text: &[u8]) -> Result<Self, NotAnObject> {
        Self::of(Bytes::copy_from_slice(text))
    }

    /// Parses an object, without a byte order mark before it, and keeps the text.
    ///
    /// # Errors
    /// Where the text is not JSON, or not an object.
    pub fn of(text: Bytes) -> Result<Self, NotAnObject> {
        let json = without_bom(&text);
        let RawFields(raw) = serde_json::from_slice(json).map_err(|error| {
            // The parser refuses another JSON type at its first byte, and has not checked the rest.
            match serde_json::from_slice::<&RawValue>(json) {
                Ok(object) if object.get().starts_with('{') => NotAnObject::TooManyFields,
                Ok(_) => NotAnObject::OtherJson,
                Err(syntax) if error.is_data() => NotAnObject::Invalid(syntax),
                Err(_) => NotAnObject::Invalid(error),
            }
        })?;
        let begin = text.as_ptr().addr();
        // Of two fields with one name, the last one counts.
        let fields = raw.into_iter().map(|(name, value)| {
            let at = value.as_ptr().addr() - begin;
            (name, Field { at: at..at + value.len(), value: OnceLock::new() })
        });
        let fields = fields.collect();
        Ok(Self { text, fields, budget: ValueBudget::default() })
    }

    /// Returns the value of a field. `null` counts as absent.
    ///
    /// # Errors
    /// Where the field is present and unreadable.
    pub fn get(&self, name: &str) -> Result<Option<&Value>, FieldFault> {
        let Some(field) = self.fields.get(name) else { return Ok(None) };
        match field.value.get_or_init(|| self.read(field)) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_null())),
            Err(fault) => Err(*fault),
        }
    }

    /// Returns the text of a field as it was sent: the order of the fields in it is lost in its value.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.text_at(self.fields.get(name)?)
    }

    /// Returns the names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Reads all fields.
    ///
    /// # Errors
    /// The first field that is unreadable.
    pub fn read_all(&self) -> Result<Map<String, Value>, (&str, FieldFault)> {
        let mut fields = Map::new();
        for (name, field) in &self.fields {
            let value = field.value.get().cloned().unwrap_or_else(|| self.read(field));
            fields.insert(name.clone(), value.map_err(|fault| (name.as_str(), fault))?);
        }
        Ok(fields)
    }

    fn text_at(&self, field: &Field) -> Option<&str> {
        std::str::from_utf8(self.text.get(field.at.clone())?).ok()
    }

    fn read(&self, field: &Field) -> Result<Value, FieldFault> {
        // The text was checked when the object was parsed.
        let text = self.text_at(field).unwrap_or_default();
        let before = self.budget.left.load(Ordering::Relaxed);
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Plain(&self.budget).deserialize(&mut json);
        read.map_err(|_| {
            // The others are read as if this one were absent.
            self.budget.left.store(before, Ordering::Relaxed);
            if self.budget.is_spent.swap(false, Ordering::Relaxed) {
                FieldFault::TooManyValues
            } else if has_lone_surrogate(text) {
                FieldFault::LoneSurrogate
            } else {
                FieldFault::BeyondBounds
            }
        })
    }
}

/// Returns a text without a byte order mark at its beginning.
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Returns the text of the value at this path in the text of an object that was parsed.
pub fn raw_value<'a>(text: &'a [u8], path: &[&str]) -> Option<&'a str> {
    let mut text = std::str::from_utf8(without_bom(text)).ok()?;
    for name in path {
        let RawFields(fields) = serde_json::from_str(text).ok()?;
        // Of two fields with one name, the last one counts.
        text = fields.into_iter().rev().find(|(field, _)| field == name)?.1;
    }
    Some(text)
}

/// Returns whether a text is a JSON object that a client's body could hold. It is not kept.
pub fn is_object(text: &str) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    text.trim_start().starts_with('{')
        && Checked.deserialize(&mut json).and_then(|()| json.end()).is_ok()
}

/// The values that the fields of one object may still have.
#[derive(Debug)]
struct ValueBudget {
    left: AtomicUsize,
    /// Whether a field had more.
    is_spent: AtomicBool,
}

impl Default for ValueBudget {
    fn default() -> Self {
        Self { left: AtomicUsize::new(VALUES), is_spent: AtomicBool::new(false) }
    }
}

impl ValueBudget {
    fn spend<E: Error>(&self, values: usize) -> Result<(), E> {
        let Some(left) = self.left.load(Ordering::Relaxed).checked_sub(values) else {
            self.is_spent.store(true, Ordering::Relaxed);
            return Err(E::custom("too many values"));
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads a JSON value within a budget, in which no name of a field has a special meaning. `Value` itself
/// parses the text of a field that has the name of the library's `RawValue` marker.
#[derive(Clone, Copy)]
struct Plain<'a>(&'a ValueBudget);

impl Plain<'_> {
    fn scalar<E: Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.0.spend(1)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        self.0.spend(1)?;
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.0.spend(OBJECT)?;
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            fields.insert(name, map.next_value_seed(self)?);
        }
        Ok(Value::Object(fields))
    }
}

/// Checks what [`Plain`] reads, but for the number of its values, and keeps none of it.
#[derive(Clone, Copy)]
struct Checked;

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // A name is read as text, as a string is.
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
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
    use crate::raw_fields::FIELDS;

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
    fn a_field_of_many_values_is_refused_where_it_is_read_and_costs_the_others_nothing() {
        let list = |values: usize| format!("[{}0]", "0,".repeat(values - 1));
        // A list counts, too.
        let most = list(VALUES - 2);
        let objects = format!("[{}{{}}]", "{},".repeat(VALUES / OBJECT - 1));
        let deep = "{\"a\":".repeat(100) + "0" + &"}".repeat(100);
        let many = format!("[{}0]", format!("{deep},").repeat(VALUES / OBJECT / 100 + 1));
        let object = parse(&format!(
            r#"{{"a": {objects}, "b": {}, "c": {most}, "d": 1, "e": 2, "f": {many}}}"#,
            list(VALUES)
        ));
        for name in ["a", "b", "f"] {
            assert_eq!(object.get(name).err(), Some(FieldFault::TooManyValues), "{name}");
        }
        // Each that is read leaves less to those that are read later.
        let length = object.get("c").map(|value| value.and_then(Value::as_array).map(Vec::len));
        assert_eq!(length, Ok(Some(VALUES - 2)));
        assert_eq!(object.get("d"), Ok(Some(&Value::from(1))));
        assert_eq!(object.get("e"), Err(FieldFault::TooManyValues));
        assert_eq!(object.get("c").map(|it| it.is_some()), Ok(true), "it is read once");
        let (name, fault) = object.read_all().expect_err("too many");
        assert_eq!((name, fault), ("a", FieldFault::TooManyValues));
        assert!(fault.text().contains(&VALUES.to_string()));
    }

    #[test]
    fn an_object_has_a_bounded_number_of_fields_whatever_their_names() {
        let fields = |count: usize, name: fn(usize) -> String| {
            let fields: Vec<_> = (0..count).map(|at| format!(r#""{}":0"#, name(at))).collect();
            Object::parse(format!("{{{}}}", fields.join(",")).as_bytes())
        };
        for name in [|at: usize| at.to_string(), |_| String::new(), |_| "\\ud800".to_owned()] {
            assert!(fields(FIELDS, name).is_ok());
            assert!(matches!(fields(FIELDS + 1, name), Err(NotAnObject::TooManyFields)));
        }
        assert!(TOO_MANY_FIELDS_TEXT.contains(&FIELDS.to_string()));
    }

    #[test]
    fn an_object_as_text_is_what_a_field_could_hold() {
        for text in ["{}", " {\"a\": [1, {\"b\": \"\\ud83d\\ude00\"}, null, 1.5, -1, true]} "] {
            assert!(is_object(text), "{text}");
        }
        let deep = "{\"a\":".repeat(200) + "0" + &"}".repeat(200);
        for text in ["", "[]", "1", "{", "{} x", "{\"a\": \"\\ud800\"}", "{\"\\ud800\": 1}", &deep]
        {
            assert!(!is_object(text), "{text}");
        }
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
