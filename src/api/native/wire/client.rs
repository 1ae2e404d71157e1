//! Clients' messages over a WebSocket, as they are read.

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::api::native::input::{ChatRequest, cancel_target};
use crate::http::extract::body::not_json;
use crate::http::extract::fields::{FieldError, Fields, PAGE_LIMIT};
use crate::http::extract::object::{NotAnObject, Object};
use crate::http::problem::Problem;
use crate::session::GenerationId;

/// What a client says over a WebSocket.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Are you there?
    Ping,
    /// A message to the model.
    Chat(Box<ChatRequest>),
    /// Messages of the session, please.
    History {
        /// At most so many, 1 to 500.
        limit: u64,
        /// Those before this message.
        before: Option<Uuid>,
    },
    /// Forget the history.
    ClearHistory,
    /// Stop a generation.
    Cancel {
        /// This one, else the running one, else the oldest that waits.
        generation: Option<GenerationId>,
    },
}

impl ClientMessage {
    /// Its name on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Chat(_) => "chat",
            Self::History { .. } => "get_history",
            Self::ClearHistory => "clear_history",
            Self::Cancel { .. } => "cancel",
        }
    }

    /// The client's own identifier of it.
    pub fn message_id(&self) -> Option<&str> {
        match self {
            Self::Chat(request) => request.message_id.as_deref(),
            _ => None,
        }
    }
}

/// A client's message that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// Why.
    pub problem: Problem,
    /// The client's own identifier of it, where that much could be read.
    pub message_id: Option<String>,
}

/// Reads a client's message.
///
/// # Errors
/// [`BadMessage`] for whatever is none.
pub fn parse_client_message(text: &[u8]) -> Result<ClientMessage, BadMessage> {
    let bad = |code, detail: &str| BadMessage {
        problem: Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail),
        message_id: None,
    };
    let object = match Object::parse(text) {
        Ok(object) => object,
        Err(NotAnObject::OtherJson) => {
            return Err(bad("not_an_object", "the message is not a JSON object"));
        }
        Err(NotAnObject::Invalid(error)) => return Err(bad("json_invalid", &not_json(&error))),
    };
    let kind = match object.get("type") {
        Ok(None) => "chat",
        Ok(Some(Value::String(kind))) => kind,
        Ok(Some(_)) | Err(_) => return Err(bad("unknown_type", "type must be a string")),
    };
    let parsed = match kind {
        "ping" => Ok(ClientMessage::Ping),
        "chat" => ChatRequest::from_message(&object).map(Box::new).map(ClientMessage::Chat),
        "get_history" | "history" => history_request(&object),
        "clear_history" => Ok(ClientMessage::ClearHistory),
        "cancel" => cancel_target(&object).map(|generation| ClientMessage::Cancel { generation }),
        _ => return Err(bad("unknown_type", "there is no such type of message")),
    };
    parsed.map_err(|errors| BadMessage {
        problem: errors.into(),
        message_id: object
            .get("message_id")
            .unwrap_or_default()
            .and_then(Value::as_str)
            .filter(|id| !id.is_empty())
            .map(str::to_owned),
    })
}

fn history_request(object: &Object) -> Result<ClientMessage, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    // A client of the original may ask for more than there is at once, and is told that there is.
    let (most, default) = PAGE_LIMIT;
    let limit = fields.integer("limit", 1, i64::MAX).unwrap_or(default).min(most);
    let before = fields.uuid("before");
    fields.finish(ClientMessage::History { limit: limit.unsigned_abs(), before })
}
