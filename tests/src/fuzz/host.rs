//! A host over a device that is copied on write: thousands of damaged stores out of one image.
//!
//! ```text
//!  image (shared, never changed) ◀── blocks that were written or damaged ◀── engine
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use lamina_bdev::{
    BaseOp, BaseTraits, Command, Config, Engine, EngineState, Error, Handle, Op, Reply, Request,
    Seg, Status, StoreLabel, Tag,
};

use crate::sim::memory::{Buffer, read_segs, write_segs};

/// Bytes in a block of the store.
pub const BLOCK: usize = 4096;
/// The bytes of one.
pub type Block = [u8; BLOCK];

/// Turns without an end after which the engine hangs.
const TURNS_MAX: usize = 50_000;
/// Virtual time that a turn takes, ns.
const TURN_NS: u64 = 10_000_000;

/// The region of one shard.
#[derive(Clone)]
pub struct Device {
    image: Rc<Vec<u8>>,
    changed: BTreeMap<u64, Box<Block>>,
}

impl Device {
    /// A device that shows `image`.
    pub fn new(image: Vec<u8>) -> Device {
        assert!(image.len().is_multiple_of(BLOCK), "a device is whole blocks");
        Device { image: Rc::new(image), changed: BTreeMap::new() }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        (self.image.len() / BLOCK) as u64
    }

    /// A block as it is now.
    pub fn block(&self, number: u64) -> &Block {
        match self.changed.get(&number) {
            Some(block) => block,
            None => {
                let at = number as usize * BLOCK;
                self.image[at..at + BLOCK].try_into().expect("a block")
            }
        }
    }

    /// The same to change.
    pub fn block_mut(&mut self, number: u64) -> &mut Block {
        let image = &self.image;
        self.changed.entry(number).or_insert_with(|| {
            let at = number as usize * BLOCK;
            Box::new(image[at..at + BLOCK].try_into().expect("a block"))
        })
    }

    /// All of it as one image again.
    pub fn flatten(&self) -> Vec<u8> {
        (0..self.blocks()).flat_map(|number| *self.block(number)).collect()
    }

    fn transfer(&mut self, op: BaseOp, offset: u64, segs: &[Seg]) {
        let len: usize = segs.iter().map(|seg| seg.len).sum();
        let mut at = 0;
        while at < len {
            let place = offset as usize + at;
            let (number, inner) = ((place / BLOCK) as u64, place % BLOCK);
            assert!(number < self.blocks(), "base I/O at {offset}+{len} leaves the region");
            let count = (BLOCK - inner).min(len - at);
            let range = inner..inner + count;
            match op {
                BaseOp::Read => write_segs(segs, at, &self.block(number)[range]),
                BaseOp::Write => read_segs(segs, at, &mut self.block_mut(number)[range]),
                BaseOp::Flush => {}
            }
            at += count;
        }
    }
}

/// One engine on one device. Whatever takes for ever is a panic.
pub struct Host {
    engine: Engine,
    device: Device,
    now: u64,
    flights: VecDeque<(Tag, BaseOp, u64, Vec<Seg>)>,
    segs: Vec<Seg>,
    /// Whether a severe line was said since it was opened.
    pub alarmed: bool,
}

impl Host {
    /// Opens the store on `device`.
    ///
    /// # Errors
    /// The engine says that it cannot.
    ///
    /// # Panics
    /// Opening does not come to an end.
    pub fn open(device: Device, label: &StoreLabel, traits: BaseTraits) -> Result<Host, String> {
        let config = Config { slots: 16, cache_bytes: 1 << 20 };
        let mut host = Host {
            engine: Engine::open(config, traits, label, 0),
            device,
            now: 0,
            flights: VecDeque::new(),
            segs: Vec::new(),
            alarmed: false,
        };
        for _ in 0..TURNS_MAX {
            match host.engine.state() {
                EngineState::Ready => return Ok(host),
                EngineState::Failed => {
                    let error = host.engine.open_error().expect("a failure has a reason");
                    assert!(!error.message.is_empty(), "an error says something");
                    return Err(error.message.clone());
                }
                EngineState::Opening => host.turn(),
            }
        }
        panic!("opening does not come to an end");
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The device as a crash now leaves it.
    pub fn crash(self) -> Device {
        self.device
    }

    /// The same, without the crash.
    pub fn device_now(&self) -> Device {
        self.device.clone()
    }

    fn turn(&mut self) {
        self.now += TURN_NS;
        self.engine.tick(self.now);
        while let Some(io) = self.engine.next_io() {
            self.engine.gather(&io, &mut self.segs);
            self.flights.push_back((io.tag, io.op, io.offset, self.segs.clone()));
        }
        for _ in 0..self.flights.len() {
            let (tag, op, offset, segs) = self.flights.pop_front().expect("counted");
            self.device.transfer(op, offset, &segs);
            self.engine.complete(tag, Ok(()));
        }
        while let Some(event) = self.engine.next_event() {
            self.alarmed |= event.severe;
        }
    }

    /// Lets `turns` go by.
    pub fn idle(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// The engine's.
    ///
    /// # Panics
    /// There is no answer.
    pub fn ask(&mut self, command: Command) -> Result<Reply, Error> {
        let text = format!("{command:?}");
        self.engine.command(1, command);
        for _ in 0..TURNS_MAX {
            if let Some((_, outcome)) = self.engine.next_reply() {
                return outcome;
            }
            self.turn();
        }
        panic!("never answered: {text}");
    }

    /// Gives a request of `len` bytes and waits. Data written is `fill`, data read is dropped.
    ///
    /// # Panics
    /// There is no answer.
    pub fn request(&mut self, handle: Handle, op: Op, offset: u64, len: u64, fill: u8) -> Status {
        let moves_data = matches!(op, Op::Read | Op::Write);
        let buffer = Buffer::new(&[if moves_data { len as usize } else { 0 }], 0);
        buffer.store(&vec![fill; buffer.len()]);
        let segs = if moves_data { buffer.segs() } else { &[] };
        let request = Request { cookie: 7, handle, op, offset, len, fua: false };
        let mut taken = false;
        for _ in 0..TURNS_MAX {
            taken = taken || self.engine.submit(&request, segs);
            if let Some(done) = self.engine.next_done() {
                assert!(buffer.canaries_intact(), "memory beside the request was written");
                return done.status;
            }
            self.turn();
        }
        panic!("never answered: {request:?}");
    }
}
