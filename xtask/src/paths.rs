//! The folders and files of the project.

use std::path::{Path, PathBuf};

pub use testkit::programs::{run_folder as run, workspace as root};

/// Returns the folder of the programs that were fetched.
pub fn bin() -> PathBuf {
    run().join("bin")
}

/// Returns the folder of the logs.
pub fn logs() -> PathBuf {
    run().join("logs")
}

/// Returns the folder of the history: the data of the private Redis.
pub fn redis_data() -> PathBuf {
    run().join("redis")
}

/// Returns Cargo's target folder.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The profile of `make run` and most other commands, which compiles soon.
pub const RELEASE: &str = "release";
/// The profile of the image, which compiles long and runs fast.
pub const DIST: &str = "dist";

/// Returns a binary that was built with this profile.
pub fn built(profile: &str, name: &str) -> PathBuf {
    target().join(profile).join(name)
}

/// Returns a binary that was built with the profile `release`.
pub fn release(name: &str) -> PathBuf {
    built(RELEASE, name)
}

/// Returns the path as a person in the project's folder types it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
