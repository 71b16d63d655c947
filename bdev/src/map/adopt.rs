//! A node that has been read: checked, and taken over as a whole or as the pieces that reads wait
//! for.
//!
//! ```text
//!  page ─► header, checksum, identity ─┬─► all links checked ─► its slot: a node
//!                                      └─► a leaf of many runs, wanted for single blocks only:
//!                                          the links around those checked ─► pieces, no node
//! ```
//!
//! So a leaf of which one block was wanted does not push out another one.

use crate::engine::Engine;
use crate::format::Damage;
use crate::format::node::{self, NodeInfo, NodeRef};
use crate::map::node_cache::Key;
use crate::map::pieces::{PIECE_LINKS, PIECES};
use crate::map::runs::RUNS_MAX;
use crate::page::PageId;
use crate::status::Status;

/// What has been taken over of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Adopted {
    /// All of it, in its slot.
    Node,
    /// The pieces that are wanted, which are all kept; its slot is to be abandoned.
    Pieces,
}

impl Engine {
    /// Checks a node that was read and takes its links over.
    pub(crate) fn adopt_node(
        &mut self,
        slot: u32,
        key: Key,
        node: NodeRef,
        page: PageId,
    ) -> Result<Adopted, Status> {
        let read = node::info(self.pages.bytes(page), self.store, self.shard, node.address);
        let known = read.and_then(|info| self.check_node(key, node, &info).map(|()| info));
        let taken = known.and_then(|info| match self.keep_pieces(slot, key, page)? {
            true => Ok(Adopted::Pieces),
            false => self.take_over(slot, key, page, &info).map(|()| Adopted::Node),
        });
        if taken.is_ok() && key.level() == 0 {
            self.note_checked(key, node);
        }
        taken.map_err(|damage| {
            self.tell_damage(key, node, damage);
            Status::Corrupt
        })
    }

    /// Whether a node is the one that is meant, as far as it says.
    fn check_node(&self, key: Key, node: NodeRef, info: &NodeInfo) -> Result<(), Damage> {
        let fits = info.level == key.level()
            && info.index == key.index()
            && info.generation <= self.superblock.generation + 1
            && self.may_own(self.disk_of_tree(key.tree()), info.owner);
        if !fits {
            return Err(Damage::Identity);
        }
        if node.stamp.fits(info.generation) { Ok(()) } else { Err(Damage::Stale) }
    }

    /// Keeps the pieces that are wanted of a leaf, if nothing else is and it has too many runs for
    /// a compact copy of all of it. False: it is to be a node.
    fn keep_pieces(&mut self, slot: u32, key: Key, page: PageId) -> Result<bool, Damage> {
        let meta = &self.cache.meta[slot as usize];
        let wanted = meta.pieces;
        if key.level() > 0 || meta.whole || wanted == 0 {
            return Ok(false);
        }
        if !node::has_more_runs(self.pages.bytes(page), RUNS_MAX) {
            return Ok(false);
        }
        let of_leaf = (0..PIECES).filter(|piece| wanted >> piece & 1 == 1);
        let firsts = of_leaf.map(|piece| piece * PIECE_LINKS as u16);
        for first in firsts.clone() {
            let links: [u64; PIECE_LINKS] =
                node::addresses(self.pages.bytes(page), usize::from(first));
            if !node::linkable(&links, &self.space.geometry) {
                return Err(Damage::Content);
            }
            // There is none yet: who wanted it would have been answered from it.
            if !self.cache.keep_piece(key, first, &links) {
                return Ok(false);
            }
            self.stats.cache_pieces += 1;
        }
        // One may have had to give way to another.
        let several = wanted.count_ones() > 1;
        Ok(!several || firsts.into_iter().all(|first| self.cache.has_piece(key, first)))
    }

    /// Puts all of a node into its slot.
    fn take_over(
        &mut self,
        slot: u32,
        key: Key,
        page: PageId,
        info: &NodeInfo,
    ) -> Result<(), Damage> {
        let links = &mut self.cache.links[slot as usize];
        node::read_links(self.pages.bytes(page), links, info.level);
        if !node::linkable(links, &self.space.geometry) {
            return Err(Damage::Content);
        }
        // A disk's slot may have been another's before; that one's nodes are foreign.
        let disk = self.disk_of_tree(key.tree());
        let found = self.disks[disk as usize].as_ref();
        let own = found.is_some_and(|d| info.generation >= d.born);
        let meta = &mut self.cache.meta[slot as usize];
        meta.birth = if info.owner == disk && own { info.birth } else { 0 };
        meta.prev_birth = meta.birth;
        meta.shared_with = info.shared_with;
        // Written by the point under way: a replay would still check what it links to.
        if key.level() == 0 && info.generation >= self.superblock.generation {
            self.cache.mark_unsealed(slot);
        }
        Ok(())
    }

    fn tell_damage(&mut self, key: Key, node: NodeRef, damage: Damage) {
        let disk = self.disk_of_tree(key.tree());
        let name = self.disks[disk as usize].as_ref().map(|d| d.name.to_string());
        self.event(
            true,
            format!(
                "disk {}: map node at block {} (level {}, index {}): {damage}",
                name.unwrap_or_else(|| disk.to_string()),
                node.address,
                key.level(),
                key.index()
            ),
        );
    }
}
