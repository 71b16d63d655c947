//! A disk that fails as disks do, for a real daemon: one file on a FUSE file system of this
//! process.
//!
//! ```text
//!  laminad ── io_uring, O_DIRECT ──▶ kernel ── FUSE ──▶ Disk ─▶ Cache: safe | volatile per sector
//!                                                        │
//!                      test: faults, stalls, power ──────┘
//! ```
//!
//! Contract: a write is volatile until an fsync that began after it was answered has been answered;
//! the power cut keeps a random part of what is volatile, by sectors of 512 bytes, in no order.
//!
//! The process that mounts it must not use the file itself while it may be stalled, and the daemon
//! must be gone before the disk is dropped.

mod block;
mod cache;
mod faults;
mod fuse;
mod record;
mod rig;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption};

pub use block::LoopDevice;
pub use cache::{Cache, Cut, SECTOR};
pub use faults::{Faults, Which};
pub use record::Record;
pub use rig::{Rig, Running, Way};

use crate::guest::Folder;
use crate::sim::rng::Rng;
use fuse::{FileSystem, Held};

/// Longest wait for the file's last user.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);

/// Everything behind the file, shared with the thread that serves it.
#[derive(Debug)]
struct State {
    cache: Cache,
    faults: Faults,
    record: Option<Record>,
    /// True: requests are held, not served.
    stalled: bool,
    /// Requests that are served before it stalls; `None`: it does not.
    before_stall: Option<u64>,
    held: Vec<Held>,
    /// Open descriptions of the file.
    opened: usize,
}

/// A mounted disk.
pub struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    path: PathBuf,
}

/// Whether a disk can be mounted here; where not, says so with the test's name.
#[must_use]
pub fn ready(test: &str) -> bool {
    let folder = Folder::new();
    let tried = Disk::try_mount(folder.path(), 1 << 20).map_err(|error| error.to_string());
    match tried.and_then(|disk| LoopDevice::new(disk.path()).map(|_| ())) {
        Ok(()) => true,
        Err(error) => {
            eprintln!(
                "skipped: {test}: a block device on a FUSE file cannot be made here: {error}"
            );
            false
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread panicked with the disk")
}

impl Disk {
    /// Mounts a disk of `bytes` zeros on the empty folder `folder`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn mount(folder: &Path, bytes: usize) -> Disk {
        let mounted = Disk::try_mount(folder, bytes);
        mounted.unwrap_or_else(|error| panic!("cannot mount on {}: {error}", folder.display()))
    }

    fn try_mount(folder: &Path, bytes: usize) -> std::io::Result<Disk> {
        let cache = Cache::new(bytes);
        let (faults, held) = (Faults::default(), Vec::new());
        let state = State {
            cache,
            faults,
            record: None,
            stalled: false,
            before_stall: None,
            held,
            opened: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lamina-tests".into())];
        let session = fuser::spawn_mount(FileSystem::new(state.clone()), folder, &config)?;
        Ok(Disk { state, session: Some(session), path: folder.join(fuse::FILE_NAME) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// What is left of the faults that were set: those with a count have counted down.
    #[must_use]
    pub fn faults(&self) -> Faults {
        lock(&self.state).faults
    }

    /// Holds every request from now on, until the stall is dropped.
    #[must_use]
    pub fn stall(&self) -> Stall<'_> {
        self.stall_after(0)
    }

    /// Serves so many requests more, and holds every one after them until the stall is dropped.
    #[must_use]
    pub fn stall_after(&self, served: u64) -> Stall<'_> {
        lock(&self.state).before_stall = Some(served);
        Stall { disk: self }
    }

    /// Holds every request for a while.
    pub fn stall_for(&self, time: Duration) {
        let _stall = self.stall();
        std::thread::sleep(time);
    }

    /// The power goes at this instant: nothing is served any more. What the host had asked for and
    /// not been told is as if it had never been asked. `kill` has to end the host; it gets an error
    /// for what was held, which nobody is there to see.
    pub fn cut(&self, rng: &mut Rng, kill: impl FnOnce()) -> Cut {
        let mut state = lock(&self.state);
        state.stalled = true;
        let cut = state.cache.cut(rng);
        drop(state);
        kill();
        cut
    }

    /// Ends what [`Disk::cut`] began, once the host is dying: refuses what is held, until `reap`
    /// has seen the host's end, and then gives power back.
    pub fn power_on(&self, reap: impl FnOnce()) {
        let before = {
            let mut state = lock(&self.state);
            let gone = Faults { gone: true, ..Faults::default() };
            let before = std::mem::replace(&mut state.faults, gone);
            state.resume();
            before
        };
        reap();
        lock(&self.state).faults = before;
    }

    /// Begins to note when which tagged sectors were written and when fsyncs ran.
    pub fn start_record(&self) {
        lock(&self.state).record = Some(Record::default());
    }

    /// What was noted since [`Disk::start_record`].
    ///
    /// # Panics
    /// If nothing was being noted.
    #[must_use]
    pub fn take_record(&self) -> Record {
        lock(&self.state).record.take().expect("a record was started")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        lock(&self.state).resume();
        // The kernel lets go of the file of a dead process's ring some time after its end.
        let end = Instant::now() + CLOSE_TIME_MAX;
        while lock(&self.state).opened > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("cannot unmount {}: {error}", self.path.display());
        }
    }
}

/// A disk that does not answer, as long as this lives.
pub struct Stall<'a> {
    disk: &'a Disk,
}

impl Stall<'_> {
    /// Requests that wait.
    #[must_use]
    pub fn held(&self) -> usize {
        lock(&self.disk.state).held.len()
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        lock(&self.disk.state).resume();
    }
}
