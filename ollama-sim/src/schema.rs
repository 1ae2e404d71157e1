//! Answers that obey a format, and calls of tools.

use serde_json::{Map, Value, json};

/// Nested schemas that are followed, at most.
const DEPTH: usize = 16;

/// Returns the answer that a format leaves; none where it is no format.
pub fn answer(format: &Value) -> Option<String> {
    match format {
        Value::String(json) if json == "json" => Some(json!({"answer": "word"}).to_string()),
        Value::Object(_) => Some(instance(format, format, 0).to_string()),
        _ => None,
    }
}

/// Returns whether a format is an object of which no grammar can be made: one of a type that JSON
/// schemas do not have.
pub fn is_unfollowable(format: &Value) -> bool {
    const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
    format["type"].as_str().is_some_and(|kind| !TYPES.contains(&kind))
}

/// Returns the calls that the directives `[[call=NAME]]` of a message request, of these tools. Those of
/// `[[call=NAME wrong]]` have arguments that do not obey the schema of the tool.
pub fn calls(message: &str, tools: &[Value]) -> Vec<Value> {
    let names = message.split("[[call=").skip(1).filter_map(|rest| rest.split_once("]]"));
    let called = names.filter_map(|(name, _)| {
        let (name, is_wrong) = name.strip_suffix(" wrong").map_or((name, false), |it| (it, true));
        let mut functions = tools.iter().map(|tool| &tool["function"]);
        functions.find(|function| function["name"] == name).map(|function| (function, is_wrong))
    });
    let call = |(index, (function, is_wrong)): (usize, (&Value, bool))| {
        let parameters = &function["parameters"];
        let wrong = || json!({"wrong": ["of", "every", "schema"]});
        json!({
            "id": format!("call_{index}"),
            "function": {
                "index": index,
                "name": function["name"],
                "arguments": if is_wrong { wrong() } else { instance(parameters, parameters, 0) },
            },
        })
    };
    called.enumerate().map(call).collect()
}

/// Returns a value that a schema within `root` allows.
fn instance(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth > DEPTH {
        return Value::Null;
    }
    let inner = |schema: &Value| instance(schema, root, depth + 1);
    if let Some(path) = schema["$ref"].as_str() {
        return root.pointer(path.trim_start_matches('#')).map_or(Value::Null, inner);
    }
    if let Some(value) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return value.clone();
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(first) = schema[choice].get(0) {
            return inner(first);
        }
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind.unwrap_or("object") {
        "string" => json!("word"),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(7)),
        "boolean" => json!(true),
        "null" => Value::Null,
        "array" => {
            let least = schema["minItems"].as_u64().unwrap_or(1).min(8);
            (0..least).map(|_| inner(&schema["items"])).collect()
        }
        _ => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let fields = fields.map(|(name, schema)| (name.clone(), inner(schema)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_obeys_its_schema() {
        let schema = json!({
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer", "minimum": 3},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
                "kind": {"enum": ["a", "b"]},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            },
            "$defs": {"tag": {"type": "boolean"}},
        });
        let answer: Value =
            serde_json::from_str(&answer(&schema).expect("an answer")).expect("JSON");
        let wanted = json!({
            "name": "word", "age": 3, "tags": [true, true], "kind": "a", "maybe": null,
        });
        assert_eq!(answer, wanted);
        assert_eq!(super::answer(&json!("json")).as_deref(), Some(r#"{"answer":"word"}"#));
        assert_eq!(super::answer(&json!(7)), None);
    }

    #[test]
    fn a_message_calls_the_tools_that_it_names() {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let tools = [json!({"type": "function",
            "function": {"name": "weather", "parameters": parameters}})];
        let called = calls("[[call=weather]] and [[call=nothing]]", &tools);
        assert_eq!(
            called,
            [json!({"id": "call_0", "function": {
            "index": 0, "name": "weather", "arguments": {"city": "word"}}})]
        );
        let wrong = calls("[[call=weather wrong]]", &tools);
        assert_eq!(wrong[0]["function"]["arguments"].get("city"), None);
        assert!(calls("no call", &tools).is_empty());
    }
}
