//! Signed-in callers and their sessions, for the tests of ownership.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Reply, Socket, http, send};
use super::eventually;
use super::fleet::ready_replicas;
use super::process::{LIMIT, Process, ollama_sim};
use super::tokens::{SECRET, token};

pub const CHAT: &str = "/api/v1/chat";
pub const SESSIONS: &str = "/api/v1/chat/sessions";
pub const MODEL: &str = "tinyllama:latest";

/// Replicas over one Redis, and a scripted Ollama.
pub struct Fleet {
    pub ollama: Process,
    pub replicas: Vec<Process>,
}

impl Fleet {
    pub async fn on(redis_url: &str, replicas: usize, rate: &str) -> Self {
        let ollama = ollama_sim(&["--rate", rate]);
        let settings = [("JARVIS_JWT_SECRET", SECRET)];
        let replicas = ready_replicas(replicas, redis_url, &ollama.url, &settings).await;
        Self { ollama, replicas }
    }
}

pub fn id() -> String {
    Uuid::new_v4().to_string()
}

pub async fn ask(server: &Process, method: Method, path: &str, body: &Value, user: &str) -> Reply {
    let request = http().request(method, format!("{}{path}", server.url)).json(body);
    send(if user.is_empty() { request } else { request.bearer_auth(token(user)) }).await
}

pub async fn chat(server: &Process, session: &str, message: &str, user: &str) -> Reply {
    let body = json!({"message": message, "session_id": session});
    ask(server, Method::POST, CHAT, &body, user).await
}

pub async fn claim(server: &Process, session: &str, user: &str) -> Reply {
    ask(server, Method::POST, &format!("{SESSIONS}/{session}/claim"), &json!({}), user).await
}

pub async fn read(server: &Process, session: &str, user: &str) -> Reply {
    ask(server, Method::GET, &format!("{SESSIONS}/{session}"), &Value::Null, user).await
}

/// Returns the ids of the sessions that the user's list has, all pages of `limit` together.
pub async fn listed(server: &Process, user: &str, limit: usize) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("{SESSIONS}?limit={limit}&cursor={cursor}");
        let page = ask(server, Method::GET, &path, &Value::Null, user).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let sessions = page.body["sessions"].as_array().expect("sessions");
        assert_eq!(page.body["count"], sessions.len());
        assert!(sessions.len() <= limit);
        let id_of = |session: &Value| session["session_id"].as_str().expect("an id").to_owned();
        found.extend(sessions.iter().map(id_of));
        match page.body["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return found,
        }
    }
}

pub async fn open(server: &Process, session: &str, user: &str) -> Socket {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", &*bearer)];
    let headers = if user.is_empty() { &[][..] } else { &headers };
    let path = format!("/ws?session_id={session}");
    Socket::open_with(server, &path, headers).await.expect("a socket").0
}

pub fn expected(message: &str) -> String {
    ollama_sim::script_answer(MODEL, message, None, 64)
}

/// Returns how much a user has used of the limits of turns and of tokens.
pub async fn used(server: &Process, user: &str) -> (u64, u64) {
    let usage = ask(server, Method::GET, "/api/v1/usage", &Value::Null, user).await;
    let limits = usage.body["limits"].as_array().expect("limits").clone();
    let of = |name: &str| {
        let limit = limits.iter().find(|limit| limit["limit"] == name).expect("a limit");
        limit["used"].as_u64().expect("a number")
    };
    (of("user-turns"), of("user-tokens"))
}

/// Waits until the user's session has so many messages, and returns them.
pub async fn messages_until(
    server: &Process,
    session: &str,
    user: &str,
    count: usize,
) -> Vec<Value> {
    let mut messages = Vec::new();
    let there = eventually(LIMIT, async || {
        let reply = read(server, session, user).await;
        messages = reply.body["messages"].as_array().cloned().unwrap_or_default();
        messages.len() == count
    });
    assert!(there.await, "{messages:?}");
    messages
}
