//! The limits in Redis.

use std::collections::HashSet;
use std::time::Duration;

use fred::prelude::Value;

use super::charge::{SlotCharges, SlotOutcome};
use crate::membership::MembershipStore;
use crate::redis::{Call, Redis, RedisError};

/// How long a socket is held without a renewal.
pub(super) const HOLD: Duration = Duration::from_mins(10);
/// The sockets of one call, at most, so that none takes Redis long.
const SOCKETS_PER_CALL: usize = 500;

/// The limits in Redis. Cloning is cheap.
#[derive(Clone)]
pub(super) struct LimitStore {
    redis: Redis,
    membership: MembershipStore,
}

/// The arguments of a call in addition to the costs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TakeOptions<'a> {
    /// Takes also what is not left, because it was used already.
    pub forced: bool,
    /// A name under which this is taken only once.
    pub once: &'a str,
    /// A name under which a repeat is known: it is admitted where too little is left, and takes nothing.
    pub known: &'a str,
}

impl LimitStore {
    pub fn new(redis: Redis, membership: MembershipStore) -> Self {
        Self { redis, membership }
    }

    /// Takes all costs, or nothing. Where the caller has as many sockets as it may, or they are only
    /// counted, those of replicas that are gone are removed, and it is tried again.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn take(
        &self,
        charges: &SlotCharges,
        options: TakeOptions<'_>,
    ) -> Result<SlotOutcome, RedisError> {
        let (outcome, held) = self.try_take(charges, options).await?;
        // Boxed, because it is rare.
        if held.is_empty() || !Box::pin(self.remove_gone(&charges.caller, &held)).await? {
            return Ok(outcome);
        }
        Ok(self.try_take(charges, options).await?.0)
    }

    /// Returns the sockets that are held, too, where there are too many or they are only counted.
    async fn try_take(
        &self,
        SlotCharges { caller, charges, socket }: &SlotCharges,
        options: TakeOptions<'_>,
    ) -> Result<(SlotOutcome, Vec<String>), RedisError> {
        let (socket, sockets_limit) = match socket {
            Some((socket, limit)) => (socket.as_str(), *limit),
            None => ("", 0),
        };
        let limits = charges.iter().flat_map(|charge| {
            let numbers = [
                charge.quota.to_string(),
                charge.interval().to_string(),
                charge.cost.to_string(),
                charge.taken_until.to_string(),
            ];
            std::iter::once(Value::from(charge.key.as_str()))
                .chain(numbers.into_iter().map(Value::from))
        });
        let call = call("jarvis_limit_take_1", caller)
            .flag("forced", options.forced)
            .arg("once", options.once)
            .arg("known", options.known)
            .arg("socket", socket)
            .text("sockets_limit", sockets_limit)
            .text("socket_seconds", HOLD.as_secs())
            .rest("limits", limits);
        let reply: Value = self.redis.call(call).await?;
        let parsed = parse(reply, charges.len(), sockets_limit > 0);
        parsed.ok_or_else(|| RedisError::Unexpected("limit_take".to_owned()))
    }

    /// Removes the sockets of replicas that are gone. Returns whether there were some.
    async fn remove_gone(&self, caller: &str, held: &[String]) -> Result<bool, RedisError> {
        let replica = |socket: &str| socket.split(' ').next().unwrap_or_default().to_owned();
        let replicas: HashSet<String> = held.iter().map(|socket| replica(socket)).collect();
        let living = self.membership.living(replicas.into_iter().collect()).await?;
        let gone = held.iter().filter(|socket| !living.contains(&replica(socket)));
        let gone: Vec<String> = gone.cloned().collect();
        if gone.is_empty() {
            return Ok(false);
        }
        self.release(caller, &gone).await?;
        Ok(true)
    }

    /// Ends the holds of sockets.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn release(&self, caller: &str, sockets: &[String]) -> Result<(), RedisError> {
        for sockets in sockets.chunks(SOCKETS_PER_CALL) {
            let call = call("jarvis_limit_release_1", caller).rest("sockets", texts(sockets));
            self.redis.call::<Value>(call).await?;
        }
        Ok(())
    }

    /// Renews the holds of sockets, and brings back those that Redis lost.
    ///
    /// # Errors
    /// [`RedisError`].
    pub async fn renew(&self, caller: &str, sockets: &[String]) -> Result<(), RedisError> {
        for sockets in sockets.chunks(SOCKETS_PER_CALL) {
            let call = call("jarvis_limit_renew_1", caller)
                .text("seconds", HOLD.as_secs())
                .rest("sockets", texts(sockets));
            self.redis.call::<Value>(call).await?;
        }
        Ok(())
    }
}

fn texts(sockets: &[String]) -> impl Iterator<Item = Value> {
    sockets.iter().map(|socket| Value::from(socket.as_str()))
}

fn call(function: &'static str, caller: &str) -> Call {
    Call::new(function).key("caller", caller.to_owned())
}

fn parse(reply: Value, count: usize, has_sockets: bool) -> Option<(SlotOutcome, Vec<String>)> {
    let [verdict, sockets, backlogs, held, now]: [Value; 5] = reply.into_array().try_into().ok()?;
    let backlogs: Vec<u64> = backlogs.convert().ok()?;
    if backlogs.len() != count {
        return None;
    }
    let (is_taken, is_known) = match &*verdict.as_str()? {
        "taken" => (true, false),
        "known" => (false, true),
        _ => (false, false),
    };
    let sockets = if has_sockets { Some(sockets.as_u64()?) } else { None };
    let outcome =
        SlotOutcome { is_taken, is_known, sockets, backlogs, at: now.as_u64()?, is_local: false };
    Some((outcome, held.convert().ok()?))
}
