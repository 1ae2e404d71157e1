//! The terminal: it is restored however the process ends, but for SIGKILL.

use std::io::{Stdout, Write, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui_core::style::{Color, Modifier};
use ratatui_core::terminal::Terminal;
use ratatui_core::text::Line;
use ratatui_crossterm::CrosstermBackend;
use ratatui_crossterm::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui_crossterm::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui_crossterm::crossterm::{cursor, execute};
use tokio::sync::mpsc;

use super::view::Bounds;

/// Keys that are kept until they are handled.
const KEYS: usize = 16;

/// Whether the terminal is in use, and has to be restored.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// The whole terminal, until this value is dropped.
pub(super) struct FullScreen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    has_colours: bool,
}

impl FullScreen {
    /// Takes the terminal and hides what it showed. A panic gives it back before its message.
    pub(super) fn open() -> std::io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        IN_USE.store(true, Ordering::SeqCst);
        let opened = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, cursor::Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        if opened.is_err() {
            restore();
        }
        // See https://no-color.org
        let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { terminal: opened?, has_colours })
    }

    /// Draws lines that fit the terminal.
    pub(super) fn draw(
        &mut self,
        lines: impl FnOnce(Bounds) -> Vec<Line<'static>>,
    ) -> std::io::Result<()> {
        let has_colours = self.has_colours;
        self.terminal.draw(|frame| {
            let area = frame.area();
            let lines = lines(Bounds::of(area.width, area.height));
            let buffer = frame.buffer_mut();
            for (row, line) in (area.top()..area.bottom()).zip(lines) {
                buffer.set_line(area.left(), row, &line, area.width);
            }
            if !has_colours {
                for cell in &mut buffer.content {
                    (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
                    cell.modifier.remove(Modifier::DIM);
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, once.
fn restore() {
    if IN_USE.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs none of it.
        let _ = execute!(stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
        let _ = stdout().flush();
    }
}

/// An input of the user.
pub(super) enum TopInput {
    /// To end.
    End,
    /// Draws the whole picture again, as after another size of the terminal.
    Redraw,
}

/// Reads keys in a thread of its own, which ends with the process.
pub(super) fn inputs() -> mpsc::Receiver<TopInput> {
    let (sender, keys) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let key = match event {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('q' | 'Q') | KeyCode::Esc => TopInput::End,
                        KeyCode::Char('c' | 'd') if has_control => TopInput::End,
                        KeyCode::Char('l') if has_control => TopInput::Redraw,
                        _ => continue,
                    }
                }
                Event::Resize(..) => TopInput::Redraw,
                _ => continue,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    keys
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PANICS: &str = "cli::top::screen::tests::a_screen_whose_owner_panics";

    #[test]
    #[ignore = "it panics; the_terminal_is_restored_before_the_message_of_a_panic runs it"]
    fn a_screen_whose_owner_panics() {
        let mut screen = FullScreen::open().expect("a terminal");
        screen.draw(|_| vec![Line::raw("PICTURE")]).expect("a picture");
        panic!("the message");
    }

    #[test]
    fn the_terminal_is_restored_before_the_message_of_a_panic() {
        let binary = std::env::current_exe().expect("this binary");
        // `script` gives it a terminal; stty prints its settings before and after.
        let inside = format!(
            "stty cols 80 rows 24; stty -g; {} --exact {PANICS} --ignored --nocapture; stty -g",
            binary.display()
        );
        let run = Command::new("script").args(["-qec", &inside, "/dev/null"]).output();
        let output = run.expect("script (Debian: bsdutils) runs").stdout;
        let output = String::from_utf8_lossy(&output);
        let settings: Vec<_> = output.lines().filter(|line| line.contains(":bf:")).collect();
        assert!(settings.len() == 2 && settings[0] == settings[1], "{output}");
        let (picture, rest) = output.split_once("PICTURE").expect("a picture");
        assert!(picture.contains("\x1b[?1049h"), "{output:?}");
        let (restored, message) = rest.split_once("\x1b[?1049l").expect("the end of the picture");
        assert!(!restored.contains("the message"), "{output:?}");
        assert!(message.contains("\x1b[?25h") && message.contains("the message"), "{output:?}");
        assert!(!message.contains("\x1b[?1049l"), "it is restored once");
    }
}
