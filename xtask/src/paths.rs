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

/// Returns a binary of `cargo build --release`.
pub fn release(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Returns the path as a person in the project's folder types it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
