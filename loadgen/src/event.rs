//! The events of a replica, as far as a client has to understand them.

use serde::Deserialize;

/// One event of a session. Fields that its type does not have are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// The type on the wire.
    #[serde(rename = "type")]
    pub kind: String,
    /// A piece of the answer, or all of it.
    pub content: Option<String>,
    /// The UTF-8 bytes of the answer before this piece.
    pub offset: Option<usize>,
    /// Whether this piece was the last.
    pub done: Option<bool>,
    /// The UTF-8 bytes of the answer that stay.
    pub from: Option<usize>,
    /// The whole answer.
    pub full_response: Option<String>,
    /// The reason why the answer ended.
    pub finish_reason: Option<String>,
    /// The generation.
    pub generation_id: Option<String>,
    /// The cursor after this event.
    pub cursor: Option<String>,
    /// The client's own identifier of its message.
    pub message_id: Option<String>,
    /// The code of an error.
    pub code: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The seconds until a retry.
    pub retry_after: Option<f64>,
    /// Whether everything since the cursor follows.
    pub recovered: Option<bool>,
    /// The messages of a history, oldest first.
    pub messages: Vec<Stored>,
    /// The running answer of a history.
    pub answer: Option<Running>,
}

/// A stored message.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stored {
    /// The role: user or assistant.
    pub role: String,
    /// The text.
    pub content: String,
    /// The status of an answer: complete, cancelled or failed.
    pub status: Option<String>,
    /// The generation of an answer.
    pub generation_id: Option<String>,
}

/// A running answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Running {
    /// The generation.
    pub generation_id: String,
    /// The text so far.
    pub content: String,
}
