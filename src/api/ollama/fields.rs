//! Reads the fields of a request as Ollama does: a field that it does not know is ignored, and one of
//! another type is refused.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::errors::invalid;
use crate::api::large_body::{self, HeldRoom, WITH_IMAGES};
use crate::api::state::Shared;
use crate::http::extract::body::json_position;
use crate::http::extract::object::{
    FieldFault, NotAnObject, Object, TOO_MANY_FIELDS_TEXT, TOO_MANY_VALUES, without_bom,
};
use crate::http::problem::Problem;

/// The body of a request: a JSON object, whatever its content type.
pub struct RawJsonObject {
    /// The fields.
    pub fields: Object,
}

impl FromRequest<Shared> for RawJsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        Ok(large_body::read(request, shared, WITH_IMAGES, Self::of).await?.0)
    }
}

/// Reads the body of a request, in which a turn may bring its conversation. The room of the body is kept
/// until it is dropped.
///
/// # Errors
/// Where it is no object, or `read` refuses it.
pub async fn read<T: Send + 'static>(
    request: Request,
    shared: &Shared,
    read: impl FnOnce(&RawJsonObject) -> Result<T, Problem> + Send + 'static,
) -> Result<(T, HeldRoom), Problem> {
    let parse = move |text: Bytes| read(&RawJsonObject::of(text)?);
    large_body::read(request, shared, WITH_IMAGES, parse).await
}

impl RawJsonObject {
    /// Parses a body.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn parse(text: Vec<u8>) -> Result<Self, Problem> {
        Self::of(text.into())
    }

    fn of(text: Bytes) -> Result<Self, Problem> {
        let refused = |text: String| Problem::new(StatusCode::BAD_REQUEST, "json_invalid", text);
        if without_bom(&text).trim_ascii().is_empty() {
            return Err(refused("missing request body".to_owned()));
        }
        let fields = Object::of(text).map_err(|error| match error {
            NotAnObject::OtherJson => refused("the body must be a JSON object".to_owned()),
            NotAnObject::TooManyFields => too_many_values(format!("body: {TOO_MANY_FIELDS_TEXT}")),
            NotAnObject::Invalid(error) => refused(json_position(&error)),
        })?;
        Ok(Self { fields })
    }

    /// Returns the text of a field as it was sent: the order of the fields in it is lost in its value.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.fields.text_of(name)
    }
}

fn too_many_values(text: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, TOO_MANY_VALUES, text)
}

/// An object whose fields are read: the request itself, or one in it.
#[derive(Clone, Copy)]
pub enum FieldSource<'a> {
    /// The request.
    Request(&'a Object),
    /// An object in it.
    Within(&'a Map<String, Value>),
}

impl<'a> From<&'a Object> for FieldSource<'a> {
    fn from(object: &'a Object) -> Self {
        Self::Request(object)
    }
}

impl<'a> From<&'a Map<String, Value>> for FieldSource<'a> {
    fn from(object: &'a Map<String, Value>) -> Self {
        Self::Within(object)
    }
}

/// The fields of one object. `null` counts as absent.
#[derive(Clone, Copy)]
pub struct RequestFields<'a> {
    object: FieldSource<'a>,
    /// The path of the object, with a dot at its end; empty for the request itself.
    path: &'a str,
}

impl<'a> RequestFields<'a> {
    /// Reads an object with this path, which ends with a dot unless it is empty.
    pub fn new(object: impl Into<FieldSource<'a>>, path: &'a str) -> Self {
        Self { object: object.into(), path }
    }

    /// Creates the error of a field.
    pub fn refuse(&self, name: &str, text: &str) -> Problem {
        invalid(format!("{}{name}: {text}", self.path))
    }

    /// Returns a value.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn value(&self, name: &str) -> Result<Option<&'a Value>, Problem> {
        match self.object {
            FieldSource::Request(object) => object.get(name).map_err(|fault| match fault {
                FieldFault::TooManyValues => too_many_values(format!("{name}: {}", fault.text())),
                FieldFault::LoneSurrogate | FieldFault::BeyondBounds => {
                    self.refuse(name, fault.text())
                }
            }),
            FieldSource::Within(object) => Ok(object.get(name).filter(|value| !value.is_null())),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.value(name)? else { return Ok(None) };
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
        match self.value(name)? {
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
            let problem = RawJsonObject::parse(body.to_vec()).err().expect("refused");
            (problem.status.as_u16(), problem.detail)
        };
        assert_eq!(refused(b""), (400, "missing request body".to_owned()));
        assert_eq!(refused(b" \n"), (400, "missing request body".to_owned()));
        assert_eq!(refused(b"[]"), (400, "the body must be a JSON object".to_owned()));
        assert!(refused(b"{\"model\"").1.starts_with("not valid JSON, at line 1"));
        assert!(RawJsonObject::parse(b"\xef\xbb\xbf{}".to_vec()).is_ok());
    }

    #[test]
    fn a_field_that_cannot_be_read_is_refused_where_it_is_read() {
        let many = format!(r#"{{"a": "\ud800", "b": 1, "c": [{}]}}"#, vec!["{}"; 20_000].join(","));
        let body = RawJsonObject::parse(many.into_bytes()).expect("an object");
        let fields = RequestFields::new(&body.fields, "");
        assert_eq!(fields.integer("b"), Ok(Some(1)));
        let refused = fields.text("a").expect_err("no character");
        assert!(refused.detail.starts_with("a: holds a lone surrogate"), "{}", refused.detail);
        let refused = fields.list("c").expect_err("too many");
        assert!(refused.code == "too_many_values" && refused.detail.starts_with("c: holds, with"));
    }

    #[test]
    fn the_text_of_a_field_keeps_the_order_of_what_is_in_it() {
        let body = br#"{"format": 1, "a": {}, "format": {"z": 1, "a": 2}}"#.to_vec();
        let body = RawJsonObject::parse(body).expect("an object");
        assert_eq!(body.text_of("format"), Some(r#"{"z": 1, "a": 2}"#));
        assert_eq!(body.text_of("tools"), None);
    }
}
