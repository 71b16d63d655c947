//! The packed ring.
//!
//! ```text
//!  ring            { addr u64, len u32, id u16, flags u16 } x size     flags: .. AVAIL(7) USED(15)
//!  driver events   off_wrap u16, flags u16      when the driver wants calls
//!  device events   off_wrap u16, flags u16      when we want kicks
//!
//!      used ──────────── in flight ─────────► avail ──────► free
//!      we return here                         we take here   (wrap bits turn at the ring's end)
//! ```
//!
//! A descriptor is available if AVAIL equals our wrap bit and USED does not. Chains are returned in
//! any order, but always written at the used position, which moves on by the chain's length.

use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, TableRules};
use super::inflight_packed::PackedLog;
use super::vring::{DESC_BYTES, DESC_NEXT, DESC_WRITE, Desc, Fault, Head, RingFeatures, RingSpans};

const DESC_AVAIL: u16 = 1 << 7;
const DESC_USED: u16 = 1 << 15;
/// Byte offsets inside a descriptor.
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;
/// Byte offset of the flags inside an event structure.
const EVENT_FLAGS: usize = 2;
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;

/// A place in the ring together with the wrap bit it has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    /// Below the ring's size.
    pub(super) index: u16,
    /// True on the first lap, then turning with each.
    pub(super) wrap: bool,
}

impl Position {
    /// As in half a word of SET_VRING_BASE: index below, wrap bit at 15.
    fn from_base(base: u32) -> Position {
        Position { index: base as u16 & 0x7fff, wrap: base & 0x8000 != 0 }
    }

    fn to_base(self) -> u32 {
        u32::from(self.index) | u32::from(self.wrap) << 15
    }

    /// `count` descriptors further, at most one lap.
    pub(super) fn advance(self, count: u16, size: u16) -> Position {
        let sum = u32::from(self.index) + u32::from(count);
        if sum >= u32::from(size) {
            Position { index: (sum - u32::from(size)) as u16, wrap: !self.wrap }
        } else {
            Position { index: sum as u16, wrap: self.wrap }
        }
    }

    /// True if a descriptor with these flags is available here.
    pub(super) fn is_available(self, flags: u16) -> bool {
        (flags & DESC_AVAIL != 0) == self.wrap && (flags & DESC_USED != 0) != self.wrap
    }
}

/// Device side of a packed ring.
#[derive(Debug)]
pub(super) struct PackedRing {
    spans: RingSpans,
    size: u16,
    features: RingFeatures,
    avail: Position,
    used: Position,
    /// Ring descriptors in flight: between `used` and `avail`.
    outstanding: u16,
    /// First descriptor used since the last publish, and the flags it will get then: until that
    /// store the driver, which reads in order, sees none of the batch.
    batch_first: Option<(u16, u16)>,
    /// Ring descriptors used since the last publish.
    batch_descs: u16,
    /// Log entries of the chains used since the last publish.
    batch: Vec<u16>,
    /// Log entries of a previous life to serve first, last one first.
    resubmit: Vec<u16>,
    log: Option<PackedLog>,
}

impl PackedRing {
    /// Takes a ring over at `base`, or where the in-flight log says it stands.
    pub(super) fn new(
        spans: RingSpans,
        size: u16,
        features: RingFeatures,
        base: u32,
        mut log: Option<PackedLog>,
    ) -> Result<PackedRing, Fault> {
        let start = Position::from_base(base);
        let mut ring = PackedRing {
            spans,
            size,
            features,
            avail: start,
            used: start,
            outstanding: 0,
            batch_first: None,
            batch_descs: 0,
            batch: Vec::with_capacity(usize::from(size)),
            resubmit: Vec::new(),
            log: None,
        };
        match &mut log {
            Some(log) if log.is_live() => {
                let found = log.recover(size, |index| ring.flags(index))?;
                ring.used = found.used;
                ring.outstanding = found.descs;
                ring.avail = found.used.advance(found.descs, size);
                ring.resubmit = found.tracks;
                ring.resubmit.reverse();
                ring.take_back_used_flags();
            }
            Some(log) => log.start(start),
            None => {}
        }
        ring.log = log;
        if ring.avail.index >= size {
            return Err(Fault::HeadOutOfRange);
        }
        Ok(ring)
    }

    /// A previous life may have died with part of a batch written behind its first descriptor. To
    /// the driver those are used as soon as it gets there, so everything that is in flight is
    /// marked as not used; drivers look at nothing else in what they have given away.
    fn take_back_used_flags(&self) {
        let mut at = self.used;
        for _ in 0..self.outstanding {
            let flags = if at.wrap { DESC_AVAIL } else { DESC_USED };
            let offset = usize::from(at.index) * DESC_BYTES + FLAGS;
            self.spans.desc.store_release_u16(offset, flags);
            at = at.advance(1, self.size);
        }
    }

    pub(super) fn table_rules(&self) -> TableRules {
        TableRules { allowed: self.features.indirect, in_order: true }
    }

    fn flags(&self, index: u16) -> u16 {
        self.spans.desc.load_acquire_u16(usize::from(index) * DESC_BYTES + FLAGS)
    }

    pub(super) fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, Fault> {
        if let Some(track) = self.resubmit.pop() {
            let log = self.log.as_ref().expect("only a log gives something to resubmit");
            return Ok(Some(log.load(track, chain)));
        }
        if !self.avail.is_available(self.flags(self.avail.index)) {
            return Ok(None);
        }
        // What has been used but not published is still the guest's to wait for.
        let room = self.size - self.outstanding - self.batch_descs;
        let mut at = self.avail;
        let mut count = 0;
        let id = loop {
            if count == room {
                return Err(Fault::ChainTooLong);
            }
            let words = self.spans.desc.pair(usize::from(at.index));
            let (addr, rest) = words.expect("a position is below the ring's size");
            let desc = Desc::packed(addr, rest);
            chain.push(desc);
            count += 1;
            at = at.advance(1, self.size);
            if !desc.has(DESC_NEXT) {
                break desc.link;
            }
        };
        let track = match &mut self.log {
            Some(log) => log.begin(chain.descs()),
            None => 0,
        };
        self.avail = at;
        self.outstanding += count;
        Ok(Some(Head { id, count, track }))
    }

    pub(super) fn push_used(&mut self, head: Head, len: u32) {
        assert!(head.count <= self.outstanding, "a chain is used once");
        let offset = usize::from(self.used.index) * DESC_BYTES;
        self.spans.desc.write_u32(offset + LEN, len);
        self.spans.desc.write_u16(offset + ID, head.id);
        let lap = if self.used.wrap { DESC_AVAIL | DESC_USED } else { 0 };
        let flags = lap | if len > 0 { DESC_WRITE } else { 0 };
        if self.batch_first.is_none() {
            self.batch_first = Some((self.used.index, flags));
        } else {
            self.spans.desc.store_release_u16(offset + FLAGS, flags);
        }
        self.used = self.used.advance(head.count, self.size);
        self.outstanding -= head.count;
        self.batch_descs += head.count;
        self.batch.push(head.track);
    }

    pub(super) fn publish(&mut self) -> bool {
        let Some((first, flags)) = self.batch_first.take() else { return false };
        if let Some(log) = &mut self.log {
            log.end(&self.batch, self.used);
        }
        let offset = usize::from(first) * DESC_BYTES;
        // The flags must be out before we look whether the driver wants to be called for them.
        self.spans.desc.store_ordered_u16(offset + FLAGS, flags);
        if let Some(log) = &mut self.log {
            log.commit(&self.batch, self.used);
        }
        self.batch.clear();
        let descs = std::mem::take(&mut self.batch_descs);
        self.call_wanted(descs)
    }

    /// True if the driver asked to be called for one of the `descs` descriptors just used.
    fn call_wanted(&self, descs: u16) -> bool {
        let flags = self.spans.driver.load_ordered_u16(EVENT_FLAGS);
        let off_wrap = self.spans.driver.load_ordered_u16(0);
        match flags & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.features.event_idx => {
                let lap = if (off_wrap & 0x8000 != 0) == self.used.wrap { 0 } else { self.size };
                let event = i32::from(off_wrap & 0x7fff) - i32::from(lap);
                let new = i32::from(self.used.index);
                (new - i32::from(descs)..new).contains(&event)
            }
            _ => true,
        }
    }

    pub(super) fn want_kicks(&mut self, wanted: bool) {
        let flags = match (wanted, self.features.event_idx) {
            (false, _) => EVENT_DISABLE,
            (true, false) => EVENT_ENABLE,
            (true, true) => {
                self.spans.device.write_u16(0, self.avail.to_base() as u16);
                EVENT_DESC
            }
        };
        self.spans.device.store_release_u16(EVENT_FLAGS, flags);
        fence(Ordering::SeqCst);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.resubmit.is_empty() || self.avail.is_available(self.flags(self.avail.index))
    }

    pub(super) fn base(&self) -> u32 {
        self.avail.to_base() | self.used.to_base() << 16
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
