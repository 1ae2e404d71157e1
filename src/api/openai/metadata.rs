//! Reads the metadata of responses and conversations. Pure.

use serde_json::{Map, Value};

use super::params::{INVALID_TYPE, INVALID_VALUE, Params, shown_name};
use crate::http::extract::fields::FieldError;

/// The bounds of `metadata`, as OpenAI has them: pairs, and characters of a name and of a value.
const PAIRS: usize = 16;
const NAME_CHARACTERS: usize = 64;
const VALUE_CHARACTERS: usize = 512;

/// Reads the parameter `metadata`; empty where there is none.
///
/// # Errors
/// Where it has another type, or is out of its bounds.
pub fn read(params: &mut Params<'_>) -> Result<Map<String, Value>, FieldError> {
    const NAME: &str = "metadata";
    let Some(value) = params.value(NAME) else { return Ok(Map::new()) };
    let Some(pairs) = value.as_object() else {
        return Err(params.refuse(NAME, INVALID_TYPE, "must be an object"));
    };
    let is_long = |text: &str, most: usize| text.len() > most && text.chars().count() > most;
    for (name, value) in pairs {
        let Some(value) = value.as_str() else {
            let path = format!("{NAME}.{}", shown_name(name));
            return Err(params.refuse(&path, INVALID_TYPE, "must be a string"));
        };
        if is_long(name, NAME_CHARACTERS) || is_long(value, VALUE_CHARACTERS) {
            let msg = format!(
                "must have names of at most {NAME_CHARACTERS} and values of at most \
                 {VALUE_CHARACTERS} characters"
            );
            return Err(params.refuse(NAME, INVALID_VALUE, msg));
        }
    }
    if pairs.len() > PAIRS {
        return Err(params.refuse(NAME, INVALID_VALUE, format!("must have at most {PAIRS} pairs")));
    }
    Ok(pairs.clone())
}
