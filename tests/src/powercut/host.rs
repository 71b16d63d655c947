//! A host that drives one engine over an [`Image`] and records what it does there.
//!
//! ```text
//!  turn:  tick ─▶ start what the engine wants ─▶ complete some of it ─▶ take answers
//! ```

use std::collections::VecDeque;

use lamina_bdev::{
    BaseOp, BaseTraits, Command, CommandDone, Config, Done, Engine, EngineState, Handle, Op,
    Request, Seg, StoreLabel, Tag,
};

use super::image::{Image, PAGE, Page, Pool};
use super::log::Log;
use crate::sim::memory::{Buffer, read_segs, write_segs};

/// Turns without an end after which the engine hangs.
const TURNS_MAX: usize = 100_000;

/// In which order base operations complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// All that are in flight, the oldest first, in one turn.
    Together,
    /// The newest alone, one a turn.
    Newest,
}

struct Flight {
    tag: Tag,
    op: BaseOp,
    offset: u64,
    segs: Vec<Seg>,
    number: u32,
}

/// One engine on one device.
pub struct Host {
    engine: Engine,
    /// What the device shows.
    pub image: Image,
    /// What happened.
    pub log: Log,
    flights: VecDeque<Flight>,
    order: Order,
    now: u64,
    done: Vec<Done>,
    replies: Vec<CommandDone>,
    segs: Vec<Seg>,
    scratch: Vec<u8>,
    /// What the engine called severe since it was opened.
    pub said: Vec<String>,
}

/// The engine's sizes: the smallest, so that a state costs little.
const CONFIG: Config = Config { slots: 16, cache_bytes: 1 << 20 };

impl Host {
    /// Opens the store on `image` and recovers it; what happens goes into `log`.
    ///
    /// # Errors
    /// The engine says that it cannot.
    pub fn open(
        pool: &mut Pool,
        image: Image,
        label: &StoreLabel,
        traits: BaseTraits,
        order: Order,
        log: Log,
    ) -> Result<Host, String> {
        let mut host = Host {
            engine: Engine::open(CONFIG, traits, label, 0),
            image,
            log,
            flights: VecDeque::new(),
            order,
            now: 0,
            done: Vec::new(),
            replies: Vec::new(),
            segs: Vec::new(),
            scratch: Vec::new(),
            said: Vec::new(),
        };
        for _ in 0..TURNS_MAX {
            match host.engine.state() {
                EngineState::Ready => return Ok(host),
                EngineState::Failed => {
                    return Err(format!("it does not open: {:?}", host.engine.open_error()));
                }
                EngineState::Opening => host.turn(pool),
            }
        }
        Err("recovery does not come to an end".to_string())
    }

    /// What happened so far does not count: time starts anew, where it started.
    pub fn begin_log(&mut self) {
        assert!(self.flights.is_empty(), "nothing is in flight");
        self.log = Log::new(self.log.start);
        self.log.note();
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Gives a request; false: not now.
    pub fn submit(&mut self, request: &Request, segs: &[Seg]) -> bool {
        self.engine.submit(request, segs)
    }

    /// Gives a command.
    pub fn command(&mut self, cookie: u64, command: Command) {
        self.engine.command(cookie, command);
    }

    /// One round.
    pub fn turn(&mut self, pool: &mut Pool) {
        self.now += 1_000;
        self.engine.tick(self.now);
        self.start(pool);
        match self.order {
            Order::Together => {
                for _ in 0..self.flights.len() {
                    let flight = self.flights.pop_front().expect("counted");
                    self.complete(pool, flight);
                }
            }
            Order::Newest => {
                if let Some(flight) = self.flights.pop_back() {
                    self.complete(pool, flight);
                }
            }
        }
        while let Some(event) = self.engine.next_event() {
            if event.severe {
                self.said.push(event.text);
            }
        }
    }

    /// True if another turn may change something.
    pub fn busy(&self) -> bool {
        self.engine.busy() || !self.flights.is_empty()
    }

    /// The requests that ended since the last call.
    pub fn take_done(&mut self) -> Vec<Done> {
        while let Some(done) = self.engine.next_done() {
            self.done.push(done);
        }
        std::mem::take(&mut self.done)
    }

    /// The commands that ended since the last call.
    pub fn take_replies(&mut self) -> Vec<CommandDone> {
        while let Some(reply) = self.engine.next_reply() {
            self.replies.push(reply);
        }
        std::mem::take(&mut self.replies)
    }

    fn start(&mut self, pool: &mut Pool) {
        while let Some(io) = self.engine.next_io() {
            self.engine.gather(&io, &mut self.segs);
            let number = match io.op {
                BaseOp::Read => 0,
                BaseOp::Flush => self.log.flush(),
                BaseOp::Write => {
                    self.scratch.resize(io.len as usize, 0);
                    read_segs(&self.segs, 0, &mut self.scratch);
                    assert!(io.offset.is_multiple_of(PAGE as u64), "writes are whole blocks");
                    self.log.write(pool, io.offset / PAGE as u64, &self.scratch)
                }
            };
            let (tag, op, offset) = (io.tag, io.op, io.offset);
            self.flights.push_back(Flight { tag, op, offset, segs: self.segs.clone(), number });
        }
    }

    fn complete(&mut self, pool: &mut Pool, flight: Flight) {
        match flight.op {
            BaseOp::Read => self.read(pool, &flight),
            BaseOp::Flush => self.log.flush_done(flight.number),
            BaseOp::Write => {
                for unit in self.log.write_done(flight.number) {
                    self.image.put(pool, unit.block, unit.page);
                }
            }
        }
        self.engine.complete(flight.tag, Ok(()));
    }

    fn read(&mut self, pool: &Pool, flight: &Flight) {
        let len: usize = flight.segs.iter().map(|seg| seg.len).sum();
        let mut at = 0;
        while at < len {
            let offset = flight.offset as usize + at;
            let (block, inner) = (offset / PAGE, offset % PAGE);
            let count = (PAGE - inner).min(len - at);
            let page: &Page = pool.page(self.image.at(block as u64));
            write_segs(&flight.segs, at, &page[inner..inner + count]);
            at += count;
        }
    }

    /// Gives a command and waits for its answer, which nothing else may give meanwhile.
    ///
    /// # Errors
    /// The engine's, or that it hangs.
    pub fn ask(
        &mut self,
        pool: &mut Pool,
        command: Command,
    ) -> Result<lamina_bdev::Reply, lamina_bdev::Error> {
        self.command(u64::MAX, command);
        for _ in 0..TURNS_MAX {
            if let Some((_, outcome)) = self.take_replies().pop() {
                return outcome;
            }
            self.turn(pool);
        }
        let text = "a command is never answered";
        Err(lamina_bdev::Error::new(lamina_bdev::ErrorKind::Io, text))
    }

    /// Reads bytes of an attachment into `buffer` and waits.
    ///
    /// # Errors
    /// The read failed.
    pub fn read_into(
        &mut self,
        pool: &mut Pool,
        handle: Handle,
        offset: u64,
        buffer: &Buffer,
        len: usize,
    ) -> Result<(), String> {
        let (op, fua) = (Op::Read, false);
        let request = Request { cookie: 0, handle, op, offset, len: len as u64, fua };
        let seg = Seg { addr: buffer.segs()[0].addr, len };
        if !self.submit(&request, &[seg]) {
            return Err("a read is not taken".to_string());
        }
        for _ in 0..TURNS_MAX {
            if let Some(done) = self.take_done().pop() {
                return match done.status {
                    lamina_bdev::Status::Ok => Ok(()),
                    status => Err(format!("reading at {offset} ended with {status:?}")),
                };
            }
            self.turn(pool);
        }
        Err("a read never ends".to_string())
    }
}
