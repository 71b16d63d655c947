//! The life of the module: SPDK starts it, shows it bdevs, and ends it.
//!
//! ```text
//!  module_init ─► control threads, a thread of SPDK a core, Control
//!  examine_disk(bdev) ─► label? ─► store opened ─► its disks are bdevs ─► examine_done
//!  fini_start ─► disks vanish ─► consistency points, stores closed ─► threads end ─► done
//! ```

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clap::Parser;
use lamina_bdev::{Error, ErrorKind};
use lamina_target::config::Config;
use lamina_target::control::Control;
use lamina_target::control::host::PATH_PREFIX;
use lamina_target::log;

use crate::control::{self, spawn};
use crate::device::holds_store;
use crate::host::{Shared, Shows, Threads};
use crate::sys::dma;
use crate::sys::thread::Thread;

/// Settings of the engine and of control, as `laminad` takes them on its command line.
const OPTIONS_VARIABLE: &str = "LAMINA_OPTIONS";

/// What runs.
pub struct Running {
    /// Stores, disks and snapshots.
    pub control: Arc<Control>,
    /// What drives them.
    pub threads: Arc<Threads>,
    /// Disks that are bdevs.
    pub shows: Shows,
    /// To be removed at the end: a state folder that nobody asked for.
    own_folder: Option<PathBuf>,
}

static RUNNING: Mutex<Option<Arc<Running>>> = Mutex::new(None);

fn slot() -> MutexGuard<'static, Option<Arc<Running>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What runs now.
///
/// # Errors
/// `Busy`: it has not started, or is ending.
pub fn running() -> Result<Arc<Running>, Error> {
    slot().clone().ok_or_else(|| Error::new(ErrorKind::Busy, "Lamina is not running (any more)"))
}

/// SPDK starts the module, on its first thread.
///
/// # Errors
/// What control says.
pub fn start() -> Result<(), Error> {
    dma::start();
    control::start().map_err(|e| Error::new(ErrorKind::Io, format!("no threads: {e}")))?;
    let threads = Arc::new(Threads::start()?);
    // On a thread that may run anywhere, since it starts threads of its own.
    let (sender, answer) = sync_channel(1);
    let host = threads.clone();
    spawn(move || {
        let _ = sender.try_send(start_control(host));
    });
    let died = |_| Error::new(ErrorKind::Io, "a control thread died");
    let (control, own_folder) = answer.recv().map_err(died)??;
    let running = Running { control, threads, shows: Shows::default(), own_folder };
    *slot() = Some(Arc::new(running));
    Ok(())
}

fn start_control(host: Arc<Threads>) -> Result<(Arc<Control>, Option<PathBuf>), Error> {
    let options = std::env::var(OPTIONS_VARIABLE).unwrap_or_default();
    let mut args = vec!["lamina".to_string()];
    let mut own_folder = None;
    if !options.contains("--state-dir") {
        let folder = std::env::temp_dir().join(format!("lamina-spdk.{}", std::process::id()));
        args.extend(["--state-dir".into(), folder.display().to_string()]);
        own_folder = Some(folder);
    }
    args.extend(options.split_whitespace().map(str::to_string));
    let config = Config::try_parse_from(&args)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("{OPTIONS_VARIABLE}: {e}")))?;
    // SPDK ends by its own methods and signals, so nobody waits for this.
    let (stop, _) = sync_channel(1);
    let control = Control::start_on(&config, stop, Box::new(Shared(host)))?;
    Ok((control, own_folder))
}

/// SPDK shows a bdev; `done` is due on its first thread.
pub fn examine(name: String, done: impl FnOnce() + Send + 'static) {
    spawn(move || {
        // Without the claim that opening takes: the bdev may be another module's.
        if let Ok(running) = running()
            && holds_store(&name)
        {
            match running.control.open(&format!("{PATH_PREFIX}{name}")) {
                Ok(_) => running.shows.refresh(&running.control, &running.threads),
                Err(error) => log::error(format!("the store on {name} is not open: {error}")),
            }
        }
        match Thread::app() {
            Some(app) => app.send(done),
            None => log::error("SPDK ended while it showed a bdev"),
        }
    });
}

/// SPDK ends; `done` is due on its first thread.
pub fn stop(done: impl FnOnce() + Send + 'static) {
    let Some(running) = slot().take() else { return done() };
    spawn(move || {
        if let Err(error) = running.shows.hide_store(None, true) {
            log::error(format!("while stopping: {error}"));
        }
        running.control.shut_down();
        if let Some(folder) = &running.own_folder {
            let _ = std::fs::remove_dir_all(folder);
        }
        log::sync();
        let threads = running.threads.clone();
        drop(running);
        if let Some(app) = Thread::app() {
            app.send(move || {
                threads.end();
                done();
            });
        }
    });
}
