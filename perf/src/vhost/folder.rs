//! A temporary folder for sockets and files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Removed with everything in it when dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder below `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path) -> Result<Folder> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("lamina-perf-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing can be done about a file that stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_behind() {
        let folder = Folder::new(&std::env::temp_dir()).unwrap();
        let file = folder.path("x");
        std::fs::write(&file, b"y").unwrap();
        drop(folder);
        assert!(!file.exists());
    }
}
