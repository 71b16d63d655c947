//! Blocks that the base fails to read while a store is opened.
//!
//! ```text
//!  read fails ─ again, alone ─ still? ─┬─ both superblocks, the journal: not opened (may come
//!  back)
//!                                      ├─ one copy of a pair: the other one counts, if it may
//!                                      ├─ both copies: catalogue ─► found out again (`space`)
//!                                      │               record, log ─► that disk is not there
//!                                      └─ map node, bitmap, for a record of the journal: damaged,
//!                                         if the device answers for another block just then
//! ```
//!
//! A disk that cannot be read now may be readable at the next open, and is served again then. But
//! if the journal, which is trimmed meanwhile, held writes to it, it would lack them: then its
//! record is committed as one that it is not, so it stays away for good.

use super::{LANE_BLOCKS, Lane, Recovery, Stage, unreadable};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind};

impl Engine {
    /// Blocks that cannot be read count as damaged. Without any superblock nothing can be said.
    pub(super) fn do_without(&mut self, recovery: &mut Recovery, lane: usize) {
        let Lane { block, gone, .. } = recovery.lanes[lane];
        if gone == 0 || matches!(recovery.stage, Stage::Spare | Stage::Space | Stage::Journal) {
            return;
        }
        let both = gone & gone >> 1 & 0x5555_5555;
        if both != 0 && recovery.stage == Stage::Superblock {
            return self.open_failed(unreadable(block));
        }
        for at in (0..LANE_BLOCKS).filter(|at| gone >> at & 1 == 1) {
            recovery.buffer.bytes_mut(Recovery::page(lane, at)).fill(0);
            let other = match both >> (at & !1) & 1 {
                0 => "its other copy is used",
                _ => "nor can its other copy",
            };
            let text = format!("{}; {other}", unreadable(block + at as u64).message);
            self.event(true, text);
        }
        let first = self.superblock.geometry.records;
        for at in (0..LANE_BLOCKS as u64).filter(|at| both >> at & 1 == 1) {
            match recovery.stage {
                Stage::Records => recovery.unread.push(((block + at - first) / 2) as u32),
                Stage::Logs => recovery.unread.push(recovery.cursor as u32),
                // What it says can be found out otherwise.
                _ => {}
            }
        }
    }

    /// Something that a record of the journal needs cannot be read. True: the device answers for
    /// another block, so that one is damaged. False: ask again.
    ///
    /// # Errors
    /// `Io`: it was asked for already, and something else cannot be read.
    pub(super) fn tell_block_from_device(
        &mut self,
        recovery: &mut Recovery,
        why: String,
    ) -> Result<bool, Error> {
        if recovery.device_answers {
            return Err(Error::new(ErrorKind::Io, why));
        }
        let superblock = self.checkpoint.homes.at[self.checkpoint.homes.newest];
        recovery.device_answers = self.have(recovery, superblock, 1);
        Ok(recovery.device_answers)
    }

    /// Acknowledged writes to a disk cannot be put where they belong, since it cannot be read now.
    pub(super) fn lack_writes(&mut self, recovery: &mut Recovery, of: impl Fn(u32) -> bool) {
        for slot in recovery.unread.extract_if(.., |slot| of(*slot)) {
            recovery.given_up.push(slot);
            let text = format!(
                "the disk in record slot {slot} lacks acknowledged writes from now on: it is given up, even if it can be read again"
            );
            self.event(true, text);
        }
    }

    /// The opening checkpoint trims the journal, and says that those disks are not there.
    pub(super) fn give_up_disks(&mut self, recovery: &Recovery) {
        for slot in &recovery.given_up {
            let index = self.superblock.geometry.record_pair(u64::from(*slot));
            let generation = &mut self.checkpoint.generations[index];
            self.superblock.sums.change(index, *generation, *generation + 1);
            *generation += 1;
        }
    }
}
