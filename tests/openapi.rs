//! The description of the API is exact: schemathesis sends what it allows and what it forbids.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use support::client::{get, http, send};
use support::eventually;
use support::process::{LIMIT, Process};
use support::raw_http::Raw;
use support::setup::{Setup, setup_on};
use support::tokens::{SECRET, token};
use testkit::folder::Folder;
use testkit::programs::find;

/// A host with a model that takes images, too.
const HOST: [&str; 4] = ["--rate", "2000", "--models", "tinyllama,vision"];
/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_mins(5);
/// Requests of each operation, in addition to those that try every bound of its schema once.
const EXAMPLES: &str = "15";

/// Things of a caller that exist, which a part of the requests name.
struct Things {
    /// Sessions with turns, responses and conversations with items: of each the first stays, and the
    /// others may be deleted.
    sessions: Vec<String>,
    responses: Vec<String>,
    conversations: Vec<String>,
    /// The first question of the first session, its answer, and the generation of that.
    question: String,
    answer: String,
    generation: String,
    /// An item of the first conversation.
    item: String,
}

impl Things {
    const EACH: usize = 4;

    async fn create(replica: &Process, token: Option<&str>) -> Self {
        let ask = async |method: Method, path: &str, body: Value| {
            let has_body = method == Method::POST;
            let mut request = http().request(method, format!("{}{path}", replica.url));
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            if has_body {
                request = request.json(&body);
            }
            let reply = send(request).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            reply.body
        };
        let id = |body: &Value| body["id"].as_str().expect("an id").to_owned();
        let (mut sessions, mut responses, mut conversations) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..Self::EACH {
            let session = uuid::Uuid::new_v4().to_string();
            let question = json!({"message": "[[tokens=3]] hi", "session_id": session});
            ask(Method::POST, "/api/v1/chat", question).await;
            sessions.push(session);
            // One in the background can be cancelled, also when it has ended.
            let request =
                json!({"model": "tinyllama", "input": "[[tokens=3]] hi", "background": true});
            responses.push(id(&ask(Method::POST, "/v1/responses", request).await));
            let items = json!({"items": [{"role": "user", "content": "hi"}]});
            conversations.push(id(&ask(Method::POST, "/v1/conversations", items).await));
        }
        for response in &responses {
            let path = format!("/v1/responses/{response}");
            let has_ended =
                async || ask(Method::GET, &path, Value::Null).await["status"] == "completed";
            assert!(eventually(LIMIT, has_ended).await, "{response} does not end");
        }
        let path = format!("/api/v1/chat/sessions/{}", sessions[0]);
        let messages = ask(Method::GET, &path, json!({})).await["messages"].take();
        let path = format!("/v1/conversations/{}/items", conversations[0]);
        let items = ask(Method::GET, &path, json!({})).await;
        Self {
            sessions,
            responses,
            conversations,
            question: id(&messages[0]),
            answer: id(&messages[1]),
            generation: messages[1]["generation_id"].as_str().expect("an id").to_owned(),
            item: id(&items["data"][0]),
        }
    }

    /// Returns these as JSON, for the hooks.
    fn to_json(&self) -> String {
        let Self { sessions, responses, conversations, question, answer, generation, item } = self;
        json!({
            "session_id": sessions, "response_id": responses, "conversation_id": conversations,
            "question": question, "answer": answer, "generation": generation, "item_id": [item],
        })
        .to_string()
    }
}

/// Has schemathesis generate requests from the description, and compare every reply with it: the
/// status, the content type and the schema; what the description allows must not be refused, and
/// what it forbids must not be taken.
async fn conforms(settings: &[(&str, &str)], token: Option<&str>) {
    let Setup { replica, redis: _redis, ollama: _ollama } = setup_on(&HOST, settings).await;
    let things = Things::create(&replica, token).await;
    let program = find("schemathesis").expect("schemathesis: `make test` installs it from PyPI");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi");
    let place = Folder::temporary().expect("a folder");
    let mut command = tokio::process::Command::new(program);
    command
        .arg("run")
        .arg(format!("{}/openapi.json", replica.url))
        .args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"])
        .args(["--max-examples", EXAMPLES, "--request-timeout", "30", "--no-shrink"])
        // It cannot speak the protocol that the description of this path upgrades to, nor write the
        // lines of a file: they have a test of their own.
        .args(["--exclude-path", "/ws", "--exclude-path", "/api/v1/chat/import"])
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("THINGS", things.to_json())
        .env("PYTHONPATH", OsString::from(&folder))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(place.path())
        .kill_on_drop(true);
    if let Some(token) = token {
        command.arg("--header").arg(format!("Authorization: Bearer {token}"));
        // It deletes what the others name; tests/own_sessions.rs has it.
        command.args(["--exclude-operation-id", "delete_all"]);
    }
    let output = tokio::time::timeout(RUN_LIMIT, command.output());
    let output = output.await.expect("an end in time").expect("a program that runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    let failures = ["= ERRORS =", "= FAILURES ="].iter().filter_map(|title| printed.find(title));
    let failures = failures.min().map_or("", |at| &printed[at..]);
    assert!(output.status.success(), "{}\n{failures}", output.status);
    assert!(printed.contains("generated"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_caller_meets_nothing_that_the_openapi_document_does_not_describe() {
    conforms(&[], None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_in_caller_meets_nothing_that_the_openapi_document_does_not_describe() {
    // With the limits of a user most requests would be 429.
    let settings = [
        ("JARVIS_JWT_SECRET", SECRET),
        ("JARVIS_AUTH", "required"),
        ("JARVIS_USER_REQUESTS_PER_MINUTE", "0"),
        ("JARVIS_USER_TURNS_PER_MINUTE", "0"),
    ];
    conforms(&settings, Some(&token("alice"))).await;
}

/// An operation of the document, with a path that can be asked for.
struct Operation {
    method: String,
    path: String,
    has_body: bool,
    /// Whether its errors are in the form of another API.
    has_dialect: bool,
    responses: Value,
}

impl Operation {
    /// Asserts that the document has this status of a reply, in the form that the reply has.
    fn describes(&self, what: &str, status: u16, head: &str) {
        let Self { method, path, responses, .. } = self;
        let described = &responses[&*status.to_string()];
        assert!(described.is_object(), "{method} {path}, {what}: {status}");
        let head = head.to_ascii_lowercase();
        let form =
            head.split("content-type: ").nth(1).and_then(|rest| rest.split(['\r', ';']).next());
        if let Some(form) = form {
            assert!(described["content"][form].is_object(), "{method} {path}, {what}: {form}");
        }
    }
}

async fn operations(replica: &Process) -> Vec<Operation> {
    let document = get(replica, "/openapi.json").await.body;
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let session = uuid::Uuid::new_v4().to_string();
            let digits = session.replace('-', "");
            let response = format!("resp_{digits}");
            let path = path.replace("{conversation_id}", &format!("conv_{digits}"));
            let path = path.replace("{item_id}", &format!("msg_{digits}"));
            let asked = path.replace("{session_id}", &session).replace("{model}", "tinyllama");
            operations.push(Operation {
                method: method.to_uppercase(),
                path: asked.replace("{response_id}", &response),
                has_body: operation["requestBody"].is_object(),
                has_dialect: ["openai", "ollama"].map(Value::from).contains(&operation["tags"][0]),
                responses: operation["responses"].clone(),
            });
        }
    }
    operations
}

/// A request that a layer refuses, or whose body lacks something: the header fields, and the body as far as
/// it comes.
const REFUSED: [(&str, &str, &str); 6] = [
    ("a compressed body", "Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}"),
    ("a body that breaks off", "Transfer-Encoding: chunked\r\n", "1\r\n{\r\nrubbish\r\n"),
    ("a body without end", "Content-Length: 100\r\n", "{"),
    ("a body of a gigabyte", "Content-Length: 1073741824\r\n", "{"),
    ("a foreign Origin", "Origin: https://evil.example\r\nContent-Length: 2\r\n", "{}"),
    ("a foreign Host", "Host: evil.example\r\nContent-Length: 2\r\n", "{}"),
];

#[tokio::test]
async fn what_layers_refuse_and_what_a_body_lacks_is_described_of_every_operation() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_READ_TIMEOUT", "3")];
    let Setup { replica, .. } = &setup_on(&HOST, &settings).await;
    let operations = operations(replica).await;
    assert!(operations.len() > 30, "{}", operations.len());
    // A status that is not listed would not be noticed behind a description of all others.
    assert!(!operations.iter().any(|it| it.responses["default"].is_object()));
    let asked = operations.iter().flat_map(|operation| REFUSED.map(|refused| (operation, refused)));
    let replies = asked.enumerate().map(async |(number, (operation, (what, fields, body)))| {
        // Each has a user of its own, who runs one import at a time.
        let token = token(&format!("user-{number}"));
        let Operation { method, path, .. } = operation;
        let mut head = format!("{method} {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n");
        if !fields.starts_with("Host") {
            head.push_str("Host: 127.0.0.1\r\n");
        }
        let _ = write!(head, "{fields}\r\n{body}");
        let mut raw = Raw::connect(replica).await;
        raw.write(head.as_bytes()).await.expect("an open connection");
        // A body without end is waited for: half a minute.
        let reply = tokio::time::timeout(Duration::from_mins(1), raw.response_in_any_time());
        let reply = reply.await.expect("a reply in time").expect("a reply");
        operation.describes(what, reply.status, &reply.head);
        (operation, what, reply.status)
    });
    let mut seen = BTreeSet::new();
    for (operation, what, status) in futures_util::future::join_all(replies).await {
        let Operation { method, path, has_body, has_dialect, .. } = operation;
        let wanted = match what {
            "a foreign Host" => 403,
            "a foreign Origin" if method != "GET" => 403,
            "a compressed body" if *has_body => 415,
            "a body that breaks off" if *has_body => 400,
            "a body without end" if *has_body => 408,
            "a body of a gigabyte" if *has_body => 413,
            _ => status,
        };
        assert_eq!(status, wanted, "{method} {path}, {what}");
        seen.insert((status, *has_dialect));
    }
    for status in [400, 403, 408, 413, 415] {
        assert!(seen.contains(&(status, true)) && seen.contains(&(status, false)), "{status}");
    }
}

#[tokio::test]
async fn a_handshake_and_an_import_are_answered_as_the_document_describes_them() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_READ_TIMEOUT", "1")];
    let Setup { replica, .. } = &setup_on(&HOST, &settings).await;
    let operations = operations(replica).await;
    let alice = format!("Authorization: Bearer {}\r\n", token("alice"));
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n";
    let whole = format!("{upgrade}{key}");
    let (line, end) = (r#"{"type":"export","version":1}"#, r#"{"type":"end"}"#);
    let lines = |text: &str| format!("{alice}Content-Length: {}\r\n\r\n{text}", text.len());
    let table = [
        ("/ws", "", format!("{whole}\r\n"), 101),
        ("/ws", "", "\r\n".to_owned(), 426),
        ("/ws", "", format!("{upgrade}Sec-WebSocket-Key: short\r\n\r\n"), 400),
        ("/ws", "", format!("{whole}Content-Length: 2\r\n\r\n{{}}"), 400),
        ("/ws", "?session_id=mine", format!("{whole}\r\n"), 422),
        ("/ws", "?cursor=rubbish", format!("{whole}\r\n"), 101),
        ("/ws", "", format!("{whole}Authorization: Bearer a.b.c\r\n\r\n"), 401),
        ("/ws", "", format!("{whole}Origin: https://evil.example\r\n\r\n"), 403),
        ("/api/v1/chat/import", "", lines(&format!("{line}\n{end}\n")), 200),
        ("/api/v1/chat/import", "", lines("rubbish\n"), 422),
        ("/api/v1/chat/import", "", "Content-Length: 0\r\n\r\n".to_owned(), 401),
        ("/api/v1/chat/import", "", format!("{alice}Content-Length: 99\r\n\r\n{{"), 408),
        ("/api/v1/chat/import", "", format!("{alice}Content-Length: 99999999\r\n\r\n{{"), 413),
        (
            "/api/v1/chat/import",
            "",
            format!("{alice}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{{}}"),
            415,
        ),
        (
            "/api/v1/chat/import",
            "",
            format!("{alice}Transfer-Encoding: chunked\r\n\r\nrubbish\r\n"),
            400,
        ),
    ];
    for (path, query, rest, status) in table {
        let operation = operations.iter().find(|operation| operation.path == path);
        let operation = operation.expect("an operation");
        let mut raw = Raw::connect(replica).await;
        let head = format!("{} {path}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n", operation.method);
        raw.write(format!("{head}{rest}").as_bytes()).await.expect("an open connection");
        let reply = raw.response().await.expect("a reply");
        assert_eq!(reply.status, status, "{path}{query} {rest}");
        operation.describes(&rest, status, &reply.head);
    }
}
