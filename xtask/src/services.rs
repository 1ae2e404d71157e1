//! The programs that run until the command ends, and the order in which they end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use testkit::{Process, Program};

use crate::console::Progress;
use crate::{paths, signals};

/// The time after which a wait shows progress.
const SHOWN_AFTER: Duration = Duration::from_secs(2);
/// The time between two checks whether a service has ended.
const CHECK: Duration = Duration::from_millis(20);

/// A program that runs until it is stopped.
pub struct Service {
    /// The process.
    pub process: Process,
    /// The stage: services of the highest stage are stopped first, those of one stage together.
    stage: u8,
    /// The time that it may take to end by itself.
    grace: Duration,
    /// Whether a second Ctrl-C kills it at once: not where it has data to write.
    ends_at_once: bool,
}

impl Service {
    /// Creates a service that is not started yet.
    pub fn new(mut program: Program, stage: u8) -> Self {
        program.own_group = true;
        program.signal_at_owners_death = "TERM";
        // The log is a file: some programs would colour it nevertheless.
        program = program.env("NO_COLOR", "1");
        Self {
            process: Process::new(program),
            stage,
            grace: Duration::from_secs(5),
            ends_at_once: true,
        }
    }

    /// Sets the time that it may take to end by itself.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Makes a second Ctrl-C not kill it at once.
    pub fn with_whole_grace(mut self) -> Self {
        self.ends_at_once = false;
        self
    }

    /// Waits for a condition that the service should bring about; shows progress.
    ///
    /// # Errors
    /// Fails where the service ends first or the condition does not come in time, and where it is time
    /// to stop.
    pub fn wait_until(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let (start, mut progress) = (Instant::now(), Progress::new());
        let waiting = self.process.wait_until(limit, what, || {
            if start.elapsed() > SHOWN_AFTER {
                let (name, seconds) = (self.process.name(), start.elapsed().as_secs());
                progress.show(&format!("waiting for {name} … {seconds} s"));
            }
            signals::stopping() || condition()
        });
        signals::check()?;
        waiting
    }

    /// Waits for the line `listening on ADDRESS` and returns the address.
    ///
    /// # Errors
    /// Fails as [`Self::wait_until`] does.
    pub fn address(&self, limit: Duration) -> anyhow::Result<String> {
        self.wait_until(limit, "does not listen", || self.process.announced().is_some())?;
        Ok(self.process.announced().unwrap_or_default())
    }
}

/// All services of a command. They are stopped when this value is dropped.
#[derive(Default)]
pub struct Services(Mutex<Vec<Arc<Service>>>);

impl Services {
    /// Starts a service.
    ///
    /// # Errors
    /// Fails where its program is missing.
    pub fn start(&self, service: Service) -> anyhow::Result<Arc<Service>> {
        std::fs::create_dir_all(paths::logs())?;
        service.process.start()?;
        let service = Arc::new(service);
        self.lock().push(Arc::clone(&service));
        Ok(service)
    }

    /// Returns the services that have ended.
    pub fn ended(&self) -> Vec<Arc<Service>> {
        self.lock().iter().filter(|service| service.process.has_ended()).cloned().collect()
    }

    /// Returns whether no service was started, or all were stopped.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns whether a service of this name was started.
    pub fn has(&self, name: &str) -> bool {
        self.lock().iter().any(|service| service.process.name() == name)
    }

    /// Stops all services, those of the highest stage first. A service is killed after its time, or
    /// at a further Ctrl-C.
    pub fn stop(&self) {
        let signals_before = signals::count();
        let mut services = std::mem::take(&mut *self.lock());
        services.sort_by_key(|service| std::cmp::Reverse(service.stage));
        for group in services.chunk_by(|a, b| a.stage == b.stage) {
            for service in group {
                service.process.terminate();
            }
            let start = Instant::now();
            while group.iter().any(|service| !service.process.has_ended()) {
                let is_urgent = signals::count() > signals_before.max(1);
                for service in group {
                    if (is_urgent && service.ends_at_once) || start.elapsed() > service.grace {
                        service.process.kill();
                    }
                }
                testkit::pause(CHECK);
            }
            // Its child processes may be left.
            for service in group {
                service.process.kill();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Service>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_highest_stage_ends_first() {
        let dir = TempDir::new().expect("a folder");
        let order = dir.path().join("order");
        let services = Services::default();
        for stage in 0..3 {
            let script = format!(
                "trap 'echo {stage} >> {}; exit' TERM; echo up; while :; do sleep 0.02; done",
                order.display()
            );
            let program = Program::new(&format!("s{stage}"), "sh", dir.path());
            let service = Service::new(program.args(["-c", &script]), stage);
            let service = services.start(service).expect("a start");
            let up = || service.process.printed().contains("up");
            service.wait_until(Duration::from_secs(20), "is not up", up).expect("a service");
        }
        services.stop();
        assert!(services.is_empty());
        let order = std::fs::read_to_string(order).expect("an order");
        assert_eq!(order.split_whitespace().collect::<Vec<_>>(), ["2", "1", "0"]);
    }
}
