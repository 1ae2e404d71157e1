//! The calls of tools of one answer. They are stored with its end: a model run that breaks off leaves
//! none, and the next one starts the answer again.

use serde_json::Value;

use super::failures::call_invalid;
use crate::json_schema::{self, Steps};
use crate::ollama::ReplyCall;
use crate::session::model::{AnswerRules, Failure, ToolCall};
use crate::session::store::Turn;

/// Calls of tools of one answer, and their bytes, at most. They are in the event of its end.
const CALLS: usize = 64;
const CALL_BYTES: usize = 64 << 10;
/// Bytes of an answer with calls of tools, at most: its end is one event.
const ANSWER_BYTES: usize = 448 << 10;

/// The calls of an answer so far.
pub(super) struct ToolCalls<'a> {
    rules: &'a AnswerRules,
    /// The beginning of the identifiers of calls to which the host gives none.
    id: String,
    calls: Vec<ToolCall>,
    bytes: usize,
}

impl<'a> ToolCalls<'a> {
    /// Begins with none.
    pub(super) fn of(turn: &'a Turn) -> Self {
        let id = format!("call_{}", turn.generation.0.simple());
        Self { rules: &turn.spec.rules, id, calls: Vec::new(), bytes: 0 }
    }

    /// Adds calls to an answer with `text` bytes of text. Returns false where they are more than an answer
    /// may have. Where an answer may have one, the others are left out: the model calls them in its next
    /// answer, if it still needs them.
    pub(super) fn add(&mut self, calls: Vec<ReplyCall>, text: usize) -> bool {
        for ReplyCall { id, name, arguments } in calls {
            if self.rules.single_call && !self.calls.is_empty() {
                tracing::debug!("further call of a tool left out");
                continue;
            }
            self.bytes += name.len() + arguments.len() + id.as_ref().map_or(0, String::len);
            let is_large = self.bytes > CALL_BYTES || self.bytes + text > ANSWER_BYTES;
            if self.calls.len() == CALLS || is_large {
                tracing::info!("answer has too many calls of tools");
                return false;
            }
            let number = self.calls.len();
            let id = id.unwrap_or_else(|| format!("{}_{number}", self.id));
            self.calls.push(ToolCall { id, name, arguments });
        }
        true
    }

    /// Returns the calls of the whole answer.
    ///
    /// # Errors
    /// Where the arguments of one do not obey the schema that they have to obey.
    pub(super) fn end(self) -> Result<Vec<ToolCall>, Failure> {
        let mut steps = Steps::default();
        let rules = if self.calls.is_empty() { Value::Null } else { strict_functions(self.rules) };
        match self.calls.iter().find(|call| !obeys(&rules, call, &mut steps)) {
            Some(call) => {
                tracing::info!("call of a tool does not obey its schema");
                Err(call_invalid(&call.name))
            }
            None => Ok(self.calls),
        }
    }
}

/// Returns the tools of the request where a call of one may have to obey its schema.
fn strict_functions(rules: &AnswerRules) -> Value {
    let tools = rules.tools.as_deref().filter(|_| rules.strict_calls).unwrap_or_default();
    serde_json::from_str(tools).unwrap_or_default()
}

/// Returns whether a call obeys the schema of its function, where it has to. All calls of an answer share
/// the steps.
fn obeys(tools: &Value, call: &ToolCall, steps: &mut Steps) -> bool {
    let mut functions = tools.as_array().into_iter().flatten().map(|tool| &tool["function"]);
    let Some(function) = functions.find(|function| function["name"] == *call.name) else {
        return true;
    };
    match (&function["strict"], &function["parameters"]) {
        (Value::Bool(true), Value::Null) | (Value::Bool(false) | Value::Null, _) => true,
        (_, schema) => serde_json::from_str(&call.arguments)
            .is_ok_and(|arguments| json_schema::obeys(&arguments, schema, steps)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calls(rules: &AnswerRules) -> ToolCalls<'_> {
        ToolCalls { rules, id: "call_1".to_owned(), calls: Vec::new(), bytes: 0 }
    }

    fn call(name: &str, arguments: &str) -> ReplyCall {
        ReplyCall { id: None, name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn only_the_calls_of_strict_functions_have_to_obey_their_schemas() {
        let tools = r#"[
            {"type": "function", "function": {"name": "f", "strict": true, "parameters": {
                "type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
                "additionalProperties": false}}},
            {"type": "function", "function": {"name": "g", "parameters": {"required": ["x"]}}},
            {"type": "function", "function": {"name": "h", "strict": true}}
        ]"#;
        let strict = AnswerRules {
            tools: Some(tools.to_owned()),
            strict_calls: true,
            ..AnswerRules::default()
        };
        let lenient = AnswerRules { strict_calls: false, ..strict.clone() };
        for (name, arguments, is_obeyed) in [
            ("f", r#"{"x": 1}"#, true),
            ("f", r#"{"x": "1"}"#, false),
            ("f", r#"{"x": 1, "y": 2}"#, false),
            ("f", "{}", false),
            ("g", "{}", true),
            ("h", r#"{"any": 1}"#, true),
            ("unknown", "{}", true),
        ] {
            for (rules, is_wanted) in [(&strict, is_obeyed), (&lenient, true)] {
                let mut calls = calls(rules);
                assert!(calls.add(vec![call(name, arguments)], 0));
                let ended = calls.end().map_err(|failure| failure.code);
                assert_eq!(ended.is_ok(), is_wanted, "{name} {arguments}");
                assert!(ended.is_ok_and(|calls| calls[0].id == "call_1_0") || !is_wanted);
            }
        }
    }

    #[test]
    fn the_calls_of_an_answer_are_checked_in_bounded_time_together() {
        // Each check takes nearly all steps that there are.
        let names = vec!["a"; 2_000];
        let schema = json!({"allOf": vec![json!({"required": names}); 300]});
        let tools = json!([{"function": {"name": "f", "strict": true, "parameters": schema}}]);
        let rules = AnswerRules {
            tools: Some(tools.to_string()),
            strict_calls: true,
            ..AnswerRules::default()
        };
        let ended = |count| {
            let mut calls = calls(&rules);
            assert!(calls.add(vec![call("f", r#"{"a": 1}"#); count], 0));
            calls.end()
        };
        assert!(ended(1).is_ok());
        assert!(ended(2).is_err());
    }

    #[test]
    fn an_answer_of_one_call_at_most_keeps_its_first_one() {
        let rules = AnswerRules { single_call: true, ..AnswerRules::default() };
        let mut calls = calls(&rules);
        assert!(calls.add(vec![call("f", "{}"), call("g", "{}")], 0));
        assert!(calls.add(vec![call("h", "{}")], 0));
        let names: Vec<_> = calls.end().expect("valid").into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["f"]);
    }

    #[test]
    fn calls_are_bounded_in_number_and_bytes() {
        let rules = AnswerRules::default();
        let mut many = calls(&rules);
        assert!(many.add(vec![call("f", "{}"); CALLS], 0));
        assert!(!many.add(vec![call("f", "{}")], 0));
        let long = "x".repeat(CALL_BYTES);
        assert!(!calls(&rules).add(vec![call("f", &long)], 0));
        assert!(!calls(&rules).add(vec![call("f", "{}")], ANSWER_BYTES));
    }
}
