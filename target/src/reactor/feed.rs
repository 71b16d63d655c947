//! How requests reach the engine when the base is RAM: a pipeline, so that copies overlap requests.
//!
//! ```text
//!  request n     ─► engine.submit ─► n - LAG is copied ─► block n is asked for ┐
//!  request n + 1 ─► engine.submit ─► ...                                       │ its lines come
//!  request n + LAG ─► ...         ─► n is copied, and done                     ┘
//! ```
//!
//! A random block of a store in RAM is in no cache. Fetched in one go, it keeps the core waiting as
//! long as the rest of the request takes; asked for ahead, it comes meanwhile. That is done last:
//! the copy's own lines have come by then, and what follows, the next chain and its look at the
//! map, does not need many. What is left when no more requests come, the shard's turn copies as it
//! does without this.
//!
//! Most requests are such that the engine only says where their bytes are ([`Engine::at_once`]):
//! they are copied in the order in which they came, and most of them done then. Where it lacks the
//! leaf, one link is read from the RAM itself ([`Engine::link_in_place`]).

use lamina_bdev::{AtOnce, BaseOp, Engine, Op, Request, Seg};

use crate::base::{Base, Operation, RamBase};
use crate::mem::far::{self, LINE};
use crate::vhost::{Submit, Taken};

/// Operations that wait behind the newest while their blocks come.
const LAG: usize = 2;
/// Bytes of an operation worth asking for: of a longer one the rest is seen coming.
const AHEAD_BYTES: usize = 4096;

/// Asks for the lines of a block, all at once: a core that has no room for more leaves the rest
/// waiting and goes on.
#[inline]
fn ask_for(addr: usize, len: usize) {
    for line in (addr..addr + len.min(AHEAD_BYTES)).step_by(LINE) {
        far::soon_read(line);
    }
}

/// Bytes to be moved whose blocks are to come. Kept from turn to turn.
#[derive(Debug, Default)]
pub struct Ahead {
    copies: Copies,
}

impl Ahead {
    /// True if no bytes wait to be moved.
    pub fn is_empty(&self) -> bool {
        self.copies.len() == 0
    }

    /// Moves bytes between a request's memory and the base when their lines have come: after some
    /// more of these, or in [`Ahead::finish`]. Each sees what those before it have written.
    #[inline]
    pub fn transfer(&mut self, ram: &mut RamBase, write: bool, offset: u64, memory: Seg) {
        self.copies.add(Transfer { write, offset, memory });
        if self.copies.len() > LAG {
            self.copies.run(ram);
        }
        if !write {
            ask_for(ram.address(offset, memory.len), memory.len);
        }
    }

    /// Moves what waits.
    pub fn finish(&mut self, ram: &mut RamBase) {
        self.copies.run_all(ram);
    }
}

/// Copies that wait while their blocks come, in order.
#[derive(Debug, Default)]
struct Copies {
    queue: [Transfer; LAG + 1],
    first: usize,
    next: usize,
    /// How many of them are writes.
    writes: usize,
}

/// Bytes to be moved between a request's memory and the base.
#[derive(Clone, Copy, Debug, Default)]
struct Transfer {
    write: bool,
    /// In the region.
    offset: u64,
    memory: Seg,
}

impl Copies {
    fn len(&self) -> usize {
        self.next - self.first
    }

    fn add(&mut self, copy: Transfer) {
        assert!(self.len() <= LAG, "the oldest is carried out before the next but one comes");
        self.queue[self.next % (LAG + 1)] = copy;
        self.next += 1;
        self.writes += usize::from(copy.write);
    }

    /// Carries the oldest out.
    #[inline]
    fn run(&mut self, ram: &mut RamBase) {
        let Transfer { write, offset, memory } = self.queue[self.first % (LAG + 1)];
        self.first += 1;
        self.writes -= usize::from(write);
        let op = if write { BaseOp::Write } else { BaseOp::Read };
        ram.copy(op, offset, &memory);
    }

    fn run_all(&mut self, ram: &mut RamBase) {
        while self.len() > 0 {
            self.run(ram);
        }
    }
}

/// The engine of a shard with its base.
pub struct Feed<'a> {
    /// Takes the requests.
    pub engine: &'a mut Engine,
    /// Copies.
    pub base: &'a mut Base,
    /// Kept from turn to turn.
    pub ahead: &'a mut Ahead,
    /// Room for an operation's memory.
    pub segs: &'a mut Vec<Seg>,
}

impl Feed<'_> {
    /// The straight way, for what it is there for.
    #[inline]
    fn at_once(&mut self, request: &Request, segs: &[Seg]) -> Option<Taken> {
        let Feed { engine, base, ahead, .. } = self;
        let [memory] = segs else { return None };
        if !base.answers_at_once() {
            return None;
        }
        let mut answer = engine.at_once(request, segs);
        if answer == AtOnce::No
            && let Some(ram) = base.ram()
            && let Some(offset) = engine.link_in_place(request, segs)
        {
            answer = engine.read_in_place(request, segs, ram.word(offset));
        }
        let (offset, taken) = match answer {
            AtOnce::No => return None,
            AtOnce::Zeroed => return Some(Taken::Done),
            AtOnce::Move { offset } => (offset, Taken::Done),
            AtOnce::Kept { offset } => (offset, Taken::Later),
        };
        if let Base::Null(null) = &mut **base {
            null.leave(offset, memory.len);
        } else {
            let ram = base.ram().expect("looked at above");
            ahead.transfer(ram, request.op == Op::Write, offset, *memory);
        }
        Some(taken)
    }
}

impl Submit for Feed<'_> {
    /// Carries out what waits. To be called before anything else is asked of the engine.
    fn finish(&mut self) {
        if let Some(ram) = self.base.ram() {
            self.ahead.finish(ram);
        }
    }

    fn submit(&mut self, request: &Request, segs: &[Seg]) -> Taken {
        if let Some(taken) = self.at_once(request, segs) {
            return taken;
        }
        if self.ahead.copies.writes > 0 {
            self.finish();
        }
        let before = self.engine.waiting_io();
        if !self.engine.submit(request, segs) {
            return Taken::No;
        }
        // Others take their operations once a turn.
        let Some(ram) = self.base.ram() else { return Taken::Later };
        let started = self.engine.waiting_io() - before;
        let mut place = before;
        for _ in 0..started {
            if place >= LAG {
                run(self.engine, ram, self.segs);
                place -= 1;
            }
            let Some(io) = self.engine.coming_io(place) else { break };
            if io.op == BaseOp::Read {
                ask_for(ram.address(io.offset, io.len as usize), io.len as usize);
            }
            place += 1;
        }
        Taken::Later
    }
}

/// Carries out the operation that waits longest.
fn run(engine: &mut Engine, ram: &mut RamBase, segs: &mut Vec<Seg>) {
    let Some(io) = engine.next_io() else { return };
    let one = [io.first];
    let segs = if io.op == BaseOp::Flush {
        &[]
    } else if io.first.len == io.len as usize {
        &one[..]
    } else {
        engine.gather(&io, segs);
        segs
    };
    let result = ram.run(&Operation::from(&io), segs);
    engine.complete(io.tag, result);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use lamina_bdev::{
        Command, Config, DiskId, EngineState, FormatParams, Handle, LABEL_BYTES, Name, Op, Reply,
        SnapRef, Status, Target, Uuid, format_plan, read_label,
    };

    use super::*;
    use crate::base::{RamDevice, Region};

    const DEVICE_BYTES: u64 = 64 << 20;
    const BLOCK: usize = 4096;

    struct Rig {
        engine: Engine,
        base: Base,
        ahead: Ahead,
        segs: Vec<Seg>,
        now: u64,
        /// Answers so far.
        done: usize,
    }

    /// A store in RAM, being opened, for as many requests at a time.
    pub(crate) fn opening(slots: usize) -> (Engine, Base) {
        let device = Arc::new(RamDevice::new(DEVICE_BYTES).unwrap());
        let params = FormatParams {
            uuid: Uuid([7; 16]),
            name: Name::new("store").unwrap(),
            device_bytes: DEVICE_BYTES,
            shards: 1,
            journal_bytes: 0,
            time: 1,
        };
        for write in format_plan(&params).unwrap() {
            device.write_at(&write.bytes, write.offset);
        }
        let mut first = vec![0; LABEL_BYTES];
        device.read_at(&mut first, 0);
        let label = read_label(&first, DEVICE_BYTES).unwrap();
        let region = Region { offset: label.first_region, len: label.region_bytes };
        let base = RamBase::new(device, region);
        let config = Config { slots, cache_bytes: 4 << 20 };
        let engine = Engine::open(config, base.traits(), &label, 0);
        (engine, Base::Ram(base))
    }

    impl Rig {
        fn new() -> Rig {
            let (engine, base) = opening(64);
            let (ahead, segs) = (Ahead::default(), Vec::new());
            let mut rig = Rig { engine, base, ahead, segs, now: 0, done: 0 };
            while rig.engine.state() == EngineState::Opening {
                rig.turn();
            }
            rig
        }

        /// What a shard's turn does after it has fed the engine.
        fn turn(&mut self) {
            self.now += 1_000_000;
            let Rig { engine, base, ahead, segs, .. } = self;
            Feed { engine, base, ahead, segs }.finish();
            self.engine.tick(self.now);
            let Base::Ram(ram) = &mut self.base else { unreachable!("made so") };
            while self.engine.waiting_io() > 0 {
                run(&mut self.engine, ram, &mut self.segs);
            }
            self.base.enter();
        }

        fn disk(&mut self, size: u64) -> Handle {
            let (name, uuid) = (Name::new("disk").unwrap(), Uuid([8; 16]));
            self.engine.command(1, Command::CreateDisk { name, uuid, size, from: None, time: 2 });
            let Reply::Disk(disk) = self.reply() else { panic!("no disk") };
            self.engine.command(2, Command::Attach(Target::Disk(disk)));
            let Reply::Handle(handle) = self.reply() else { panic!("no handle") };
            handle
        }

        fn reply(&mut self) -> Reply {
            loop {
                if let Some((_, reply)) = self.engine.next_reply() {
                    return reply.unwrap();
                }
                self.turn();
            }
        }

        /// In two pieces (`cut`), so that operations are gathered, or in one, so that they are
        /// done at once.
        fn submit(&mut self, handle: Handle, op: Op, block: usize, memory: &mut [u8], cut: bool) {
            let seg = |bytes: &mut [u8]| Seg {
                addr: bytes.as_mut_ptr().expose_provenance(),
                len: bytes.len(),
            };
            let segs = if cut {
                let (first, second) = memory.split_at_mut(512);
                vec![seg(first), seg(second)]
            } else {
                vec![seg(memory)]
            };
            let (offset, len) = ((block * BLOCK) as u64, memory.len() as u64);
            let request = Request { cookie: 0, handle, op, offset, len, fua: false };
            let Rig { engine, base, ahead, segs: room, .. } = self;
            match (Feed { engine, base, ahead, segs: room }).submit(&request, &segs) {
                Taken::No => panic!("there is room"),
                Taken::Later => {}
                Taken::Done => self.done += 1,
            }
        }

        fn finish(&mut self, count: usize) {
            loop {
                self.turn();
                while let Some(answer) = self.engine.next_done() {
                    assert_eq!(answer.status, Status::Ok);
                    self.done += 1;
                }
                if self.done >= count {
                    break;
                }
            }
            assert_eq!(std::mem::take(&mut self.done), count, "each is answered once");
        }
    }

    /// Holes, overwrites and reads right behind them, more than wait at a time.
    #[test]
    fn a_pipeline_answers_as_one_request_at_a_time_does() {
        const BLOCKS: usize = 32;
        let mut rig = Rig::new();
        let handle = rig.disk(1 << 20);
        let content = |block: usize, round: usize| (block * 7 + round * 101 + 1) as u8;
        for round in 0..6 {
            let cut = round % 2 == 0;
            let mut writes: Vec<_> =
                (0..BLOCKS).map(|block| vec![content(block, round); BLOCK]).collect();
            for (block, memory) in writes.iter_mut().enumerate() {
                rig.submit(handle, Op::Write, block, memory, cut);
            }
            rig.finish(BLOCKS);
            let mut reads = vec![vec![0; BLOCK]; BLOCKS];
            let mut over = vec![vec![0xaa; BLOCK]; BLOCKS];
            for (block, over) in over.iter_mut().enumerate().take(BLOCKS / 2) {
                rig.submit(handle, Op::Read, block, &mut reads[block], cut);
                rig.submit(handle, Op::Write, block, over, cut);
                rig.submit(handle, Op::Read, block, &mut reads[BLOCKS - 1 - block], cut);
            }
            assert!(rig.engine.waiting_io() <= LAG, "the oldest are carried out at once");
            if !cut {
                assert_eq!(rig.done, BLOCKS / 2 * 3, "all that are hits are done");
                assert_eq!(rig.ahead.copies.len(), LAG, "the newest wait for their lines");
            }
            rig.finish(BLOCKS / 2 * 3);
            for (block, over) in over.iter().enumerate().take(BLOCKS / 2) {
                assert!(reads[block] == writes[block], "before the overwrite");
                assert!(&reads[BLOCKS - 1 - block] == over, "after it");
            }
        }
    }

    /// Their blocks are fresh ones: no operation is left to be started, but the answers wait for
    /// the journal.
    #[test]
    fn first_writes_after_a_snapshot_are_copied_at_once_and_answered_later() {
        const BLOCKS: usize = 32;
        let mut rig = Rig::new();
        let handle = rig.disk(1 << 20);
        let mut old = vec![vec![1; BLOCK]; BLOCKS];
        for (block, memory) in old.iter_mut().enumerate() {
            rig.submit(handle, Op::Write, block, memory, true);
        }
        rig.finish(BLOCKS);
        let (disk, label, uuid) = (DiskId(0), Name::EMPTY, Uuid([9; 16]));
        rig.engine.command(3, Command::Snapshot { disk, uuid, label, time: 3 });
        let Reply::Snapshot(snap) = rig.reply() else { panic!("no snapshot") };
        rig.engine.command(4, Command::Checkpoint);
        assert_eq!(rig.reply(), Reply::Unit);
        let before = rig.engine.stats();
        let mut new: Vec<_> = (0..BLOCKS).map(|block| vec![block as u8 + 2; BLOCK]).collect();
        for (block, memory) in new.iter_mut().enumerate() {
            rig.submit(handle, Op::Write, block, memory, false);
        }
        assert_eq!((rig.done, rig.engine.waiting_io()), (0, 0));
        assert_eq!(rig.ahead.copies.len(), LAG, "all but the newest are copied");
        let after = rig.engine.stats();
        assert_eq!(after.writes_redirected - before.writes_redirected, BLOCKS as u64);
        rig.finish(BLOCKS);
        rig.engine.command(5, Command::Attach(Target::Snapshot(SnapRef { disk, snap })));
        let Reply::Handle(past) = rig.reply() else { panic!("no handle") };
        for (handle, content) in [(handle, &new), (past, &old)] {
            let mut reads = vec![vec![0; BLOCK]; BLOCKS];
            for (block, memory) in reads.iter_mut().enumerate() {
                rig.submit(handle, Op::Read, block, memory, false);
            }
            rig.finish(BLOCKS);
            assert!(&reads == content);
        }
    }

    /// No two blocks in a row lie in a row, and nothing of their leaf but one piece is cached.
    #[test]
    fn links_are_read_where_they_lie() {
        const BLOCKS: usize = 400;
        let mut rig = Rig::new();
        let handle = rig.disk(4 << 20);
        let content = |block: usize| vec![block as u8 + 1; BLOCK];
        // One more in another leaf: a leaf alone has no node above it.
        for block in (0..BLOCKS).map(|at| at * 77 % BLOCKS).chain([600]) {
            let mut memory = content(block);
            rig.submit(handle, Op::Write, block, &mut memory, false);
            rig.finish(1);
        }
        rig.engine.command(3, Command::Checkpoint);
        assert_eq!(rig.reply(), Reply::Unit);
        rig.engine.evict_nodes(1000);
        let mut first = vec![0; BLOCK];
        rig.submit(handle, Op::Read, 0, &mut first, false);
        rig.finish(1);
        assert!(first == content(0) && rig.engine.stats().cache_pieces == 1);
        let mut reads = vec![vec![0; BLOCK]; BLOCKS];
        for (block, memory) in reads.iter_mut().enumerate() {
            rig.submit(handle, Op::Read, block, memory, false);
        }
        assert_eq!(rig.done, BLOCKS, "none waits for its leaf");
        rig.finish(BLOCKS);
        assert!(reads.iter().enumerate().all(|(block, read)| *read == content(block)));
        assert_eq!(rig.engine.stats().cache_in_place, BLOCKS as u64 - 64);
    }
}
