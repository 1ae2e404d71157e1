//! The import of sessions from JSON Lines, as an export has them.
//!
//! One session after another is read, stored in batches that nobody sees, and made visible in one
//! step. Its identifier follows from the caller and its content, so that a repeat imports nothing
//! twice. Until its last line a session is in memory, as it will be stored, within a room that all
//! imports share.

use std::time::Duration;

use axum::Json;
use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::bulk_permits::{Bulk, BulkPermits, ClientPace};
use crate::api::native::import_lines::{
    BYTES, ImportError, ImportLine, ImportLines, LineFault, MessageLine, SessionLine, too_large,
};
use crate::api::native::ownership::SignedIn;
use crate::api::problems::in_time;
use crate::api::responses::{InvalidFields, OverBudgetReply, Unavailable};
use crate::api::state::Shared;
use crate::blocking;
use crate::byte_room::RoomPermit;
use crate::generation::SubmitError;
use crate::http::extract::body::check_encoding;
use crate::http::problem::Problem;
use crate::session::model::ToolCall;
use crate::session::store::{ImportStep, ImportedSession, message};
use crate::session::{GenerationId, Message, Owner, Role, SessionId, Status};
use crate::source::ShareKey;

/// The namespace of imported sessions.
const NAMESPACE: Uuid = Uuid::from_u128(0x2c3e_9a71_54d0_4b6f_8e13_70ab_5cd2_e941);
/// How long an import takes, at most.
const LIMIT: Duration = Duration::from_mins(10);
/// Messages of one session, at most.
const SESSION_MESSAGES: usize = 100_000;
/// Bytes that the entry of a message takes in memory without its text, about; in Redis its numbers and
/// its id in the indices of the session take more.
const ENTRY_BYTES: u64 = 32;
const STORED_BYTES: u64 = 160;
/// The room of a session grows in steps of so many bytes.
const ROOM_STEP: u64 = 1 << 20;
/// Attempts to store a session whose messages a failover loses meanwhile.
const ATTEMPTS: u32 = 3;

/// The result of an import.
#[derive(Serialize, ToSchema)]
pub struct ImportReply {
    /// Always "success".
    status: &'static str,
    /// The sessions that are new.
    sessions_imported: u64,
    /// The sessions that were imported before, and are still there.
    sessions_skipped: u64,
    /// The messages of the new sessions.
    messages_imported: u64,
}

/// Imports the sessions of an export, under new identifiers.
#[utoipa::path(
    post, path = "/api/v1/chat/import", tag = "sessions",
    request_body(content = String, content_type = "application/x-ndjson",
        description = "JSON Lines as an export has them, at most 64 MiB"),
    responses(
        (status = 200, body = ImportReply),
        InvalidFields, OverBudgetReply, Unavailable,
    ),
)]
pub async fn import(
    State(shared): State<Shared>,
    SignedIn(owner): SignedIn,
    request: Request,
) -> Result<Json<ImportReply>, Problem> {
    check_encoding(request.headers())?;
    if request.body().size_hint().lower() > BYTES as u64 {
        return Err(too_large());
    }
    let _permit = shared.bulk.take(Bulk::Import, &owner)?;
    let pace = ClientPace::new(shared.settings.read_timeout);
    let lines = ImportLines::new(request.into_body().into_data_stream(), pace);
    let reply = ImportReply::default();
    let mut import = Import { shared, owner, lines, reply, open: None, room: None };
    let late = || {
        let detail = "The import took too long; send it again, and it goes on where it is.";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    };
    timeout(LIMIT, Box::pin(import.run())).await.map_err(|_| late())??;
    Ok(Json(import.reply))
}

impl Default for ImportReply {
    fn default() -> Self {
        Self { status: "success", sessions_imported: 0, sessions_skipped: 0, messages_imported: 0 }
    }
}

/// An import under way.
struct Import {
    shared: Shared,
    owner: Owner,
    lines: ImportLines,
    reply: ImportReply,
    /// The session whose messages are being read.
    open: Option<OpenSession>,
    /// The room of that session.
    room: Option<RoomPermit>,
}

impl Import {
    async fn run(&mut self) -> Result<(), Problem> {
        match self.take_lines().await {
            Ok(()) => Ok(()),
            Err(ImportError::Other(problem)) => Err(problem),
            Err(ImportError::Line(fault)) => {
                let ImportReply { sessions_imported, sessions_skipped, .. } = self.reply;
                Err(fault.at(self.lines.number, sessions_imported + sessions_skipped))
            }
        }
    }

    async fn take_lines(&mut self) -> Result<(), ImportError> {
        let first = self.next_line().await?;
        if !matches!(first, ImportLine::Export) {
            return Err(out_of_order("the first line must be of type export").into());
        }
        loop {
            match self.next_line().await? {
                ImportLine::End if self.open.is_none() => return Ok(()),
                line => self.take(line).await?,
            }
        }
    }

    async fn next_line(&mut self) -> Result<ImportLine, ImportError> {
        if let Some(line) = self.lines.next().await? {
            let (user, bytes) = (ShareKey::of_user(&self.owner.key()), line.len());
            return Ok(blocking::run(Some(user), bytes, move || ImportLine::parse(&line)).await?);
        }
        self.lines.number += 1;
        let msg = "the file ends here, and its last line, of type end, is missing";
        Err(LineFault::new("", "cut_off", msg).into())
    }

    async fn take(&mut self, line: ImportLine) -> Result<(), ImportError> {
        match (line, self.open.take()) {
            (ImportLine::Session(session), None) => self.open = Some(OpenSession::new(session)),
            (ImportLine::Message(message), Some(mut open)) => {
                open.add(*message, &self.owner, self.shared.store.session_bytes())?;
                self.make_room(open.memory())?;
                self.open = Some(open);
            }
            (ImportLine::SessionEnd(messages), Some(open)) if messages == open.count() => {
                self.store(open).await?;
            }
            (ImportLine::SessionEnd(_), Some(open)) => {
                let msg = format!("does not match the {} messages before it", open.count());
                return Err(LineFault::new("messages", "count_differs", msg).into());
            }
            _ => return Err(out_of_order("this type of line is not expected here").into()),
        }
        Ok(())
    }

    /// Takes the room of a session that has grown to so many bytes.
    fn make_room(&mut self, bytes: u64) -> Result<(), Problem> {
        let held = self.room.as_ref().map_or(0, RoomPermit::bytes) as u64;
        if bytes <= held {
            return Ok(());
        }
        let wanted = usize::try_from(bytes.next_multiple_of(ROOM_STEP)).unwrap_or(usize::MAX);
        self.room = match self.room.take() {
            Some(room) => room.resize(wanted),
            None => self.shared.bulk.import_room(wanted),
        };
        if self.room.is_none() {
            let problem = BulkPermits::no_import_room();
            return Err(at_line(problem, self.lines.number));
        }
        Ok(())
    }

    /// Stores a session, unless it is there.
    async fn store(&mut self, open: OpenSession) -> Result<(), Problem> {
        let count = open.count();
        let bytes = open.bytes + STORED_BYTES * count;
        let imported = open.finish(&self.owner, &self.shared.settings.default_model);
        // Held until the session is stored.
        let _room = self.room.take();
        let (shared, owner) = (&self.shared, &self.owner);
        let store = &shared.store;
        let number = self.lines.number;
        let failed = |error: SubmitError| at_line(error.into(), number);
        let begun = in_time(store.import_messages(owner, &imported, None)).await;
        let budget = shared.generations.budget();
        let mut stored = match begun.map_err(|problem| at_line(problem, number))? {
            ImportStep::Exists => {
                // The import that stored it may have ended before it was recorded.
                budget.record("", imported.session).await;
                self.reply.sessions_skipped += 1;
                return Ok(());
            }
            ImportStep::Staged(stored) => stored,
        };
        // Where the import breaks off, its messages and their room stay for a repeat.
        let room = budget.reserve_import(owner, imported.session, bytes).await;
        room.map_err(|error| failed(error.into()))?;
        let mut attempts = 0;
        loop {
            let step = if stored < imported.entries.len() {
                store.import_messages(owner, &imported, Some(stored)).await
            } else {
                store.import_commit(owner, &imported).await
            };
            match step.map_err(|error| failed(error.into()))? {
                ImportStep::Exists => break,
                ImportStep::Staged(now) => {
                    attempts += u32::from(now <= stored);
                    if attempts > ATTEMPTS {
                        return Err(at_line(Problem::store_unavailable(), number));
                    }
                    stored = now;
                }
            }
        }
        budget.record("", imported.session).await;
        self.reply.sessions_imported += 1;
        self.reply.messages_imported += count;
        Ok(())
    }
}

/// Names the line in a problem that is not the line's fault.
fn at_line(problem: Problem, number: usize) -> Problem {
    let detail = format!(
        "{} The session that ends at line {number} is not imported; those before it are.",
        problem.detail
    );
    Problem { detail, ..problem }
}

fn out_of_order(msg: &'static str) -> LineFault {
    LineFault::new("type", "out_of_order", msg)
}

/// A session whose messages are being read.
struct OpenSession {
    line: SessionLine,
    created_at: DateTime<Utc>,
    first_question: Option<String>,
    last_model: Option<String>,
    /// The messages as they are stored, but for their ids, which follow from the whole content.
    entries: Vec<String>,
    bytes: u64,
    digest: Sha256,
}

impl OpenSession {
    fn new(line: SessionLine) -> Self {
        let mut open = Self {
            created_at: line.created_at.unwrap_or_else(Utc::now),
            first_question: None,
            last_model: None,
            entries: Vec::new(),
            bytes: 0,
            digest: Sha256::new(),
            line,
        };
        let SessionLine { title, model, created_at, .. } = &open.line;
        let created_at = created_at.map(|time| time.to_rfc3339());
        let parts = [title.clone(), model.clone(), created_at];
        for part in parts {
            hash(&mut open.digest, part.as_deref());
        }
        open
    }

    fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Returns the bytes of memory that the messages take.
    fn memory(&self) -> u64 {
        self.bytes + self.count() * ENTRY_BYTES
    }

    /// Adds a message to a session that may take so many bytes.
    fn add(&mut self, line: MessageLine, owner: &Owner, bytes_limit: u64) -> Result<(), LineFault> {
        let MessageLine { role, content, thinking, timestamp, model, .. } = &line;
        let time = timestamp.map(|time| time.to_rfc3339());
        let role_name = format!("{role:?}");
        let parts =
            [Some(&role_name), Some(content), thinking.as_ref(), time.as_ref(), model.as_ref()];
        for part in parts {
            hash(&mut self.digest, part.map(String::as_str));
        }
        for ToolCall { id, name, arguments } in &line.tool_calls {
            for part in [id, name, arguments] {
                hash(&mut self.digest, Some(part));
            }
        }
        if *role == Role::User && self.first_question.is_none() {
            self.first_question = Some(content.chars().take(200).collect());
        }
        if model.is_some() {
            self.last_model.clone_from(model);
        }
        let is_answer = *role == Role::Assistant;
        let timestamp = timestamp.unwrap_or(self.created_at);
        let message = Message {
            id: Uuid::nil(),
            generation_id: is_answer.then_some(GenerationId(Uuid::nil())),
            content: line.content,
            thinking: line.thinking,
            user_id: (line.role == Role::User).then(|| owner.user_id().to_owned()),
            model: line.model,
            status: is_answer.then(|| line.status.unwrap_or(Status::Complete)),
            finish_reason: line.finish_reason,
            usage: line.usage,
            tool_calls: line.tool_calls,
            tool_call_id: line.tool_call_id,
            tool_name: line.tool_name,
            ..message(line.role, timestamp)
        };
        let Some(mut entry) = ImportedSession::entry(&message) else {
            return Err(LineFault::new("thinking", "value_error", "must not hold U+0003"));
        };
        if self.entries.len() >= SESSION_MESSAGES {
            let msg = format!("a session has at most {SESSION_MESSAGES} messages in an import");
            return Err(LineFault::new("messages", "too_long", msg));
        }
        self.bytes += entry.len() as u64;
        if self.bytes > bytes_limit {
            let msg = format!("a session has at most {bytes_limit} bytes of messages as stored");
            return Err(LineFault::new("content", "too_long", msg));
        }
        entry.shrink_to_fit();
        self.entries.push(entry);
        Ok(())
    }

    /// Returns the session as it is stored.
    fn finish(self, owner: &Owner, default_model: &str) -> ImportedSession {
        let digest = self.digest.finalize();
        let mut name = owner.key().into_bytes();
        name.push(b'\n');
        name.extend_from_slice(&digest);
        let session = SessionId(Uuid::new_v5(&NAMESPACE, &name));
        let title = self.line.title.or(self.first_question).unwrap_or_default();
        let model = self.line.model.or(self.last_model).unwrap_or_else(|| default_model.to_owned());
        let mut imported = ImportedSession {
            session,
            title,
            model,
            created_at: self.created_at,
            pinned: self.line.pinned,
            archived: self.line.archived,
            entries: self.entries,
        };
        imported.name_messages();
        imported
    }
}

/// Adds a part to a digest, so that no two lists of parts have the same.
fn hash(digest: &mut Sha256, part: Option<&str>) {
    let length = part.map_or(u64::MAX, |part| part.len() as u64);
    digest.update(length.to_be_bytes());
    digest.update(part.unwrap_or_default().as_bytes());
}
