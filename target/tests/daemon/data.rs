//! Data through the whole daemon: an independent driver's queues, reactor, engine, file or RAM.
#![allow(unsafe_code)]
// UNSAFETY: the driver takes raw addresses of the memory that it shares with the device.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use lamina_rpc::methods::*;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::harness::{Daemon, Dir};
use crate::life::{attach, create_disk, create_store};

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;
const SLOTS: usize = 16;
pub const SLOT_BYTES: usize = 256 << 10;
const QUEUES: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A driver connected to an export.
pub struct Guest {
    // Dropped in this order: queues before the transport they speak through, memory last.
    pub queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: memmap2::MmapMut,
    _file: std::fs::File,
}

impl Guest {
    pub fn connect(socket: &Path) -> Guest {
        let features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioBlkFeatureFlags::all().bits()
            | VirtioFeatureFlags::RING_INDIRECT_DESC.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits();
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap());
        let queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, QUEUES, 64).unwrap();
        let file = shared_memory((SLOTS * SLOT_BYTES) as u64);
        // SAFETY: a file of our own; the device writes only where it is told to.
        let memory = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        let (base, len) = (memory.as_ptr() as usize, memory.len());
        transport.map_mem_region(base, len, file.as_raw_fd(), 0).unwrap();
        Guest { queues, transport, memory, _file: file }
    }

    fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES]
    }

    pub fn write(&mut self, queue: usize, slot: usize, offset: u64, data: &[u8]) {
        self.slot(slot)[..data.len()].copy_from_slice(data);
        let at = self.slot(slot).as_mut_ptr();
        // SAFETY: inside the shared mapping, which outlives the request.
        unsafe { self.queues[queue].write_raw(offset, at, data.len(), slot) }.unwrap();
    }

    fn read(&mut self, queue: usize, slot: usize, offset: u64, len: usize) {
        let at = self.slot(slot).as_mut_ptr();
        // SAFETY: as above.
        unsafe { self.queues[queue].read_raw(offset, at, len, slot) }.unwrap();
    }

    /// Kicks where that is wanted, and waits for `count` completions; all must be good.
    pub fn finish(&mut self, count: usize) {
        let results = self.results(count);
        assert!(results.iter().all(|&result| result == 0), "{results:?}");
    }

    /// As [`Guest::finish`], with 0 or a negative errno for each.
    pub fn results(&mut self, count: usize) -> Vec<i32> {
        self.kick();
        let (mut done, end) = (Vec::new(), Instant::now() + TIMEOUT);
        while done.len() < count {
            for queue in &mut self.queues {
                done.extend(queue.completions().map(|completion| completion.ret));
            }
            assert!(Instant::now() < end, "{} of {count}: a kick was lost", done.len());
            std::thread::yield_now();
        }
        done
    }

    fn kick(&mut self) {
        for queue in 0..QUEUES {
            if self.queues[queue].avail_notif_needed() {
                self.transport.get_submission_notifier(queue).notify().unwrap();
            }
        }
    }

    fn flush(&mut self) {
        self.queues[0].flush(0).unwrap();
        self.finish(1);
    }

    fn expect(&mut self, model: &[u8], what: &str) {
        for (i, chunk) in model.chunks(SLOT_BYTES).enumerate() {
            self.read(i % QUEUES, 0, (i * SLOT_BYTES) as u64, chunk.len());
            self.finish(1);
            let got = &self.slot(0)[..chunk.len()];
            let wrong = got.iter().zip(chunk).position(|(got, want)| got != want);
            assert_eq!(wrong.map(|at| i * SLOT_BYTES + at), None, "{what}: first wrong byte");
        }
    }
}

fn shared_memory(len: u64) -> std::fs::File {
    let dir = Dir::new();
    let options = || {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create_new(true);
        options
    };
    let file = options().open(dir.path("memory")).unwrap();
    file.set_len(len).unwrap();
    file
}

/// A round of requests that do not overlap, of any sector-aligned place and length.
fn scribble(guest: &mut Guest, model: &mut [u8], random: &mut Random) {
    let room = DISK / SLOTS as u64;
    for slot in 0..SLOTS {
        let from = slot as u64 * room + random.below(room / 512 / 2) * 512;
        let left = (slot as u64 + 1) * room - from;
        let most = (left / 512).min((SLOT_BYTES / 512) as u64);
        let sectors =
            if random.below(2) == 0 { 1 + random.below(16) } else { 1 + random.below(most) };
        let len = (sectors.min(most) * 512) as usize;
        let byte = random.below(256) as u8;
        let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8).collect();
        model[from as usize..from as usize + len].copy_from_slice(&data);
        guest.write(random.below(QUEUES as u64) as usize, slot, from, &data);
    }
    guest.finish(SLOTS);
}

#[test]
fn what_is_written_is_read_and_survives_snapshots_restarts_and_crashes() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", DISK);
    attach(&mut daemon, "vm1", "d");
    let socket = dir.path("d.run/vm1");
    let mut random = Random(1);
    let mut model = vec![0u8; DISK as usize];

    let mut guest = Guest::connect(&socket);
    guest.expect(&model, "a new disk");
    for _ in 0..20 {
        scribble(&mut guest, &mut model, &mut random);
    }
    guest.expect(&model, "after writes");
    daemon.call(BdevLvolSnapshot { lvol_name: "d".into(), snapshot_name: Some("s".into()) });
    let frozen = model.clone();
    for _ in 0..20 {
        scribble(&mut guest, &mut model, &mut random);
    }
    guest.expect(&model, "after a snapshot");
    daemon.call(BdevLvolClone { snapshot_name: "d@s".into(), clone_name: "c".into() });
    attach(&mut daemon, "snap", "d@s");
    attach(&mut daemon, "clone", "c");
    Guest::connect(&dir.path("d.run/snap")).expect(&frozen, "the snapshot");
    Guest::connect(&dir.path("d.run/clone")).expect(&frozen, "the clone");
    let names = Some(vec!["d".into()]);
    let iostat = daemon.call(BdevGetIostat { names, ..BdevGetIostat::default() });
    assert!(iostat.bdevs[0].num_write_ops >= 640 && iostat.bdevs[0].bytes_read >= DISK);
    drop(guest);

    daemon.stop();
    let mut daemon = Daemon::start(&dir, &[]);
    let mut guest = Guest::connect(&socket);
    guest.expect(&model, "after a restart");
    for round in 0..3 {
        for _ in 0..10 {
            scribble(&mut guest, &mut model, &mut random);
        }
        // The daemon's death loses nothing that was acknowledged, flushed or not.
        if round == 1 {
            guest.flush();
        }
        daemon.kill_hard();
        drop(guest);
        daemon = Daemon::start(&dir, &[]);
        guest = Guest::connect(&socket);
        guest.expect(&model, "after a crash");
    }
    Guest::connect(&dir.path("d.run/snap")).expect(&frozen, "the snapshot after crashes");
    drop(guest);
    daemon.stop();
}

#[test]
fn no_kick_is_lost_whatever_the_reactor_is_just_doing() {
    let dir = Dir::new();
    // And up to 48 us, while gaps are short.
    let mut daemon = Daemon::start(&dir, &["--idle-us", "3"]);
    daemon.call(LaminaStoreCreate {
        name: "fast".into(),
        path: "ram:64M".into(),
        ..LaminaStoreCreate::default()
    });
    create_store(&mut daemon, &dir, "pool", 1);
    for (store, rounds) in [("fast", 6000), ("pool", 2000)] {
        daemon.call(BdevLvolCreate {
            lvol_name: format!("on-{store}"),
            size: Some(DISK),
            lvs_name: Some(store.into()),
            ..BdevLvolCreate::default()
        });
        attach(&mut daemon, store, &format!("on-{store}"));
        let mut guest = Guest::connect(&dir.path("d.run").join(store));
        let mut random = Random(7);
        let before = daemon.call(LaminaStats::default()).reactors[0].clone();
        for round in 0..rounds {
            // Around the moment when the reactor goes to sleep.
            let until = Instant::now() + Duration::from_micros(random.below(60));
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let (queue, offset) = (round % QUEUES, random.below(DISK / 4096) * 4096);
            match round % 3 {
                0 => guest.write(queue, 0, offset, &[round as u8; 4096]),
                1 => guest.read(queue, 0, offset, 4096),
                _ => guest.queues[queue].flush(0).unwrap(),
            }
            guest.finish(1);
        }
        let after = daemon.call(LaminaStats::default()).reactors[0].clone();
        assert!(after.wakes - before.wakes > 300, "{before:?} {after:?}");
    }
    daemon.stop();
}

#[test]
fn a_stop_under_load_is_in_good_order() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", DISK);
    attach(&mut daemon, "vm1", "d");
    let socket = dir.path("d.run/vm1");
    for _ in 0..3 {
        let mut guest = Guest::connect(&socket);
        for slot in 0..SLOTS {
            guest.write(slot % QUEUES, slot, (slot * SLOT_BYTES) as u64, &[7; SLOT_BYTES]);
        }
        guest.kick();
        // Connected, with requests on the way.
        daemon.stop();
        assert!(!socket.exists());
        drop(guest);
        daemon = Daemon::start(&dir, &[]);
    }
    daemon.stop();
}

#[test]
fn a_connected_guest_sees_a_resize() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", DISK);
    attach(&mut daemon, "vm1", "d");
    let mut guest = Guest::connect(&dir.path("d.run/vm1"));
    let capacity = |guest: &Guest| u64::from(guest.transport.get_config().unwrap().capacity);
    assert_eq!(capacity(&guest), DISK / 512);
    guest.write(0, 0, DISK, &[1; 4096]);
    assert_eq!(guest.results(1), [-5], "a write past the end");
    let resize =
        |size| BdevLvolResize { name: "d".into(), size: Some(size), ..BdevLvolResize::default() };
    daemon.call(resize(2 * DISK));
    assert_eq!(capacity(&guest), 2 * DISK / 512);
    guest.write(0, 0, DISK, &[1; 4096]);
    guest.finish(1);
    daemon.call(resize(DISK));
    assert_eq!(capacity(&guest), DISK / 512);
    guest.read(1, 0, DISK, 4096);
    assert_eq!(guest.results(1), [-5], "a read past the new end");
    // What was cut off is gone.
    daemon.call(resize(2 * DISK));
    guest.read(1, 0, DISK, 4096);
    guest.finish(1);
    assert!(guest.slot(0)[..4096].iter().all(|&byte| byte == 0));
    daemon.stop();
}

#[test]
fn a_full_store_fails_writes_and_nothing_else() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "small", DISK);
    create_disk(&mut daemon, "big", 512 * MIB);
    attach(&mut daemon, "small", "small");
    attach(&mut daemon, "big", "big");
    let mut small = Guest::connect(&dir.path("d.run/small"));
    let mut big = Guest::connect(&dir.path("d.run/big"));
    let mut random = Random(3);
    let mut model = vec![0u8; DISK as usize];
    scribble(&mut small, &mut model, &mut random);
    let mut written = 0;
    let full = (0..512 * MIB / SLOT_BYTES as u64).find(|i| {
        big.write(0, 0, i * SLOT_BYTES as u64, &[*i as u8; SLOT_BYTES]);
        let result = big.results(1)[0];
        assert!(result == 0 || result == -28 || result == -5, "{result}");
        written += u64::from(result == 0);
        result != 0
    });
    let full = full.expect("128 MiB hold no 512 MiB");
    assert!(written > 100, "only {written} writes fitted");
    let free = daemon.call(LaminaStoreInfo::default())[0].free;
    assert!(free < 2 * MIB, "full with {free} bytes free");
    // Both disks are readable, and what was there can be overwritten or discarded.
    small.expect(&model, "the other disk");
    big.read(0, 0, 0, SLOT_BYTES);
    big.finish(1);
    assert!(big.slot(0).iter().all(|&byte| byte == 0));
    big.queues[0].discard(0, 64 * MIB, 0).unwrap();
    big.finish(1);
    big.flush();
    daemon.call(LaminaCheckpoint::default());
    scribble(&mut small, &mut model, &mut random);
    big.write(0, 0, full * SLOT_BYTES as u64, &[1; SLOT_BYTES]);
    big.finish(1);
    drop(big);
    daemon.call(VhostDeleteController { ctrlr: "big".into() });
    daemon.call(BdevLvolDelete { name: "big".into() });
    small.expect(&model, "the other disk, at the end");
    daemon.stop();
}

#[test]
fn a_store_that_keeps_no_data_puts_nobodys_bytes_into_a_readers_memory() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    daemon.call(LaminaStoreCreate {
        name: "null".into(),
        path: "null:1G".into(),
        ..LaminaStoreCreate::default()
    });
    for name in ["one", "two"] {
        create_disk(&mut daemon, name, DISK);
        attach(&mut daemon, name, name);
    }
    let mut one = Guest::connect(&dir.path("d.run/one"));
    let mut two = Guest::connect(&dir.path("d.run/two"));
    // Whole blocks, parts of blocks, and parts across blocks: what one of them wrote is nowhere.
    let pieces = [(0, 4096), (512, 512), (4096 + 1024, 3072), (8192 - 512, 1024), (0, 65_536)];
    for (offset, len) in pieces {
        one.write(0, 0, offset, &vec![0x11; len]);
        one.finish(1);
        two.write(0, 0, offset, &vec![0x22; len]);
        two.finish(1);
        for (offset, len) in pieces {
            two.slot(1).fill(0x33);
            two.read(1, 1, offset, len);
            two.finish(1);
            // Left as it was, or zeros where nothing was ever written.
            let own = two.slot(1).iter().all(|byte| [0x33, 0].contains(byte));
            assert!(own, "{len} bytes at {offset}");
        }
    }
    daemon.stop();
}
