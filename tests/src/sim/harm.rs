//! Damage to metadata as reads see it: bit rot, stale blocks, misdirected reads and writes.
//!
//! ```text
//!   pages (the truth) ──▶ hidden[block]? ──▶ drawn damage? ──▶ memory of the read
//!                           lasting, until the block is written or the faults are lifted
//! ```
//!
//! The truth stays as it is, so faults can be lifted. Only damage that the format can see is done:
//! a block sealed with another checksum, address or identity, an older node of the same place, or
//! the one copy of a pair that is not needed. User data has no checksum in the store and is never
//! touched.

use std::collections::{BTreeMap, BTreeSet};

use lamina_bdev::Seg;

use super::base::Base;
use super::image::{Header, Kind, header_of, seal};
use super::memory::write_segs;
use super::pages::{PAGE, Page};

/// Consistency points that the stamps of links tell apart.
const STAMPS: u64 = 4093;
/// Where the header of a node stands.
const NODE_HEADER_AT: usize = 3072;
/// Of the writes that go astray, how many get lost.
const NOWHERE_PERMILLE: u32 = 300;
/// Old contents kept for stale reads.
const OLD_MAX: usize = 4096;

/// Damage that a read has returned.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// What was damaged.
    pub kind: Kind,
    /// Its number in the region.
    pub block: u64,
    /// Disk slot it was written for.
    pub owner: u32,
}

/// Damage under way.
#[derive(Default)]
pub struct Harms {
    /// Lasting: what reads of a block return.
    hidden: BTreeMap<u64, Box<Page>>,
    /// What metadata blocks held before they were last written.
    old: BTreeMap<u64, Box<Page>>,
    /// Metadata blocks that were written, for misdirected operations to meet.
    written: Vec<u64>,
    /// Copies of pairs that were damaged, if only for one read: the other copy never is.
    spoilt: BTreeSet<u64>,
    /// Damage returned and not yet taken by the model.
    pub notes: Vec<Note>,
}

impl Harms {
    /// True if nothing is hidden.
    pub fn is_empty(&self) -> bool {
        self.hidden.is_empty()
    }

    /// The truth shows again.
    pub fn lift(&mut self) {
        self.hidden.clear();
    }
}

impl Base {
    /// A whole or partial block is about to be written.
    pub(super) fn harm_write(&mut self, block: u64) {
        self.harms.hidden.remove(&block);
        let page = self.pages.copy(block);
        if header_of(&page).is_some() && self.harms.old.len() < OLD_MAX {
            self.harms.old.insert(block, page);
        }
    }

    /// A write of one block has completed: it may turn out to have gone elsewhere.
    pub(super) fn harm_written(&mut self, block: u64) {
        if !self.faults.harm.any() {
            return;
        }
        let page = self.pages.copy(block);
        if header_of(&page).is_none() {
            return;
        }
        if self.harms.written.len() < OLD_MAX {
            self.harms.written.push(block);
        }
        if !self.happens(self.faults.harm.astray_write) {
            return;
        }
        let victim = self.fate.pick(&self.harms.written);
        let Some(old) = self.harms.old.get(&block).cloned() else { return };
        if self.fate.chance(NOWHERE_PERMILLE) {
            if self.harmful(block, &old).is_some() {
                self.harms.hidden.insert(block, old);
            }
            return;
        }
        if victim != block && self.harmful(victim, &page).is_some() {
            self.harms.hidden.insert(victim, page);
            if self.harmful(block, &old).is_some() {
                self.harms.hidden.insert(block, old);
            }
        }
    }

    /// A read has filled its memory: maybe not with what it should have.
    pub(super) fn harm_read(&mut self, offset: u64, len: u32, segs: &[Seg]) {
        let harm = self.faults.harm;
        if !harm.any() && self.harms.is_empty() {
            return;
        }
        let first = offset.div_ceil(PAGE as u64);
        let end = (offset + u64::from(len)) / PAGE as u64;
        for block in first..end {
            let hidden = self.harms.hidden.get(&block).cloned();
            let lasts = hidden.is_some();
            let Some(shown) = hidden.or_else(|| self.draw_harm(block)) else { continue };
            let Some(note) = self.harmful(block, &shown) else {
                self.harms.hidden.remove(&block);
                continue;
            };
            if !matches!(note.kind, Kind::Node | Kind::Bitmap) {
                self.harms.spoilt.insert(block);
            }
            write_segs(segs, (block * PAGE as u64 - offset) as usize, &shown[..]);
            self.harms.notes.push(note);
            if !lasts && self.fate.chance(harm.lasting_permille) {
                self.harms.hidden.insert(block, shown);
            }
        }
    }

    fn draw_harm(&mut self, block: u64) -> Option<Box<Page>> {
        let harm = self.faults.harm;
        if self.happens(harm.rot) {
            let mut page = self.pages.copy(block);
            for _ in 0..self.fate.pick(&[1, 1, 2, 30]) {
                let bit = self.fate.index(PAGE * 8);
                page[bit / 8] ^= 1 << (bit % 8);
            }
            return Some(page);
        }
        if self.happens(harm.stale) {
            let old = self.harms.old.get(&block).cloned();
            return if self.fate.chance(500) { old } else { self.older_node(block).or(old) };
        }
        if !self.happens(harm.astray_read) {
            return None;
        }
        let near = [block + 1, block.saturating_sub(1), block ^ 8];
        let from = match self.harms.written.is_empty() || self.fate.chance(500) {
            true => self.fate.pick(&near),
            false => self.fate.pick(&self.harms.written),
        };
        Some(self.pages.copy(from))
    }

    /// An older node of the same place as that in `block`, as a lost write leaves it, if that is
    /// one: it lacks a link. Blocks are seldom used again for the same place by themselves.
    fn older_node(&mut self, block: u64) -> Option<Box<Page>> {
        let mut page = self.pages.copy(block);
        let (kind, header) = header_of(&page)?;
        let points = header.generation.saturating_sub(1).min(STAMPS - 1);
        if kind != Kind::Node || points == 0 {
            return None;
        }
        let generation = header.generation - 1 - self.fate.below(points);
        page[NODE_HEADER_AT + 48..NODE_HEADER_AT + 56].copy_from_slice(&generation.to_le_bytes());
        let link = self.fate.index(512) * 6;
        page[link..link + 6].fill(0);
        seal(&mut page, kind);
        Some(page)
    }

    /// What it means if `block` reads as `shown`; `None` if that would not be seen, if it is more
    /// than the format promises to bear, or no damage.
    fn harmful(&self, block: u64, shown: &Page) -> Option<Note> {
        let truth = self.pages.copy(block);
        let (kind, header) = header_of(&truth)?;
        if truth[..] == shown[..] {
            return None;
        }
        let spare = match kind {
            // A node of the same place but another time is told apart by its stamp, unless that is
            // the same by chance; the catalogue names a bitmap's generation.
            Kind::Node => {
                let same = header_of(shown).filter(|(k, h)| {
                    let place = |h: &Header| (h.address, h.level, h.index, h.generation % STAMPS);
                    *k == kind && place(h) == place(&header) && sealed(shown, kind)
                });
                same.is_none()
            }
            Kind::Bitmap => true,
            // What a device has lost in a crash it does not bring back later, when points are
            // committed that make it look as if it counted.
            Kind::Superblock | Kind::Catalogue | Kind::DiskRecord | Kind::SnapshotLog => {
                let later = header_of(shown).is_some_and(|(k, h)| {
                    k == kind && h.address == header.address && h.generation > header.generation
                });
                !(later && sealed(shown, kind)) && self.has_twin(block, kind, &header)
            }
            // It may be one that was never promised; `ruin` does it to those that were.
            Kind::Journal => false,
        };
        spare.then_some(Note { kind, block: header.address, owner: header.owner })
    }

    /// True if the other copy of a pair is there and at least as good.
    fn has_twin(&self, block: u64, kind: Kind, header: &Header) -> bool {
        let Some(committed) = self.committed(block - header.address) else { return false };
        [block + 1, block - 1].into_iter().any(|other| {
            let page = self.pages.copy(other);
            let Some((k, h)) = header_of(&page) else { return false };
            let twin = k == kind && (h.owner, h.index) == (header.owner, header.index);
            let good = h.generation >= header.generation && h.generation <= committed;
            let even = kind != Kind::Superblock || h.generation == header.generation;
            twin && good && even && sealed(&page, kind) && !self.harms.spoilt.contains(&other)
        })
    }

    /// The consistency point that counts in the region whose first block is `first`.
    fn committed(&self, first: u64) -> Option<u64> {
        let copies = [first, first + 1].map(|block| self.pages.copy(block));
        let good = copies.iter().filter(|page| sealed(page, Kind::Superblock));
        good.filter_map(|page| header_of(page).map(|(_, h)| h.generation)).max()
    }
}

/// True if the checksum of the block is right.
fn sealed(page: &Page, kind: Kind) -> bool {
    let head = match kind {
        Kind::Node => NODE_HEADER_AT,
        _ => 0,
    };
    let store: [u8; 16] = page[head + 16..head + 32].try_into().expect("sixteen bytes");
    let shard = u16::from_le_bytes([page[head + 56], page[head + 57]]);
    super::image::unseal(page, kind, &store, shard).is_ok()
}
