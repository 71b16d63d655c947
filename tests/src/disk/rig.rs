//! A daemon whose only store is on a disk that fails.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::json;

use super::{Cut, Disk, Faults, LoopDevice};
use crate::client::{Device, Options};
use crate::guest::{Daemon, Folder};
use crate::load::{Client, Model, check_disk, lock};
use crate::sim::rng::Rng;

/// Bytes of the base.
const BASE_BYTES: usize = 160 << 20;
/// MiB of the disk.
const DISK_MIB: u64 = 12;
const DISK_BLOCKS: usize = (DISK_MIB as usize) << 8;

/// How the daemon gets at the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As a file.
    File,
    /// As a block device on the file.
    Block,
}

/// Daemon, disk and what a client knows. The daemon goes first, then the mount, then its folder.
pub struct Rig {
    /// The daemon; its disk is `vm`.
    pub daemon: Daemon,
    device: Option<LoopDevice>,
    /// What its store is on.
    pub disk: Disk,
    _folder: Folder,
    /// What the disk must hold.
    pub model: Arc<Mutex<Model>>,
    /// The last tag used.
    pub tag: u64,
}

/// A client that runs on a thread.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Client>,
}

impl Running {
    /// Runs a client until it is stopped.
    #[must_use]
    pub fn new(mut client: Client) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            client.run(|| stopped.load(Ordering::Relaxed));
            client
        });
        Running { stop, thread }
    }

    /// Stops it, with what is in flight.
    ///
    /// # Panics
    /// If the client found something wrong.
    #[must_use]
    pub fn stop(self) -> Client {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client found nothing wrong")
    }
}

impl Rig {
    /// A new store with an exported disk.
    #[must_use]
    pub fn new(way: Way, faults: Faults) -> Rig {
        Rig::sharded(way, faults, 1)
    }

    /// The same in a store of several shards.
    #[must_use]
    pub fn sharded(way: Way, faults: Faults, shards: u32) -> Rig {
        let folder = Folder::new();
        let disk = Disk::mount(folder.path(), BASE_BYTES);
        let device = (way == Way::Block)
            .then(|| LoopDevice::new(disk.path()).unwrap_or_else(|why| panic!("{why}")));
        disk.set_faults(faults);
        let mut daemon = Daemon::new();
        daemon.start();
        let path = device.as_ref().map_or(disk.path(), LoopDevice::path);
        let store =
            json!({"name": "pool", "path": path, "journal_size": 4 << 20, "shards": shards});
        daemon.ask("lamina_store_create", store);
        daemon.create_disk("vm", DISK_MIB);
        let _socket = daemon.export("vm", false);
        let model = Arc::new(Mutex::new(Model::new(DISK_BLOCKS)));
        Rig { daemon, device, disk, _folder: folder, model, tag: 0 }
    }

    /// What the store is on, as the daemon knows it.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.device.as_ref().map_or(self.disk.path(), LoopDevice::path)
    }

    /// Connects to the disk.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn try_connect(&self, packed: bool) -> Result<Device, String> {
        let socket = self.daemon.path("exports").join("vm.sock");
        Device::connect(&socket, Options { packed, ..Options::default() })
    }

    /// Connects to the disk.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn connect(&self, packed: bool) -> Device {
        self.try_connect(packed).unwrap_or_else(|why| panic!("{why}\n{}", self.daemon.log()))
    }

    /// A client on the device's first queue.
    #[must_use]
    pub fn client(&self, device: &Device, seed: u64) -> Client {
        Client::new(device.queue(0), self.model.clone(), seed, self.tag)
    }

    /// The power goes, and the daemon with it; power comes back.
    pub fn cut(&mut self, rng: &mut Rng) -> Cut {
        let (disk, daemon) = (&self.disk, &mut self.daemon);
        let cut = disk.cut(rng, || daemon.send_kill());
        disk.power_on(|| daemon.reap());
        cut
    }

    /// Closes the store, and opens it again, as a person does after a fault.
    pub fn reopen(&self) {
        self.daemon.ask("lamina_store_close", json!({"name": "pool", "force": true}));
        self.daemon.ask("lamina_store_open", json!({"path": self.base()}));
    }

    /// Reads the disk as it is after a power cut or a reopened store: everything flushed must be
    /// there, what came later may be.
    ///
    /// # Errors
    /// What is wrong.
    pub fn settle(&self) -> Result<(), String> {
        let device = self.try_connect(false)?;
        check_disk(&device.queue(0), DISK_BLOCKS, |block, found| {
            lock(&self.model).settle_after_cut(block, found)
        })
    }
}
