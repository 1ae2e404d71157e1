//! The part of `verify` that runs two versions side by side: an upgrade and a rollback under load.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::programs::search_path;

use crate::command::run;
use crate::console::step;
use crate::outcome::Outcome;
use crate::{paths, proof};

/// The Redis Function that the next version changes, as `migrations/README.md` says: a copy of its
/// file with the next number, which the next version calls.
const FILE: &str = "migrations/functions/session/append";
const FUNCTION: &str = "jarvis_append";
/// How often every replica is replaced: forward, back, and both again.
const ROUNDS: &str = "4";
const SESSIONS: &str = "60";

/// Builds a next version whose library of functions differs, and replaces every replica of a fleet by
/// it and back, under load. Nobody may notice.
///
/// # Errors
/// Fails where the next version does not build, and where it is time to stop.
pub fn check(folder: &Path) -> anyhow::Result<Outcome> {
    let next = folder.join("next-jarvis");
    step("next", || {
        build_next(&folder.join("next"), &next)?;
        Ok(format!(
            "a jarvis that calls {FUNCTION}_2, and knows nothing of {FUNCTION}_1 but its text"
        ))
    })?;
    let report = folder.join("versions.json");
    let roll = run(paths::release("loadgen"), ["roll", "--rounds", ROUNDS, "--sessions", SESSIONS])
        .args(["--seed", &proof::random_seed().to_string(), "--other"])
        .arg(&next)
        .arg("--json")
        .arg(&report)
        .env("PATH", search_path());
    let ok = roll.shown()? == 0;
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let text =
        format!("{} replicas replaced, {} turns", report["replaced"], report["clients"]["turns"]);
    Ok(Outcome { ok, text })
}

/// Builds the next version in a copy of what git tracks, with the dependencies that are built already.
fn build_next(tree: &Path, binary: &Path) -> anyhow::Result<()> {
    let prefix = format!("--prefix={}/", tree.display());
    ensure!(run("git", ["checkout-index", "--all", "--force", &prefix]).succeeds()?, "git fails");
    let text = fs::read_to_string(tree.join(format!("{FILE}.lua")))?;
    ensure!(text.contains("  version = 1,"), "{FILE}.lua has another version than 1");
    let text = text.replace("  version = 1,", "  version = 2,");
    fs::write(tree.join(format!("{FILE}_2.lua")), text)?;
    change(&tree.join("src/redis/functions.rs"), "\"append\",", "\"append\", \"append_2\",")?;
    let (old, new) = (format!("\"{FUNCTION}_1\""), format!("\"{FUNCTION}_2\""));
    change(&tree.join("src/session/store/answer.rs"), &old, &new)?;
    let target = paths::target();
    let build = || {
        run("cargo", ["build", "--release", "--locked", "--workspace", "--bin", "jarvis"])
            .arg("--target-dir")
            .arg(&target)
    };
    let code = build().arg("--manifest-path").arg(tree.join("Cargo.toml")).shown()?;
    ensure!(code == 0, "the next version does not build");
    fs::copy(paths::release("jarvis"), binary)?;
    // The two have one place for what is built last.
    ensure!(build().shown()? == 0, "this version does not build again");
    Ok(())
}

fn change(path: &Path, old: &str, new: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    ensure!(text.contains(old), "{} has no {old}", path.display());
    fs::write(path, text.replace(old, new)).context("the next version cannot be written")
}
