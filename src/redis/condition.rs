//! The condition of Redis: whether a turn could be taken with it, and if not, why.

use std::borrow::Cow;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::error::RedisError;

/// The trouble of a Redis that was full before it had the functions: nothing can be called there,
/// so that not even sessions can be deleted.
const FULL_AND_EMPTY: &str =
    "memory full, and the functions do not fit: raise its maxmemory or delete data";

/// The condition of Redis at the last probe.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// A short reason why no turn can be taken; none where a turn can, and before the first probe.
    trouble: Option<Cow<'static, str>>,
    /// Whether full memory is the only reason.
    full: bool,
    /// When a turn could be taken last, apart from full memory.
    usable_at: Option<Instant>,
    /// Since when the reason is one that only an operator can end.
    refused_since: Option<Instant>,
}

/// The result of one probe.
pub(super) enum Probed {
    /// A turn could be taken.
    Usable,
    /// A turn could be taken if there were memory for it.
    Full,
    /// No turn could be taken.
    Refused(RedisError),
}

impl Condition {
    /// Returns a short reason why no turn can be taken; none where a turn can.
    pub fn trouble(&self) -> Option<&str> {
        match (&self.trouble, self.usable_at) {
            (None, None) => Some("not reached yet"),
            (trouble, _) => trouble.as_deref(),
        }
    }

    /// Returns whether full memory is the only reason why no turn can be taken.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Returns whether Redis was usable within the last `patience`.
    pub fn is_usable_within(&self, patience: Duration) -> bool {
        self.usable_at.is_some_and(|at| at.elapsed() <= patience)
    }

    /// Returns the reason why no turn can be taken, where only an operator can end it.
    pub fn refusal(&self) -> Option<&str> {
        self.trouble.as_deref().filter(|_| self.refused_since.is_some())
    }

    /// Returns the condition after one more probe.
    pub(super) fn after(&self, probed: &Probed) -> Self {
        let now = Instant::now();
        match probed {
            Probed::Usable => Self { usable_at: Some(now), ..Self::default() },
            Probed::Full => Self::full(Some(now)),
            // The functions are missing and do not fit into the memory. A replica that was ready
            // stays ready in that case, too.
            Probed::Refused(RedisError::OutOfMemory) => Self::full(self.usable_at.map(|_| now)),
            Probed::Refused(error) => {
                let since = self.refused_since.unwrap_or(now);
                Self {
                    trouble: Some(error.summary()),
                    full: false,
                    usable_at: self.usable_at,
                    refused_since: error.is_permanent().then_some(since),
                }
            }
        }
    }

    fn full(usable_at: Option<Instant>) -> Self {
        let trouble = match usable_at {
            Some(_) => RedisError::OutOfMemory.summary(),
            None => Cow::Borrowed(FULL_AND_EMPTY),
        };
        Self { trouble: Some(trouble), full: true, usable_at, refused_since: None }
    }
}

/// Resolves when no turn could be taken for `limit` for reasons that only an operator can end, with
/// the last reason. Cancel-safe.
pub(super) async fn refused_for(
    mut condition: watch::Receiver<Condition>,
    limit: Duration,
) -> String {
    loop {
        let refused = condition.wait_for(|now| now.refused_since.is_some()).await;
        let Some(since) = refused.ok().and_then(|now| now.refused_since) else {
            // The sender is gone, and nothing is probed any more.
            return std::future::pending().await;
        };
        let ended = condition.wait_for(|now| now.refused_since != Some(since));
        if timeout_at(since + limit, ended).await.is_ok() {
            continue;
        }
        if let Some(refusal) = condition.borrow().refusal() {
            return refusal.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Probed {
        let (missing, details) = ("TIME".to_owned(), String::new());
        Probed::Refused(RedisError::Permission { missing, details })
    }

    #[test]
    fn full_memory_keeps_a_replica_ready_unless_the_functions_were_never_there() {
        let patience = Duration::from_secs(1);
        let usable = Condition::default().after(&Probed::Usable);
        for probed in [Probed::Full, Probed::Refused(RedisError::OutOfMemory)] {
            let full = usable.after(&probed);
            assert!(full.is_full() && full.is_usable_within(patience));
            assert_eq!((full.trouble(), full.refusal()), (Some("memory full"), None));
        }
        let empty = Condition::default().after(&Probed::Refused(RedisError::OutOfMemory));
        assert!(empty.is_full() && !empty.is_usable_within(patience));
        assert!(empty.trouble().is_some_and(|trouble| trouble.contains("maxmemory")));
        // Another server has the functions.
        assert!(Condition::default().after(&Probed::Full).is_usable_within(patience));
    }

    #[tokio::test]
    async fn a_refusal_counts_after_its_limit_and_one_that_ended_does_not() {
        let limit = Duration::from_millis(300);
        let sender = watch::Sender::new(Condition::default());
        let learn = |probed: &Probed| {
            let next = sender.borrow().after(probed);
            sender.send_replace(next);
        };
        let refused = refused_for(sender.subscribe(), limit);
        tokio::pin!(refused);
        learn(&denied());
        assert!(tokio::time::timeout(limit / 3, &mut refused).await.is_err(), "at once");
        learn(&Probed::Usable);
        let again = Instant::now();
        learn(&denied());
        learn(&denied());
        assert_eq!(refused.await, "no permission for TIME");
        assert!(again.elapsed() >= limit, "an earlier refusal had ended: {:?}", again.elapsed());
    }
}
