//! OpenAI's own packages drive two replicas, as their users do.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::client::post;
use support::sdks::Sdk;
use support::setup::setup;

const SCRIPTS: &str = "openai_sdks";
const LONG: &str = "[[tokens=150 rate=60]] a long answer";

#[tokio::test(flavor = "multi_thread")]
async fn openais_python_package_works_unchanged() {
    let checks = "models whole streamed helper asynchronous stop_and_limit seed conversation \
        json_schema tools strict_tools carried images embedded errors rate_limit error_in_a_stream";
    Sdk::Python.passes_signed_in(SCRIPTS, checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_package_works_unchanged() {
    let checks = "models whole streamed helper stop_and_limit seed conversation json_schema \
        tools strict_tools carried images embedded errors rate_limit leaves";
    Sdk::Node.passes_signed_in(SCRIPTS, checks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_openais_own_error_in_its_python_package() {
    Sdk::Python.meets_a_full_queue(SCRIPTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_openais_own_error_in_its_node_package() {
    Sdk::Node.meets_a_full_queue(SCRIPTS).await;
}

/// A row of a table of parameters: their names, and what is supported of them.
struct Row {
    names: Vec<String>,
    supported: String,
}

/// Returns the rows of the table below this heading of the page about OpenAI's API.
fn rows(heading: &str) -> Vec<Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPENAI.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let heading = format!("\n## {heading}\n");
    let (_, section) = page.split_once(&heading).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let names = format!("`{}", cells.next()?);
        let names = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(Row { names, supported: cells.next()?.to_owned() })
    };
    section.lines().filter_map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_top_level_field_that_openais_package_can_send_is_handled_as_its_page_says() {
    let mut driver = Sdk::Python.run("openai_fields", &[]);
    let kinds = driver.line().await.expect("the fields");
    let world = setup("2000", &[]).await;
    let question = json!([{"role": "user", "content": "[[tokens=1]] hi"}]);
    for (heading, path, least) in [
        ("A chat completion", "/v1/chat/completions", json!({"messages": question})),
        ("A response", "/v1/responses", json!({"input": question})),
        ("Embeddings", "/v1/embeddings", json!({"input": "hi"})),
    ] {
        let rows = rows(heading);
        let fields = kinds[heading].as_array().expect("names");
        assert!(fields.len() >= 5 && rows.len() >= 5, "{heading}");
        for field in fields.iter().filter_map(Value::as_str) {
            let ask = async |value: Value| {
                let mut request = least.clone();
                request["model"] = json!("tinyllama");
                request[field] = value;
                post(&world.replica, path, &request).await
            };
            let is_exact = |row: &&Row| row.names.iter().any(|name| name == field);
            let is_part = |row: &&Row| {
                let starts = |name: &String| {
                    name.strip_prefix(field).is_some_and(|rest| rest.starts_with(['.', '[']))
                };
                row.names.iter().any(starts)
            };
            let row = rows.iter().find(is_exact).or_else(|| rows.iter().find(is_part));
            let row = row.unwrap_or_else(|| panic!("{heading}: no row has {field}"));
            let reply = ask(json!({"x": [[1]]})).await;
            let error = |name: &str| reply.body["error"][name].as_str().unwrap_or_default();
            assert_eq!(reply.status, 400, "{heading}: {field}: {}", reply.body);
            assert!(error("param").starts_with(field), "{heading}: {field}: {}", reply.body);
            if row.supported.starts_with("no") {
                assert_eq!(error("code"), "unsupported_parameter", "{heading}: {field}");
                continue;
            }
            let is_known = error("param") != field
                || !["unknown_parameter", "unsupported_parameter"].contains(&error("code"));
            assert!(is_known, "{heading}: {field}: {}", reply.body);
            // A field that is null counts as absent.
            let is_required = field == "model" || least.get(field).is_some();
            let reply = ask(Value::Null).await;
            assert_eq!(reply.status, if is_required { 400 } else { 200 }, "{heading}: {field}");
        }
    }
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
