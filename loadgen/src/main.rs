//! The binary: its arguments, and the report at the end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use loadgen::attack::{Attack, AttackKind};
use loadgen::bench::Bench;
use loadgen::chaos::Chaos;
use loadgen::chaos::plan::Part;
use loadgen::client::{Options, Replicas};
use loadgen::report::Report;
use loadgen::roll::Roll;
use loadgen::script::Script;
use loadgen::sockets::Sockets;
use loadgen::sockets::hold::Hold;
use loadgen::tally::Tally;
use rand::Rng;
use serde::Serialize;
use tempfile::TempDir;
use testkit::redis::RedisKind;
use tokio::signal::unix::{SignalKind, signal};

/// The percentage of turns that may end with an error while faults are injected.
const CHAOS_FAILED_PERCENT: f64 = 2.0;

/// Runs sessions over replicas of jarvis and checks every character of every answer.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sessions against running replicas, in front of a scripted ollama-sim
    Run(Run),
    /// Sessions against a private fleet into which faults are injected
    Chaos(ChaosArguments),
    /// Sessions against a private fleet whose replicas are replaced one after another
    Roll(RollArguments),
    /// Attacks on a private fleet, one after another, beside honest sessions
    Attack(AttackArguments),
    /// Measure the cost of jarvis, compared with ollama-sim alone
    Bench(BenchArguments),
    /// Many idle sockets: memory, their return after a replica's death, and one session for many
    Sockets(SocketsArguments),
    /// Sockets that are held for `sockets`, until standard input ends
    #[command(hide = true)]
    Hold(HoldArguments),
}

/// The properties of the sessions.
#[derive(Clone, Debug, Args)]
struct Load {
    /// Sessions at a time
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    sessions: u32,

    /// How long a turn may take to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    turn_limit: u64,

    /// Pause between two turns of a session, at most, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    think: f64,

    /// Turns of one session, after which its history is compared and another begins
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=250))]
    turns: u32,

    /// Percentage of sessions that use server-sent events
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=100))]
    sse: u32,

    /// Percentage of sessions that use plain requests
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=100))]
    rest: u32,

    /// Percentage of sessions that use OpenAI's responses in the background; the others use WebSockets
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    responses: u32,

    /// Percentage of turns that regenerate the answer of the turn before, or edit its question
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=100))]
    branches: u32,

    /// Model to request, by the name under which the sim created its script
    #[arg(long, value_name = "NAME", default_value = "tinyllama:latest")]
    model: String,

    /// Fewest tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 50)]
    min_tokens: usize,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,

    /// Tokens a second of one answer; 0 is as fast as possible
    #[arg(long, value_name = "TOKENS/S", default_value_t = 20.0)]
    rate: f64,

    /// Decides prompts, pauses and replicas; without one, a random one is printed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Percentage of turns that may end with an error
    #[arg(long, value_name = "PERCENT")]
    failed: Option<f64>,

    /// File for the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Load {
    fn options(&self, replicas: Vec<String>, seed: u64, seconds: u64) -> Options {
        Options {
            replicas: Replicas::new(replicas),
            sessions: self.sessions as usize,
            duration: Duration::from_secs(seconds),
            turn_limit: Duration::from_secs(self.turn_limit),
            think: Duration::try_from_secs_f64(self.think).unwrap_or_default(),
            turns: self.turns as usize,
            own_addresses: false,
            sse_percent: self.sse as usize,
            rest_percent: self.rest as usize,
            responses_percent: self.responses as usize,
            resumes: 0,
            branch_percent: self.branches as usize,
            script: Script {
                model: self.model.clone(),
                tokens: (self.min_tokens.min(self.max_tokens), self.max_tokens),
                rate: self.rate,
            },
            seed,
        }
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000))
    }
}

#[derive(Debug, Args)]
struct Run {
    /// The replicas' addresses, separated by commas
    #[arg(
        long,
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:10200"
    )]
    replicas: Vec<String>,

    /// Time in which new turns begin, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,

    #[command(flatten)]
    load: Load,
}

/// The properties of the private fleet.
#[derive(Debug, Args)]
struct FleetArguments {
    /// Kind of Redis of the fleet: single, sentinel or cluster
    #[arg(long, value_name = "KIND", default_value = "sentinel")]
    redis: RedisKind,

    /// Folder of the jarvis and ollama-sim binaries [default: that of this one]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,

    /// Folder of logs and data; kept after a failure [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ChaosArguments {
    /// Targets that get no faults, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    spare: Vec<Part>,

    /// Time in which new turns begin, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,

    #[command(flatten)]
    fleet: FleetArguments,

    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Args)]
struct RollArguments {
    /// How often every replica is replaced
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Another jarvis: every second round replaces the replicas by it, the others go back
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,

    #[command(flatten)]
    fleet: FleetArguments,

    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Args)]
struct AttackArguments {
    /// Attacks in their order, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ATTACKS")]
    attacks: Vec<AttackKind>,

    /// Duration of the baseline and of each attack, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// Pause before the first measurement and after each attack, in seconds; replicas keep ended turns for
    /// a minute
    #[arg(long, value_name = "SECONDS", default_value_t = 65, value_parser = clap::value_parser!(u64).range(1..=600))]
    pause: u64,

    /// Requests a minute of a flood
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    per_minute: u32,

    /// Connections of an attack that holds connections
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Budget of all anonymous sessions, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    anonymous_mib: u32,

    /// Folder of the jarvis and ollama-sim binaries [default: that of this one]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,

    /// Folder of logs and data; kept after a failure [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Args)]
struct BenchArguments {
    /// Pairs of halves, one through jarvis and one without it, that the medians are of
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,

    /// Sockets that are opened and left idle
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    sockets: u32,

    /// Folder of the jarvis and ollama-sim binaries [default: that of this one]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,

    /// File for the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SocketsArguments {
    /// Sockets over all replicas
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(3..=50_000))]
    sockets: u32,

    /// Processes that hold them
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    holders: u32,

    /// Sockets that follow one session
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    watchers: u32,

    /// Folder of the jarvis and ollama-sim binaries [default: that of this one]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,

    /// File for the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HoldArguments {
    /// The replicas' addresses, separated by commas
    #[arg(long, value_name = "URLS", value_delimiter = ',', required = true)]
    replicas: Vec<String>,

    /// Sockets
    #[arg(long, value_name = "N")]
    sockets: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => load(&run).await,
        Command::Chaos(arguments) => until_signal(chaos(&arguments)).await,
        Command::Roll(arguments) => until_signal(roll(&arguments)).await,
        Command::Attack(arguments) => Box::pin(until_signal(attack(&arguments))).await,
        Command::Bench(arguments) => Box::pin(until_signal(bench(&arguments))).await,
        Command::Sockets(arguments) => Box::pin(until_signal(sockets(&arguments))).await,
        Command::Hold(HoldArguments { replicas, sockets }) => {
            loadgen::sockets::hold::run(Hold { replicas, sockets }).await.map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn load(run: &Run) -> anyhow::Result<bool> {
    let replicas = run.replicas.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
    let seed = run.load.seed();
    eprintln!("seed {seed}");
    let tally = Arc::new(Tally::default());
    let options = run.load.options(replicas, seed, run.seconds);
    let in_time = loadgen::run::run(options, Arc::clone(&tally)).await?;
    let failed = run.load.failed.unwrap_or(0.0);
    let mut report = Report::of(&tally, seed, run.load.sessions as usize, failed);
    if !in_time {
        report.broken.push("the sessions did not come to their end".to_owned());
    }
    println!("{}", report.table());
    write_json(run.load.json.as_ref(), &report)?;
    Ok(report.broken.is_empty())
}

/// Ends the run in order at a signal, as at its own end: the fleet must be stopped.
async fn until_signal(run: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = run => done,
        _ = terminate.recv() => anyhow::bail!("stopped"),
        _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped"),
    }
}

async fn chaos(arguments: &ChaosArguments) -> anyhow::Result<bool> {
    let folder = RunFolder::create(arguments.fleet.dir.as_ref(), &arguments.load)?;
    let report = loadgen::chaos::run(Chaos {
        binaries: binaries(arguments.fleet.binaries.as_ref())?,
        dir: folder.path.clone(),
        redis: arguments.fleet.redis,
        spared: arguments.spare.clone(),
        load: arguments.load.options(Vec::new(), folder.seed, arguments.seconds),
        failed_percent: arguments.load.failed.unwrap_or(CHAOS_FAILED_PERCENT),
    })
    .await?;
    write_json(arguments.load.json.as_ref(), &report)?;
    Ok(folder.finish(&report.table(), &report.clients))
}

async fn roll(arguments: &RollArguments) -> anyhow::Result<bool> {
    let folder = RunFolder::create(arguments.fleet.dir.as_ref(), &arguments.load)?;
    let report = loadgen::roll::run(Roll {
        binaries: binaries(arguments.fleet.binaries.as_ref())?,
        other: arguments.other.clone(),
        dir: folder.path.clone(),
        redis: arguments.fleet.redis,
        rounds: arguments.rounds,
        load: arguments.load.options(Vec::new(), folder.seed, 0),
    })
    .await?;
    write_json(arguments.load.json.as_ref(), &report)?;
    Ok(folder.finish(&report.table(), &report.clients))
}

async fn attack(arguments: &AttackArguments) -> anyhow::Result<bool> {
    let folder = RunFolder::create(arguments.dir.as_ref(), &arguments.load)?;
    let all = || AttackKind::value_variants().to_vec();
    let report = loadgen::attack::run(Attack {
        binaries: binaries(arguments.binaries.as_ref())?,
        dir: folder.path.clone(),
        attacks: Some(arguments.attacks.clone())
            .filter(|some| !some.is_empty())
            .unwrap_or_else(all),
        duration: Duration::from_secs(arguments.seconds),
        rest: Duration::from_secs(arguments.pause),
        per_minute: arguments.per_minute,
        connections: arguments.connections as usize,
        anonymous_mib: arguments.anonymous_mib,
        load: arguments.load.options(Vec::new(), folder.seed, 0),
    })
    .await?;
    write_json(arguments.load.json.as_ref(), &report)?;
    Ok(folder.finish(&report.table(), &report.honest))
}

/// The seed of a run, and the folder of its logs and data.
struct RunFolder {
    seed: u64,
    path: PathBuf,
    temporary: TempDir,
}

impl RunFolder {
    fn create(dir: Option<&PathBuf>, load: &Load) -> anyhow::Result<Self> {
        let seed = load.seed();
        let temporary = tempfile::Builder::new().prefix("jarvis-loadgen-").tempdir()?;
        let path = dir.cloned().unwrap_or_else(|| temporary.path().to_owned());
        std::fs::create_dir_all(&path)?;
        eprintln!("seed {seed}, logs in {}", path.display());
        Ok(Self { seed, path, temporary })
    }

    /// Prints the table, and returns whether no promise was broken; keeps the folder otherwise.
    fn finish(self, table: &str, clients: &Report) -> bool {
        println!("{table}");
        let good = clients.broken.is_empty();
        if !good {
            let _ = self.temporary.keep();
            let seed = self.seed;
            println!("  seed {seed} repeats the faults; the logs are in {}", self.path.display());
        }
        good
    }
}

async fn bench(arguments: &BenchArguments) -> anyhow::Result<bool> {
    let dir = tempfile::Builder::new().prefix("jarvis-bench-").tempdir()?;
    let report = loadgen::bench::run(Bench {
        binaries: binaries(arguments.binaries.as_ref())?,
        dir: dir.path().to_owned(),
        pairs: arguments.pairs as usize,
        sockets: arguments.sockets as usize,
    })
    .await?;
    println!("{}", report.table());
    write_json(arguments.json.as_ref(), &report)?;
    Ok(true)
}

async fn sockets(arguments: &SocketsArguments) -> anyhow::Result<bool> {
    let dir = tempfile::Builder::new().prefix("jarvis-sockets-").tempdir()?;
    let report = loadgen::sockets::run(Sockets {
        binaries: binaries(arguments.binaries.as_ref())?,
        dir: dir.path().to_owned(),
        sockets: arguments.sockets as usize,
        holders: arguments.holders as usize,
        watchers: arguments.watchers as usize,
    })
    .await?;
    println!("{}", report.table());
    write_json(arguments.json.as_ref(), &report)?;
    Ok(report.broken.is_empty())
}

fn binaries(given: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    match given {
        Some(dir) => Ok(dir.clone()),
        None => Ok(std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default()),
    }
}

fn write_json(path: Option<&PathBuf>, report: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let json = serde_json::to_vec_pretty(report)?;
    std::fs::write(path, json).with_context(|| path.display().to_string())
}
