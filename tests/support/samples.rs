//! Values that the tests of both sides of the crate begin with.

use std::time::Duration;

use chrono::Utc;
use jarvis::ollama::{FleetConfig, HostConfig};
use jarvis::session::model::{ContextReport, FinishReason, rfc3339};
use jarvis::session::store::{Turn, message};
use jarvis::session::{Control, Message, Role, Status, Tag, Usage};
use jarvis::tls::TlsOptions;

/// The events of a response that is a message, in OpenAI's order, the pieces of its text as one.
pub const RESPONSE_EVENTS: [&str; 9] = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
];

/// Returns the settings of these hosts, with so many slots each and one limit for every wait.
pub fn hosts(urls: &[&str], slots: usize, limit: Duration) -> FleetConfig {
    let host = |url: &&str| HostConfig { url: url.parse().expect("a URL"), slots };
    FleetConfig {
        hosts: urls.iter().map(host).collect(),
        connect_timeout: limit,
        first_token_timeout: limit,
        token_gap_timeout: limit,
        keep_alive: "5m".to_owned(),
        authorization: None,
        tls: TlsOptions::default(),
    }
}

/// Returns the message of a whole answer, and the events of its end.
pub fn whole_answer(turn: &Turn) -> (Message, [(Tag, Control); 2]) {
    let now = Utc::now();
    let answer = Message {
        generation_id: Some(turn.generation),
        model: Some(turn.spec.model.clone()),
        status: Some(Status::Complete),
        finish_reason: Some(FinishReason::Stop),
        usage: Some(Usage::default()),
        context: Some(ContextReport::default()),
        ..message(Role::Assistant, now)
    };
    let ended = Control::Ended {
        timestamp: rfc3339(&now),
        model: turn.spec.model.clone(),
        finish_reason: FinishReason::Stop,
        usage: Usage::default(),
        context: ContextReport::default(),
        continued: Vec::new(),
        tool_calls: Vec::new(),
    };
    (answer, [(Tag::random(), Control::Done {}), (Tag::random(), ended)])
}
