//! How far a turn is when this replica gets it.

/// The state of a turn when this replica gets it.
pub(super) enum TurnState {
    /// The turn is accepted, and other turns of the session come first.
    Waiting,
    /// The turn runs; an earlier writer may have stored a part of the answer.
    Running {
        /// Replicas that have written the answer, this one included.
        writers: u32,
    },
}
