//! The state file: which stores were open, so that a restart opens them again.
//!
//! ```text
//!  <state-dir>/lock          held while the daemon runs
//!  <state-dir>/stores.json   {"version":1,"stores":[{"path":"/srv/a","name":"a","uuid":"..."}]}
//! ```
//!
//! It is replaced whole: new file, fsync, rename, fsync of the folder. Name and UUID are only for
//! people, when the store itself cannot be opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lamina_bdev::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const BYTES_MAX: u64 = 64 << 20;
const FILE: &str = "stores.json";

/// A store that was open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownStore {
    /// Absolute path of its file or device.
    pub path: String,
    /// Its name when it was last open.
    #[serde(default)]
    pub name: String,
    /// Its UUID when it was last open.
    #[serde(default)]
    pub uuid: String,
    /// Percentages at which its filling up is an event, if they are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<u32>>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    stores: Vec<KnownStore>,
}

/// The state folder, ours alone.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it is missing, and takes its lock.
    ///
    /// # Errors
    /// `Busy`: another daemon has it. `Io`: it cannot be made or written.
    pub fn open(dir: &Path) -> Result<StateDir, Error> {
        let failed = |e: io::Error| {
            let why = format!("{} cannot be used ({e}): give another --state-dir", dir.display());
            Error::new(ErrorKind::Io, why)
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { dir: dir.to_path_buf(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "another laminad runs with {}: stop it, or give another --state-dir",
                    dir.display()
                ),
            )),
            Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// The stores that were open. A missing file is an empty list.
    ///
    /// # Errors
    /// `Corrupt`: the file is damaged. `Version`: it is of a later version. `Io`.
    pub fn load(&self) -> Result<Vec<KnownStore>, Error> {
        let bad = |kind, why: String| {
            let why = format!("{}: {why}; mend it or move it away", self.file().display());
            Err(Error::new(kind, why))
        };
        let Some(text) = read_whole(&self.dir, FILE)? else { return Ok(Vec::new()) };
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if content.version == VERSION => Ok(content.stores),
            Ok(content) => {
                bad(ErrorKind::Version, format!("version {} is not known", content.version))
            }
            Err(e) => bad(ErrorKind::Corrupt, e.to_string()),
        }
    }

    /// Replaces the list, durably.
    ///
    /// # Errors
    /// `Io`, `NoSpace`; the old list is then still there.
    pub fn save(&self, stores: &[KnownStore]) -> Result<(), Error> {
        let content = Content { version: VERSION, stores: stores.to_vec() };
        let mut text = serde_json::to_vec(&content).expect("plain data has a JSON form");
        text.push(b'\n');
        replace(&self.dir, FILE, &text)
    }
}

/// A whole file of the state folder; `None` if there is none.
///
/// # Errors
/// `Corrupt`: it is too large to be one of ours. `Io`.
pub(super) fn read_whole(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = dir.join(name);
    let bad = |kind, why: String| {
        Err(Error::new(kind, format!("{}: {why}; mend it or move it away", path.display())))
    };
    let length = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return bad(ErrorKind::Io, e.to_string()),
    };
    if length > BYTES_MAX {
        return bad(ErrorKind::Corrupt, format!("{length} bytes are too many"));
    }
    match std::fs::read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) => bad(ErrorKind::Io, e.to_string()),
    }
}

/// Replaces a file of the state folder, durably: new file, fsync, rename, fsync of the folder.
///
/// # Errors
/// `Io`, `NoSpace`; the old file is then still there.
pub(super) fn replace(dir: &Path, name: &str, text: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| {
        let kind = match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{} cannot be written: {e}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn store(path: &str) -> KnownStore {
        KnownStore { path: path.into(), name: "n".into(), uuid: "u".into(), warnings: None }
    }

    #[test]
    fn what_is_saved_is_loaded_by_the_next_daemon() {
        let dir = TempDir::new("state");
        let sub = dir.path().join("a/b");
        let state = StateDir::open(&sub).unwrap();
        assert_eq!(state.load().unwrap(), []);
        state.save(&[store("/x"), store("/y \"z\"")]).unwrap();
        assert_eq!(StateDir::open(&sub).unwrap_err().kind, ErrorKind::Busy);
        drop(state);
        let state = StateDir::open(&sub).unwrap();
        assert_eq!(state.load().unwrap(), [store("/x"), store("/y \"z\"")]);
        state.save(&[]).unwrap();
        assert_eq!(state.load().unwrap(), []);
        assert!(!sub.join("stores.json.new").exists());
    }

    #[test]
    fn a_damaged_or_later_file_is_an_error_and_not_an_empty_list() {
        let dir = TempDir::new("state-bad");
        let state = StateDir::open(dir.path()).unwrap();
        for (text, kind) in [
            ("", ErrorKind::Corrupt),
            ("{\"version\":1,\"stor", ErrorKind::Corrupt),
            ("[]", ErrorKind::Corrupt),
            ("{\"version\":2,\"stores\":[]}", ErrorKind::Version),
        ] {
            std::fs::write(state.file(), text).unwrap();
            let error = state.load().unwrap_err();
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.message.contains("stores.json"), "{error}");
        }
        File::create(state.file()).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert_eq!(state.load().unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_a_sentence() {
        let dir = TempDir::new("state-file");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = StateDir::open(&file.join("x")).unwrap_err();
        assert!(error.message.contains("--state-dir"), "{error}");
    }
}
