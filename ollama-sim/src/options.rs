//! `options` and `keep_alive`, checked as Ollama checks them.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::ApiError;

const INTEGERS: [&str; 10] = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
];
const FLOATS: [&str; 7] = [
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
];

/// The options that the simulator understands.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Context in tokens.
    pub num_ctx: Option<usize>,
    /// The most tokens to generate; none is unlimited (0, -1 and below).
    pub num_predict: Option<usize>,
    /// The seed.
    pub seed: Option<i64>,
    /// The texts that end the answer; none of them is empty.
    pub stop: Vec<String>,
    /// The options of sampling, as the request has them.
    pub sampling: Map<String, Value>,
}

impl Options {
    /// Checks the types; unknown options are ignored, as Ollama does.
    pub fn read(options: Option<&Map<String, Value>>) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for (name, value) in options.into_iter().flatten() {
            if value.is_null() {
                continue;
            }
            if INTEGERS.contains(&name.as_str()) {
                let number = integer(value).ok_or_else(|| wrong(name, "integer"))?;
                let positive = usize::try_from(number).ok().filter(|n| *n > 0);
                match name.as_str() {
                    "num_ctx" => read.num_ctx = positive,
                    "num_predict" => read.num_predict = positive,
                    "seed" => read.seed = Some(number),
                    _ => {}
                }
                read.sampling.insert(name.clone(), number.into());
            } else if FLOATS.contains(&name.as_str()) {
                if !value.is_number() {
                    return Err(wrong(name, "float32"));
                }
                read.sampling.insert(name.clone(), value.clone());
            } else if name == "stop" {
                let texts = value.as_array().ok_or_else(|| wrong(name, "array"))?;
                for text in texts {
                    let text = text.as_str().ok_or_else(|| wrong(name, "array of strings"))?;
                    if !text.is_empty() {
                        read.stop.push(text.to_owned());
                    }
                }
            }
        }
        Ok(read)
    }
}

fn wrong(name: &str, wanted: &str) -> ApiError {
    ApiError::Internal(format!("option \"{name}\" must be of type {wanted}"))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "Ollama truncates 3.7 to 3 as well; the cast saturates"
)]
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|f| f as i64))
}

/// The time for which a model stays loaded after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// The model stays for this long.
    For(Duration),
    /// The model stays until it is unloaded.
    Forever,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self::For(Duration::from_mins(5))
    }
}

impl KeepAlive {
    /// Reads seconds or a duration in Go's notation.
    pub fn read(value: Option<&Value>) -> Result<Self, ApiError> {
        let seconds = match value {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => go_duration(text),
            Some(_) => None,
        };
        let seconds = seconds
            .ok_or_else(|| ApiError::BadRequest(format!("time: invalid duration {value:?}")))?;
        if seconds < 0.0 {
            return Ok(Self::Forever);
        }
        Ok(Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For))
    }

    /// Returns whether the model is unloaded at once.
    pub fn is_zero(self) -> bool {
        self == Self::For(Duration::ZERO)
    }
}

/// Reads `1h30m`, `-1s`, `250ms`, `0`.
fn go_duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    if rest == "0" {
        return Some(0.0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = rest.split_at(letters.unwrap_or(rest.len()));
        seconds += number
            * match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = after;
    }
    Some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (value, wanted) in [
            (json!("1h30m"), KeepAlive::For(Duration::from_mins(90))),
            (json!("250ms"), KeepAlive::For(Duration::from_millis(250))),
            (json!(0), KeepAlive::For(Duration::ZERO)),
            (json!("0"), KeepAlive::For(Duration::ZERO)),
            (json!(-1), KeepAlive::Forever),
            (json!("-1m"), KeepAlive::Forever),
        ] {
            assert_eq!(KeepAlive::read(Some(&value)).ok(), Some(wanted), "{value}");
        }
        for bad in [json!("5"), json!("x"), json!(""), json!([]), json!("5y")] {
            assert!(KeepAlive::read(Some(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_of_zero_or_less_is_none() {
        for n in [0, -1, -2] {
            let options = json!({"num_predict": n, "num_ctx": 2.9, "mystery": []});
            let read = Options::read(options.as_object()).expect("valid");
            assert_eq!(read.num_predict, None);
            assert_eq!(read.num_ctx, Some(2));
        }
    }
}
