//! Reads values in the forms of pydantic's lax mode, because clients of the original rely on them.

use std::borrow::Cow;

use serde_json::Value;

/// Reads a boolean, also as 0 or 1, or as a text such as `yes`.
pub fn flag(value: &Value) -> Option<bool> {
    let is = |number: f64| value.as_f64().is_some_and(|given| given.total_cmp(&number).is_eq());
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => None,
        },
        Value::Number(_) if is(1.0) => Some(true),
        Value::Number(_) if is(0.0) || is(-0.0) => Some(false),
        _ => None,
    }
}

/// Reads a number, also as text, or as a boolean.
pub fn number(value: &Value) -> Option<f64> {
    let number: f64 = match value {
        Value::Bool(flag) => f64::from(u8::from(*flag)),
        Value::String(text) => without_separators(text.trim())?.parse().ok()?,
        other => other.as_f64()?,
    };
    // -0 becomes 0, so that the same request has the same digest.
    Some(number + 0.0)
}

/// Reads a whole number, also with a point and zeros, as text, or as a boolean. It saturates; the
/// caller checks the bounds.
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::String(text) => {
            let text = without_separators(text.trim())?;
            let text = match text.split_once('.') {
                Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => {
                    whole
                }
                Some(_) => return None,
                None => &text,
            };
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            text.parse().ok().or_else(|| whole(text.parse().ok()?))
        }
        other => other.as_i64().or_else(|| whole(other.as_f64()?)),
    }
}

/// Returns a number without a fraction as an `i64`, saturated.
fn whole(number: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
    (number.fract() == 0.0).then_some(number as i64)
}

/// Returns a number's text without the underscores between its digits.
fn without_separators(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let between = |at: usize| at > 0 && digit(bytes.get(at - 1)) && digit(bytes.get(at + 1));
    let each_is_between = text.match_indices('_').all(|(at, _)| between(at));
    each_is_between.then(|| Cow::Owned(text.replace('_', "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    /// The expected values are those of pydantic 2.14.
    #[test]
    fn booleans_are_read_in_the_forms_that_pydantic_accepts() {
        for yes in [
            "true", "1", "1.0", "\"true\"", "\"TRUE\"", "\"1\"", "\"yes\"", "\"on\"", "\"t\"",
            "\"y\"", "\"Y\"",
        ] {
            assert_eq!(flag(&value(yes)), Some(true), "{yes}");
        }
        for no in [
            "false",
            "0",
            "0.0",
            "-0.0",
            "\"false\"",
            "\"0\"",
            "\"no\"",
            "\"off\"",
            "\"f\"",
            "\"n\"",
        ] {
            assert_eq!(flag(&value(no)), Some(false), "{no}");
        }
        for neither in
            ["2", "1.5", "\" true \"", "\"1.0\"", "\"\"", "\"maybe\"", "[]", "{}", "null", "-1"]
        {
            assert_eq!(flag(&value(neither)), None, "{neither}");
        }
    }

    /// The expected values are those of pydantic 2.14.
    #[test]
    fn whole_numbers_are_read_in_the_forms_that_pydantic_accepts() {
        for (json, number) in [
            ("5", 5),
            ("5.0", 5),
            ("1e3", 1000),
            ("true", 1),
            ("false", 0),
            ("\"5\"", 5),
            ("\" 5 \"", 5),
            ("\" -1\"", -1),
            ("\"5.0\"", 5),
            ("\"5.00\"", 5),
            ("\"+5\"", 5),
            ("\"-1\"", -1),
            ("\"1_000\"", 1000),
            ("\"007\"", 7),
            ("\"-0\"", 0),
            ("9223372036854775808", i64::MAX),
            ("\"9223372036854775808\"", i64::MAX),
            ("1e30", i64::MAX),
        ] {
            assert_eq!(integer(&value(json)), Some(number), "{json}");
        }
        for none in [
            "5.5", "\"5.\"", "\"5.5\"", "\"1e3\"", "\"true\"", "\"\"", "\"0x5\"", "\"٥\"",
            "\"--5\"", "\"1__0\"", "\"_1\"", "\"1_\"", "\"- 1\"", "\".0\"", "[]", "{}", "null",
        ] {
            assert_eq!(integer(&value(none)), None, "{none}");
        }
    }

    /// The expected values are those of pydantic 2.14.
    #[test]
    fn numbers_are_read_in_the_forms_that_pydantic_accepts() {
        for (json, expected) in [
            ("5", 5.0),
            ("true", 1.0),
            ("-0.0", 0.0),
            ("\"0.5\"", 0.5),
            ("\" 0.5 \"", 0.5),
            ("\"1e-1\"", 0.1),
            ("\"1_0.5\"", 10.5),
            ("\".5\"", 0.5),
            ("\"5.\"", 5.0),
            ("\"+0.5\"", 0.5),
        ] {
            let given = number(&value(json)).unwrap_or(f64::NAN);
            assert!(given.total_cmp(&expected).is_eq(), "{json}: {given}");
        }
        for none in ["\"\"", "\"0x1\"", "\"true\"", "[]", "null"] {
            assert_eq!(number(&value(none)), None, "{none}");
        }
    }
}
