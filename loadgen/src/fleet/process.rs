//! One process that may be killed, paused and started again on its port.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

/// Below the ports that the kernel gives to outgoing connections, so that a restarted server finds
/// its own still free; 10,000 above each is the bus of a cluster's node.
const PORTS: std::ops::Range<u16> = 12_000..22_000;
const BUS: u16 = 10_000;
const TRIES: usize = 200;
const LOOK: Duration = Duration::from_millis(10);

/// A port that was free a moment ago, and its bus port too.
///
/// # Errors
/// Where none was found.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..TRIES {
        let port = rand::rng().random_range(PORTS);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + BUS) {
            return Ok(port);
        }
    }
    bail!("no port from {PORTS:?} is free")
}

/// A server process.
pub struct Process {
    /// What it is called in reports and logs.
    pub name: String,
    /// Its base address.
    pub url: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Environment beside this process's own.
    pub settings: Vec<(String, String)>,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// One that is not started yet; what it prints goes to a file in `dir`.
    pub fn new(
        name: &str,
        program: PathBuf,
        arguments: Vec<String>,
        port: u16,
        dir: &Path,
    ) -> Self {
        Self {
            name: name.to_owned(),
            url: format!("http://127.0.0.1:{port}"),
            port,
            settings: Vec::new(),
            program,
            arguments,
            log: dir.join(format!("{name}.log")),
            child: Mutex::default(),
        }
    }

    /// Starts it, for the first time or again.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(&self) -> anyhow::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| self.log.display().to_string())?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        *lock(&self.child) = Some(child);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        lock(&self.child).as_ref().map(Child::id)
    }

    /// As a crash would end it.
    pub fn kill(&self) {
        let child = lock(&self.child).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it in mid-step until [`Self::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end, and waits; kills it where that takes longer than `limit`. Gives whether it
    /// ended by itself.
    pub async fn end(&self, limit: Duration) -> bool {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.has_ended() {
                return true;
            }
            sleep(LOOK).await;
        }
        self.kill();
        false
    }

    fn has_ended(&self) -> bool {
        let mut child = lock(&self.child);
        let ended = child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            *child = None;
        }
        ended
    }

    fn signal(&self, signal: Signal) {
        let id = self.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            // It may have ended this very moment.
            let _ = kill_process(id, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
