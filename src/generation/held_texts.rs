//! The room of what waits for a model: the texts of turns until they end, and those of requests for
//! embeddings.

use std::sync::Arc;

use metrics::Gauge;

use super::SubmitError;
use super::failures::texts_full;
use crate::byte_room::{ByteRoom, RoomPermit};
use crate::session::Owner;
use crate::source::ShareKey;
use crate::telemetry::metric;

/// The room of a process, in MiB.
const MIB: u32 = 64;
/// The part of it that one user may take.
const USER_MIB: u32 = MIB / 4;
/// The part of it that the users of one network may take.
const USERS_OF_NETWORK_MIB: u32 = MIB / 2;
/// The part of it that all anonymous callers may take.
const ANONYMOUS_MIB: u32 = 48;
/// The part of that which those of one network may take.
const ANONYMOUS_OF_NETWORK_MIB: u32 = ANONYMOUS_MIB / 4;
/// Bytes of texts that take no room: the numbers of slots, of waiting turns, and of turns that wait in
/// each session bound what such texts take together.
const FREE_BYTES: usize = 8 << 10;

/// The room for the texts of turns and of requests for embeddings. The memory of what is accepted does not
/// follow from the number of turns: one may have 64 KiB of texts, or several MiB.
#[derive(Clone)]
pub(super) struct TextRoom {
    room: ByteRoom,
    of_anonymous: ByteRoom,
    of_users: ByteRoom,
    held: Gauge,
}

/// The room of the texts of one turn or request, which is taken until all clones are dropped.
#[derive(Clone, Default)]
pub(super) struct HeldTexts {
    _taken: Option<Arc<TakenTexts>>,
}

struct TakenTexts {
    permit: RoomPermit,
    /// The bytes that it takes of the room of a part of the callers.
    _of_part: Option<RoomPermit>,
    held: Gauge,
}

impl Default for TextRoom {
    fn default() -> Self {
        let held = metrics::gauge!(metric::HELD_TEXT_BYTES);
        held.set(0.0);
        Self {
            room: ByteRoom::new(MIB, USER_MIB),
            of_anonymous: ByteRoom::new(ANONYMOUS_MIB, ANONYMOUS_OF_NETWORK_MIB),
            of_users: ByteRoom::new(MIB, USERS_OF_NETWORK_MIB),
            held,
        }
    }
}

impl TextRoom {
    /// Takes room for texts that take so many bytes of memory: in the name of their user, or of the network
    /// of an anonymous caller.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] where there is none: it is free once turns end, which takes longer than
    /// a request may wait for it.
    pub(super) fn take(
        &self,
        owner: &Owner,
        source: &str,
        bytes: usize,
    ) -> Result<HeldTexts, SubmitError> {
        if bytes <= FREE_BYTES {
            return Ok(HeldTexts::default());
        }
        self.try_take(owner, source, bytes).ok_or_else(|| SubmitError::QueueFull(texts_full()))
    }

    fn try_take(&self, owner: &Owner, source: &str, bytes: usize) -> Option<HeldTexts> {
        let (part, user) = match owner {
            Owner::User(_) => (&self.of_users, Some(ShareKey::of_user(&owner.key()))),
            Owner::Anonymous => (&self.of_anonymous, None),
        };
        // A client on the same machine has no network, and may take all of the room.
        let of_part = match ShareKey::of_network(source) {
            Some(network) => Some(part.try_take(Some(network), bytes)?),
            None => None,
        };
        // Larger texts count as the share of their network.
        let counted = of_part.as_ref().map_or(bytes, RoomPermit::bytes);
        let permit = self.room.try_take(user, counted)?;
        self.held.increment(permit.bytes() as f64);
        let held = self.held.clone();
        Some(HeldTexts { _taken: Some(Arc::new(TakenTexts { permit, _of_part: of_part, held })) })
    }

    /// Takes room for texts as [`TextRoom::take`] does, and none where there is none: a turn of a replica
    /// that is gone is not refused. It was within the room there.
    pub(super) fn take_if_free(&self, owner: &Owner, source: &str, bytes: usize) -> HeldTexts {
        self.take(owner, source, bytes).unwrap_or_default()
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

    const STRANGER: Owner = Owner::Anonymous;

    fn source(address: &str) -> String {
        SourceKey::new(b"a key").source(address.parse().expect("an address")).0
    }

    fn user(name: &str) -> Owner {
        Owner::from_key(&format!("user:local:{name}"))
    }

    #[test]
    fn texts_of_one_network_take_a_quarter_of_the_room_of_strangers_and_small_ones_take_none() {
        let (room, one) = (TextRoom::default(), source("192.0.2.1"));
        let take = |source: &str| room.take(&STRANGER, source, 1 << 20);
        let held: Vec<_> = (0..12).map(|_| take(&one).expect("room")).collect();
        let refused = room.take(&STRANGER, &one, FREE_BYTES + 1);
        assert!(matches!(refused, Err(SubmitError::QueueFull(_))));
        assert!(room.take(&STRANGER, &one, FREE_BYTES).is_ok());
        let clone = held[0].clone();
        drop(held);
        assert!(room.take(&STRANGER, &one, 11 << 20).is_ok());
        assert!(room.take(&STRANGER, &one, 12 << 20).is_err(), "a clone is left");
        drop(clone);
        assert!(room.take(&STRANGER, &one, 100 << 20).is_ok(), "more counts as all of it");
    }

    #[test]
    fn strangers_leave_room_to_users_and_one_user_leaves_room_to_others() {
        let room = TextRoom::default();
        let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(source);
        let strangers: Vec<_> = addresses
            .iter()
            .flat_map(|address| [address; 12])
            .map(|address| room.take(&STRANGER, address, 1 << 20).expect("room"))
            .collect();
        assert!(
            room.take(&STRANGER, &source("192.0.2.5"), 1 << 20).is_err(),
            "strangers have theirs"
        );
        // A user is no stranger, also at an address that has taken its share.
        let alices = room.take(&user("alice"), &addresses[0], 15 << 20).expect("room");
        assert!(room.take(&user("alice"), &source("192.0.2.6"), 2 << 20).is_err());
        assert!(room.take(&user("bob"), &addresses[0], 1 << 20).is_ok());
        // Many users of one address leave room to others.
        let carols = room.take(&user("carol"), &addresses[0], 1 << 20).expect("room");
        drop((strangers, alices, carols));
        let held: Vec<_> = ["a", "b"]
            .map(|name| room.take(&user(name), &addresses[0], 16 << 20).expect("room"))
            .into();
        assert!(room.take(&user("c"), &addresses[0], 1 << 20).is_err(), "half of the room");
        assert!(room.take(&user("c"), &addresses[1], 1 << 20).is_ok());
        drop(held);
        // The same machine has no network.
        assert!(room.take(&STRANGER, &source("127.0.0.1"), 1 << 20).is_ok());
        let _whole = room.take(&STRANGER, &source("127.0.0.1"), 64 << 20).expect("all of it");
        assert!(room.take(&user("bob"), &addresses[0], 1 << 20).is_err());
    }
}
