//! Servers of this project: replicas of jarvis, and model hosts.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::folder::Folder;
use crate::port::Port;
use crate::process::{Process, Program};

/// The time that a server may take to listen on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Starts that are tried: another program may take a port that was free a moment ago.
const STARTS: u32 = 3;

/// A replica or a model host that listens on 127.0.0.1. It keeps its port when it is started again.
#[derive(Debug)]
pub struct Server {
    /// The base address.
    pub url: String,
    // The order is that of the end: first the process, then its port and its files.
    process: Process,
    _port: Option<Port>,
    _folder: Folder,
}

/// How a server is started; its address is added.
#[derive(Debug)]
pub struct Plan {
    /// The name in logs and messages.
    pub name: String,
    /// The binary.
    pub binary: PathBuf,
    /// The address to listen on; without one, a port of 127.0.0.1 is reserved.
    pub address: Option<String>,
    /// Its arguments before `--listen`.
    pub arguments: Vec<String>,
    /// Its environment, in addition to this process's own without the settings of jarvis and ollama-sim.
    pub environment: Vec<(String, String)>,
    /// The folder of its log.
    pub folder: Folder,
}

impl Plan {
    /// Creates a replica of jarvis.
    pub fn replica(binary: PathBuf, redis: &str, hosts: &str, folder: Folder) -> Self {
        let arguments = ["serve", "--ollama-urls", hosts];
        // It holds a password, which arguments must not.
        let environment = vec![("JARVIS_REDIS_URL".to_owned(), redis.to_owned())];
        Self {
            name: "replica".to_owned(),
            binary,
            address: None,
            arguments: arguments.map(str::to_owned).to_vec(),
            environment,
            folder,
        }
    }

    /// Creates a model host: ollama-sim, scripted.
    pub fn host(binary: PathBuf, arguments: &[&str], folder: Folder) -> Self {
        let arguments = ["--engine", "scripted"].iter().chain(arguments);
        Self {
            name: "host".to_owned(),
            binary,
            address: None,
            arguments: arguments.map(ToString::to_string).collect(),
            environment: Vec::new(),
            folder,
        }
    }

    /// Sets the name.
    #[must_use]
    pub fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// Sets the address to listen on.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// Adds variables to the environment.
    #[must_use]
    pub fn with<'a>(mut self, environment: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let environment = environment.into_iter();
        self.environment
            .extend(environment.map(|(name, value)| (name.to_owned(), value.to_owned())));
        self
    }
}

impl Server {
    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// Fails where it ends at once, or does not listen in time.
    pub fn start(plan: Plan) -> anyhow::Result<Self> {
        let mut starts = 0;
        loop {
            starts += 1;
            let port = if plan.address.is_none() { Some(Port::reserve()?) } else { None };
            let reserved = port.as_ref().map(|port| format!("127.0.0.1:{}", port.number()));
            let address = plan.address.clone().or(reserved).unwrap_or_default();
            let mut program = Program::new(&plan.name, plan.binary.clone(), plan.folder.path())
                .args(&plan.arguments)
                .args(["--listen", &address]);
            program.environment.clone_from(&plan.environment);
            program.hidden = vec!["JARVIS_", "OLLAMA_SIM_", "OTEL_", "NO_COLOR"];
            let process = Process::new(program);
            process.start()?;
            match process.announced_address(START_LIMIT) {
                Ok(url) => return Ok(Self { url, process, _port: port, _folder: plan.folder }),
                Err(error) if starts == STARTS => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Starts the server again on its port and waits until it listens.
    ///
    /// # Errors
    /// Fails where it ends at once, or does not listen in time.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.process.start()?;
        self.process.announced_address(START_LIMIT).map(drop)
    }

    /// Returns the address of a path for WebSockets.
    pub fn websocket(&self, path: &str) -> String {
        format!("{}{path}", self.url.replacen("http", "ws", 1))
    }
}

impl Deref for Server {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}
