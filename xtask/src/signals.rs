//! The requests to stop. Every wait checks them, so that no step is torn in the middle.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicI32 = AtomicI32::new(0);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// The time between two checks while nothing else happens.
const CHECK: Duration = Duration::from_millis(50);

/// A signal asked to stop, or another part of the command has failed.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to count signals.
///
/// # Errors
/// Fails where the kernel refuses.
pub fn install() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            LAST.store(signal, Ordering::Relaxed);
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Returns how many signals came.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Returns the exit code for the last signal.
pub fn exit_code() -> u8 {
    128 + u8::try_from(LAST.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Makes every wait beside this thread end, because the command has failed.
pub fn give_up() {
    GIVEN_UP.store(true, Ordering::Relaxed);
}

/// Returns whether it is time to stop.
pub fn stopping() -> bool {
    count() > 0 || GIVEN_UP.load(Ordering::Relaxed)
}

/// Fails where it is time to stop.
///
/// # Errors
/// Fails with [`Interrupted`].
pub fn check() -> anyhow::Result<()> {
    if stopping() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Waits, unless it is time to stop.
///
/// # Errors
/// Fails with [`Interrupted`].
pub fn pause(time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        testkit::pause(left.min(CHECK));
    }
}
