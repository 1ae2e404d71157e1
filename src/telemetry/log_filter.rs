//! The filter of log lines, which can be changed while the process runs.
//!
//! A change ends by itself: a level that was lowered to find a fault and forgotten would fill disks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::reload::{self, Handle};

/// The filter of log lines. Clones share it.
#[derive(Clone)]
pub struct LogFilter {
    inner: Arc<Inner>,
}

struct Inner {
    /// The filter of the settings.
    default: Targets,
    /// The handle of the filter; absent where nothing logs, as in tests.
    handle: Option<Handle<Targets, Registry>>,
    change: Mutex<Option<FilterChange>>,
}

/// A filter that replaces that of the settings.
#[derive(Clone)]
struct FilterChange {
    filter: Targets,
    until: Instant,
}

/// The filter in force.
#[derive(Clone, Debug)]
pub struct FilterInForce {
    /// The filter.
    pub filter: Targets,
    /// The filter of the settings.
    pub default: Targets,
    /// The time until the filter of the settings is in force again; none where it is.
    pub left: Option<Duration>,
}

impl LogFilter {
    /// Returns the layer that filters log lines and spans, and the filter.
    pub(super) fn layer(default: &Targets) -> (reload::Layer<Targets, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(default.clone());
        (layer, Self::with(default.clone(), Some(handle)))
    }

    /// Returns the filter of a process that does not log.
    pub fn of_silence() -> Self {
        Self::with(Targets::new(), None)
    }

    fn with(default: Targets, handle: Option<Handle<Targets, Registry>>) -> Self {
        Self { inner: Arc::new(Inner { default, handle, change: Mutex::default() }) }
    }

    /// Returns the filter in force.
    pub fn in_force(&self) -> FilterInForce {
        let change = self.inner.change().clone();
        let default = self.inner.default.clone();
        match change {
            Some(FilterChange { filter, until }) => {
                let left = until.saturating_duration_since(Instant::now());
                FilterInForce { filter, default, left: Some(left) }
            }
            None => FilterInForce { filter: default.clone(), default, left: None },
        }
    }

    /// Puts a filter in force for a time, instead of any other. Must be called inside a Tokio
    /// runtime.
    pub fn change(&self, filter: Targets, time: Duration) {
        let until = Instant::now() + time;
        self.set(Some(FilterChange { filter, until }));
        let this = self.clone();
        tokio::spawn(async move {
            sleep_until(until).await;
            // Another change may have come meanwhile.
            let is_over = this.inner.change().as_ref().is_some_and(|now| now.until <= until);
            if is_over {
                this.reset();
            }
        });
    }

    /// Puts the filter of the settings in force again.
    pub fn reset(&self) {
        self.set(None);
    }

    fn set(&self, next: Option<FilterChange>) {
        {
            let mut change = self.inner.change();
            let filter = next.as_ref().map_or(&self.inner.default, |next| &next.filter);
            if let Some(handle) = &self.inner.handle
                && let Err(error) = handle.reload(filter.clone())
            {
                tracing::error!(%error, "log filter not changed");
                return;
            }
            *change = next;
        }
        let FilterInForce { filter, left, .. } = self.in_force();
        let seconds = left.map(|left| left.as_secs_f64().round());
        tracing::warn!(%filter, seconds, "log filter changed");
    }
}

impl Inner {
    fn change(&self) -> MutexGuard<'_, Option<FilterChange>> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use testkit::eventually;

    use super::*;

    #[tokio::test]
    async fn a_changed_filter_ends_by_itself_and_a_later_change_outlives_it() {
        let filter = |text: &str| text.parse::<Targets>().expect("a filter");
        let log = LogFilter::with(filter("info"), None);
        assert_eq!(log.in_force().left, None);
        let short = Duration::from_millis(50);
        log.change(filter("debug"), short);
        assert_eq!(log.in_force().filter, filter("debug"));
        let ended = async || log.in_force().left.is_none();
        assert!(eventually(Duration::from_secs(30), ended).await);
        assert_eq!(log.in_force().filter, filter("info"));
        log.change(filter("debug"), short);
        log.change(filter("trace"), Duration::from_mins(1));
        sleep_until(Instant::now() + 3 * short).await;
        assert_eq!(log.in_force().filter, filter("trace"), "the first change has ended the second");
        log.reset();
        let FilterInForce { filter: now, default, left } = log.in_force();
        assert_eq!((now, left), (default, None));
    }
}
