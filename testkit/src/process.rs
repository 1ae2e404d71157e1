//! Programs that run until they are ended, and never outlive their owner.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::programs;
use crate::wait::eventually_blocking;

/// Lines of a log that are shown when something failed.
const SHOWN_LINES: usize = 20;

/// The time that a process may take to end by itself.
const END_LIMIT: Duration = Duration::from_mins(1);

/// How a program is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The name in logs and messages.
    pub name: String,
    /// The program: a path, or a name that is searched for.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, in addition to this process's own.
    pub environment: Vec<(String, String)>,
    /// Variables of this process's environment that it does not get: those that begin with these.
    pub hidden: Vec<&'static str>,
    /// The file that its output is added to.
    pub log: PathBuf,
    /// Whether it has a process group of its own: Ctrl-C in the terminal does not reach it, and its
    /// child processes end with it.
    pub own_group: bool,
    /// The name of the signal that it gets when this process dies.
    pub signal_at_owners_death: &'static str,
}

impl Program {
    /// Creates a program without arguments, whose log is in `folder`.
    pub fn new(name: &str, path: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            hidden: Vec::new(),
            log: folder.join(format!("{name}.log")),
            own_group: false,
            signal_at_owners_death: "KILL",
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, log: File) -> anyhow::Result<Command> {
        let mut command = guarded(&self.path, self.signal_at_owners_death)?;
        for (name, _) in std::env::vars_os() {
            if self.hidden.iter().any(|start| name.to_string_lossy().starts_with(start)) {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.own_group {
            command.process_group(0);
        }
        Ok(command)
    }
}

/// A program that runs, or can be started. It is killed when this value is dropped; when that happens
/// because the thread panics, the end of its log is shown.
#[derive(Debug)]
pub struct Process {
    program: Program,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    ended: Option<ExitStatus>,
    /// The process group, until its last process was killed.
    group: Option<Pid>,
    /// The length of the log when the program was last started.
    log_start: u64,
}

impl Process {
    /// Creates a process that is not started yet.
    pub fn new(program: Program) -> Self {
        Self { program, state: Mutex::default() }
    }

    /// Starts the program, for the first time or again. One that still runs is killed first.
    ///
    /// # Errors
    /// Fails where the program is missing or its log cannot be written.
    pub fn start(&self) -> anyhow::Result<()> {
        self.kill();
        let path = &self.program.log;
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.with_context(|| path.display().to_string())?;
        let log_start = log.metadata()?.len();
        let command = self.program.command(log)?;
        let child =
            spawn(command).with_context(|| format!("{} cannot start", self.program.name))?;
        let group = if self.program.own_group { pid_of(&child) } else { None };
        *self.state() = State { child: Some(child), ended: None, group, log_start };
        Ok(())
    }

    /// Returns the name in logs and messages.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// Returns the file that the output is added to.
    pub fn log(&self) -> &Path {
        &self.program.log
    }

    /// Returns the process identifier; none once the process is known to have ended.
    pub fn id(&self) -> Option<u32> {
        self.state().child.as_ref().map(Child::id)
    }

    /// Returns whether the process has ended, or was never started.
    pub fn has_ended(&self) -> bool {
        self.state().has_ended()
    }

    /// Kills the process, as a crash does.
    pub fn kill(&self) {
        let mut state = self.state();
        // The process may have ended, and its child processes may be left.
        if let Some(group) = state.group.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        if let Some(mut child) = state.child.take() {
            // It may have ended by itself at this very moment.
            let _ = child.kill();
            state.ended = child.wait().ok();
        }
    }

    /// Stops the process in mid-step until [`Self::resume`].
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes a paused process.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGTERM and waits; kills the process after `limit`. Returns whether it ended by itself.
    pub fn end(&self, limit: Duration) -> bool {
        self.terminate();
        let ended = eventually_blocking(limit, || self.has_ended());
        self.kill();
        ended
    }

    /// Waits until the process ends by itself and returns its exit code; none where a signal ended it
    /// or it does not end within a minute.
    pub fn wait(&self) -> Option<i32> {
        let ended = eventually_blocking(END_LIMIT, || self.has_ended());
        self.state().ended.filter(|_| ended).and_then(|status| status.code())
    }

    /// Returns the resident memory, in KiB.
    ///
    /// # Errors
    /// Fails where the process has ended.
    pub fn resident_kib(&self) -> anyhow::Result<f64> {
        let id = self.id().context("the process has ended")?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kib.context("the kernel reports no resident memory")
    }

    /// Returns the CPU time of the first thread of the process; other threads do not count.
    ///
    /// # Errors
    /// Fails where the process has ended, or the kernel does not report the time.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let id = self.id().context("the process has ended")?;
        let figures = fs::read_to_string(format!("/proc/{id}/schedstat"))?;
        let nanoseconds = figures.split_whitespace().next().and_then(|first| first.parse().ok());
        nanoseconds.map(Duration::from_nanos).context("the kernel reports no time")
    }

    /// Returns the output since the process was last started.
    pub fn printed(&self) -> String {
        let start = self.state().log_start;
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.program.log)?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Waits for the line `listening on ADDRESS` and returns the address.
    ///
    /// # Errors
    /// Fails where the process ends first, or announces no address in time.
    pub fn announced_address(&self, limit: Duration) -> anyhow::Result<String> {
        let mut address = None;
        self.wait_until(limit, "does not listen", || {
            address = self.announced();
            address.is_some()
        })?;
        address.context("no address")
    }

    /// Returns the address in the line `listening on ADDRESS`, once it was written.
    pub fn announced(&self) -> Option<String> {
        let printed = self.printed();
        let mut lines = printed.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let address = lines.find_map(|line| line.strip_prefix("listening on "));
        address.map(|address| address.trim().to_owned())
    }

    /// Waits for a condition that the process should bring about.
    ///
    /// # Errors
    /// Fails, with the end of the log, where the process ends first or the condition does not come in
    /// time; `otherwise` is the text for that.
    pub fn wait_until(
        &self,
        limit: Duration,
        otherwise: &str,
        mut condition: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let mut holds = false;
        let _ = eventually_blocking(limit, || {
            holds = condition();
            holds || self.has_ended()
        });
        if holds {
            return Ok(());
        }
        if self.has_ended() {
            bail!("{}", self.epitaph());
        }
        bail!(
            "{} {otherwise} within {} s; see {}",
            self.name(),
            limit.as_secs(),
            self.log().display()
        )
    }

    /// Returns how the process ended: `was killed by SIGKILL` or `ended with code 1`.
    pub fn how_it_ended(&self) -> String {
        let ended = self.state().ended;
        match ended.map(|status| (status.signal(), status.code())) {
            Some((Some(9), _)) => "was killed by SIGKILL".to_owned(),
            Some((Some(number), _)) => format!("was killed by signal {number}"),
            Some((None, Some(code))) => format!("ended with code {code}"),
            _ => "runs".to_owned(),
        }
    }

    /// Returns how the process ended, and the end of its log.
    pub fn epitaph(&self) -> String {
        let log = fs::read(&self.program.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.trim_end().lines().collect();
        let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ");
        let (name, how, path) = (self.name(), self.how_it_ended(), self.log().display());
        format!("{name} {how}. The end of {path}:\n    {end}")
    }

    fn signal(&self, which: Signal) {
        if let Some(id) = self.state().child.as_ref().and_then(pid_of) {
            // It may have ended at this very moment.
            let _ = kill_process(id, which);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() && self.log().exists() {
            // The log is complete once the end of the process is known.
            self.has_ended();
            eprintln!("── {}", self.epitaph());
        }
        self.kill();
    }
}

impl State {
    fn has_ended(&mut self) -> bool {
        let status = self.child.as_mut().map(Child::try_wait);
        match status {
            Some(Ok(None)) => return false,
            Some(Ok(status)) => self.ended = status,
            Some(Err(_)) | None => {}
        }
        self.child = None;
        true
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Returns a command that starts a program which gets this signal when its owner dies, but for the
/// millisecond before setpriv has set it. Start it with [`spawn`].
///
/// # Errors
/// Fails where there is no such program.
pub fn guarded(program: &Path, signal: &str) -> anyhow::Result<Command> {
    let program = programs::resolve(program)?;
    // `pre_exec` would be unsafe code; setpriv sets the signal and becomes the program.
    let Some(setpriv) = setpriv() else { return Ok(Command::new(program)) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    Ok(command)
}

fn setpriv() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(|| programs::find("setpriv")).as_deref()
}

/// Starts a child from a thread that never ends. The kernel sends the signal at the owner's death when
/// the *thread* that started the child ends.
///
/// # Errors
/// Fails where the program cannot be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = sync_channel::<Order>(0);
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                // Only an owner that panicked does not wait for it.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, child) = sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts programs has ended");
    spawner.send((command, reply)).map_err(|_| io::Error::other("no thread starts programs"))?;
    child.recv().map_err(gone)?
}
