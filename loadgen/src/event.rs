//! What a replica sends, as far as a client has to understand it.

use serde::Deserialize;

/// One event of a session. Fields that its type does not have are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its type on the wire.
    #[serde(rename = "type")]
    pub kind: String,
    /// A piece of the answer, or all of it.
    pub content: Option<String>,
    /// UTF-8 bytes of the answer before this piece.
    pub offset: Option<usize>,
    /// Of a piece: whether it was the last.
    pub done: Option<bool>,
    /// UTF-8 bytes of the answer that stay.
    pub from: Option<usize>,
    /// The whole answer.
    pub full_response: Option<String>,
    /// Why the answer ended.
    pub finish_reason: Option<String>,
    /// Whose answer.
    pub generation_id: Option<String>,
    /// Where to resume after this event.
    pub cursor: Option<String>,
    /// The client's own name of its message.
    pub message_id: Option<String>,
    /// What kind of error.
    pub code: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Seconds to wait first.
    pub retry_after: Option<f64>,
    /// Whether everything since the cursor follows.
    pub recovered: Option<bool>,
    /// Of a history: its messages, oldest first.
    pub messages: Vec<Stored>,
    /// Of a history: the answer that is being written.
    pub answer: Option<Running>,
}

/// A message as it is stored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stored {
    /// user or assistant.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Of an answer: complete, cancelled or failed.
    pub status: Option<String>,
    /// Of an answer: the run that made it.
    pub generation_id: Option<String>,
}

/// An answer that is being written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Running {
    /// The run that makes it.
    pub generation_id: String,
    /// Its beginning.
    pub content: String,
}
