//! The export of a user's sessions as JSON Lines.
//!
//! The body is made page by page as the client reads it, so that no session lies in memory. Only an
//! export that is whole ends with the line of type `end`.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use futures_util::{TryFutureExt, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::bulk_permits::{Bulk, BulkPermit, ClientPace};
use crate::api::native::ownership::SignedIn;
use crate::api::responses::Unavailable;
use crate::api::state::Shared;
use crate::budget::{ListEntry, ListOrder, ListPosition};
use crate::http::problem::Problem;
use crate::lifecycle::spawn_caught;
use crate::retry::{Backoff, retry};
use crate::session::model::rfc3339;
use crate::session::{Message, Owner, Role, SessionId, SessionInfo, StoreError};

/// The version of the format.
pub const VERSION: u64 = 1;
/// The media type of JSON Lines.
pub const MEDIA_TYPE: &str = "application/x-ndjson";
/// Entries of the list that are read at a time.
const ENTRIES: usize = 100;
/// Messages of a page, at most. Bytes bound it, too.
const PAGE: u64 = 500;
/// Bytes of a part of the body, at most, unless one message has more: a message takes up to six times its
/// stored bytes as JSON.
const PART_BYTES: usize = 256 << 10;
/// How long an export takes, at most.
const LIMIT: Duration = Duration::from_mins(10);
/// How long a call of Redis is repeated.
const RETRY_LIMIT: Duration = Duration::from_secs(10);

/// One line of an export.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    /// The first line.
    Export { version: u64, exported_at: String },
    /// The beginning of a session.
    Session(&'a SessionInfo),
    /// A message of the session, oldest first.
    Message(&'a Message),
    /// The end of the session, with the number of its messages.
    SessionEnd { session_id: SessionId, messages: u64 },
    /// The last line of a whole export.
    End { sessions: u64, messages: u64 },
    /// The last line of an export that failed.
    Error { code: &'a str, message: &'a str },
}

/// Exports all sessions of the caller.
#[utoipa::path(
    get, path = "/api/v1/chat/export", tag = "sessions",
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson",
            description = "JSON Lines; the last one has the type `end` where the export is whole"),
        Unavailable,
    ),
)]
pub async fn export(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
) -> Result<Response, Problem> {
    let permit = shared.bulk.take(Bulk::Export, &owner)?;
    let (pace, ends) = (ClientPace::new(shared.settings.read_timeout), Instant::now() + LIMIT);
    let (client_until, deadline) = watch::channel(None);
    spawn_caught("export", hold(permit, deadline, ends + RETRY_LIMIT));
    let export = Export {
        shared,
        owner,
        stage: Stage::Head,
        after: None,
        entries: VecDeque::new(),
        current: None,
        exported: HashSet::new(),
        messages: 0,
        ends,
        pace,
        client_since: Instant::now(),
        client_until,
    };
    let body = Body::from_stream(stream::unfold(Box::new(export), Export::next));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let file = HeaderValue::from_static("attachment; filename=\"jarvis-export.jsonl\"");
    headers.insert(header::CONTENT_DISPOSITION, file);
    Ok(response)
}

/// How far an export is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Sessions,
    Ended,
}

/// The session that is being exported.
struct Current {
    session: SessionId,
    /// Its messages that are exported, or left out.
    messages: u64,
    /// Its messages that are left out: no import takes system messages.
    left_out: u64,
    /// Messages that were read and are not exported yet.
    read: VecDeque<Message>,
    /// The number of its messages, when they were read.
    total: u64,
}

/// An export under way.
struct Export {
    shared: Shared,
    owner: Owner,
    stage: Stage,
    /// The last entry that was read. The oldest come first, so that a session that is used
    /// meanwhile moves behind the position, and is not missed.
    after: Option<ListPosition>,
    entries: VecDeque<ListEntry>,
    current: Option<Current>,
    /// The sessions so far: one that was used meanwhile is not exported twice.
    exported: HashSet<SessionId>,
    messages: u64,
    ends: Instant,
    pace: ClientPace,
    /// Since when the client reads what it has got.
    client_since: Instant,
    /// Until when the client has to have read it; none while the next part is made.
    client_until: watch::Sender<Option<Instant>>,
}

/// Holds the permit until the export ends, its client is too slow, or its time is over: also where
/// the client reads nothing, and so the export is not continued.
async fn hold(
    _permit: BulkPermit,
    mut client_until: watch::Receiver<Option<Instant>>,
    ends: Instant,
) {
    loop {
        let until = client_until.borrow_and_update().map_or(ends, |until| until.min(ends));
        tokio::select! {
            changed = client_until.changed() => if changed.is_err() { return },
            () = sleep_until(until) => return,
        }
    }
}

impl Export {
    async fn next(mut self: Box<Self>) -> Option<(Result<Bytes, Infallible>, Box<Self>)> {
        self.pace.add_time(self.client_since.elapsed());
        let is_held = self.client_until.send(None).is_ok();
        let mut text = String::new();
        if !is_held && self.stage != Stage::Ended {
            let message = "The export was read at less than 16 KiB a second, or took too long; \
                repeat it.";
            push(&mut text, &Line::Error { code: "timeout", message });
            self.stage = Stage::Ended;
        }
        while text.is_empty() {
            match self.stage {
                Stage::Head => {
                    let exported_at = rfc3339(&Utc::now());
                    push(&mut text, &Line::Export { version: VERSION, exported_at });
                    self.stage = Stage::Sessions;
                }
                Stage::Sessions if Instant::now() >= self.ends => {
                    let message = "The export took too long; repeat it.";
                    push(&mut text, &Line::Error { code: "timeout", message });
                    self.stage = Stage::Ended;
                }
                Stage::Sessions => {
                    if let Err(problem) = self.advance(&mut text).await {
                        let (code, message) = (&*problem.code, &*problem.detail);
                        push(&mut text, &Line::Error { code, message });
                        self.stage = Stage::Ended;
                    }
                }
                Stage::Ended => return None,
            }
        }
        self.pace.add_bytes(text.len());
        self.client_since = Instant::now();
        // Without a permit it ends with the next part.
        let _ = self.client_until.send(Some(self.client_since + self.pace.left()));
        Some((Ok(Bytes::from(text)), self))
    }

    /// Adds the next messages of the session that is being exported, or begins the next session, or ends
    /// the export.
    async fn advance(&mut self, text: &mut String) -> Result<(), Problem> {
        if self.current.is_some() {
            return self.add_messages(text).await;
        }
        let Some(entry) = self.entries.pop_front() else { return self.read_list(text).await };
        let session = entry.position.session;
        if self.exported.contains(&session) {
            return Ok(());
        }
        let (store, owner) = (&self.shared.store, &self.owner);
        // One that brought its own conversation is left out, too.
        let described = repeated(|| store.describe_listed(owner, session)).await?;
        if let Some(info) = described.flatten() {
            push(text, &Line::Session(&info));
            self.exported.insert(session);
            self.current = Some(Current {
                session,
                messages: 0,
                left_out: 0,
                read: VecDeque::new(),
                total: 0,
            });
        }
        Ok(())
    }

    async fn add_messages(&mut self, text: &mut String) -> Result<(), Problem> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let session = current.session;
        if current.read.is_empty() {
            let (store, owner) = (&self.shared.store, &self.owner);
            let page = repeated(|| store.page(owner, session, current.messages, PAGE)).await?;
            (current.read, current.total) = match page {
                Some(page) => (page.messages.into(), page.info.message_count),
                // Deleted meanwhile: the line of its end says how much of it there is.
                None => Default::default(),
            };
        }
        let is_empty = current.read.is_empty();
        while text.len() < PART_BYTES
            && let Some(message) = current.read.pop_front()
        {
            if message.role == Role::System {
                current.left_out += 1;
            } else {
                push(text, &Line::Message(&message));
            }
            current.messages += 1;
        }
        if is_empty || (current.read.is_empty() && current.messages >= current.total) {
            let messages = current.messages - current.left_out;
            self.messages += messages;
            push(text, &Line::SessionEnd { session_id: session, messages });
        } else {
            self.current = Some(current);
        }
        Ok(())
    }

    async fn read_list(&mut self, text: &mut String) -> Result<(), Problem> {
        let (budget, owner) = (self.shared.generations.budget(), &self.owner);
        let after = self.after.as_ref();
        let read = || budget.list(owner, ListOrder::Oldest, after, ENTRIES);
        let page = repeated(|| read().map_err(StoreError::from)).await?;
        let entries = page.map(|page| page.entries).unwrap_or_default();
        if let Some(entry) = entries.last() {
            self.after = Some(entry.position.clone());
        } else {
            let sessions = self.exported.len() as u64;
            push(text, &Line::End { sessions, messages: self.messages });
            self.stage = Stage::Ended;
        }
        self.entries = entries.into();
        Ok(())
    }
}

fn push(text: &mut String, line: &Line<'_>) {
    // The lines have no maps with keys other than text, so this cannot fail.
    text.push_str(&serde_json::to_string(line).unwrap_or_default());
    text.push('\n');
}

/// Repeats a call that Redis does not answer, for a while. Returns none where the session is gone.
async fn repeated<T, Called>(call: impl FnMut() -> Called) -> Result<Option<T>, Problem>
where
    Called: Future<Output = Result<T, StoreError>>,
{
    let is_retryable = |error: &StoreError| matches!(error, StoreError::Redis(_));
    let repeated = Box::pin(retry(Backoff::redis(), call, is_retryable));
    match timeout(RETRY_LIMIT, repeated).await {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(StoreError::Absent)) => Ok(None),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::store_unavailable()),
    }
}
