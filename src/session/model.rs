//! The nouns: session, message, turn, generation.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random identifier.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

identifier! {
    /// A conversation. For an anonymous caller it is also the only key to it: never log it whole.
    SessionId
}
identifier! {
    /// The run that makes one answer.
    GenerationId
}

impl SessionId {
    /// The first eight characters: enough to follow a session in the logs, too few to enter it.
    pub fn redacted(self) -> String {
        let mut text = self.0.simple().to_string();
        text.truncate(8);
        text
    }
}

/// Whose a session is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Whoever holds the session's identifier.
    Anonymous,
    /// One signed-in user, by the subject of the token.
    User(String),
}

impl Owner {
    /// How it is stored in Redis and compared there.
    pub fn key(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::User(subject) => format!("user:{subject}"),
        }
    }

    /// The owner whose [`Owner::key`] this is.
    pub fn from_key(key: &str) -> Self {
        match key.strip_prefix("user:") {
            Some(subject) => Self::User(subject.to_owned()),
            None => Self::Anonymous,
        }
    }

    /// What a message of this owner carries as `user_id`.
    pub fn user_id(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::User(subject) => subject,
        }
    }
}

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions; only in a conversation that a turn brings with it.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The answer is whole.
    Complete,
    /// Somebody stopped it.
    Cancelled,
    /// It broke off, and `error` says why.
    Failed,
}

/// Why an answer has no more text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model was done, or met a stop sequence.
    Stop,
    /// `max_tokens`, the context window or the largest answer was reached.
    Length,
    /// The model only repeated itself.
    Repetition,
    /// Somebody stopped it.
    Cancelled,
}

/// Tokens, as the model's host counted them. Where the host did not, those of the prompt are an
/// estimate and those of the answer a lower bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt: system prompt, history and question.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// What the model was given of the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextReport {
    /// Messages of the conversation that were sent, the question included.
    pub messages_sent: u64,
    /// Older messages that were left out, as they did not fit.
    pub messages_dropped: u64,
    /// Tokens of the prompt, 0 while the host has not counted them.
    pub prompt_tokens: u64,
    /// The context window in tokens, 0 where the host's default was used.
    pub num_ctx: u64,
}

/// How an answer went on after it had broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContinuedHow {
    /// The model went on from exactly the text that it had written.
    Exact,
    /// The model went on after the text that readers had, and would have gone another way at its end.
    Approximate,
    /// The answer began anew.
    Restarted,
}

/// One time that an answer went on after it had broken off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Continuation {
    /// How it went on.
    pub how: ContinuedHow,
    /// Why it had broken off: the code of an error, or `replica_gone`.
    pub why: String,
}

/// Why a generation failed, in terms that a client can act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Stable, snake_case.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Seconds to wait first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after: Option<u64>,
}

/// A finished message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// The message's own identifier.
    pub id: Uuid,
    /// Who speaks.
    pub role: Role,
    /// The text. Stored beside this header, not in it, so that Redis never encodes it.
    #[serde(default)]
    pub content: String,
    /// What the model thought before it answered; stored before the text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub thinking: Option<String>,
    /// When it was accepted (user) or ended (assistant).
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: DateTime<Utc>,
    /// The token's subject, or "anonymous"; only on a user's message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<String>,
    /// Which run made it; only on an assistant's message, as all that follows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation_id: Option<GenerationId>,
    /// The model, as asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// How the generation ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<Status>,
    /// Why there is no more text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<FinishReason>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub usage: Option<Usage>,
    /// What the model was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context: Option<ContextReport>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Failure>,
    /// How many replicas wrote the answer, one unless it was taken over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub writers: Option<u32>,
    /// Each time that the answer went on after it had broken off.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub continued: Vec<Continuation>,
}

/// Whether a model that can think does so before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredReasoning", into = "StoredReasoning")]
pub enum Reasoning {
    /// It does not.
    #[default]
    Off,
    /// It does, as hard as it likes.
    On,
    /// It does, so hard.
    Effort(Effort),
}

/// How hard a model is to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Briefly.
    Low,
    /// In between.
    Medium,
    /// At length.
    High,
}

/// [`Reasoning`] as it is stored. A replica of before knows `think` alone, and runs the turn with
/// whatever effort the model likes.
#[derive(Serialize, Deserialize)]
struct StoredReasoning {
    #[serde(default)]
    think: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    think_effort: Option<Effort>,
}

impl From<StoredReasoning> for Reasoning {
    fn from(stored: StoredReasoning) -> Self {
        match stored {
            StoredReasoning { think: false, .. } => Self::Off,
            StoredReasoning { think_effort: Some(effort), .. } => Self::Effort(effort),
            StoredReasoning { think_effort: None, .. } => Self::On,
        }
    }
}

impl From<Reasoning> for StoredReasoning {
    fn from(reasoning: Reasoning) -> Self {
        let think_effort = match reasoning {
            Reasoning::Off | Reasoning::On => None,
            Reasoning::Effort(effort) => Some(effort),
        };
        Self { think: reasoning != Reasoning::Off, think_effort }
    }
}

/// What was asked for, beside the text: everything that another replica needs to run the turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnSpec {
    /// The model, as asked for, or the default.
    pub model: String,
    /// 0 to 2.
    pub temperature: f64,
    /// At least 1.
    pub max_tokens: u32,
    /// The system prompt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<String>,
    /// For repeatable answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seed: Option<i64>,
    /// Up to four texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    /// Whether a model that can think does so first, and how hard.
    #[serde(flatten)]
    pub think: Reasoning,
    /// The client's own identifier of the message, echoed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_id: Option<String>,
    /// From where it came, in a word that is the same for one address.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub source: String,
}

/// A session as the API tells it, without its messages.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SessionInfo {
    /// Which session.
    pub session_id: SessionId,
    /// A short name: given by the user, else the beginning of the first message.
    pub title: String,
    /// The model of the last turn.
    pub model: String,
    /// First turn.
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: DateTime<Utc>,
    /// Last change.
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: DateTime<Utc>,
    /// Finished messages.
    pub message_count: u64,
}

/// A point in time as the wire has it: RFC 3339, UTC, microseconds, `Z`.
pub fn rfc3339(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

mod timestamp {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::rfc3339(time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(from)?;
        DateTime::parse_from_rfc3339(&text)
            .map(|time| time.with_timezone(&Utc))
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_hard_to_think_is_stored_beside_what_a_replica_of_before_reads() {
        let spec = |think| TurnSpec {
            model: "m".to_owned(),
            temperature: 0.0,
            max_tokens: 1,
            system: None,
            seed: None,
            stop: Vec::new(),
            think,
            message_id: None,
            source: String::new(),
        };
        for (think, stored) in [
            (Reasoning::Off, json!({"think": false})),
            (Reasoning::On, json!({"think": true})),
            (Reasoning::Effort(Effort::High), json!({"think": true, "think_effort": "high"})),
        ] {
            let spec = spec(think);
            let mut whole = json!({"model": "m", "temperature": 0.0, "max_tokens": 1});
            let fields = stored.as_object().expect("an object").clone();
            whole.as_object_mut().expect("an object").extend(fields);
            assert_eq!(serde_json::to_value(&spec).expect("JSON"), whole);
            assert_eq!(serde_json::from_value::<TurnSpec>(whole).expect("a turn"), spec);
        }
        let old: TurnSpec =
            serde_json::from_value(json!({"model": "m", "temperature": 0.0, "max_tokens": 1}))
                .expect("a turn");
        assert_eq!(old.think, Reasoning::Off);
    }
}
