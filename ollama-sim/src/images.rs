//! The images of a request: a prompt refers to them by numbers, and an answer may name them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// The directive by which a message requests an answer that names the images.
const DIRECTIVE: &str = "[[images]]";

/// Returns how a prompt refers to an image.
pub fn mark(number: usize) -> String {
    format!("[img-{number}]")
}

/// Reads images from base64 into the digests of their bytes.
pub fn digests<'a>(images: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, ApiError> {
    let read = |text: &String| {
        let bytes = STANDARD.decode(text).map_err(|error| {
            ApiError::BadRequest(format!("illegal base64 data in images: {error}"))
        })?;
        let digest = Sha256::digest(bytes);
        Ok(digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
    };
    images.into_iter().map(read).collect()
}

/// Checks that a prompt refers to no image that there is not, as the runner does.
pub fn check(prompt: &str, images: usize) -> Result<(), ApiError> {
    let numbers = prompt.split("[img-").skip(1);
    let numbers = numbers.filter_map(|rest| rest.split_once(']')?.0.parse::<usize>().ok());
    match numbers.max().filter(|largest| *largest >= images) {
        None => Ok(()),
        Some(largest) => Err(ApiError::Internal(format!("invalid image index: {largest}"))),
    }
}

/// Returns the answer that names the images, in their order, where the message requests it.
pub fn answer(message: &str, digests: &[String]) -> Option<String> {
    let text = format!("{} images: {}", digests.len(), digests.join(" and then "));
    message.contains(DIRECTIVE).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_images_and_a_prompt_refers_only_to_those_that_are_there() {
        let digests = digests([&"aGk=".to_owned()]).expect("base64");
        let hi = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";
        assert_eq!(answer("[[images]]", &digests), Some(format!("1 images: {hi}")));
        assert_eq!(answer("what is it?", &digests), None);
        assert!(super::digests([&"?".to_owned()]).is_err());
        assert!(check("[img-0] what", 1).is_ok());
        assert!(check("[img-0][img-1] what", 1).is_err());
    }
}
