//! The held bytes of one answer.

use crate::session::model::GenerationId;
use crate::session::reasoning::Shape;

/// Bytes of one answer, with the reasoning before it, from an offset on.
#[derive(Clone, Debug)]
pub struct AnswerText {
    /// The generation of the answer.
    pub generation: GenerationId,
    /// Bytes of the answer before [`AnswerText::text`].
    pub base: u64,
    /// The held bytes.
    pub text: String,
    /// The shape of the text, right only where its beginning is held.
    pub(super) shape: Shape,
}

impl AnswerText {
    /// Creates the text of an answer from offset `base` on.
    pub fn new(generation: GenerationId, base: u64, text: String) -> Self {
        let shape = Shape::of(&text);
        Self { generation, base, text, shape }
    }

    /// Returns the answer without its reasoning, where the beginning is held.
    pub fn answer(&self) -> &str {
        self.shape.answer(&self.text)
    }

    /// Returns the reasoning, where there is any and the beginning is held.
    pub fn reasoning(&self) -> Option<&str> {
        self.shape.reasoning(&self.text)
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.text.len() as u64
    }

    pub(super) fn cut(&mut self, end: u64) {
        let keep = usize::try_from(end.saturating_sub(self.base)).unwrap_or(usize::MAX);
        if keep < self.text.len() {
            self.text.truncate(self.text.floor_char_boundary(keep));
            self.shape = Shape::of(&self.text);
        }
    }

    pub(super) fn grow(&mut self, fresh: &str) {
        let known = self.text.len();
        self.text.push_str(fresh);
        self.shape = self.shape.grown(&self.text, known);
    }
}
