//! Images of messages: their forms, their bounds, and the names by which messages refer to them.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::digest::sha256_hex;

/// Images of one message, at most.
pub const MESSAGE_IMAGES: usize = 4;
/// Images of one request, at most: those of the conversation that it brings count, too.
pub const REQUEST_IMAGES: usize = 16;
/// Bytes of all images of one request, at most.
pub const REQUEST_IMAGE_BYTES: usize = 4 << 20;

/// The form of clients: the standard alphabet, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageFormat {
    /// PNG.
    #[serde(rename = "image/png")]
    Png,
    /// JPEG.
    #[serde(rename = "image/jpeg")]
    Jpeg,
    /// WebP.
    #[serde(rename = "image/webp")]
    Webp,
    /// GIF.
    #[serde(rename = "image/gif")]
    Gif,
}

impl ImageFormat {
    /// Returns the format that the first bytes of an image show; none where they are of no image.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', _, ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, _, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', _, ..] => Some(Self::Webp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', _, ..] => Some(Self::Gif),
            _ => None,
        }
    }

    /// Returns the media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Gif => "image/gif",
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Png => 'p',
            Self::Jpeg => 'j',
            Self::Webp => 'w',
            Self::Gif => 'g',
        }
    }
}

/// An image as a message names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRef {
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub digest: String,
    /// The number of its bytes.
    pub bytes: u64,
    /// The format.
    pub media_type: ImageFormat,
}

/// [`ImageRef`] in the header of a stored message: one text, in which the digest comes first.
pub(super) struct StoredImage(pub(super) ImageRef);

impl Serialize for StoredImage {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let ImageRef { digest, bytes, media_type } = &self.0;
        to.collect_str(&format_args!("{digest} {bytes} {}", media_type.letter()))
    }
}

impl<'de> Deserialize<'de> for StoredImage {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for StoredImage {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unreadable = "an image that this version does not store";
        let mut words = text.split(' ');
        let (Some(digest), Some(bytes), Some(format)) = (words.next(), words.next(), words.next())
        else {
            return Err(unreadable);
        };
        let media_type = match format {
            "p" => ImageFormat::Png,
            "j" => ImageFormat::Jpeg,
            "w" => ImageFormat::Webp,
            "g" => ImageFormat::Gif,
            _ => return Err(unreadable),
        };
        let bytes = bytes.parse().map_err(|_| unreadable)?;
        Ok(Self(ImageRef { digest: digest.to_owned(), bytes, media_type }))
    }
}

/// An image with its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// The name by which messages refer to it.
    pub reference: ImageRef,
    /// The bytes.
    pub data: Bytes,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(f)
    }
}

/// Why an image is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageFault {
    /// The text is not base64.
    #[error("must be base64, in the standard alphabet")]
    NotBase64,
    /// The bytes are of no image.
    #[error("must be a PNG, JPEG, WebP or GIF image")]
    UnknownFormat,
    /// The message has too many images.
    #[error("must have at most {MESSAGE_IMAGES} images in one message")]
    TooManyInMessage,
    /// The request has too many images.
    #[error("must have at most {REQUEST_IMAGES} images in one request")]
    TooManyInRequest,
    /// The images have too many bytes.
    #[error("must have at most 4 MiB of images in one request, after base64 is decoded")]
    TooLarge,
}

/// The images of one request, within their bounds.
#[derive(Clone, Debug, Default)]
pub struct RequestImages {
    /// Each image once.
    images: Vec<Image>,
    count: usize,
    bytes: usize,
}

impl RequestImages {
    /// Reads one image from base64. `of_message` are the images of its message so far, to which it is
    /// added.
    ///
    /// # Errors
    /// Where it is no image, or one too many, or too large.
    pub fn add(&mut self, text: &str, of_message: &mut Vec<ImageRef>) -> Result<(), ImageFault> {
        if of_message.len() == MESSAGE_IMAGES {
            return Err(ImageFault::TooManyInMessage);
        }
        if self.count == REQUEST_IMAGES {
            return Err(ImageFault::TooManyInRequest);
        }
        // The text is longer than what it decodes to.
        let room = REQUEST_IMAGE_BYTES - self.bytes;
        if text.len() / 4 * 3 > room + 3 {
            return Err(ImageFault::TooLarge);
        }
        let data = BASE64.decode(text).map_err(|_| ImageFault::NotBase64)?;
        if data.len() > room {
            return Err(ImageFault::TooLarge);
        }
        let media_type = ImageFormat::of(&data).ok_or(ImageFault::UnknownFormat)?;
        self.count += 1;
        self.bytes += data.len();
        let digest = sha256_hex(&data);
        let reference = ImageRef { digest, bytes: data.len() as u64, media_type };
        of_message.push(reference.clone());
        self.keep(Image { reference, data: data.into() });
        Ok(())
    }

    /// Checks that images which are stored fit beside these, before they are read.
    ///
    /// # Errors
    /// Where they are too many, or too large.
    pub fn admits_stored(&self, images: &[ImageRef]) -> Result<(), ImageFault> {
        if images.len() > REQUEST_IMAGES - self.count {
            return Err(ImageFault::TooManyInRequest);
        }
        let bytes: u64 = images.iter().map(|image| image.bytes).sum();
        if bytes > (REQUEST_IMAGE_BYTES - self.bytes) as u64 {
            return Err(ImageFault::TooLarge);
        }
        Ok(())
    }

    /// Adds an image that is stored, and that the conversation of the request names.
    ///
    /// # Errors
    /// Where it is one too many, or too large.
    pub fn add_stored(&mut self, image: Image) -> Result<(), ImageFault> {
        if self.count == REQUEST_IMAGES {
            return Err(ImageFault::TooManyInRequest);
        }
        if image.data.len() > REQUEST_IMAGE_BYTES - self.bytes {
            return Err(ImageFault::TooLarge);
        }
        self.count += 1;
        self.bytes += image.data.len();
        self.keep(image);
        Ok(())
    }

    fn keep(&mut self, image: Image) {
        let is_same = |kept: &Image| kept.reference.digest == image.reference.digest;
        if !self.images.iter().any(is_same) {
            self.images.push(image);
        }
    }

    /// Returns the images so far, each once.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Returns the images, each once.
    pub fn into_images(self) -> Vec<Image> {
        self.images
    }
}

/// Returns an image in base64, as model hosts take it.
pub fn to_base64(data: &[u8]) -> String {
    BASE64.encode(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(size: usize) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        bytes.resize(size, 7);
        bytes
    }

    fn add(images: &mut RequestImages, bytes: &[u8]) -> Result<ImageRef, ImageFault> {
        let mut of_message = Vec::new();
        images.add(&to_base64(bytes), &mut of_message)?;
        Ok(of_message.remove(0))
    }

    #[test]
    fn an_image_is_known_by_its_first_bytes_and_nothing_else_is_one() {
        for (bytes, format) in [
            (png(9), ImageFormat::Png),
            (b"\xff\xd8\xff\xe0".to_vec(), ImageFormat::Jpeg),
            (b"RIFF\0\0\0\0WEBPVP8 ".to_vec(), ImageFormat::Webp),
            (b"GIF89a\x01".to_vec(), ImageFormat::Gif),
            (b"GIF87a\x01".to_vec(), ImageFormat::Gif),
        ] {
            let image = add(&mut RequestImages::default(), &bytes).expect("an image");
            assert_eq!((image.media_type, image.bytes), (format, bytes.len() as u64));
            assert_eq!(image.digest, sha256_hex(&bytes));
        }
        for other in [&b""[..], b"GIF90a\0", b"<svg xmlns='x'/>", b"BM\0\0", b"\x89PNG\r\n\x1a\n"] {
            let refused = add(&mut RequestImages::default(), other);
            assert_eq!(refused, Err(ImageFault::UnknownFormat), "{other:?}");
        }
        for text in ["?", "iVBO Rw0K", "data:image/png;base64,iVBORw0K", "aGk=x"] {
            let refused = RequestImages::default().add(text, &mut Vec::new());
            assert_eq!(refused, Err(ImageFault::NotBase64), "{text}");
        }
    }

    #[test]
    fn the_images_of_a_request_are_bounded_in_number_and_in_bytes_and_kept_once() {
        let mut images = RequestImages::default();
        let mut of_message = Vec::new();
        for _ in 0..MESSAGE_IMAGES {
            images.add(&to_base64(&png(20)), &mut of_message).expect("an image");
        }
        let one_more = images.add(&to_base64(&png(20)), &mut of_message);
        assert_eq!(one_more, Err(ImageFault::TooManyInMessage));
        for _ in MESSAGE_IMAGES..REQUEST_IMAGES {
            add(&mut images, &png(20)).expect("an image of another message");
        }
        assert_eq!(add(&mut images, &png(20)), Err(ImageFault::TooManyInRequest));
        assert_eq!(images.into_images().len(), 1, "one image, many times");
        let mut images = RequestImages::default();
        add(&mut images, &png(REQUEST_IMAGE_BYTES - 20)).expect("an image");
        assert_eq!(add(&mut images, &png(21)), Err(ImageFault::TooLarge));
        let stored =
            |bytes| ImageRef { digest: "0".repeat(64), bytes, media_type: ImageFormat::Png };
        let [small, large] = [10, 11].map(stored);
        assert_eq!(images.admits_stored(&[small.clone(), small.clone()]), Ok(()));
        let larger = images.admits_stored(&[small.clone(), large]);
        assert_eq!(larger, Err(ImageFault::TooLarge));
        let many = vec![small; REQUEST_IMAGES];
        assert_eq!(images.admits_stored(&many), Err(ImageFault::TooManyInRequest));
        add(&mut images, &png(20)).expect("room for it");
        let whole = add(&mut RequestImages::default(), &png(REQUEST_IMAGE_BYTES + 1));
        assert_eq!(whole, Err(ImageFault::TooLarge));
    }
}
