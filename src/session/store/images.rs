//! The images of messages: their bytes, in parts.

use bytes::Bytes;
use fred::prelude::Value;

use super::{SessionKeys, Store, StoreError, Turn, unexpected};
use crate::redis::Call;
use crate::session::image::{Image, ImageRef, REQUEST_IMAGE_BYTES};
use crate::session::model::{Message, Owner, SessionId};

/// Bytes of one part, at most, so that no call takes Redis long.
pub const PART_BYTES: usize = 256 << 10;
/// How long images are kept whose message is not accepted in a session that is not there.
const PUT_SECONDS: u64 = 120;

/// The parts of a turn's question other than its text.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    /// The author of the question, the call whose result it is, the names of its images, and the request
    /// as its front shows it again; a user's text where there is none.
    pub question: Option<Box<Message>>,
    /// The images of the question, and of the messages that the turn brings with it. Redis has them
    /// once the turn is accepted, and nothing else keeps them.
    pub images: Vec<Image>,
}

impl Store {
    /// Puts images for a turn that is about to be accepted. With `epoch`, they are put back into the
    /// session of that epoch, from which a failover may have lost them.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Full`], [`StoreError::OutOfMemory`],
    /// [`StoreError::Redis`].
    pub async fn put_images(
        &self,
        owner: &Owner,
        session: SessionId,
        epoch: Option<&str>,
        images: &[Image],
    ) -> Result<(), StoreError> {
        for Image { reference, data } in images {
            let parts = data.len().div_ceil(PART_BYTES);
            for part in 0..parts {
                let from = part * PART_BYTES;
                let data = data.slice(from..data.len().min(from + PART_BYTES));
                let call = image_call("jarvis_put_image_1", owner, session)
                    .arg("epoch", epoch.unwrap_or_default())
                    .arg("digest", reference.digest.as_str())
                    .text("bytes", reference.bytes)
                    .text("parts", parts)
                    .text("part", part)
                    .arg("data", Value::Bytes(data))
                    .text("bytes_limit", self.limits.session_bytes)
                    .text("seconds", PUT_SECONDS);
                match self.redis.call::<String>(call).await?.as_str() {
                    "put" => {}
                    "whole" => break,
                    "absent" => return Err(StoreError::Absent),
                    "full" => return Err(StoreError::Full),
                    _ => return Err(unexpected("image")),
                }
            }
        }
        Ok(())
    }

    /// Drops images that were put for a turn that was refused, unless a message has them.
    ///
    /// # Errors
    /// [`StoreError::Redis`].
    pub async fn drop_images(
        &self,
        owner: &Owner,
        session: SessionId,
        images: &[Image],
    ) -> Result<(), StoreError> {
        let digests = images.iter().map(|image| image.reference.digest.as_str().into());
        let call = image_call("jarvis_drop_images_1", owner, session)
            .text("parts", REQUEST_IMAGE_BYTES.div_ceil(PART_BYTES))
            .rest("digests", digests);
        Ok(self.redis.call(call).await?)
    }

    /// Returns the bytes of an image; none where the owner's session does not have them.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn image(
        &self,
        owner: &Owner,
        session: SessionId,
        image: &ImageRef,
    ) -> Result<Option<Bytes>, StoreError> {
        let stored = self.image_by_digest(owner, session, &image.digest).await?;
        Ok(stored.filter(|stored| is_whole(stored, image)))
    }

    /// Returns the bytes of the image with this digest; none where the owner's session does not have it.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn image_by_digest(
        &self,
        owner: &Owner,
        session: SessionId,
        digest: &str,
    ) -> Result<Option<Bytes>, StoreError> {
        let of_nobody = || {
            image_call("jarvis_image_1", owner, session).arg("generation", "-").arg("fence", "-")
        };
        self.read_image(of_nobody, digest).await
    }

    /// Returns the bytes of an image for the holder of a running turn, also where its session has become
    /// a user's since the turn was accepted; none where the session does not have them.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Redis`].
    pub async fn image_of_turn(
        &self,
        turn: &Turn,
        image: &ImageRef,
    ) -> Result<Option<Bytes>, StoreError> {
        let of_holder = || {
            image_call("jarvis_image_1", &turn.owner, turn.session)
                .text("generation", turn.generation)
                .text("fence", turn.fence.0)
        };
        let stored = self.read_image(of_holder, &image.digest).await?;
        Ok(stored.filter(|stored| is_whole(stored, image)))
    }

    /// Reads the parts of an image by calls that name who reads.
    async fn read_image(
        &self,
        call: impl Fn() -> Call,
        digest: &str,
    ) -> Result<Option<Bytes>, StoreError> {
        let mut bytes = Vec::new();
        for part in 0.. {
            let call = call().arg("digest", digest).text("part", part);
            let mut reply: Vec<Bytes> = self.redis.call_readonly(call).await?;
            match (reply.first().map(|first| &first[..]), reply.len()) {
                (Some(b"ok"), 3) => {}
                (Some(b"none"), _) => return Ok(None),
                (Some(b"absent"), _) => return Err(StoreError::Absent),
                _ => return Err(unexpected("image")),
            }
            bytes.extend_from_slice(&reply.remove(2));
            let parts = std::str::from_utf8(&reply[1]).ok().and_then(|text| text.parse().ok());
            if parts.is_none_or(|parts: u64| part + 1 >= parts) {
                break;
            }
        }
        Ok(Some(bytes.into()))
    }
}

/// Returns whether what is stored has as many bytes as it should.
fn is_whole(stored: &Bytes, image: &ImageRef) -> bool {
    stored.len() as u64 == image.bytes
}

fn image_call(function: &'static str, owner: &Owner, session: SessionId) -> Call {
    SessionKeys::of(session).call_with(function, &["session", "images"]).arg("owner", owner.key())
}
