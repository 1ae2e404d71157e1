//! Reads what an answer has to be: a format, and tools that the model may call. Pure.

use serde_json::Value;

use super::params::{INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use crate::api::answer_rules::{self, FORMAT_BYTES, NAME_CHARACTERS, TOOLS, TOOLS_BYTES, is_name};
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::raw_value;
use crate::json_schema;
use crate::session::model::AnswerRules;

/// Reads the format and the tools of a request, whose whole text is `body`.
///
/// # Errors
/// The first parameter that is not valid.
pub fn rules(params: &mut Params<'_>, body: &[u8]) -> Result<AnswerRules, FieldError> {
    let format = format(params, body)?;
    let (tools, strict_calls) = tools(params, body)?;
    let single_call = is_single_call(params)? && tools.is_some();
    Ok(AnswerRules { format, tools, strict_calls, single_call })
}

/// Reads the format of the answer, as the model host takes it.
fn format(params: &mut Params<'_>, body: &[u8]) -> Result<Option<String>, FieldError> {
    const NAME_OF_FORMAT: &str = "response_format";
    let Some(value) = params.value(NAME_OF_FORMAT) else { return Ok(None) };
    let mut format = Params::of_value(value, NAME_OF_FORMAT)?;
    let chosen = match format.required_text("type")? {
        "text" => None,
        "json_object" => Some("\"json\"".to_owned()),
        "json_schema" => {
            let value = format.required("json_schema")?;
            let mut named = Params::of_value(value, "response_format.json_schema")?;
            let raw = raw_value(body, &[NAME_OF_FORMAT, "json_schema", "schema"]);
            let NamedSchema { schema, .. } = named_schema(&mut named, raw)?;
            named.finish()?;
            Some(schema)
        }
        _ => {
            let msg = "must be text, json_object or json_schema";
            return Err(format.refuse("type", INVALID_VALUE, msg));
        }
    };
    format.finish()?;
    Ok(chosen)
}

/// A schema that an answer has to obey, with its name.
pub struct NamedSchema<'a> {
    /// The name.
    pub name: &'a str,
    /// What it is for.
    pub description: Option<&'a str>,
    /// Whether it is strict, which changes nothing: the host enforces it either way.
    pub strict: bool,
    /// The schema as it came.
    pub schema: String,
}

/// Reads a schema, whose text in the body is `raw`: the order of its fields is lost in the parsed value.
///
/// # Errors
/// The first parameter that is not valid.
pub fn named_schema<'a>(
    params: &mut Params<'a>,
    raw: Option<&str>,
) -> Result<NamedSchema<'a>, FieldError> {
    check_name(params)?;
    let name = params.required_text("name")?;
    let description = params.text("description")?;
    let strict = params.flag("strict")?.unwrap_or(false);
    let schema = params.required("schema")?;
    let path = params.path_of("schema");
    Params::of_value(schema, &path)?;
    let schema = bounded(raw, schema, FORMAT_BYTES, &path)?;
    Ok(NamedSchema { name, description, strict, schema })
}

/// Reads the tools that the model may call, and whether any of them is strict; none where it may call
/// none of them.
fn tools(params: &mut Params<'_>, body: &[u8]) -> Result<(Option<String>, bool), FieldError> {
    let list = params.list("tools")?.unwrap_or_default();
    if list.len() > TOOLS {
        let msg = format!("must have at most {TOOLS} tools");
        return Err(params.refuse("tools", INVALID_VALUE, msg));
    }
    let mut any_strict = false;
    for (at, tool) in list.iter().enumerate() {
        any_strict |= check_tool(tool, &format!("tools[{at}]"))?;
    }
    let may_call = may_call(params)?;
    match params.value("tools") {
        Some(tools) if !list.is_empty() && may_call => {
            let text = bounded(raw_value(body, &["tools"]), tools, TOOLS_BYTES, "tools")?;
            Ok((Some(text), any_strict))
        }
        _ => Ok((None, false)),
    }
}

/// Reads whether the model may call tools.
///
/// # Errors
/// Where it has to call one: the model hosts cannot make it.
pub fn may_call(params: &mut Params<'_>) -> Result<bool, FieldError> {
    match params.value("tool_choice") {
        None => Ok(true),
        Some(choice) if *choice == "auto" => Ok(true),
        Some(choice) if *choice == "none" => Ok(false),
        Some(_) => {
            let msg = "is supported as auto and none: the model hosts cannot make a model call a tool, or \
                one of several; send only the tools that it may call";
            Err(params.refuse("tool_choice", UNSUPPORTED_VALUE, msg))
        }
    }
}

/// Reads whether an answer may have one call of a tool only.
///
/// # Errors
/// Where it is of another type.
pub fn is_single_call(params: &mut Params<'_>) -> Result<bool, FieldError> {
    Ok(params.flag("parallel_tool_calls")? == Some(false))
}

/// Reads whether the calls of a function have to obey its schema, which then has to be one whose every
/// keyword is checked.
///
/// # Errors
/// Where it is of another type, or the schema has a keyword that is not checked.
pub fn strictness(function: &mut Params<'_>) -> Result<bool, FieldError> {
    if function.flag("strict")? != Some(true) {
        return Ok(false);
    }
    if let Some(schema) = function.value("parameters") {
        json_schema::check(schema).map_err(|fault| {
            let msg = format!("{fault}; leave strict out");
            function.refuse("parameters", UNSUPPORTED_VALUE, msg)
        })?;
    }
    Ok(true)
}

/// Checks a tool, and returns whether it is strict.
fn check_tool(value: &Value, path: &str) -> Result<bool, FieldError> {
    let mut tool = Params::of_value(value, path)?;
    if tool.required_text("type")? != "function" {
        return Err(tool.refuse("type", UNSUPPORTED_VALUE, "is supported as function"));
    }
    let function = tool.required("function")?;
    let path = tool.path_of("function");
    tool.finish()?;
    let mut function = Params::of_value(function, &path)?;
    check_name(&mut function)?;
    function.text("description")?;
    if let Some(parameters) = function.value("parameters") {
        Params::of_value(parameters, &function.path_of("parameters"))?;
    }
    let is_strict = strictness(&mut function)?;
    function.finish()?;
    Ok(is_strict)
}

/// Checks the name of a tool or a schema.
///
/// # Errors
/// Where it is absent, or has other characters than OpenAI allows.
pub fn check_name(params: &mut Params<'_>) -> Result<(), FieldError> {
    let name = params.required_text("name")?;
    if !is_name(name) {
        let msg = format!("must be 1 to {NAME_CHARACTERS} letters, digits, underscores and dashes");
        return Err(params.refuse("name", INVALID_VALUE, msg));
    }
    Ok(())
}

/// Returns the text of a value, or the value as text where its text cannot be found.
///
/// # Errors
/// Where it has more bytes than `most`.
pub fn bounded(
    raw: Option<&str>,
    value: &Value,
    most: usize,
    path: &str,
) -> Result<String, FieldError> {
    answer_rules::bounded(raw, value, most).map_err(|msg| error(path, INVALID_VALUE, msg))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::openai::params::JsonObject;

    fn read(request: &str) -> Result<AnswerRules, (String, &'static str)> {
        let object: JsonObject = serde_json::from_str(request).expect("an object");
        let mut params = Params::of_request(&object);
        let read = rules(&mut params, request.as_bytes());
        read.map_err(|error| (error.loc.last().cloned().unwrap_or_default(), error.kind))
    }

    #[test]
    fn a_schema_keeps_the_order_of_its_fields() {
        let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{}}}"#;
        let request = format!(
            r#"{{"response_format": {{"type": "json_schema", "json_schema":
                {{"name": "n", "strict": true, "schema": {schema}}}}}}}"#
        );
        assert_eq!(read(&request).expect("valid").format.as_deref(), Some(schema));
        let json = r#"{"response_format": {"type": "json_object"}}"#;
        assert_eq!(read(json).expect("valid").format.as_deref(), Some("\"json\""));
        for free in [r#"{"response_format": {"type": "text"}}"#, "{}"] {
            assert!(read(free).expect("valid").is_free());
        }
    }

    #[test]
    fn tools_reach_the_host_as_they_are_unless_none_may_be_called() {
        let tools = r#"[{"type":"function","function":{"name":"f","parameters":{"z":1,"a":2}}}]"#;
        let with = |more: &str| read(&format!(r#"{{"tools": {tools}{more}}}"#));
        assert_eq!(with("").expect("valid").tools.as_deref(), Some(tools));
        assert!(with(r#", "tool_choice": "auto", "parallel_tool_calls": true"#).is_ok());
        let none = with(r#", "tool_choice": "none", "parallel_tool_calls": false"#).expect("valid");
        assert_eq!(none, AnswerRules::default());
        let single = with(r#", "parallel_tool_calls": false"#).expect("valid");
        assert!(single.single_call && !single.strict_calls);
        let strict = read(&format!(
            r#"{{"tools": {}}}"#,
            tools
                .replacen("\"name\"", "\"strict\":true,\"name\"", 1)
                .replace(r#"{"z":1,"a":2}"#, r#"{"type":"object"}"#)
        ))
        .expect("valid");
        assert!(strict.strict_calls && !strict.single_call);
        assert_eq!(read(r#"{"tools": []}"#).expect("valid").tools, None);
    }

    #[test]
    fn formats_and_tools_that_are_not_supported_are_refused_by_their_path() {
        let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": schema}});
        for (request, path, kind) in [
            (json!({"response_format": "json"}), "response_format", "invalid_type"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type", "invalid_value"),
            (
                schema(json!({"name": "n"})),
                "response_format.json_schema.schema",
                "missing_required_parameter",
            ),
            (
                schema(json!({"name": "n n", "schema": {}})),
                "response_format.json_schema.name",
                "invalid_value",
            ),
            (
                schema(json!({"name": "n", "schema": {"x": "y".repeat(FORMAT_BYTES)}})),
                "response_format.json_schema.schema",
                "invalid_value",
            ),
            (json!({"tools": [{"type": "custom"}]}), "tools[0].type", "unsupported_value"),
            (tool(json!({})), "tools[0].function.name", "missing_required_parameter"),
            (
                tool(json!({"name": "f", "strict": "yes"})),
                "tools[0].function.strict",
                "invalid_type",
            ),
            (
                tool(json!({"name": "f", "strict": true, "parameters": {"pattern": "a"}})),
                "tools[0].function.parameters",
                "unsupported_value",
            ),
            (
                tool(json!({"name": "f", "parameters": []})),
                "tools[0].function.parameters",
                "invalid_type",
            ),
            (tool(json!({"name": "f", "x": 1})), "tools[0].function.x", "unknown_parameter"),
            (json!({"tool_choice": "required"}), "tool_choice", "unsupported_value"),
            (
                json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
                "tool_choice",
                "unsupported_value",
            ),
            (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "invalid_type"),
        ] {
            assert_eq!(read(&request.to_string()), Err((path.to_owned(), kind)), "{request}");
        }
    }
}
