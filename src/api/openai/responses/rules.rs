//! Reads what the answer of a response has to be: a format, and tools that the model may call. Pure.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::params::{INVALID_VALUE, Params, UNSUPPORTED_VALUE};
use super::super::tools::{
    NamedSchema, bounded, check_name, is_single_call, may_call, named_schema, strictness,
};
use crate::api::answer_rules::{TOOLS, TOOLS_BYTES};
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::raw_value;
use crate::raw_fields::RawFields;
use crate::session::model::AnswerRules;

/// The rules of an answer, and how the response shows them again, as JSON.
pub struct Rules {
    /// The rules, as the model host takes them.
    pub for_host: AnswerRules,
    /// The parameter `text`.
    pub text: String,
    /// The parameter `tools`.
    pub tools: String,
    /// The parameter `tool_choice`.
    pub tool_choice: String,
    /// The parameter `parallel_tool_calls`.
    pub parallel_tool_calls: bool,
}

/// Reads the format and the tools of a request, whose whole text is `body`.
///
/// # Errors
/// The first parameter that is not valid.
pub fn read(params: &mut Params<'_>, body: &[u8]) -> Result<Rules, FieldError> {
    let (format, shown_format) = format(params, body)?;
    let ReadTools { for_host, shown, any_strict } = tools(params, body)?;
    let single_call = is_single_call(params)?;
    let may_call = may_call(params)?;
    let tools = for_host.filter(|_| may_call);
    let has_tools = tools.is_some();
    Ok(Rules {
        for_host: AnswerRules {
            format,
            tools,
            strict_calls: any_strict && has_tools,
            single_call: single_call && has_tools,
        },
        text: format!(r#"{{"format":{shown_format},"verbosity":"medium"}}"#),
        tools: shown,
        tool_choice: if may_call { "auto" } else { "none" }.to_owned(),
        parallel_tool_calls: !single_call,
    })
}

/// Reads the format of the answer: as the model host takes it, and as the response shows it.
fn format(params: &mut Params<'_>, body: &[u8]) -> Result<(Option<String>, String), FieldError> {
    let plain = || (None, r#"{"type":"text"}"#.to_owned());
    let Some(value) = params.value("text") else { return Ok(plain()) };
    let mut text = Params::of_value(value, "text")?;
    text.only("verbosity", "medium", |value| *value == "medium")?;
    let format = text.value("format");
    text.finish()?;
    let Some(value) = format else { return Ok(plain()) };
    let mut format = Params::of_value(value, "text.format")?;
    let read = match format.required_text("type")? {
        "text" => plain(),
        "json_object" => (Some("\"json\"".to_owned()), r#"{"type":"json_object"}"#.to_owned()),
        "json_schema" => {
            let raw = raw_value(body, &["text", "format", "schema"]);
            let NamedSchema { name, description, strict, schema } = named_schema(&mut format, raw)?;
            let (name, description) = (json!(name), json!(description));
            let shown = format!(
                r#"{{"type":"json_schema","name":{name},"description":{description},"schema":{schema},"strict":{strict}}}"#
            );
            (Some(schema), shown)
        }
        _ => {
            let msg = "must be text, json_object or json_schema";
            return Err(format.refuse("type", INVALID_VALUE, msg));
        }
    };
    format.finish()?;
    Ok(read)
}

/// The tools of a request.
struct ReadTools {
    /// The tools as the model host takes them.
    for_host: Option<String>,
    /// The tools as the response shows them.
    shown: String,
    /// Whether any of them is strict.
    any_strict: bool,
}

/// Reads the tools.
fn tools(params: &mut Params<'_>, body: &[u8]) -> Result<ReadTools, FieldError> {
    let list = params.list("tools")?.unwrap_or_default();
    if list.len() > TOOLS {
        let msg = format!("must have at most {TOOLS} tools");
        return Err(params.refuse("tools", INVALID_VALUE, msg));
    }
    let raw: Vec<&RawValue> = raw_value(body, &["tools"])
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let (mut given, mut shown, mut any_strict) = (Vec::new(), Vec::new(), false);
    for (at, tool) in list.iter().enumerate() {
        let text = raw.get(at).map(|tool| tool.get());
        let read = read_tool(tool, text, &format!("tools[{at}]"))?;
        given.push(read.for_host);
        shown.push(read.shown);
        any_strict |= read.is_strict;
    }
    let given = format!("[{}]", given.join(","));
    let given = bounded(Some(&given), &Value::Null, TOOLS_BYTES, "tools")?;
    let for_host = (!list.is_empty()).then_some(given);
    Ok(ReadTools { for_host, shown: format!("[{}]", shown.join(",")), any_strict })
}

/// A tool of a request.
struct ReadTool {
    /// The tool as the model host takes it.
    for_host: String,
    /// The tool as the response shows it.
    shown: String,
    /// Whether its calls have to obey its schema.
    is_strict: bool,
}

fn read_tool(value: &Value, text: Option<&str>, path: &str) -> Result<ReadTool, FieldError> {
    let mut tool = Params::of_value(value, path)?;
    if tool.required_text("type")? != "function" {
        return Err(tool.refuse("type", UNSUPPORTED_VALUE, "is supported as function"));
    }
    check_name(&mut tool)?;
    let name = json!(tool.required_text("name")?);
    let description = tool.text("description")?.map(|text| json!(text));
    let parameters = match tool.value("parameters") {
        Some(parameters) => {
            Params::of_value(parameters, &tool.path_of("parameters"))?;
            // The order of their fields is lost in the parsed value.
            let raw = text.and_then(|text| serde_json::from_str::<RawFields<'_>>(text).ok());
            let raw = raw.and_then(|RawFields(fields)| {
                fields.into_iter().rev().find(|(name, _)| name == "parameters")
            });
            Some(raw.map_or_else(|| parameters.to_string(), |(_, text)| text.to_owned()))
        }
        None => None,
    };
    let is_strict = strictness(&mut tool)?;
    tool.unsupported(&["allowed_callers", "async", "defer_loading", "output_schema"])?;
    tool.finish()?;
    let mut function = format!(r#"{{"name":{name}"#);
    for (field, text) in [
        ("description", description.as_ref().map(Value::to_string)),
        ("parameters", parameters.clone()),
        ("strict", is_strict.then(|| "true".to_owned())),
    ] {
        if let Some(text) = text {
            function.extend([",\"", field, "\":", &text]);
        }
    }
    let null = || "null".to_owned();
    let shown = format!(
        r#"{{"type":"function","name":{name},"description":{},"parameters":{},"strict":{is_strict}}}"#,
        description.map_or_else(null, |text| text.to_string()),
        parameters.unwrap_or_else(null),
    );
    let for_host = format!(r#"{{"type":"function","function":{function}}}}}"#);
    Ok(ReadTool { for_host, shown, is_strict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openai::params::JsonObject;

    fn read_all(request: &str) -> Result<Rules, (String, &'static str)> {
        let object: JsonObject = serde_json::from_str(request).expect("an object");
        let mut params = Params::of_request(&object);
        let rules = read(&mut params, request.as_bytes());
        rules.map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    #[test]
    fn a_schema_and_tools_keep_the_order_of_their_fields() {
        let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{}}}"#;
        let request = format!(
            r#"{{"text": {{"format": {{"type": "json_schema", "name": "n", "strict": true,
                "schema": {schema}}}}}}}"#
        );
        let rules = read_all(&request).expect("valid");
        assert_eq!(rules.for_host.format.as_deref(), Some(schema));
        assert!(rules.text.contains(schema) && rules.text.contains(r#""strict":true"#));
        let request = r#"{"tools": [{"type":"function","name":"f","description":"d",
            "parameters":{"z":1,"a":2},"strict":null},{"type":"function","name":"g"}]}"#;
        let rules = read_all(request).expect("valid");
        assert_eq!(
            rules.for_host.tools.as_deref(),
            Some(concat!(
                r#"[{"type":"function","function":{"name":"f","description":"d","parameters":{"z":1,"a":2}}},"#,
                r#"{"type":"function","function":{"name":"g"}}]"#
            ))
        );
        let shown: Value = serde_json::from_str(&rules.tools).expect("JSON");
        assert_eq!(shown[0]["parameters"], json!({"z": 1, "a": 2}));
        assert_eq!((&shown[1]["parameters"], &shown[1]["strict"]), (&json!(null), &json!(false)));
        assert!(!rules.for_host.strict_calls && rules.parallel_tool_calls);
        let strict = request.replace("null", "true").replace(r#"{"z":1,"a":2}"#, "{}");
        let strict = strict.replacen('{', r#"{"parallel_tool_calls":false,"#, 1);
        let rules = read_all(&strict).expect("valid");
        assert!(rules.for_host.strict_calls && rules.for_host.single_call);
        assert!(rules.tools.contains(r#""strict":true"#) && !rules.parallel_tool_calls);
        assert!(rules.for_host.tools.is_some_and(|tools| tools.contains(r#""strict":true"#)));
        let none = request.replacen('{', r#"{"tool_choice":"none","#, 1);
        let rules = read_all(&none).expect("valid");
        assert!(rules.for_host.is_free(), "{:?}", rules.for_host.tools);
        assert_eq!(rules.tool_choice, "none");
    }

    #[test]
    fn formats_and_tools_that_are_not_supported_are_refused_by_their_path() {
        let format = |format: Value| json!({"text": {"format": format}});
        let tool = |tool: Value| json!({"tools": [tool]});
        for (request, path, kind) in [
            (json!({"text": "x"}), "text", "invalid_type"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity", "unsupported_value"),
            (json!({"text": {"x": 1}}), "text.x", "unknown_parameter"),
            (format(json!({"type": "xml"})), "text.format.type", "invalid_value"),
            (
                format(json!({"type": "json_schema", "name": "n"})),
                "text.format.schema",
                "missing_required_parameter",
            ),
            (
                format(json!({"type": "json_schema", "name": "n n", "schema": {}})),
                "text.format.name",
                "invalid_value",
            ),
            (tool(json!({"type": "web_search"})), "tools[0].type", "unsupported_value"),
            (tool(json!({"type": "function"})), "tools[0].name", "missing_required_parameter"),
            (
                tool(json!({"type": "function", "name": "f", "strict": "yes"})),
                "tools[0].strict",
                "invalid_type",
            ),
            (
                tool(json!({"type": "function", "name": "f", "strict": true,
                    "parameters": {"properties": {"a": {"pattern": "a"}}}})),
                "tools[0].parameters",
                "unsupported_value",
            ),
            (
                tool(json!({"type": "function", "name": "f", "output_schema": {}})),
                "tools[0].output_schema",
                "unsupported_parameter",
            ),
            (
                tool(json!({"type": "function", "name": "f", "parameters": []})),
                "tools[0].parameters",
                "invalid_type",
            ),
            (json!({"tool_choice": "required"}), "tool_choice", "unsupported_value"),
            (json!({"parallel_tool_calls": 0}), "parallel_tool_calls", "invalid_type"),
        ] {
            let refused = read_all(&request.to_string()).err();
            assert_eq!(refused, Some((path.to_owned(), kind)), "{request}");
        }
    }
}
