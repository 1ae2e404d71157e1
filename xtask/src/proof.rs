//! `chaos`, `roll`, `soak`, `attack` and `bench`: builds loadgen and runs it.

use std::hash::{BuildHasher, RandomState};

use testkit::programs::search_path;

use crate::command::run;
use crate::console::{self, bold, say, step};
use crate::{paths, redis, replicas};

/// The honest sessions beside the attacks.
const HONEST: &str = "100";

/// The properties of the sessions.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The time in which faults are injected.
    pub minutes: f64,
    /// Sessions at a time.
    pub sessions: u32,
    /// The seed of prompts and faults; a random one where none is set.
    pub seed: Option<u64>,
}

/// Injects faults under load.
///
/// # Errors
/// Fails where it does not build, and where it is time to stop.
pub fn chaos(redis: &str, load: Load) -> anyhow::Result<bool> {
    prepare("make chaos", paths::RELEASE)?;
    chaos_over(redis, load)
}

/// Runs long under each kind of Redis, and replaces every replica ten times. Each run starts
/// whatever the result of the one before.
///
/// # Errors
/// Fails where it does not build, and where it is time to stop.
pub fn soak(load: Load) -> anyhow::Result<bool> {
    prepare("make soak", paths::RELEASE)?;
    let results = [chaos_over("sentinel", load)?, chaos_over("cluster", load)?, roll_under(load)?];
    Ok(results.into_iter().all(|good| good))
}

/// Replaces every replica ten times.
///
/// # Errors
/// Fails where it does not build, and where it is time to stop.
pub fn roll(load: Load) -> anyhow::Result<bool> {
    prepare("make roll", paths::RELEASE)?;
    roll_under(load)
}

/// Attacks a private fleet beside honest sessions, each attack for so many minutes.
///
/// # Errors
/// Fails where it does not build, and where it is time to stop.
pub fn attack(minutes: f64, seed: Option<u64>) -> anyhow::Result<bool> {
    prepare("make attack", paths::RELEASE)?;
    let (seed, seconds) = (seed.unwrap_or_else(random_seed), (minutes * 60.0).round().to_string());
    say(&format!(
        "\n  {}, {seconds} s each, beside {HONEST} honest sessions; SEED={seed} repeats the prompts\n",
        bold("attacks")
    ));
    let (name, seed) = (format!("attack-{seed}"), seed.to_string());
    let arguments = ["attack", "--seconds", &seconds, "--sessions", HONEST, "--seed", &seed];
    report(&name, paths::RELEASE, &[&arguments[..], &["--think", "1"]].concat())
}

/// Measures the cost of jarvis.
///
/// # Errors
/// Fails where it does not build, and where it is time to stop.
pub fn bench() -> anyhow::Result<bool> {
    prepare("make bench", paths::DIST)?;
    let measured = report("bench", paths::DIST, &["bench"])?;
    Ok(report("sockets", paths::DIST, &["sockets"])? && measured)
}

fn prepare(title: &str, profile: &str) -> anyhow::Result<()> {
    console::title(title);
    step("Redis", || Ok(redis::server()?.display().to_string()))?;
    replicas::build_with(profile, &["jarvis", "ollama-sim", "loadgen"])
}

fn chaos_over(redis: &str, load: Load) -> anyhow::Result<bool> {
    let (seed, Load { minutes, sessions, .. }) = (seed(load), load);
    say(&format!(
        "\n  {}, {minutes} minutes, {sessions} sessions; SEED={seed} repeats the faults\n",
        bold(redis)
    ));
    let seconds = (minutes * 60.0).round().to_string();
    let (sessions, name) = (sessions.to_string(), format!("chaos-{redis}-{seed}"));
    let arguments = ["chaos", "--redis", redis, "--seconds", &seconds, "--sessions", &sessions];
    report(&name, paths::RELEASE, &[&arguments[..], &["--seed", &seed.to_string()]].concat())
}

fn roll_under(load: Load) -> anyhow::Result<bool> {
    let (seed, sessions) = (seed(load), load.sessions.to_string());
    let what = bold("rolling restart");
    say(&format!("\n  {what}, three replicas ten times, {sessions} sessions; SEED={seed}\n"));
    let name = format!("roll-{seed}");
    report(&name, paths::RELEASE, &["roll", "--sessions", &sessions, "--seed", &seed.to_string()])
}

fn seed(load: Load) -> u64 {
    load.seed.unwrap_or_else(random_seed)
}

/// Returns a seed that is short enough to be typed.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(()) % 1_000_000
}

fn report(name: &str, profile: &str, arguments: &[&str]) -> anyhow::Result<bool> {
    let folder = paths::run().join("proof");
    std::fs::create_dir_all(&folder)?;
    let json = folder.join(format!("{name}.json"));
    let loadgen = run(paths::built(profile, "loadgen"), arguments).arg("--json").arg(&json);
    let code = loadgen.env("PATH", search_path()).shown()?;
    if json.exists() {
        say(&format!("  The same as JSON: {}", paths::shown(&json)));
    }
    Ok(code == 0)
}
