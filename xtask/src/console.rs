//! The output for a person: aligned lines, one a step, with the time that the step took.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The width of the labels.
pub const LABEL: usize = 11;
/// The width of a line where the terminal reports none.
const WIDTH: usize = 100;
/// The time between two lines of progress where the output is no terminal.
const PROGRESS: Duration = Duration::from_secs(10);
/// The time between two changes of a line of progress on a terminal.
const REDRAW: Duration = Duration::from_millis(100);

/// Returns whether the output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

fn colour(code: &str, text: &str) -> String {
    if is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Returns the text in bold.
pub fn bold(text: &str) -> String {
    colour("1", text)
}

/// Returns the text in grey.
pub fn dim(text: &str) -> String {
    colour("2", text)
}

/// Returns the text in red.
pub fn red(text: &str) -> String {
    colour("31", text)
}

/// Returns the text in green.
pub fn green(text: &str) -> String {
    colour("32", text)
}

/// Prints a line.
pub fn say(text: &str) {
    // Steps run beside each other, and beside the progress bar of Cargo, which leaves the cursor at
    // the start of its line.
    let clear = if is_terminal() { "\r\x1b[K" } else { "" };
    print(&format!("{clear}{text}\n"));
}

fn print(text: &str) {
    static LOCK: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut out = std::io::stdout().lock();
    // The terminal may be gone; the services that were started are stopped nevertheless.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a heading.
pub fn title(text: &str) {
    say(&format!("\n{}\n", bold(text)));
}

/// Prints `label      text                    1.2 s`; further lines of the text are indented.
pub fn line(label: &str, text: &str, time: Option<Duration>) {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let took = time.map(|time| format!("{:.1} s", time.as_secs_f64())).unwrap_or_default();
    let used = LABEL + 4 + visible_length(first) + took.len();
    let room = if took.is_empty() { 0 } else { width().saturating_sub(used).max(2) };
    let label = bold(&format!("{label:LABEL$}"));
    say(&format!("  {label}{first}{:room$}{}", "", dim(&took)));
    for more in lines {
        say(&format!("  {:LABEL$}{more}", ""));
    }
}

/// Announces a step that takes a while.
pub fn note(text: &str) {
    for part in text.lines() {
        say(&format!("  {:LABEL$}{}", "", dim(part)));
    }
}

/// Runs a step and prints its line at the end: the text that it returns, and the time.
///
/// # Errors
/// Fails as the step does.
pub fn step(label: &str, action: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let start = Instant::now();
    let text = action()?;
    line(label, &text, Some(start.elapsed()));
    Ok(())
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(WIDTH, |size| usize::from(size.ws_col).clamp(40, WIDTH))
}

/// Returns the length without the sequences that colour the text.
fn visible_length(text: &str) -> usize {
    without_colour(text).chars().count()
}

/// Returns the text without the sequences that colour it.
pub fn without_colour(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|character: char| character.is_ascii_alphabetic());
        plain.push_str(end.and_then(|end| part.get(end + 1..)).unwrap_or_default());
    }
    plain
}

/// A line that rewrites itself on a terminal, and is printed every ten seconds elsewhere.
pub struct Progress {
    last: Option<Instant>,
    start: Instant,
    shown: bool,
}

impl Progress {
    /// Creates a line that shows nothing yet.
    pub fn new() -> Self {
        Self { last: None, start: Instant::now(), shown: false }
    }

    /// Shows this text, unless another one was shown just before.
    pub fn show(&mut self, text: &str) {
        let terminal = is_terminal();
        let since = self.last.unwrap_or(self.start).elapsed();
        if since < if terminal { REDRAW } else { PROGRESS } {
            return;
        }
        self.last = Some(Instant::now());
        if terminal {
            print(&format!("\r\x1b[K  {:LABEL$}{}", "", dim(text)));
            self.shown = true;
        } else {
            note(text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            print("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_do_not_count_as_text() {
        assert_eq!(without_colour("\x1b[1mok\x1b[0m  a\x1b[31;1mb\x1b[0m"), "ok  ab");
        assert_eq!(visible_length("\x1b[32mé\x1b[0m"), 1);
    }
}
