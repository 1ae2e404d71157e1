//! Reads the parameters of a request strictly: a parameter of another type, or one that this front
//! does not know, is refused by its path. Pure.

use serde_json::{Map, Value};

use crate::http::extract::fields::FieldError;

/// The JSON object of a request.
pub type JsonObject = Map<String, Value>;

/// The error of a value of another type.
pub const INVALID_TYPE: &str = "invalid_type";
/// The error of a value that is not allowed.
pub const INVALID_VALUE: &str = "invalid_value";
/// The error of a value that OpenAI allows and this service does not support.
pub const UNSUPPORTED_VALUE: &str = "unsupported_value";
/// The error of a parameter that OpenAI has and this service does not support.
pub const UNSUPPORTED_PARAMETER: &str = "unsupported_parameter";
/// The error of a parameter that nobody knows.
const UNKNOWN_PARAMETER: &str = "unknown_parameter";
/// The error of a parameter that is absent.
const MISSING_PARAMETER: &str = "missing_required_parameter";

/// Characters of a text that changes nothing about an answer, at most.
pub const HINT_CHARACTERS: usize = 512;
/// Bytes of a name that an error repeats, at most.
const SHOWN_NAME: usize = 128;

/// The parameters of one object. `null` counts as absent.
pub struct Params<'a> {
    object: &'a JsonObject,
    /// The path of the object, empty for the request itself.
    path: String,
    read: Vec<&'static str>,
}

impl<'a> Params<'a> {
    /// Reads the request itself.
    pub fn of_request(object: &'a JsonObject) -> Self {
        Self { object, path: String::new(), read: Vec::new() }
    }

    /// Reads an object within the request.
    ///
    /// # Errors
    /// Where the value is not an object.
    pub fn of_value(value: &'a Value, path: &str) -> Result<Self, FieldError> {
        match value.as_object() {
            Some(object) => Ok(Self { object, path: path.to_owned(), read: Vec::new() }),
            None => Err(error(path, INVALID_TYPE, "must be an object")),
        }
    }

    /// Returns the path of a parameter.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Creates the error of a parameter.
    pub fn refuse(&self, name: &str, kind: &'static str, msg: impl Into<String>) -> FieldError {
        error(&self.path_of(name), kind, msg)
    }

    /// Returns a value.
    pub fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        self.read.push(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Returns a value that has to be present.
    ///
    /// # Errors
    /// Where it is absent.
    pub fn required(&mut self, name: &'static str) -> Result<&'a Value, FieldError> {
        self.value(name).ok_or_else(|| self.refuse(name, MISSING_PARAMETER, "is required"))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, FieldError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| self.refuse(name, INVALID_TYPE, "must be a string"))
    }

    /// Reads a text that changes nothing about an answer, such as who asks.
    ///
    /// # Errors
    /// Where it is of another type, or has more than [`HINT_CHARACTERS`].
    pub fn hint(&mut self, name: &'static str) -> Result<Option<&'a str>, FieldError> {
        let text = self.text(name)?;
        if text.is_some_and(|text| text.chars().count() > HINT_CHARACTERS) {
            let msg = format!("must have at most {HINT_CHARACTERS} characters");
            return Err(self.refuse(name, INVALID_VALUE, &msg));
        }
        Ok(text)
    }

    /// Reads a text that has to be present.
    ///
    /// # Errors
    /// Where it is absent, or of another type.
    pub fn required_text(&mut self, name: &'static str) -> Result<&'a str, FieldError> {
        let value = self.required(name)?;
        value.as_str().ok_or_else(|| self.refuse(name, INVALID_TYPE, "must be a string"))
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, FieldError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let flag = value.as_bool();
        flag.map(Some).ok_or_else(|| self.refuse(name, INVALID_TYPE, "must be a boolean"))
    }

    /// Reads a number from `least` to `most`. Whatever the sign of zero is, the request is the same.
    ///
    /// # Errors
    /// Where it is of another type, or out of these bounds.
    pub fn number(
        &mut self,
        name: &'static str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, FieldError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number + 0.0)),
            Some(_) => {
                Err(self.refuse(name, INVALID_VALUE, format!("must be from {least} to {most}")))
            }
            None => Err(self.refuse(name, INVALID_TYPE, "must be a number")),
        }
    }

    /// Reads a whole number that is at least `least`.
    ///
    /// # Errors
    /// Where it is of another type, or too small or too large.
    pub fn integer(&mut self, name: &'static str, least: i64) -> Result<Option<i64>, FieldError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        // JSON has one type of numbers: 1.0 is a whole one.
        let whole = value.as_f64().filter(|number| number.fract() == 0.0);
        match (value.as_i64(), whole) {
            (Some(number), _) if number >= least => Ok(Some(number)),
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within the bounds")]
            (None, Some(number)) if (-9e15..=9e15).contains(&number) && number as i64 >= least => {
                Ok(Some(number as i64))
            }
            (Some(_), _) | (None, Some(_)) => {
                let msg = if least == i64::MIN {
                    "must be a 64-bit number".to_owned()
                } else {
                    format!("must be a 64-bit number that is at least {least}")
                };
                Err(self.refuse(name, INVALID_VALUE, msg))
            }
            (None, None) => Err(self.refuse(name, INVALID_TYPE, "must be a whole number")),
        }
    }

    /// Reads a list.
    ///
    /// # Errors
    /// Where it is of another type.
    pub fn list(&mut self, name: &'static str) -> Result<Option<&'a [Value]>, FieldError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let list = value.as_array();
        list.map(|list| Some(list.as_slice()))
            .ok_or_else(|| self.refuse(name, INVALID_TYPE, "must be a list"))
    }

    /// Checks a parameter that may only have a value which changes nothing.
    ///
    /// # Errors
    /// Where it has another one.
    pub fn only(
        &mut self,
        name: &'static str,
        supported: &str,
        is_supported: impl Fn(&Value) -> bool,
    ) -> Result<(), FieldError> {
        match self.value(name) {
            Some(value) if !is_supported(value) => {
                let msg = format!("is not supported with another value than {supported}");
                Err(self.refuse(name, UNSUPPORTED_VALUE, msg))
            }
            _ => Ok(()),
        }
    }

    /// Checks the class of service, of which there is one.
    ///
    /// # Errors
    /// Where another one is requested.
    pub fn service_tier(&mut self) -> Result<(), FieldError> {
        let is_usual = |value: &Value| *value == "auto" || *value == "default";
        self.only("service_tier", "\"auto\" or \"default\"", is_usual)
    }

    /// Refuses parameters that OpenAI has and this service does not support.
    ///
    /// # Errors
    /// Where one of them is present.
    pub fn unsupported(&mut self, names: &[&'static str]) -> Result<(), FieldError> {
        for name in names {
            if self.value(name).is_some() {
                return Err(self.refuse(name, UNSUPPORTED_PARAMETER, "is not supported"));
            }
        }
        Ok(())
    }

    /// Ignores parameters, whatever they are: those that OpenAI's packages add to a reply by themselves, and
    /// that a client sends again with it. They repeat what other parameters have.
    pub fn ignore(&mut self, names: &[&'static str]) {
        self.read.extend(names);
    }

    /// Checks that the object has no other parameter than those that were read. One that is `null` counts as
    /// absent, also where its name is not known.
    ///
    /// # Errors
    /// Where it has one.
    pub fn finish(self) -> Result<(), FieldError> {
        let is_unread = |(name, value): &(&String, &Value)| {
            !value.is_null() && !self.read.contains(&name.as_str())
        };
        match self.object.iter().find(is_unread) {
            Some((name, _)) => {
                Err(self.refuse(shown_name(name), UNKNOWN_PARAMETER, "is not known"))
            }
            None => Ok(()),
        }
    }
}

/// Returns the beginning of a name that a client chose: an error repeats no more of it.
pub fn shown_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(SHOWN_NAME)]
}

/// Creates the error of a parameter with this path.
pub fn error(path: &str, kind: &'static str, msg: impl Into<String>) -> FieldError {
    FieldError::new("body", path, kind, msg)
}
