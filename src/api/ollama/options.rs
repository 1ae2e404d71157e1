//! Reads the options of a request: those that change an answer, and none that changes a host. Pure.

use serde_json::{Map, Value};

use super::fields::RequestFields;
use crate::api::answer_rules::{STOP_BYTES, STOPS};
use crate::http::problem::Problem;
use crate::session::model::Sampling;

/// The options of an answer. Every other one is ignored: `num_ctx` and its like would load the model
/// again for everybody.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerOptions {
    /// The temperature, 0 to 2; where absent the model's own, which its Modelfile may set.
    pub temperature: Option<f64>,
    /// Tokens of the answer, at most.
    pub max_tokens: u32,
    /// The seed, for repeatable answers.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// How the next token is chosen, in addition to the temperature.
    pub sampling: Sampling,
}

impl AnswerOptions {
    /// Reads the options of a request.
    ///
    /// # Errors
    /// The first one that is of another type, or out of its bounds.
    pub fn read(options: Option<&Map<String, Value>>) -> Result<Self, Problem> {
        let none = Map::new();
        let options = RequestFields::new(options.unwrap_or(&none), "options.");
        let temperature = options.number("temperature", 0.0, 2.0)?;
        let top_k = match options.integer("top_k")? {
            Some(top_k) => Some(
                u32::try_from(top_k).map_err(|_| options.refuse("top_k", "must be at least 0"))?,
            ),
            None => None,
        };
        Ok(Self {
            // Whatever the sign of zero is, the request is the same.
            temperature: temperature.map(|number| number + 0.0),
            max_tokens: match options.integer("num_predict")? {
                // To Ollama these are "without end": the context window is the bound then.
                None | Some(..=0) => u32::MAX,
                Some(tokens) => u32::try_from(tokens).unwrap_or(u32::MAX),
            },
            seed: options.integer("seed")?,
            stop: stops(options)?,
            sampling: Sampling {
                top_k,
                top_p: options.number("top_p", 0.0, 1.0)?,
                min_p: options.number("min_p", 0.0, 1.0)?,
                repeat_penalty: options.number("repeat_penalty", 0.0, 10.0)?,
                presence_penalty: options.number("presence_penalty", -2.0, 2.0)?,
                frequency_penalty: options.number("frequency_penalty", -2.0, 2.0)?,
            },
        })
    }
}

/// Reads the texts that end the answer: one, or a list.
fn stops(options: RequestFields<'_>) -> Result<Vec<String>, Problem> {
    let Some(value) = options.value("stop")? else { return Ok(Vec::new()) };
    let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let texts: Option<Vec<String>> =
        items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    let Some(mut texts) = texts else {
        return Err(options.refuse("stop", "must be a string or a list of strings"));
    };
    texts.retain(|text| !text.is_empty());
    if texts.len() > STOPS || texts.iter().any(|text| text.len() > STOP_BYTES) {
        let text = format!("must have at most {STOPS} strings of at most {STOP_BYTES} bytes");
        return Err(options.refuse("stop", &text));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: &Value) -> Result<AnswerOptions, String> {
        AnswerOptions::read(options.as_object()).map_err(|problem| problem.detail)
    }

    #[test]
    fn options_that_would_change_a_host_for_others_are_ignored() {
        let none = read(&json!({})).expect("valid");
        assert_eq!((none.temperature, none.max_tokens), (None, u32::MAX));
        let host = json!({
            "num_ctx": 1, "num_batch": 1, "num_gpu": 0, "main_gpu": 1, "num_thread": 1, "num_keep": 5,
            "use_mmap": false, "low_vram": true, "numa": true, "mirostat": 2, "typical_p": 0.5,
            "repeat_last_n": 5, "unheard_of": "x", "temperature": null,
        });
        assert_eq!(read(&host), Ok(none));
    }

    #[test]
    fn every_option_of_an_answer_reaches_it() {
        let options = json!({
            "temperature": 0, "num_predict": 7.0, "seed": -1, "stop": ["a", "", "b"], "top_k": 40,
            "top_p": 0.5, "min_p": 0.05, "repeat_penalty": 1.1, "presence_penalty": -2,
            "frequency_penalty": 2,
        });
        let read_options = read(&options).expect("valid");
        let sampling = Sampling {
            top_k: Some(40),
            top_p: Some(0.5),
            min_p: Some(0.05),
            repeat_penalty: Some(1.1),
            presence_penalty: Some(-2.0),
            frequency_penalty: Some(2.0),
        };
        let stop = vec!["a".to_owned(), "b".to_owned()];
        let wanted =
            AnswerOptions { temperature: Some(0.0), max_tokens: 7, seed: Some(-1), stop, sampling };
        assert_eq!(read_options, wanted);
        for endless in [0, -1, -2] {
            let options = read(&json!({"num_predict": endless})).expect("valid");
            assert_eq!(options.max_tokens, u32::MAX);
        }
    }

    #[test]
    fn an_option_of_another_type_or_out_of_bounds_is_refused_by_its_name() {
        for (name, value) in [
            ("temperature", json!("hot")),
            ("temperature", json!(2.5)),
            ("num_predict", json!("1")),
            ("seed", json!(1.5)),
            ("top_k", json!(-1)),
            ("top_p", json!(1.5)),
            ("min_p", json!(true)),
            ("repeat_penalty", json!([])),
            ("stop", json!(7)),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!(["x".repeat(257)])),
        ] {
            let refused = read(&json!({name: value})).expect_err(name);
            assert!(refused.starts_with(&format!("options.{name}: must ")), "{refused}");
        }
    }
}
