//! Checks JSON values against the part of JSON Schema that arguments of functions are described in.
//!
//! A schema with a keyword that is not checked here is refused when the request is read, so that no
//! rule of it is left out in silence. This module uses no other module of the crate.
//!
//! Schemas come from strangers, and one that refers to itself must cost neither the stack, which would
//! end the process, nor more than a bounded time. The crate jsonschema has a bound for neither, and did
//! overflow the stack (its issues 383 and 1178); so the checks are made here.

use std::fmt;

use serde_json::{Map, Value};

/// Steps of one check, at most: schemas that refer to themselves could ask for any number. A step is a
/// schema, one of its keywords, a part of a reference, a field or an item of the value, eight entries of
/// `enum`, `required` or `type`, or 64 bytes of a text or a name in one of these.
const STEPS: usize = 100_000;
/// Schemas within schemas, at most.
const DEPTH: u32 = 128;

/// Keywords that restrict no value.
const ANNOTATIONS: [&str; 11] = [
    "$comment",
    "$id",
    "$schema",
    "default",
    "deprecated",
    "description",
    "examples",
    "format",
    "readOnly",
    "title",
    "writeOnly",
];
/// Keywords whose values are lists of schemas.
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords whose values are objects of schemas.
const MAPS: [&str; 3] = ["$defs", "definitions", "properties"];
/// Keywords whose values are numbers.
const NUMBERS: [&str; 10] = [
    "exclusiveMaximum",
    "exclusiveMinimum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
];
/// The types of JSON Schema.
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// The steps that are left of a check, of one value or of several together.
#[derive(Debug)]
pub struct Steps(usize);

impl Default for Steps {
    fn default() -> Self {
        Self(STEPS)
    }
}

impl Steps {
    /// Takes steps; returns false where none is left.
    fn take(&mut self, count: usize) -> bool {
        self.0 = self.0.saturating_sub(count);
        self.0 > 0
    }
}

/// The reason why a schema cannot be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaFault {
    /// A keyword that is not checked here.
    Keyword(String),
    /// A keyword with a value that it cannot have.
    Value(String),
    /// A reference to another place than one within the schema.
    Reference(String),
    /// More schemas within schemas, or more of them together, than are checked.
    TooLarge,
}

impl fmt::Display for SchemaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyword(name) => write!(f, "has the keyword {name:?}, which is not checked"),
            Self::Value(name) => write!(f, "has a value of {name:?} that cannot be checked"),
            Self::Reference(path) => {
                write!(f, "has a reference to {path:?}, which is no place within it")
            }
            Self::TooLarge => f.write_str("is nested too deeply, or too large to be checked"),
        }
    }
}

/// Checks that values can be checked against a schema, by its every keyword.
///
/// # Errors
/// The first keyword that cannot be checked.
pub fn check(schema: &Value) -> Result<(), SchemaFault> {
    check_within(schema, schema, DEPTH, &mut Steps::default())
}

fn check_within(
    schema: &Value,
    root: &Value,
    depth: u32,
    steps: &mut Steps,
) -> Result<(), SchemaFault> {
    if depth == 0 || !steps.take(1 + cost_of_rules(schema)) {
        return Err(SchemaFault::TooLarge);
    }
    let fields = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(fields) => fields,
        _ => return Err(SchemaFault::Value("a schema".to_owned())),
    };
    for (name, value) in fields {
        let fault = || SchemaFault::Value(shown(name));
        let mut inner = |schema| check_within(schema, root, depth - 1, steps);
        match name.as_str() {
            "type" => {
                let is_type = |kind: &Value| kind.as_str().is_some_and(|it| TYPES.contains(&it));
                let is_known =
                    value.as_array().map_or(is_type(value), |list| list.iter().all(is_type));
                if !is_known {
                    return Err(fault());
                }
            }
            "$ref" => {
                let path = value.as_str().ok_or_else(fault)?;
                referred(root, path).ok_or_else(|| SchemaFault::Reference(shown(path)))?;
            }
            "required" => {
                let names = value.as_array().ok_or_else(fault)?;
                if !names.iter().all(Value::is_string) {
                    return Err(fault());
                }
            }
            // Whole objects would take long to compare.
            "enum" if value.as_array().is_some_and(|list| list.iter().all(is_single)) => {}
            "const" if is_single(value) => {}
            "additionalProperties" | "items" => inner(value)?,
            name if LISTS.contains(&name) => {
                for schema in value.as_array().ok_or_else(fault)? {
                    inner(schema)?;
                }
            }
            name if MAPS.contains(&name) => {
                for schema in value.as_object().ok_or_else(fault)?.values() {
                    inner(schema)?;
                }
            }
            name if NUMBERS.contains(&name) && value.is_number() => {}
            name if ANNOTATIONS.contains(&name) => {}
            name if ["const", "enum"].contains(&name) || NUMBERS.contains(&name) => {
                return Err(fault());
            }
            _ => return Err(SchemaFault::Keyword(shown(name))),
        }
    }
    Ok(())
}

/// Returns whether a value obeys a schema. One that takes more steps than are left counts as one that
/// does not, as one does that [`check`] refuses.
pub fn obeys(value: &Value, schema: &Value, steps: &mut Steps) -> bool {
    Check { root: schema, steps }.obeys(value, schema, DEPTH).unwrap_or(false)
}

/// The check takes more steps than are left, or looks at too many schemas within schemas. Nothing else
/// of it is looked at then.
struct OutOfSteps;

struct Check<'a, 's> {
    root: &'a Value,
    steps: &'s mut Steps,
}

impl<'a> Check<'a, '_> {
    fn obeys(&mut self, value: &Value, schema: &'a Value, depth: u32) -> Result<bool, OutOfSteps> {
        if depth == 0 || !self.steps.take(1 + cost_of_rules(schema) + cost_of(value)) {
            return Err(OutOfSteps);
        }
        let fields = match schema {
            Value::Bool(allows) => return Ok(*allows),
            Value::Object(fields) => fields,
            _ => return Ok(false),
        };
        for (name, rule) in fields {
            if !self.obeys_rule(value, name, rule, fields, depth - 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether a value obeys one keyword of a schema with these fields.
    fn obeys_rule(
        &mut self,
        value: &Value,
        name: &str,
        rule: &'a Value,
        fields: &'a Map<String, Value>,
        depth: u32,
    ) -> Result<bool, OutOfSteps> {
        Ok(match name {
            "type" => match rule {
                Value::Array(kinds) => kinds.iter().any(|kind| is_of(value, kind)),
                kind => is_of(value, kind),
            },
            "$ref" => match rule.as_str().and_then(|path| referred(self.root, path)) {
                Some(schema) => self.obeys(value, schema, depth)?,
                None => false,
            },
            "enum" => rule.as_array().is_some_and(|values| values.iter().any(|it| same(it, value))),
            "const" => same(rule, value),
            "allOf" => self.all_obey(schemas(rule).map(|schema| (value, schema)), depth)?,
            "anyOf" => self.obeyed(value, rule, 1, depth)? == 1,
            "oneOf" => self.obeyed(value, rule, 2, depth)? == 1,
            "items" => {
                let items = value.as_array().into_iter().flatten();
                self.all_obey(items.map(|item| (item, rule)), depth)?
            }
            "properties" => {
                let named = value.as_object().into_iter().flatten();
                let named = named.filter_map(|(name, value)| Some((value, rule.get(name)?)));
                self.all_obey(named, depth)?
            }
            "additionalProperties" => {
                let named = fields.get("properties").and_then(Value::as_object);
                let is_named = |name: &String| named.is_some_and(|it| it.contains_key(name));
                let others = value.as_object().into_iter().flatten();
                let others = others.filter(|(name, _)| !is_named(name));
                self.all_obey(others.map(|(_, value)| (value, rule)), depth)?
            }
            "required" => value.as_object().is_none_or(|object| {
                let mut names = rule.as_array().into_iter().flatten();
                names.all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
            }),
            _ => obeys_number(value, name, rule),
        })
    }

    /// Returns how many schemas of a list a value obeys, of which no more than `most` are looked for.
    fn obeyed(
        &mut self,
        value: &Value,
        list: &'a Value,
        most: usize,
        depth: u32,
    ) -> Result<usize, OutOfSteps> {
        let mut obeyed = 0;
        for schema in schemas(list) {
            obeyed += usize::from(self.obeys(value, schema, depth)?);
            if obeyed == most {
                break;
            }
        }
        Ok(obeyed)
    }

    fn all_obey<'v>(
        &mut self,
        pairs: impl Iterator<Item = (&'v Value, &'a Value)>,
        depth: u32,
    ) -> Result<bool, OutOfSteps> {
        for (value, schema) in pairs {
            if !self.obeys(value, schema, depth)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Returns whether a value obeys a bound. A keyword that is no bound restricts nothing.
fn obeys_number(value: &Value, keyword: &str, rule: &Value) -> bool {
    let Some(bound) = rule.as_f64() else { return true };
    let count = |length: Option<usize>| length.map(|length| length as f64);
    let (number, is_least, is_exclusive) = match keyword {
        "minimum" => (value.as_f64(), true, false),
        "exclusiveMinimum" => (value.as_f64(), true, true),
        "maximum" => (value.as_f64(), false, false),
        "exclusiveMaximum" => (value.as_f64(), false, true),
        "minLength" => (count(value.as_str().map(|it| it.chars().count())), true, false),
        "maxLength" => (count(value.as_str().map(|it| it.chars().count())), false, false),
        "minItems" => (count(value.as_array().map(Vec::len)), true, false),
        "maxItems" => (count(value.as_array().map(Vec::len)), false, false),
        "minProperties" => (count(value.as_object().map(Map::len)), true, false),
        "maxProperties" => (count(value.as_object().map(Map::len)), false, false),
        _ => return true,
    };
    // A bound says nothing about a value of another type.
    let Some(number) = number else { return true };
    match (is_least, is_exclusive) {
        (true, false) => number >= bound,
        (true, true) => number > bound,
        (false, false) => number <= bound,
        (false, true) => number < bound,
    }
}

/// Returns whether two values are the same. Numbers are the same whatever their form.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || one.as_f64() == other.as_f64()
        }
        _ => one == other,
    }
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("array") => value.is_array(),
        Some("boolean") => value.is_boolean(),
        // JSON has one type of numbers: 1.0 is a whole one.
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        Some("null") => value.is_null(),
        Some("number") => value.is_number(),
        Some("object") => value.is_object(),
        Some("string") => value.is_string(),
        _ => false,
    }
}

fn schemas(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Returns the schema within a schema that a reference names. A place that holds no schema, as a default
/// does, is not found: [`check`] has not looked at it.
fn referred<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    let mut parts = path.strip_prefix('#')?.split('/');
    if !parts.next()?.is_empty() {
        return None;
    }
    let mut schema = root;
    while let Some(keyword) = parts.next() {
        let inner = schema.get(keyword)?;
        schema = match keyword {
            "additionalProperties" | "items" => inner,
            keyword if MAPS.contains(&keyword) => {
                inner.get(parts.next()?.replace("~1", "/").replace("~0", "~"))?
            }
            keyword if LISTS.contains(&keyword) => {
                inner.get(parts.next()?.parse::<usize>().ok()?)?
            }
            _ => return None,
        };
    }
    Some(schema)
}

/// Returns the steps that a schema takes by its keywords, the entries of its lists, and its reference.
fn cost_of_rules(schema: &Value) -> usize {
    let Some(fields) = schema.as_object() else { return 0 };
    let list = |keyword| {
        let entries = fields.get(keyword).and_then(Value::as_array);
        entries.map_or(0, |list| list.len() / 8 + list.iter().map(cost_of).sum::<usize>())
    };
    let lists = ["enum", "required", "type"].map(list).iter().sum::<usize>();
    let path = fields.get("$ref").and_then(Value::as_str).unwrap_or_default();
    let constant = fields.get("const").map_or(0, cost_of);
    fields.len() + lists + path.matches('/').count() + path.len() / 64 + constant
}

/// Returns the steps that the parts of a value take.
fn cost_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() / 64,
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.keys().map(|name| 1 + name.len() / 64).sum(),
        _ => 0,
    }
}

/// Returns whether a value has no others within it.
fn is_single(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

/// Returns the beginning of a name that a client chose: an error repeats no more of it.
fn shown(name: &str) -> String {
    name[..name.floor_char_boundary(64)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_checked_keyword_restricts_values() {
        let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {
            "type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["next"], "additionalProperties": false}}});
        for (schema, value, is_obeyed) in [
            (json!({"type": "string"}), json!("x"), true),
            (json!({"type": "string"}), json!(1), false),
            (json!({"type": ["string", "null"]}), json!(null), true),
            (json!({"type": "integer"}), json!(1.0), true),
            (json!({"type": "integer"}), json!(1.5), false),
            (json!({"type": "number", "minimum": 1, "exclusiveMaximum": 2}), json!(1), true),
            (json!({"exclusiveMinimum": 1}), json!(1), false),
            (json!({"maximum": 1}), json!(2), false),
            (json!({"minLength": 2, "maxLength": 2}), json!("日本"), true),
            (json!({"maxLength": 1}), json!("ab"), false),
            (json!({"minItems": 1}), json!([]), false),
            (json!({"maxItems": 1}), json!([1, 2]), false),
            (json!({"minProperties": 1}), json!({}), false),
            (json!({"maxProperties": 0}), json!({"a": 1}), false),
            (json!({"items": {"type": "boolean"}}), json!([true, 1]), false),
            (json!({"enum": ["a", 1]}), json!(1.0), true),
            (json!({"enum": ["a"]}), json!("b"), false),
            (json!({"const": null}), json!(0), false),
            (json!({"allOf": [{"type": "number"}, {"minimum": 3}]}), json!(2), false),
            (json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}), json!(2), false),
            (json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}), json!(2.5), true),
            (json!({"properties": {"a": {"type": "string"}}}), json!({"a": 1}), false),
            (json!({"properties": {"a": {}}, "required": ["a"]}), json!({}), false),
            (
                json!({"properties": {"a": {}}, "additionalProperties": false}),
                json!({"b": 1}),
                false,
            ),
            (json!({"additionalProperties": {"type": "null"}}), json!({"b": null}), true),
            (json!({"description": "d", "format": "date"}), json!("x"), true),
            (tree.clone(), json!({"next": {"next": null}}), true),
            (tree.clone(), json!({"next": {"next": 1}}), false),
            (json!(false), json!(1), false),
            (json!({"$ref": "#/$defs/a~1b~0", "$defs": {"a/b~": {"const": 1}}}), json!(1), true),
            (
                json!({"$ref": "#/anyOf/0/items", "anyOf": [{"items": {"const": 1}}]}),
                json!(1),
                true,
            ),
            (json!({"items": {"$ref": "#"}, "type": ["array", "null"]}), json!([[null]]), true),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
            assert_eq!(
                obeys(&value, &schema, &mut Steps::default()),
                is_obeyed,
                "{value} {schema}"
            );
        }
    }

    #[test]
    fn a_schema_that_cannot_be_checked_wholly_is_refused() {
        let keyword = |name: &str| SchemaFault::Keyword(name.to_owned());
        let value = |name: &str| SchemaFault::Value(name.to_owned());
        for (schema, fault) in [
            (json!({"pattern": "^a"}), keyword("pattern")),
            (json!({"properties": {"a": {"items": {"not": {}}}}}), keyword("not")),
            (json!({"type": "date"}), value("type")),
            (json!({"minimum": "1"}), value("minimum")),
            (json!({"required": "a"}), value("required")),
            (json!({"enum": 1}), value("enum")),
            (json!({"enum": [{}]}), value("enum")),
            (json!({"const": []}), value("const")),
            (json!({"anyOf": {}}), value("anyOf")),
            (json!({"items": [1]}), value("a schema")),
            (json!({"$ref": "#/$defs/a"}), SchemaFault::Reference("#/$defs/a".to_owned())),
            (json!({"$ref": "https://a"}), SchemaFault::Reference("https://a".to_owned())),
            // The values there hold no schema, and are not checked.
            (
                json!({"$ref": "#/default", "default": {"pattern": "^a"}}),
                SchemaFault::Reference("#/default".to_owned()),
            ),
            (
                json!({"$ref": "#/properties", "properties": {}}),
                SchemaFault::Reference("#/properties".to_owned()),
            ),
        ] {
            assert_eq!(check(&schema), Err(fault), "{schema}");
        }
        let deep = (0..200).fold(json!({}), |schema, _| json!({"items": schema}));
        assert_eq!(check(&deep), Err(SchemaFault::TooLarge));
    }

    #[test]
    fn lists_of_many_values_leave_steps_to_many_items() {
        let countries: Vec<_> = (0..800).map(|number| format!("country {number}")).collect();
        let schema = json!({"items": {"properties": {"country": {"enum": countries}}}});
        let items = vec![json!({"country": "country 799"}); 200];
        assert!(obeys(&json!(items), &schema, &mut Steps::default()));
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_checked_in_bounded_time() {
        let twice = json!({"$ref": "#/$defs/a", "$defs": {
            "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]},
            "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]},
        }});
        assert_eq!(check(&twice), Ok(()));
        // Lists and names that a schema refers to again and again: each entry and part of a name is a step.
        let again = |rule: Value| {
            json!({"$defs": {"s": rule, "m": {"allOf": vec![json!({"$ref": "#/$defs/s"}); 200]}},
                "allOf": vec![json!({"$ref": "#/$defs/m"}); 240]})
        };
        let name = "n".repeat(60_000);
        let mut types = vec!["null"; 16_000];
        types.push("object");
        let many: Map<_, _> = (0..5_000).map(|name| (name.to_string(), json!({}))).collect();
        let many = Value::Object(many);
        // Once no step is left, the rest of a list is not looked at.
        let mut entries = vec![json!(false); 20_000];
        entries.insert(0, json!({"$ref": "#/$defs/a"}));
        let long = json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": entries}}});
        assert_eq!(check(&long), Ok(()));
        for (schema, value) in [
            (twice, json!(1)),
            (long, many.clone()),
            (again(json!({"type": types})), json!({})),
            (again(json!({"required": vec!["a"; 20_000]})), json!({"a": 1})),
            (again(json!({"required": [name]})), json!({name.as_str(): 1})),
            (again(json!({"properties": {"a": {}}})), json!({name.as_str(): 1})),
            (again(json!({"enum": [name, 1]})), json!(1)),
            (again(json!({"properties": many.clone()})), many),
        ] {
            let begun = std::time::Instant::now();
            assert!(!obeys(&value, &schema, &mut Steps::default()));
            let taken = begun.elapsed();
            assert!(taken < std::time::Duration::from_millis(500), "{taken:?}");
        }
    }
}
