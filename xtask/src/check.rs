//! `test`: installs what is missing, runs every check, and prints one table of the results.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use testkit::programs::{find, search_path};

use crate::command::{Run, run};
use crate::console::{self, bold, green, line, note, red, say, step, without_colour};
use crate::outcome::Outcome;
use crate::signals::Interrupted;
use crate::{install, manifests, paths, redis};

const CARGO_DENY: &str = "0.20.2";
/// The shell scripts.
const SHELL: [&str; 4] =
    [".ci/run", "deploy/redis-tls.sh", "deploy/secrets.sh", "deploy/upgrade.sh"];
/// The characters of a commit's subject, at most.
const SUBJECT: usize = 72;
/// The newest commits, whose subjects are checked.
const COMMITS: &str = "50";
/// Older subjects were written before they were checked.
const FIRST_DAY: &str = "--since=2026-11-27T10:41:00Z";
const LOCKED: [&str; 2] = ["--workspace", "--locked"];

/// The counts of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// A check and its result.
pub struct Row {
    name: &'static str,
    /// The result.
    pub outcome: Outcome,
    time: Duration,
}

/// Runs every check, also after one has failed; of the tests, those whose name contains `filter`.
/// Returns whether all have passed.
///
/// # Errors
/// Fails where a program that is needed cannot be installed, and where it is time to stop.
pub fn everything(filter: &str) -> anyhow::Result<bool> {
    console::title("make test");
    step("Redis", || Ok(redis::server()?.display().to_string()))?;
    step("nginx", || Ok(install::nginx()?.display().to_string()))?;
    step("prometheus", || Ok(install::prometheus()?.display().to_string()))?;
    step("ollama", install::ollama_packages)?;
    step("openai", install::openai_packages)?;
    step("rotel", || Ok(install::rotel()?.display().to_string()))?;
    step("schemathesis", || Ok(install::schemathesis()?.display().to_string()))?;
    step("pyjwt", install::token_packages)?;
    step("chromium", || Ok(install::chromium()?.display().to_string()))?;
    step("page", || Ok(install::page_modules()?.display().to_string()))?;
    step("cargo-deny", || Ok(cargo_deny()?.display().to_string()))?;
    let mut tally = Tally::default();
    let deny = ["deny", "check", "bans", "licenses", "sources"];
    let lints = linted(["build"]).args(LOCKED).arg("--all-targets");
    let rows = [
        timed("format", || passes(&cargo(["fmt", "--all", "--check"])))?,
        timed("scripts", scripts)?,
        timed("commits", commits)?,
        timed("package", package)?,
        timed("manifests", manifests::check)?,
        timed("page", page)?,
        timed("licences", || passes(&cargo(deny)))?,
        timed("lints", || passes(&lints))?,
        timed("examples", || passes(&linted(["test"]).args(LOCKED).arg("--doc")))?,
        // Tests come last, so that their output is near the end.
        timed("tests", || tests(filter, &mut tally))?,
    ];
    Ok(report(&rows, tally))
}

fn cargo<const N: usize>(words: [&str; N]) -> Run {
    run("cargo", words).env("PATH", search_path())
}

/// Returns a command of cargo that compiles this workspace with clippy in the compiler's place, where a
/// warning is an error: what was linted is what is tested. `cargo clippy` would read every dependency
/// once more, and build nothing: four minutes of a cold run.
fn linted<const N: usize>(words: [&str; N]) -> Run {
    // `cargo clippy` passes its arguments in this form.
    let deny_warnings = ["-D", "warnings", ""].join("__CLIPPY_HACKERY__");
    cargo(words).env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver").env("CLIPPY_ARGS", deny_warnings)
}

fn passes(command: &Run) -> anyhow::Result<Outcome> {
    Ok(Outcome { ok: command.shown()? == 0, text: String::new() })
}

fn cargo_deny() -> anyhow::Result<PathBuf> {
    if let Some(program) = find("cargo-deny") {
        return Ok(program);
    }
    note(&format!(
        "building cargo-deny {CARGO_DENY} without optimising it: it has a second's work to do"
    ));
    let place = paths::run();
    let install = run("cargo", ["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--quiet"])
        .args(["--no-default-features", "--root"])
        .arg(&place)
        .arg("--target-dir")
        .arg(place.join("cargo-deny-build"))
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        // The project's own compiler flags are not for the fuzz targets.
        .env("RUSTFLAGS", "");
    ensure!(
        install.shown()? == 0,
        "cargo-deny does not build: cargo install cargo-deny --version {CARGO_DENY} --locked"
    );
    Ok(paths::bin().join("cargo-deny"))
}

/// Has each interpreter parse its scripts; shellcheck runs where it is installed.
fn scripts() -> anyhow::Result<Outcome> {
    let tracked = run("git", ["ls-files", "*.py"]).args(SHELL).output();
    let (python, shell): (Vec<&str>, Vec<&str>) =
        tracked.lines().partition(|path| !SHELL.contains(path));
    let parse = "import ast, sys\nfor path in sys.argv[1:]: ast.parse(open(path).read(), path)";
    let mut ok = run(install::python()?, ["-c", parse]).args(&python).shown()? == 0;
    let checker = find("shellcheck");
    for path in &shell {
        let check = match &checker {
            Some(checker) => run(checker, [path]),
            None => run("bash", ["-n", path]),
        };
        ok &= check.shown()? == 0;
    }
    let without = if checker.is_some() { "" } else { ", no shellcheck" };
    let text = format!("{} in Python, {} for the shell{without}", python.len(), shell.len());
    Ok(Outcome { ok, text })
}

/// Checks the subjects of the newest commits, as far as this clone has them: those since the newest tag,
/// at most [`COMMITS`].
fn commits() -> anyhow::Result<Outcome> {
    if !run("git", ["rev-parse", "--git-dir"]).succeeds()? {
        return Ok(Outcome { ok: true, text: "no repository".to_owned() });
    }
    let tag = run("git", ["describe", "--tags", "--abbrev=0"]).output();
    let since = if tag.trim().is_empty() { "HEAD".to_owned() } else { format!("{}..", tag.trim()) };
    let log =
        run("git", ["log", "--no-merges", "--format=%s", FIRST_DAY, "-n", COMMITS]).arg(since);
    let log = log.output();
    let refused = long_subjects(&log);
    for subject in &refused {
        say(&format!("  too long: {subject}"));
    }
    let text = format!("{} subjects of at most {SUBJECT} characters", log.lines().count());
    Ok(Outcome { ok: refused.is_empty(), text })
}

fn long_subjects(log: &str) -> Vec<&str> {
    log.lines().filter(|subject| subject.chars().count() > SUBJECT).collect()
}

/// Checks that the package has what the service is built from, and nothing else.
fn package() -> anyhow::Result<Outcome> {
    let list = cargo(["package", "--list", "--allow-dirty", "--package", "jarvis"]).output();
    ensure!(!list.is_empty(), "cargo does not list the package");
    let strange: Vec<&str> = list.lines().filter(|path| !belongs(path)).collect();
    for path in &strange {
        say(&format!("  not for building: {path}"));
    }
    let has = |wanted: &str| list.lines().any(|path| path == wanted);
    let is_whole =
        ["src/main.rs", "build.rs", "web/dist/index.html", "LICENSE"].into_iter().all(has);
    let ok = strange.is_empty() && is_whole;
    Ok(Outcome { ok, text: format!("{} files", list.lines().count()) })
}

fn belongs(path: &str) -> bool {
    const FILES: [&str; 8] = [
        ".cargo_vcs_info.json",
        "Cargo.lock",
        "Cargo.toml",
        "Cargo.toml.orig",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "build.rs",
    ];
    FILES.contains(&path)
        || ["src/", "migrations/", "web/dist/"].iter().any(|folder| path.starts_with(folder))
}

/// Checks the types of the page, and that the committed files are those that its sources build.
fn page() -> anyhow::Result<Outcome> {
    let web = install::page_modules()?;
    let types = run(install::node()?, [web.join("node_modules/typescript/bin/tsc")])
        .arg("--project")
        .arg(web.join("tsconfig.json"));
    let place = paths::run().join("page");
    let build = run(install::node()?, [web.join("build.mjs")]).arg(&place);
    if types.shown()? != 0 || build.shown()? != 0 {
        return Ok(Outcome { ok: false, text: String::new() });
    }
    let (files, committed) = (files_of(&place)?, files_of(&web.join("dist"))?);
    let ok = files == committed;
    let text = if ok {
        let bytes: usize = files.values().map(Vec::len).sum();
        format!("{} files, {} KB", files.len(), bytes / 1024)
    } else {
        "web/dist is not what the sources build: npm --prefix web run build".to_owned()
    };
    Ok(Outcome { ok, text })
}

fn files_of(folder: &Path) -> anyhow::Result<BTreeMap<OsString, Vec<u8>>> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name(), fs::read(entry.path())?))
    };
    fs::read_dir(folder)?.map(read).collect()
}

fn tests(filter: &str, tally: &mut Tally) -> anyhow::Result<Outcome> {
    let colour = if console::is_terminal() { "always" } else { "never" };
    let command = if cargo(["nextest", "--version"]).succeeds()? {
        linted(["nextest", "run"]).args(LOCKED).args(["--color", colour])
    } else {
        let kinds = ["--lib", "--bins", "--tests", "--no-fail-fast", "--color", colour];
        linted(["test"]).args(LOCKED).args(kinds)
    };
    let command = if filter.is_empty() { command } else { command.arg(filter) };
    let (code, printed) = command.shown_and_read()?;
    *tally = count(&without_colour(&printed));
    let Tally { passed, failed, skipped } = tally;
    let text = format!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(Outcome { ok: code == 0, text })
}

/// Returns how many tests passed, by the output of nextest or of cargo test.
pub fn passed(text: &str) -> u64 {
    count(&without_colour(text)).passed
}

/// Adds up the closing lines of nextest or of cargo test.
fn count(text: &str) -> Tally {
    let mut tally = Tally::default();
    for line in text.lines() {
        // nextest indents its own line, and repeats those of tests that failed, indented too.
        let nextest = line.trim_start().strip_prefix("Summary [");
        let Some(figures) = nextest.or(line.strip_prefix("test result: ")) else { continue };
        let words: Vec<&str> =
            figures.split([' ', ',', ';', '(', ')']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => tally.passed += number,
                "failed" | "timed" => tally.failed += number,
                "skipped" | "ignored" => tally.skipped += number,
                _ => {}
            }
        }
    }
    tally
}

/// Runs a check under its heading, and measures its time. A check that cannot run has failed.
///
/// # Errors
/// Fails where it is time to stop.
pub fn timed(
    name: &'static str,
    check: impl FnOnce() -> anyhow::Result<Outcome>,
) -> anyhow::Result<Row> {
    say(&format!("\n{}", bold(&format!("── {name}"))));
    let start = Instant::now();
    let outcome = match check() {
        Ok(outcome) => outcome,
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => Outcome { ok: false, text: format!("{error:#}") },
    };
    Ok(Row { name, outcome, time: start.elapsed() })
}

/// Prints the table.
pub fn table(rows: &[Row]) {
    console::title("Result");
    for Row { name, outcome, time } in rows {
        let mark = if outcome.ok { green("ok") } else { red("failed") };
        line(name, format!("{mark}  {}", outcome.text).trim_end(), Some(*time));
    }
}

fn report(rows: &[Row], tally: Tally) -> bool {
    table(rows);
    let version = run("rustc", ["--version"]).output();
    line("total", version.trim(), Some(rows.iter().map(|row| row.time).sum()));
    say("");
    let failed: Vec<&str> = rows.iter().filter(|row| !row.outcome.ok).map(|row| row.name).collect();
    if !failed.is_empty() {
        say(&red(&format!("  Not good: {}", failed.join(", "))));
    }
    // The line stands alone, for programs that read the output.
    let Tally { passed, failed: fell, skipped } = tally;
    say(&format!("tests: {passed} passed, {fell} failed, {skipped} skipped"));
    if passed == 0 {
        say(&red("  No test ran."));
    }
    failed.is_empty() && passed > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_that_is_too_long_and_a_file_that_builds_nothing_are_named() {
        let refused = format!("docs: {}", "x".repeat(67));
        let log = format!("api: é{}\n{refused}\n", "x".repeat(66));
        assert_eq!(long_subjects(&log), [&*refused]);
        for path in ["src/main.rs", "migrations/functions/probe/probe.lua", "web/dist/index.html"] {
            assert!(belongs(path), "{path}");
        }
        for path in
            ["k8s/base/jarvis.yaml", "docs/dashboard.svg", "web/src/main.ts", "tests/tls.rs"]
        {
            assert!(!belongs(path), "{path}");
        }
    }

    #[test]
    fn the_closing_lines_of_both_runners_are_added_up() {
        let nextest = "     Summary [   5.2s] 13 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped\n";
        assert_eq!(count(nextest), Tally { passed: 10, failed: 2, skipped: 3 });
        let cargo = "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let shown = format!("    {cargo}");
        assert_eq!(count(&format!("{shown}{nextest}noise 7 passed\n{cargo}")), {
            Tally { passed: 14, failed: 2, skipped: 4 }
        });
    }
}
