//! What a queue has moved, for the SMART log of its subsystem: written by its reactor alone, once a
//! turn, and read by the service thread.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lamina_nvmf::controller::Usage;
use lamina_nvmf::wire::Status;
use lamina_nvmf::wire::opcode::nvm;

/// Status code type of media and data integrity errors.
const MEDIA: u16 = 2;

/// The counters of one queue, as others see them.
#[derive(Debug, Default)]
pub struct QueueUsage {
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    media_errors: AtomicU64,
    outstanding: AtomicU32,
}

impl QueueUsage {
    /// The values now.
    pub fn usage(&self) -> Usage {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Usage {
            bytes_read: value(&self.bytes_read),
            bytes_written: value(&self.bytes_written),
            reads: value(&self.reads),
            writes: value(&self.writes),
            media_errors: value(&self.media_errors),
        }
    }

    /// Commands were under way at the end of its last turn.
    pub fn is_busy(&self) -> bool {
        self.outstanding.load(Ordering::Relaxed) > 0
    }

    /// Shows the values of `tally`.
    pub fn show(&self, tally: &Usage, outstanding: u32) {
        self.reads.store(tally.reads, Ordering::Relaxed);
        self.writes.store(tally.writes, Ordering::Relaxed);
        self.bytes_read.store(tally.bytes_read, Ordering::Relaxed);
        self.bytes_written.store(tally.bytes_written, Ordering::Relaxed);
        self.media_errors.store(tally.media_errors, Ordering::Relaxed);
        self.outstanding.store(outstanding, Ordering::Relaxed);
    }
}

/// Enters a command that has ended with `status` and moved `bytes`.
pub fn count(tally: &mut Usage, opcode: u8, status: Status, bytes: u64) {
    if !status.is_ok() {
        tally.media_errors += u64::from(status.code() >> 8 & 7 == MEDIA);
        return;
    }
    match opcode {
        nvm::READ | nvm::COMPARE => {
            tally.reads += 1;
            tally.bytes_read += bytes;
        }
        nvm::WRITE => {
            tally.writes += 1;
            tally.bytes_written += bytes;
        }
        _ => {}
    }
}

/// Adds what another queue has moved.
pub fn add(sum: &mut Usage, more: &Usage) {
    sum.bytes_read += more.bytes_read;
    sum.bytes_written += more.bytes_written;
    sum.reads += more.reads;
    sum.writes += more.writes;
    sum.media_errors += more.media_errors;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_succeeds_is_counted_by_its_kind_and_damage_as_such() {
        let mut tally = Usage::default();
        count(&mut tally, nvm::READ, Status::SUCCESS, 512);
        count(&mut tally, nvm::COMPARE, Status::SUCCESS, 4096);
        count(&mut tally, nvm::WRITE, Status::SUCCESS, 8192);
        count(&mut tally, nvm::WRITE, Status::INVALID_FIELD.dnr(), 8192);
        count(&mut tally, nvm::FLUSH, Status::SUCCESS, 0);
        count(&mut tally, nvm::READ, Status::UNRECOVERED_READ_ERROR.dnr(), 512);
        let due =
            Usage { bytes_read: 4608, bytes_written: 8192, reads: 2, writes: 1, media_errors: 1 };
        assert_eq!(tally, due);
        let shown = QueueUsage::default();
        shown.show(&tally, 3);
        assert_eq!((shown.usage(), shown.is_busy()), (due, true));
        add(&mut tally, &due);
        assert_eq!((tally.reads, tally.media_errors), (4, 2));
    }
}
