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
use crate::mem::far;
use crate::mem::guest::GuestMemory;

/// In the available ring's flags: the driver does not want calls.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device does not want kicks.
const USED_NO_NOTIFY: u16 = 1;
/// Byte offset of `idx` in both rings, and of their first entry.
const IDX: usize = 2;
const ENTRIES: usize = 4;

/// Heads read ahead: their descriptors are asked for. A power of two.
const HEADS_AHEAD: u16 = 8;
/// Of the first so many of these the header is asked for as well.
const HEADERS_AHEAD: u16 = 4;

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
    /// Heads read from the entries `last_avail..heads_to`, each at its index modulo the length.
    heads: [u16; HEADS_AHEAD as usize],
    heads_to: u16,
    /// Of those before this one the header was asked for.
    headers_to: u16,
    /// What the next chain may use, to ask for on suspicion: guests take descriptors in turn or
    /// the same ones again, so heads mostly go on as they went (this far); the header's memory
    /// (address here) they mostly use again.
    last_head: u16,
    stride: u16,
    last_header: usize,
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
        assert_eq!(spans.desc.len(), usize::from(size) * DESC_BYTES, "located for this size");
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
            heads: [0; HEADS_AHEAD as usize],
            heads_to: last_avail,
            headers_to: last_avail,
            last_head: 0,
            stride: 0,
            last_header: 0,
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

    pub(super) fn pop(
        &mut self,
        memory: &GuestMemory,
        hint: &mut usize,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Fault> {
        if !self.resubmit.is_empty() {
            return self.pop_resubmitted(chain);
        }
        if self.avail_seen == self.last_avail && !self.look()? {
            return Ok(None);
        }
        self.read_ahead(memory, hint);
        let head = self.heads[usize::from(self.last_avail % HEADS_AHEAD)];
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

    #[cold]
    fn pop_resubmitted(&mut self, chain: &mut Chain) -> Result<Option<Head>, Fault> {
        let Some(head) = self.resubmit.pop() else { return Ok(None) };
        self.walk(head, chain)?;
        Ok(Some(Head { id: head, count: 1, track: head }))
    }

    /// Reads the available index; false if there is nothing new.
    #[inline]
    fn look(&mut self) -> Result<bool, Fault> {
        self.avail_seen = self.spans.driver.load_acquire_u16(IDX);
        if self.avail_seen == self.last_avail {
            return Ok(false);
        }
        // All that the first of them needs, at once: one after the other each keeps us waiting.
        self.ask_for_descs(self.last_head.wrapping_add(self.stride) & (self.size - 1));
        far::soon_written(self.last_header);
        if self.avail_seen.wrapping_sub(self.last_avail) > self.size {
            return Err(Fault::AvailIndex);
        }
        Ok(true)
    }

    /// Reads the next few heads, and asks for what their pops will read and write: it lies in the
    /// cache of the guest's core.
    #[inline]
    fn read_ahead(&mut self, memory: &GuestMemory, hint: &mut usize) {
        let left = self.avail_seen.wrapping_sub(self.last_avail);
        let until = self.last_avail.wrapping_add(left.min(HEADS_AHEAD));
        while self.heads_to != until {
            let entry = ENTRIES + 2 * self.slot(self.heads_to);
            let head = self.spans.driver.read_u16(entry);
            self.heads[usize::from(self.heads_to % HEADS_AHEAD)] = head;
            self.ask_for_descs(head);
            self.stride = head.wrapping_sub(self.last_head);
            self.last_head = head;
            self.heads_to = self.heads_to.wrapping_add(1);
        }
        let until = self.last_avail.wrapping_add(left.min(HEADERS_AHEAD));
        while self.headers_to != until {
            let head = self.heads[usize::from(self.headers_to % HEADS_AHEAD)];
            if let Some((header, _)) = self.spans.desc.pair(usize::from(head)) {
                // The status mostly lies behind the header, in its line.
                self.last_header = memory.line(hint, header);
                far::soon_written(self.last_header);
            }
            // Used entries follow available ones, so that this one's comes here or nearby.
            self.spans.device.soon_written(ENTRIES + 8 * self.slot(self.headers_to));
            self.headers_to = self.headers_to.wrapping_add(1);
        }
    }

    /// Asks for the descriptors of a chain: most are three in a row.
    #[inline]
    fn ask_for_descs(&self, head: u16) {
        let offset = usize::from(head) * DESC_BYTES;
        self.spans.desc.soon_read(offset);
        self.spans.desc.soon_read(offset + 3 * DESC_BYTES - 1);
    }

    /// Reads a chain from the descriptor table; `size` steps bound it, so a loop is found.
    #[inline]
    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), Fault> {
        let mut index = head;
        for _ in 0..self.size {
            // The table has as many pairs of words as the ring has descriptors.
            let words = self.spans.desc.pair(usize::from(index));
            let (addr, rest) = words.ok_or(Fault::NextOutOfRange)?;
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
        self.spans.device.write_u32_pair(entry, u32::from(head.id), len);
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
        // The index must be out before we look whether the driver wants to be called for it.
        self.spans.device.store_ordered_u16(IDX, new);
        self.used_published = new;
        if let Some(log) = &mut self.log {
            log.commit(&self.batch, new);
        }
        for head in self.batch.drain(..) {
            self.taken[usize::from(head)] = false;
        }
        if self.features.event_idx {
            let at = ENTRIES + 2 * usize::from(self.size);
            event_passed(self.spans.driver.load_ordered_u16(at), new, old)
        } else {
            self.spans.driver.load_ordered_u16(0) & AVAIL_NO_INTERRUPT == 0
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

    pub(super) fn waiting(&self) -> usize {
        usize::from(self.spans.driver.load_acquire_u16(IDX).wrapping_sub(self.last_avail))
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.last_avail)
    }

    pub(super) fn remap(&mut self, spans: RingSpans) {
        assert_eq!(spans.desc.len(), self.spans.desc.len(), "the same ring elsewhere");
        self.last_header = 0;
        self.spans = spans;
    }

    pub(super) fn retire_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.retire();
        }
    }
}
