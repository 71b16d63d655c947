//! A served export on a real socket, with a loop of a thread for a reactor that does sleep.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::disk::RamDisk;
use super::rig::{DISK_BYTES, config};
use crate::reactor::epoll::Epoll;
use crate::vhost::{BlkExport, ExportConfig, ExportMsg, ExportServer, ServeConfig, serve};

static FOLDERS: AtomicU64 = AtomicU64::new(0);

/// A folder of our own, removed afterwards.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Folder {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("lamina-vhost-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Shared by the test and the loop.
pub(super) struct Served {
    pub(super) server: Option<ExportServer>,
    pub(super) disk: Arc<Mutex<RamDisk>>,
    /// Completions are held back while set.
    pub(super) hold: Arc<AtomicBool>,
    /// How often the loop went to sleep.
    pub(super) sleeps: Arc<AtomicU64>,
    pub(super) log: Arc<Mutex<Vec<String>>>,
    pub(super) socket: PathBuf,
    quit: Arc<AtomicBool>,
    reactor: Option<JoinHandle<()>>,
    wake: Arc<OwnedFd>,
    folder: Option<Folder>,
}

/// One turn of everything; true if there was anything to do.
fn turn(export: &mut BlkExport, disk: &Mutex<RamDisk>, hold: &AtomicBool) -> bool {
    let mut disk = disk.lock().unwrap();
    let mut worked = export.poll_into(&mut *disk);
    while !hold.load(Ordering::Relaxed) {
        let Some((cookie, status)) = disk.take_done() else { break };
        export.complete(cookie, status);
        worked = true;
    }
    export.end_turn();
    worked
}

impl Served {
    pub(super) fn new() -> Served {
        Served::with(config())
    }

    pub(super) fn with(config: ExportConfig) -> Served {
        let folder = Folder::new();
        let socket = folder.0.join("disk.sock");
        let disk = Arc::new(Mutex::new(RamDisk::new(DISK_BYTES)));
        let mut served = Served::at(config, socket, disk);
        served.folder = Some(folder);
        served
    }

    /// On an existing path and disk, as a daemon that was started again.
    pub(super) fn at(config: ExportConfig, socket: PathBuf, disk: Arc<Mutex<RamDisk>>) -> Served {
        let (sender, inbox) = channel::<ExportMsg>();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let waker = wake.clone();
        let quit = Arc::new(AtomicBool::new(false));
        let hold = Arc::new(AtomicBool::new(false));
        let sleeps = Arc::new(AtomicU64::new(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut export = BlkExport::new(config.clone());
        let reactor = {
            let (disk, wake, quit) = (disk.clone(), wake.clone(), quit.clone());
            let (hold, sleeps) = (hold.clone(), sleeps.clone());
            std::thread::spawn(move || {
                let (mut epoll, mut watched) = (Epoll::new().unwrap(), None);
                while !quit.load(Ordering::Relaxed) {
                    let mut worked = false;
                    while let Ok(msg) = inbox.try_recv() {
                        export.message(msg);
                        worked = true;
                    }
                    worked |= turn(&mut export, &disk, &hold);
                    let busy = worked || !export.idle();
                    if busy || !export.prepare_sleep() {
                        continue;
                    }
                    sleeps.fetch_add(1, Ordering::Relaxed);
                    if watched != Some(export.kick_changes()) {
                        watched = Some(export.kick_changes());
                        epoll = Epoll::new().unwrap();
                        epoll.add(wake.as_raw_fd(), 0).unwrap();
                        export.kick_fds().for_each(|kick| epoll.add(kick, 0).unwrap());
                    }
                    assert!(epoll.wait(20_000).unwrap().len() > 0, "slept for ever: a lost kick");
                    export.woken();
                }
            })
        };
        let lines = log.clone();
        let config = ServeConfig {
            export: config,
            socket: socket.clone(),
            log: Box::new(move |line| lines.lock().unwrap().push(line.to_string())),
        };
        let post = Box::new(move |msg| {
            let _ = sender.send(msg);
            let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
        });
        let server = Some(serve(config, post).unwrap());
        let reactor = Some(reactor);
        Served { server, disk, hold, sleeps, log, socket, quit, reactor, wake: waker, folder: None }
    }

    pub(super) fn server(&self) -> &ExportServer {
        self.server.as_ref().unwrap()
    }

    /// Waits until something is true of the log, at most ten seconds.
    pub(super) fn wait_for_log(&self, wanted: &str) {
        wait_for(
            || self.log.lock().unwrap().iter().any(|line| line.contains(wanted)),
            || format!("{wanted:?} in {:?}", self.log.lock().unwrap()),
        );
    }
}

/// Waits until `done`, at most ten seconds.
pub(super) fn wait_for(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("waited in vain for {}", what());
}

impl Served {
    /// Ends the loop; the export is gone with whatever it had in flight.
    fn end_reactor(&mut self) {
        self.quit.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(reactor) = self.reactor.take() {
            let result = reactor.join();
            assert!(result.is_ok() || std::thread::panicking(), "the reactor panicked");
        }
    }

    /// Dies as by SIGKILL, as far as guests can tell: nothing is drained, nothing is said.
    pub(super) fn kill(mut self) {
        self.end_reactor();
        self.disk.lock().unwrap().die();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.hold.store(false, Ordering::Relaxed);
        drop(self.server.take());
        self.end_reactor();
    }
}
