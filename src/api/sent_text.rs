//! The text of an answer that was sent in a dialect which cannot take text back.
//!
//! Where a turn starts its answer again, the new text is compared with what was sent, and only what
//! follows is sent. Where the two differ, the stream has to end with an error: a client never gets a
//! text that no model wrote.

use axum::http::StatusCode;

use crate::http::problem::Problem;

/// The text that was sent.
#[derive(Debug, Default)]
pub struct SentText(String);

/// The new text of an answer differs from what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diverged;

impl SentText {
    /// Returns the part of a text at this byte of the answer that was not sent yet, and counts it as
    /// sent; empty where all of it was.
    ///
    /// # Errors
    /// [`Diverged`].
    pub fn add<'a>(&mut self, offset: u64, text: &'a str) -> Result<&'a str, Diverged> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let known = self.0.get(offset..).ok_or(Diverged)?;
        let common = known.len().min(text.len());
        if known.as_bytes()[..common] != text.as_bytes()[..common] {
            return Err(Diverged);
        }
        let new = text.get(common..).ok_or(Diverged)?;
        self.0.push_str(new);
        Ok(new)
    }

    /// Returns the part of the whole answer that was not sent yet, as [`SentText::add`] does.
    ///
    /// # Errors
    /// [`Diverged`], also where more was sent than the answer has.
    pub fn end<'a>(&mut self, answer: &'a str) -> Result<&'a str, Diverged> {
        let rest = self.add(0, answer)?;
        if self.0.len() == answer.len() { Ok(rest) } else { Err(Diverged) }
    }

    /// Takes what was sent, which is empty then.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    /// Returns what was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Diverged> for Problem {
    fn from(Diverged: Diverged) -> Self {
        let detail =
            "The answer broke off, and the model began another one; send the request again.";
        let problem = Self::new(StatusCode::BAD_GATEWAY, "upstream_interrupted", detail);
        Self { retryable: true, ..problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_starts_again_is_sent_once_and_never_with_another_text() {
        let mut sent = SentText::default();
        assert_eq!(sent.add(0, "one twö"), Ok("one twö"));
        // The same text comes again, in other pieces.
        assert_eq!(sent.add(0, "one"), Ok(""));
        assert_eq!(sent.add(3, " twö three"), Ok(" three"));
        assert_eq!(sent.add(4, "six"), Err(Diverged));
        assert_eq!(sent.add(7, "x"), Err(Diverged), "within a character");
        assert_eq!(sent.add(99, "far"), Err(Diverged));
        assert_eq!(sent.end("one twö"), Err(Diverged), "shorter than what was sent");
        assert_eq!(sent.end("one twö three four"), Ok(" four"));
        assert_eq!(sent.as_str(), "one twö three four");
    }
}
