//! The end of a caller's sign-in, while its WebSocket or event stream is open.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};

use crate::sign_in::Validity;

/// How long before the expiry of its token a client is notified.
const NOTICE: Duration = Duration::from_mins(1);
/// The longest wait between two looks at the clock, which may be set.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// A change of a caller's sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignInChange {
    /// The token expires at this time, soon.
    Expiring(SystemTime),
    /// The token has expired, and the time of grace after it is over.
    Expired,
    /// The API key was revoked.
    Revoked,
}

/// Watches how long a caller stays signed in.
pub struct SignInWatch {
    expires: Option<SystemTime>,
    grace: Duration,
    is_noticed: bool,
    wait: Pin<Box<Sleep>>,
    revoked: BoxFuture<'static, ()>,
}

impl SignInWatch {
    /// Creates the watch of a signed-in caller. An anonymous one has none, as it costs memory.
    pub fn new(validity: &Validity, grace: Duration) -> Option<Self> {
        if validity.is_unlimited() {
            return None;
        }
        Some(Self {
            expires: validity.expires,
            grace,
            is_noticed: false,
            wait: Box::pin(sleep(Duration::ZERO)),
            revoked: validity.revoked(),
        })
    }

    /// Returns the next change. Cancel safe.
    pub async fn next(&mut self) -> SignInChange {
        loop {
            tokio::select! {
                () = &mut self.revoked => return SignInChange::Revoked,
                () = &mut self.wait => {}
            }
            let Some(expires) = self.expires else {
                self.wait_for(LONGEST_WAIT);
                continue;
            };
            let now = SystemTime::now();
            if !self.is_noticed && expires <= now + NOTICE {
                self.is_noticed = true;
                self.wait_for(Duration::ZERO);
                return SignInChange::Expiring(expires);
            }
            let due = if self.is_noticed { expires + self.grace } else { expires - NOTICE };
            match due.duration_since(now) {
                Ok(left) if !left.is_zero() => self.wait_for(left.min(LONGEST_WAIT)),
                _ => return SignInChange::Expired,
            }
        }
    }

    fn wait_for(&mut self, time: Duration) {
        self.wait.as_mut().reset(tokio::time::Instant::now() + time);
    }
}

/// Returns the next change of a caller that may be anonymous.
pub async fn next_change(watch: &mut Option<SignInWatch>) -> SignInChange {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_is_notified_of_the_expiry_before_the_end() {
        let expires = SystemTime::now() + Duration::from_secs(30);
        let validity = Validity::until(expires);
        let mut watch = SignInWatch::new(&validity, Duration::ZERO).expect("a watch");
        assert_eq!(watch.next().await, SignInChange::Expiring(expires));
        assert!(SignInWatch::new(&Validity::default(), Duration::ZERO).is_none());
        let past = Validity::until(SystemTime::UNIX_EPOCH);
        let mut watch = SignInWatch::new(&past, Duration::ZERO).expect("a watch");
        assert_eq!(watch.next().await, SignInChange::Expiring(SystemTime::UNIX_EPOCH));
        assert_eq!(watch.next().await, SignInChange::Expired);
    }
}
