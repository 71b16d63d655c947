//! End-to-end harness: a real daemon, and a real Linux guest in QEMU on its vhost-user-blk sockets.
//!
//! ```text
//!   test ── JSON-RPC ──▶ laminad ◀── vhost-user socket + guest memory ── QEMU
//!     │                                                                    │
//!     └── "ID COMMAND" on PREFIX.in, output and "@@ID STATUS" on PREFIX.out ┘
//! ```
//!
//! The guest's image and its commands are those of `tests/guest/`; QEMU is started by
//! `scripts/guest`, the same way as by hand. Everything lives in one temporary folder, removed in
//! the end; processes are ended by the handles that started them, also when a test fails.
//!
//! The functions here serve tests only: what cannot work panics with the logs that say why.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

mod daemon;
mod machine;
mod qmp;
mod rpc;

pub use daemon::Daemon;
pub use machine::{Guest, Machine};
pub use qmp::Qmp;
pub use rpc::{RpcError, call};

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

/// The top folder of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the tests are a folder of the checkout").to_path_buf()
}

/// A program of the workspace: from `LAMINA_BIN_DIR`, or else built beside the running test.
///
/// # Panics
/// If the program has not been built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("LAMINA_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a running test has a path");
        // build/PROFILE/deps/test
        test.ancestors().nth(2).expect("a test lies in deps/").to_path_buf()
    });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --release --workspace, and set LAMINA_BIN_DIR to \
         build/release",
        path.display()
    );
    path
}

/// Whether guests can run here; where QEMU is missing, says so with the test's name.
///
/// # Panics
/// If QEMU is there but the guest's image is not: that is an unfinished set-up, not a reason to
/// pass over a test.
#[must_use]
pub fn ready(test: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|folder| folder.join("qemu-system-x86_64").exists()) {
        eprintln!("skipped: {test}: qemu-system-x86_64 is not installed (scripts/setup does it)");
        return false;
    }
    let image = std::env::var_os("LAMINA_GUEST_DIR")
        .map_or_else(|| root().join("build/guest"), PathBuf::from)
        .join("initramfs");
    assert!(image.exists(), "{} is missing; run scripts/setup", image.display());
    true
}

/// Guests take turns: two emulated machines at once on a small host run into their time limits.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed while it had its turn leaves nothing half done here.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary folder of one test, removed with everything in it in the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder; its path is short, since sockets lie in it.
    ///
    /// # Panics
    /// If the folder cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a folder on disk")]
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lamina-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        Folder(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The last `count` lines of a log, for a panic's message.
fn tail(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(count)..];
    format!("--- end of {}\n{}\n---", path.display(), last.join("\n"))
}
