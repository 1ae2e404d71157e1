//! The limits of one replica alone, in memory, while Redis is away.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::charge::{SlotCharges, SlotOutcome};

/// Limits of callers that are known at a time, at most.
const KNOWN: usize = 10_000;
/// The caller whose limits all further callers share.
const OTHERS: &str = "others";

/// The limits of one replica alone.
pub(super) struct LocalLimits {
    start: Instant,
    known: usize,
    /// When all of each limit is back, in microseconds since the start.
    back: Mutex<HashMap<String, u64>>,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self::with_room_for(KNOWN)
    }
}

impl LocalLimits {
    fn with_room_for(known: usize) -> Self {
        Self { start: Instant::now(), known, back: Mutex::default() }
    }

    /// Takes all costs, or nothing. `sockets` is the number of sockets that the caller has open at
    /// this replica, without the one that the request opens.
    pub fn take(&self, slot: &SlotCharges, sockets: u64, forced: bool) -> SlotOutcome {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.take_at(now, slot, sockets, forced)
    }

    /// Does so at a time in microseconds since the start.
    fn take_at(&self, now: u64, slot: &SlotCharges, sockets: u64, forced: bool) -> SlotOutcome {
        let mut back = self.back();
        let keys: Vec<String> = slot
            .charges
            .iter()
            .map(|charge| {
                let key = format!("{}:{}", slot.caller, charge.key);
                if back.contains_key(&key) || has_room(&mut back, self.known, now) {
                    key
                } else {
                    format!("{OTHERS}:{}", charge.kind.name())
                }
            })
            .collect();
        let backlog = |key| back.get(key).map_or(0, |back| back.saturating_sub(now));
        let mut backlogs: Vec<u64> = keys.iter().map(backlog).collect();
        let enough =
            slot.charges.iter().zip(&backlogs).all(|(it, backlog)| it.missing(*backlog) == 0);
        let room = slot.socket.as_ref().is_none_or(|(_, limit)| sockets < *limit);
        let is_taken = forced || (enough && room);
        if is_taken {
            for ((charge, key), backlog) in slot.charges.iter().zip(keys).zip(&mut backlogs) {
                *backlog = charge.taken(*backlog, now);
                if *backlog == 0 {
                    back.remove(&key);
                } else {
                    back.insert(key, now + *backlog);
                }
            }
        }
        let sockets = slot.socket.as_ref().map(|_| sockets + u64::from(is_taken));
        SlotOutcome { is_taken, is_known: false, sockets, backlogs, at: now, is_local: true }
    }

    fn back(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether one more limit can be known, where those that are back were forgotten.
fn has_room(back: &mut HashMap<String, u64>, known: usize, now: u64) -> bool {
    if back.len() < known {
        return true;
    }
    back.retain(|_, back| *back > now);
    back.len() < known
}

#[cfg(test)]
mod tests {
    use super::super::charge::Charge;
    use super::super::policy::LimitKind;
    use super::*;

    fn turn(caller: &str, quota: u64) -> SlotCharges {
        let charge = Charge::new(LimitKind::UserTurns, "turns".to_owned(), quota, 1);
        SlotCharges { caller: caller.to_owned(), charges: vec![charge], socket: None }
    }

    const SECOND: u64 = 1_000_000;

    #[test]
    fn alone_a_replica_lets_a_burst_of_the_whole_limit_through_and_then_one_an_interval() {
        let local = LocalLimits::default();
        let take = |caller, now| local.take_at(now, &turn(caller, 60), 0, false).is_taken;
        let burst = |now| (0..100).filter(|_| take("a", now)).count();
        assert_eq!(burst(0), 60);
        assert_eq!(burst(SECOND - 1), 0);
        assert_eq!(burst(SECOND), 1);
        assert!(take("b", SECOND), "another caller has its own");
        assert_eq!(burst(61 * SECOND), 60);
    }

    #[test]
    fn callers_beyond_the_known_ones_share_one_limit_until_others_are_back() {
        let local = LocalLimits::with_room_for(10);
        let take =
            |number: u32, now| local.take_at(now, &turn(&number.to_string(), 6), 0, false).is_taken;
        assert_eq!((0..100).filter(|number| take(*number, 0)).count(), 10 + 6);
        assert!(local.back().len() <= 11, "bounded");
        let later = 10 * SECOND;
        assert_eq!((200..300).filter(|number| take(*number, later)).count(), 9 + 1);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_a_refusal_takes_nothing() {
        let local = LocalLimits::default();
        let mut two = turn("a", 2);
        two.charges.push(Charge::new(LimitKind::UserRequests, "requests".to_owned(), 1, 1));
        let take = |slot: &SlotCharges| local.take_at(0, slot, 0, false);
        let taken = take(&two);
        assert!(taken.is_taken);
        let refused = take(&two);
        assert!(!refused.is_taken);
        assert_eq!(refused.backlogs, [30 * SECOND, 60 * SECOND], "the first is not taken either");
        assert!(take(&two.reversed(&taken, |_| true)).is_taken);
        assert!(local.back().is_empty());
        assert!(take(&two).is_taken);
    }

    #[test]
    fn alone_a_turn_that_came_back_by_itself_is_not_given_back_once_more() {
        let local = LocalLimits::default();
        let slot = turn("a", 60);
        let take = |now| local.take_at(now, &slot, 0, false);
        let burst = |now| (0..100).filter(|_| take(now).is_taken).count();
        let pending: Vec<_> = (0..30).map(|_| take(0)).collect();
        assert_eq!(burst(0), 30);
        // All have come back, and are taken again.
        assert_eq!(burst(60 * SECOND), 60);
        for taken in &pending {
            local.take_at(60 * SECOND, &slot.reversed(taken, |_| true), 0, false);
        }
        assert_eq!(burst(60 * SECOND), 0, "more than the limit at once");
        // The amount that has not come back yet is given back: the last thirty seconds of sixty.
        let late: Vec<_> = (0..60).map(|_| take(120 * SECOND)).collect();
        for taken in &late {
            local.take_at(150 * SECOND, &slot.reversed(taken, |_| true), 0, false);
        }
        assert_eq!(burst(150 * SECOND), 60);
    }
}
