//! The room of what waits for a model: the texts of turns until they end, and those of requests for
//! embeddings.

use std::sync::Arc;

use metrics::Gauge;

use super::SubmitError;
use super::failures::texts_full;
use crate::blocking::SMALL;
use crate::byte_room::{ByteRoom, RoomPermit};
use crate::source::NetworkNumber;
use crate::telemetry::metric;

/// The room of a process, in MiB. A network may take a quarter of it.
const MIB: u32 = 64;
/// Bytes of texts that take no room: the numbers of waiting turns and of slots bound what such texts take
/// together.
const FREE_BYTES: usize = SMALL;

/// The room for the texts of turns and of requests for embeddings. The memory of what is accepted does not
/// follow from the number of turns: one may have 64 KiB of texts, or several MiB.
#[derive(Clone)]
pub(super) struct TextRoom {
    room: ByteRoom,
    held: Gauge,
}

/// The room of the texts of one turn or request, which is taken until all clones are dropped.
#[derive(Clone, Default)]
pub(super) struct HeldTexts {
    _taken: Option<Arc<TakenTexts>>,
}

struct TakenTexts {
    permit: RoomPermit,
    held: Gauge,
}

impl Default for TextRoom {
    fn default() -> Self {
        let held = metrics::gauge!(metric::HELD_TEXT_BYTES);
        held.set(0.0);
        Self { room: ByteRoom::new(MIB), held }
    }
}

impl TextRoom {
    /// Takes room for texts that take so many bytes of memory, in the name of a network.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] where there is none: it is free once turns end, which takes longer than
    /// a request may wait for it.
    pub(super) fn take(
        &self,
        network: Option<NetworkNumber>,
        bytes: usize,
    ) -> Result<HeldTexts, SubmitError> {
        if bytes <= FREE_BYTES {
            return Ok(HeldTexts::default());
        }
        let permit = self.room.try_take(network, bytes);
        permit.map(|permit| self.held(permit)).ok_or_else(|| SubmitError::QueueFull(texts_full()))
    }

    /// Takes room for texts as [`TextRoom::take`] does, and none where there is none: a turn of a replica
    /// that is gone is not refused. It was within the room there.
    pub(super) fn take_if_free(&self, bytes: usize) -> HeldTexts {
        self.take(None, bytes).unwrap_or_default()
    }

    fn held(&self, permit: RoomPermit) -> HeldTexts {
        self.held.increment(permit.bytes() as f64);
        HeldTexts { _taken: Some(Arc::new(TakenTexts { permit, held: self.held.clone() })) }
    }
}

impl Drop for TakenTexts {
    fn drop(&mut self) {
        self.held.decrement(self.permit.bytes() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceKey;

    #[test]
    fn texts_of_one_network_take_a_quarter_of_the_room_and_small_ones_take_none() {
        let room = TextRoom::default();
        let source = SourceKey::default().source("192.0.2.1".parse().expect("an address"));
        let network = source.widest_network();
        let held: Vec<_> = (0..16).map(|_| room.take(network, 1 << 20).expect("room")).collect();
        let refused = room.take(network, FREE_BYTES + 1);
        assert!(matches!(refused, Err(SubmitError::QueueFull(_))));
        assert!(room.take(network, FREE_BYTES).is_ok());
        let others: Vec<_> = (0..48).map(|_| room.take(None, 1 << 20).expect("room")).collect();
        assert!(room.take(None, 1 << 20).is_err(), "all of it");
        let clone = held[0].clone();
        drop((held, others));
        assert!(room.take(None, 63 << 20).is_ok());
        assert!(room.take(None, 64 << 20).is_err(), "a clone is left");
        drop(clone);
        assert!(room.take(None, 100 << 20).is_ok(), "more counts as all of it");
    }
}
