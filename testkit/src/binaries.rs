//! The binaries of the workspace, as the tree is now.
//!
//! Cargo builds the binaries of the package under test and no others, and stable Cargo has no
//! dependency on another package's binary. A binary that lies in the target folder may be of an older
//! tree. So Cargo builds them first: that takes a quarter of a second when no source
//! has changed.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};

use crate::programs;

/// Builds `jarvis` and `ollama-sim` in the profile of the running test, once a test run, and returns
/// their folder.
///
/// # Errors
/// Fails where they do not build.
pub fn all() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, "all", &["jarvis", "ollama-sim"])
}

/// Builds `ollama-sim` in the profile of the running test, once a test run, and returns its path.
///
/// # Errors
/// Fails where it does not build.
pub fn ollama_sim() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    Ok(once(&BUILT, "ollama-sim", &["ollama-sim"])?.join("ollama-sim"))
}

fn once(
    built: &OnceLock<Result<PathBuf, String>>,
    what: &str,
    names: &[&str],
) -> anyhow::Result<PathBuf> {
    let built = built.get_or_init(|| once_a_run(what, names).map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// nextest runs each test in a process of its own: the marker file names the run for which Cargo has built.
fn once_a_run(what: &str, names: &[&str]) -> anyhow::Result<PathBuf> {
    let (target, profile) = where_this_was_built()?;
    let folder = target.join(&profile);
    let marker = folder.join(format!(".testkit-{what}"));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(marker)?;
    file.lock()?;
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_default();
    let mut built_for = String::new();
    file.read_to_string(&mut built_for)?;
    if run.is_empty() || built_for != run {
        build(&target, &profile, names)?;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(run.as_bytes())?;
    }
    Ok(folder)
}

/// Returns the target folder and the profile's folder in it: a test is in `target/PROFILE/deps`.
fn where_this_was_built() -> anyhow::Result<(PathBuf, String)> {
    let test = fs::canonicalize(std::env::current_exe()?)?;
    let mut folders = test.ancestors().skip(1);
    let folder = folders.find(|folder| folder.file_name().is_some_and(|name| name == "deps"));
    let profile =
        folder.and_then(Path::parent).context("this program is not one of Cargo's tests")?;
    let target = profile.parent().context("no target folder")?;
    let name = profile.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((target.to_owned(), name))
}

fn build(target: &Path, profile: &str, names: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    programs::hide_runner(&mut command);
    let profile = if profile == "debug" { "dev" } else { profile };
    command.current_dir(programs::workspace());
    command
        .args(["build", "--quiet", "--offline", "--profile", profile, "--target-dir"])
        .arg(target);
    // With the features of a test run nothing is compiled a second time: those of all members, and
    // of what their tests depend on, which a test among the targets brings in. This one is small.
    command.args(["--workspace", "--test", "processes"]);
    for name in names {
        command.args(["--bin", name]);
    }
    let output = command.output().context("cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} does not build:\n{errors}", names.join(" or "));
    Ok(())
}
