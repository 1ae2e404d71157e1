//! The images of turns: put into Redis before a turn is accepted, read for each model run, and put
//! back where a failover lost them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Generations;
use super::context::{ChosenContext, Conversation};
use super::redis_call::call_redis;
use super::redo::KEPT;
use crate::blocking;
use crate::ollama::{OllamaError, Slot};
use crate::session::image::to_base64;
use crate::session::model::Failure;
use crate::session::store::Turn;
use crate::session::{GenerationId, Image, ImageRef, Owner, SessionId, StoreError};
use crate::source::ShareKey;

/// Bytes of images that are held in memory, at most: of accepted turns, of which the oldest go beyond it;
/// and as many of turns whose acceptance is retried.
const BYTES: usize = 64 << 20;
/// The text that replaces an image that the model cannot get.
const UNSEEN: &str = "[an image that this model cannot see]";
const LOST: &str = "[an image that is no longer stored]";

/// The images of the turns that this replica accepted in the last minute: a failover may lose them
/// together with the acceptance. Neither a redo entry nor a copy of one has them.
pub(super) struct HeldImages {
    accepted: Mutex<Held>,
    /// KiB that the images of turns may take whose acceptance is retried.
    retried: Arc<Semaphore>,
}

impl Default for HeldImages {
    fn default() -> Self {
        Self { accepted: Mutex::default(), retried: Arc::new(Semaphore::new(BYTES >> 10)) }
    }
}

#[derive(Default)]
struct Held {
    turns: VecDeque<HeldTurn>,
    bytes: usize,
}

/// The images of one turn.
#[derive(Clone)]
struct HeldTurn {
    at: Instant,
    generation: GenerationId,
    owner: Owner,
    session: SessionId,
    epoch: String,
    images: Arc<[Image]>,
}

impl HeldTurn {
    fn bytes(&self) -> usize {
        self.images.iter().map(|image| image.data.len()).sum()
    }
}

impl Held {
    fn expire(&mut self) {
        while self.bytes > BYTES || self.turns.front().is_some_and(|turn| turn.at.elapsed() > KEPT)
        {
            let Some(turn) = self.turns.pop_front() else { return };
            self.bytes -= turn.bytes();
        }
        if self.turns.is_empty() {
            self.turns = VecDeque::new();
        }
    }
}

impl HeldImages {
    /// Holds the images of a turn that was accepted.
    pub(super) fn push(&self, turn: &Turn, images: Vec<Image>) {
        let turn = HeldTurn {
            at: Instant::now(),
            generation: turn.generation,
            owner: turn.owner.clone(),
            session: turn.session,
            epoch: turn.epoch.clone(),
            images: images.into(),
        };
        let mut held = self.held();
        held.bytes += turn.bytes();
        held.turns.push_back(turn);
        held.expire();
    }

    /// Removes what is too old.
    pub(super) fn expire(&self) {
        self.held().expire();
    }

    /// Forgets the images of a turn whose session does not keep them.
    pub(super) fn forget(&self, generation: GenerationId) {
        let mut held = self.held();
        held.turns.retain(|turn| turn.generation != generation);
        held.bytes = held.turns.iter().map(HeldTurn::bytes).sum();
    }

    fn find(&self, session: SessionId, digest: &str) -> Option<Image> {
        let held = self.held();
        let turns = held.turns.iter().filter(|turn| turn.session == session);
        let mut images = turns.flat_map(|turn| turn.images.iter());
        images.find(|image| image.reference.digest == digest).cloned()
    }

    /// Reserves memory for the images of a turn whose acceptance is retried; none where other such turns
    /// hold it all.
    pub(super) fn reserve_retry(&self, images: &[Image]) -> Option<OwnedSemaphorePermit> {
        let bytes: usize = images.iter().map(|image| image.data.len()).sum();
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        Arc::clone(&self.retried).try_acquire_many_owned(kib).ok()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a prompt gets no images.
pub(super) enum NoImages {
    /// The host did not reply.
    Host(OllamaError),
    /// An image of the turn is lost.
    Lost(Failure),
}

impl Generations {
    /// Puts back the images of the last minute, after a failover may have lost them. Returns `false`
    /// where Redis failed.
    pub(super) async fn put_images_back(&self) -> bool {
        let turns: Vec<HeldTurn> = self.images.held().turns.iter().cloned().collect();
        let mut all = true;
        for turn in turns {
            let HeldTurn { owner, session, epoch, images, .. } = &turn;
            let put = self.store.put_images(owner, *session, Some(epoch), images).await;
            match put {
                Err(StoreError::Redis(error)) => {
                    tracing::debug!(%error, "images not put back");
                    return false;
                }
                // It may have room for the images of another turn, and for these later.
                Err(StoreError::OutOfMemory) => all = false,
                _ => {}
            }
        }
        all
    }

    /// Puts the images of a turn that is about to be accepted.
    pub(super) async fn put_images(
        &self,
        owner: &Owner,
        session: SessionId,
        images: &[Image],
    ) -> Result<(), StoreError> {
        let put = self.store.put_images(owner, session, None, images).await;
        if put.is_err() {
            self.drop_images(owner, session, images).await;
        }
        put
    }

    /// Drops the images of a turn that was refused. They expire by themselves where that fails, or
    /// with their session, on whose budget they count.
    pub(super) async fn drop_images(&self, owner: &Owner, session: SessionId, images: &[Image]) {
        if images.is_empty() {
            return;
        }
        if let Err(error) = self.store.drop_images(owner, session, images).await {
            tracing::debug!(%error, "images of a refused turn not dropped");
        }
    }

    /// Returns the bytes of an image, which are put back where Redis has lost them.
    async fn image(&self, turn: &Turn, image: &ImageRef) -> Option<Bytes> {
        let read = async || match self.store.image_of_turn(turn, image).await {
            Err(StoreError::Absent) => Ok(None),
            read => read,
        };
        if let Some(data) = call_redis(read).await {
            return Some(data);
        }
        let held = self.images.find(turn.session, &image.digest)?;
        let (owner, images) = (&turn.owner, std::slice::from_ref(&held));
        let put = self.store.put_images(owner, turn.session, Some(&turn.epoch), images).await;
        if let Err(error) = put {
            tracing::debug!(%error, "image not put back");
        }
        Some(held.data)
    }
}

/// The images that a turn's model runs have read so far, in base64; none where an image is lost.
#[derive(Default)]
pub(super) struct ReadImages(HashMap<String, Option<Arc<str>>>);

/// Adds the images to the messages of a prompt. A model that takes no images gets words instead
/// of those of earlier turns.
pub(super) async fn add_images(
    generations: &Generations,
    turn: &Turn,
    conversation: &Conversation,
    slot: &Slot,
    read: &mut ReadImages,
    chosen: &mut ChosenContext,
) -> Result<(), NoImages> {
    if chosen.images.iter().all(Vec::is_empty) {
        return Ok(());
    }
    let sees = slot.sees().await.map_err(NoImages::Host)?;
    let last = chosen.request.messages.len().saturating_sub(1);
    let messages = chosen.request.messages.iter_mut().zip(&chosen.images);
    for (at, (message, images)) in messages.enumerate() {
        let is_required = conversation.is_required(last - at);
        for image in images {
            if !sees && !is_required {
                message.content = format!("{UNSEEN}\n{}", message.content);
                continue;
            }
            if !read.0.contains_key(&image.digest) {
                let data = generations.image(turn, image).await;
                let base64 = match data {
                    Some(data) => {
                        let bytes = data.len();
                        let network = ShareKey::of_network(&turn.spec.source);
                        let encode = move || to_base64(&data);
                        let text = blocking::run(network, bytes, encode).await;
                        Some(text.into())
                    }
                    None => None,
                };
                read.0.insert(image.digest.clone(), base64);
            }
            match read.0.get(&image.digest).cloned().flatten() {
                Some(base64) => message.images.push(base64),
                None if is_required => return Err(NoImages::Lost(lost())),
                None => message.content = format!("{LOST}\n{}", message.content),
            }
        }
    }
    Ok(())
}

fn lost() -> Failure {
    Failure {
        code: "image_lost".to_owned(),
        message: "An image of the message is no longer stored; send the message again.".to_owned(),
        retryable: false,
        retry_after: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::image::RequestImages;

    #[test]
    fn turns_whose_acceptance_is_retried_hold_at_most_64_mib_of_images() {
        let mut images = RequestImages::default();
        let mut bytes = b"GIF89a".to_vec();
        bytes.resize(4 << 20, 7);
        images.add(&to_base64(&bytes), &mut Vec::new()).expect("an image");
        let images = images.into_images();
        let held = HeldImages::default();
        let mut permits: Vec<_> = (0..16).map(|_| held.reserve_retry(&images)).collect();
        assert!(permits.iter().all(Option::is_some));
        assert!(held.reserve_retry(&images).is_none(), "no room");
        assert!(held.reserve_retry(&[]).is_some(), "a turn without images needs none");
        permits.pop();
        assert!(held.reserve_retry(&images).is_some());
    }
}
