//! An engine over a base device in memory whose completions the test deals out: late, reordered,
//! failing; and which knows what a power cut would leave.
//!
//! ```text
//!  engine.next_io ─► pending ─ complete(i, result) ─► visible ─ flush that began later ─► durable
//! ```
// UNSAFETY: a base device moves bytes by address; this is one.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use std::collections::{BTreeMap, VecDeque};

use lamina_bdev::*;

#[path = "../store/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "a test may include both kinds of rig")]
mod store;
#[allow(unused_imports, reason = "each test that includes this uses a part of it")]
pub use store::{DISK, FILE, RAM, formatted};

/// A small deterministic generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// An operation that the base has been given and has not answered.
pub struct Pending {
    pub io: BaseIo,
    segs: Vec<Seg>,
    /// When it began.
    pub began: u64,
    /// A flush makes durable what was in the log when it began.
    mark: usize,
}

/// A base flush that is over.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    pub began: u64,
    pub ended: u64,
    pub good: bool,
}

/// The base device.
pub struct Device {
    pub visible: Vec<u8>,
    /// Empty unless power cuts are of interest.
    pub durable: Vec<u8>,
    /// Writes that completed, oldest first; `None` once they are durable or dropped.
    log: Vec<Option<(usize, Vec<u8>)>>,
    settled: usize,
    pub pending: Vec<Pending>,
    pub flushed: Vec<Flushed>,
    /// Counts every beginning and every completion.
    pub clock: u64,
    /// When the last write completed.
    pub last_write: u64,
    first: usize,
}

impl Device {
    fn start(&mut self, io: BaseIo, segs: Vec<Seg>) {
        self.clock += 1;
        self.pending.push(Pending { io, segs, began: self.clock, mark: self.log.len() });
    }

    /// Does what the operation says, or fails it; a failed write may have done anything to its
    /// blocks, here nothing. A failed flush drops what it should have made durable.
    fn finish(&mut self, at: usize, result: Result<(), BaseError>) -> Tag {
        let Pending { io, segs, began, mark } = self.pending.remove(at);
        self.clock += 1;
        if io.op == BaseOp::Flush {
            let keep = !self.durable.is_empty();
            for entry in &mut self.log[self.settled.min(mark)..mark] {
                if let Some((at, bytes)) = entry.take()
                    && keep
                    && result.is_ok()
                {
                    self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            self.settled = self.settled.max(mark);
            self.flushed.push(Flushed { began, ended: self.clock, good: result.is_ok() });
            return io.tag;
        }
        if result.is_ok() {
            self.transfer(&io, &segs);
        }
        if io.op == BaseOp::Write {
            self.last_write = self.clock;
        }
        io.tag
    }

    fn transfer(&mut self, io: &BaseIo, segs: &[Seg]) {
        let start = self.first + io.offset as usize;
        let mut at = start;
        for seg in segs {
            let base = self.visible[at..at + seg.len].as_mut_ptr();
            // SAFETY: segments are live memory of the rig's buffers or of the engine.
            unsafe {
                match io.op {
                    BaseOp::Read => base.copy_to(seg.addr as *mut u8, seg.len),
                    BaseOp::Write => base.copy_from(seg.addr as *const u8, seg.len),
                    BaseOp::Flush => {}
                }
            }
            at += seg.len;
        }
        if io.op == BaseOp::Write && !self.durable.is_empty() {
            self.log.push(Some((start, self.visible[start..at].to_vec())));
        }
    }
}

pub struct Rig {
    pub engine: Engine,
    pub base: Device,
    pub traits: BaseTraits,
    pub label: StoreLabel,
    config: Config,
    now: u64,
    cookie: u64,
    /// Memory of requests in flight, by cookie.
    buffers: BTreeMap<u64, Vec<u8>>,
    /// Answers to requests that went the straight way.
    ended: VecDeque<Done>,
}

impl Rig {
    /// A fresh store, opened. `power`: keep account of what a power cut would leave.
    pub fn new(bytes: usize, traits: BaseTraits, power: bool) -> Rig {
        let (image, label) = formatted(bytes);
        Rig::open(image, label, traits, power)
    }

    /// A fresh store, opened, for as many requests at a time.
    pub fn with_slots(bytes: usize, traits: BaseTraits, slots: usize) -> Rig {
        let (image, label) = formatted(bytes);
        let mut rig = Rig::opening(image, label, traits, false);
        rig.config.slots = slots;
        rig.engine = Engine::open(rig.config, traits, &label, 0);
        rig.opened()
    }

    pub fn open(image: Vec<u8>, label: StoreLabel, traits: BaseTraits, power: bool) -> Rig {
        Rig::opening(image, label, traits, power).opened()
    }

    fn opened(mut self) -> Rig {
        let rig = &mut self;
        while rig.engine.state() == EngineState::Opening {
            rig.turn();
        }
        assert_eq!(rig.engine.state(), EngineState::Ready, "{:?}", rig.engine.open_error());
        self
    }

    /// An engine that has not begun to read yet.
    pub fn opening(image: Vec<u8>, label: StoreLabel, traits: BaseTraits, power: bool) -> Rig {
        let config = Config { slots: 64, cache_bytes: 2 << 20 };
        let base = Device {
            durable: if power { image.clone() } else { Vec::new() },
            visible: image,
            log: Vec::new(),
            settled: 0,
            pending: Vec::new(),
            flushed: Vec::new(),
            clock: 0,
            last_write: 0,
            first: label.first_region as usize,
        };
        let engine = Engine::open(config, traits, &label, 0);
        let (buffers, ended) = (BTreeMap::new(), VecDeque::new());
        Rig { engine, base, traits, label, config, now: 0, cookie: 0, buffers, ended }
    }

    /// An engine whose opening ends, whichever way, over a base that fails what `fails` says of an
    /// operation and a block of it.
    pub fn open_failing(
        image: Vec<u8>,
        label: StoreLabel,
        traits: BaseTraits,
        fails: impl Fn(BaseOp, u64) -> bool,
    ) -> Rig {
        let mut rig = Rig::opening(image, label, traits, false);
        for _ in 0..10_000 {
            if rig.engine.state() != EngineState::Opening {
                return rig;
            }
            rig.step();
            while let Some(pending) = rig.base.pending.first() {
                let io = &pending.io;
                let mut covered = io.offset / 4096..(io.offset + u64::from(io.len)) / 4096;
                let failed = covered.any(|block| fails(io.op, block));
                rig.complete(0, if failed { Err(BaseError::Io) } else { Ok(()) });
                rig.start_all();
            }
        }
        panic!("opening never ends");
    }

    /// What a SIGKILL and a restart do.
    pub fn reopen(self) -> Rig {
        let power = !self.base.durable.is_empty();
        let mut rig = Rig::open(self.base.visible, self.label, self.traits, power);
        // UUIDs are made of it.
        rig.cookie = self.cookie;
        rig
    }

    /// The store as a power cut now that loses all it may would leave it, opened elsewhere.
    pub fn after_power_cut(&self) -> Rig {
        Rig::open(self.base.durable.clone(), self.label, self.traits, false)
    }

    /// Lines for the log since last asked.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.next_event()).collect()
    }

    /// A tick; what the engine wants begun is begun. Nothing completes.
    pub fn step(&mut self) {
        self.now += 1000;
        self.engine.tick(self.now);
        self.start_all();
    }

    pub fn start_all(&mut self) {
        while let Some(io) = self.engine.next_io() {
            let mut segs = Vec::new();
            if io.op != BaseOp::Flush {
                self.engine.gather(&io, &mut segs);
            }
            self.base.start(io, segs);
        }
    }

    /// Answers a pending operation.
    pub fn complete(&mut self, at: usize, result: Result<(), BaseError>) {
        let tag = self.base.finish(at, result);
        self.ended.extend(self.engine.ended(tag, result));
    }

    /// A tick, and everything begun completes, in order.
    pub fn turn(&mut self) {
        self.step();
        while !self.base.pending.is_empty() {
            self.complete(0, Ok(()));
            self.start_all();
        }
    }

    /// Time goes by.
    pub fn wait_ns(&mut self, ns: u64) {
        self.now += ns;
    }

    /// Submits a request; `None` if all slots are taken. The buffer is kept until it is done.
    pub fn submit(&mut self, mut request: Request, mut data: Vec<u8>) -> Option<u64> {
        self.cookie += 1;
        request.cookie = self.cookie;
        let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
        let segs: &[Seg] = if data.is_empty() { &[] } else { &[seg] };
        if !self.engine.submit(&request, segs) {
            return None;
        }
        self.buffers.insert(self.cookie, data);
        Some(self.cookie)
    }

    /// Gives the base the operation of a request that goes the straight way; `None` if it does not.
    pub fn straight(&mut self, mut request: Request, mut data: Vec<u8>) -> Option<u64> {
        self.cookie += 1;
        request.cookie = self.cookie;
        let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
        match self.engine.straight(&request, &[seg]) {
            Straight::No => return None,
            Straight::Zeroed => {
                self.ended.push_back(Done { cookie: self.cookie, status: Status::Ok });
            }
            Straight::Start { tag, offset } => {
                let op = if request.op == Op::Read { BaseOp::Read } else { BaseOp::Write };
                self.base.start(BaseIo::on(tag, op, offset, seg), vec![seg]);
            }
        }
        self.buffers.insert(self.cookie, data);
        Some(self.cookie)
    }

    /// The next request that is done, with its memory.
    pub fn next_done(&mut self) -> Option<(Done, Vec<u8>)> {
        let done = self.ended.pop_front().or_else(|| self.engine.next_done())?;
        let buffer = self.buffers.remove(&done.cookie).expect("answered exactly once");
        Some((done, buffer))
    }

    /// One request on its own, to its end.
    pub fn request(&mut self, request: Request, data: Vec<u8>) -> (Status, Vec<u8>) {
        let cookie = self.submit(request, data).expect("no other request is in flight");
        for _ in 0..1_000_000 {
            if let Some((done, data)) = self.next_done() {
                assert_eq!(done.cookie, cookie);
                return (done.status, data);
            }
            self.turn();
        }
        panic!("a request never ended: {request:?}");
    }

    pub fn write(&mut self, handle: Handle, offset: u64, data: Vec<u8>) -> Status {
        let len = data.len() as u64;
        let op = Op::Write;
        self.request(Request { cookie: 0, handle, op, offset, len, fua: false }, data).0
    }

    pub fn read(&mut self, handle: Handle, offset: u64, len: usize) -> Vec<u8> {
        let op = Op::Read;
        let request = Request { cookie: 0, handle, op, offset, len: len as u64, fua: false };
        let (status, data) = self.request(request, vec![0x5a; len]);
        assert_eq!(status, Status::Ok, "read of {len} at {offset}");
        data
    }

    /// A discard or write-zeroes.
    pub fn clear(&mut self, handle: Handle, op: Op, offset: u64, len: u64) -> Status {
        self.request(Request { cookie: 0, handle, op, offset, len, fua: false }, Vec::new()).0
    }

    pub fn flush(&mut self, handle: Handle) -> Status {
        let (op, offset, len) = (Op::Flush, 0, 0);
        self.request(Request { cookie: 0, handle, op, offset, len, fua: false }, Vec::new()).0
    }

    /// Gives a command without waiting for its answer.
    pub fn begin(&mut self, command: Command) -> u64 {
        self.cookie += 1;
        self.engine.command(self.cookie, command);
        self.cookie
    }

    pub fn command(&mut self, command: Command) -> Result<Reply, Error> {
        let text = format!("{command:?}");
        let given = self.begin(command);
        for _ in 0..1_000_000 {
            if let Some((cookie, outcome)) = self.engine.next_reply() {
                assert_eq!(cookie, given);
                return outcome;
            }
            self.turn();
        }
        panic!("a command never ended: {text}");
    }

    pub fn create(
        &mut self,
        name: &str,
        size: u64,
        from: Option<SnapRef>,
    ) -> Result<DiskId, Error> {
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.cookie.to_le_bytes());
        let name = Name::new(name).unwrap();
        let create = Command::CreateDisk { name, uuid: Uuid(uuid), size, from, time: 5 };
        let Reply::Disk(id) = self.command(create)? else { panic!("not a disk") };
        Ok(id)
    }

    pub fn attach(&mut self, target: Target) -> Handle {
        let reply = self.command(Command::Attach(target)).unwrap();
        let Reply::Handle(handle) = reply else { panic!("not a handle") };
        handle
    }

    pub fn snapshot(&mut self, disk: DiskId) -> Result<SnapRef, Error> {
        let mut uuid = [9; 16];
        uuid[..8].copy_from_slice(&self.cookie.to_le_bytes());
        let snapshot = Command::Snapshot { disk, uuid: Uuid(uuid), label: Name::EMPTY, time: 9 };
        let Reply::Snapshot(snap) = self.command(snapshot)? else { panic!("not a snapshot") };
        Ok(SnapRef { disk, snap })
    }

    /// Consistency points until nothing is on its way back.
    pub fn settle(&mut self) -> StoreInfo {
        for _ in 0..100 {
            self.command(Command::Checkpoint).unwrap();
            for _ in 0..100_000 {
                if !self.engine.busy() {
                    break;
                }
                self.turn();
            }
            assert!(!self.engine.busy(), "the engine never comes to rest");
            let info = self.engine.store_info();
            if info.pending_blocks == 0 {
                return info;
            }
        }
        panic!("freed blocks never come back: {:?}", self.engine.store_info());
    }
}
