//! Parses the messages of clients over a WebSocket.

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::api::native::input::{
    ChatRequest, IDEMPOTENCY_KEY, branch_target, cancel_target, own_id,
};
use crate::http::extract::body::json_position;
use crate::http::extract::fields::{FieldError, Fields, PAGE_LIMIT};
use crate::http::extract::object::{NotAnObject, Object, TOO_MANY_FIELDS_TEXT, TOO_MANY_VALUES};
use crate::http::problem::Problem;
use crate::secret::Secret;
use crate::session::{Anchor, GenerationId};
use crate::sign_in::LONGEST_TOKEN;

/// A message of a client over a WebSocket.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// A request for a `pong`.
    Ping,
    /// A message to the model.
    Chat(Box<ChatRequest>),
    /// A request for messages of the session.
    History {
        /// Messages at most, 1 to 500.
        limit: u64,
        /// The message that follows the requested ones.
        before: Option<Uuid>,
        /// The client's identifier of the request, which the reply repeats.
        message_id: Option<String>,
    },
    /// A request to select the branch of a message.
    Branch {
        /// The message.
        message: Uuid,
        /// The client's identifier of the request, which an error repeats.
        message_id: Option<String>,
    },
    /// A request to clear the history.
    ClearHistory,
    /// A request to cancel a generation.
    Cancel {
        /// The generation; where absent, the running one, else the oldest that waits.
        generation: Option<GenerationId>,
    },
    /// A new token, instead of one that expires.
    Auth {
        /// The token.
        token: Secret,
    },
}

impl ClientMessage {
    /// Returns whether the message requests only a reply, and changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Ping | Self::History { .. } | Self::Auth { .. })
    }

    /// Returns the message's type on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Chat(request) => match request.anchor {
                Some(Anchor::BesideAnswer(_)) => "regenerate",
                Some(Anchor::BesideQuestion(_)) => "edit",
                Some(Anchor::Behind(_)) | None => "chat",
            },
            Self::Branch { .. } => "branch",
            Self::History { .. } => "get_history",
            Self::ClearHistory => "clear_history",
            Self::Cancel { .. } => "cancel",
            Self::Auth { .. } => "auth",
        }
    }

    /// Returns the client's identifier of the message.
    pub fn message_id(&self) -> Option<&str> {
        match self {
            Self::Chat(request) => request.message_id.as_deref(),
            Self::History { message_id, .. } | Self::Branch { message_id, .. } => {
                message_id.as_deref()
            }
            _ => None,
        }
    }
}

/// A message that is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// The problem.
    pub problem: Problem,
    /// The client's identifier of the message, where it is readable.
    pub message_id: Option<Box<str>>,
}

/// Parses a client's message.
///
/// # Errors
/// [`BadMessage`] where it is not valid.
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
        Err(NotAnObject::TooManyFields) => {
            return Err(bad(TOO_MANY_VALUES, &format!("the message {TOO_MANY_FIELDS_TEXT}")));
        }
        Err(NotAnObject::Invalid(error)) => {
            return Err(bad("json_invalid", &json_position(&error)));
        }
    };
    let kind = match object.get("type") {
        Ok(None) => "chat",
        Ok(Some(Value::String(kind))) => kind,
        Ok(Some(_)) | Err(_) => return Err(bad("unknown_type", "type must be a string")),
    };
    let parsed = match kind {
        "ping" => Ok(ClientMessage::Ping),
        "chat" => ChatRequest::from_message(&object, text).map(Box::new).map(ClientMessage::Chat),
        "regenerate" => ChatRequest::from_regenerate_message(&object, text)
            .map(Box::new)
            .map(ClientMessage::Chat),
        "edit" => {
            ChatRequest::from_edit_message(&object, text).map(Box::new).map(ClientMessage::Chat)
        }
        "branch" => branch_request(&object),
        "get_history" | "history" => history_request(&object),
        "clear_history" => Ok(ClientMessage::ClearHistory),
        "cancel" => cancel_target(&object).map(|generation| ClientMessage::Cancel { generation }),
        "auth" => auth_request(&object),
        _ => return Err(bad("unknown_type", "there is no such type of message")),
    };
    parsed.map_err(|errors| BadMessage {
        problem: errors.into(),
        message_id: object
            .get(own_id_field(kind))
            .unwrap_or_default()
            .and_then(Value::as_str)
            .filter(|id| !id.is_empty())
            .map(Box::from),
    })
}

/// Returns the field with the client's own identifier of a message of this type.
fn own_id_field(kind: &str) -> &'static str {
    match kind {
        "regenerate" | "edit" | "branch" => IDEMPOTENCY_KEY,
        _ => "message_id",
    }
}

fn auth_request(object: &Object) -> Result<ClientMessage, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    let token = Secret::new(fields.required_text("token", LONGEST_TOKEN));
    fields.finish(ClientMessage::Auth { token })
}

fn branch_request(object: &Object) -> Result<ClientMessage, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    let message_id = own_id(&mut fields, IDEMPOTENCY_KEY);
    let message = branch_target(object)?;
    fields.finish(ClientMessage::Branch { message, message_id })
}

fn history_request(object: &Object) -> Result<ClientMessage, Vec<FieldError>> {
    let mut fields = Fields::new("body", object);
    // Clients of the original may request more than fits in one reply; `has_more` reports the rest.
    let (most, default) = PAGE_LIMIT;
    let limit = fields.integer("limit", 1, i64::MAX).unwrap_or(default).min(most);
    let before = fields.uuid("before");
    let message_id = own_id(&mut fields, "message_id");
    fields.finish(ClientMessage::History { limit: limit.unsigned_abs(), before, message_id })
}
