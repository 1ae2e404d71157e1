//! The types of the domain: session, message, turn, generation.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::branch::{Anchor, Siblings};
use super::image::ImageRef;
pub use crate::owner::{Owner, User};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Returns a new random identifier.
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
    /// The identifier of a session. An anonymous caller needs nothing else to enter the session:
    /// never log it whole.
    SessionId
}
identifier! {
    /// The identifier of a generation, the run that makes one answer.
    GenerationId
}

impl GenerationId {
    /// Returns the id of the generation's question: that of the generation with its last bit flipped, so
    /// that the event of its acceptance finds it.
    pub fn question(self) -> Uuid {
        Uuid::from_u128(self.0.as_u128() ^ 1)
    }

    /// Returns the generation whose question this message is.
    pub fn of_question(question: Uuid) -> Self {
        Self(Uuid::from_u128(question.as_u128() ^ 1))
    }
}

impl SessionId {
    /// Returns the first eight characters: enough to follow a session in the logs, too few to enter
    /// it.
    pub fn redacted(self) -> String {
        let mut text = self.0.simple().to_string();
        text.truncate(8);
        text
    }
}

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions; only in what a request brings with it, and among added messages.
    System,
    /// The user.
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
    /// The answer is complete.
    Complete,
    /// A client cancelled the generation.
    Cancelled,
    /// The generation failed; `error` holds the reason.
    Failed,
}

/// The reason why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended its answer, or met a stop sequence.
    Stop,
    /// `max_tokens`, the context window or the largest answer was reached.
    Length,
    /// The model only repeated itself.
    Repetition,
    /// A client cancelled the generation.
    Cancelled,
}

/// The tokens of a generation, as the model host counted them. Where the host did not count them,
/// the prompt's number is an estimate and the answer's number a lower bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt: system prompt, history and question.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// The part of the conversation that the model received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextReport {
    /// Messages of the conversation that were sent, the question included.
    pub messages_sent: u64,
    /// Older messages that were left out, because they did not fit.
    pub messages_dropped: u64,
    /// Tokens of the prompt, 0 while the host has not counted them.
    pub prompt_tokens: u64,
    /// The context window in tokens, 0 where the host's default was used.
    pub num_ctx: u64,
}

/// The way in which an answer was continued after it broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContinuedHow {
    /// The text is expected to be what the model would have written without the break: its
    /// temperature is 0, the same runner continued, and the model repeated the end of its text.
    Exact,
    /// No text is missing or doubled, but other words were possible: the model samples, or another
    /// runner continued, or the model did not repeat the end of its text.
    Approximate,
    /// The answer started again.
    Restarted,
}

impl ContinuedHow {
    /// Returns the name that clients and metrics have.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Approximate => "approximate",
            Self::Restarted => "restarted",
        }
    }
}

/// The runner of an answer's text: a host, and the digest of the model there. At temperature 0 a
/// runner is expected to write the same text after the same prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner(String);

impl Runner {
    /// Creates the runner of a model, by the stable name of its host and the model's digest.
    pub fn new(host: &str, digest: &str) -> Self {
        Self(format!("{host} {digest}"))
    }

    /// Reads a stored runner. Returns none for an empty text.
    pub fn from_stored(stored: &str) -> Option<Self> {
        (!stored.is_empty()).then(|| Self(stored.to_owned()))
    }

    /// Returns whether both run the same model, wherever.
    pub fn has_model_of(&self, other: &Self) -> bool {
        let digest = |runner: &Self| runner.0.rsplit(' ').next().map(str::to_owned);
        digest(self) == digest(other)
    }

    /// Returns the runner as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One continuation of an answer after it broke off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Continuation {
    /// The way in which the answer was continued.
    pub how: ContinuedHow,
    /// The reason for the break: the code of an error, or `replica_gone`.
    pub why: String,
}

/// The reason why a generation failed, in terms that a client can act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The stable code, in snake case.
    pub code: String,
    /// The text for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The seconds to wait before a retry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after: Option<u64>,
}

/// A call of a tool that the model requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// The identifier, by which the result names the call.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The arguments: a JSON object, as text.
    pub arguments: String,
}

/// A finished message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// The identifier of the message.
    pub id: Uuid,
    /// The message before it; only in a session that has branched, and not of the first message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent_id: Option<Uuid>,
    /// The alternatives of the message, where it has any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub siblings: Option<Box<Siblings>>,
    /// The author.
    pub role: Role,
    /// The text. It is stored beside this header, not in it, so that Redis never encodes it.
    #[serde(default)]
    pub content: String,
    /// The model's reasoning before its answer; stored before the text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub thinking: Option<String>,
    /// The time of acceptance (user) or of the end (assistant).
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: DateTime<Utc>,
    /// The token's subject, or "anonymous"; only on a user's message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<String>,
    /// The generation that made the answer. This and all further fields are only on an assistant's
    /// message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation_id: Option<GenerationId>,
    /// The requested model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// The way in which the generation ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<Status>,
    /// The reason why the answer ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<FinishReason>,
    /// The tokens of prompt and answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub usage: Option<Usage>,
    /// The part of the conversation that the model received.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub context: Option<ContextReport>,
    /// The reason why the generation failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Failure>,
    /// The number of replicas that wrote the answer; one unless it was taken over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub writers: Option<u32>,
    /// The continuations of the answer, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub continued: Vec<Continuation>,
    /// The calls of tools that the model requests in addition to its text, or instead of it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tool_calls: Vec<ToolCall>,
    /// The images of the message, in their order, by their digests.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub images: Vec<ImageRef>,
    /// The call whose result the message is; only on a tool's message, as the name is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tool_call_id: Option<String>,
    /// The name of the tool whose result the message is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tool_name: Option<String>,
    /// The request as the front that took it shows it again, as JSON; only on a message that begins
    /// a turn of such a front. Only that front reads it, and no client gets it as a field of the
    /// message.
    #[serde(skip)]
    #[schema(ignore)]
    pub request: Option<String>,
    /// The messages that the same request brought before this one, oldest first: the model gets them
    /// before it. Only on a message that begins a turn.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schema(no_recursion)]
    pub before: Vec<Message>,
    /// Whether a client added the message outside of a turn: the model gets it with the turn that
    /// follows.
    #[serde(rename = "added", skip_serializing_if = "std::ops::Not::not", default)]
    pub is_added: bool,
}

impl Message {
    /// Returns how often an answer started again.
    pub fn restarts(&self) -> u32 {
        let restarts = self.continued.iter().filter(|it| it.how == ContinuedHow::Restarted);
        u32::try_from(restarts.count()).unwrap_or(u32::MAX)
    }
}

/// Whether a model that can reason does so before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredReasoning", into = "StoredReasoning")]
pub enum Reasoning {
    /// The model does not reason.
    #[default]
    Off,
    /// The model reasons with its default effort.
    On,
    /// The model reasons with this effort.
    Effort(Effort),
}

/// The effort of a model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Short reasoning.
    Low,
    /// Reasoning of medium length.
    Medium,
    /// Long reasoning.
    High,
}

/// [`Reasoning`] as it is stored. A replica of an earlier release reads `think` only, and runs the
/// turn with the model's default effort.
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

/// How the next token is chosen, in addition to the temperature. An absent value is the model's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// The number of the likeliest tokens that are chosen from; 0 is all of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top_k: Option<u32>,
    /// The share of the likeliest tokens that are chosen from, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top_p: Option<f64>,
    /// The share of the likeliest token's probability that a token needs, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_p: Option<f64>,
    /// The factor by which a token is less likely that the latest text has; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repeat_penalty: Option<f64>,
    /// How much less likely a token is that the text has already, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub presence_penalty: Option<f64>,
    /// How much less likely a token is for each time that the text has it, -2 to 2.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frequency_penalty: Option<f64>,
}

/// The rules for an answer: its format, and the tools that it may call.
///
/// Both are JSON text and not values, because a model writes the fields of an object in the order in
/// which its schema has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRules {
    /// The format, as the model host takes it: `"json"`, or a JSON schema.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub format: Option<String>,
    /// The tools that the model may call, as the model host takes them: a list of functions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tools: Option<String>,
    /// Whether the arguments of a call have to obey the schema of its function, where the function is
    /// `strict`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub strict_calls: bool,
    /// Whether the answer has one call of a tool at most.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub single_call: bool,
}

impl AnswerRules {
    /// Returns whether an answer is free text, so that any text of the model continues it.
    pub fn is_free(&self) -> bool {
        self.format.is_none() && self.tools.is_none()
    }

    /// Returns the bytes of both.
    pub fn bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.format) + length(&self.tools)
    }
}

/// The request of a turn without its text: everything else that another replica needs to run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnSpec {
    /// The requested model, or the default one.
    pub model: String,
    /// The temperature, 0 to 2; the model's own where absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub temperature: Option<f64>,
    /// The largest number of tokens of the answer, at least 1.
    pub max_tokens: u32,
    /// The system prompt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<String>,
    /// The seed, for repeatable answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seed: Option<i64>,
    /// Up to four texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub stop: Vec<String>,
    /// How the next token is chosen, in addition to the temperature.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// The rules for the answer: its format, and the tools that it may call.
    #[serde(flatten)]
    pub rules: AnswerRules,
    /// Whether a model that can reason does so first, and with what effort.
    #[serde(flatten)]
    pub think: Reasoning,
    /// The client's own identifier of the message, echoed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_id: Option<String>,
    /// The source of the request: an opaque name of the client's address.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub source: String,
    /// Whether the turn is cancelled once nobody listens to it any more: its client could not come
    /// back for the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub needs_listener: bool,
    /// Whether the turn waits and runs without any listener: its client comes back for the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub is_detached: bool,
    /// Whether the session of a turn that brings its own conversation is kept for clients that come
    /// back: a day where it is anonymous, else as long as any session of the user.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub is_kept: bool,
    /// Where the turn goes, if not to the end of the selected path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub anchor: Option<Anchor>,
}

/// A session as the API describes it, without its messages.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SessionInfo {
    /// The identifier of the session.
    pub session_id: SessionId,
    /// A short name: chosen by the user, or else the beginning of the first message.
    pub title: String,
    /// The model of the last turn.
    pub model: String,
    /// The time of the first turn.
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: DateTime<Utc>,
    /// The time of the last change.
    #[serde(with = "timestamp")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: DateTime<Utc>,
    /// The number of finished messages on the selected branch.
    pub message_count: u64,
    /// Whether its user has pinned the session.
    pub pinned: bool,
    /// Whether its user has archived the session.
    pub archived: bool,
    /// Whether an answer is being written.
    pub running: bool,
}

/// Formats a time as the wire has it: RFC 3339, UTC, microseconds, `Z`.
pub fn rfc3339(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Times in JSON, as [`rfc3339`] formats them.
pub(super) mod timestamp {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::session) fn serialize<S: Serializer>(
        time: &DateTime<Utc>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::rfc3339(time))
    }

    pub(in crate::session) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(from)?;
        DateTime::parse_from_rfc3339(&text)
            .map(|time| time.with_timezone(&Utc))
            .map_err(serde::de::Error::custom)
    }
}

impl TurnSpec {
    /// Returns the bytes of its texts.
    pub fn bytes(&self) -> usize {
        let Self { model, system, stop, rules, message_id, source, .. } = self;
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        model.len()
            + optional(system)
            + stop.iter().map(String::len).sum::<usize>()
            + rules.bytes()
            + optional(message_id)
            + source.len()
    }
}

impl TurnSpec {
    /// Returns the request of a turn at this model, with the least that a turn needs.
    pub fn least(model: &str, max_tokens: u32) -> Self {
        Self {
            model: model.to_owned(),
            temperature: Some(0.0),
            max_tokens,
            system: None,
            seed: None,
            stop: Vec::new(),
            sampling: Sampling::default(),
            rules: AnswerRules::default(),
            think: Reasoning::Off,
            message_id: None,
            source: String::new(),
            needs_listener: false,
            is_detached: false,
            is_kept: false,
            anchor: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reasoning_effort_is_stored_beside_the_flag_that_an_earlier_release_reads() {
        let spec = |think| TurnSpec { think, ..TurnSpec::least("m", 1) };
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
        let every = TurnSpec {
            sampling: Sampling {
                top_k: Some(40),
                top_p: Some(0.1),
                min_p: Some(0.05),
                repeat_penalty: Some(1.1),
                presence_penalty: Some(-2.0),
                frequency_penalty: Some(0.3),
            },
            rules: AnswerRules {
                format: Some("{\"z\":1,\"a\":2}".to_owned()),
                tools: Some("[]".to_owned()),
                strict_calls: true,
                single_call: true,
            },
            ..spec(Reasoning::On)
        };
        let stored = serde_json::to_string(&every).expect("JSON");
        assert_eq!(serde_json::from_str::<TurnSpec>(&stored).expect("a turn"), every);
        let old: TurnSpec =
            serde_json::from_value(json!({"model": "m", "temperature": 0.0, "max_tokens": 1}))
                .expect("a turn");
        assert_eq!(old.think, Reasoning::Off);
    }
}
