//! Every fault does what its name means, at its time.

use std::time::{Duration, Instant};

use ollama_sim::{script_answer, script_pieces};
use serde_json::{Value, json};

use crate::support::{PATIENCE, ask, lines, plain, with};

const BUSY: &str = "server busy, please try again.  maximum pending requests exceeded";
const DIED: &str = "an error was encountered while running the model: unexpected EOF";

/// Returns the lines in a raw chunked response.
fn chunks(raw: &str) -> Vec<Value> {
    let is_line = |line: &&str| line.starts_with('{');
    let found: Vec<&str> = raw.lines().filter(is_line).collect();
    lines(&found.join("\n"))
}

#[tokio::test]
async fn a_cut_stream_closes_without_a_terminator() {
    let world = plain().await;
    for after in [0, 1, 20] {
        let raw = world.raw("/api/chat", &ask(&format!("[[fault=cut@{after}]]"))).await;
        assert!(raw.starts_with("HTTP/1.1 200 OK"), "{raw}");
        assert_eq!(chunks(&raw).len(), after);
        assert!(!raw.ends_with("0\r\n\r\n"));
    }
}

#[tokio::test]
async fn a_message_meets_its_fault_once_and_with_an_exclamation_mark_always() {
    let world = plain().await;
    let once = ask("[[fault=cut@20]]");
    world.raw("/api/chat", &once).await;
    let streamed = world.chat(&once).await;
    let wanted = script_answer("tinyllama", "[[fault=cut@20]]", None, 64);
    assert_eq!(streamed.answer(), wanted);
    for _ in 0..3 {
        let raw = world.raw("/api/chat", &ask("[[fault=cut@4!]]")).await;
        assert_eq!(chunks(&raw).len(), 4);
    }
}

#[tokio::test]
async fn a_probe_does_not_use_a_fault_up() {
    let world = plain().await;
    let message = "[[fault=cut@5 rate=1000]]";
    let prompt = world.rendered(&ask(message)).await;
    let probe = json!({"model": "tinyllama", "raw": true, "prompt": prompt,
        "options": {"num_predict": 1}});
    world.generate(&probe).await;
    let raw = world.raw("/api/chat", &ask(message)).await;
    assert_eq!(chunks(&raw).len(), 5);
}

#[tokio::test]
async fn faults_of_one_message_come_one_after_another() {
    let world = plain().await;
    let request = ask("[[fault=busy fault=cut@2 fault=error@3]]");
    assert_eq!(world.refused("/api/chat", &request).await.0, 503);
    let raw = world.raw("/api/chat", &request).await;
    assert_eq!(chunks(&raw).len(), 2);
    let lines = world.lines("/api/chat", &request).await;
    assert_eq!(lines.len(), 4);
    world.chat(&request).await;
    let outcomes = world.outcomes().await;
    let wanted = ["fault: busy@5", "fault: cut@2", "fault: error@3", "completed: stop"];
    assert_eq!(outcomes, wanted);
}

#[tokio::test]
async fn a_dying_runner_leaves_an_error_line_and_a_clean_end() {
    let world = plain().await;
    let lines = world.lines("/api/chat", &ask("[[fault=error@3]]")).await;
    assert_eq!(lines[3], json!({"error": DIED}));
    assert_eq!(lines.len(), 4);
    let request = with(ask("[[fault=error@3]] again"), &json!({"stream": false}));
    let (status, error) = world.refused("/api/chat", &request).await;
    assert_eq!((status, error.as_str()), (500, DIED));
}

#[tokio::test]
async fn an_end_without_done_is_a_clean_end() {
    let world = plain().await;
    let lines = world.lines("/api/chat", &ask("[[fault=end@7]]")).await;
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[6]["done"], false);
}

#[tokio::test]
async fn a_refused_connection_is_closed_without_a_byte() {
    let world = plain().await;
    let raw = world.raw("/api/chat", &ask("[[fault=refuse]]")).await;
    assert_eq!(raw, "");
}

#[tokio::test]
async fn statuses_come_before_any_stream() {
    let world = plain().await;
    let (status, error) = world.refused("/api/chat", &ask("[[fault=busy]]")).await;
    assert_eq!((status, error.as_str()), (503, BUSY));
    let request = ask("[[fault=status@502]]");
    assert_eq!(world.refused("/api/chat", &request).await.0, 502);
    let request = ask("[[fault=status]]");
    assert_eq!(world.refused("/api/chat", &request).await.0, 500);
}

#[tokio::test]
async fn a_hanging_request_holds_its_slot_until_its_client_leaves() {
    let world = plain().await;
    let socket = world.socket("/api/chat", &ask("[[fault=hang]]")).await;
    world.stats_when("running", |s| s.running == 1).await;
    drop(socket);
    let stats = world.stats_when("free", |s| s.running == 0).await;
    assert_eq!(stats.client_gone, 1);
    assert_eq!(world.outcomes().await, ["client_gone"]);
}

#[tokio::test]
async fn a_stalled_stream_stays_open_after_its_pieces() {
    let world = plain().await;
    let mut response = world.post("/api/chat", &ask("[[fault=stall@3]]")).await;
    let mut seen = String::new();
    while seen.lines().count() < 3 {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await;
        let chunk = chunk.expect("in time").expect("open").expect("more");
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    let more = tokio::time::timeout(Duration::from_millis(50), response.chunk()).await;
    assert!(more.is_err(), "stays silent, and open");
    drop(response);
    world.stats_when("free", |s| s.running == 0 && s.client_gone == 1).await;
}

#[tokio::test]
async fn a_slow_first_token_is_slow() {
    let world = plain().await;
    let started = Instant::now();
    world.chat(&ask("[[fault=slow@80]]")).await;
    assert!(started.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn garbage_is_one_line_and_the_stream_continues() {
    let world = plain().await;
    let response = world.post("/api/chat", &ask("[[fault=garbage@4]]")).await;
    let text = response.text().await.expect("a body");
    let parsed: Vec<_> = text.lines().map(serde_json::from_str::<Value>).collect();
    let pieces = script_pieces("tinyllama", "[[fault=garbage@4]]", None, 64);
    assert!(parsed[4].is_err());
    assert_eq!(parsed.iter().filter(|line| line.is_err()).count(), 1);
    assert_eq!(parsed.len(), pieces.len() + 2);
}

#[tokio::test]
async fn split_lines_are_the_same_lines_in_many_chunks() {
    let world = plain().await;
    let message = "世界 [[fault=split tokens=40]]";
    let mut response = world.post("/api/chat", &ask(message)).await;
    let mut bytes = Vec::new();
    let (mut chunks, mut inside_a_character) = (0, false);
    while let Some(chunk) = response.chunk().await.expect("open") {
        chunks += 1;
        inside_a_character |= std::str::from_utf8(&chunk).is_err();
        bytes.extend_from_slice(&chunk);
    }
    let streamed = crate::support::streamed(lines(&String::from_utf8(bytes).expect("UTF-8")));
    assert_eq!(streamed.answer(), script_answer("tinyllama", message, None, 64));
    assert!(inside_a_character);
    assert!(chunks > 200, "{chunks}");
}

#[tokio::test]
async fn an_armed_fault_hits_the_next_requests_it_was_armed_for() {
    let world = plain().await;
    let arming = json!({"fault": "cut", "after_pieces": 2, "times": 2, "model": "tinyllama"});
    assert_eq!(world.post("/sim/faults", &arming).await.status(), 204);
    let tags = json!({"fault": "status", "status": 500, "path": "/api/tags"});
    assert_eq!(world.post("/sim/faults", &tags).await.status(), 204);
    let other = with(ask("x"), &json!({"model": "tinyllama:latest"}));
    world.chat(&other).await;
    for _ in 0..2 {
        let raw = world.raw("/api/chat", &ask("x")).await;
        assert_eq!(chunks(&raw).len(), 2);
    }
    world.chat(&ask("x")).await;
    assert_eq!(
        world.get("/api/tags").await["error"],
        "simulated failure 500 Internal Server Error"
    );
    assert!(world.get("/api/tags").await["models"].is_array());
    assert_eq!(world.get("/sim/faults").await, json!({"armed": []}));
    let (status, _) = world.refused("/sim/faults", &json!({"fault": "nope"})).await;
    assert_eq!(status, 400);
}

/// Returns the body of an answer that is written in a dialect.
async fn written(dialect: &str) -> (String, String) {
    let world = plain().await;
    let message = format!("[[tokens=60 fault={dialect}]]");
    let response = world.post("/api/chat", &ask(&message)).await;
    let body = response.text().await.expect("a body");
    (body, script_answer("tinyllama", &message, None, 64))
}

#[tokio::test]
async fn a_dialect_changes_how_lines_are_written_and_not_their_content() {
    let (body, _) = written("bom").await;
    assert!(body.starts_with('\u{feff}') && body.contains("}\r\n\r\n\n{"), "{body}");
    let (body, answer) = written("null").await;
    let read = lines(&body);
    let content = |line: &Value| line["message"]["content"].as_str().unwrap_or_default().to_owned();
    assert_eq!(read.iter().map(content).collect::<String>(), answer);
    let last = read.last().expect("a line");
    assert!(last["eval_count"].is_null() && last["message"]["content"].is_null(), "{last}");
    let (body, _) = written("loose").await;
    let last = lines(&body).pop().expect("a line");
    assert_eq!(last["done"], "true");
    assert!(last["eval_count"].is_f64() && last["prompt_eval_count"].is_string(), "{last}");
    let (body, _) = written("undone").await;
    let last = lines(&body).pop().expect("a line");
    assert_eq!((&last["done"], &last["done_reason"]), (&Value::Null, &json!("stop")));
    let (body, _) = written("lone").await;
    assert_eq!(
        (body.matches("\\udc00").count(), body.matches("\\ud83d").count()),
        (1, 1),
        "{body}"
    );
    let (body, answer) = written("halves").await;
    assert!(body.is_ascii(), "{body}");
    let pairs = answer.chars().filter(|character| *character > '\u{ffff}').count();
    assert!(pairs > 0 && body.lines().count() > pairs, "each pair is cut by a line");
    assert!(body.lines().all(|line| !line.contains("\\ud83d\\udc")), "{body}");
}

#[tokio::test]
async fn instead_of_an_answer_a_model_is_loaded_or_unloaded() {
    let world = plain().await;
    for reason in ["load", "unload"] {
        let read = world.lines("/api/chat", &ask(&format!("[[fault={reason}]]"))).await;
        assert_eq!(read.len(), 1);
        assert_eq!((&read[0]["done"], &read[0]["done_reason"]), (&json!(true), &json!(reason)));
    }
}
