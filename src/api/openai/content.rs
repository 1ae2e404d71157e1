//! Reads the content of a message: a text, or a list of parts. Pure.

use serde_json::Value;

use super::params::{INVALID_TYPE, INVALID_VALUE, Params, UNSUPPORTED_VALUE, error};
use crate::http::extract::fields::FieldError;
use crate::session::ImageRef;
use crate::session::image::RequestImages;

/// The parts that a content may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// `text` of chat completions, and also `image_url`.
    Chat,
    /// `input_text` of responses, and also `input_image`.
    Input,
    /// `output_text` of responses, as an earlier reply had it.
    Output,
}

impl Parts {
    fn text(self) -> &'static str {
        match self {
            Self::Chat => "text",
            Self::Input => "input_text",
            Self::Output => "output_text",
        }
    }

    fn image(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("image_url"),
            Self::Input => Some("input_image"),
            Self::Output => None,
        }
    }
}

/// The images of a request, and of its message that is being read.
pub struct Images<'a> {
    /// Those of the request so far.
    pub of_request: &'a mut RequestImages,
    /// Those of the message so far.
    pub of_message: &'a mut Vec<ImageRef>,
}

/// Reads a content, whose texts are joined by line breaks. Its images are added to `images`, where it
/// may have any.
///
/// # Errors
/// The first part that is not valid.
pub fn read(
    value: &Value,
    path: &str,
    kinds: Parts,
    mut images: Option<Images<'_>>,
) -> Result<String, FieldError> {
    let parts = match value {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) if !parts.is_empty() => parts,
        Value::Array(_) => return Err(error(path, INVALID_VALUE, "must have at least one part")),
        _ => return Err(error(path, INVALID_TYPE, "must be a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let mut params = Params::of_value(part, &format!("{path}[{at}]"))?;
        let kind = params.required_text("type")?;
        if kind == kinds.text() {
            texts.push(params.required_text("text")?);
        } else if let Some(images) = &mut images
            && kinds.image() == Some(kind)
        {
            read_image(&mut params, kinds, images)?;
        } else {
            let image = kinds.image().filter(|_| images.is_some());
            let image = image.map(|image| format!(" and {image}")).unwrap_or_default();
            let msg = format!("is supported as {}{image}", kinds.text());
            return Err(params.refuse("type", UNSUPPORTED_VALUE, msg));
        }
        if kinds == Parts::Output {
            let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
            params.only("annotations", "[]", is_empty)?;
            params.only("logprobs", "[]", is_empty)?;
            // The text as an object, as `parse` and `stream` of OpenAI's packages add it.
            params.ignore(&["parsed"]);
        } else {
            params.unsupported(&["prompt_cache_breakpoint"])?;
        }
        params.finish()?;
    }
    Ok(texts.join("\n"))
}

/// Reads an image: chat completions have its URL in an object, responses beside the type.
fn read_image(
    params: &mut Params<'_>,
    kinds: Parts,
    images: &mut Images<'_>,
) -> Result<(), FieldError> {
    // How a model takes an image apart is the model's own matter.
    if kinds == Parts::Input {
        params.unsupported(&["file_id"])?;
        params.text("detail")?;
        return read_url(params, "image_url", images);
    }
    let path = params.path_of("image_url");
    let mut image = Params::of_value(params.required("image_url")?, &path)?;
    read_url(&mut image, "url", images)?;
    image.text("detail")?;
    image.finish()
}

/// Reads the image of a data URL. No other URL is fetched.
fn read_url(
    params: &mut Params<'_>,
    name: &'static str,
    images: &mut Images<'_>,
) -> Result<(), FieldError> {
    let url = params.required_text(name)?;
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(','));
    let base64 = data.filter(|(kind, _)| {
        let (media_type, form) = kind.rsplit_once(';').unwrap_or((kind, ""));
        media_type.starts_with("image/") && form.eq_ignore_ascii_case("base64")
    });
    let Some((_, base64)) = base64 else {
        let msg = "is supported as a data URL, data:image/png;base64,…: no other URL is fetched";
        return Err(params.refuse(name, UNSUPPORTED_VALUE, msg));
    };
    let added = images.of_request.add(base64, images.of_message);
    added.map_err(|fault| params.refuse(name, INVALID_VALUE, fault.to_string()))
}
