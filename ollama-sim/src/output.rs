//! Turns pieces into frames: lines as they come, or one object at the end.

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use crate::dialect::Writer;
use crate::engine::Piece;
use crate::fault::Dialect;
use crate::script::Part;
use crate::stream::Frame;
use crate::wire::{Figures, Shape, Texts, calls_line, now};

/// The output of one generation.
pub struct Output<'a> {
    shape: Shape,
    stream: bool,
    model: &'a str,
    frames: &'a UnboundedSender<Frame>,
    split: bool,
    dialect: Option<Writer>,
    pieces: u64,
    answer: String,
    reasoning: String,
    calls: Vec<Value>,
}

impl<'a> Output<'a> {
    /// Creates an output of lines of `shape` for `model`, or of one object where `stream` is false.
    pub fn new(
        shape: Shape,
        stream: bool,
        model: &'a str,
        frames: &'a UnboundedSender<Frame>,
    ) -> Self {
        Self {
            shape,
            stream,
            model,
            frames,
            split: false,
            dialect: None,
            pieces: 0,
            answer: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
        }
    }

    /// Sends every later line in several writes.
    pub fn split(&mut self) {
        self.split = true;
    }

    /// Writes every later line as another server would.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = Some(Writer::new(dialect));
    }

    /// Returns how many pieces were written so far.
    pub fn pieces(&self) -> u64 {
        self.pieces
    }

    /// Writes pieces.
    pub fn pieces_of(&mut self, pieces: &[Piece]) {
        if pieces.is_empty() {
            return;
        }
        self.pieces += pieces.len() as u64;
        if !self.stream {
            for piece in pieces {
                match piece.part {
                    Part::Reasoning => self.reasoning.push_str(&piece.text),
                    Part::Answer | Part::Mark => self.answer.push_str(&piece.text),
                }
            }
            return;
        }
        let at = now();
        let mut lines = Vec::with_capacity(pieces.len() * 160);
        for piece in pieces {
            let is_reasoning = piece.part == Part::Reasoning;
            self.shape.piece(&mut lines, self.model, &at, &piece.text, is_reasoning);
        }
        if let Some(writer) = &mut self.dialect {
            lines = writer.write(&lines);
        }
        self.send(lines);
    }

    /// Writes calls of tools.
    pub fn calls_of(&mut self, calls: &[Value]) {
        if calls.is_empty() {
            return;
        }
        if !self.stream {
            self.calls = calls.to_vec();
            return;
        }
        let mut line = Vec::new();
        calls_line(&mut line, self.model, calls);
        self.send(line);
    }

    /// Writes one line that is not JSON.
    pub fn garbage(&self) {
        if self.stream {
            self.send(b"{\"model\": garbage, <html>\n".to_vec());
        }
    }

    /// Sends everything written so far to the socket before anything else.
    pub fn flush(&self) {
        if self.stream {
            // Without a reader the generation ends anyway.
            let _ = self.frames.send(Frame::Flush);
        }
    }

    /// Returns the last line, or the only object.
    pub fn last(&mut self, reason: &str, figures: Figures) -> Option<Frame> {
        let line = self.shape.last(self.model, reason, self.texts(), figures);
        if self.stream
            && let Some(writer) = &mut self.dialect
        {
            return Some(Frame::Data(writer.write(line.as_bytes()).into()));
        }
        if self.split {
            self.send(line.into_bytes());
            return None;
        }
        Some(Frame::Data(line.into()))
    }

    /// Ends without a last line; the one object has `done: false`.
    pub fn open_end(&self) -> Option<Frame> {
        if self.stream {
            return None;
        }
        let object = self.shape.not_done(self.model, self.texts());
        Some(Frame::Data(object.into()))
    }

    fn texts(&self) -> Texts<'_> {
        Texts { answer: &self.answer, reasoning: &self.reasoning, calls: &self.calls }
    }

    fn send(&self, lines: Vec<u8>) {
        // An error means that the client has left, which `run` notices by itself.
        if !self.split {
            let _ = self.frames.send(Frame::Data(lines.into()));
            return;
        }
        let mut rest = &lines[..];
        let mut length = 1 + usize::try_from(self.pieces % 5).unwrap_or(0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(length.min(rest.len()));
            let _ = self.frames.send(Frame::Data(now.to_vec().into()));
            let _ = self.frames.send(Frame::Flush);
            rest = later;
            // The sizes 1, 3, 5, 7, 2, 4, 6 … cut every character at every byte.
            length = 1 + (length + 1) % 7;
        }
    }
}
