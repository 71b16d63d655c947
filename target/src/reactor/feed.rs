//! How requests reach the engine when the base is RAM: a pipeline, so that copies overlap requests.
//!
//! ```text
//!  request n     ─► engine.submit ─► its block is asked for, a few lines after each step ...
//!  request n+1   ─►     ...            ... of the next requests
//!  request n+LAG ─►     ...       ─► request n is copied (its lines have come) and done
//! ```
//!
//! A random block of a store in RAM is in no cache. Fetched in one go, it keeps the core waiting as
//! long as the rest of the request takes; fetched a few lines at a time, it comes meanwhile. What is
//! left when no more requests come, the shard's turn copies as it does without this.

use lamina_bdev::{BaseOp, Engine, Request, Seg};

use crate::base::{Base, Operation, RamBase};
use crate::mem::far::{self, LINE};
use crate::vhost::Submit;

/// Operations that wait behind the newest while their blocks come.
const LAG: usize = 3;
/// Lines asked for at a time: more than a core keeps in flight would make it wait. A request has
/// four steps, so that its share is a block.
const LINES: usize = 16;
/// Bytes of an operation worth asking for: of a longer one the rest is seen coming.
const AHEAD_BYTES: usize = 4096;
/// Blocks asked for at a time, the oldest forgotten: it has been copied by now.
const SPANS: usize = LAG + 1;

/// Blocks that are to come, and how far they were asked for.
#[derive(Debug, Default)]
pub struct Ahead {
    spans: [(usize, usize); SPANS],
    /// Number of the first one, and of the next to be added.
    first: usize,
    next: usize,
}

impl Ahead {
    /// Adds the bytes from `addr`.
    fn add(&mut self, addr: usize, len: usize) {
        if self.next - self.first == SPANS {
            self.first += 1;
        }
        self.spans[self.next % SPANS] = (addr, addr + len.min(AHEAD_BYTES));
        self.next += 1;
    }

    /// Asks for the next few lines.
    #[inline]
    fn step(&mut self) {
        if self.first == self.next {
            return;
        }
        let (at, end) = &mut self.spans[self.first % SPANS];
        let until = (*at + LINES * LINE).min(*end);
        for line in (*at..until).step_by(LINE) {
            far::soon_read(line);
        }
        *at = until;
        if until == *end {
            self.first += 1;
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

impl Submit for Feed<'_> {
    fn submit(&mut self, request: &Request, segs: &[Seg]) -> bool {
        let before = self.engine.waiting_io();
        let taken = self.engine.submit(request, segs);
        let Base::Ram(ram) = &mut *self.base else { return taken };
        let started = self.engine.waiting_io() - before;
        for place in before..before + started {
            let Some(io) = self.engine.coming_io(place) else { break };
            if io.op == BaseOp::Read {
                self.ahead.add(ram.address(&Operation::from(io)), io.len as usize);
            }
        }
        self.ahead.step();
        for _ in 0..started {
            if self.engine.waiting_io() <= LAG {
                break;
            }
            run(self.engine, ram, self.segs);
            self.ahead.step();
        }
        taken
    }

    fn breathe(&mut self) {
        self.ahead.step();
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
mod tests {
    use super::*;

    #[test]
    fn every_line_is_asked_for_once_and_the_oldest_block_is_forgotten() {
        let mut ahead = Ahead::default();
        ahead.step();
        ahead.add(1 << 20, 4096);
        ahead.add(2 << 20, 100);
        for _ in 0..4096 / (LINES * LINE) {
            assert_eq!(ahead.first, 0);
            ahead.step();
        }
        assert_eq!((ahead.first, ahead.next), (1, 2));
        ahead.step();
        assert_eq!(ahead.first, 2);
        for n in 0..=SPANS {
            ahead.add(n << 20, 1 << 20);
        }
        assert_eq!(ahead.next - ahead.first, SPANS);
        assert_eq!(ahead.spans[ahead.first % SPANS], (1 << 20, (1 << 20) + AHEAD_BYTES));
    }
}
