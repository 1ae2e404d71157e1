//! What a check found.

/// How a check went.
pub struct Outcome {
    /// Whether all is well.
    pub ok: bool,
    /// What was checked, in a few words.
    pub text: String,
}
