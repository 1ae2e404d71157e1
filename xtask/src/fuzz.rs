//! `fuzz`: builds the targets of fuzz/ and runs each for a while. libFuzzer needs coverage in the
//! compiled code, which the stable compiler inserts by these flags; no other toolchain and no
//! `cargo fuzz` is needed. There is no address sanitizer: jarvis forbids unsafe code.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::check::{Row, table, timed};
use crate::command::run;
use crate::console::{self, say, step};
use crate::outcome::Outcome;
use crate::paths;

/// The targets, one a parser.
const TARGETS: [&str; 14] = [
    "client_message",
    "chat_body",
    "completion_body",
    "response_body",
    "conversation_body",
    "embedding_body",
    "ollama_body",
    "cursor",
    "ndjson",
    "forwarded_for",
    "token",
    "import_line",
    "key_set",
    "http_2_frames",
];
/// The flags that `cargo fuzz` gives the compiler, without its sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16";
/// The time limit of one input, in seconds.
const INPUT_LIMIT: &str = "-timeout=5";
/// The memory limit of a target, in MiB.
const MEMORY_LIMIT: &str = "-rss_limit_mb=1024";
/// The longest input, in bytes: the parsers refuse what is much longer by its length.
const LONGEST_INPUT: &str = "-max_len=16384";

/// Runs each target for so many seconds. Returns whether all have passed.
///
/// # Errors
/// Fails where the targets do not build, and where it is time to stop.
pub fn fuzz(seconds: u64) -> anyhow::Result<bool> {
    console::title("make fuzz");
    let rows = rows(seconds)?;
    table(&rows);
    say("");
    Ok(rows.iter().all(|row| row.outcome.ok))
}

/// Builds the targets, and returns a row for each.
///
/// # Errors
/// Fails where the targets do not build, and where it is time to stop.
pub fn rows(seconds: u64) -> anyhow::Result<Vec<Row>> {
    let programs = step_build()?;
    TARGETS.iter().map(|name| timed(name, || target(&programs, name, seconds))).collect()
}

/// Builds the targets, and returns their folder.
fn step_build() -> anyhow::Result<std::path::PathBuf> {
    let host = run("rustc", ["-vV"]).output();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("no rustc")?;
    let (manifest, target) = (paths::root().join("fuzz/Cargo.toml"), paths::target().join("fuzz"));
    // The same versions of all libraries as in the service.
    std::fs::copy(paths::root().join("Cargo.lock"), paths::root().join("fuzz/Cargo.lock"))?;
    step("targets", || {
        let build = run("cargo", ["build", "--release", "--target", host, "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&target)
            // Only what is compiled for `--target` gets the flags: build scripts do not.
            .env("RUSTFLAGS", FLAGS);
        ensure!(build.shown()? == 0, "the fuzz targets do not build");
        Ok(format!("{} built", TARGETS.len()))
    })?;
    Ok(target.join(host).join("release"))
}

/// Runs one target. Inputs that reach new code are kept for the next run.
fn target(programs: &Path, name: &str, seconds: u64) -> anyhow::Result<Outcome> {
    let folder = paths::run().join("fuzz").join(name);
    let (corpus, faults) = (folder.join("corpus"), folder.join("faults"));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&faults)?;
    let log = folder.join("log");
    let (code, printed) = run(programs.join(name), [&corpus])
        .arg(paths::root().join("fuzz/seeds").join(name))
        .args([&format!("-max_total_time={seconds}"), INPUT_LIMIT, MEMORY_LIMIT, LONGEST_INPUT])
        .arg(format!("-artifact_prefix={}/", faults.display()))
        .read()?;
    std::fs::write(&log, &printed)?;
    if code != 0 {
        let tail: Vec<&str> = printed.lines().rev().take(12).collect();
        tail.iter().rev().for_each(|line| say(&format!("  {line}")));
        let text = format!("failed; the input is in {}", paths::shown(&faults));
        return Ok(Outcome { ok: false, text });
    }
    Ok(Outcome { ok: true, text: summary(&printed) })
}

/// Returns the last figures that libFuzzer printed: inputs tried and code reached.
fn summary(printed: &str) -> String {
    let line = printed.lines().rev().find(|line| line.contains("DONE") && line.contains("cov:"));
    let mut words = line.unwrap_or_default().split_whitespace();
    let inputs = words.next().unwrap_or_default().trim_start_matches('#').to_owned();
    let reached = words.skip_while(|word| *word != "cov:").nth(1).unwrap_or("?");
    format!("{inputs} inputs, {reached} places reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_fuzz_is_run_and_has_seeds() {
        let manifest = std::fs::read_to_string(paths::root().join("fuzz/Cargo.toml"));
        let manifest = manifest.expect("a manifest");
        let bins = manifest.lines().filter_map(|line| line.strip_prefix("name = \""));
        let mut bins: Vec<&str> = bins.map(|name| name.trim_end_matches('"')).skip(1).collect();
        let mut targets = TARGETS;
        bins.sort_unstable();
        targets.sort_unstable();
        assert_eq!(bins, targets);
        for name in TARGETS {
            let seeds = std::fs::read_dir(paths::root().join("fuzz/seeds").join(name));
            assert!(seeds.expect("seeds").count() > 0, "{name}");
        }
    }

    #[test]
    fn the_figures_of_a_target_are_those_of_its_last_line() {
        let printed =
            "#8 pulse cov: 1 ft: 9\n#12\tDONE   cov: 345 ft: 9 corp: 2/6b\nDone 12 runs\n";
        assert_eq!(summary(printed), "12 inputs, 345 places reached");
    }
}
