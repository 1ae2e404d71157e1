//! Programs that run to their end while the command waits.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use testkit::process::{guarded, spawn};

use crate::console::{Progress, note};
use crate::{paths, signals};

/// The time between two checks whether a program has ended.
const CHECK: Duration = Duration::from_millis(10);
/// The time that a program may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A program, its arguments and its environment in addition to this process's own.
pub struct Run {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
}

/// Creates a command of a program and its arguments.
pub fn run<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Run {
    Run {
        program: program.as_ref().to_owned(),
        arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
        environment: Vec::new(),
    }
}

impl Run {
    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Adds a variable to the environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Shows the program's output and returns its exit code.
    ///
    /// # Errors
    /// Fails where the program is missing, and where it is time to stop.
    pub fn shown(&self) -> anyhow::Result<i32> {
        self.wait(self.command()?, || {})
    }

    /// Shows the program's output, and returns its exit code and the output.
    ///
    /// # Errors
    /// Fails where the program is missing, and where it is time to stop.
    pub fn shown_and_read(&self) -> anyhow::Result<(i32, String)> {
        self.copied(|part| {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(part).and_then(|()| out.flush());
        })
    }

    /// Returns the program's exit code and its output, which is not shown.
    ///
    /// # Errors
    /// Fails where the program is missing, and where it is time to stop.
    pub fn read(&self) -> anyhow::Result<(i32, String)> {
        self.copied(|_| {})
    }

    fn copied(&self, show: impl Fn(&[u8]) + Send + 'static) -> anyhow::Result<(i32, String)> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut command = self.command()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let copying = std::thread::spawn(move || {
            let (mut all, mut part) = (Vec::new(), [0; 16 << 10]);
            while let Ok(size @ 1..) = reader.read(&mut part) {
                show(&part[..size]);
                all.extend_from_slice(&part[..size]);
            }
            String::from_utf8_lossy(&all).into_owned()
        });
        // The reader ends once every writer is closed.
        let code = self.wait(command, || {});
        Ok((code?, copying.join().unwrap_or_default()))
    }

    /// Returns whether the program is installed and succeeds; its output is not shown.
    ///
    /// # Errors
    /// Fails where it is time to stop.
    pub fn succeeds(&self) -> anyhow::Result<bool> {
        self.quiet(|| {})
    }

    /// Does the same, and shows progress meanwhile.
    ///
    /// # Errors
    /// Fails where it is time to stop.
    pub fn succeeds_after_retries(&self, what: &str) -> anyhow::Result<bool> {
        let (start, mut progress) = (Instant::now(), Progress::new());
        self.quiet(|| progress.show(&format!("{what} … {} s", start.elapsed().as_secs())))
    }

    fn quiet(&self, tick: impl FnMut()) -> anyhow::Result<bool> {
        let Ok(mut command) = self.command() else { return Ok(false) };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match self.wait(command, tick) {
            Ok(code) => Ok(code == 0),
            Err(error) if error.is::<signals::Interrupted>() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Returns the output of a short program; empty where it is missing or fails.
    pub fn output(&self) -> String {
        let output = self.command().and_then(|mut command| Ok(command.output()?));
        let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = guarded(Path::new(&self.program), "TERM")?;
        testkit::programs::hide_runner(&mut command);
        command.args(&self.arguments).current_dir(paths::root());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    fn wait(&self, command: Command, mut tick: impl FnMut()) -> anyhow::Result<i32> {
        let mut child =
            spawn(command).with_context(|| format!("{} cannot start", self.program.display()))?;
        loop {
            if let Some(status) = child.try_wait()? {
                // Ctrl-C reaches the program, too, so that its exit means nothing else.
                if !status.success() {
                    signals::check()?;
                }
                if let Some(signal) = status.signal() {
                    note(&format!("{} was ended by signal {signal}", self.program.display()));
                }
                return Ok(status.code().unwrap_or(1));
            }
            if signals::stopping() {
                let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                let _ = id.map(|id| kill_process(id, Signal::TERM));
                let ended = || matches!(child.try_wait(), Ok(Some(_)));
                if !testkit::eventually_blocking(END_LIMIT, ended) {
                    child.kill()?;
                    child.wait()?;
                }
            }
            signals::check()?;
            tick();
            testkit::pause(CHECK);
        }
    }
}
