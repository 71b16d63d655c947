//! What happened on the base device, and where a power cut may strike it.
//!
//! ```text
//!  events   w1 W1 w2 w3 W2 f4 W3 w5 F4 W5 ...     small: started, capital: completed
//!                             └────── a cut just before the flush ends: w1, w2 are safe (they had
//!                                     completed when it began); w3 and w5 may be there or not
//! ```
//!
//! Just before a flush ends is the worst moment of all since the flush before: most is uncertain,
//! most has been promised. On a base without a volatile cache the same holds just before each write
//! completes.

use super::image::{Image, PAGE, Page, PageId, Pool};

/// One block of a write.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Where.
    pub block: u64,
    /// What.
    pub page: PageId,
    /// Begins with the mark of metadata.
    pub metadata: bool,
}

/// One thing that happened; the number is that of the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A write was started.
    WriteStart(u32),
    /// It completed.
    WriteDone(u32),
    /// A flush was started.
    FlushStart(u32),
    /// It completed.
    FlushDone(u32),
    /// A request or command was given or answered: only to count.
    Note,
}

/// Everything that happened on one device, from one image on.
#[derive(Default)]
pub struct Log {
    /// Time of the first event; what lies before it has been recorded elsewhere.
    pub start: usize,
    events: Vec<Event>,
    units: Vec<Unit>,
    /// By number of the operation: its units.
    ops: Vec<std::ops::Range<usize>>,
    /// Operations of an earlier life that had completed and are not certain: the first ones.
    carried: u32,
}

/// True if the page is a block of metadata: the mark stands first, or behind a node's links.
fn is_metadata(page: &Page) -> bool {
    page[..4] == *b"LMNA" || page[3072..3076] == *b"LMNA"
}

/// A moment at which power may fail.
pub struct Cut {
    /// When: all earlier events have happened.
    pub at: usize,
    /// What is on the medium for certain.
    pub certain: Image,
    /// What may be there or not, in the order of their starts.
    pub uncertain: Vec<Unit>,
}

impl Log {
    /// An empty log that counts time from `start` on.
    pub fn new(start: usize) -> Log {
        Log { start, ..Log::default() }
    }

    /// The log of a device whose cache still holds `units` of an earlier life.
    pub fn carrying(start: usize, units: &[Unit]) -> Log {
        let ops = (0..units.len()).map(|at| at..at + 1).collect();
        Log { start, units: units.to_vec(), ops, carried: units.len() as u32, events: Vec::new() }
    }

    /// Events so far: the time of whatever happens next.
    pub fn now(&self) -> usize {
        self.start + self.events.len()
    }

    /// Counts something that is no I/O; returns its time.
    pub fn note(&mut self) -> usize {
        self.events.push(Event::Note);
        self.now() - 1
    }

    /// A write of whole blocks starts.
    pub fn write(&mut self, pool: &mut Pool, block: u64, bytes: &[u8]) -> u32 {
        assert!(bytes.len().is_multiple_of(PAGE), "writes are whole blocks");
        let first = self.units.len();
        for (index, chunk) in bytes.chunks_exact(PAGE).enumerate() {
            let page: &Page = chunk.try_into().expect("a chunk is a page");
            let metadata = is_metadata(page);
            let block = block + index as u64;
            self.units.push(Unit { block, page: pool.add(page), metadata });
        }
        let number = self.ops.len() as u32;
        self.ops.push(first..self.units.len());
        self.events.push(Event::WriteStart(number));
        number
    }

    /// A write completed; these are its blocks.
    pub fn write_done(&mut self, number: u32) -> &[Unit] {
        self.events.push(Event::WriteDone(number));
        &self.units[self.ops[number as usize].clone()]
    }

    /// A flush starts.
    pub fn flush(&mut self) -> u32 {
        let number = self.ops.len() as u32;
        self.ops.push(0..0);
        self.events.push(Event::FlushStart(number));
        number
    }

    /// A flush completed.
    pub fn flush_done(&mut self, number: u32) {
        self.events.push(Event::FlushDone(number));
    }

    /// True if a flush that began at `from` or later ended before `to`.
    pub fn flushed_between(&self, from: usize, to: usize) -> bool {
        let to = (to - self.start).min(self.events.len());
        let events = &self.events[from.saturating_sub(self.start).min(to)..to];
        let begun = |number: u32| events.contains(&Event::FlushStart(number));
        events.iter().any(|event| match event {
            Event::FlushDone(number) => begun(*number),
            _ => false,
        })
    }

    /// All moments at which power is cut, from `start` on.
    pub fn cuts(&self, pool: &Pool, start: &Image, volatile: bool) -> Vec<Cut> {
        let mut cuts = Vec::new();
        let mut certain = start.clone();
        // Not certain yet: number, and whether it has completed.
        let mut open: Vec<(u32, bool)> = (0..self.carried).map(|n| (n, true)).collect();
        let mut flushing: Vec<(u32, Vec<u32>)> = Vec::new();
        for (at, event) in self.events.iter().enumerate() {
            match *event {
                Event::Note => {}
                Event::WriteStart(number) => open.push((number, false)),
                Event::WriteDone(number) => {
                    if volatile {
                        let found = open.iter_mut().find(|(n, _)| *n == number);
                        found.expect("a write that completes was started").1 = true;
                    } else {
                        cuts.push(self.cut(at, &certain, &open));
                        self.settle(pool, &mut certain, &mut open, &[number]);
                    }
                }
                Event::FlushStart(number) => {
                    let covered = open.iter().filter(|(_, done)| *done).map(|(n, _)| *n).collect();
                    flushing.push((number, covered));
                }
                Event::FlushDone(number) => {
                    cuts.push(self.cut(at, &certain, &open));
                    let at = flushing.iter().position(|(n, _)| *n == number);
                    let (_, covered) = flushing.swap_remove(at.expect("a flush was started"));
                    self.settle(pool, &mut certain, &mut open, &covered);
                }
            }
        }
        cuts.push(self.cut(self.events.len(), &certain, &open));
        cuts
    }

    fn cut(&self, at: usize, certain: &Image, open: &[(u32, bool)]) -> Cut {
        let units = |number: &(u32, bool)| self.units[self.ops[number.0 as usize].clone()].iter();
        let uncertain = open.iter().flat_map(units).copied().collect();
        Cut { at: self.start + at, certain: certain.clone(), uncertain }
    }

    fn settle(&self, pool: &Pool, certain: &mut Image, open: &mut Vec<(u32, bool)>, safe: &[u32]) {
        for number in safe {
            for unit in &self.units[self.ops[*number as usize].clone()] {
                certain.put(pool, unit.block, unit.page);
            }
        }
        open.retain(|(number, _)| !safe.contains(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The picture above.
    #[test]
    fn a_flush_covers_what_had_completed_when_it_began() {
        let (mut pool, mut log) = (Pool::new(), Log::default());
        let page = |n: u8| [n; PAGE];
        let w1 = log.write(&mut pool, 1, &page(1));
        log.write_done(w1);
        let w2 = log.write(&mut pool, 2, &page(2));
        let w3 = log.write(&mut pool, 3, &page(3));
        log.write_done(w2);
        let from = log.now();
        let f = log.flush();
        log.write_done(w3);
        let w5 = log.write(&mut pool, 5, &page(5));
        log.flush_done(f);
        log.write_done(w5);
        assert!(log.flushed_between(from, log.now()) && !log.flushed_between(from + 1, log.now()));
        let start = Image::new(8);
        let cuts = log.cuts(&pool, &start, true);
        let shape: Vec<Vec<u64>> =
            cuts.iter().map(|c| c.uncertain.iter().map(|u| u.block).collect()).collect();
        assert_eq!(shape, [vec![1, 2, 3, 5], vec![3, 5]]);
        assert_eq!((cuts[1].certain.at(1), cuts[1].certain.at(3)), (1, 0));
        let steady = log.cuts(&pool, &start, false);
        let shape: Vec<usize> = steady.iter().map(|c| c.uncertain.len()).collect();
        assert_eq!(shape, [1, 2, 1, 1, 1, 0]);
    }
}
