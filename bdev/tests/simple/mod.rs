//! An engine over a plain vector that answers at once.
// UNSAFETY: a base device moves bytes by address; this is one.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use std::collections::BTreeMap;

use lamina_bdev::*;

#[path = "../store/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "a test may include both kinds of rig")]
mod store;
#[allow(unused_imports, reason = "each test that includes this uses a part of it")]
pub use store::{FILE, RAM, formatted};

/// A small deterministic generator (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    pub fn pick<K: Copy, V>(&mut self, map: &BTreeMap<K, V>) -> Option<K> {
        if map.is_empty() { None } else { map.keys().nth(self.below(map.len())).copied() }
    }
}

pub struct Rig {
    pub engine: Engine,
    pub disk: Vec<u8>,
    pub first: usize,
    pub now: u64,
    pub label: StoreLabel,
    pub traits: BaseTraits,
    pub cookie: u64,
    /// Operations that the base still does; from then on it answers nothing.
    pub left: u64,
}

impl Rig {
    pub fn new(bytes: usize, traits: BaseTraits) -> Rig {
        let (disk, label) = formatted(bytes);
        Rig::open(disk, label, traits)
    }

    /// Begins to open a store; [`Rig::turn`] takes it on.
    pub fn start(disk: Vec<u8>, label: StoreLabel, traits: BaseTraits) -> Rig {
        let config = Config { slots: 64, cache_bytes: 1 << 20 };
        let engine = Engine::open(config, traits, &label, 0);
        let first = label.first_region as usize;
        Rig { engine, disk, first, now: 0, label, traits, cookie: 0, left: u64::MAX }
    }

    pub fn open(disk: Vec<u8>, label: StoreLabel, traits: BaseTraits) -> Rig {
        let mut rig = Rig::start(disk, label, traits);
        while rig.engine.state() == EngineState::Opening {
            rig.turn();
        }
        assert_eq!(rig.engine.state(), EngineState::Ready, "{:?}", rig.engine.open_error());
        rig.events();
        rig
    }

    /// What a SIGKILL and a restart do.
    pub fn reopen(self) -> Rig {
        Rig::open(self.disk, self.label, self.traits)
    }

    pub fn events(&mut self) {
        for event in self.take_events() {
            assert!(!event.severe, "{}", event.text);
        }
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.next_event()).collect()
    }

    pub fn turn(&mut self) {
        self.now += 1000;
        self.engine.tick(self.now);
        let mut segs = Vec::new();
        while self.left > 0
            && let Some(io) = self.engine.next_io()
        {
            self.left -= 1;
            self.engine.gather(&io, &mut segs);
            let mut at = self.first + io.offset as usize;
            for seg in &segs {
                let base = self.disk[at..at + seg.len].as_mut_ptr();
                // SAFETY: segments are live memory of this test or of the engine.
                unsafe {
                    match io.op {
                        BaseOp::Read => base.copy_to(seg.addr as *mut u8, seg.len),
                        BaseOp::Write => base.copy_from(seg.addr as *const u8, seg.len),
                        BaseOp::Flush => {}
                    }
                }
                at += seg.len;
            }
            self.engine.complete(io.tag, Ok(()));
        }
    }

    pub fn request(&mut self, handle: Handle, op: Op, offset: u64, data: &mut [u8]) -> Status {
        let len = data.len() as u64;
        self.ranged(handle, op, offset, len, data)
    }

    pub fn ranged(
        &mut self,
        handle: Handle,
        op: Op,
        offset: u64,
        len: u64,
        data: &mut [u8],
    ) -> Status {
        self.cookie += 1;
        let cookie = self.cookie;
        let seg = Seg { addr: data.as_mut_ptr() as usize, len: data.len() };
        let request = Request { cookie, handle, op, offset, len, fua: false };
        assert!(self.engine.submit(&request, &[seg]));
        for _ in 0..1_000_000 {
            if let Some(done) = self.engine.next_done() {
                assert_eq!(done.cookie, cookie);
                return done.status;
            }
            self.turn();
        }
        panic!("a request never ended");
    }

    pub fn command(&mut self, command: Command) -> Result<Reply, Error> {
        self.cookie += 1;
        self.engine.command(self.cookie, command);
        for _ in 0..1_000_000 {
            if let Some((cookie, outcome)) = self.engine.next_reply() {
                assert_eq!(cookie, self.cookie);
                return outcome;
            }
            self.turn();
        }
        panic!("a command never ended");
    }

    pub fn create(&mut self, name: &str, size: u64, from: Option<SnapRef>) -> DiskId {
        let mut uuid = [0; 16];
        uuid[..name.len()].copy_from_slice(name.as_bytes());
        let name = Name::new(name).unwrap();
        let create = Command::CreateDisk { name, uuid: Uuid(uuid), size, from, time: 5 };
        let Reply::Disk(id) = self.command(create).unwrap() else { panic!("not a disk") };
        id
    }

    pub fn attach(&mut self, target: Target) -> Handle {
        let Reply::Handle(h) = self.command(Command::Attach(target)).unwrap() else {
            panic!("not a handle")
        };
        h
    }

    pub fn snapshot(&mut self, disk: DiskId, label: &str) -> SnapRef {
        let label = if label.is_empty() { Name::EMPTY } else { Name::new(label).unwrap() };
        let uuid = Uuid([self.cookie as u8; 16]);
        let Reply::Snapshot(snap) =
            self.command(Command::Snapshot { disk, uuid, label, time: 9 }).unwrap()
        else {
            panic!("not a snapshot")
        };
        SnapRef { disk, snap }
    }

    pub fn read(&mut self, handle: Handle, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0x5a; len];
        assert_eq!(self.request(handle, Op::Read, offset, &mut data), Status::Ok);
        data
    }

    pub fn write(&mut self, handle: Handle, offset: u64, byte: u8, len: usize) {
        assert_eq!(self.request(handle, Op::Write, offset, &mut vec![byte; len]), Status::Ok);
    }

    /// Waits until all deleted space is back.
    pub fn settle(&mut self) -> StoreInfo {
        for _ in 0..6 {
            self.command(Command::Checkpoint).unwrap();
        }
        while self.engine.busy() {
            self.turn();
        }
        self.events();
        self.engine.store_info()
    }
}
