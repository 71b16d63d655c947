//! What operations do to the simulated device: when they read or change its pages, and what their
//! end means for what would survive a power cut.

use std::rc::Rc;

use lamina_bdev::{BaseError, BaseOp};

use super::base::{Base, Dirty, Flight, IN_FLIGHT, Piece};
use super::memory::{read_segs, write_segs};
use super::pages::{PAGE, copy_sectors};
use super::plan::Lie;
use super::rng::mix;

impl Base {
    /// One of the two steps in which an operation reads or changes the pages.
    pub(super) fn take_effect(&mut self, flight: &mut Flight, early: bool) {
        let done = if early { &mut flight.early_done } else { &mut flight.late_done };
        if std::mem::replace(done, true) || flight.op == BaseOp::Flush {
            return;
        }
        let (first, last) = blocks(flight.offset, flight.len);
        for block in first..=last {
            let cover = cover(flight.offset, flight.len, block);
            let mask = self.step_mask(flight, block, early) & cover;
            if mask == 0 {
                continue;
            }
            match flight.op {
                BaseOp::Read => self.read_sectors(flight, block, mask),
                BaseOp::Write => self.write_sectors(flight, block, mask, cover),
                BaseOp::Flush => unreachable!("a flush has no pages"),
            }
        }
    }

    /// Sectors of `block` that belong to this step.
    fn step_mask(&self, flight: &Flight, block: u64, early: bool) -> u8 {
        let Some(split) = flight.split else {
            return if early { 0 } else { 0xFF };
        };
        let drawn = mix(split ^ block);
        // A write that fails leaves whole blocks old or new, like one that a crash cuts short.
        let whole = self.traits.atomic_rw || flight.fails.is_some() && self.traits.atomic_4k;
        let first = match (whole, drawn & 1) {
            (true, 0) => 0,
            (true, _) => 0xFF,
            (false, _) => (drawn >> 8) as u8,
        };
        if early {
            first
        } else if flight.early_done {
            !first
        } else {
            0xFF
        }
    }

    fn read_sectors(&mut self, flight: &Flight, block: u64, mask: u8) {
        let page = self.pages.share(block);
        if mask == 0xFF {
            let skip = block * PAGE as u64 - flight.offset;
            write_segs(&flight.segs, skip as usize, &page[..]);
            return;
        }
        for sector in (0..8).filter(|s| mask & 1 << s != 0) {
            let skip = block * PAGE as u64 + sector * 512 - flight.offset;
            let at = sector as usize * 512;
            write_segs(&flight.segs, skip as usize, &page[at..at + 512]);
        }
    }

    fn write_sectors(&mut self, flight: &Flight, block: u64, mask: u8, cover: u8) {
        if self.faults.harm.any() || !self.harms.is_empty() {
            self.harm_write(block);
        }
        let pages = &mut self.pages;
        let dirty = self
            .dirty
            .entry(block)
            .or_insert_with(|| Dirty { durable: pages.share(block), pieces: Vec::new() });
        let start = block * PAGE as u64;
        if mask == 0xFF {
            let mut page = [0; PAGE];
            read_segs(&flight.segs, (start - flight.offset) as usize, &mut page[..]);
            pages.put(block, Rc::new(page));
        } else {
            let page = pages.page_mut(block);
            for sector in (0..8).filter(|s| mask & 1 << s != 0) {
                let skip = start + sector as u64 * 512 - flight.offset;
                let range = sector * 512..sector * 512 + 512;
                read_segs(&flight.segs, skip as usize, &mut page[range]);
            }
        }
        // Only the sectors of `mask` count.
        let data = pages.share(block);
        dirty.pieces.push(Piece {
            io: flight.number,
            mask,
            cover,
            done: IN_FLIGHT,
            safe: false,
            doomed: false,
            data,
        });
    }

    pub(super) fn finish(&mut self, flight: &mut Flight) -> Result<(), BaseError> {
        if self.gone {
            flight.fails = Some(BaseError::Gone);
        }
        // What a failed flush has dropped may be anybody's, so the host fails the others' as well.
        let told = self.lie != Lie::Alone && self.flush_failed.is_some_and(|by| by != flight.owner);
        if flight.op == BaseOp::Flush && told && flight.fails.is_none() {
            flight.fails = Some(BaseError::Io);
        }
        match flight.op {
            BaseOp::Read if flight.fails.is_none() => {
                self.harm_read(flight.offset, flight.len, &flight.segs);
            }
            BaseOp::Read => {}
            BaseOp::Write => self.finish_write(flight),
            BaseOp::Flush => self.finish_flush(flight),
        }
        let Some(error) = flight.fails else { return Ok(()) };
        let injected = match flight.owner == self.holder {
            true => &mut self.injected,
            false => &mut self.mail.entry(flight.owner).or_default().injected,
        };
        match flight.op {
            BaseOp::Read => injected.reads += 1,
            BaseOp::Write if error == BaseError::NoSpace && self.faults.full > 0 => {
                injected.full += 1;
            }
            BaseOp::Write => injected.writes += 1,
            BaseOp::Flush => {
                injected.flushes += 1;
                self.flush_failed.get_or_insert(flight.owner);
            }
        }
        Err(error)
    }

    fn finish_write(&mut self, flight: &Flight) {
        let (first, last) = blocks(flight.offset, flight.len);
        for block in first..=last {
            let Some(dirty) = self.dirty.get_mut(&block) else { continue };
            for piece in dirty.pieces.iter_mut().filter(|p| p.io == flight.number) {
                piece.done = self.clock;
                piece.safe = !self.traits.volatile_cache;
            }
            if fold(dirty) {
                self.dirty.remove(&block);
            }
        }
        if first == last && flight.fails.is_none() {
            self.harm_written(first);
        }
    }

    /// A flush covers what completed before it began; one that fails may drop that for good.
    fn finish_flush(&mut self, flight: &Flight) {
        let drop_permille =
            if flight.fails.is_some() { self.rng.pick(&[0, 300, 1000]) } else { 0u64 };
        if self.lie == Lie::Flush {
            return;
        }
        let drop_seed = self.rng.next();
        self.dirty.retain(|block, dirty| {
            for piece in dirty.pieces.iter_mut().filter(|p| p.done < flight.began && !p.safe) {
                if flight.fails.is_none() {
                    piece.safe = !piece.doomed;
                } else {
                    // The same for both steps of a write.
                    let drawn = mix(mix(drop_seed ^ piece.io) ^ *block) % 1000;
                    piece.doomed |= drawn < drop_permille;
                }
            }
            !fold(dirty)
        });
    }
}

/// Moves the safe pieces at the front into the durable page; true if no piece is left.
fn fold(dirty: &mut Dirty) -> bool {
    let safe = dirty.pieces.iter().take_while(|piece| piece.safe).count();
    for piece in dirty.pieces.drain(..safe) {
        copy_sectors(&mut dirty.durable, &piece.data, piece.mask);
    }
    dirty.pieces.is_empty()
}

fn blocks(offset: u64, len: u32) -> (u64, u64) {
    (offset / PAGE as u64, (offset + u64::from(len) - 1) / PAGE as u64)
}

/// Sectors of `block` inside a byte range.
pub(super) fn cover(offset: u64, len: u32, block: u64) -> u8 {
    let start = block * PAGE as u64;
    (0..8u64)
        .filter(|sector| {
            let at = start + sector * 512;
            at >= offset && at < offset + u64::from(len)
        })
        .fold(0, |mask, sector| mask | 1 << sector)
}
