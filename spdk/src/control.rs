//! Threads that may block, beside SPDK's, which may not.
//!
//! ```text
//!  SPDK thread ─► spawn(job) ─► queue ─► control threads ─► on_app(work) ─► SPDK's first thread
//!                                              └── waits ◄──────────────────────┘
//! ```

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lamina_bdev::{Error, ErrorKind};

use crate::sys::thread::{Thread, run_anywhere};

/// Control threads: a call that takes long does not hold up the others.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;
static QUEUE: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();

/// Starts the control threads; once.
///
/// # Errors
/// No threads.
pub fn start() -> std::io::Result<()> {
    let (sender, receiver) = channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for index in 0..THREADS {
        let receiver = receiver.clone();
        let thread = std::thread::Builder::new().name(format!("lamina-ctl{index}"));
        thread.spawn(move || {
            // SPDK's threads poll without end: share no core with just one of them.
            run_anywhere();
            while let Some(job) = next(&receiver) {
                job();
            }
        })?;
    }
    let _ = QUEUE.set(Mutex::new(sender));
    Ok(())
}

fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Runs `job` on a control thread, soon.
///
/// # Panics
/// Before [`start`].
pub fn spawn(job: impl FnOnce() + Send + 'static) {
    let queue = QUEUE.get().expect("control threads run before there is anything to do");
    let sent = queue.lock().unwrap_or_else(PoisonError::into_inner).send(Box::new(job));
    assert!(sent.is_ok(), "control threads never end");
}

/// Runs `work` on SPDK's first thread and waits for what it says. From control threads only.
///
/// # Errors
/// `Io` if SPDK has ended.
pub fn on_app<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let gone = || Error::new(ErrorKind::Io, "SPDK is ending");
    let app = Thread::app().ok_or_else(gone)?;
    let (sender, answer) = sync_channel(1);
    app.send(move || {
        let _ = sender.try_send(work());
    });
    answer.recv().map_err(|_| gone())
}
