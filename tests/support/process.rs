//! Replicas and model hosts, each on a port of its own, killed with the test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use testkit::binaries;
use testkit::folder::Folder;
use testkit::server::Plan;

pub use testkit::Server as Process;

/// The time after which a promise counts as broken.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Starts a replica.
pub fn jarvis(redis: &str, ollama: &str, extra: &[(&str, &str)]) -> Process {
    start(replica(redis, ollama, extra))
}

/// Starts a replica at this address.
pub fn jarvis_at(address: &str, redis: &str, ollama: &str, extra: &[(&str, &str)]) -> Process {
    start(replica(redis, ollama, extra).at(address))
}

/// Starts a replica whose limits of descriptors are set by this line of a shell.
pub fn limited_jarvis(redis: &str, ollama: &str, limits: &str) -> Process {
    let folder = folder();
    let script = folder.path().join("limited");
    let binary = env!("CARGO_BIN_EXE_jarvis");
    let text = format!("#!/bin/sh\n{limits}\nexec {binary} \"$@\"\n");
    std::fs::write(&script, text).expect("a file");
    let runnable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&script, runnable).expect("a script");
    let settings = [("JARVIS_LOG", "warn,fred=off"), ("JARVIS_DRAIN_TIMEOUT", "1")];
    start(Plan::replica(script, redis, ollama, folder).with(settings))
}

fn replica(redis: &str, ollama: &str, extra: &[(&str, &str)]) -> Plan {
    let settings = [("JARVIS_LOG", "warn,fred=off"), ("JARVIS_DRAIN_TIMEOUT", "2")];
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_jarvis"));
    Plan::replica(binary, redis, ollama, folder()).with(settings).with(extra.iter().copied())
}

/// Starts a replica, and returns the path of its log: all events, one JSON object a line.
pub fn logged_jarvis(redis: &str, ollama: &str) -> (Process, PathBuf) {
    logged(redis, ollama, &[("JARVIS_LOG", "info,fred=off"), ("JARVIS_LOG_FORMAT", "json")])
}

/// Starts a replica, and returns the path of its log.
pub fn logged(redis: &str, ollama: &str, extra: &[(&str, &str)]) -> (Process, PathBuf) {
    let replica = jarvis(redis, ollama, extra);
    let log = replica.log().to_owned();
    (replica, log)
}

/// Starts a scripted Ollama.
pub fn ollama_sim(args: &[&str]) -> Process {
    start(host(args))
}

/// Starts a scripted Ollama at this address, where another one has ended.
pub fn ollama_sim_at(address: &str, args: &[&str]) -> Process {
    start(host(args).at(address))
}

fn host(args: &[&str]) -> Plan {
    let binary = binaries::ollama_sim().unwrap_or_else(|error| panic!("{error:#}"));
    Plan::host(binary, args, folder())
}

fn folder() -> Folder {
    Folder::temporary().expect("a folder")
}

fn start(plan: Plan) -> Process {
    Process::start(plan).unwrap_or_else(|error| panic!("{error:#}"))
}
