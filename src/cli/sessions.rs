//! `jarvis sessions`: lists a caller's sessions, or finds those with some words.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, Local};
use jarvis::config::ClientSettings;
use reqwest::{Client, StatusCode};
use serde::Deserialize;

/// The time limit of one page.
const PAGE_LIMIT: Duration = Duration::from_secs(30);

/// A page of the list, as far as it is displayed.
#[derive(Deserialize)]
struct ListPage {
    sessions: Vec<ListedSession>,
    next_cursor: Option<String>,
    #[serde(default)]
    matches: Vec<MatchingMessage>,
}

#[derive(Deserialize)]
struct ListedSession {
    session_id: String,
    title: String,
    updated_at: String,
    #[serde(default)]
    pinned: bool,
    #[serde(default)]
    archived: bool,
}

#[derive(Deserialize)]
struct MatchingMessage {
    session_id: String,
    excerpt: String,
}

/// Prints at most `limit` of the caller's sessions, of those with all of the words where there are some.
///
/// # Errors
/// Where no server replies, or it refuses: only a signed-in caller has a list.
pub async fn list(settings: &ClientSettings, limit: u16, words: &str) -> anyhow::Result<()> {
    let url = settings.server.reachable()?;
    let client = Client::builder().timeout(PAGE_LIMIT).no_proxy().build()?;
    let (mut left, mut cursor) = (usize::from(limit), String::new());
    while left > 0 {
        let mut page = url.join("/api/v1/chat/sessions")?;
        page.query_pairs_mut().append_pair("limit", &left.to_string()).append_pair("q", words);
        if !cursor.is_empty() {
            page.query_pairs_mut().append_pair("cursor", &cursor);
        }
        let mut request = client.get(page);
        if let Some(token) = settings.token() {
            request = request.bearer_auth(token.expose());
        }
        let reply = request.send().await.with_context(|| format!("no server replies at {url}"))?;
        if reply.status() == StatusCode::UNAUTHORIZED {
            bail!("{url} needs a valid token; set JARVIS_TOKEN, as jarvis token prints one");
        }
        if !reply.status().is_success() {
            let problem: serde_json::Value = reply.json().await.unwrap_or_default();
            bail!("{}", problem["detail"].as_str().unwrap_or("the server refused the request"));
        }
        let page: ListPage = reply.json().await.context("the reply is no list")?;
        left = left.saturating_sub(page.sessions.len());
        print(&page);
        let Some(next) = page.next_cursor else { break };
        cursor = next;
    }
    Ok(())
}

fn print(page: &ListPage) {
    let is_terminal = std::io::stdout().is_terminal();
    let mut out = std::io::stdout().lock();
    for ListedSession { session_id, title, updated_at, pinned, archived } in &page.sessions {
        let updated = DateTime::parse_from_rfc3339(updated_at).map_or_else(
            |_| updated_at.clone(),
            |at| at.with_timezone(&Local).format("%F %R").to_string(),
        );
        let flags = match (pinned, archived) {
            (true, _) => " (pinned)",
            (false, true) => " (archived)",
            (false, false) => "",
        };
        // Output that cannot be written has no reader.
        let _ = writeln!(out, "{session_id}  {updated}  {}{flags}", printable(title));
        let excerpt = page.matches.iter().find(|found| found.session_id == *session_id);
        if let Some(MatchingMessage { excerpt, .. }) = excerpt.filter(|_| is_terminal) {
            let _ = writeln!(out, "{:38}\x1b[2m{}\x1b[0m", "", printable(excerpt));
        }
    }
}

/// Returns the text in one line, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}
