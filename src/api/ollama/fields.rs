//! Reads the fields of a request as Ollama does: a field that it does not know is ignored, and one of
//! another type is refused.

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::errors::invalid;
use crate::api::large_body::{self, WITH_IMAGES};
use crate::api::state::Shared;
use crate::http::extract::body::json_position;
use crate::http::extract::object::{FieldFault, NotAnObject, Object, without_bom};
use crate::http::problem::Problem;
use crate::raw_fields::RawFields;

/// The body of a request: a JSON object, whatever its content type.
pub struct JsonObject {
    /// The fields.
    pub fields: Map<String, Value>,
    text: Vec<u8>,
}

impl FromRequest<Shared> for JsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        large_body::read(request, shared, WITH_IMAGES, Self::parse).await
    }
}

impl JsonObject {
    /// Parses a body.
    ///
    /// # Errors
    /// Where it is no object, or a field of it cannot be read.
    pub fn parse(text: Vec<u8>) -> Result<Self, Problem> {
        let refused = |text: String| Problem::new(StatusCode::BAD_REQUEST, "json_invalid", text);
        if without_bom(&text).trim_ascii().is_empty() {
            return Err(refused("missing request body".to_owned()));
        }
        let object = Object::parse(&text).map_err(|error| match error {
            NotAnObject::OtherJson => refused("the body must be a JSON object".to_owned()),
            NotAnObject::Invalid(error) => refused(json_position(&error)),
        })?;
        let fault = object.unreadable().next().map(|(name, fault)| (name.to_owned(), fault));
        match fault {
            None => Ok(Self { fields: object.into_fields(), text }),
            Some((name, FieldFault::LoneSurrogate)) => {
                Err(invalid(format!("{name}: holds a lone surrogate, which is no character")))
            }
            Some((name, FieldFault::BeyondBounds)) => {
                let text = "is nested too deeply, or holds a number that is too large";
                Err(invalid(format!("{name}: {text}")))
            }
        }
    }
}

impl JsonObject {
    /// Returns the bytes of the whole text.
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// Returns the text of a field as it was sent: the order of the fields in it is lost in its value.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(without_bom(&self.text)).ok()?;
        let RawFields(fields) = serde_json::from_str(text).ok()?;
        // Of two fields with one name, the last one counts.
        Some(fields.into_iter().rev().find(|(field, _)| field == name)?.1)
    }
}

/// The fields of one object. `null` counts as absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The path of the object, with a dot at its end; empty for the request itself.
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// Reads an object with this path, which ends with a dot unless it is empty.
    pub fn new(object: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { object, path }
    }

    /// Creates the error of a field.
    pub fn refuse(&self, name: &str, text: &str) -> Problem {
        invalid(format!("{}{name}: {text}", self.path))
    }

    /// Returns a value.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.value(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(name, &format!("must be {kind}")))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Problem> {
        self.read(name, Value::as_str, "a string")
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.read(name, Value::as_bool, "a boolean")
    }

    /// Reads a list.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, Problem> {
        self.read(name, |value| value.as_array().map(Vec::as_slice), "a list")
    }

    /// Reads an object.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Problem> {
        self.read(name, Value::as_object, "an object")
    }

    /// Reads a whole number. JSON has one type of numbers: 1.0 is a whole one.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Problem> {
        let whole = |value: &Value| {
            let number = value.as_f64().filter(|it| it.fract() == 0.0 && it.abs() <= 9e15);
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within the bounds")]
            value.as_i64().or_else(|| number.map(|number| number as i64))
        };
        self.read(name, whole, "a 64-bit whole number")
    }

    /// Reads a number from `least` to `most`.
    ///
    /// # Errors
    /// Where it is of another type, or out of these bounds.
    pub fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Problem> {
        match self.read(name, Value::as_f64, "a number")? {
            Some(number) if !(least..=most).contains(&number) => {
                Err(self.refuse(name, &format!("must be from {least} to {most}")))
            }
            number => Ok(number),
        }
    }

    /// Refuses a field that is present and asks for something.
    ///
    /// # Errors
    /// Where it is: everything but `null`, `false`, 0, and an empty text, list or object.
    pub fn unsupported(&self, name: &str, text: &str) -> Result<(), Problem> {
        match self.value(name) {
            Some(value) if !is_empty(value) => Err(self.refuse(name, text)),
            _ => Ok(()),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_object_is_refused_with_ollamas_text_where_it_has_one() {
        let refused = |body: &[u8]| {
            let problem = JsonObject::parse(body.to_vec()).err().expect("refused");
            (problem.status.as_u16(), problem.detail)
        };
        assert_eq!(refused(b""), (400, "missing request body".to_owned()));
        assert_eq!(refused(b" \n"), (400, "missing request body".to_owned()));
        assert_eq!(refused(b"[]"), (400, "the body must be a JSON object".to_owned()));
        assert!(refused(b"{\"model\"").1.starts_with("not valid JSON, at line 1"));
        assert!(refused(br#"{"a": "\ud800"}"#).1.starts_with("a: holds a lone surrogate"));
        assert!(JsonObject::parse(b"\xef\xbb\xbf{}".to_vec()).is_ok());
    }

    #[test]
    fn the_text_of_a_field_keeps_the_order_of_what_is_in_it() {
        let body = br#"{"format": 1, "a": {}, "format": {"z": 1, "a": 2}}"#.to_vec();
        let body = JsonObject::parse(body).expect("an object");
        assert_eq!(body.text_of("format"), Some(r#"{"z": 1, "a": 2}"#));
        assert_eq!(body.text_of("tools"), None);
    }
}
