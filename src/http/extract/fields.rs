//! Reads the fields of a request one by one, and collects every error. Pure.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::extract::lax;
use crate::http::extract::object::{FieldFault, Object, TOO_MANY_VALUES};
use crate::session::SessionId;

/// Messages of one reply: the most, and the default.
pub const PAGE_LIMIT: (i64, i64) = (500, 50);

/// One field that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// The field path: `body`, `query`, `path` or `header`, then the field.
    pub loc: Vec<String>,
    /// The text for people.
    pub msg: String,
    /// The stable kind of the error, in `snake_case`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// The kind and the text of the error for a nil UUID.
pub const NIL: (&str, &str) = ("uuid_nil", "must not be the nil UUID, which any client can guess");

impl FieldError {
    /// Creates an error for `field` in `part` of the request.
    pub fn new(part: &str, field: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { loc: vec![part.to_owned(), field.to_owned()], msg: msg.into(), kind }
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

/// Reads the fields of an object, and collects their errors. `null` counts as absent, and [`lax`]
/// reads the forms in which a value may be written.
pub struct Fields<'a> {
    part: &'static str,
    object: &'a Object,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Reads an object in `part` of the request: `body` or `query`.
    pub fn new(part: &'static str, object: &'a Object) -> Self {
        Self { part, object, errors: Vec::new() }
    }

    /// Adds an error.
    pub fn refuse(&mut self, field: &str, kind: &'static str, msg: impl Into<String>) {
        self.errors.push(FieldError::new(self.part, field, kind, msg));
    }

    /// Returns whether this field has an error.
    pub fn is_refused(&self, field: &str) -> bool {
        self.errors.iter().any(|error| error.loc.last().is_some_and(|name| name == field))
    }

    /// Returns `value` where no field has an error.
    ///
    /// # Errors
    /// Every field that is not valid.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.errors.is_empty() { Ok(value) } else { Err(self.errors) }
    }

    /// Returns whether a field is present, readable or not.
    pub fn has(&self, field: &str) -> bool {
        !matches!(self.object.get(field), Ok(None))
    }

    /// Returns the value of a field that is present and readable.
    pub fn value(&mut self, field: &str) -> Option<&'a Value> {
        match self.object.get(field) {
            Ok(value) => return value,
            Err(fault) => {
                let kind = match fault {
                    FieldFault::LoneSurrogate => "string_unicode",
                    FieldFault::BeyondBounds => "json_invalid",
                    FieldFault::TooManyValues => TOO_MANY_VALUES,
                };
                self.refuse(field, kind, fault.text());
            }
        }
        None
    }

    /// Reads a text of at most `longest` characters.
    pub fn text(&mut self, field: &str, longest: usize) -> Option<&'a str> {
        let Some(text) = self.value(field)?.as_str() else {
            self.refuse(field, "string_type", "must be a string");
            return None;
        };
        // There are at least as many bytes as characters, and bytes are cheaper to count.
        if text.len() > longest && text.chars().count() > longest {
            let msg = format!("must have at most {longest} characters");
            self.refuse(field, "string_too_long", msg);
            return None;
        }
        Some(text)
    }

    /// Reads a required text of at most `longest` characters that is not blank.
    pub fn required_text(&mut self, field: &str, longest: usize) -> &'a str {
        if !self.has(field) {
            self.refuse(field, "missing", "is required");
            return "";
        }
        let text = self.text(field, longest).unwrap_or("-");
        // What is blank by Unicode, and to the patterns of the API's description.
        if text.chars().all(|it| it.is_whitespace() || it == '\u{feff}') {
            self.refuse(field, "string_too_short", "must not be blank");
        }
        text
    }

    /// Reads a boolean.
    pub fn flag(&mut self, field: &str) -> Option<bool> {
        let flag = lax::flag(self.value(field)?);
        if flag.is_none() {
            self.refuse(field, "bool_type", "must be true or false");
        }
        flag
    }

    /// Reads a number from `least` to `most`.
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

    /// Reads a whole number from `least` to `most`.
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

    /// Reads a UUID.
    pub fn uuid(&mut self, field: &str) -> Option<Uuid> {
        let value = self.value(field)?;
        let uuid = value.as_str().and_then(|text| Uuid::try_parse(text).ok());
        if uuid.is_none() {
            self.refuse(field, "uuid_parsing", "must be a UUID");
        }
        uuid
    }

    /// Reads the `session_id`. An empty one counts as absent.
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

    /// Reads the `limit` of a page, which is at least `least`.
    pub fn page_limit(&mut self, least: i64) -> u64 {
        let (most, default) = PAGE_LIMIT;
        self.integer("limit", least, most).unwrap_or(default).unsigned_abs()
    }
}
