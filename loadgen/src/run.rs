//! Runs all sessions, and prints a line of progress.

use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client::{Options, Shared, hold};
use crate::tally::Tally;

/// The time within which the sessions begin, one after another.
const RAMP: Duration = Duration::from_secs(3);
/// The time for the comparison of a history and for other work after a session's last turn.
const AFTERWARDS: Duration = Duration::from_secs(90);

/// Runs all sessions to their end; returns false where that did not come in time.
///
/// # Errors
/// Fails where no client can be made.
pub async fn run(options: Options, tally: Arc<Tally>) -> anyhow::Result<bool> {
    let limit = options.duration + options.turn_limit + AFTERWARDS;
    let shared = Shared::new(options, Arc::clone(&tally))?;
    let sessions = shared.sessions();
    let mut clients = JoinSet::new();
    for number in 0..sessions {
        let start = RAMP.mul_f64(number as f64 / sessions as f64);
        clients.spawn(hold(shared.clone(), number, start));
    }
    let progress = tokio::spawn(progress(tally, sessions));
    let all = async { while clients.join_next().await.is_some() {} };
    let in_time = timeout(limit, all).await.is_ok();
    progress.abort();
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    Ok(in_time)
}

async fn progress(tally: Arc<Tally>, sessions: usize) {
    let terminal = std::io::stderr().is_terminal();
    let mut tick = interval(Duration::from_secs(if terminal { 1 } else { 10 }));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tick.tick().await;
    loop {
        tick.tick().await;
        let seconds = tally.began.elapsed().as_secs();
        let c = &tally.counters;
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let line = format!(
            "{:02}:{:02}  {sessions} sessions, {} of {} turns run; lost {} doubled {} reordered {} \
             wrong {} forgotten {} unfinished {}; failed {}, reconnects {}",
            seconds / 60,
            seconds % 60,
            get(&c.running),
            get(&c.turns),
            get(&c.lost),
            get(&c.doubled),
            get(&c.reordered),
            get(&c.wrong),
            get(&c.forgotten),
            get(&c.unfinished),
            get(&c.failed),
            get(&c.reconnects),
        );
        let mut out = std::io::stderr().lock();
        // The reader of the progress may be gone; nothing depends on it.
        let _ = if terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }
}
