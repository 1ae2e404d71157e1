//! OpenAI's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use support::client::{Reply, http, send};
use support::sdks::Sdk;
use support::setup::setup_on;

const SCRIPTS: &str = "openai_sdks";
const LONG: &str = "[[tokens=300 rate=50]] a long answer";

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged() {
    let checks = "models whole streamed helper asynchronous stop_and_limit seed conversation \
        json_schema tools strict_tools carried images embedded errors rate_limit error_in_a_stream";
    Sdk::Python.passes_signed_in(SCRIPTS, checks).await;
    Sdk::Python.runs_the_blocks_of("CLIENTS.md", "openai, Python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged() {
    let checks = "models whole streamed helper stop_and_limit seed conversation json_schema \
        tools strict_tools carried images embedded errors rate_limit leaves";
    Sdk::Node.passes_signed_in(SCRIPTS, checks).await;
    Sdk::Node.runs_the_blocks_of("CLIENTS.md", "openai, Node.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_openais_own_error_in_its_python_package() {
    Sdk::Python.meets_a_full_queue(SCRIPTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_openais_own_error_in_its_node_package() {
    Sdk::Node.meets_a_full_queue(SCRIPTS).await;
}

/// A row of a table of parameters.
struct Row {
    paths: Vec<String>,
    supported: String,
    line: String,
}

/// Returns the rows of the tables below this heading of the page about OpenAI's API.
fn rows(heading: &str) -> Vec<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPENAI.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let heading = format!("\n## {heading}\n");
    let (_, section) = page.split_once(&heading).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let paths = format!("`{}", cells.next()?);
        let paths = paths.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(Row { paths, supported: cells.next()?.to_owned(), line: line.to_owned() })
    };
    section.lines().filter_map(row).collect()
}

/// A field of a request, as the script of `openai_fields` describes it.
#[derive(Deserialize)]
struct Field {
    page: String,
    route: String,
    path: String,
    required: bool,
    values: Vec<Value>,
    request: Value,
}

/// Returns the parts of a path: names, and the kind of an item before its closing bracket.
fn parts(path: &str) -> Vec<&str> {
    path.split(['.', '[']).collect()
}

/// Returns whether the path of a row is that of a field, or of an object that the field is in. `[]` stands
/// for every item of a list.
fn covers(of_row: &str, path: &str) -> bool {
    let (of_row, path) = (parts(of_row), parts(path));
    let is_same =
        |(wanted, part): (&&str, &&str)| wanted == part || (*wanted == "]" && part.ends_with(']'));
    of_row.len() <= path.len() && of_row.iter().zip(&path).all(is_same)
}

/// Returns a path without the kinds and the indices of its items.
fn bare(path: &str) -> String {
    let rests = path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
    rests.collect::<Vec<_>>().join("[]")
}

/// Returns where a request is refused, and the code; none where it is accepted.
fn refusal(reply: &Reply) -> Option<(String, String)> {
    let error = |name: &str| reply.body["error"][name].as_str().unwrap_or_default();
    let refusal = (bare(error("param")), error("code").to_owned());
    assert!([200, 400].contains(&reply.status), "{}: {}", reply.status, reply.body);
    (reply.status == 400).then_some(refusal)
}

/// Checks that a field is refused, or the whole object that it is in, which has this path.
async fn is_refused(field: &Field, path: &str, row: &Row, ask: impl AsyncFn(&Value) -> Reply) {
    let (path, reply) = (bare(path), ask(&field.values[0]).await);
    let (at, code) = refusal(&reply).expect("a refusal");
    // An item is refused by its kind.
    let kinds = ["", ".type", ".role"];
    assert!(kinds.iter().any(|kind| at == format!("{path}{kind}")), "{}", reply.body);
    assert!(code.starts_with("unsupported_") && row.line.contains(&code), "{}", reply.body);
}

/// Checks that a field is read: other types are refused by its path, null counts as absent, and each
/// value that the package has is accepted, or refused as its row says.
async fn is_read(field: &Field, row: &Row, ask: impl AsyncFn(&Value) -> Reply) {
    let path = bare(&field.path);
    let mut accepted = 0;
    for wrong in [json!({"x": [[1]]}), json!([[1]])] {
        let reply = ask(&wrong).await;
        let Some((at, code)) = refusal(&reply) else {
            accepted += 1;
            continue;
        };
        let is_unknown =
            at == path && ["unknown_parameter", "unsupported_parameter"].contains(&&*code);
        let is_named = code != "unsupported_value" || row.line.contains(&code);
        assert!(at.starts_with(&path) && !is_unknown && is_named, "{}", reply.body);
    }
    assert!(accepted < 2, "a field of any type is ignored");
    if let Some((at, code)) = refusal(&ask(&Value::Null).await) {
        let is_required = field.required || row.supported.contains("required");
        assert!(is_required, "null does not count as absent: {code}");
        assert_eq!((&*at, &*code), (&*path, "missing_required_parameter"));
    }
    for value in &field.values {
        let reply = ask(value).await;
        if let Some((at, code)) = refusal(&reply) {
            assert!(at.starts_with(&path) && row.line.contains(&code), "{value}: {}", reply.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_that_openais_package_can_send_at_any_depth_is_handled_as_its_page_says() {
    let world = setup_on(&["--rate", "2000", "--models", "tinyllama,vision"], &[]).await;
    let mut driver = Sdk::Python.run("openai_fields", &[]);
    let (client, mut pages, mut checked) = (http(), HashMap::new(), 0);
    while let Some(line) = driver.line().await {
        let field: Field = serde_json::from_value(line).expect("a field");
        let rows = pages.entry(field.page.clone()).or_insert_with(|| rows(&field.page));
        let paths = rows.iter().flat_map(|row| row.paths.iter().map(move |path| (path, row)));
        let covering = paths.filter(|(path, _)| covers(path, &field.path));
        let row = covering.max_by_key(|(path, row)| (row.supported == "no", path.len()));
        let (path, row) =
            row.unwrap_or_else(|| panic!("{}: no row has {}", field.page, field.path));
        let ask = async |value: &Value| {
            let request = field.request.to_string().replace("\"$\"", &value.to_string());
            let url = format!("{}{}", world.replica.url, field.route);
            let request = client.post(url).header("content-type", "application/json").body(request);
            send(request).await
        };
        println!("{}: {}, by the row {path}", field.page, field.path);
        if row.supported.contains("ignored") {
            assert_eq!(refusal(&ask(&json!({"x": [[1]]})).await), None);
        } else if row.supported == "no" || parts(path).len() < parts(&field.path).len() {
            is_refused(&field, path, row, ask).await;
        } else {
            is_read(&field, row, ask).await;
        }
        checked += 1;
    }
    assert!(checked > 1000 && pages.len() == 3, "only {checked} fields were checked");
}

/// Kills the replica that writes an answer while the package reads it from the other one.
async fn reads_the_whole_text(sdk: Sdk) {
    let request = json!({
        "model": "tinyllama", "temperature": 0, "stream": true,
        "messages": [{"role": "user", "content": LONG}],
    });
    let (read, whole) = sdk.reads_on(SCRIPTS, "/v1/chat/completions", request).await;
    assert_eq!(read["text"], whole["choices"][0]["message"]["content"]);
    assert_eq!(read["finish_reason"], "stop");
    assert_eq!(read["usage"], whole["usage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_openais_python_package_no_character() {
    reads_the_whole_text(Sdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_costs_a_reader_with_openais_node_package_no_character() {
    reads_the_whole_text(Sdk::Node).await;
}
