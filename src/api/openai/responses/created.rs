//! A response whose turn was accepted.

use super::ResponseKey;
use super::object::{ResponseObject, StoredRequest};
use super::stored::StoredResponse;
use crate::api::state::Shared;
use crate::follow::AcceptedTurn;
use crate::http::problem::Problem;
use crate::limits::Subject;

/// A response whose turn was accepted.
pub struct CreatedResponse {
    /// The turn that its id names.
    pub key: ResponseKey,
    /// The fields that it has in every state.
    pub object: ResponseObject,
    /// The turn.
    pub accepted: AcceptedTurn,
}

impl CreatedResponse {
    /// Creates the response of an accepted turn.
    ///
    /// # Errors
    /// Where the turn was accepted before, and cannot be read.
    pub async fn of(
        shared: &Shared,
        subject: &Subject,
        key: ResponseKey,
        request: StoredRequest,
        accepted: AcceptedTurn,
    ) -> Result<Self, Problem> {
        let object = if accepted.submitted.repeated {
            // The response shows when it was created, not when it was asked for again.
            StoredResponse::read(shared, subject, key).await?.into_object()
        } else {
            ResponseObject::new(key, accepted.submitted.generation, request)
        };
        Ok(Self { key, object, accepted })
    }
}
