//! The in-flight log of one packed ring, laid out as the vhost-user text says.
//!
//! ```text
//!   0 features u64 | 8 version u16 | 10 desc_num u16 | 12 free_head u16 | 14 old_free_head u16
//!  16 used_idx u16 | 18 old_used_idx u16 | 20 used_wrap u8 | 21 old_used_wrap u8 | padding to 32
//!  32 + 32 i:  0 inflight u8 | 2 next u16 | 4 last u16 | 6 num u16 | 8 counter u64
//!              16 id u16 | 18 flags u16 | 20 len u32 | 24 addr u64
//! ```
//!
//! Used descriptors overwrite available ones in the ring, so the log keeps a copy of each chain,
//! as a list of entries; entries that are not in use form a list of their own. The pairs `x` and
//! `old_x` are a small journal: `old_x` is what holds until the batch is published.

use super::chain::Chain;
use super::inflight::{AT_DESC_NUM, AT_VERSION, VERSION};
use super::vring::{Desc, Fault, Head};
use super::vring_packed::Position;
use crate::mem::guest::GuestSpan;

const AT_FREE_HEAD: usize = 12;
const AT_OLD_FREE_HEAD: usize = 14;
const AT_USED_IDX: usize = 16;
const AT_OLD_USED_IDX: usize = 18;
const AT_USED_WRAP: usize = 20;
const AT_OLD_USED_WRAP: usize = 21;
const ENTRIES: usize = 32;
const ENTRY_BYTES: usize = 32;
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

fn entry(index: u16) -> usize {
    ENTRIES + ENTRY_BYTES * usize::from(index)
}

/// Our own copy of an entry's links: what the front-end does to the shared ones while we run does
/// not lead us astray.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    next: u16,
    last: u16,
    num: u16,
}

/// What a previous life left.
#[derive(Debug)]
pub(super) struct Recovered {
    /// Where the next used descriptor goes.
    pub(super) used: Position,
    /// Ring descriptors in flight.
    pub(super) descs: u16,
    /// Entries of the chains to serve again, oldest first.
    pub(super) tracks: Vec<u16>,
}

/// The log of one packed ring.
#[derive(Debug)]
pub(super) struct PackedLog {
    span: GuestSpan,
    /// Entries there are; also stands for "end of the free list".
    desc_num: u16,
    counter: u64,
    free_head: u16,
    links: Vec<Link>,
}

impl PackedLog {
    pub(super) fn new(span: GuestSpan, desc_num: u16) -> PackedLog {
        let links = vec![Link::default(); usize::from(desc_num)];
        PackedLog { span, desc_num, counter: 0, free_head: 0, links }
    }

    /// True if a previous life left something to recover from.
    pub(super) fn is_live(&self) -> bool {
        self.span.read_u16(AT_VERSION) != 0
    }

    /// Starts an empty log for a ring that stands at `at`.
    pub(super) fn start(&mut self, at: Position) {
        for index in 0..self.desc_num {
            self.span.write_u8(entry(index) + INFLIGHT, 0);
            self.set_next(index, index + 1);
        }
        self.free_head = 0;
        self.span.write_u16(AT_DESC_NUM, self.desc_num);
        self.write_free_head();
        self.write_used(at);
        self.settle(at);
        self.span.write_u16(AT_VERSION, VERSION);
    }

    fn set_next(&mut self, index: u16, next: u16) {
        self.links[usize::from(index)].next = next;
        self.span.write_u16(entry(index) + NEXT, next);
    }

    fn write_free_head(&mut self) {
        self.span.write_u16(AT_FREE_HEAD, self.free_head);
    }

    fn write_used(&mut self, used: Position) {
        self.span.write_u16(AT_USED_IDX, used.index);
        self.span.write_u8(AT_USED_WRAP, u8::from(used.wrap));
    }

    /// Makes the current state the one to fall back to.
    fn settle(&mut self, used: Position) {
        self.span.write_u16(AT_OLD_FREE_HEAD, self.free_head);
        self.span.write_u16(AT_OLD_USED_IDX, used.index);
        self.span.write_u8(AT_OLD_USED_WRAP, u8::from(used.wrap));
    }

    fn read_used(&self, index_at: usize, wrap_at: usize, size: u16) -> Result<Position, Fault> {
        let index = self.span.read_u16(index_at);
        if index >= size {
            return Err(Fault::InflightLog);
        }
        Ok(Position { index, wrap: self.span.read_u8(wrap_at) != 0 })
    }

    /// Repairs the log and says what to serve again. `ring_flags` reads a descriptor's flags.
    pub(super) fn recover(
        &mut self,
        size: u16,
        ring_flags: impl Fn(u16) -> u16,
    ) -> Result<Recovered, Fault> {
        let version = self.span.read_u16(AT_VERSION);
        if version != VERSION || self.span.read_u16(AT_DESC_NUM) != self.desc_num {
            return Err(Fault::InflightLog);
        }
        let new = self.read_used(AT_USED_IDX, AT_USED_WRAP, size)?;
        let old = self.read_used(AT_OLD_USED_IDX, AT_OLD_USED_WRAP, size)?;
        // A batch was under way. If the driver can see it, it happened; else it did not.
        let published = new != old && !old.is_available(ring_flags(old.index));
        let used = if published { new } else { old };
        let head_at = if published { AT_FREE_HEAD } else { AT_OLD_FREE_HEAD };
        self.free_head = self.span.read_u16(head_at);
        let mut owned = self.recover_free_list()?;
        let tracks = self.recover_chains(size, &mut owned)?;
        let descs = tracks.iter().map(|track| self.links[usize::from(*track)].num).sum();
        self.write_free_head();
        self.write_used(used);
        self.settle(used);
        Ok(Recovered { used, descs, tracks })
    }

    /// Walks the free list and clears stale notes on it; returns which entries are on it.
    fn recover_free_list(&mut self) -> Result<Vec<bool>, Fault> {
        let mut owned = vec![false; usize::from(self.desc_num)];
        let mut index = self.free_head;
        while index != self.desc_num {
            let seen = owned.get_mut(usize::from(index)).ok_or(Fault::InflightLog)?;
            if std::mem::replace(seen, true) {
                return Err(Fault::InflightLog);
            }
            self.span.write_u8(entry(index) + INFLIGHT, 0);
            let next = self.span.read_u16(entry(index) + NEXT);
            self.links[usize::from(index)].next = next;
            index = next;
        }
        Ok(owned)
    }

    /// Reads the chains that are still noted; all entries must be in one list, and in one only.
    fn recover_chains(&mut self, size: u16, owned: &mut [bool]) -> Result<Vec<u16>, Fault> {
        let mut found = Vec::new();
        let mut total = 0;
        for head in 0..self.desc_num {
            if self.span.read_u8(entry(head) + INFLIGHT) == 0 {
                continue;
            }
            let num = self.span.read_u16(entry(head) + NUM);
            total += u32::from(num);
            if num == 0 || total > u32::from(size) {
                return Err(Fault::InflightLog);
            }
            let mut index = head;
            for step in 0..num {
                if step > 0 {
                    let next = self.span.read_u16(entry(index) + NEXT);
                    self.links[usize::from(index)].next = next;
                    index = next;
                }
                let seen = owned.get_mut(usize::from(index)).ok_or(Fault::InflightLog)?;
                if std::mem::replace(seen, true) {
                    return Err(Fault::InflightLog);
                }
            }
            let link = &mut self.links[usize::from(head)];
            (link.last, link.num) = (index, num);
            found.push((self.span.read_u64(entry(head) + COUNTER), head));
        }
        if owned.iter().any(|owned| !owned) {
            return Err(Fault::InflightLog);
        }
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(found.into_iter().map(|(_, head)| head).collect())
    }

    /// Notes a chain taken from the ring; returns its entry. There is always room: the log has as
    /// many entries as the ring has descriptors.
    pub(super) fn begin(&mut self, descs: &[Desc]) -> u16 {
        let head = self.free_head;
        self.span.write_u16(entry(head) + NUM, 0);
        self.span.write_u64(entry(head) + COUNTER, self.counter);
        self.counter += 1;
        self.span.write_u8(entry(head) + INFLIGHT, 1);
        let mut index = head;
        for (position, desc) in descs.iter().enumerate() {
            index = self.free_head;
            assert!(index < self.desc_num, "the log is as large as the ring");
            let at = entry(index);
            self.span.write_u64(at + ADDR, desc.addr);
            self.span.write_u32(at + LEN, desc.len);
            self.span.write_u16(at + FLAGS, desc.flags);
            self.span.write_u16(at + ID, desc.link);
            self.span.write_u16(entry(head) + NUM, position as u16 + 1);
            self.free_head = self.links[usize::from(index)].next;
            self.write_free_head();
        }
        let link = &mut self.links[usize::from(head)];
        (link.last, link.num) = (index, descs.len() as u16);
        self.span.write_u16(entry(head) + LAST, index);
        // The chain is complete: from here on it survives us.
        self.span.write_u16(AT_OLD_FREE_HEAD, self.free_head);
        head
    }

    /// Reads a noted chain back.
    pub(super) fn load(&self, track: u16, chain: &mut Chain) -> Head {
        let count = self.links[usize::from(track)].num;
        let mut index = track;
        let mut id = 0;
        for step in 0..count {
            if step > 0 {
                index = self.links[usize::from(index)].next;
            }
            let at = entry(index);
            id = self.span.read_u16(at + ID);
            chain.push(Desc {
                addr: self.span.read_u64(at + ADDR),
                len: self.span.read_u32(at + LEN),
                flags: self.span.read_u16(at + FLAGS),
                link: id,
            });
        }
        Head { id, count, track }
    }

    /// Frees the entries of a batch about to be published, after which the ring stands at `used`.
    pub(super) fn end(&mut self, batch: &[u16], used: Position) {
        for track in batch {
            let last = self.links[usize::from(*track)].last;
            self.set_next(last, self.free_head);
            self.free_head = *track;
            self.write_free_head();
        }
        self.write_used(used);
    }

    /// The batch has been published: clears its notes.
    pub(super) fn commit(&mut self, batch: &[u16], used: Position) {
        for track in batch {
            self.span.write_u8(entry(*track) + INFLIGHT, 0);
        }
        self.settle(used);
    }

    /// The front-end knows where the ring stands and nothing is in flight: back to never started.
    pub(super) fn retire(&mut self) {
        self.span.write_u16(AT_VERSION, 0);
    }
}
