//! `jarvis top`: the whole fleet in a terminal, live, as Redis knows it.

mod fleet;
mod format;
mod parts;
mod sample;
mod screen;
mod table;
mod view;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use jarvis::config::RedisSettings;
use jarvis::lifecycle::spawn_caught;
use jarvis::redis::{Observer, RedisError};
use jarvis::retry::Backoff;
use jarvis::server::redis_options;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use fleet::KnownFleet;
use sample::FleetSample;
use screen::{FullScreen, TopInput, inputs};

/// The time limit of `--once`.
const ONCE_LIMIT: Duration = Duration::from_secs(5);
/// Pauses while Redis is away.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
/// Looks in a row that fail before another connection is made.
const FAILURES_OF_CONNECTION: u32 = 2;

/// Shows the fleet until `q`, Ctrl-C or SIGTERM; or prints it once.
///
/// # Errors
/// Where the terminal cannot be used, or the one look fails for 5 s.
pub async fn top(settings: &RedisSettings, interval: Duration, once: bool) -> anyhow::Result<()> {
    let observer = Observer::connect(&redis_options(settings))?;
    if once || !std::io::stdout().is_terminal() {
        return print_once(observer).await;
    }
    let (sender, looks) = mpsc::channel(1);
    let looking = spawn_caught("top", look_again_and_again(observer, interval, sender));
    let shown = show(looks, interval).await;
    looking.abort();
    shown
}

/// Prints the fleet as plain text of any width.
async fn print_once(mut observer: Observer) -> anyhow::Result<()> {
    let mut backoff = BACKOFF.until(Instant::now() + ONCE_LIMIT);
    let look = loop {
        match FleetSample::take(&mut observer).await {
            Ok(look) => break look,
            Err(error) if error.is_permanent() || !backoff.pause().await => bail!(advice(&error)),
            Err(_) => {}
        }
    };
    let mut fleet = KnownFleet::default();
    fleet.apply(Ok(look), std::time::Instant::now());
    let mut out = std::io::stdout().lock();
    for line in view::lines(&fleet, view::Bounds::NONE) {
        // Output that cannot be written has no reader.
        let _ = writeln!(out, "{}", line.to_string().trim_end());
    }
    Ok(())
}

/// Looks once an interval, and with pauses that grow while Redis is away, until the receiver is gone.
async fn look_again_and_again(
    mut observer: Observer,
    interval: Duration,
    looks: mpsc::Sender<Result<FleetSample, String>>,
) {
    let (mut backoff, mut failures) = (BACKOFF, 0_u32);
    loop {
        let begun = Instant::now();
        let look = FleetSample::take(&mut observer).await;
        let pause = if look.is_ok() {
            backoff.reset();
            failures = 0;
            Some(interval.saturating_sub(begun.elapsed()))
        } else {
            failures += 1;
            if failures.is_multiple_of(FAILURES_OF_CONNECTION) {
                // The URL was usable before.
                let _ = observer.connect_again();
            }
            backoff.next_pause()
        };
        if looks.send(look.map_err(|error| advice(&error))).await.is_err() {
            return;
        }
        sleep(pause.unwrap_or(interval)).await;
    }
}

/// Returns what is wrong, and what to do.
fn advice(error: &RedisError) -> String {
    match error {
        RedisError::Unavailable(_) => {
            format!("{error}; check --redis-url, and whether Redis runs")
        }
        RedisError::Unexpected(text) if text.contains("Function not found") => {
            "this Redis lacks the functions of this release; start a replica of it, or run jarvis \
             migrate"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// Draws each look, and whatever else changes the picture, until the user ends it.
async fn show(
    mut looks: mpsc::Receiver<Result<FleetSample, String>>,
    interval: Duration,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut screen = FullScreen::open().context("this terminal cannot be drawn on; use --once")?;
    let mut inputs = inputs();
    let mut fleet = KnownFleet::default();
    loop {
        screen.draw(|bounds| view::page(&fleet, bounds, interval))?;
        tokio::select! {
            look = looks.recv() => match look {
                Some(look) => fleet.apply(look, std::time::Instant::now()),
                None => bail!("the look at Redis ended; this is a fault of jarvis top"),
            },
            input = inputs.recv() => match input {
                Some(TopInput::Redraw) => {}
                // Without its input, the terminal is gone.
                Some(TopInput::End) | None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do() {
        let absent = RedisError::Unexpected("ERR Function not found".to_owned());
        assert!(advice(&absent).contains("run jarvis migrate"));
        assert!(advice(&RedisError::Credentials).contains("correct them in the Redis URL"));
    }
}
