//! Fuzz targets that need a whole engine: a damaged store opened and used, and the simulator
//! driven by bytes. The input is the only source of chance.
//!
//! ```text
//!  bytes ─▶ changes to metadata, sealed again ─▶ open ─▶ use everything ─▶ crash ─▶ open again
//!  bytes ─▶ seed, then the draws of the run ───▶ simulator
//! ```
//!
//! `cargo test` replays the inputs in `__fuzz__`; `scripts/fuzz` finds new ones.

mod damage;
mod host;

use std::rc::Rc;

use lamina_bdev::{
    BaseTraits, Command, DiskId, FormatParams, Handle, LABEL_BYTES, Name, Op, Reply, SnapRef,
    StoreLabel, Target, Uuid, format_plan, read_label,
};

use host::{BLOCK, Device, Host};

/// Bytes of the store: the least that the format allows.
const REGION_BYTES: u64 = 16 << 20;
/// Bytes of the journal: the shortest ring.
const JOURNAL_BYTES: u64 = 64 << 10;
/// Bytes read and written at once.
const PIECE: u64 = 128 << 10;

/// Stores to be damaged.
pub struct Stores {
    label: StoreLabel,
    /// Each with its metadata blocks.
    devices: Vec<(Device, Rc<Vec<u64>>)>,
}

fn traits(number: u8) -> BaseTraits {
    BaseTraits {
        volatile_cache: number & 1 != 0,
        atomic_4k: number & 2 == 0,
        atomic_rw: number & 4 == 0,
    }
}

fn uuid(number: u8) -> Uuid {
    Uuid([number; 16])
}

/// An empty store.
fn formatted() -> (StoreLabel, Device) {
    let params = FormatParams {
        uuid: uuid(0x5a),
        name: Name::new("fuzz").expect("a lawful name"),
        device_bytes: REGION_BYTES + 16 * BLOCK as u64,
        shards: 1,
        journal_bytes: JOURNAL_BYTES,
        time: 1_700_000_000,
    };
    let mut image = vec![0; params.device_bytes as usize];
    for write in format_plan(&params).expect("parameters are lawful") {
        let at = write.offset as usize;
        image[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let label = read_label(&image[..LABEL_BYTES], params.device_bytes).expect("just written");
    (label, Device::new(image.split_off(label.first_region as usize)))
}

impl Host {
    fn create(&mut self, name: &str, size: u64, from: Option<SnapRef>) -> DiskId {
        let name = Name::new(name).expect("a lawful name");
        let uuid = uuid(name.as_str().len() as u8);
        let command = Command::CreateDisk { name, uuid, size, from, time: 1 };
        match self.ask(command) {
            Ok(Reply::Disk(disk)) => disk,
            other => panic!("create: {other:?}"),
        }
    }

    fn snapshot(&mut self, disk: DiskId, number: u8) -> SnapRef {
        let label = Name::new(&format!("s{number}")).expect("a lawful name");
        match self.ask(Command::Snapshot { disk, uuid: uuid(number), label, time: 2 }) {
            Ok(Reply::Snapshot(snap)) => SnapRef { disk, snap },
            other => panic!("snapshot: {other:?}"),
        }
    }

    fn attach(&mut self, target: Target) -> Option<Handle> {
        match self.ask(Command::Attach(target)) {
            Ok(Reply::Handle(handle)) => Some(handle),
            Ok(other) => panic!("attach: {other:?}"),
            Err(_) => None,
        }
    }
}

impl Stores {
    /// Makes them: after a consistency point, with a journal to replay, and amid a deletion.
    ///
    /// # Panics
    /// The engine cannot even do that.
    pub fn new() -> Stores {
        let (label, device) = formatted();
        let mut host = Host::open(device, &label, traits(0)).expect("an empty store opens");
        let (a, b) = (host.create("a", 4 << 20, None), host.create("bb", 1 << 20, None));
        let on_a = host.attach(Target::Disk(a)).expect("a new disk");
        let on_b = host.attach(Target::Disk(b)).expect("a new disk");
        for (handle, offset, len) in
            [(on_a, 0, 9), (on_a, 509, 6), (on_a, 1020, 4), (on_b, 0, 16), (on_b, 200, 3)]
        {
            host.request(handle, Op::Write, offset * 4096, len * 4096, 1);
        }
        let first = host.snapshot(a, 1);
        host.request(on_a, Op::Write, 4096, 4 * 4096, 2);
        let clone = host.create("clone", 0, Some(first));
        let on_clone = host.attach(Target::Disk(clone)).expect("a new disk");
        host.request(on_clone, Op::Write, 510 * 4096, 4 * 4096, 3);
        host.snapshot(a, 2);
        host.request(on_a, Op::Write, 0, 512, 4);
        host.ask(Command::Checkpoint).expect("a consistency point");
        let clean = host.device_now();
        host.request(on_a, Op::Write, 600 * 4096, 8 * 4096, 5);
        host.request(on_b, Op::Discard, 0, 8 * 4096, 0);
        host.snapshot(b, 3);
        host.request(on_b, Op::Write, 2 * 4096, 3 * 4096, 6);
        host.request(on_a, Op::Flush, 0, 0, 0);
        let journal = host.device_now();
        host.ask(Command::DeleteSnapshot(first)).expect("a deletion");
        let deleting = host.device_now();
        let devices = [clean, journal, deleting].map(|device| {
            let device = Device::new(device.flatten());
            let blocks = Rc::new(damage::metadata(&device));
            (device, blocks)
        });
        Stores { label, devices: devices.into() }
    }
}

impl Default for Stores {
    fn default() -> Self {
        Stores::new()
    }
}

/// Reads all of an attachment, changes some of it, reads again. Errors are fine.
fn use_disk(host: &mut Host, handle: Handle, size: u64, writable: bool) {
    let end = size.min(8 << 20);
    for offset in (0..end).step_by(PIECE as usize) {
        host.request(handle, Op::Read, offset, PIECE.min(end - offset), 0);
    }
    if !writable {
        return;
    }
    let last = size.saturating_sub(4096);
    for offset in [0, 5 * 4096, 511 * 4096, 513 * 4096, 1021 * 4096, last] {
        host.request(handle, Op::Write, offset, 4096, 9);
    }
    host.request(handle, Op::Write, 20 * 4096 + 512, 1024, 10);
    host.request(handle, Op::Discard, 4 * 4096, 64 * 4096, 0);
    host.request(handle, Op::WriteZeroes, 512, 8192, 0);
    host.request(handle, Op::Flush, 0, 0, 0);
    host.request(handle, Op::Read, 0, 64 * 4096, 0);
}

/// Uses everything that opened, then deletes half of it.
fn use_all(host: &mut Host) {
    let disks = host.engine().disks();
    for disk in &disks {
        if let Some(handle) = host.attach(Target::Disk(disk.id)) {
            use_disk(host, handle, disk.size, true);
            let label = Name::new("new").expect("a lawful name");
            let (disk, uuid) = (disk.id, uuid(77));
            let _ = host.ask(Command::Snapshot { disk, uuid, label, time: 3 });
            use_disk(host, handle, 64 << 10, true);
            let _ = host.ask(Command::Detach(handle));
        }
        for snap in host.engine().snapshots(disk.id).into_iter().take(8) {
            if let Some(handle) = host.attach(Target::Snapshot(snap.snap)) {
                use_disk(host, handle, snap.size, false);
                let _ = host.ask(Command::Detach(handle));
            }
        }
    }
    let _ = host.ask(Command::Checkpoint);
    for disk in &disks {
        for snap in host.engine().snapshots(disk.id).into_iter().take(2) {
            let _ = host.ask(Command::DeleteSnapshot(snap.snap));
        }
        let _ = host.ask(Command::Resize(disk.id, 2 << 20));
    }
    host.idle(20);
    if let Some(disk) = disks.first() {
        let _ = host.ask(Command::DeleteDisk(disk.id));
    }
    host.idle(20);
    let _ = host.ask(Command::Checkpoint);
    let info = host.engine().store_info();
    assert!(info.free_blocks <= info.total_blocks, "{info:?}");
}

/// Damages a store as `input` says, opens it, uses it, crashes and opens it again.
///
/// # Panics
/// The engine panics, or something takes for ever.
pub fn damaged_store(stores: &Stores, input: &[u8]) {
    let Some((choice, changes)) = input.split_first() else { return };
    let number = usize::from(choice >> 3) % stores.devices.len();
    let (device, blocks) = &stores.devices[number];
    let mut device = device.clone();
    damage::apply(&mut device, blocks, changes);
    for _ in 0..2 {
        let Ok(mut host) = Host::open(device, &stores.label, traits(*choice)) else { return };
        use_all(&mut host);
        device = host.crash();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sim::{Options, run_bytes};

    /// Requests and commands in one run of the simulator.
    const OPS: u64 = 150;

    #[test]
    fn recovery() {
        let stores = Stores::new();
        bolero::check!(name = "recovery")
            .with_iterations(0)
            .with_test_time(Duration::MAX)
            .with_shrink_time(Duration::ZERO)
            .for_each(|input: &[u8]| damaged_store(&stores, input));
    }

    #[test]
    fn simulator() {
        bolero::check!(name = "simulator")
            .with_iterations(0)
            .with_test_time(Duration::MAX)
            .with_shrink_time(Duration::ZERO)
            .for_each(|input: &[u8]| {
                let outcome = run_bytes(input, &Options { ops: OPS, ..Options::default() });
                assert_eq!(outcome.violation, None, "seed {}", outcome.seed);
            });
    }

    #[test]
    fn an_undamaged_store_opens_and_serves_whatever_the_base() {
        let stores = Stores::new();
        for (device, blocks) in &stores.devices {
            assert!(blocks.len() > 20, "{} metadata blocks", blocks.len());
            for number in 0..8 {
                let opened = Host::open(device.clone(), &stores.label, traits(number));
                let mut host = opened.expect("an undamaged store");
                assert_eq!(host.engine().disks().len(), 3);
                use_all(&mut host);
                assert!(!host.alarmed, "nothing is wrong with it");
                assert_eq!(host.engine().disks().len(), 2);
            }
        }
    }
}
