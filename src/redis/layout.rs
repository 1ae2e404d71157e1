//! The layout of the stored data, and the check whether this release may run on it.

use std::collections::HashMap;

use super::functions::{LIBRARIES, SourceFile};
use crate::digest::sha256_hex;

/// The layout of the data that this release reads and writes.
pub const LAYOUT: &str = "3";
/// The layout of a record that names none.
const FIRST_LAYOUT: &str = "1";
/// The field of the record that holds the layout.
pub(super) const LAYOUT_FIELD: &str = "layout";

/// Why this release must not run on this Redis.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A released file was edited.
    #[error(
        "The function file {path} differs from the one that was applied to this Redis. Restore it \
         and put the change into a new version beside it (migrations/README.md); in development, \
         empty this Redis (make purge, for that of make run)."
    )]
    Edited {
        /// The path of the file.
        path: String,
    },
    /// The data is of an earlier layout.
    #[error(
        "This Redis holds data of layout {found}, and jarvis {} reads layout {LAYOUT}. Layout \
         {found} was never released and is not converted: empty this Redis (make purge, for that \
         of make run), or set JARVIS_REDIS_URL to another one.",
        env!("CARGO_PKG_VERSION")
    )]
    Earlier {
        /// The layout of the data.
        found: String,
    },
    /// The data is of the layout of a later release.
    #[error(
        "This Redis holds data of layout {found}, and jarvis {} reads layout {LAYOUT}. Start a \
         later release, or set JARVIS_REDIS_URL to another Redis.",
        env!("CARGO_PKG_VERSION")
    )]
    Later {
        /// The layout of the data.
        found: String,
    },
}

/// Checks the record: the layout, and the checksum of each file of Lua that was applied, by its
/// path.
pub(super) fn check(recorded: &HashMap<String, String>) -> Result<(), MigrationError> {
    if recorded.is_empty() {
        return Ok(());
    }
    let found = recorded.get(LAYOUT_FIELD).map_or(FIRST_LAYOUT, String::as_str).to_owned();
    let number = |layout: &str| layout.parse::<u64>().unwrap_or(u64::MAX);
    match number(&found).cmp(&number(LAYOUT)) {
        std::cmp::Ordering::Less => return Err(MigrationError::Earlier { found }),
        std::cmp::Ordering::Greater => return Err(MigrationError::Later { found }),
        std::cmp::Ordering::Equal => {}
    }
    let edited = files()
        .find(|file| recorded.get(file.path).is_some_and(|recorded| *recorded != checksum(file)));
    edited.map_or(Ok(()), |file| Err(MigrationError::Edited { path: file.path.to_owned() }))
}

/// Returns every file of Lua of this release.
pub(super) fn files() -> impl Iterator<Item = &'static SourceFile> {
    LIBRARIES.iter().flat_map(|library| library.includes.iter().chain(library.commands))
}

/// Returns the checksum of a file, as it is recorded.
pub(super) fn checksum(file: &SourceFile) -> String {
    sha256_hex(file.text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &[(&str, &str)]) -> HashMap<String, String> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_edited_function_is_refused() {
        let file = files().next().expect("a file");
        let refused = check(&record(&[("layout", LAYOUT), (file.path, "other")]));
        assert!(matches!(refused, Err(MigrationError::Edited { path }) if path == file.path));
        let same = checksum(file);
        assert!(check(&record(&[("layout", LAYOUT), (file.path, &same)])).is_ok());
    }

    #[test]
    fn functions_of_a_later_release_are_accepted_and_its_layout_is_refused() {
        let beside = record(&[("layout", LAYOUT), ("session/append_2.lua", "x")]);
        assert!(check(&beside).is_ok());
        for layout in ["4", "10", "unreadable"] {
            let refused = check(&record(&[("layout", layout)]));
            assert!(matches!(refused, Err(MigrationError::Later { .. })), "{layout}");
        }
    }

    #[test]
    fn the_error_for_an_earlier_layout_names_what_to_do() {
        let first = r#"{"name":"0001_session.lua","sha256":"x","oldest":"0.1.0"}"#;
        let refused = check(&record(&[("1", first)])).expect_err("another layout");
        assert!(refused.to_string().contains("make purge"), "{refused}");
    }
}
