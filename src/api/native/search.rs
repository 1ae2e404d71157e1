//! The search of a caller's sessions: titles, and the newest messages.
//!
//! Nothing is indexed: Redis has the messages as text that it never decodes, and a search reads them
//! newest first, within bounds. So it costs nothing until somebody searches.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::session::store::Page;
use crate::session::{Message, Owner, Role, SessionId, SessionInfo, Store, StoreError};

/// Messages that one search looks at, over all of its pages.
const MOST_MESSAGES: u64 = 10_000;
/// Bytes of messages after which one request looks at no further session.
const REQUEST_BYTES: usize = 2 << 20;
/// Bytes of messages of one session that one request looks at.
const SESSION_BYTES: usize = 4 << 20;
/// Messages and bytes of one read.
const READ_MESSAGES: u64 = 500;
const READ_BYTES: usize = 512 << 10;
/// Words of a search, at most; further ones are left out.
const WORDS: usize = 8;
/// Characters of an excerpt, and of those before the word.
const EXCERPT: usize = 160;
const BEFORE: usize = 40;

/// The newest message of a session that has the words of a search.
#[derive(Serialize, ToSchema)]
pub struct FoundMessage {
    /// The session.
    pub session_id: SessionId,
    /// The message.
    pub message_id: Uuid,
    /// The author of the message.
    pub role: Role,
    /// The text around the first of the words.
    pub excerpt: String,
}

/// The words of a search.
pub struct Search(Vec<String>);

/// How far a search is.
pub struct SearchState {
    /// Messages that were looked at, over all pages.
    messages: u64,
    /// Bytes of messages that this request has looked at.
    bytes: usize,
    /// Whether messages were left out.
    is_cut: bool,
}

impl SearchState {
    /// Continues a search whose earlier pages looked at so many messages.
    pub fn after(messages: u64) -> Self {
        Self { messages: messages.min(MOST_MESSAGES), bytes: 0, is_cut: false }
    }

    /// Returns whether this request looks at no further session.
    pub fn is_spent(&self) -> bool {
        self.bytes >= REQUEST_BYTES
    }

    /// Returns how many messages all pages have looked at.
    pub fn searched(&self) -> u64 {
        self.messages
    }

    /// Returns whether messages were left out.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn left(&self) -> u64 {
        MOST_MESSAGES - self.messages
    }
}

/// The outcome of a search in one session.
pub struct SearchOutcome {
    /// Whether the session has the words.
    pub is_match: bool,
    /// The message that has them; none where the title does.
    pub message: Option<FoundMessage>,
}

impl Search {
    /// Creates a search for all of these words; none where there is no word.
    pub fn new(words: &str) -> Option<Self> {
        let words: Vec<String> =
            words.to_lowercase().split_whitespace().take(WORDS).map(str::to_owned).collect();
        (!words.is_empty()).then_some(Self(words))
    }

    /// Looks for the words in the title of a session, and then in its newest messages.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn look(
        &self,
        store: &Store,
        owner: &Owner,
        info: &SessionInfo,
        state: &mut SearchState,
    ) -> Result<SearchOutcome, StoreError> {
        if self.excerpt(&info.title).is_some() {
            return Ok(SearchOutcome { is_match: true, message: None });
        }
        let session = info.session_id;
        let (mut before, mut bytes) = (None, 0);
        loop {
            let limit = state.left().min(READ_MESSAGES);
            if limit == 0 || bytes >= SESSION_BYTES {
                state.is_cut |= before.unwrap_or(info.message_count) > 0;
                return Ok(SearchOutcome { is_match: false, message: None });
            }
            let page = match before {
                None => store.newest(owner, session, limit, READ_BYTES).await,
                Some(before) => store.page_before(owner, session, before, limit).await,
            };
            let Page { messages, first, .. } = match page {
                // It was deleted meanwhile.
                Err(StoreError::Absent) => {
                    return Ok(SearchOutcome { is_match: false, message: None });
                }
                page => page?,
            };
            let read: usize = messages.iter().map(|message| message.content.len()).sum();
            bytes += read;
            state.bytes += read;
            state.messages += messages.len() as u64;
            let found = messages.iter().rev().find_map(|message| self.found(info, message));
            if found.is_some() {
                return Ok(SearchOutcome { is_match: true, message: found });
            }
            if first == 0 || messages.is_empty() {
                return Ok(SearchOutcome { is_match: false, message: None });
            }
            before = Some(first);
        }
    }

    fn found(&self, info: &SessionInfo, message: &Message) -> Option<FoundMessage> {
        Some(FoundMessage {
            session_id: info.session_id,
            message_id: message.id,
            role: message.role,
            excerpt: self.excerpt(&message.content)?,
        })
    }

    /// Returns the text around the first word, where the text has all words.
    fn excerpt(&self, text: &str) -> Option<String> {
        let lower = text.to_lowercase();
        if !self.0.iter().all(|word| lower.contains(word)) {
            return None;
        }
        let at = lower.find(&self.0[0])?;
        // Few characters have another length in lower case: the excerpt may begin a little off.
        let skipped = lower[..at].chars().count().saturating_sub(BEFORE);
        Some(text.chars().skip(skipped).take(EXCERPT).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_by_all_words_in_any_case_and_any_order() {
        let search = Search::new("  ÜBER  straße ").expect("words");
        assert!(search.excerpt("Die Straße führt über den Fluss").is_some());
        assert!(search.excerpt("Die Straße führt zum Fluss").is_none());
        assert!(Search::new(" \n").is_none());
        let long = format!("{} needle {}", "ä".repeat(1_000), "z".repeat(1_000));
        let excerpt = Search::new("NEEDLE").expect("a word").excerpt(&long).expect("found");
        assert_eq!(excerpt.chars().count(), EXCERPT);
        assert!(excerpt.contains("needle"), "{excerpt}");
    }
}
