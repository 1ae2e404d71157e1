//! Who a caller is, and what its token opens.
#![allow(missing_docs, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use jarvis::digest::sha256_hex;
use jarvis::sign_in::{ApiKeyStore, CreatedKey};
use reqwest::Method;
use serde_json::{Value, json};
use support::client::{Reply, Socket, get, http, joined, send, until_ok, with};
use support::eventually;
use support::issuer::{Answer, Issuer, Key};
use support::process::{LIMIT, Process, jarvis, logged, ollama_sim};
use support::redis::RedisServer;
use support::redis_time::{begin_timing, longest, takes_moments, timed_calls};
use support::sdks::Driver;
use support::setup::{Setup, setup};
use support::store::connect;
use support::tokens::{SECRET, base64url, claims, hs256, in_seconds, signed, token};
use testkit::Port;
use testkit::programs::run_folder;
use uuid::Uuid;

const CHAT: &str = "/api/v1/chat";

fn id() -> String {
    Uuid::new_v4().to_string()
}

async fn ask(server: &Process, method: Method, path: &str, body: &Value, token: &str) -> Reply {
    let request = http().request(method, format!("{}{path}", server.url)).json(body);
    send(if token.is_empty() { request } else { request.bearer_auth(token) }).await
}

async fn chat(server: &Process, session: &str, token: &str) -> Reply {
    let body = json!({"message": "[[tokens=3]] hi", "session_id": session});
    ask(server, Method::POST, CHAT, &body, token).await
}

/// Returns status and code, and checks that a 401 names the scheme.
fn outcome(reply: &Reply) -> (u16, String) {
    // The errors of Ollama's API have no code, and those of OpenAI's another form.
    if reply.body["error"].is_string() {
        return (reply.status, "an error".to_owned());
    }
    if let Some(code) = reply.body["error"]["code"].as_str() {
        if reply.status == 401 {
            let challenge = reply.headers["www-authenticate"].to_str().expect("a text");
            assert!(challenge.starts_with("Bearer"), "{challenge}");
        }
        return (reply.status, code.to_owned());
    }
    if reply.status == 401 {
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        let challenge = reply.headers["www-authenticate"].to_str().expect("a text");
        let expected = match reply.body["code"].as_str().expect("a code") {
            "sign_in_required" => "Bearer",
            "token_ambiguous" => "Bearer error=\"invalid_request\"",
            _ => "Bearer error=\"invalid_token\"",
        };
        assert_eq!(challenge, expected);
    }
    (reply.status, reply.body["code"].as_str().unwrap_or_default().to_owned())
}

/// Tokens that sign nobody in, and the code of each.
fn bad_tokens() -> Vec<(&'static str, String, &'static str)> {
    let none = |alg: &str| {
        signed(&json!({"alg": alg, "typ": "JWT"}), &claims("alice", 3600), |_| Vec::new())
    };
    let with = |field: &str, value: Value| {
        let mut all = claims("alice", 3600);
        all[field] = value;
        hs256(SECRET, &all)
    };
    let without = |field: &str| {
        let mut all = claims("alice", 3600);
        all.as_object_mut().expect("an object").remove(field);
        hs256(SECRET, &all)
    };
    let valid = token("alice");
    let (_, signature) = valid.rsplit_once('.').expect("a signature");
    let other = base64url(claims("bob", 3600).to_string().as_bytes());
    let header = base64url(br#"{"alg":"HS256","typ":"JWT"}"#);
    // RS256 in the header, signed by the secret of HS256.
    let confused = {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        signed(&json!({"alg": "RS256"}), &claims("alice", 3600), |message| {
            ring::hmac::sign(&key, message).as_ref().to_vec()
        })
    };
    let critical = {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let header = json!({"alg": "HS256", "crit": ["x"], "x": 1});
        signed(&header, &claims("alice", 3600), |message| {
            ring::hmac::sign(&key, message).as_ref().to_vec()
        })
    };
    let invalid = "token_invalid";
    vec![
        ("expired", hs256(SECRET, &claims("alice", -60)), "token_expired"),
        ("signed by another secret", hs256(&"x".repeat(40), &claims("alice", 3600)), invalid),
        ("alg none", none("none"), invalid),
        ("alg None", none("None"), invalid),
        ("HS256 without a signature", none("HS256"), invalid),
        ("another algorithm than the key's", confused, invalid),
        ("other claims under a valid signature", format!("{header}.{other}.{signature}"), invalid),
        ("critical header", critical, invalid),
        ("type refresh", with("type", json!("refresh")), invalid),
        ("without a type", without("type"), invalid),
        ("without an expiry", without("exp"), invalid),
        ("an expiry that is no number", with("exp", json!("never")), invalid),
        ("without a subject", without("sub"), invalid),
        ("an empty subject", with("sub", json!("")), invalid),
        ("a subject that is no text", with("sub", json!(7)), invalid),
        ("a long subject", with("sub", json!("x".repeat(256))), invalid),
        ("a control character", with("sub", json!("alice\n")), invalid),
        ("not valid yet", with("nbf", json!(in_seconds(60))), invalid),
        ("for another audience", with("aud", json!("another service")), invalid),
        ("an unknown API key", format!("sk-jarvis-{}", "0".repeat(48)), invalid),
        ("no token at all", "rubbish".to_owned(), invalid),
    ]
}

fn is_public(path: &str) -> bool {
    path == "/"
        || path == "/openapi.json"
        || ["/health", "/docs", "/app/"].iter().any(|below| path.starts_with(below))
}

/// The routes of Ollama's API that this service refuses to everybody who may use it.
const REFUSED: [&str; 6] = [
    "POST /api/pull",
    "POST /api/push",
    "POST /api/create",
    "POST /api/copy",
    "DELETE /api/delete",
    "POST /api/blobs/sha256:0",
];

/// Makes the request of a route: a handshake where it is one of WebSockets, whose token may come as a
/// subprotocol.
async fn ask_route(
    server: &Process,
    (method, path, body): &(Method, String, Value),
    session: &str,
    token: &str,
) -> Reply {
    let Some((path, as_protocol)) = websocket(path) else {
        return ask(server, method.clone(), path, body, token).await;
    };
    let handshake = http()
        .get(format!("{}{path}?session_id={session}", server.url))
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAECAwQFBgcICQoLDA0ODw==");
    send(match (token, as_protocol) {
        ("", false) => handshake,
        ("", true) => handshake.header("sec-websocket-protocol", "jarvis.v1"),
        (_, false) => handshake.bearer_auth(token),
        (_, true) => {
            handshake.header("sec-websocket-protocol", format!("jarvis.v1, bearer.{token}"))
        }
    })
    .await
}

/// Returns the path of a handshake, and whether its token is a subprotocol; none for other routes.
fn websocket(route: &str) -> Option<(&str, bool)> {
    let (path, as_protocol) = match route.strip_suffix(BY_PROTOCOL) {
        Some(path) => (path, true),
        None => (route, false),
    };
    path.ends_with("/ws").then_some((path, as_protocol))
}

const BY_PROTOCOL: &str = ", the token as a subprotocol";

/// The things of alice that others ask for.
struct Things {
    /// A session, which is also a conversation.
    session: String,
    /// The id of its first item.
    item: String,
    /// The id of a response that has ended.
    response: String,
}

impl Things {
    async fn of_alice(server: &Process) -> Self {
        let (session, alice) = (id(), token("alice"));
        assert_eq!(chat(server, &session, &alice).await.status, 200);
        let body = json!({"model": "tinyllama", "input": "[[tokens=3]] hi"});
        let response = ask(server, Method::POST, "/v1/responses", &body, &alice).await;
        assert_eq!(response.status, 200, "{}", response.body);
        let response = response.body["id"].as_str().expect("an id").to_owned();
        let items = format!("/v1/conversations/{}/items", conversation_of(&session));
        let items = ask(server, Method::GET, &items, &Value::Null, &alice).await;
        assert_eq!(items.status, 200, "{}", items.body);
        let item = items.body["first_id"].as_str().expect("an id").to_owned();
        Self { session, item, response }
    }

    /// Asserts that all of it is still alice's, unchanged.
    async fn are_unchanged(&self, server: &Process) {
        let alice = token("alice");
        let read = async |path: &str| {
            let reply = ask(server, Method::GET, path, &Value::Null, &alice).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            reply.body
        };
        let mine = read(&format!("{CHAT}/sessions/{}", self.session)).await;
        assert_eq!(mine["message_count"], 2);
        assert_eq!(mine["messages"][0]["user_id"], "alice");
        let response = read(&format!("/v1/responses/{}", self.response)).await;
        assert_eq!(response["status"], "completed");
        read(&format!("/v1/responses/{}/input_items", self.response)).await;
        let conversation = format!("/v1/conversations/{}", conversation_of(&self.session));
        let items = read(&format!("{conversation}/items")).await;
        assert_eq!(items["data"].as_array().map(Vec::len), Some(2), "{items}");
        read(&format!("{conversation}/items/{}", self.item)).await;
        assert_eq!(read(&conversation).await["metadata"], json!({}));
    }
}

fn conversation_of(session: &str) -> String {
    format!("conv_{}", session.replace('-', ""))
}

/// Returns every route of the description, and those that it leaves out: method, path and body.
async fn routes(server: &Process, things: &Things) -> Vec<(Method, String, Value)> {
    let session = things.session.as_str();
    let description = get(server, "/openapi.json").await.body;
    let paths = description["paths"].as_object().expect("paths");
    let mut routes: Vec<(Method, String)> = Vec::new();
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            let method = method.to_uppercase().parse().expect("a method");
            let path = path.replace("{session_id}", session).replace("{model}", "tinyllama");
            let path = path.replace("{response_id}", &things.response);
            let path = path.replace("{conversation_id}", &conversation_of(session));
            let path = path.replace("{item_id}", &things.item);
            let path = path.replace("{digest}", &"0".repeat(64));
            routes.push((method, path));
        }
    }
    assert!(routes.len() >= 15, "{routes:?}");
    for alias in ["/api/v1/chat/message", "/api/v1/chat/send", "/api/v1/chat/"] {
        routes.push((Method::POST, alias.to_owned()));
    }
    for route in ["/api/v1/chat/ws", &format!("/ws{BY_PROTOCOL}")] {
        routes.push((Method::GET, route.to_owned()));
    }
    let home = http().get(&server.url).header("accept", "text/html");
    let home = send(home).await.body.as_str().expect("a page").to_owned();
    let part = home.split("/app/").nth(1).and_then(|rest| rest.split('"').next()).expect("a part");
    let part = format!("/app/{part}");
    // The name of a model may have a namespace, and a host.
    for name in ["library/tinyllama", "registry.ollama.ai/library/tinyllama"] {
        routes.push((Method::GET, format!("/v1/models/{name}")));
    }
    for page in ["/docs", "/docs/swagger-ui.css", "/openapi.json", &part] {
        routes.push((Method::GET, page.to_owned()));
    }
    for (method, path) in REFUSED.iter().filter_map(|route| route.split_once(' ')) {
        routes.push((method.parse().expect("a method"), path.to_owned()));
    }
    let body = |method: &Method, path: &str| match path.trim_end_matches('/') {
        path if path.ends_with("/cancel") || path == "/v1/conversations" => json!({}),
        path if path.starts_with("/v1/conversations/") && path.ends_with("/items") => {
            json!({"items": [{"role": "user", "content": "hi"}]})
        }
        path if path.starts_with("/v1/conversations/") => json!({"metadata": {}}),
        path if ["/regenerate", "/edit", "/branch"].iter().any(|end| path.ends_with(end)) => {
            json!({"message_id": session, "message": "hi"})
        }
        _ if *method == Method::PATCH => json!({"title": "A title"}),
        _ if *method == Method::POST => json!({"message": "hi", "session_id": session}),
        _ => Value::Null,
    };
    routes
        .into_iter()
        .map(|(method, path)| (method.clone(), path.clone(), body(&method, &path)))
        .collect()
}

/// Returns whether a route is for signed-in callers only, in both modes.
fn is_of_users(path: &str) -> bool {
    path.ends_with("/claim")
        || ["/sessions", "/export", "/import"].iter().any(|end| path.ends_with(end))
}

/// Returns the answer to a caller who may use the service, but not the session.
fn as_a_stranger(path: &str, token: &str) -> (u16, &'static str) {
    match path.trim_end_matches('/') {
        path if is_of_users(path) && token.is_empty() => (401, "sign_in_required"),
        path if path.ends_with("/import") => (422, "import_invalid"),
        path if path.contains("/sessions/") => (404, "session_not_found"),
        "/api/v1/chat" | "/api/v1/chat/message" | "/api/v1/chat/send" => (404, "session_not_found"),
        path if websocket(path).is_some() => (101, ""),
        path if REFUSED.iter().any(|refused| refused.ends_with(&format!(" {path}"))) => {
            (403, "an error")
        }
        "/v1/chat/completions" | "/v1/responses" | "/v1/embeddings" => {
            (400, "missing_required_parameter")
        }
        path if path.starts_with("/v1/responses/") => (404, "response_not_found"),
        path if path.starts_with("/v1/conversations/") => (404, "conversation_not_found"),
        "/api/show" | "/api/chat" | "/api/generate" | "/api/embed" | "/api/embeddings" => {
            (400, "an error")
        }
        _ => (200, ""),
    }
}

/// The page with what each route answers to these tokens. `every_route_…` writes it with this variable
/// set, and else compares it.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ROUTES.md");
const WRITES_PAGE: &str = "JARVIS_WRITE_DOCS";
const SHOWN: [&str; 6] = [
    "without a token",
    "another's token",
    "expired",
    "signed by another secret",
    "alg none",
    "type refresh",
];

/// Returns the page of what each route answered, by mode, route and token.
fn page(answers: &BTreeMap<(&str, String, &str), String>, refused: usize) -> String {
    let mut page = format!(
        "# Answers of each route to each token\n\nWritten by `{name}`, which asks for a session, a \
         conversation and a response of alice: with no token, with bob's, and with {refused} tokens that are not valid, of which four \
         are shown. The others are answered as `alg none` is, except a word that is no token: the APIs of \
         OpenAI and Ollama take it for none where sign-in is optional. Rows of WebSockets are handshakes. [SIGN_IN.md](SIGN_IN.md) says what the \
         modes are. To write it again: `{WRITES_PAGE}=1 cargo test --test sign_in {name}`.\n",
        name = "every_route_opens_only_to_the_token_that_may_use_it_in_both_modes",
    );
    for mode in ["optional", "required"] {
        let columns = SHOWN.join(" | ");
        let _ = write!(page, "\n## `JARVIS_AUTH={mode}`\n\n| route | {columns} |\n");
        let _ = writeln!(page, "|{}", " --- |".repeat(SHOWN.len() + 1));
        let routes: BTreeSet<_> = answers.keys().map(|(_, route, _)| route).collect();
        for route in routes {
            let cells = SHOWN.map(|what| answers[&(mode, route.clone(), what)].as_str());
            let _ = writeln!(page, "| `{route}` | {} |", cells.join(" | "));
        }
    }
    page
}

/// The routes of the port of operators.
const OPERATORS: [(Method, &str); 7] = [
    (Method::GET, "/metrics"),
    (Method::GET, "/health/live"),
    (Method::GET, "/health/ready"),
    (Method::GET, "/health/detailed"),
    (Method::GET, "/admin/log-level"),
    (Method::PUT, "/admin/log-level"),
    (Method::DELETE, "/admin/log-level"),
];

/// Returns a cell of the page.
fn shown(status: u16, code: &str) -> String {
    match code {
        "" | "an error" => status.to_string(),
        code => format!("{status} `{code}`"),
    }
}

#[tokio::test]
async fn every_route_opens_only_to_the_token_that_may_use_it_in_both_modes() {
    let (mut answers, refused) = (BTreeMap::new(), bad_tokens().len());
    for mode in ["optional", "required"] {
        let settings = [("JARVIS_AUTH", mode), ("JARVIS_JWT_SECRET", SECRET)];
        let Setup { replica, ollama, redis } = &setup("500", &settings).await;
        let things = &Things::of_alice(replica).await;
        let session = &things.session;
        let refused = bad_tokens().into_iter().map(|(what, token, code)| (what, token, Some(code)));
        let mut tokens: Vec<_> = refused.collect();
        let anonymous = (mode == "required").then_some("sign_in_required");
        tokens.push(("without a token", String::new(), anonymous));
        tokens.push(("another's token", token("bob"), None));
        for route in routes(replica, things).await {
            let (method, path, _) = &route;
            for (what, token, refusal) in &tokens {
                let is_openais = path.starts_with("/v1/");
                let is_ollamas = path.starts_with("/api/") && !path.starts_with("/api/v1/");
                // Clients of these APIs send a placeholder where no key is needed.
                let is_placeholder =
                    (is_openais || is_ollamas) && token == "rubbish" && mode == "optional";
                let (status, code) = match refusal {
                    _ if is_public(path) => (200, ""),
                    // They are for operators, and no token of a caller opens them.
                    _ if path == "/metrics" && mode == "optional" => (200, ""),
                    _ if path == "/metrics" => (401, "sign_in_required"),
                    Some(_) if is_placeholder => as_a_stranger(path, ""),
                    Some(_) if is_openais => (401, "invalid_api_key"),
                    Some(_) if is_ollamas => (401, "an error"),
                    Some(code) => (401, *code),
                    None => as_a_stranger(path, token),
                };
                let reply = ask_route(replica, &route, session, token).await;
                let expected = (status, code.to_owned());
                assert_eq!(outcome(&reply), expected, "{mode}: {method} {path} {what}");
                let route = format!("{method} {}", path.replace(session.as_str(), "{id}"));
                let route = route.replace(&things.item, "msg_{id}");
                let route = route.replace(&things.response, "resp_{id}");
                let route = route.replace(&session.replace('-', ""), "{id}");
                let route = route.replace(&"0".repeat(64), "{digest}");
                // The name of a part changes with its content.
                let is_part = path.starts_with("/app/");
                let route = if is_part { "GET /app/{part}".to_owned() } else { route };
                answers.insert((mode, route, *what), shown(status, code));
            }
        }
        // A path without a route reveals no more than one with a route.
        let nothing = ask(replica, Method::GET, "/nothing", &Value::Null, "").await.status;
        assert_eq!(nothing, if mode == "required" { 401 } else { 404 });
        // The port of operators knows no callers.
        let port = Port::reserve().expect("a port");
        let operators = format!("127.0.0.1:{}", port.number());
        let settings = [&settings[..], &[("JARVIS_ADMIN_LISTEN", &*operators)]].concat();
        let other = jarvis(&redis.url(), &ollama.url, &settings);
        until_ok(&other, "/health/ready").await;
        for (method, path) in OPERATORS {
            for (what, token, _) in &tokens {
                let request = http().request(method.clone(), format!("http://{operators}{path}"));
                let filter = json!({"filter": "warn,fred=off"});
                let request = if method == Method::PUT { request.json(&filter) } else { request };
                let request = if token.is_empty() { request } else { request.bearer_auth(token) };
                let reply = send(request).await;
                assert_eq!(reply.status, 200, "{mode}: {method} {path} {what}");
                let closed = ask(&other, method.clone(), path, &Value::Null, token).await.status;
                assert!(path.starts_with("/health") || closed != 200, "{mode}: {path} {what}");
                let route = format!("{method} {path}, the port of operators");
                answers.insert((mode, route, *what), shown(reply.status, ""));
            }
        }
        things.are_unchanged(replica).await;
    }
    let page = page(&answers, refused);
    if std::env::var_os(WRITES_PAGE).is_some() {
        std::fs::write(PAGE, &page).expect("a page");
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == written, "docs/ROUTES.md is out of date; {WRITES_PAGE}=1 writes it again");
}

#[tokio::test]
async fn another_s_session_is_answered_as_one_that_never_was() {
    let Setup { replica, .. } = &setup("500", &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let (alices, anonymous) = (id(), id());
    assert_eq!(chat(replica, &alices, &token("alice")).await.status, 200);
    assert_eq!(chat(replica, &anonymous, "").await.status, 200);
    let never = id();
    for (session, caller) in
        [(&alices, token("bob")), (&alices, String::new()), (&anonymous, token("bob"))]
    {
        let things = Things { session: session.clone(), item: id(), response: id() };
        for (method, path, body) in routes(replica, &things).await {
            if !path.contains("/sessions/") {
                continue;
            }
            if path.ends_with("/claim") && *session == anonymous {
                continue;
            }
            let theirs = ask(replica, method.clone(), &path, &body, &caller).await;
            let path = path.replace(session.as_str(), &never);
            let none = ask(replica, method.clone(), &path, &body, &caller).await;
            let status = if is_of_users(&path) && caller.is_empty() { 401 } else { 404 };
            assert_eq!((theirs.status, none.status), (status, status), "{method} {path}");
            assert_eq!(theirs.body, none.body, "{method} {path}");
        }
    }
    // An anonymous session stays with every anonymous caller that knows it.
    assert_eq!(chat(replica, &anonymous, "").await.status, 200);
    // The same subject of another issuer is another user; see the tests of JWKS.
    let (mut socket, _, _) = open(replica, &alices, &token("bob")).await.expect("a socket");
    socket.say(&json!({"type": "get_history"})).await;
    assert_eq!(socket.event().await["count"], 0);
    socket.say(&json!({"message": "hi", "message_id": "1"})).await;
    assert_eq!(socket.event().await["code"], "session_not_found");
    socket.say(&json!({"type": "cancel"})).await;
    assert_eq!(socket.event().await["code"], "session_not_found");
    // An action of the owner reaches no other socket of the session.
    assert_eq!(chat(replica, &alices, &token("alice")).await.status, 200);
    socket.say(&json!({"type": "ping"})).await;
    assert_eq!(socket.event().await["type"], "pong");
}

#[tokio::test]
async fn a_user_id_in_a_request_changes_no_owner() {
    let Setup { replica, .. } = &setup("500", &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let (alice, bob) = (token("alice"), token("bob"));
    let (alices, bobs) = (id(), id());
    assert_eq!(chat(replica, &alices, &alice).await.status, 200);
    let as_alice = |session: &str| {
        let names = json!({"user_id": "alice", "sub": "alice", "session_id": session});
        with(names, "message", json!("[[tokens=3]] hi"))
    };
    for caller in [bob.as_str(), ""] {
        let refused = ask(replica, Method::POST, CHAT, &as_alice(&alices), caller).await;
        assert_eq!(outcome(&refused), (404, "session_not_found".to_owned()));
    }
    assert_eq!(ask(replica, Method::POST, CHAT, &as_alice(&bobs), &bob).await.status, 200);
    let path = format!("{CHAT}/sessions/{bobs}");
    let mine = ask(replica, Method::GET, &path, &Value::Null, &bob).await;
    assert_eq!((mine.status, &mine.body["messages"][0]["user_id"]), (200, &json!("bob")));
    assert_eq!(ask(replica, Method::GET, &path, &Value::Null, &alice).await.status, 404);
}

async fn open(
    server: &Process,
    session: &str,
    token: &str,
) -> Result<(Socket, Value, Option<String>), u16> {
    let bearer = format!("Bearer {token}");
    let path = format!("/ws?session_id={session}");
    Socket::open_with(server, &path, &[("authorization", &bearer)]).await
}

#[tokio::test]
async fn a_websocket_takes_its_token_from_the_header_or_from_a_subprotocol_and_never_repeats_it() {
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET)];
    let Setup { replica, .. } = &setup("500", &settings).await;
    let (session, alice) = (id(), token("alice"));
    let path = format!("/ws?session_id={session}");
    let protocols = format!("jarvis.v1, bearer.{alice}");
    let bearer = format!("Bearer {alice}");
    let headers = [("sec-websocket-protocol", &*protocols)];
    let by_protocol = Socket::open_with(replica, &path, &headers);
    let (mut socket, _, protocol) = by_protocol.await.expect("a socket");
    assert_eq!(protocol.as_deref(), Some("jarvis.v1"));
    socket.say(&json!({"message": "[[tokens=3]] hi"})).await;
    let end = socket.until("stream_end").await;
    assert!(!joined(&end).is_empty());
    // The session is Alice's, over REST, too.
    let path_of_rest = format!("{CHAT}/sessions/{session}");
    let mine = ask(replica, Method::GET, &path_of_rest, &Value::Null, &alice).await;
    assert_eq!(mine.status, 200);
    let bobs = format!("jarvis.v1, bearer.{}", hs256(SECRET, &claims("alice", -60)));
    let cookies = ["authorization", "token", "access_token", "bearer", "jwt", "session"];
    let cookies = cookies.map(|name| format!("{name}={alice}")).join("; ");
    let by_cookie = http().get(format!("{}{path_of_rest}", replica.url)).header("cookie", &cookies);
    assert_eq!(send(by_cookie).await.status, 401, "a cookie");
    for (what, headers) in [
        ("no token", vec![]),
        ("an expired one", vec![("sec-websocket-protocol", bobs.as_str())]),
        ("two headers", vec![("authorization", &*bearer), ("authorization", &*bearer)]),
        ("both", vec![("authorization", &*bearer), ("sec-websocket-protocol", &*protocols)]),
        ("cookies", vec![("cookie", &*cookies)]),
        ("another scheme", vec![("authorization", "Basic YTpi")]),
    ] {
        let refused = Socket::open_with(replica, &path, &headers).await;
        assert_eq!(refused.err(), Some(401), "{what}");
    }
    for parameter in ["token", "access_token", "bearer"] {
        let path = format!("/ws?{parameter}={alice}");
        assert_eq!(Socket::open_with(replica, &path, &[]).await.err(), Some(401), "{parameter}");
    }
}

#[tokio::test]
async fn a_socket_is_notified_before_its_token_ends_and_lives_on_only_with_another_of_its_user() {
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_AUTH_GRACE", "1")];
    let Setup { replica, .. } = &setup("500", &settings).await;
    let short = hs256(SECRET, &claims("alice", 2));
    let session = id();
    let (mut ending, _, _) = open(replica, &session, &short).await.expect("a socket");
    let (mut renewed, _, _) = open(replica, &session, &short).await.expect("a socket");
    for socket in [&mut ending, &mut renewed] {
        let event = socket.event().await;
        assert_eq!(event["type"], "auth_expiring");
        assert!(event["expires_at"].as_str().expect("a time").ends_with('Z'), "{event}");
    }
    for (token, code) in [
        (token("bob"), "token_of_another"),
        (hs256(SECRET, &claims("alice", -60)), "token_expired"),
        ("rubbish".to_owned(), "token_invalid"),
    ] {
        renewed.say(&json!({"type": "auth", "token": token})).await;
        let event = renewed.event().await;
        assert_eq!((&event["type"], &event["code"]), (&json!("error"), &json!(code)));
    }
    renewed.say(&json!({"type": "auth"})).await;
    assert_eq!(renewed.event().await["code"], "validation_failed");
    renewed.say(&json!({"type": "auth", "token": token("alice")})).await;
    let event = renewed.event().await;
    assert_eq!(event["type"], "authenticated");
    assert!(event["expires_at"].is_string(), "{event}");
    let (events, close) = ending.end().await;
    assert_eq!((events.len(), close.expect("a close").0), (0, 1008));
    renewed.say(&json!({"type": "ping"})).await;
    assert_eq!(renewed.event().await["type"], "pong");
    // An event stream of the session ends in the same way, without a notice.
    assert_eq!(chat(replica, &session, &token("alice")).await.status, 200);
    let url = format!("{}{CHAT}/sessions/{session}/events", replica.url);
    let stream = http().get(url).bearer_auth(hs256(SECRET, &claims("alice", 2)));
    let stream = stream.send().await.expect("a response");
    assert_eq!(stream.status(), 200);
    let text = tokio::time::timeout(LIMIT, stream.text()).await.expect("an end in time");
    assert!(text.expect("an orderly end").contains("connection"));
}

#[tokio::test]
async fn a_ticket_in_the_queue_names_the_signed_in_user_and_not_the_session() {
    let Setup { replica, redis, .. } = &setup("20", &[("JARVIS_JWT_SECRET", SECRET)]).await;
    let (mut socket, _, _) = open(replica, &id(), &token("a b:c")).await.expect("a socket");
    socket.say(&json!({"message": "[[tokens=200]] hi"})).await;
    let started = socket.until("stream_start").await;
    let generation = started.last().expect("an event")["generation_id"].as_str().expect("an id");
    let ticket = format!("jarvis:{{queue}}:ticket:{generation}");
    assert_eq!(redis.cli(&["HGET", &ticket, "user"]).trim(), "user:local:a%20b%3Ac");
    assert_eq!(redis.cli(&["HGET", &ticket, "source"]).trim(), "user:local:a%20b%3Ac");
}

#[tokio::test]
async fn no_log_line_holds_a_token_or_the_secret() {
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "500"]);
    let settings = [("JARVIS_JWT_SECRET", SECRET), ("JARVIS_LOG", "debug,fred=off")];
    let (replica, log) = logged(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let (alice, bad) = (token("alice"), hs256(&"y".repeat(40), &claims("alice", 3600)));
    let session = id();
    assert_eq!(chat(&replica, &session, &alice).await.status, 200);
    assert_eq!(chat(&replica, &session, &bad).await.status, 401);
    let protocols = format!("jarvis.v1, bearer.{alice}");
    let headers = [("sec-websocket-protocol", &*protocols)];
    let (mut socket, _, _) = Socket::open_with(&replica, "/ws", &headers).await.expect("a socket");
    socket.say(&json!({"type": "auth", "token": bad})).await;
    assert_eq!(socket.event().await["code"], "token_invalid");
    let text = std::fs::read_to_string(log).expect("a log");
    assert!(text.contains("sign-in refused"), "the log is at debug");
    for secret in [SECRET, alice.as_str(), bad.as_str()] {
        // A part of it is as bad.
        let part = &secret[secret.len() - 16..];
        assert!(!text.contains(part), "{part} is in the log");
    }
}

/// Starts a replica that trusts the issuer, with this mode.
async fn trusting(redis: &RedisServer, ollama: &Process, issuer: &Issuer, mode: &str) -> Process {
    let of_issuer = issuer.settings();
    let mut settings: Vec<(&str, &str)> =
        of_issuer.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend([("JARVIS_AUTH", mode), ("JARVIS_JWT_SECRET", SECRET)]);
    // The tests ask again and again.
    settings.push(("JARVIS_USER_REQUESTS_PER_MINUTE", "0"));
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    replica
}

async fn models(server: &Process, token: &str) -> (u16, String) {
    outcome(&ask(server, Method::GET, "/api/v1/models", &Value::Null, token).await)
}

fn ok() -> (u16, String) {
    (200, String::new())
}

#[tokio::test]
async fn an_outside_issuer_signs_in_by_each_algorithm_and_its_keys_are_good_for_nothing_else() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let (rsa, p256, ed) = (Key::rsa(), Key::p256(), Key::ed25519());
    let public = [("r", &rsa), ("e", &p256), ("d", &ed)];
    let mut keys: Vec<Value> = public.iter().map(|(id, key)| key.public(id)).collect();
    let shared_secret = "an oct key of the set, at least 32 bytes";
    keys.push(json!({"kty": "oct", "kid": "o", "k": base64url(shared_secret.as_bytes())}));
    // A key for another algorithm, one that encrypts, and rubbish are passed over.
    let mut other = rsa.public("r512");
    other["alg"] = json!("RS512");
    let mut encrypts = p256.public("enc");
    encrypts["use"] = json!("enc");
    keys.extend([other, encrypts, json!({"kty": "?"}), json!(7)]);
    let issuer = Issuer::start(keys).await;
    let replica = trusting(&redis, &ollama, &issuer, "optional").await;
    let alice = issuer.claims("alice");
    for (id, key) in public {
        assert_eq!(models(&replica, &key.token(id, &alice)).await, ok(), "{}", key.algorithm());
    }
    // The subject of another issuer is another user.
    let session = id();
    assert_eq!(chat(&replica, &session, &ed.token("d", &alice)).await.status, 200);
    assert_eq!(chat(&replica, &session, &rsa.token("r", &alice)).await.status, 200);
    let local = hs256(SECRET, &claims("alice", 3600));
    assert_eq!(chat(&replica, &session, &local).await.status, 404);
    let with = |field: &str, value: Value| {
        let mut claims = alice.clone();
        claims[field] = value;
        ed.token("d", &claims)
    };
    let without = |field: &str| {
        let mut claims = alice.clone();
        claims.as_object_mut().expect("an object").remove(field);
        ed.token("d", &claims)
    };
    let hmac = |secret: &[u8], id: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        signed(&json!({"alg": "HS256", "kid": id}), &alice, |message| {
            ring::hmac::sign(&key, message).as_ref().to_vec()
        })
    };
    let stranger = Key::ed25519();
    let bad = [
        ("another issuer", with("iss", json!("https://else.example"))),
        ("two issuers", with("iss", json!([issuer.url, "https://else.example"]))),
        ("without an issuer", without("iss")),
        ("another audience", with("aud", json!("another"))),
        ("without an audience", without("aud")),
        ("without an expiry", without("exp")),
        ("without a subject", without("sub")),
        ("a refresh token", with("typ", json!("Refresh"))),
        ("another type", with("type", json!("refresh"))),
        ("signed by a stranger", stranger.token("d", &alice)),
        ("the key of another algorithm", p256.token("d", &alice)),
        (
            "an algorithm that the key has not",
            ed.token_as(&json!({"alg": "ES256", "kid": "d"}), &alice),
        ),
        ("RS512 in the header", rsa.token_as(&json!({"alg": "RS512", "kid": "r"}), &alice)),
        ("a key for RS512", rsa.token("r512", &alice)),
        ("a key that encrypts", p256.token("enc", &alice)),
        ("an unknown key", ed.token("nobody", &alice)),
        ("no key", ed.token_as(&json!({"alg": "EdDSA"}), &alice)),
        ("the oct key", hmac(shared_secret.as_bytes(), "o")),
        ("the oct key without its name", hmac(shared_secret.as_bytes(), "")),
    ];
    for (what, token) in &bad {
        let refused = (401, "token_invalid".to_owned());
        assert_eq!(models(&replica, token).await, refused, "{what}");
    }
    // A public key is no secret of HMAC.
    for (id, key) in public {
        for (number, form) in key.public_forms().iter().enumerate() {
            let refused = models(&replica, &hmac(form, id)).await.0;
            assert_eq!(refused, 401, "form {number} of {}", key.algorithm());
        }
    }
    let mut expired = alice.clone();
    expired["exp"] = json!(in_seconds(-60));
    let refused = (401, "token_expired".to_owned());
    assert_eq!(models(&replica, &ed.token("d", &expired)).await, refused);
    assert_eq!(issuer.fetches(), 1, "unknown keys cause no flood of fetches");
}

#[tokio::test]
async fn keys_are_rotated_with_one_fetch_in_ten_seconds_and_kept_while_the_issuer_is_away() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let (old, new) = (Key::ed25519(), Key::p256());
    let issuer = Issuer::start(vec![old.public("old")]).await;
    let replica = &trusting(&redis, &ollama, &issuer, "required").await;
    let alice = issuer.claims("alice");
    // Many first tokens wait for one fetch.
    let first = (0..20).map(|_| async { models(replica, &old.token("old", &alice)).await });
    assert!(futures_util::future::join_all(first).await.into_iter().all(|it| it == ok()));
    let flood = (0..50).map(|at| {
        let token = old.token(&format!("unknown {at}"), &alice);
        async move { models(replica, &token).await.0 }
    });
    assert!(futures_util::future::join_all(flood).await.into_iter().all(|it| it == 401));
    assert_eq!(issuer.fetches(), 1);
    // The issuer is away: the old key stays good, although a fetch fails.
    issuer.answer(Answer::Status(500));
    let failed = async || {
        assert_eq!(models(replica, &old.token("old", &alice)).await, ok());
        models(replica, &new.token("new", &alice)).await.0 == 401 && issuer.fetches() == 2
    };
    assert!(eventually(LIMIT, failed).await, "{} fetches", issuer.fetches());
    assert_eq!(models(replica, &old.token("old", &alice)).await, ok());
    issuer.answer(Answer::Keys(vec![new.public("new")]));
    let rotated = async || models(replica, &new.token("new", &alice)).await == ok();
    assert!(eventually(LIMIT, rotated).await, "{} fetches", issuer.fetches());
    assert_eq!(issuer.fetches(), 3);
    // A key that the issuer has withdrawn is no longer valid.
    assert_eq!(models(replica, &old.token("old", &alice)).await.0, 401);
}

#[tokio::test]
async fn without_the_issuer_s_keys_its_tokens_get_503_and_the_others_go_on() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let key = Key::ed25519();
    let good = Issuer::start(vec![key.public("k")]).await;
    let padded =
        format!("{{\"keys\": [{}], \"x\": \"{}\"}}", key.public("k"), "x".repeat(300 << 10));
    for (what, answer) in [
        ("an error", Answer::Status(500)),
        ("a redirect", Answer::Redirect(format!("{}/keys", good.url))),
        ("no JSON", Answer::Text("<html>".to_owned())),
        ("a set that is too large", Answer::Text(padded)),
        ("too many keys", Answer::Keys((0..200).map(|at| key.public(&at.to_string())).collect())),
        (
            "no key that can be used",
            Answer::Keys(vec![json!({"kty": "oct", "kid": "k", "k": "eA"})]),
        ),
    ] {
        let issuer = Issuer::start(Vec::new()).await;
        issuer.answer(answer);
        let replica = trusting(&redis, &ollama, &issuer, "required").await;
        let token = key.token("k", &issuer.claims("alice"));
        let reply = ask(&replica, Method::GET, "/api/v1/models", &Value::Null, &token).await;
        assert_eq!(outcome(&reply), (503, "issuer_unavailable".to_owned()), "{what}");
        assert_eq!(reply.headers["retry-after"], "10");
        assert!(!reply.body.to_string().contains("127.0.0.1"), "{}", reply.body);
        assert_eq!(models(&replica, &hs256(SECRET, &claims("alice", 3600))).await, ok(), "{what}");
        assert_eq!(issuer.fetches(), 1, "{what}");
    }
    assert_eq!(good.fetches(), 0, "no redirect is followed");
}

#[test]
fn an_issuer_that_cannot_be_trusted_is_refused_at_the_start() {
    let issuer = ["--jwt-issuer", "https://issuer.example", "--jwt-audience", "jarvis"];
    for (arguments, part) in [
        (&["--jwks-url", "http://issuer.example/keys"][..], "needs https://"),
        (&["--jwks-url", "issuer.example"], "scheme"),
        (&["--jwt-issuer", "local"], "`local` is the issuer"),
    ] {
        let arguments = [&["serve"], arguments].concat();
        let (code, printed) = run(&arguments, &[]);
        assert_eq!(code, Some(64), "{arguments:?}: {printed}");
        assert!(printed.contains(part), "{arguments:?}: {printed}");
    }
    for (arguments, part) in [
        (&issuer[..], "JARVIS_JWKS_URL is missing"),
        (&["--jwks-url", "https://h", "--jwt-audience", "a"], "JARVIS_JWT_ISSUER is missing"),
        (&["--jwks-url", "https://h", "--jwt-issuer", "i"], "JARVIS_JWT_AUDIENCE is missing"),
    ] {
        let (code, printed) = run(&[&["serve"], arguments].concat(), &[]);
        assert_eq!(code, Some(64), "{arguments:?}: {printed}");
        assert!(printed.contains(part), "{arguments:?}: {printed}");
    }
}

const KEYS: &str = "jarvis:{api_keys}:keys";

#[tokio::test]
async fn an_api_key_signs_in_until_it_is_revoked_on_every_replica_and_in_open_sockets() {
    let (redis, ollama) = (RedisServer::start(), ollama_sim(&["--rate", "500"]));
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET)];
    let a = jarvis(&redis.url(), &ollama.url, &settings);
    let b = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&a, "/health/ready").await;
    until_ok(&b, "/health/ready").await;
    let redis_url = redis.url();
    let key = |arguments: &[&str]| {
        let (code, printed) =
            run(&[&["key"], arguments].concat(), &[("JARVIS_REDIS_URL", &redis_url)]);
        assert_eq!(code, Some(0), "{arguments:?}: {printed}");
        printed
    };
    let created = key(&["create", "--user", "alice"]);
    let secret = created.split_whitespace().next().expect("a key").to_owned();
    assert!(secret.starts_with("sk-jarvis-"), "{created}");
    let other = key(&["create", "--user", "bob bobson"]);
    let other = other.split_whitespace().next().expect("a key").to_owned();
    let listed = key(&["list"]);
    assert_eq!(listed.matches("\tnever\t").count(), 2, "{listed}");
    let id_of = |user: &str| {
        let line = listed.lines().find(|line| line.ends_with(user)).expect("a line");
        line.split('\t').next().expect("an identifier").to_owned()
    };
    // A token of the service's own and an API key sign in the same user.
    let session = id();
    assert_eq!(chat(&a, &session, &secret).await.status, 200);
    assert_eq!(chat(&b, &session, &token("alice")).await.status, 200);
    assert_eq!(chat(&a, &session, &other).await.status, 404);
    let (mut socket, _, _) = open(&b, &session, &secret).await.expect("a socket");
    let (mut others, _, _) = open(&b, &id(), &other).await.expect("a socket");
    let url = format!("{}{CHAT}/sessions/{session}/events", b.url);
    let stream = http().get(url).bearer_auth(&secret).send().await.expect("a response");
    assert_eq!(stream.status(), 200);
    let stored = redis.cli(&["HGETALL", KEYS]);
    assert!(
        stored.contains("alice") && !stored.contains(&secret["sk-jarvis-".len()..]),
        "{stored}"
    );
    assert!(!key(&["list"]).contains("\tnever\t"), "both keys were used");
    let revoked = Instant::now();
    key(&["revoke", &id_of("alice")]);
    let (_, close) = socket.end().await;
    assert_eq!(close.expect("a close").0, 1008);
    stream.text().await.expect("an orderly end");
    for replica in [&a, &b] {
        let refused = async || models(replica, &secret).await == (401, "token_invalid".to_owned());
        assert!(eventually(LIMIT, refused).await);
    }
    assert!(revoked.elapsed() < Duration::from_secs(5), "{:?}", revoked.elapsed());
    assert_eq!(open(&b, &session, &secret).await.err(), Some(401));
    // The key of another user goes on.
    others.say(&json!({"type": "ping"})).await;
    assert_eq!(others.event().await["type"], "pong");
    assert_eq!(models(&a, &other).await, ok());
    let (code, printed) =
        run(&["key", "revoke", &id_of("alice")], &[("JARVIS_REDIS_URL", &redis_url)]);
    assert_eq!(code, Some(1));
    assert!(printed.contains("no such key"), "{printed}");
}

#[tokio::test]
async fn the_last_use_of_an_api_key_is_written_at_most_once_a_minute_and_a_guess_is_none() {
    let redis = RedisServer::start();
    let store = ApiKeyStore::new(connect(&redis.url()).await);
    let CreatedKey::Key(key, id) = store.create("alice").await.expect("a reply") else {
        panic!("no room")
    };
    let digest = sha256_hex(key.expose().as_bytes());
    let check =
        |digest: &str| redis.cli(&["FCALL", "jarvis_check_api_keys_1", "1", KEYS, digest, "-"]);
    // A key that only begins alike is another one.
    assert_eq!(check(&format!("{}{}", &digest[..16], "0".repeat(48))).trim(), "");
    let record = |used: i64| format!("{digest} {} {used} alice", in_seconds(-1000));
    for (used, is_written) in [(0, true), (in_seconds(-61), true), (in_seconds(-30), false)] {
        redis.cli(&["HSET", KEYS, &id, &record(used)]);
        assert_eq!(check(&digest).trim(), "alice");
        let is_changed = redis.cli(&["HGET", KEYS, &id]).trim() != record(used);
        assert_eq!(is_changed, is_written, "{used}");
    }
    // All are listed, in more than one step.
    for at in 0..300 {
        assert!(matches!(store.create(&format!("user {at}")).await, Ok(CreatedKey::Key(..))));
    }
    let listed = store.list().await.expect("keys");
    assert_eq!(listed.len(), 301);
    assert!(store.revoke(&id).await.expect("a reply"));
    assert_eq!(check(&digest).trim(), "");
}

#[tokio::test]
async fn while_redis_is_away_an_api_key_gets_503_and_tokens_and_open_sockets_go_on() {
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET)];
    let Setup { replica, redis, ollama: _ollama } = setup("500", &settings).await;
    let (code, key) =
        run(&["key", "create", "--user", "alice"], &[("JARVIS_REDIS_URL", &redis.url())]);
    assert_eq!(code, Some(0), "{key}");
    let key = key.split_whitespace().next().expect("a key");
    let (mut socket, _, _) = open(&replica, &id(), key).await.expect("a socket");
    drop(redis);
    // As long as a revoked key may take to close its sockets; a check is trusted for less.
    tokio::time::sleep(Duration::from_secs(5)).await;
    socket.say(&json!({"type": "ping"})).await;
    socket.until("pong").await;
    assert_eq!(models(&replica, key).await, (503, "store_unavailable".to_owned()));
    assert_eq!(models(&replica, &token("alice")).await, ok());
    // A text that is no key costs no call of Redis.
    assert_eq!(models(&replica, "sk-jarvis-guess").await.0, 401);
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jarvis"));
    command.args(arguments).stdin(Stdio::null()).env_remove("JARVIS_JWT_SECRET");
    let output = command.envs(environment.iter().copied()).output().expect("jarvis");
    let Output { status, stdout, stderr } = output;
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[tokio::test]
async fn a_token_of_the_command_signs_its_user_in() {
    let folder = testkit::folder::Folder::temporary().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).expect("a file");
    let file = file.to_str().expect("a path");
    let redis = RedisServer::start();
    let ollama = ollama_sim(&["--rate", "500"]);
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET_FILE", file)];
    let replica = jarvis(&redis.url(), &ollama.url, &settings);
    until_ok(&replica, "/health/ready").await;
    let arguments = ["token", "--user", "alice", "--ttl", "5m"];
    let (code, printed) = run(&arguments, &[("JARVIS_JWT_SECRET", SECRET)]);
    assert_eq!(code, Some(0), "{printed}");
    let session = id();
    assert_eq!(chat(&replica, &session, printed.trim()).await.status, 200);
    let path = format!("{CHAT}/sessions/{session}");
    let mine = ask(&replica, Method::GET, &path, &Value::Null, &token("alice")).await;
    assert_eq!((mine.status, &mine.body["messages"][0]["user_id"]), (200, &json!("alice")));
    for (arguments, part) in [
        (["token", "--user", "alice", "--ttl", "0s"], "15m"),
        (["token", "--user", "alice", "--ttl", "5 minutes"], "15m"),
        (["token", "--user", "alice", "--ttl", "9999d"], "366 days"),
        (["token", "--user", "", "--ttl", "1h"], "1 to 255 bytes"),
    ] {
        let (code, printed) = run(&arguments, &[("JARVIS_JWT_SECRET", SECRET)]);
        assert_eq!(code, Some(64), "{arguments:?}: {printed}");
        assert!(printed.contains(part), "{arguments:?}: {printed}");
    }
    let (code, printed) = run(&["token", "--user", "alice"], &[]);
    assert_eq!(code, Some(1));
    assert!(printed.contains("JARVIS_JWT_SECRET"), "{printed}");
}

#[tokio::test]
async fn the_terminal_client_signs_in_by_a_variable_and_names_it_where_it_is_missing() {
    let settings = [("JARVIS_AUTH", "required"), ("JARVIS_JWT_SECRET", SECRET)];
    let Setup { replica, .. } = &setup("500", &settings).await;
    let chat = |token: Option<String>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jarvis"));
        command.args(["chat", "--url", &replica.url]).env_remove("JARVIS_TOKEN");
        command.envs(token.map(|token| ("JARVIS_TOKEN", token)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("jarvis chat");
        let mut stdin = child.stdin.take().expect("stdin");
        // The client may have ended already.
        let _ = stdin.write_all(b"[[tokens=3]] hi\n\n");
        drop(stdin);
        let Output { status, stdout, stderr } = child.wait_with_output().expect("an end");
        (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    };
    let (code, printed) = chat(Some(token("alice")));
    assert_eq!(code, Some(0), "{printed}");
    let session = printed.split("session ").nth(1).and_then(|rest| rest.get(..36));
    let path = format!("{CHAT}/sessions/{}", session.expect("a session"));
    let mine = ask(replica, Method::GET, &path, &Value::Null, &token("alice")).await;
    assert_eq!((mine.status, &mine.body["message_count"]), (200, &json!(2)), "{printed}");
    for token in [None, Some(hs256(SECRET, &claims("alice", -60)))] {
        let (code, printed) = chat(token.clone());
        assert_eq!(code, Some(1), "{printed}");
        assert!(printed.contains("set JARVIS_TOKEN"), "{printed}");
        assert!(token.is_none_or(|token| !printed.contains(&token)), "{printed}");
    }
    let public = token("alice");
    let (code, printed) = run(&["chat", "--token", &public], &[]);
    assert_eq!(code, Some(64), "{printed}");
    assert!(printed.contains("--token is refused") && !printed.contains(&public), "{printed}");
}

#[test]
fn a_secret_that_is_short_public_or_unreadable_is_refused_at_the_start_and_not_shown() {
    let short = "hunter2-hunter2";
    for (arguments, environment, part) in [
        (vec![], vec![("JARVIS_JWT_SECRET", short)], "at least 32; make one with `openssl rand"),
        (vec!["--jwt-secret", short], vec![], "at least 32"),
        (vec!["--jwt-secret", SECRET], vec![], "arguments"),
        (vec!["--jwt-secret-file", "/nothing/there"], vec![], "cannot read /nothing/there"),
        (vec!["--auth", "sometimes"], vec![], "sometimes"),
    ] {
        let arguments = [vec!["serve"], arguments].concat();
        let (code, printed) = run(&arguments, &environment);
        assert_eq!(code, Some(64), "{arguments:?}: {printed}");
        assert!(printed.contains(part), "{arguments:?}: {printed}");
        assert_eq!(printed.trim_end().lines().count(), 1, "{printed}");
        assert!(!printed.contains("hunter2") && !printed.contains(SECRET), "{printed}");
    }
}

#[tokio::test]
async fn no_call_of_api_keys_takes_redis_longer_than_five_milliseconds_with_10_000_keys() {
    let server = RedisServer::start_with(&["--appendonly", "no"]);
    let keys = ApiKeyStore::new(connect(&server.url()).await);
    let (mut digests, mut last) = (Vec::new(), String::new());
    let user = "u".repeat(255);
    while let CreatedKey::Key(key, id) = keys.create(&user).await.expect("Redis") {
        digests.push(sha256_hex(key.expose().as_bytes()));
        last = id;
    }
    assert_eq!(digests.len(), 10_000);
    let medians = takes_moments("10,000 API keys", async || {
        begin_timing(&server);
        for digests in digests.chunks(100) {
            assert_eq!(keys.check(digests).await.expect("Redis").len(), 100);
        }
        assert!(keys.list().await.expect("Redis").len() >= 9_999);
        assert!(matches!(keys.create("one more").await.expect("Redis"), CreatedKey::Full));
        assert!(keys.revoke(&last).await.expect("Redis"));
        let made = keys.create("again").await.expect("Redis");
        let CreatedKey::Key(_, id) = made else { panic!("no room") };
        last = id;
        longest(timed_calls(&server))
    });
    assert_eq!(medians.await.len(), 4, "all calls of keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_pyjwt_signs_are_taken_and_refused_as_those_of_the_tests_are() {
    let issuer = Port::reserve().expect("a port");
    let address = format!("http://127.0.0.1:{}", issuer.number());
    let keys = format!("{address}/keys");
    let settings = [
        ("JARVIS_AUTH", "required"),
        ("JARVIS_JWT_SECRET", SECRET),
        ("JARVIS_JWKS_URL", &keys),
        ("JARVIS_JWT_ISSUER", &address),
        ("JARVIS_JWT_AUDIENCE", "verify"),
    ];
    let Setup { replica, .. } = &setup("500", &settings).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/clients/tokens.py");
    let mut python = tokio::process::Command::new(run_folder().join("venv/bin/python"));
    python.args([script, &replica.url, SECRET, &issuer.number().to_string()]);
    let (mut driver, mut algorithms) = (Driver::start(python), 0);
    while let Some(result) = driver.line().await {
        assert_eq!(result["passed"], result["tries"], "{result}");
        assert!(result["tries"].as_u64() >= Some(7), "{result}");
        algorithms += 1;
    }
    assert_eq!(algorithms, 4);
}
