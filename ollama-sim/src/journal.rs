//! The last requests, as they came, and how they ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::sync::lock;
use crate::wire::now;

const MOST_ENTRIES: usize = 1_000;
const MOST_BYTES: usize = 128 << 20;

/// One request to chat or generate.
pub struct Entry {
    number: u64,
    at: String,
    since: Instant,
    path: &'static str,
    body: Bytes,
    end: Mutex<End>,
}

#[derive(Clone, Debug, Default)]
struct End {
    outcome: Option<String>,
    prompt: Option<Arc<str>>,
    prompt_tokens: usize,
    evaluated: Option<usize>,
    tokens: usize,
    pieces: u64,
    milliseconds: f64,
}

impl Entry {
    /// Records the prompt that the model saw.
    pub fn prompt(&self, prompt: Arc<str>) {
        lock(&self.end).prompt = Some(prompt);
    }

    /// Records the figures of what was generated so far.
    pub fn progress(&self, prompt_tokens: usize, tokens: usize, pieces: u64) {
        let mut end = lock(&self.end);
        end.prompt_tokens = prompt_tokens;
        end.tokens = tokens;
        end.pieces = pieces;
    }

    /// Records the tokens of the prompt that the engine did not have in its cache, where it has one.
    pub fn evaluated(&self, tokens: Option<usize>) {
        lock(&self.end).evaluated = tokens;
    }

    /// Sets how the request ended, and returns whether it had not ended before: only the first call
    /// counts.
    pub fn end(&self, outcome: impl Into<String>) -> bool {
        let mut end = lock(&self.end);
        let is_first = end.outcome.is_none();
        if is_first {
            end.outcome = Some(outcome.into());
            end.milliseconds = self.since.elapsed().as_secs_f64() * 1000.0;
        }
        is_first
    }

    fn show(&self) -> Value {
        let request: Value = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        let end = lock(&self.end).clone();
        json!({
            "number": self.number,
            "at": self.at,
            "path": self.path,
            "model": request.get("model"),
            "messages": request.get("messages"),
            "prompt": request.get("prompt"),
            "options": request.get("options"),
            "request": request,
            "rendered": end.prompt.as_deref(),
            "outcome": end.outcome.as_deref().unwrap_or("running"),
            "prompt_tokens": end.prompt_tokens,
            "evaluated": end.evaluated,
            "tokens": end.tokens,
            "pieces": end.pieces,
            "milliseconds": end.milliseconds,
        })
    }
}

/// The last thousand requests, or fewer where they are large.
#[derive(Default)]
pub struct Journal {
    entries: Mutex<VecDeque<Arc<Entry>>>,
    number: AtomicU64,
}

impl Journal {
    /// Adds a request.
    pub fn open(&self, path: &'static str, body: &Bytes) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            number: self.number.fetch_add(1, Ordering::Relaxed) + 1,
            at: now(),
            since: Instant::now(),
            path,
            body: body.clone(),
            end: Mutex::default(),
        });
        let mut entries = lock(&self.entries);
        entries.push_back(Arc::clone(&entry));
        let mut size: usize = entries.iter().map(|e| e.body.len()).sum();
        while entries.len() > MOST_ENTRIES || (size > MOST_BYTES && entries.len() > 1) {
            size -= entries.pop_front().map_or(0, |e| e.body.len());
        }
        entry
    }

    /// Returns all entries, oldest first.
    pub fn list(&self) -> Vec<Value> {
        let entries: Vec<_> = lock(&self.entries).iter().cloned().collect();
        entries.iter().map(|entry| entry.show()).collect()
    }

    /// Removes all entries.
    pub fn clear(&self) {
        lock(&self.entries).clear();
    }
}
