//! Reads the bodies of requests about conversations. Pure.

use serde_json::{Map, Value};

use super::super::body;
use super::super::metadata;
use super::super::params::{Params, UNSUPPORTED_VALUE};
use super::super::responses::input::{self, InputItem};
use super::schema::ITEMS_AT_ONCE;
use crate::http::extract::fields::FieldError;
use crate::http::extract::object::Object;
use crate::session::image::RequestImages;

/// The parameters of a request about a conversation.
pub struct ConversationRequest {
    /// The metadata of the conversation: texts by names.
    pub metadata: Map<String, Value>,
    /// The items that are added to it.
    pub items: Vec<InputItem>,
}

impl ConversationRequest {
    /// Reads a request for a new conversation.
    ///
    /// # Errors
    /// The first parameter that is not valid, or not known.
    pub fn of_create(object: &Object, _text: &[u8]) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        let metadata = metadata::read(&mut params)?;
        let items = match params.list("items")? {
            None | Some([]) => Vec::new(),
            Some(list) => read_items(&params, list)?,
        };
        params.finish()?;
        Ok(Self { metadata, items })
    }

    /// Reads a request that replaces the metadata.
    ///
    /// # Errors
    /// The first parameter that is not valid, or not known.
    pub fn of_update(object: &Object, _text: &[u8]) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        if !parameters.contains_key("metadata") {
            // Null takes all pairs away.
            params.required("metadata")?;
        }
        let metadata = metadata::read(&mut params)?;
        params.finish()?;
        Ok(Self { metadata, items: Vec::new() })
    }

    /// Reads a request that adds items.
    ///
    /// # Errors
    /// The first parameter that is not valid, or not known.
    pub fn of_items(object: &Object, _text: &[u8]) -> Result<Self, FieldError> {
        let parameters = body::parameters(object)?;
        let mut params = Params::of_request(&parameters);
        params.required("items")?;
        let list = params.list("items")?.unwrap_or_default();
        let items = read_items(&params, list)?;
        params.finish()?;
        Ok(Self { metadata: Map::new(), items })
    }
}

fn read_items(params: &Params<'_>, list: &[Value]) -> Result<Vec<InputItem>, FieldError> {
    let mut images = RequestImages::default();
    let items = input::read_items(params, "items", list, ITEMS_AT_ONCE, &mut images)?;
    if images.into_images().is_empty() {
        return Ok(items);
    }
    let msg = "must have no images outside of the input of a response";
    Err(params.refuse("items", UNSUPPORTED_VALUE, msg))
}
