//! Reads what an answer has to be: a format, and tools that the model may call. Pure.

use serde_json::Value;

use super::errors::invalid;
use super::fields::{RawJsonObject, RequestFields};
use crate::api::answer_rules::{FORMAT_BYTES, TOOLS, TOOLS_BYTES, bounded};
use crate::http::problem::Problem;

/// Reads the format of the answer, as the model host takes it.
///
/// # Errors
/// Where it is neither `"json"` nor a schema, or too large.
pub fn format(body: &RawJsonObject) -> Result<Option<String>, Problem> {
    match RequestFields::new(&body.fields, "").value("format")? {
        None => Ok(None),
        Some(Value::String(format)) if format.is_empty() => Ok(None),
        Some(Value::String(format)) if format == "json" => Ok(Some("\"json\"".to_owned())),
        Some(schema @ Value::Object(_)) => text(body, "format", schema, FORMAT_BYTES).map(Some),
        Some(_) => {
            let mut shown = body.text_of("format").unwrap_or_default();
            shown = &shown[..shown.floor_char_boundary(64)];
            let text = format!(
                "format: invalid format: {shown}; expected \"json\" or a valid JSON Schema object"
            );
            Err(invalid(text))
        }
    }
}

/// Reads the tools that the model may call, as the model host takes them.
///
/// # Errors
/// Where they are no list of functions, or too many.
pub fn tools(body: &RawJsonObject) -> Result<Option<String>, Problem> {
    let fields = RequestFields::new(&body.fields, "");
    let list = fields.list("tools")?.unwrap_or_default();
    let Some(tools) = fields.value("tools")?.filter(|_| !list.is_empty()) else { return Ok(None) };
    if list.len() > TOOLS {
        return Err(fields.refuse("tools", &format!("must have at most {TOOLS} tools")));
    }
    let is_function = |tool: &Value| {
        let is_kind = tool["type"].is_null() || tool["type"] == "function";
        is_kind && tool["function"]["name"].as_str().is_some_and(|name| !name.is_empty())
    };
    if !list.iter().all(is_function) {
        return Err(fields.refuse("tools", "must be functions, each with a name"));
    }
    text(body, "tools", tools, TOOLS_BYTES).map(Some)
}

/// Returns the text of a field as it was sent.
fn text(body: &RawJsonObject, name: &str, value: &Value, most: usize) -> Result<String, Problem> {
    bounded(body.text_of(name), value, most).map_err(|msg| invalid(format!("{name}: {msg}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> RawJsonObject {
        RawJsonObject::parse(text.as_bytes().to_vec()).expect("an object")
    }

    #[test]
    fn a_format_and_tools_reach_the_host_as_they_are() {
        let schema = r#"{"type": "object", "properties": {"z": {}, "a": {}}}"#;
        let read = |text: &str| format(&body(&format!(r#"{{"format": {text}}}"#)));
        assert_eq!(read(schema).expect("valid").as_deref(), Some(schema));
        assert_eq!(read("\"json\"").expect("valid").as_deref(), Some("\"json\""));
        for none in ["null", "\"\""] {
            assert_eq!(read(none).expect("valid"), None);
        }
        let list = r#"[{"type": "function", "function": {"name": "f", "z": 1, "a": 2}}]"#;
        let read = |text: &str| tools(&body(&format!(r#"{{"tools": {text}}}"#)));
        assert_eq!(read(list).expect("valid").as_deref(), Some(list));
        assert_eq!(read("[]").expect("valid"), None);
    }

    #[test]
    fn a_format_and_tools_that_no_host_takes_are_refused() {
        let long = "x".repeat(TOOLS_BYTES);
        for (text, words) in [
            (r#"{"format": "xml"}"#.to_owned(), "expected \"json\" or a valid JSON Schema object"),
            (r#"{"format": ["json"]}"#.to_owned(), "expected \"json\""),
            (format!(r#"{{"format": {{"a": "{long}"}}}}"#), "at most 65536 bytes"),
        ] {
            let problem = format(&body(&text)).expect_err("refused");
            assert!(problem.detail.contains(words), "{}", problem.detail);
        }
        let function = r#"{"function": {"name": "f"}}"#;
        let many = vec![function; TOOLS + 1].join(",");
        for (text, words) in [
            (r#"{"tools": {}}"#.to_owned(), "must be a list"),
            (r#"{"tools": [{}]}"#.to_owned(), "each with a name"),
            (r#"{"tools": [{"type": "x", "function": {"name": "f"}}]}"#.to_owned(), "functions"),
            (format!(r#"{{"tools": [{many}]}}"#), "at most 128 tools"),
            (format!(r#"{{"tools": [{{"function": {{"name": "{long}"}}}}]}}"#), "at most 131072"),
        ] {
            let problem = tools(&body(&text)).expect_err("refused");
            assert!(problem.detail.contains(words), "{}", problem.detail);
        }
    }
}
