//! Finds programs: those that the development commands fetched, those on the PATH, and those in the
//! folders where Debian keeps servers.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// Folders of servers that are not on an ordinary user's PATH.
const SERVER_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns the folder of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Returns the folder of everything that is fetched, written or kept at run time; git ignores it.
pub fn run_folder() -> PathBuf {
    workspace().join(".run")
}

/// Returns the folders that are searched, first to last.
fn search_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(run_folder().join("bin"))
        .chain(std::env::split_paths(&path))
        .chain(SERVER_FOLDERS.map(PathBuf::from))
        .collect()
}

/// Returns the value of PATH under which a child process finds the same programs.
pub fn search_path() -> OsString {
    // A folder with a colon in its name cannot be in a PATH; then the PATH stays as it is.
    std::env::join_paths(search_folders())
        .unwrap_or_else(|_| std::env::var_os("PATH").unwrap_or_default())
}

/// Variables that Cargo and test runners set for the package that they run. The build script of ring
/// looks at some of them and would run again, and everything that depends on ring be compiled again.
const OF_THE_RUNNER: [&str; 7] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_TARGET_TMPDIR",
    "NEXTEST",
    "OUT_DIR",
];

/// Hides from a command which package this process was run for, so that a Cargo in it finds what an
/// ordinary one has built.
pub fn hide_runner(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if OF_THE_RUNNER.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
}

/// Finds a program by its name.
pub fn find(name: &str) -> Option<PathBuf> {
    search_folders().into_iter().map(|folder| folder.join(name)).find(|path| is_program(path))
}

/// Finds a program by its name, or takes a path that names one.
///
/// # Errors
/// Fails where there is no such program.
pub fn resolve(program: &Path) -> anyhow::Result<PathBuf> {
    let found = if program.components().count() > 1 {
        is_program(program).then(|| program.to_owned())
    } else {
        program.to_str().and_then(find)
    };
    found.with_context(|| {
        format!("{} is not installed; `make test` installs what it needs", program.display())
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
