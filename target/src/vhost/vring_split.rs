//! The split ring.
//!
//! ```text
//!  descriptor table   { addr u64, len u32, flags u16, next u16 } x size
//!  available ring     flags u16, idx u16, head u16 x size, used_event u16
//!  used ring          flags u16, idx u16, { id u32, len u32 } x size, avail_event u16
//! ```
//!
//! All indices run freely modulo 2^16; a slot is the index modulo the size, a power of two.

use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, TableRules};
use super::inflight_split::SplitLog;
use super::vring::{
    DESC_BYTES, DESC_NEXT, Desc, Fault, Head, RingFeatures, RingSpans, event_passed,
};
use crate::mem::guest::GuestMemory;

/// In the available ring's flags: the driver does not want calls.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device does not want kicks.
const USED_NO_NOTIFY: u16 = 1;
/// Byte offset of `idx` in both rings, and of their first entry.
const IDX: usize = 2;
const ENTRIES: usize = 4;

/// Chains ahead of the next one whose descriptors are asked for, and whose header is.
const AHEAD_DESC: u16 = 6;
const AHEAD_HEADER: u16 = 3;

/// Device side of a split ring.
#[derive(Debug)]
pub(super) struct SplitRing {
    spans: RingSpans,
    size: u16,
    features: RingFeatures,
    /// The available index when it was last read.
    avail_seen: u16,
    /// The next available entry to take.
    last_avail: u16,
    /// The next used entry to write.
    used_next: u16,
    /// The used index as the guest sees it.
    used_published: u16,
    /// Heads taken and not yet published as used, so that a second offer of one is seen.
    taken: Vec<bool>,
    /// Heads of a previous life to serve first, last one first.
    resubmit: Vec<u16>,
    /// Heads used since the last publish.
    batch: Vec<u16>,
    log: Option<SplitLog>,
}

impl SplitRing {
    /// Takes a ring over at `base`, or where the in-flight log says it stands.
    pub(super) fn new(
        spans: RingSpans,
        size: u16,
        features: RingFeatures,
        base: u16,
        mut log: Option<SplitLog>,
    ) -> Result<SplitRing, Fault> {
        assert!(size.is_power_of_two(), "checked when the size was set");
        let used = spans.device.load_acquire_u16(IDX);
        let resubmit = match &mut log {
            Some(log) if log.is_live() => Some(log.recover(used, size)?),
            Some(log) => {
                log.start(used);
                None
            }
            None => None,
        };
        let mut taken = vec![false; usize::from(size)];
        let last_avail = match &resubmit {
            // Whatever the front-end remembers of a ring whose back-end died, the log knows.
            Some(heads) => used.wrapping_add(heads.len() as u16),
            None => base,
        };
        let mut resubmit = resubmit.unwrap_or_default();
        for head in &resubmit {
            taken[usize::from(*head)] = true;
        }
        resubmit.reverse();
        Ok(SplitRing {
            spans,
            size,
            features,
            avail_seen: last_avail,
            last_avail,
            used_next: used,
            used_published: used,
            taken,
            resubmit,
            batch: Vec::with_capacity(usize::from(size)),
            log,
        })
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    pub(super) fn table_rules(&self) -> TableRules {
        TableRules { allowed: self.features.indirect, in_order: false }
    }

    pub(super) fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, Fault> {
        if let Some(head) = self.resubmit.pop() {
            self.walk(head, chain)?;
            return Ok(Some(Head { id: head, count: 1, track: head }));
        }
        if self.avail_seen == self.last_avail {
            self.avail_seen = self.spans.driver.load_acquire_u16(IDX);
            if self.avail_seen == self.last_avail {
                return Ok(None);
            }
            if self.avail_seen.wrapping_sub(self.last_avail) > self.size {
                return Err(Fault::AvailIndex);
            }
        }
        let entry = ENTRIES + 2 * self.slot(self.last_avail);
        let head = self.spans.driver.read_u16(entry);
        let taken = self.taken.get_mut(usize::from(head)).ok_or(Fault::HeadOutOfRange)?;
        if *taken {
            return Err(Fault::HeadInFlight);
        }
        *taken = true;
        self.last_avail = self.last_avail.wrapping_add(1);
        if let Some(log) = &mut self.log {
            log.begin(head);
        }
        self.walk(head, chain)?;
        Ok(Some(Head { id: head, count: 1, track: head }))
    }

    /// Asks for what the next pops will read and write: it lies in the cache of the guest's core.
    pub(super) fn look_ahead(&self, memory: &GuestMemory, hint: &mut usize) {
        let waiting = self.avail_seen.wrapping_sub(self.last_avail);
        // Used entries follow available ones, so that this one's comes here or nearby.
        self.spans.device.soon_written(ENTRIES + 8 * self.slot(self.last_avail));
        let coming = |ahead: u16| {
            let entry = ENTRIES + 2 * self.slot(self.last_avail.wrapping_add(ahead));
            let head = self.spans.driver.read_u16(entry);
            (waiting > ahead && head < self.size).then_some(usize::from(head) * DESC_BYTES)
        };
        if let Some(at) = coming(AHEAD_DESC) {
            self.spans.desc.soon_read(at);
        }
        if let Some(at) = coming(AHEAD_HEADER) {
            // The status mostly lies behind the header, in its line.
            memory.soon_written(hint, self.spans.desc.read_u64(at));
        }
    }

    /// Reads a chain from the descriptor table; `size` steps bound it, so a loop is found.
    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(Fault::NextOutOfRange);
            }
            let at = usize::from(index) * DESC_BYTES;
            let (addr, rest) = self.spans.desc.read_words(at);
            let desc = Desc::split(addr, rest);
            chain.push(desc);
            if !desc.has(DESC_NEXT) {
                return Ok(());
            }
            index = desc.link;
        }
        Err(Fault::ChainTooLong)
    }

    pub(super) fn push_used(&mut self, head: Head, len: u32) {
        assert!(self.taken[usize::from(head.id)], "a chain is used once");
        let entry = ENTRIES + 8 * self.slot(self.used_next);
        self.spans.device.write_u32(entry, u32::from(head.id));
        self.spans.device.write_u32(entry + 4, len);
        self.used_next = self.used_next.wrapping_add(1);
        if let Some(log) = &mut self.log {
            log.end(head.track);
        }
        self.batch.push(head.id);
    }

    pub(super) fn publish(&mut self) -> bool {
        let old = self.used_published;
        let new = self.used_next;
        if old == new {
            return false;
        }
        self.spans.device.store_release_u16(IDX, new);
        self.used_published = new;
        if let Some(log) = &mut self.log {
            log.commit(&self.batch, new);
        }
        for head in self.batch.drain(..) {
            self.taken[usize::from(head)] = false;
        }
        // The index must be out before we look whether the driver wants to be called for it.
        fence(Ordering::SeqCst);
        if self.features.event_idx {
            let at = ENTRIES + 2 * usize::from(self.size);
            event_passed(self.spans.driver.read_u16(at), new, old)
        } else {
            self.spans.driver.read_u16(0) & AVAIL_NO_INTERRUPT == 0
        }
    }

    pub(super) fn want_kicks(&mut self, wanted: bool) {
        if !self.features.event_idx {
            self.spans.device.write_u16(0, if wanted { 0 } else { USED_NO_NOTIFY });
        } else if wanted {
            let at = ENTRIES + 8 * usize::from(self.size);
            self.spans.device.write_u16(at, self.last_avail);
        }
        // While polling with EVENT_IDX the event stays behind the index: no kick passes it.
        fence(Ordering::SeqCst);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.resubmit.is_empty() || self.spans.driver.load_acquire_u16(IDX) != self.last_avail
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.last_avail)
    }

    pub(super) fn remap(&mut self, spans: RingSpans) {
        self.spans = spans;
    }

    pub(super) fn retire_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.retire();
        }
    }
}
