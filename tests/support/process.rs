//! Real processes of ours, on ports of their own, killed with the test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Beyond it a promise counts as broken.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A child process that told where it listens.
pub struct Process {
    child: Child,
    pub url: String,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout");
        let mut lines = BufReader::new(stdout).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
            .expect("an address");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, url }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory.
    pub fn resident_kib(&self) -> f64 {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a figure")
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {name}");
    }

    /// Its exit code, when it ends by itself.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().ok().and_then(|status| status.code())
    }

    pub fn websocket(&self, path: &str) -> String {
        format!("{}{path}", self.url.replacen("http", "ws", 1))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A replica.
pub fn jarvis(redis: &str, ollama: &str, extra: &[(&str, &str)]) -> Process {
    Process::start(jarvis_command(redis, ollama, extra))
}

/// A replica, and what it logs: everything, one JSON object a line.
pub fn logged_jarvis(redis: &str, ollama: &str) -> (Process, PathBuf, TempDir) {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("log");
    let format = [("JARVIS_LOG", "info,fred=off"), ("JARVIS_LOG_FORMAT", "json")];
    let mut command = jarvis_command(redis, ollama, &format);
    command.stderr(std::fs::File::create(&path).expect("a file"));
    (Process::start(command), path, dir)
}

fn jarvis_command(redis: &str, ollama: &str, extra: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jarvis"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--redis-url", redis]);
    command.args(["--ollama-urls", ollama]);
    command.env("JARVIS_LOG", "warn,fred=off").env("JARVIS_DRAIN_TIMEOUT", "2");
    for (name, value) in extra {
        command.env(name, value);
    }
    command
}

/// A scripted Ollama.
pub fn ollama_sim(args: &[&str]) -> Process {
    ollama_sim_at("127.0.0.1:0", args)
}

/// The same, at this address: where one was that is gone.
pub fn ollama_sim_at(address: &str, args: &[&str]) -> Process {
    let mut command = Command::new(sim_binary());
    command.args(["--listen", address, "--engine", "scripted"]).args(args);
    Process::start(command)
}

/// Cargo names the binaries of this crate only; the other crate's lies beside.
fn sim_binary() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_jarvis")).with_file_name("ollama-sim");
    if !binary.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--package", "ollama-sim", "--bin", "ollama-sim"])
            .status();
        assert!(built.is_ok_and(|status| status.success()), "cargo build --package ollama-sim");
    }
    binary
}
