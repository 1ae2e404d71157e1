//! The fields of what clients send: read one by one, and everything wrong with them gathered. Pure.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::extract::lax;
use crate::http::extract::object::{Object, Unreadable};
use crate::session::SessionId;

/// Messages of one reply, at most, and where nothing is said.
pub const PAGE_LIMIT: (i64, i64) = (500, 50);

/// One field that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: `body`, `query`, `path` or `header`, then the field.
    pub loc: Vec<String>,
    /// For people.
    pub msg: String,
    /// Stable, `snake_case`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Why the nil UUID is no session.
pub const NIL: (&str, &str) = ("uuid_nil", "must not be the nil UUID: everybody knows it");

impl FieldError {
    /// An error in `field` of `place`.
    pub fn new(place: &str, field: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { loc: vec![place.to_owned(), field.to_owned()], msg: msg.into(), kind }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.loc.last() {
            Some(field) => write!(f, "{field}: {}", self.msg),
            None => f.write_str(&self.msg),
        }
    }
}

/// Reads the fields of an object, and gathers what is wrong with them. `null` is as good as absent,
/// and [`lax`] says in which forms a value may be written.
pub struct Fields<'a> {
    place: &'static str,
    object: &'a Object,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Of an object that stands in `place` of the request.
    pub fn new(place: &'static str, object: &'a Object) -> Self {
        Self { place, object, errors: Vec::new() }
    }

    /// Notes an error.
    pub fn refuse(&mut self, field: &str, kind: &'static str, msg: impl Into<String>) {
        self.errors.push(FieldError::new(self.place, field, kind, msg));
    }

    /// Whether an error of this field was noted.
    pub fn is_refused(&self, field: &str) -> bool {
        self.errors.iter().any(|error| error.loc.last().is_some_and(|name| name == field))
    }

    /// What was gathered, with `value` if that is nothing.
    ///
    /// # Errors
    /// Every field that is not as it should be.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }

    /// Whether a field is there, be it readable or not.
    pub fn has(&self, field: &str) -> bool {
        !matches!(self.object.get(field), Ok(None))
    }

    /// A field's value, where it has one.
    pub fn value(&mut self, field: &str) -> Option<&'a Value> {
        match self.object.get(field) {
            Ok(value) => return value,
            Err(Unreadable::LoneSurrogate) => {
                let msg = "holds a lone surrogate (one half of a \\u pair), which is no character; \
                    send both halves, or the character itself";
                self.refuse(field, "string_unicode", msg);
            }
            Err(Unreadable::BeyondBounds) => {
                let msg = "is nested too deeply, or holds a number that is too large";
                self.refuse(field, "json_invalid", msg);
            }
        }
        None
    }

    /// A text of at most `longest` characters.
    pub fn text(&mut self, field: &str, longest: usize) -> Option<&'a str> {
        let Some(text) = self.value(field)?.as_str() else {
            self.refuse(field, "string_type", "must be a string");
            return None;
        };
        // Bytes are never fewer than characters, and cheaper to count.
        if text.len() > longest && text.chars().count() > longest {
            let msg = format!("must have at most {longest} characters");
            self.refuse(field, "string_too_long", msg);
            return None;
        }
        Some(text)
    }

    /// A text that is there, of at most `longest` characters, and not blank.
    pub fn required_text(&mut self, field: &str, longest: usize) -> &'a str {
        if !self.has(field) {
            self.refuse(field, "missing", "is required");
            return "";
        }
        let text = self.text(field, longest).unwrap_or("-");
        if text.trim().is_empty() {
            self.refuse(field, "string_too_short", "must not be blank");
        }
        text
    }

    /// `true` or `false`.
    pub fn flag(&mut self, field: &str) -> Option<bool> {
        let flag = lax::flag(self.value(field)?);
        if flag.is_none() {
            self.refuse(field, "bool_type", "must be true or false");
        }
        flag
    }

    /// A number from `least` to `most`.
    pub fn number(&mut self, field: &str, (least, most): (f64, f64)) -> Option<f64> {
        match lax::number(self.value(field)?) {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(_) => {
                self.refuse(field, "out_of_range", format!("must be from {least} to {most}"));
                None
            }
            None => {
                self.refuse(field, "float_type", "must be a number");
                None
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub fn integer(&mut self, field: &str, least: i64, most: i64) -> Option<i64> {
        match lax::integer(self.value(field)?) {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(_) => {
                let msg = if most == i64::MAX {
                    format!("must be at least {least}")
                } else {
                    format!("must be from {least} to {most}")
                };
                self.refuse(field, "out_of_range", msg);
                None
            }
            None => {
                self.refuse(field, "int_type", "must be a whole number");
                None
            }
        }
    }

    /// A UUID.
    pub fn uuid(&mut self, field: &str) -> Option<Uuid> {
        let value = self.value(field)?;
        let uuid = value.as_str().and_then(|text| Uuid::try_parse(text).ok());
        if uuid.is_none() {
            self.refuse(field, "uuid_parsing", "must be a UUID");
        }
        uuid
    }

    /// The `session_id`. An empty one means none.
    pub fn session(&mut self) -> Option<SessionId> {
        const FIELD: &str = "session_id";
        if self.object.get(FIELD).is_ok_and(|value| value.and_then(Value::as_str) == Some("")) {
            return None;
        }
        let uuid = self.uuid(FIELD)?;
        if uuid.is_nil() {
            self.refuse(FIELD, NIL.0, NIL.1);
            return None;
        }
        Some(SessionId(uuid))
    }

    /// How many items are wanted on a page, from `least` on.
    pub fn page_limit(&mut self, least: i64) -> u64 {
        let (most, default) = PAGE_LIMIT;
        self.integer("limit", least, most).unwrap_or(default).unsigned_abs()
    }
}
