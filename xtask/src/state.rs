//! The lock of this folder: one command runs at a time, because two would share a Redis file.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::address::Address;
use crate::console::Progress;
use crate::{paths, signals};

/// The time that a running command may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(90);

fn file() -> PathBuf {
    paths::run().join("run.json")
}

fn lock_file() -> anyhow::Result<File> {
    let path = paths::run().join("lock");
    fs::create_dir_all(paths::run())?;
    File::options()
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| path.display().to_string())
}

fn read() -> Value {
    let text = fs::read_to_string(file()).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Returns the address of the server that runs from this folder.
pub fn listen() -> Option<Address> {
    read()["listen"].as_str()?.parse().ok()
}

/// The right to run; dropping it frees it.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the right.
    ///
    /// # Errors
    /// Fails where another command runs from this folder already.
    pub fn take(listen: &Address) -> anyhow::Result<Self> {
        let lock = lock_file()?;
        if lock.try_lock().is_err() {
            let state = read();
            let (at, process) = (state["listen"].as_str().unwrap_or("?"), &state["process"]);
            bail!(
                "jarvis runs here already: http://{at} (process {process}).\n`make stop` ends it."
            );
        }
        let state = json!({"process": std::process::id(), "listen": listen.to_string()});
        fs::write(file(), state.to_string())?;
        Ok(Self { _file: lock })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(file());
    }
}

/// Stops the command that runs from this folder, and returns whether there was one.
///
/// # Errors
/// Fails where it does not end in time.
pub fn stop() -> anyhow::Result<bool> {
    if !paths::run().join("lock").exists() {
        return Ok(false);
    }
    let lock = lock_file()?;
    let mut progress = Progress::new();
    let mut asked: Option<Instant> = None;
    while lock.try_lock().is_err() {
        let process = &read()["process"];
        let Some(start) = asked else {
            let id = process.as_i64().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
            kill_process(id.context("the process that runs is not known")?, Signal::TERM)?;
            asked = Some(Instant::now());
            continue;
        };
        if start.elapsed() > STOP_LIMIT {
            bail!("process {process} does not end; see {}", paths::shown(&paths::logs()));
        }
        progress.show(&format!("stopping … {} s", start.elapsed().as_secs()));
        signals::pause(Duration::from_millis(50))?;
    }
    Ok(asked.is_some())
}
