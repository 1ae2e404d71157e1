//! What is sent to hosts, written strictly.

use serde::{Serialize, Serializer};

use super::reply::Done;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: String,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    /// 0 (the likeliest token) to 2.
    pub temperature: f64,
    /// Tokens at most; 0 is sent as 1, as it would mean "without end" to Ollama.
    #[serde(serialize_with = "at_least_one")]
    pub num_predict: u32,
    /// Context window in tokens. The same for all requests of a model: another value reloads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// The same seed gives the same answer, as far as the model goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn at_least_one<S: Serializer>(tokens: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32((*tokens).max(1))
}

/// Whether a model is to think, and how hard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Think {
    /// It is not.
    #[default]
    No,
    /// It is, as hard as it likes.
    Yes,
    /// It is, a little.
    Low,
    /// It is, more.
    Medium,
    /// It is, the most.
    High,
}

impl Serialize for Think {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes => serializer.serialize_bool(true),
            Self::Low => serializer.serialize_str("low"),
            Self::Medium => serializer.serialize_str("medium"),
            Self::High => serializer.serialize_str("high"),
        }
    }
}

/// A conversation to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRequest {
    /// Oldest first; at least one.
    pub messages: Vec<ChatMessage>,
    /// How to generate.
    pub options: Options,
    /// Whether thoughts are wanted; without effect on a model that has none.
    pub think: Think,
}

/// How long a model stays loaded, as Ollama reads it: a number is seconds, a text has a unit.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum KeepAlive {
    Seconds(i64),
    Text(String),
}

impl From<&str> for KeepAlive {
    fn from(text: &str) -> Self {
        let text = text.trim();
        text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Seconds)
    }
}

/// Checks how long an idle model stays loaded, as Ollama writes it: a duration of Go (`5m`, `1h30m`,
/// `-1s`) or whole seconds (`300`, `0`, `-1`). Gives it back without the blanks around it.
///
/// # Errors
/// Where Ollama would refuse it.
pub fn checked_keep_alive(text: &str) -> Result<String, String> {
    let text = text.trim();
    let usable = match text.parse::<i64>() {
        Ok(seconds) => seconds.unsigned_abs() <= LONGEST_SECONDS,
        Err(_) => is_duration(text),
    };
    if usable {
        return Ok(text.to_owned());
    }
    let expected = "expected a time as Ollama writes it: 5m or 1h30m, seconds as in 300, 0 to \
        unload at once, or -1 for ever";
    Err(expected.to_owned())
}

/// Ollama counts nanoseconds in 64 bits.
const LONGEST_SECONDS: u64 = (i64::MAX / 1_000_000_000) as u64;

/// Whether Go's `time.ParseDuration` takes it: numbers, each with its unit.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return false,
        };
        let Ok(number) = number.parse::<f64>() else { return false };
        seconds += number * unit;
        rest = tail;
    }
    text.ends_with(char::is_alphabetic) && seconds <= LONGEST_SECONDS as f64
}

/// The body of `/api/chat`.
#[derive(Serialize)]
pub(super) struct ChatBody<'a> {
    pub model: &'a str,
    pub messages: &'a [ChatMessage],
    pub options: &'a Options,
    pub stream: bool,
    #[serde(rename = "_debug_render_only", skip_serializing_if = "std::ops::Not::not")]
    pub render_only: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// The body of `/api/generate`.
#[derive(Serialize)]
pub(super) struct GenerateBody<'a> {
    pub model: &'a str,
    pub prompt: &'a str,
    pub options: &'a Options,
    pub stream: bool,
    pub raw: bool,
    #[serde(flatten)]
    pub always: Always<'a>,
}

/// What Ollama would otherwise decide in silence.
#[derive(Serialize)]
pub(super) struct Always<'a> {
    think: Think,
    truncate: bool,
    shift: bool,
    keep_alive: &'a KeepAlive,
}

impl<'a> Always<'a> {
    pub(super) fn new(keep_alive: &'a KeepAlive, think: Think) -> Self {
        Self { think, truncate: false, shift: false, keep_alive }
    }
}

/// A piece of an answer. Pieces are not tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// More of the answer.
    pub content: String,
    /// More of the thoughts.
    pub thinking: String,
    /// Set on the last piece.
    pub done: Option<Done>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_is_kept_for_as_long_as_ollama_would_take_it() {
        for time in [
            "5m", "1h30m", "1.5h", ".5s", "5.s", "300", "0", "-1", "-1m", "+5m", "0s", "100ms",
            "1us", "1µs", "1μs", "1ns", "24h", "2562047h",
        ] {
            assert_eq!(checked_keep_alive(&format!(" {time}\n")).as_deref(), Ok(time));
        }
        for wrong in [
            "banana",
            "",
            " ",
            "5 m",
            "m",
            "5x",
            "5m3",
            "1.2.3s",
            "--1",
            "-",
            "5M",
            "1d",
            "1w",
            ".s",
            "5m,",
            "for ever",
            "3000000h",
            "99999999999",
            "1e3s",
            "infs",
        ] {
            assert!(checked_keep_alive(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_request_leaves_nothing_for_ollama_to_decide() {
        let options = Options {
            temperature: 0.0,
            num_predict: 0,
            num_ctx: Some(2048),
            seed: None,
            stop: Vec::new(),
        };
        let keep_alive = KeepAlive::from("-1");
        let messages = [ChatMessage { role: ChatRole::User, content: "hi".to_owned() }];
        let body = ChatBody {
            model: "m",
            messages: &messages,
            options: &options,
            stream: true,
            render_only: false,
            always: Always::new(&keep_alive, Think::No),
        };
        assert_eq!(
            serde_json::to_value(&body).expect("JSON"),
            json!({
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "options": {"temperature": 0.0, "num_predict": 1, "num_ctx": 2048},
                "stream": true,
                "think": false,
                "truncate": false,
                "shift": false,
                "keep_alive": -1,
            })
        );
    }

    #[test]
    fn how_hard_to_think_is_sent_as_ollama_takes_it() {
        let sent = [Think::No, Think::Yes, Think::Low, Think::Medium, Think::High]
            .map(|think| serde_json::to_value(think).expect("JSON"));
        assert_eq!(sent, [json!(false), json!(true), json!("low"), json!("medium"), json!("high")]);
    }

    #[test]
    fn keep_alive_is_seconds_or_has_a_unit() {
        let json = |text: &str| serde_json::to_value(KeepAlive::from(text)).expect("JSON");
        assert_eq!(json("5m"), json!("5m"));
        assert_eq!(json(" 300 "), json!(300));
    }
}
