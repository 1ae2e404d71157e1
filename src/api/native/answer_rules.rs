//! Reads what an answer has to be: a format, and tools that the model may call. Pure.

use serde_json::Value;

use crate::api::answer_rules::{
    FORMAT_BYTES, NAME_CHARACTERS, TOOLS, TOOLS_BYTES, bounded, is_name,
};
use crate::http::extract::fields::Fields;
use crate::http::extract::object::raw_value;
use crate::session::model::AnswerRules;

/// Reads `format` and `tools` of a request, whose whole text is `text`.
pub fn read(fields: &mut Fields<'_>, text: &[u8]) -> AnswerRules {
    AnswerRules {
        format: format(fields, text),
        tools: tools(fields, text),
        ..AnswerRules::default()
    }
}

fn format(fields: &mut Fields<'_>, text: &[u8]) -> Option<String> {
    match fields.value("format")? {
        Value::String(format) if format == "json" => Some("\"json\"".to_owned()),
        schema @ Value::Object(_) => sent(fields, "format", text, schema, FORMAT_BYTES),
        _ => {
            fields.refuse("format", "enum", "must be \"json\" or a JSON schema, an object");
            None
        }
    }
}

fn tools(fields: &mut Fields<'_>, text: &[u8]) -> Option<String> {
    let tools = fields.value("tools")?;
    let Some(list) = tools.as_array() else {
        fields.refuse("tools", "list_type", "must be a list of functions");
        return None;
    };
    if list.len() > TOOLS {
        fields.refuse("tools", "too_long", format!("must have at most {TOOLS} tools"));
        return None;
    }
    if !list.iter().all(is_function) {
        let msg = format!(
            "must be functions: {{\"type\": \"function\", \"function\": {{\"name\": …, \
             \"description\": …, \"parameters\": {{…}}}}}}; a name has 1 to {NAME_CHARACTERS} letters, digits, \
             underscores and dashes"
        );
        fields.refuse("tools", "tool", msg);
        return None;
    }
    if list.is_empty() { None } else { sent(fields, "tools", text, tools, TOOLS_BYTES) }
}

fn is_function(tool: &Value) -> bool {
    let function = &tool["function"];
    tool["type"] == "function"
        && function["name"].as_str().is_some_and(is_name)
        && (function["description"].is_null() || function["description"].is_string())
        && (function["parameters"].is_null() || function["parameters"].is_object())
}

/// Returns the text of a field as it was sent.
fn sent(
    fields: &mut Fields<'_>,
    name: &'static str,
    text: &[u8],
    value: &Value,
    most: usize,
) -> Option<String> {
    bounded(raw_value(text, &[name]), value, most)
        .map_err(|msg| fields.refuse(name, "too_long", msg))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::object::Object;

    fn rules(text: &str) -> Result<AnswerRules, String> {
        let object = Object::parse(text.as_bytes()).expect("an object");
        let mut fields = Fields::new("body", &object);
        let rules = read(&mut fields, text.as_bytes());
        fields.finish(rules).map_err(|errors| errors[0].to_string())
    }

    #[test]
    fn a_format_and_tools_reach_the_host_as_they_are() {
        let schema = r#"{"type": "object", "properties": {"z": {}, "a": {}}}"#;
        let tools =
            r#"[{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}]"#;
        let read = rules(&format!(r#"{{"format": {schema}, "tools": {tools}}}"#)).expect("valid");
        assert_eq!(read.format.as_deref(), Some(schema));
        assert_eq!(read.tools.as_deref(), Some(tools));
        let json = rules(r#"{"format": "json", "tools": []}"#).expect("valid");
        assert_eq!((json.format.as_deref(), json.tools), (Some("\"json\""), None));
        assert!(rules(r#"{"format": null, "tools": null}"#).expect("valid").is_free());
    }

    #[test]
    fn what_is_no_format_or_no_tool_is_refused_by_its_field() {
        let long = "x".repeat(TOOLS_BYTES);
        for (text, words) in [
            (r#"{"format": "xml"}"#.to_owned(), "format: must be"),
            (r#"{"format": []}"#.to_owned(), "format: must be"),
            (format!(r#"{{"format": {{"a": "{long}"}}}}"#), "format: must have at most 65536"),
            (r#"{"tools": {}}"#.to_owned(), "tools: must be a list"),
            (r#"{"tools": [{"type": "function", "function": {}}]}"#.to_owned(), "tools: must be"),
            (r#"{"tools": [{"function": {"name": "f"}}]}"#.to_owned(), "tools: must be functions"),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a b"}}]}"#.to_owned(),
                "tools: must be functions",
            ),
            (format!(r#"{{"tools": [{}]}}"#, vec!["1"; TOOLS + 1].join(",")), "tools: must have"),
        ] {
            let refused = rules(&text).expect_err("refused");
            assert!(refused.starts_with(words), "{refused}");
        }
    }
}
