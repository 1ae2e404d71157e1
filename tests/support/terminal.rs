//! Programs in a real terminal: `script` makes the pseudo-terminal, and this module interprets what is
//! written to it, as far as this project's programs go.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use testkit::folder::Folder;

use super::process::LIMIT;

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CharacterStyle {
    /// The number of its colour, 0 to 15.
    pub colour: Option<u8>,
    pub is_bold: bool,
    pub is_dim: bool,
}

/// A character with its look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Character {
    pub character: char,
    pub look: CharacterStyle,
}

const BLANK: Character = Character {
    character: ' ',
    look: CharacterStyle { colour: None, is_bold: false, is_dim: false },
};

/// The picture of a terminal.
#[derive(Clone, Debug)]
pub struct TerminalScreen {
    pub rows: Vec<Vec<Character>>,
    columns: usize,
    at: (usize, usize),
    look: CharacterStyle,
    /// The bytes of a sequence or a character that is not whole yet.
    pending: Vec<u8>,
    /// The other screen, while the alternate one is shown.
    main: Option<Vec<Vec<Character>>>,
    pub hides_cursor: bool,
}

impl TerminalScreen {
    fn new(columns: usize, rows: usize) -> Self {
        Self {
            rows: vec![vec![BLANK; columns]; rows],
            columns,
            at: (0, 0),
            look: CharacterStyle::default(),
            pending: Vec::new(),
            main: None,
            hides_cursor: false,
        }
    }

    /// Returns the rows as texts, without the blanks at their ends.
    pub fn lines(&self) -> Vec<String> {
        let text = |row: &Vec<Character>| row.iter().map(|cell| cell.character).collect::<String>();
        self.rows.iter().map(|row| text(row).trim_end().to_owned()).collect()
    }

    /// Returns whether a program shows a picture of its own instead of the lines that were there.
    pub fn is_alternate(&self) -> bool {
        self.main.is_some()
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        self.columns = columns;
        self.rows.resize(rows, Vec::new());
        for row in &mut self.rows {
            row.resize(columns, BLANK);
        }
        self.at = (self.at.0.min(columns - 1), self.at.1.min(rows - 1));
    }

    fn write(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.pending);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Some(taken) = self.step(rest) else { break };
            rest = &rest[taken..];
        }
        self.pending = rest.to_vec();
    }

    /// Carries out one character or sequence, and returns its bytes; none where it is not whole.
    fn step(&mut self, bytes: &[u8]) -> Option<usize> {
        match bytes[0] {
            b'\r' => self.at.0 = 0,
            b'\n' => self.feed(),
            8 => self.at.0 = self.at.0.saturating_sub(1),
            0x1b => return self.escape(bytes),
            0..0x20 => {}
            first => {
                let length = match first {
                    0xf0.. => 4,
                    0xe0.. => 3,
                    0xc0.. => 2,
                    _ => 1,
                };
                let text = String::from_utf8_lossy(bytes.get(..length)?).into_owned();
                for character in text.chars() {
                    self.put(character);
                }
                return Some(length);
            }
        }
        Some(1)
    }

    fn put(&mut self, character: char) {
        if self.at.0 >= self.columns {
            self.at.0 = 0;
            self.feed();
        }
        let (column, row) = self.at;
        self.rows[row][column] = Character { character, look: self.look };
        self.at.0 += 1;
    }

    fn feed(&mut self) {
        if self.at.1 + 1 < self.rows.len() {
            self.at.1 += 1;
        } else {
            self.rows.remove(0);
            self.rows.push(vec![BLANK; self.columns]);
        }
    }

    fn escape(&mut self, bytes: &[u8]) -> Option<usize> {
        match bytes.get(1)? {
            b'[' => {}
            b'(' => return bytes.get(2).map(|_| 3),
            b']' => return bytes.iter().position(|byte| *byte == 7).map(|end| end + 1),
            _ => return Some(2),
        }
        let end = bytes[2..].iter().position(|byte| (0x40..0x7f).contains(byte))? + 2;
        let text = String::from_utf8_lossy(&bytes[2..end]).into_owned();
        let is_private = text.starts_with('?');
        let numbers: Vec<usize> =
            text.trim_start_matches('?').split(';').map(|n| n.parse().unwrap_or(0)).collect();
        let first = numbers[0];
        let last = (self.columns - 1, self.rows.len() - 1);
        match bytes[end] {
            b'H' | b'f' => {
                let column = numbers.get(1).copied().unwrap_or(1).max(1) - 1;
                self.at = (column.min(last.0), (first.max(1) - 1).min(last.1));
            }
            b'A' => self.at.1 = self.at.1.saturating_sub(first.max(1)),
            b'B' => self.at.1 = (self.at.1 + first.max(1)).min(last.1),
            b'C' => self.at.0 = (self.at.0 + first.max(1)).min(last.0),
            b'D' => self.at.0 = self.at.0.saturating_sub(first.max(1)),
            b'J' if first == 2 => self.clear_from(0),
            b'J' => {
                self.rows[self.at.1][self.at.0.min(last.0)..].fill(BLANK);
                self.clear_from(self.at.1 + 1);
            }
            b'K' => self.rows[self.at.1][self.at.0.min(last.0)..].fill(BLANK),
            b'm' => self.set_look(&numbers),
            b'h' | b'l' if is_private => self.set_mode(first, bytes[end] == b'h'),
            _ => {}
        }
        Some(end + 1)
    }

    fn clear_from(&mut self, row: usize) {
        for row in self.rows.iter_mut().skip(row) {
            row.fill(BLANK);
        }
    }

    fn set_mode(&mut self, mode: usize, on: bool) {
        match mode {
            25 => self.hides_cursor = !on,
            1049 if on => {
                let empty = vec![vec![BLANK; self.columns]; self.rows.len()];
                self.main = Some(std::mem::replace(&mut self.rows, empty));
            }
            1049 => {
                if let Some(main) = self.main.take() {
                    let (columns, rows) = (self.columns, self.rows.len());
                    self.rows = main;
                    self.resize(columns, rows);
                }
            }
            _ => {}
        }
    }

    fn set_look(&mut self, numbers: &[usize]) {
        let mut rest = numbers;
        while let [number, after @ ..] = rest {
            rest = after;
            match number {
                0 => self.look = CharacterStyle::default(),
                1 => self.look.is_bold = true,
                2 => self.look.is_dim = true,
                22 => (self.look.is_bold, self.look.is_dim) = (false, false),
                30..=37 => self.look.colour = u8::try_from(number - 30).ok(),
                38 if rest.first() == Some(&5) => {
                    self.look.colour = rest.get(1).and_then(|colour| u8::try_from(*colour).ok());
                    rest = rest.get(2..).unwrap_or_default();
                }
                39 => self.look.colour = None,
                48 if rest.first() == Some(&5) => rest = rest.get(2..).unwrap_or_default(),
                _ => {}
            }
        }
    }
}

/// A program in a terminal. It ends with this value, as if the terminal was closed.
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<TerminalScreen>>,
    folder: Folder,
}

impl Terminal {
    /// Runs this line of a shell with these variables in a terminal of this size.
    pub fn run(columns: usize, rows: usize, line: &str, variables: &[(&str, &str)]) -> Self {
        let folder = Folder::temporary().expect("a folder");
        let path = folder.path().display();
        let inside = format!(
            "stty cols {columns} rows {rows}; tty > {path}/tty; stty -g > {path}/before\n\
             sh -c 'echo $$ > {path}/pid; exec {line}'\n\
             echo $? > {path}/code.new; stty -g > {path}/after; mv {path}/code.new {path}/code\n"
        );
        let file = folder.path().join("inside");
        std::fs::write(&file, inside).expect("a file");
        let mut command = Command::new("script");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("JARVIS_") || name == "NO_COLOR" {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["-qfec", &format!("sh {}", file.display()), "/dev/null"])
            .env("SHELL", "/bin/sh")
            .env("TERM", "xterm-256color")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script (Debian: bsdutils)");
        let screen = Arc::new(Mutex::new(TerminalScreen::new(columns, rows)));
        let (mut output, shown) = (child.stdout.take().expect("an output"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(size @ 1..) = output.read(&mut part) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).write(&part[..size]);
            }
        });
        let keyboard = child.stdin.take().expect("an input");
        Self { child, keyboard, screen, folder }
    }

    /// Returns what the terminal shows.
    pub fn screen(&self) -> TerminalScreen {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Types these characters.
    pub fn type_text(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("a key");
        self.keyboard.flush().expect("a key");
    }

    /// Waits until the lines of the screen meet a condition.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let shown = testkit::eventually(LIMIT, async || wanted(&self.screen().lines()));
        assert!(shown.await, "{what} is not shown:\n{}", self.screen().lines().join("\n"));
        self.screen().lines()
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: usize, rows: usize) {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).resize(columns, rows);
        let tty = self.noted("tty").expect("a terminal");
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let arguments = ["-F", &tty, "cols", &columns, "rows", &rows];
        assert!(Command::new("stty").args(arguments).status().expect("stty").success());
    }

    /// Sends the program a signal.
    pub fn signal(&self, name: &str) {
        let id = self.noted("pid").expect("a process");
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill").success());
    }

    /// Waits for the program's end, and returns its exit code, and whether the settings of the terminal
    /// are those before its start.
    pub async fn ended(&self) -> (String, bool) {
        let ended = testkit::eventually(LIMIT, async || self.noted("code").is_some());
        assert!(ended.await, "it runs on:\n{}", self.screen().lines().join("\n"));
        let is_restored = self.noted("before") == self.noted("after");
        (self.noted("code").unwrap_or_default(), is_restored)
    }

    fn noted(&self, name: &str) -> Option<String> {
        let path: PathBuf = self.folder.path().join(name);
        let text = std::fs::read_to_string(path).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
