//! Folders of logs and data.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder: one of the caller's, or a temporary one that is removed with this value. A temporary one
/// is kept when the thread panics, so that its logs can be read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
}

impl Folder {
    /// Creates a temporary folder.
    ///
    /// # Errors
    /// Fails where none can be made.
    pub fn temporary() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("jarvis-test-").tempdir()?;
        Ok(Self { path: dir.path().to_owned(), temporary: Some(dir) })
    }

    /// Opens a folder of the caller's, which stays. It is made where it is missing.
    ///
    /// # Errors
    /// Fails where it cannot be made.
    pub fn at(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        std::fs::create_dir_all(&path)?;
        Ok(Self { path, temporary: None })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(temporary) = &mut self.temporary
        {
            temporary.disable_cleanup(true);
        }
    }
}
