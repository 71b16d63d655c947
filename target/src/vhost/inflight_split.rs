//! The in-flight log of one split ring, laid out as the vhost-user text says.
//!
//! ```text
//!  0 features u64 | 8 version u16 | 10 desc_num u16 | 12 last_batch_head u16 | 14 used_idx u16
//!  16 + 16 i:  0 inflight u8 | 1 padding | 6 next u16 | 8 counter u64
//! ```

use super::inflight::{AT_DESC_NUM, AT_VERSION, VERSION};
use super::vring::Fault;
use crate::mem::guest::GuestSpan;

const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;
const ENTRIES: usize = 16;
const ENTRY_BYTES: usize = 16;
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

fn entry(head: u16) -> usize {
    ENTRIES + ENTRY_BYTES * usize::from(head)
}

/// The log of one split ring.
#[derive(Debug)]
pub(super) struct SplitLog {
    span: GuestSpan,
    /// Entries there are.
    desc_num: u16,
    /// Given to the next chain taken: keeps the order they came in.
    counter: u64,
    /// Our own copy of the header field: what the front-end does to it does not lead us astray.
    last_batch_head: u16,
}

impl SplitLog {
    pub(super) fn new(span: GuestSpan, desc_num: u16) -> SplitLog {
        SplitLog { span, desc_num, counter: 0, last_batch_head: 0 }
    }

    /// True if a previous life left something to recover from.
    pub(super) fn is_live(&self) -> bool {
        self.span.read_u16(AT_VERSION) != 0
    }

    /// Starts an empty log for a ring whose used index is `used`.
    pub(super) fn start(&mut self, used: u16) {
        for head in 0..self.desc_num {
            self.span.write_u8(entry(head) + INFLIGHT, 0);
        }
        self.span.write_u16(AT_DESC_NUM, self.desc_num);
        self.span.write_u16(AT_LAST_BATCH_HEAD, 0);
        self.span.write_u16(AT_USED_IDX, used);
        self.span.write_u16(AT_VERSION, VERSION);
    }

    /// Repairs the log and returns the heads to serve again, oldest first. `used` is the ring's
    /// used index, `size` its number of descriptors.
    pub(super) fn recover(&mut self, used: u16, size: u16) -> Result<Vec<u16>, Fault> {
        let version = self.span.read_u16(AT_VERSION);
        if version != VERSION || self.span.read_u16(AT_DESC_NUM) != self.desc_num {
            return Err(Fault::InflightLog);
        }
        self.last_batch_head = self.span.read_u16(AT_LAST_BATCH_HEAD);
        self.finish_batch(used)?;
        let mut found = Vec::new();
        for head in 0..self.desc_num {
            if self.span.read_u8(entry(head) + INFLIGHT) != 0 {
                if head >= size {
                    return Err(Fault::InflightLog);
                }
                found.push((self.span.read_u64(entry(head) + COUNTER), head));
            }
        }
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(found.into_iter().map(|(_, head)| head).collect())
    }

    /// Clears what was published right before the crash but still noted.
    fn finish_batch(&mut self, used: u16) -> Result<(), Fault> {
        let published = used.wrapping_sub(self.span.read_u16(AT_USED_IDX));
        let mut head = self.last_batch_head;
        for _ in 0..published.min(self.desc_num) {
            if head >= self.desc_num {
                return Err(Fault::InflightLog);
            }
            self.span.write_u8(entry(head) + INFLIGHT, 0);
            head = self.span.read_u16(entry(head) + NEXT);
        }
        self.span.write_u16(AT_USED_IDX, used);
        Ok(())
    }

    /// Notes that `head` was taken.
    pub(super) fn begin(&mut self, head: u16) {
        self.span.write_u64(entry(head) + COUNTER, self.counter);
        self.counter += 1;
        self.span.write_u8(entry(head) + INFLIGHT, 1);
    }

    /// Links `head` into the batch about to be published.
    pub(super) fn end(&mut self, head: u16) {
        self.span.write_u16(entry(head) + NEXT, self.last_batch_head);
        self.span.write_u16(AT_LAST_BATCH_HEAD, head);
        self.last_batch_head = head;
    }

    /// Clears a published batch; `used` is the ring's new used index.
    pub(super) fn commit(&mut self, batch: &[u16], used: u16) {
        for head in batch {
            self.span.write_u8(entry(*head) + INFLIGHT, 0);
        }
        self.span.write_u16(AT_USED_IDX, used);
    }

    /// The front-end knows where the ring stands and nothing is in flight: back to never started.
    pub(super) fn retire(&mut self) {
        self.span.write_u16(AT_VERSION, 0);
    }
}
