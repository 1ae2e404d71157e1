//! The result of a check.

/// The result of a check.
pub struct Outcome {
    /// Whether it has passed.
    pub ok: bool,
    /// The subject of the check, in a few words.
    pub text: String,
}
