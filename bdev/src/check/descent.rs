//! Where a family of versions hangs whose own word for that is lost.
//!
//! ```text
//!   golden: s1 ── s2 ── live         vm's record is lost; its clones c1 and c2 are there.
//!            ╚═ (vm: s1)             What they share with golden tells where vm came from: the
//!                 ╠═ c1              snapshot that has all of it. Blocks belong to connected
//!                 ╚═ c2              pieces of the tree of versions, so the true origin has.
//! ```
//!
//! With a wrong one, a block might be freed that another version still has. So where no snapshot
//! has all that is shared (it may be deleted itself), nothing is changed, and space that is shared
//! is not reclaimed, as before.

use super::blocks::Bits;
use super::lineage::{Lineage, Said};
use super::system::{Shard, Slot};
use super::tree::{Place, Version};
use crate::error::Error;
use crate::format::node::{self, NodeRef};
use crate::limits::{LEVEL_BITS, LINKS};

/// What is known of where a family comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// From that snapshot, or from none.
    Known(Option<(u32, u64)>),
    Unknown,
}

/// Something that versions share: a node, or a data block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Item {
    /// `None`: data; then the index is the disk block.
    level: Option<u8>,
    index: u64,
    address: u64,
}

impl Item {
    /// Which link of a node of `level` above leads to it.
    fn link_at(&self, level: u8) -> usize {
        let below = self.level.map_or(0, |l| u32::from(l) + 1);
        let span = LEVEL_BITS * (u32::from(level) - below);
        (self.index >> span) as usize % LINKS
    }

    /// True if it lies below a root of that level.
    fn below(&self, root_level: u8) -> bool {
        let height = self.level.map_or(0, |l| u32::from(l) + 1);
        let span = LEVEL_BITS * (u32::from(root_level) + 1).saturating_sub(height);
        u32::from(root_level) + 1 >= height && self.index >> span == 0
    }
}

/// A walk over trees, each node once.
struct Walk {
    seen: Bits,
    /// What to look for; `None`: collect all.
    among: Option<Bits>,
    found: Vec<Item>,
}

impl Shard<'_> {
    /// Where the disk in `orphan`, and all that descend from it, come from.
    pub fn origin_of(&mut self, orphan: u32) -> Result<Origin, Error> {
        let (own, others): (Vec<Version>, Vec<Version>) =
            self.versions().into_iter().partition(|v| self.lineage.descends(v.slot, orphan));
        let blocks = self.geometry().region_blocks;
        let mut mine = Walk { seen: Bits::new(blocks), among: None, found: Vec::new() };
        own.iter().for_each(|v| self.gather(v, v.top(), v.root, &mut mine));
        let mut walk = Walk { seen: Bits::new(blocks), among: Some(mine.seen), found: Vec::new() };
        others.iter().for_each(|v| self.gather(v, v.top(), v.root, &mut walk));
        let mut shared = walk.found;
        // At another place it is no kinship, but damage.
        shared.retain(|item| own.iter().any(|v| self.holds(v, item)));
        if shared.is_empty() {
            return Ok(Origin::Known(None));
        }
        let has_all = |v: &&Version| shared.iter().all(|item| self.holds(v, item));
        let found = others.iter().filter(|v| v.snap.is_some()).find(has_all);
        let origin = found.and_then(|v| Some((v.slot, v.snap?)));
        Ok(origin.map_or(Origin::Unknown, |origin| Origin::Known(Some(origin))))
    }

    /// Who descends from whom, as the records say.
    pub fn lineage_of_records(&self) -> Lineage {
        let said = |slot: &Slot| match slot {
            Slot::Free | Slot::Lost => Said::Nothing,
            Slot::Disk(disk) if disk.record.adopted => Said::After(disk.record.origin),
            Slot::Disk(disk) => Said::From(disk.record.origin),
        };
        Lineage::new(&self.slots.iter().map(said).collect::<Vec<Said>>())
    }

    /// Collects nodes and blocks below `node`, or those of them that are looked for.
    fn gather(&mut self, v: &Version, place: Place, node: NodeRef, walk: &mut Walk) {
        let address = node.address;
        if v.taken_apart(place) || walk.seen.add(address) {
            return;
        }
        let item = Item { level: Some(place.level), index: place.index, address };
        if walk.among.as_ref().is_some_and(|among| among.has(address)) {
            walk.found.push(item);
            return;
        }
        let Ok(opened) = self.open_node(place, node) else { return };
        for (at, link) in opened.links.iter().enumerate() {
            let to = link & node::ADDRESS;
            if to == 0 || to == node::LOST {
                continue;
            }
            if place.level > 0 {
                self.gather(v, place.child(at), NodeRef::of_link(*link), walk);
                continue;
            }
            let index = place.first_block() + at as u64;
            match &walk.among {
                None => {
                    walk.seen.add(to);
                }
                Some(among) if among.has(to) && !walk.seen.add(to) => {
                    walk.found.push(Item { level: None, index, address: to });
                }
                Some(_) => {}
            }
        }
    }

    /// True if the version has that node or block at that place.
    fn holds(&mut self, v: &Version, item: &Item) -> bool {
        let (mut place, mut node) = (v.top(), v.root);
        if !item.below(v.root_level) {
            return false;
        }
        loop {
            if v.taken_apart(place) || matches!(node.address, 0 | node::LOST) {
                return false;
            }
            if item.level == Some(place.level) {
                return node.address == item.address;
            }
            let Ok(opened) = self.open_node(place, node) else { return false };
            let at = item.link_at(place.level);
            if place.level == 0 {
                return opened.links[at] & node::ADDRESS == item.address;
            }
            (place, node) = (place.child(at), NodeRef::of_link(opened.links[at]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_knows_the_way_to_itself() {
        let data = Item { level: None, index: 5 << 18 | 7 << 9 | 3, address: 1 };
        assert_eq!([2, 1, 0].map(|level| data.link_at(level)), [5, 7, 3]);
        assert_eq!([0, 1, 2].map(|level| data.below(level)), [false, false, true]);
        let leaf = Item { level: Some(0), index: 5 << 9 | 7, address: 1 };
        assert_eq!([2, 1].map(|level| leaf.link_at(level)), [5, 7]);
        let root = Item { level: Some(1), index: 0, address: 1 };
        assert_eq!([0, 1, 2].map(|level| root.below(level)), [false, true, true]);
    }
}
