//! The replies about the models on the hosts that are no generations: descriptions, and which of them are in
//! memory.

use serde_json::{Map, Value};

use super::{Generations, LoadedModel, SubmitError};

impl Generations {
    /// Checks that a host has the model, by what the hosts replied last.
    ///
    /// # Errors
    /// [`SubmitError::ModelNotFound`], [`SubmitError::NoModelHost`].
    pub async fn check_model(&self, model: &str) -> Result<(), SubmitError> {
        Ok(self.fleet.check(model).await?)
    }

    /// Returns the models that are in the memory of any host, by name.
    ///
    /// # Errors
    /// [`SubmitError::NoModelHost`].
    pub async fn loaded_models(&self) -> Result<Vec<LoadedModel>, SubmitError> {
        Ok(self.fleet.loaded().await?)
    }

    /// Returns the description of a model as a host that has it sends it; it may hold paths of that
    /// host.
    ///
    /// # Errors
    /// As [`Generations::check_model`], or the host's.
    pub async fn describe_model(&self, model: &str) -> Result<Map<String, Value>, SubmitError> {
        Ok(self.fleet.show(model).await?)
    }
}
