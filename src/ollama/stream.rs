//! An answer as it comes, until a clean end or a clean error.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Response;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::OllamaError;
use super::host::Host;
use super::ndjson::{Decoder, Event};
use super::refusal::failure;
use super::reply::{Done, DoneReason, Model};
use super::wire::Token;

/// Equal pieces in a row after which Ollama ends a stream without a word.
const REPETITION: u32 = 30;
/// How long a finished response may take to end, so that its connection can be used again.
const TAIL: Duration = Duration::from_secs(1);

/// An answer as it comes. Dropping it closes the request, and the host stops generating.
#[derive(Debug)]
pub struct TokenStream {
    host: Arc<Host>,
    model: Model,
    /// None once the response has ended.
    response: Option<Response>,
    decoder: Decoder,
    /// When the piece that is waited for is late; none while nobody waits. Kept here, as the wait
    /// may be dropped and taken up again.
    deadline: Option<Instant>,
    begun: bool,
    has_text: bool,
    repeats: Repeats,
    ended: bool,
}

impl TokenStream {
    /// Asks `host` for a stream of tokens.
    pub(super) async fn open(
        host: &Arc<Host>,
        path: &str,
        model: &Model,
        body: &impl Serialize,
    ) -> Result<Self, OllamaError> {
        let first_token_due = Instant::now() + host.limits.first_token;
        let request = host.post(path)?.json(body);
        let late = OllamaError::FirstTokenTimeout;
        let response = host.send(request, &model.name, first_token_due, late).await?;
        host.health.well();
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
        })
    }

    /// The next piece; none after the one that carries the end, and after an error.
    ///
    /// Cancel-safe: dropping the future loses nothing, and does not extend a time limit. The time
    /// between calls does not count as the host's.
    ///
    /// # Errors
    /// [`OllamaError::Repetition`] ends a stream that ended without a last line after too many
    /// equal pieces; [`OllamaError::Interrupted`] and [`OllamaError::ConnectionLost`] one that broke
    /// off; [`OllamaError::NotAnswered`] one that only told of loading the model; and
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
                self.host.breakers.succeeded(&self.model.key);
                if let Some(response) = self.response.take() {
                    tokio::spawn(read_tail(response));
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.ended = true;
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
                Some(Event::Token(token)) => {
                    if !self.begun {
                        self.begun = true;
                        self.host.breakers.begun(&self.model.key);
                    }
                    // What may be the end already need not wait for a piece that is late.
                    self.deadline = self.decoder.may_have_ended().then(|| Instant::now() + TAIL);
                    if token.done.is_some_and(|done| self.only_tells_of_loading(&token, done)) {
                        return Err(OllamaError::NotAnswered);
                    }
                    if let Some(token) = self.take(token) {
                        return Ok(token);
                    }
                }
                Some(Event::Failed(text)) => return Err(self.failed(&text)),
                None => {}
            }
        }
    }

    /// Takes the next bytes into the decoder, or from it what a line without an end says.
    async fn receive(&mut self) -> Result<Option<Event>, OllamaError> {
        let Some(response) = &mut self.response else {
            let end = self.decoder.take_implied_end().ok_or_else(|| self.broke_off())?;
            return Ok(Some(Event::Token(end)));
        };
        let gap = self.host.limits.token_gap;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + gap);
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(bytes))) => self.decoder.push(bytes),
            Ok(Ok(None)) => {
                self.response = None;
                return self.decoder.finish();
            }
            // Its last line gave a reason for the end: no more came, so that was it.
            _ if self.decoder.may_have_ended() => self.response = None,
            Ok(Err(error)) => return Err(self.host.broken(&error)),
            Err(_) if self.begun => return Err(self.host.late(OllamaError::TokenGapTimeout)),
            Err(_) => return Err(self.host.late(OllamaError::FirstTokenTimeout)),
        }
        Ok(None)
    }

    fn take(&mut self, token: Token) -> Option<Token> {
        let text = if token.content.is_empty() { &token.thinking } else { &token.content };
        if text.is_empty() && token.done.is_none() {
            return None;
        }
        self.has_text |= !text.is_empty();
        self.repeats.count(text);
        Some(token)
    }

    /// A host that had something else to do with the model has answered nothing.
    fn only_tells_of_loading(&self, token: &Token, done: Done) -> bool {
        let is_loading = matches!(done.reason, DoneReason::Load | DoneReason::Unload);
        is_loading && !self.has_text && token.content.is_empty() && token.thinking.is_empty()
    }

    fn failed(&self, text: &str) -> OllamaError {
        tracing::warn!(host = %self.host.name, text, "a model host ended a stream with an error");
        failure(text, &self.model.name, self.begun)
    }

    /// The response ended well, its content did not.
    fn broke_off(&self) -> OllamaError {
        if self.repeats.reached() {
            tracing::info!(host = %self.host.name, "a model repeated itself until it was stopped");
            return OllamaError::Repetition;
        }
        tracing::warn!(host = %self.host.name, "a model host ended a stream without its last line");
        OllamaError::Interrupted("the model host ended it without a last line")
    }
}

/// Counts equal pieces in a row as Ollama does: without the white space around them.
#[derive(Debug, Default)]
struct Repeats {
    piece: String,
    count: u32,
}

impl Repeats {
    fn count(&mut self, piece: &str) {
        let piece = piece.trim();
        if self.count > 0 && piece == self.piece {
            self.count = self.count.saturating_add(1);
        } else {
            self.piece.clear();
            self.piece.push_str(piece);
            self.count = 1;
        }
    }

    fn reached(&self) -> bool {
        self.count >= REPETITION
    }
}

/// Reads what follows the last line: nothing but the end of the response. Without that its
/// connection would be closed, and the next generation would wait for a new one.
async fn read_tail(mut response: Response) {
    let _ = timeout(TAIL, response.chunk()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeats(pieces: &[(&str, u32)]) -> bool {
        let mut repeats = Repeats::default();
        for (piece, times) in pieces {
            for _ in 0..*times {
                repeats.count(piece);
            }
        }
        repeats.reached()
    }

    #[test]
    fn thirty_equal_or_blank_pieces_at_the_end_are_a_repetition() {
        assert!(repeats(&[("a", 1), (" b", 30)]));
        assert!(repeats(&[(" b", 29), ("b ", 2)]));
        assert!(repeats(&[("\n", 10), ("  ", 20)]));
        assert!(!repeats(&[("b", 29)]));
        assert!(!repeats(&[("b", 40), ("a", 1)]));
        assert!(!repeats(&[]));
    }
}
