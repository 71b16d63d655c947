//! Comparing the data of records that no completed flush covers with their checksums.

use super::{LANE_BLOCKS, LANES, Recovery, Stage};
use crate::canary::{Canary, planted};
use crate::engine::Engine;
use crate::error::Error;
use crate::format::journal::Record;
use crate::replays::Entry;

impl Engine {
    /// Compares the data of unflushed records with their checksums, several at a time.
    pub(super) fn recover_verify(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let mut waiting = false;
        for lane in 0..LANES {
            if recovery.lanes[lane].arrived {
                self.verify_arrived(recovery, lane);
            }
            if !recovery.lanes[lane].verifying && !self.verify_next(recovery, lane) {
                continue;
            }
            waiting = true;
        }
        if !waiting {
            self.stats.dropped_records = recovery.records.dropped();
            if planted(Canary::ReplayReversed) {
                recovery.records.reverse();
            }
            recovery.enter(Stage::Apply);
            return Ok(true);
        }
        Ok(false)
    }

    fn verify_arrived(&mut self, recovery: &mut Recovery, lane: usize) {
        let mut l = recovery.lanes[lane];
        l.arrived = false;
        for i in 0..l.count {
            l.crc = crate::crc32c::crc32c_append(l.crc, recovery.block(lane, i));
        }
        l.done += l.count as u64;
        let entry = recovery.records.get(l.record).map(|r| r.entry);
        let Some(Entry::Record(Record::Write { pba, len, crc, .. })) = entry else {
            unreachable!("only writes are verified")
        };
        recovery.lanes[lane] = l;
        if l.done < u64::from(len) {
            let count = (u64::from(len) - l.done).min(LANE_BLOCKS as u64);
            self.recover_read(recovery, lane, pba + l.done, count as usize);
            return;
        }
        if l.crc != crc && !planted(Canary::DataUnchecked) {
            recovery.records.drop_record(l.record);
        }
        recovery.lanes[lane].verifying = false;
    }

    /// Gives the lane the next record to verify. False: there is none.
    fn verify_next(&mut self, recovery: &mut Recovery, lane: usize) -> bool {
        while let Some(replay) = recovery.records.get(recovery.cursor as usize) {
            let at = recovery.cursor as usize;
            recovery.cursor += 1;
            let Entry::Record(Record::Write { pba, len, .. }) = replay.entry else { continue };
            if !replay.check || !self.lawful_run(pba, u64::from(len)) {
                continue;
            }
            let l = &mut recovery.lanes[lane];
            (l.record, l.done, l.crc, l.verifying) = (at, 0, 0, true);
            let count = usize::from(len).min(LANE_BLOCKS);
            self.recover_read(recovery, lane, pba, count);
            return true;
        }
        false
    }
}
