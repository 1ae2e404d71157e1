//! Where things lie.

use std::path::{Path, PathBuf};

pub use testkit::programs::{run_folder as run, workspace as root};

/// The folder of the programs that were fetched.
pub fn bin() -> PathBuf {
    run().join("bin")
}

/// The folder of the logs.
pub fn logs() -> PathBuf {
    run().join("logs")
}

/// The folder of the history: what the private Redis keeps.
pub fn redis_data() -> PathBuf {
    run().join("redis")
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A binary that `cargo build --release` made.
pub fn release(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// The path as a person in the project's folder types it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
