//! How far an import got, so that it can go on after anything.
//!
//! ```text
//!  <state-dir>/imports/<UUID of the disk>.json   written after a flush of the disk; replaced whole
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use lamina_bdev::{Error, ErrorKind, Uuid};
use lamina_rpc::stream::{Header, uuid_text};
use serde::{Deserialize, Serialize};

const BYTES_MAX: u64 = 4096;

/// An import that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// UUID of the stream's snapshot.
    pub snapshot: String,
    /// UUID of its older snapshot.
    pub base: Option<String>,
    /// Bytes that it presents.
    pub size: u64,
    /// All before this byte is durable.
    pub offset: u64,
}

impl Progress {
    /// Nothing of this stream has been done.
    pub fn new(header: &Header) -> Progress {
        Progress {
            snapshot: uuid_text(&header.snapshot),
            base: header.base.as_ref().map(uuid_text),
            size: header.size,
            offset: 0,
        }
    }

    /// True if it is of the same snapshots.
    pub fn is_of(&self, header: &Header) -> bool {
        Progress { offset: self.offset, ..Progress::new(header) } == *self
    }

    /// What is known of an import into `disk`.
    pub fn load(state: &Path, disk: Uuid) -> Option<Progress> {
        let path = path(state, disk);
        if std::fs::metadata(&path).ok()?.len() > BYTES_MAX {
            return None;
        }
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, state: &Path, disk: Uuid) -> Result<(), Error> {
        let path = path(state, disk);
        let new = path.with_extension("new");
        let text = serde_json::to_vec(self).expect("plain data has a JSON form");
        let write = || -> std::io::Result<()> {
            let folder = state.join(FOLDER);
            std::fs::create_dir_all(&folder)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|e| {
            Error::new(ErrorKind::Io, format!("{} cannot be written: {e}", path.display()))
        })
    }

    /// The import has ended.
    pub fn remove(state: &Path, disk: Uuid) {
        let _ = std::fs::remove_file(path(state, disk));
    }
}

const FOLDER: &str = "imports";

fn path(state: &Path, disk: Uuid) -> PathBuf {
    state.join(FOLDER).join(format!("{disk}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn what_is_saved_is_loaded_and_other_streams_are_told_apart() {
        let dir = TempDir::new("imports");
        let disk = Uuid([9; 16]);
        let header = Header { snapshot: [1; 16], size: 4096, ..Header::default() };
        assert_eq!(Progress::load(dir.path(), disk), None);
        let progress = Progress { offset: 4096, ..Progress::new(&header) };
        progress.save(dir.path(), disk).unwrap();
        assert_eq!(Progress::load(dir.path(), disk), Some(progress.clone()));
        assert!(progress.is_of(&header));
        assert!(!progress.is_of(&Header { base: Some([2; 16]), ..header }));
        std::fs::write(path(dir.path(), disk), b"{\"snap").unwrap();
        assert_eq!(Progress::load(dir.path(), disk), None);
        Progress::remove(dir.path(), disk);
        assert!(!path(dir.path(), disk).exists());
    }
}
