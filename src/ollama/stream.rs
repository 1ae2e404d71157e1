//! The token stream of one generation, which ends in its last token or in one error.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::OllamaError;
use super::host::Host;
use super::ndjson::{Decoder, StreamEvent};
use super::parallel::ObservedStream;
use super::refusal::failure;
use super::reply::{Done, DoneReason, Model};
use super::wire::Token;
use crate::lifecycle::spawn_caught;
use crate::telemetry::traces::TraceContext;

/// Equal tokens in a row after which Ollama ends a stream without a last line.
const REPETITION: u32 = 30;
/// How long a finished response may take to end, so that its connection can be used again.
const TAIL_LIMIT: Duration = Duration::from_secs(1);

/// A stream of tokens. Dropping it closes the request, and the host stops generating.
#[derive(Debug)]
pub struct TokenStream {
    host: Arc<Host>,
    model: Model,
    /// `None` once the response has ended.
    response: Option<Response>,
    decoder: Decoder,
    /// The deadline of the next token; `None` while no call waits for it. It is kept here because a
    /// caller may drop the wait and call again.
    deadline: Option<Instant>,
    begun: bool,
    has_text: bool,
    repeats: Repeats,
    ended: bool,
    /// The observer of the host, until the end of the stream.
    observed: Option<ObservedStream>,
}

impl TokenStream {
    /// Requests a stream of tokens from the host.
    pub(super) async fn open(
        host: &Arc<Host>,
        path: &str,
        model: &Model,
        body: &impl Serialize,
        trace: Option<TraceContext>,
    ) -> Result<Self, OllamaError> {
        let first_token_due = Instant::now() + host.limits.first_token;
        let request = host.post_in(trace, path)?.json(body);
        let late = OllamaError::FirstTokenTimeout;
        let response = host.send(request, &model.name, first_token_due, late).await?;
        host.health.succeeded();
        Ok(Self {
            host: Arc::clone(host),
            model: model.clone(),
            response: Some(response),
            decoder: Decoder::default(),
            deadline: Some(first_token_due),
            begun: false,
            has_text: false,
            repeats: Repeats::default(),
            ended: false,
            observed: None,
        })
    }

    /// Has the host observed by its first token and its end.
    pub(super) fn observed_by(self, observed: ObservedStream) -> Self {
        Self { observed: Some(observed), ..self }
    }

    /// Returns the next token; `None` after the last one, and after an error.
    ///
    /// Cancel-safe: dropping the future loses nothing, and does not extend a time limit. The time
    /// between calls does not count towards the limit.
    ///
    /// # Errors
    /// [`OllamaError::Repetition`] where the stream ended without a last line after too many equal
    /// tokens; [`OllamaError::Interrupted`] and [`OllamaError::ConnectionLost`] where it broke off;
    /// [`OllamaError::NotAnswered`] where the host only loaded the model; and
    /// [`OllamaError::FirstTokenTimeout`], [`OllamaError::TokenGapTimeout`],
    /// [`OllamaError::Malformed`], [`OllamaError::ContextTooLong`], [`OllamaError::ModelRefused`].
    pub async fn next(&mut self) -> Result<Option<Token>, OllamaError> {
        if self.ended {
            return Ok(None);
        }
        let result = self.advance().await;
        match &result {
            Ok(Token { done: Some(_), .. }) => {
                self.ended = true;
                self.observed = None;
                self.host.breakers.succeeded(&self.model.key);
                if let Some(response) = self.response.take() {
                    spawn_caught("model stream", read_tail(response));
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.ended = true;
                self.observed = None;
                self.response = None;
                if let Some(fault) = error.fault() {
                    self.host.breakers.failed(fault, &self.model.key);
                }
            }
        }
        result.map(Some)
    }

    async fn advance(&mut self) -> Result<Token, OllamaError> {
        loop {
            let event = match self.decoder.next_event()? {
                Some(event) => Some(event),
                None => self.receive().await?,
            };
            match event {
                Some(StreamEvent::Token(token)) => {
                    if !self.begun {
                        self.begun = true;
                        if let Some(observed) = &mut self.observed {
                            observed.token();
                        }
                        self.host.breakers.begun(&self.model.key);
                    }
                    // Behind a possible end, another token is waited for only briefly.
                    self.deadline =
                        self.decoder.may_have_ended().then(|| Instant::now() + TAIL_LIMIT);
                    if token.done.is_some_and(|done| self.only_loaded(&token, done)) {
                        return Err(OllamaError::NotAnswered);
                    }
                    if let Some(token) = self.take(token) {
                        return Ok(token);
                    }
                }
                Some(StreamEvent::Failed(text)) => return Err(self.failed(&text)),
                None => {}
            }
        }
    }

    /// Passes the next bytes to the decoder. Returns an event where the response has ended.
    async fn receive(&mut self) -> Result<Option<StreamEvent>, OllamaError> {
        let Some(response) = &mut self.response else {
            let end = self.decoder.take_implied_end().ok_or_else(|| self.broke_off())?;
            return Ok(Some(StreamEvent::Token(end)));
        };
        let gap = self.host.limits.token_gap;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + gap);
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(bytes))) => self.decoder.push(bytes),
            Ok(Ok(None)) => {
                self.response = None;
                return self.decoder.finish();
            }
            // The last line named a reason for the end, and no other line followed.
            _ if self.decoder.may_have_ended() => self.response = None,
            Ok(Err(error)) => return Err(self.host.record_failure(&error)),
            Err(_) if self.begun => {
                return Err(self.host.record_timeout(OllamaError::TokenGapTimeout));
            }
            Err(_) => return Err(self.host.record_timeout(OllamaError::FirstTokenTimeout)),
        }
        Ok(None)
    }

    fn take(&mut self, token: Token) -> Option<Token> {
        if token.is_empty() && token.done.is_none() {
            return None;
        }
        let text = if token.content.is_empty() { &token.thinking } else { &token.content };
        self.has_text |= !token.is_empty();
        if token.tool_calls.is_empty() {
            self.repeats.count(text);
        }
        Some(token)
    }

    /// Returns whether the stream ends without text because the host loaded or unloaded the model.
    fn only_loaded(&self, token: &Token, done: Done) -> bool {
        let is_loading = matches!(done.reason, DoneReason::Load | DoneReason::Unload);
        is_loading && !self.has_text && token.is_empty()
    }

    fn failed(&self, text: &str) -> OllamaError {
        tracing::warn!(host = %self.host.name, text, "stream ended by an error of a model host");
        failure(text, &self.model.name, self.begun)
    }

    /// Returns the error of a response that ended without its last line.
    fn broke_off(&self) -> OllamaError {
        if self.repeats.reached() {
            tracing::info!(host = %self.host.name, "stream ended by repetition");
            return OllamaError::Repetition;
        }
        tracing::warn!(host = %self.host.name, "stream ended without its last line");
        OllamaError::Interrupted("the model host ended it without a last line")
    }
}

/// Counts equal tokens in a row as Ollama does: without the white space around them.
#[derive(Debug, Default)]
struct Repeats {
    token: String,
    count: u32,
}

impl Repeats {
    fn count(&mut self, token: &str) {
        let token = token.trim();
        if self.count > 0 && token == self.token {
            self.count = self.count.saturating_add(1);
        } else {
            self.token.clear();
            self.token.push_str(token);
            self.count = 1;
        }
    }

    fn reached(&self) -> bool {
        self.count >= REPETITION
    }
}

/// Reads the end of the response behind the last line. Without this the connection would be closed,
/// and the next generation would wait for a new one.
async fn read_tail(mut response: Response) {
    let _ = timeout(TAIL_LIMIT, response.chunk()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeats(tokens: &[(&str, u32)]) -> bool {
        let mut repeats = Repeats::default();
        for (token, times) in tokens {
            for _ in 0..*times {
                repeats.count(token);
            }
        }
        repeats.reached()
    }

    #[test]
    fn thirty_equal_or_blank_tokens_at_the_end_are_a_repetition() {
        assert!(repeats(&[("a", 1), (" b", 30)]));
        assert!(repeats(&[(" b", 29), ("b ", 2)]));
        assert!(repeats(&[("\n", 10), ("  ", 20)]));
        assert!(!repeats(&[("b", 29)]));
        assert!(!repeats(&[("b", 40), ("a", 1)]));
        assert!(!repeats(&[]));
    }
}
