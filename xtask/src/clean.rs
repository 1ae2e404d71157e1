//! `clean` and `purge`.

use std::fs;
use std::path::Path;

use crate::console::say;
use crate::{paths, state};

/// Stops what runs, and removes what was built and fetched, and the history where `history` is set.
///
/// # Errors
/// Fails where a file cannot be removed.
pub fn clean(history: bool) -> anyhow::Result<()> {
    if state::stop()? {
        say("  Stopped what was running.");
    }
    let data = paths::redis_data();
    let fetched = fs::read_dir(paths::run()).into_iter().flatten();
    for path in fetched.filter_map(Result::ok).map(|entry| entry.path()) {
        if history || path != data {
            remove(&path)?;
        }
    }
    // The target folder comes last, because this program is in it.
    remove(&paths::target())?;
    if data.exists() {
        let data = paths::shown(&data);
        say(&format!(
            "  Removed what was built and fetched. The history is still in {data} (make purge removes it)."
        ));
    } else {
        say("  Removed what was built and fetched, and there is no history.");
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let Ok(kind) = path.symlink_metadata() else { return Ok(()) };
    Ok(if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }?)
}
