//! Stores of many sizes, up to the largest, open, keep what was written and open again. The base
//! is a map of the blocks that were ever written, so a size costs nothing.
// UNSAFETY: a base device moves bytes by address; this is one.
#![allow(unsafe_code)]

use std::collections::HashMap;

use lamina_bdev::check::{CheckOptions, ReadBlocks, check};
use lamina_bdev::*;

const BLOCK: usize = 4096;
/// Bytes of the largest extent.
const EXTENT: u64 = 64 << 20;
/// Largest store that is checked too.
const CHECKED_BYTES_MAX: u64 = 128 << 30;
/// Extents that one catalogue block lists.
const LISTED: u64 = 252;
const RAM: BaseTraits = BaseTraits { volatile_cache: false, atomic_4k: true, atomic_rw: true };

#[derive(Default)]
struct Sparse(HashMap<u64, Box<[u8; BLOCK]>>);

impl Sparse {
    fn formatted(params: &FormatParams) -> (Sparse, StoreLabel) {
        let mut base = Sparse::default();
        for write in format_plan(params).unwrap() {
            for (at, bytes) in (write.offset / BLOCK as u64..).zip(write.bytes.chunks(BLOCK)) {
                base.0.insert(at, Box::new(bytes.try_into().unwrap()));
            }
        }
        let labels = [base.0[&0].as_slice(), base.0[&1].as_slice()].concat();
        let label = read_label(&labels, params.device_bytes).unwrap();
        (base, label)
    }

    /// Does what the engine asks for: all of it whole blocks, in whole blocks of memory.
    fn transfer(&mut self, first: u64, io: &BaseIo, segs: &[Seg]) {
        let mut at = (first + io.offset) / BLOCK as u64;
        for seg in segs.iter().filter(|_| io.op != BaseOp::Flush) {
            for addr in (seg.addr..seg.addr + seg.len).step_by(BLOCK) {
                let block = self.0.entry(at).or_insert_with(|| Box::new([0; BLOCK]));
                // SAFETY: segments are live memory of this test or of the engine, and whole blocks.
                unsafe {
                    match io.op {
                        BaseOp::Write => block.as_mut_ptr().copy_from(addr as *const u8, BLOCK),
                        _ => block.as_ptr().copy_to(addr as *mut u8, BLOCK),
                    }
                }
                at += 1;
            }
        }
    }
}

impl ReadBlocks for Sparse {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        for (at, out) in (block..).zip(buf.chunks_mut(BLOCK)) {
            match self.0.get(&at) {
                Some(bytes) => out.copy_from_slice(bytes.as_slice()),
                None => out.fill(0),
            }
        }
        Ok(())
    }
}

struct Rig {
    engine: Engine,
    base: Sparse,
    label: StoreLabel,
    now: u64,
}

impl Rig {
    fn open(base: Sparse, label: StoreLabel) -> Rig {
        let (rig, said) = Rig::open_damaged(base, label);
        if let Some(event) = said.iter().find(|e| e.severe) {
            panic!("{}", event.text);
        }
        rig
    }

    /// The same, and what it says.
    fn open_damaged(base: Sparse, label: StoreLabel) -> (Rig, Vec<Event>) {
        let engine = Engine::open(Config { slots: 64, cache_bytes: 1 << 20 }, RAM, &label, 0);
        let mut rig = Rig { engine, base, label, now: 0 };
        while rig.engine.state() == EngineState::Opening {
            rig.turn();
        }
        assert_eq!(rig.engine.state(), EngineState::Ready, "{:?}", rig.engine.open_error());
        let said = std::iter::from_fn(|| rig.engine.next_event()).collect();
        (rig, said)
    }

    fn turn(&mut self) {
        self.now += 1000;
        self.engine.tick(self.now);
        let mut segs = Vec::new();
        while let Some(io) = self.engine.next_io() {
            self.engine.gather(&io, &mut segs);
            self.base.transfer(self.label.first_region, &io, &segs);
            self.engine.complete(io.tag, Ok(()));
        }
    }

    fn command(&mut self, command: Command) -> Reply {
        self.engine.command(1, command);
        loop {
            if let Some((_, outcome)) = self.engine.next_reply() {
                return outcome.unwrap();
            }
            self.turn();
        }
    }

    fn create(&mut self, text: &str, size: u64, from: Option<SnapRef>) -> DiskId {
        let (name, uuid) = (Name::new(text).unwrap(), Uuid([text.as_bytes()[0]; 16]));
        match self.command(Command::CreateDisk { name, uuid, size, from, time: 1 }) {
            Reply::Disk(disk) => disk,
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, handle: Handle, offset: u64) -> u8 {
        let mut data = [0x5a; BLOCK];
        self.request(handle, Op::Read, offset, &mut data);
        assert!(data.iter().all(|&byte| byte == data[0]), "a mix at {offset}");
        data[0]
    }

    /// Free blocks once nothing is on its way any more.
    fn settle(&mut self) -> u64 {
        (0..8).for_each(|_| drop(self.command(Command::Checkpoint)));
        while self.engine.busy() {
            self.turn();
        }
        self.engine.store_info().free_blocks
    }

    fn attach(&mut self, disk: DiskId) -> Handle {
        match self.command(Command::Attach(Target::Disk(disk))) {
            Reply::Handle(handle) => handle,
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, handle: Handle, op: Op, offset: u64, data: &mut [u8]) {
        self.ranged(handle, op, offset, data.len() as u64, data);
    }

    fn ranged(&mut self, handle: Handle, op: Op, offset: u64, len: u64, data: &mut [u8]) {
        let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
        let request = Request { cookie: 1, handle, op, offset, len, fua: false };
        assert!(self.engine.submit(&request, &[seg]));
        loop {
            if let Some(done) = self.engine.next_done() {
                assert_eq!(done.status, Status::Ok);
                return;
            }
            self.turn();
        }
    }
}

fn params(device_bytes: u64) -> FormatParams {
    let (uuid, name) = (Uuid([7; 16]), Name::new("store").unwrap());
    FormatParams { uuid, name, device_bytes, shards: 1, journal_bytes: 0, time: 1 }
}

/// Formats a store of that size, writes to the far end of a large disk, and opens it again.
fn lives(device_bytes: u64) {
    let (base, label) = Sparse::formatted(&params(device_bytes));
    let mut rig = Rig::open(base, label);
    let size = 512 << 30;
    let disk = rig.create("d", size, None);
    let handle = rig.attach(disk);
    let last = size - BLOCK as u64;
    rig.request(handle, Op::Write, last, &mut [0xa5; BLOCK]);
    rig.command(Command::Checkpoint);
    let mut rig = Rig::open(rig.base, rig.label);
    let handle = rig.attach(disk);
    assert_eq!(rig.read(handle, last), 0xa5, "{device_bytes} bytes");
    // A check keeps two bits for each block.
    if device_bytes <= CHECKED_BYTES_MAX {
        let mut on_progress = |_| true;
        let options = CheckOptions::default();
        let report = check(&mut rig.base, device_bytes, options, &mut on_progress).unwrap();
        assert!(report.clean(), "{device_bytes} bytes: {:?}", report.findings);
    }
}

#[test]
fn stores_just_above_a_whole_number_of_catalogue_blocks_live() {
    // The last catalogue block may have nothing to list: what it was made for went to the journal
    // and the disk records.
    for blocks in [1, 2, 3, 7, 65] {
        for extents in 0..12 {
            lives((LISTED * blocks + extents) * EXTENT + (1 << 20));
        }
    }
}

#[test]
fn common_sizes_live() {
    for power in 26..=45 {
        lives(1 << power);
    }
    for tenth in 1..=40 {
        lives(tenth * 100_000_000_000);
    }
}

#[test]
fn the_largest_store_lives_and_a_larger_one_is_refused() {
    lives(64 << 40);
    let refused = format_plan(&params(65 << 40)).err().expect("too large");
    assert_eq!(refused.kind, ErrorKind::Invalid);
    assert!(refused.message.contains("use more shards"), "{}", refused.message);
}

/// Of a large store a lost catalogue block costs what is free in the extents that it lists, until a
/// repair. If nothing is left without them, all maps are walked, and nothing is lost.
#[test]
fn a_large_store_opens_without_some_or_all_of_its_catalogue() {
    let (base, label) = Sparse::formatted(&params(300 << 30));
    let mut rig = Rig::open(base, label);
    let disk = rig.create("d", 512 << 30, None);
    let handle = rig.attach(disk);
    let places: Vec<u64> = (0..60).map(|i| i * (7 << 30)).collect();
    for (at, byte) in places.iter().zip(1..) {
        rig.request(handle, Op::Write, *at, &mut [byte; BLOCK]);
    }
    let free = rig.settle();
    let image = rig.base;
    let superblock = label.first_region / BLOCK as u64;
    let field = |at: usize| {
        u64::from_le_bytes(image.0[&superblock][at..at + 8].try_into().expect("8 bytes"))
    };
    let (catalogue, pairs) = (superblock + field(72), field(80));
    for lost in [1, pairs] {
        let mut base = Sparse(image.0.clone());
        for block in catalogue..catalogue + 2 * lost {
            base.0.get_mut(&block).expect("it was formatted")[99] ^= 1;
        }
        let (mut rig, said) = Rig::open_damaged(base, label);
        assert!(said.iter().any(|e| e.severe && e.text.contains("the catalogue of extents 0")));
        let left = rig.settle();
        let text = |text: &str| said.iter().any(|e| e.text.contains(text));
        match lost < pairs {
            true => {
                assert!(left < free && left > free / 2 && text("until `lamina check --repair`"));
            }
            false => assert!(left == free && text("found out again")),
        }
        let handle = rig.attach(disk);
        for (at, byte) in places.iter().zip(1..) {
            assert_eq!(rig.read(handle, *at), byte);
            rig.request(handle, Op::Write, *at + BLOCK as u64, &mut [byte; BLOCK]);
        }
        rig.settle();
        let (mut rig, _) = Rig::open_damaged(rig.base, label);
        let handle = rig.attach(disk);
        for (at, byte) in places.iter().zip(1..) {
            let both = (rig.read(handle, *at), rig.read(handle, *at + BLOCK as u64));
            assert_eq!(both, (byte, byte));
        }
    }
}

#[test]
fn the_largest_disk_is_written_cloned_discarded_shrunk_and_deleted() {
    let (base, label) = Sparse::formatted(&params(1 << 40));
    let mut rig = Rig::open(base, label);
    let free = rig.settle();
    let size = limits::DISK_BYTES_MAX;
    let disk = rig.create("a", size, None);
    let handle = rig.attach(disk);
    // First and last blocks of leaves and of the nodes above them.
    let leaf = (limits::LINKS * BLOCK) as u64;
    let ends = [leaf, leaf << 9, leaf << 18, size];
    let blocks: Vec<u64> = ends.iter().flat_map(|end| [end - BLOCK as u64, *end]).collect();
    let places = || [0].into_iter().chain(blocks.iter().copied().filter(|at| *at < size));
    for (offset, byte) in places().zip(1..) {
        rig.request(handle, Op::Write, offset, &mut [byte; BLOCK]);
    }
    let (label, uuid) = (Name::EMPTY, Uuid([9; 16]));
    let Reply::Snapshot(snap) = rig.command(Command::Snapshot { disk, uuid, label, time: 2 })
    else {
        panic!("not a snapshot")
    };
    rig.settle();
    let mut rig = Rig::open(rig.base, rig.label);
    let handle = rig.attach(disk);
    let clone = rig.create("b", 0, Some(SnapRef { disk, snap }));
    let cloned = rig.attach(clone);
    for (offset, byte) in places().zip(1..) {
        assert_eq!((rig.read(handle, offset), rig.read(cloned, offset)), (byte, byte));
    }
    rig.ranged(handle, Op::Discard, 0, size, &mut []);
    rig.ranged(cloned, Op::WriteZeroes, 512, size - 512, &mut []);
    for (offset, byte) in places().zip(1..) {
        let left = rig.read(handle, offset);
        assert_eq!(left, 0, "block {byte} was discarded");
        if offset > 0 {
            assert_eq!(rig.read(cloned, offset), 0, "block {byte} was zeroed");
        }
    }
    rig.command(Command::Resize(clone, 1 << 20));
    rig.command(Command::Resize(clone, size));
    assert_eq!(rig.read(cloned, size - BLOCK as u64), 0);
    for (handle, disk) in [(handle, disk), (cloned, clone)] {
        rig.command(Command::Detach(handle));
        rig.command(Command::DeleteDisk(disk));
    }
    assert_eq!(rig.settle(), free, "all of it came back");
}
