//! A disk of a real engine, on a real reactor that sleeps, behind a real socket: random requests
//! of an independent client (`virtio-driver`) against a plain model.
#![allow(unsafe_code)]
// UNSAFETY: the driver takes raw addresses of the memory that it shares with the device.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lamina_bdev::{
    Command, Config, Engine, FormatParams, Handle, LABEL_BYTES, Name, Reply, Target, Uuid,
    format_plan, read_label,
};
use lamina_target::base::{Base, RamBase, RamDevice, Region};
use lamina_target::reactor::handle::{Message, ReactorHandle, ShardHandle};
use lamina_target::reactor::shard::{Shard, ShardKey};
use lamina_target::reactor::{self, Settings};
use lamina_target::vhost::{BlkExport, ExportConfig, ExportServer, ServeConfig, serve};
use rustix::fs::MemfdFlags;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

const DEVICE_BYTES: u64 = 96 << 20;
const DISK_BYTES: u64 = 8 << 20;
const MEMORY_BYTES: usize = 4 << 20;
const EXPORT: u16 = 5;

/// A store in RAM with one disk, exported.
struct Daemon {
    reactor: Arc<ReactorHandle>,
    thread: Option<JoinHandle<()>>,
    shard: ShardHandle,
    server: Option<ExportServer>,
    folder: PathBuf,
    disk: lamina_bdev::DiskId,
}

impl Daemon {
    fn start(test: &str, idle_us: u32) -> Daemon {
        let device = Arc::new(RamDevice::new(DEVICE_BYTES).unwrap());
        let plan = format_plan(&FormatParams {
            uuid: Uuid([7; 16]),
            name: Name::new("store").unwrap(),
            device_bytes: DEVICE_BYTES,
            shards: 1,
            journal_bytes: 0,
            time: 1,
        });
        for write in plan.unwrap() {
            device.write_at(&write.bytes, write.offset);
        }
        let mut first = vec![0; LABEL_BYTES];
        device.read_at(&mut first, 0);
        let label = read_label(&first, DEVICE_BYTES).unwrap();
        let region = Region { offset: label.first_region, len: label.region_bytes };
        let base = RamBase::new(device, region);
        // No slots to spare, so that the engine is often full.
        let config = Config { slots: 24, cache_bytes: 4 << 20 };
        let engine = Box::new(Engine::open(config, base.traits(), &label, 0));
        let settings = Settings { core: 1, idle_us, busy_poll: false };
        let (reactor, thread) = reactor::start(0, settings).unwrap();
        let shard = ShardHandle::new(reactor.clone(), ShardKey(1));
        let make = |key, opened| Shard::new(key, "store".into(), engine, Base::Ram(base), opened);
        let shard = shard.begin(make).unwrap().wait().unwrap();
        let disk = Command::CreateDisk {
            name: Name::new("disk").unwrap(),
            uuid: Uuid([8; 16]),
            size: DISK_BYTES,
            from: None,
            time: 2,
        };
        let Reply::Disk(disk) = shard.command(disk).unwrap() else { panic!("no disk") };
        let attach = Command::Attach(Target::Disk(disk));
        let Reply::Handle(handle) = shard.command(attach).unwrap() else { panic!("no handle") };
        let folder = std::env::temp_dir().join(format!("lamina-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let server = Some(export(&shard, handle, folder.join("disk.sock")));
        Daemon { reactor, thread: Some(thread), shard, server, folder, disk }
    }

    fn connect(&self) -> Box<VirtioBlkTransport> {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::all().bits();
        let socket = self.folder.join("disk.sock");
        Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap())
    }
}

fn export(shard: &ShardHandle, handle: Handle, socket: PathBuf) -> ExportServer {
    let config = ExportConfig {
        handle,
        index: EXPORT,
        capacity_bytes: DISK_BYTES,
        readonly: false,
        serial: ExportConfig::serial_from("engine-test"),
        queues_max: 2,
        write_cache: true,
    };
    shard.add_export(EXPORT, Box::new(BlkExport::new(config.clone()))).unwrap();
    let shard = shard.clone();
    serve(
        ServeConfig { export: config, socket, log: Box::new(|_| {}) },
        Box::new(move |msg| shard.export_message(EXPORT, msg).unwrap()),
    )
    .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.server.take());
        let quiet = self.shard.remove_export(EXPORT).and_then(|()| self.shard.close());
        self.reactor.post(Message::Stop).unwrap();
        let joined = self.thread.take().unwrap().join();
        let _ = std::fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            quiet.unwrap();
            joined.unwrap();
        }
    }
}

/// Memory shared with the device.
struct Shared {
    file: File,
    map: memmap2::MmapMut,
}

impl Shared {
    fn new() -> Shared {
        let file = File::from(rustix::fs::memfd_create("client", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY_BYTES as u64).unwrap();
        // SAFETY: an anonymous file of our own; the device writes only where it is told to.
        let map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        Shared { file, map }
    }

    fn share(&mut self, transport: &mut VirtioBlkTransport) {
        let (base, fd) = (self.map.as_ptr() as usize, self.file.as_raw_fd());
        transport.map_mem_region(base, MEMORY_BYTES, fd, 0).unwrap();
    }

    fn at(&mut self, offset: usize) -> *mut u8 {
        self.map[offset..].as_mut_ptr()
    }
}

type Queue<'a> = VirtioBlkQueue<'a, usize>;

/// Kicks if asked to and waits for all of `count` requests; each must be good.
fn finish(transport: &VirtioBlkTransport, index: usize, queue: &mut Queue<'_>, count: usize) {
    if queue.avail_notif_needed() {
        transport.get_submission_notifier(index).notify().unwrap();
    }
    let (begun, mut done) = (Instant::now(), 0);
    while done < count {
        for completion in queue.completions() {
            assert_eq!(completion.ret, 0, "request {}", completion.context);
            done += 1;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{done} of {count} came back");
        std::thread::yield_now();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

#[test]
fn what_is_read_is_what_was_written() {
    let daemon = Daemon::start("model", 50);
    let mut transport = daemon.connect();
    let mut queues = Queue::setup_queues(&mut *transport, 2, 64).unwrap();
    let mut memory = Shared::new();
    memory.share(&mut *transport);
    let mut model = vec![0u8; DISK_BYTES as usize];
    let mut random = Random(1);
    let sectors = DISK_BYTES / 512;
    for round in 0..400usize {
        let index = round % 2;
        let queue = &mut queues[index];
        // A batch that does not overlap itself: requests in flight have no order.
        let count = 1 + random.below(40) as usize;
        let share = sectors / count as u64;
        let kind = random.below(10);
        let mut ranges = Vec::new();
        for i in 0..count {
            let start = i as u64 * share + random.below(share);
            let end = (i as u64 + 1) * share;
            let len = 1 + random.below((end - start).min(100));
            let (at, len) = (start as usize * 512, len as usize * 512);
            let buffer = i * 51_200;
            let offset = at as u64;
            let model = &mut model[at..at + len];
            match kind {
                0..=4 => {
                    let fill = (round * 7 + i) as u8;
                    memory.map[buffer..buffer + len].fill(fill);
                    model.fill(fill);
                    // SAFETY: inside the mapping, which outlives the request.
                    unsafe { queue.write_raw(offset, memory.at(buffer), len, i) }.unwrap();
                }
                5..=7 => {
                    memory.map[buffer..buffer + len].fill(0xee);
                    // SAFETY: as above.
                    unsafe { queue.read_raw(offset, memory.at(buffer), len, i) }.unwrap();
                    ranges.push((buffer, at, len));
                }
                8 => {
                    model.fill(0);
                    queue.write_zeroes(offset, len as u64, true, i).unwrap();
                }
                _ => queue.flush(i).unwrap(),
            }
            // Chains of three from a ring of 64.
            if i % 20 == 19 {
                finish(&*transport, index, queue, 20);
            }
        }
        finish(&*transport, index, queue, count % 20);
        for (buffer, at, len) in ranges {
            assert!(memory.map[buffer..buffer + len] == model[at..at + len], "round {round}");
        }
        if round % 50 == 0 {
            // Long enough for the reactor to fall asleep.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(daemon.reactor.counters().sleeps > 0, "the reactor never slept");
    assert!(daemon.reactor.counters().wakes > 0);
}

#[test]
fn a_snapshot_under_load_and_a_new_connection_change_nothing() {
    let daemon = Daemon::start("snapshot", 0);
    let mut memory = Shared::new();
    for round in 0..4u8 {
        let mut transport = daemon.connect();
        let mut queues = Queue::setup_queues(&mut *transport, 1, 64).unwrap();
        memory.share(&mut *transport);
        for (i, block) in memory.map[..1 << 20].chunks_mut(4096).enumerate() {
            block.fill(round ^ i as u8);
        }
        for batch in 0..16 {
            for i in 0..16 {
                let at = (batch * 16 + i) * 4096;
                // SAFETY: inside the mapping, which outlives the request.
                unsafe { queues[0].write_raw(at as u64, memory.at(at), 4096, i) }.unwrap();
            }
            let snapshot = Command::Snapshot {
                disk: daemon.disk,
                uuid: Uuid([round * 16 + batch as u8 + 1; 16]),
                label: Name::EMPTY,
                time: 3,
            };
            daemon.shard.command(snapshot).unwrap();
            finish(&*transport, 0, &mut queues[0], 16);
        }
        drop(queues);
        drop(transport);
        let mut transport = daemon.connect();
        let mut queues = Queue::setup_queues(&mut *transport, 1, 64).unwrap();
        memory.share(&mut *transport);
        // SAFETY: inside the mapping, which outlives the request.
        unsafe { queues[0].read_raw(0, memory.at(2 << 20), 1 << 20, 0) }.unwrap();
        finish(&*transport, 0, &mut queues[0], 1);
        let (written, read) = memory.map.split_at(2 << 20);
        assert!(written[..1 << 20] == read[..1 << 20], "round {round}");
    }
    let snapshots = daemon.shard.query(|engine| engine.snapshots(lamina_bdev::DiskId(0)).len());
    assert_eq!(snapshots.unwrap(), 64);
}
