//! The faults that can be injected, and how they are written.

use std::fmt;
use std::str::FromStr;

/// The pieces before a fault in mid-stream, where the fault names no number.
const DEFAULT_PIECES: u64 = 5;
/// The milliseconds by which `slow` delays the first token, where the fault names no number.
const DEFAULT_SLOW_MS: u64 = 5_000;

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The connection is closed without a response.
    Refuse,
    /// 503, as with a full queue.
    Busy,
    /// An error status.
    Status,
    /// The request gets no answer, ever; it holds a slot until the client leaves.
    Hang,
    /// The stream stops, and stays open.
    Stall,
    /// The connection is closed in mid-stream, without the terminating chunk.
    Cut,
    /// The runner dies: an error line, then a clean end.
    Error,
    /// A clean end without a last line.
    End,
    /// A late first token.
    Slow,
    /// One line that is not JSON; the stream goes on.
    Garbage,
    /// Every line in several writes, cut anywhere.
    Split,
    /// Every line as another server would write it.
    Dialect(Dialect),
    /// `done_reason` load instead of an answer.
    Load,
    /// `done_reason` unload instead of an answer.
    Unload,
    /// A list of models with entries that are none, and others that lack nearly everything.
    Odd,
}

/// The ways in which servers that are not quite Ollama write lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Absent fields are null, and so are the figures.
    Null,
    /// Figures are floats and texts, flags are texts.
    Loose,
    /// A byte order mark, CRLF, and blank lines between the lines.
    Bom,
    /// Only ASCII, and the halves of surrogate pairs in lines of their own.
    Halves,
    /// Half a surrogate pair before the answer, and one after it.
    Lone,
    /// The last line has a `done_reason` and no `done`.
    Undone,
}

/// A fault and its one figure: the pieces before it, milliseconds (`slow`) or the status
/// (`status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub kind: FaultKind,
    /// The figure.
    pub at: u64,
}

impl Fault {
    fn new(kind: FaultKind, at: Option<u64>) -> Self {
        let otherwise = match kind {
            FaultKind::Slow => DEFAULT_SLOW_MS,
            FaultKind::Status => 500,
            _ => DEFAULT_PIECES,
        };
        Self { kind, at: at.unwrap_or(otherwise) }
    }

    /// Returns how many pieces come before the fault, where it strikes between pieces.
    pub fn after_pieces(self) -> Option<u64> {
        matches!(
            self.kind,
            FaultKind::Stall
                | FaultKind::Cut
                | FaultKind::Error
                | FaultKind::End
                | FaultKind::Garbage
        )
        .then_some(self.at)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Dialect(dialect) => format!("{dialect:?}"),
            kind => format!("{kind:?}"),
        };
        write!(f, "{}@{}", kind.to_lowercase(), self.at)
    }
}

/// The error for a text that names no fault.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownFault(String);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such fault: {:?}", self.0)
    }
}

impl std::error::Error for UnknownFault {}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        let (name, figure) = match text.split_once('@') {
            Some((name, figure)) => (name, Some(figure.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        let kind = match name {
            "refuse" => FaultKind::Refuse,
            "busy" => FaultKind::Busy,
            "status" => FaultKind::Status,
            "hang" => FaultKind::Hang,
            "stall" => FaultKind::Stall,
            "cut" => FaultKind::Cut,
            "error" => FaultKind::Error,
            "end" => FaultKind::End,
            "slow" => FaultKind::Slow,
            "garbage" => FaultKind::Garbage,
            "split" => FaultKind::Split,
            "null" => FaultKind::Dialect(Dialect::Null),
            "loose" => FaultKind::Dialect(Dialect::Loose),
            "bom" => FaultKind::Dialect(Dialect::Bom),
            "halves" => FaultKind::Dialect(Dialect::Halves),
            "lone" => FaultKind::Dialect(Dialect::Lone),
            "undone" => FaultKind::Dialect(Dialect::Undone),
            "load" => FaultKind::Load,
            "unload" => FaultKind::Unload,
            "odd" => FaultKind::Odd,
            _ => return Err(unknown()),
        };
        Ok(Self::new(kind, figure))
    }
}
