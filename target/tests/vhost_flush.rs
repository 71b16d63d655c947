//! A flush that fails below, as a guest sees it: an error, and no success after it, whatever the
//! guest does, until the store has been opened again.
//!
//! ```text
//!  virtio-driver ─ socket ─► export ─► a real engine ─► a base whose flushes fail when told to
//! ```
#![allow(unsafe_code)]
// UNSAFETY: the driver takes raw addresses of the memory that it shares with the device, and the
// base moves bytes by address.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamina_bdev::{
    BaseError, BaseOp, BaseTraits, Command, Config, Engine, EngineState, FormatParams, LABEL_BYTES,
    Name, Reply, StoreLabel, Target, Uuid, format_plan, read_label,
};
use lamina_target::vhost::{BlkExport, ExportConfig, ExportMsg, ExportServer, ServeConfig, serve};
use rustix::fs::MemfdFlags;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

const DEVICE_BYTES: usize = 24 << 20;
const DISK_BYTES: u64 = 4 << 20;
const MEMORY_BYTES: usize = 1 << 20;
const DISK: BaseTraits = BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: false };

/// What the test and the thread that plays reactor share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    flushes_fail: AtomicBool,
    flushes: AtomicU64,
}

/// The engine and its base, driven turn by turn as a reactor does.
struct Host {
    engine: Engine,
    image: Vec<u8>,
    first: usize,
    shared: Arc<Shared>,
    now: u64,
}

impl Host {
    fn open(image: Vec<u8>, label: &StoreLabel, shared: Arc<Shared>) -> Host {
        let config = Config { slots: 32, cache_bytes: 1 << 20 };
        let engine = Engine::open(config, DISK, label, 0);
        let mut host = Host { engine, image, first: label.first_region as usize, shared, now: 0 };
        while host.engine.state() == EngineState::Opening {
            host.turn();
        }
        assert_eq!(host.engine.state(), EngineState::Ready, "{:?}", host.engine.open_error());
        host
    }

    fn turn(&mut self) {
        self.now += 1_000_000;
        self.engine.tick(self.now);
        let mut segs = Vec::new();
        while let Some(io) = self.engine.next_io() {
            let mut result = Ok(());
            segs.clear();
            match io.op {
                BaseOp::Flush => {
                    self.shared.flushes.fetch_add(1, Ordering::Relaxed);
                    if self.shared.flushes_fail.load(Ordering::Relaxed) {
                        result = Err(BaseError::Io);
                    }
                }
                BaseOp::Read | BaseOp::Write => self.engine.gather(&io, &mut segs),
            }
            let mut at = self.first + io.offset as usize;
            for seg in &segs {
                let base = self.image[at..at + seg.len].as_mut_ptr();
                // SAFETY: segments are the engine's, or guest memory that the export keeps mapped.
                unsafe {
                    match io.op {
                        BaseOp::Read => base.copy_to(seg.addr as *mut u8, seg.len),
                        BaseOp::Write => base.copy_from(seg.addr as *const u8, seg.len),
                        BaseOp::Flush => {}
                    }
                }
                at += seg.len;
            }
            self.engine.complete(io.tag, result);
        }
    }

    fn command(&mut self, command: Command) -> Reply {
        self.engine.command(1, command);
        for _ in 0..10_000 {
            if let Some((_, outcome)) = self.engine.next_reply() {
                return outcome.unwrap();
            }
            self.turn();
        }
        panic!("a command never ended");
    }

    /// Serves `export` until told to stop; gives the device's content back.
    fn serve(mut self, mut export: BlkExport, messages: &Receiver<ExportMsg>) -> Vec<u8> {
        while !self.shared.stop.load(Ordering::Relaxed) || export.in_flight() > 0 {
            while let Ok(message) = messages.try_recv() {
                export.message(message);
            }
            export.poll(&mut self.engine);
            self.turn();
            while let Some(done) = self.engine.next_done() {
                export.complete(done.cookie, done.status);
            }
            export.end_turn();
            std::thread::yield_now();
        }
        self.image
    }
}

/// A store with one disk, exported.
struct Daemon {
    shared: Arc<Shared>,
    server: Option<ExportServer>,
    thread: Option<JoinHandle<Vec<u8>>>,
    socket: PathBuf,
}

impl Daemon {
    fn start(mut host: Host, folder: &Path) -> Daemon {
        let disk = match host.engine.disks().first() {
            Some(disk) => disk.id,
            None => {
                let (name, uuid) = (Name::new("disk").unwrap(), Uuid([8; 16]));
                let create =
                    Command::CreateDisk { name, uuid, size: DISK_BYTES, from: None, time: 2 };
                let Reply::Disk(disk) = host.command(create) else { panic!("no disk") };
                disk
            }
        };
        let attach = Command::Attach(Target::Disk(disk));
        let Reply::Handle(handle) = host.command(attach) else { panic!("no handle") };
        let export = ExportConfig {
            handle,
            index: 0,
            capacity_bytes: DISK_BYTES,
            readonly: false,
            serial: ExportConfig::serial_from("flush-test"),
            queues_max: 1,
            write_cache: true,
        };
        let (shared, socket) = (host.shared.clone(), folder.join("disk.sock"));
        let (sender, messages) = channel();
        let blk = BlkExport::new(export.clone());
        let thread = std::thread::spawn(move || host.serve(blk, &messages));
        let config = ServeConfig { export, socket: socket.clone(), log: Box::new(|_| {}) };
        let server = serve(config, Box::new(move |message| sender.send(message).unwrap())).unwrap();
        Daemon { shared, server: Some(server), thread: Some(thread), socket }
    }

    /// The end: what the device holds.
    fn stop(mut self) -> Vec<u8> {
        drop(self.server.take());
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A driver connected to the export.
struct Guest {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: memmap2::MmapMut,
    _file: File,
}

impl Guest {
    fn connect(socket: &Path) -> Guest {
        let features = VirtioFeatureFlags::VERSION_1.bits() | VirtioBlkFeatureFlags::all().bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap());
        let queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 1, 16).unwrap();
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES as u64).unwrap();
        // SAFETY: an anonymous file of our own; the device writes only where it is told to.
        let memory = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        let base = memory.as_ptr() as usize;
        transport.map_mem_region(base, MEMORY_BYTES, file.as_raw_fd(), 0).unwrap();
        Guest { queues, transport, memory, _file: file }
    }

    /// The answer to the one request in flight: 0 or a negative errno.
    fn answer(&mut self) -> i32 {
        if self.queues[0].avail_notif_needed() {
            self.transport.get_submission_notifier(0).notify().unwrap();
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(completion) = self.queues[0].completions().next() {
                return completion.ret;
            }
            assert!(Instant::now() < end, "no answer");
            std::thread::yield_now();
        }
    }

    fn write(&mut self, offset: u64, fill: u8) -> i32 {
        self.memory[..4096].fill(fill);
        let at = self.memory.as_mut_ptr();
        // SAFETY: inside the mapping, which outlives the request.
        unsafe { self.queues[0].write_raw(offset, at, 4096, 0) }.unwrap();
        self.answer()
    }

    fn read(&mut self, offset: u64) -> Result<u8, i32> {
        let at = self.memory.as_mut_ptr();
        // SAFETY: as above.
        unsafe { self.queues[0].read_raw(offset, at, 4096, 0) }.unwrap();
        match self.answer() {
            0 => Ok(self.memory[4095]),
            error => Err(error),
        }
    }

    fn flush(&mut self) -> i32 {
        self.queues[0].flush(0).unwrap();
        self.answer()
    }
}

#[test]
fn a_failed_flush_fails_for_the_guest_until_the_store_is_opened_again() {
    const EIO: i32 = -5;
    let folder = std::env::temp_dir().join(format!("lamina-flush-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut image = vec![0; DEVICE_BYTES];
    let params = FormatParams {
        uuid: Uuid([7; 16]),
        name: Name::new("store").unwrap(),
        device_bytes: DEVICE_BYTES as u64,
        shards: 1,
        journal_bytes: 0,
        time: 1,
    };
    for write in format_plan(&params).unwrap() {
        let at = write.offset as usize;
        image[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let label = read_label(&image[..LABEL_BYTES], DEVICE_BYTES as u64).unwrap();

    let shared = Arc::new(Shared::default());
    let daemon = Daemon::start(Host::open(image, &label, shared.clone()), &folder);
    let mut guest = Guest::connect(&daemon.socket);
    assert_eq!((guest.write(0, 1), guest.flush()), (0, 0));
    let before = shared.flushes.load(Ordering::Relaxed);
    assert!(before > 0, "a flush reaches the base");
    assert_eq!((guest.write(4096, 2), guest.flush()), (0, 0));
    assert!(shared.flushes.load(Ordering::Relaxed) > before, "every flush reaches the base");

    shared.flushes_fail.store(true, Ordering::Relaxed);
    assert_eq!(guest.write(8192, 3), 0);
    assert_eq!(guest.flush(), EIO);
    // The base is well again; what it dropped is not.
    shared.flushes_fail.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(guest.flush(), EIO);
        assert_eq!(guest.write(8192, 4), EIO);
    }
    assert_eq!(guest.read(0), Ok(1), "reads go on");
    drop(guest);
    // A guest that connects again is told the same.
    let mut guest = Guest::connect(&daemon.socket);
    assert_eq!((guest.flush(), guest.write(0, 5), guest.read(4096)), (EIO, EIO, Ok(2)));
    drop(guest);
    let image = daemon.stop();

    let host = Host::open(image, &label, Arc::new(Shared::default()));
    let daemon = Daemon::start(host, &folder);
    let mut guest = Guest::connect(&daemon.socket);
    assert_eq!((guest.read(0), guest.read(4096)), (Ok(1), Ok(2)));
    assert_eq!((guest.write(8192, 6), guest.flush(), guest.read(8192)), (0, 0, Ok(6)));
    drop(guest);
    daemon.stop();
    std::fs::remove_dir_all(&folder).unwrap();
}
