//! What a crash leaves on the base device.
//!
//! Death of the daemon: what completed stays, what was in flight is drawn. Power cut: each
//! piece that is not safe is drawn too, so later writes may survive earlier ones. A drawn piece
//! is kept, lost, or torn at 512 bytes where the device allows that.

use super::base::{Base, Piece};
use super::pages::copy_sectors;
use super::plan::Lie;
use super::rng::mix;

/// How the engine came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// SIGKILL of the daemon; the device lives on.
    Kill,
    /// The power went.
    Power,
}

/// How the fate of pieces is drawn in one crash.
struct Draw {
    seed: u64,
    keep_permille: u64,
    /// One draw for a whole write, not one for each block.
    whole_writes: bool,
    /// Everything completed before this step is kept.
    kept_before: u64,
}

impl Base {
    /// Ends the life of whoever used the device. Returns true if completed writes may have been
    /// lost: a power cut, or a reopening after a failed flush.
    pub fn crash(&mut self, crash: Crash) -> bool {
        // A device that was pulled out has lost its cache.
        let crash = if std::mem::take(&mut self.gone) { Crash::Power } else { crash };
        self.materialize();
        let draw = self.draw_crash();
        let torn_whole = !self.traits.atomic_4k || self.lie == Lie::Tear;
        for (block, dirty) in &mut self.dirty {
            let mut page = dirty.durable.clone();
            for piece in &mut dirty.pieces {
                piece.mask &= match (piece.safe, piece.in_flight(), crash) {
                    (true, ..) => 0xFF,
                    (_, false, _) if piece.doomed => 0,
                    (_, false, Crash::Kill) if self.lie != Lie::Forget => 0xFF,
                    _ => draw.mask(piece, *block, torn_whole),
                };
                copy_sectors(&mut page, &piece.data, piece.mask);
                if piece.in_flight() {
                    piece.done = self.clock;
                }
            }
            dirty.pieces.retain(|piece| piece.mask != 0);
            self.pages.put(*block, page);
        }
        let lossy = self.reopen() || crash == Crash::Power;
        if lossy || !self.traits.volatile_cache {
            self.dirty.clear();
        }
        lossy
    }

    fn draw_crash(&mut self) -> Draw {
        let oldest = self
            .dirty
            .values()
            .flat_map(|dirty| dirty.pieces.iter().map(|piece| piece.done))
            .min()
            .map_or(self.clock, |done| done.min(self.clock));
        let in_order = self.rng.chance(250);
        let cut = self.rng.between(oldest, self.clock);
        Draw {
            seed: self.rng.next(),
            keep_permille: self.rng.pick(&[0, 100, 500, 500, 900, 1000]),
            whole_writes: self.rng.chance(400),
            kept_before: if in_order { cut } else { 0 },
        }
    }
}

impl Draw {
    /// Sectors that survive. A function of write and block, so that the two steps of one write
    /// share their fate.
    fn mask(&self, piece: &Piece, block: u64, torn_whole: bool) -> u8 {
        if piece.done < self.kept_before {
            return 0xFF;
        }
        let place = if self.whole_writes { 0 } else { block + 1 };
        let drawn = mix(mix(self.seed ^ piece.io) ^ place);
        let torn = (piece.cover != 0xFF || torn_whole) && drawn >> 20 & 3 == 0;
        if torn {
            (mix(drawn ^ block) >> 32) as u8
        } else if drawn % 1000 < self.keep_permille {
            0xFF
        } else {
            0
        }
    }
}
