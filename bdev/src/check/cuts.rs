//! Cutting off what a tree holds and must not: nodes that cannot be used, and one of two claims to
//! the same block.
//!
//! ```text
//!   root ──► inner ──► leaf ─✗─► block of somebody else       the link is cut: "lost"
//!   root'──► inner'──► leaf'                                  copies of the way down to it; all
//!                                                             other links stay as they are
//! ```
//!
//! Who keeps a block that two claim: a snapshot log before a node, a node that can be used before
//! data, a node's owner before others. Of two data claims the one that has the blocks beside it at
//! the places beside it, since blocks are given out in runs; else the one met first.
//! Trees that count are not overwritten: the copies count with the next superblock. Only a node
//! that cannot be used anyway is written over where it is.

use super::repair::Plan;
use super::system::Shard;
use super::tree::{Holder, Place, Version, describe};
use crate::error::Error;
use crate::format::node::{self, NodeInfo, NodeRef, Stamp};
use crate::limits::{LEVEL_BITS, LINKS};
use crate::types::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};

/// Links of a node below which everything is lost.
const LOST_LINKS: [u64; LINKS] = [node::LOST | node::READ_ONLY; LINKS];

/// A node that cannot be used, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken {
    pub address: u64,
    /// What is written in its place has to fit this.
    pub stamp: Stamp,
    pub place: Place,
    pub slot: u32,
    pub birth: u64,
}

/// What a repair may do to a link.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Cut {
    /// Mark it lost; and what to say of that.
    Lose(String),
    /// Mark it as an older version's, so that it is not overwritten in place.
    Share(String),
}

/// Data that a disk, or disks that descend from each other, have at some place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    pub vba: u64,
    pub family: u32,
    pub slot: u32,
    /// How many of the two neighbours on the device are neighbours on the disk.
    pub beside: u32,
}

impl Claim {
    /// Of the block that link `at` of a leaf leads to.
    pub fn new(v: &Version, vba: u64, links: &[u64; LINKS], at: usize) -> Claim {
        let is =
            |at: usize, block: u64| links.get(at).is_some_and(|link| link & node::ADDRESS == block);
        let block = links[at] & node::ADDRESS;
        let before = at > 0 && is(at - 1, block - 1);
        let beside = u32::from(before) + u32::from(is(at + 1, block + 1));
        Claim { vba, family: v.family, slot: v.slot, beside }
    }

    /// It is no other disk's, and at no other place.
    pub fn same(&self, other: &Claim) -> bool {
        (self.vba, self.family) == (other.vba, other.family)
    }
}

/// Links to be cut.
#[derive(Default)]
pub(super) struct Cuts {
    /// Data blocks with several claims, and whose they stay.
    claims: BTreeMap<u64, Claim>,
    links: BTreeMap<(u64, u16), Cut>,
    roots: BTreeMap<(u32, Option<u64>), String>,
    /// Nodes that nothing may lead to any more.
    nodes: BTreeMap<u64, String>,
}

impl Cuts {
    /// True if none needs data to be given up.
    pub fn harmless(&self) -> bool {
        let share = |cut: &Cut| matches!(cut, Cut::Share(_));
        self.claims.is_empty()
            && self.roots.is_empty()
            && self.nodes.is_empty()
            && self.links.values().all(share)
    }

    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.harmless()
    }

    /// Leaves only those that give up nothing.
    fn keep_harmless(&mut self) {
        self.claims.clear();
        self.roots.clear();
        self.nodes.clear();
        self.links.retain(|_, cut| matches!(cut, Cut::Share(_)));
    }

    fn say(&self, plan: &mut Plan) {
        let links = self.links.values().map(|cut| match cut {
            Cut::Lose(text) | Cut::Share(text) => text,
        });
        let said: BTreeSet<&String> =
            self.roots.values().chain(self.nodes.values()).chain(links).collect();
        said.into_iter().for_each(|text| plan.say(text.clone()));
    }
}

impl Shard<'_> {
    /// What leads from `holder` to a node must be cut.
    pub fn lose(&mut self, v: &Version, place: Place, address: u64, holder: Holder, why: &str) {
        self.blind = true;
        let disk = self.name_of(v);
        let from = describe(place);
        let text = format!(
            "disk {disk}: what its map node at block {address} held ({from}) is lost: {why}"
        );
        match holder {
            Holder::Root(slot, snap) => {
                self.cuts.roots.insert((slot, snap), text);
            }
            Holder::Link(node, at) => {
                self.cuts.links.insert((node, at), Cut::Lose(text));
            }
        }
    }

    /// All that leads to a node must be cut: its block is data.
    pub fn lose_node(&mut self, v: &Version, place: Place, address: u64) {
        self.blind = true;
        let disk = self.name_of(v);
        let text = format!(
            "disk {disk}: what its map node at block {address} held ({}) is lost: the block holds data of a disk",
            describe(place)
        );
        self.cuts.nodes.insert(address, text);
    }

    /// A leaf must not lead to a block of data.
    pub fn lose_data(
        &mut self,
        v: &Version,
        leaf: u64,
        at: usize,
        vba: u64,
        block: u64,
        why: &str,
    ) {
        let disk = self.name_of(v);
        let text = format!("disk {disk}: disk block {vba} (block {block}) is lost: {why}");
        self.cuts.links.insert((leaf, at as u16), Cut::Lose(text));
    }

    /// Two have the same data block, and only one of them can keep it.
    pub fn contend(&mut self, block: u64, first: Claim, second: Claim) {
        let keeps = self.cuts.claims.entry(block).or_insert(first);
        if second.beside > keeps.beside {
            *keeps = second;
        }
    }

    /// A leaf must not think that a block is its own.
    pub fn share(&mut self, v: &Version, leaf: u64, at: usize, vba: u64) {
        let disk = self.name_of(v);
        let text = format!("disk {disk}: disk block {vba} is not overwritten in place any more");
        self.cuts.links.entry((leaf, at as u16)).or_insert(Cut::Share(text));
    }

    fn name_of(&self, v: &Version) -> String {
        let disk = self.disk_name(v.slot);
        v.snap.map_or(disk.clone(), |snap| format!("{disk}, snapshot {snap}"))
    }

    /// Plans the trees without the links to be cut; with `all` also those that give up data.
    pub fn cut_links(&mut self, all: bool, plan: &mut Plan) -> Result<(), Error> {
        let mut cuts = std::mem::take(&mut self.cuts);
        if !all {
            cuts.keep_harmless();
        }
        if cuts.is_empty() {
            return Ok(());
        }
        let mut moved = BTreeMap::new();
        for v in self.versions() {
            let (top, root) = (v.top(), v.root.address);
            if cuts.roots.contains_key(&(v.slot, v.snap)) || cuts.nodes.contains_key(&root) {
                self.lose_root(&v, plan)?;
            } else if !v.taken_apart(top) {
                let new = self.rewritten(&v, top, v.root, &cuts, &mut moved, plan)?;
                if new != root {
                    self.set_root(&v, new, None, plan);
                }
            }
        }
        cuts.say(plan);
        plan.again = true;
        Ok(())
    }

    /// Where the node is once the links below it are cut: at a new place if it changed.
    fn rewritten(
        &mut self,
        v: &Version,
        place: Place,
        node: NodeRef,
        cuts: &Cuts,
        moved: &mut BTreeMap<u64, u64>,
        plan: &mut Plan,
    ) -> Result<u64, Error> {
        let address = node.address;
        if let Some(&at) = moved.get(&address) {
            return Ok(at);
        }
        let Ok(opened) = self.open_node(place, node) else { return Ok(address) };
        let (mut links, info) = (opened.links, opened.info);
        let mut changed = false;
        for at in 0..LINKS {
            let (link, to) = (links[at], links[at] & node::ADDRESS);
            if to == 0 || to == node::LOST || (place.level > 0 && v.taken_apart(place.child(at))) {
                continue;
            }
            let (below, vba) = (place.level > 0, place.first_block() + at as u64);
            links[at] = match cuts.links.get(&(address, at as u16)) {
                Some(Cut::Lose(_)) => self.lost_link(&info, at, plan)?,
                Some(Cut::Share(_)) => link | node::READ_ONLY,
                None if below && cuts.nodes.contains_key(&to) => self.lost_link(&info, at, plan)?,
                None if below => {
                    let child = NodeRef::of_link(link);
                    let new = self.rewritten(v, place.child(at), child, cuts, moved, plan)?;
                    // Of the same consistency point, so the stamp stays.
                    link & !node::ADDRESS | new
                }
                None => match cuts.claims.get(&to) {
                    Some(keeps) if !keeps.same(&Claim::new(v, vba, &links, at)) => {
                        self.say_claim(v, vba, to, keeps, plan);
                        node::LOST | node::READ_ONLY
                    }
                    _ => link,
                },
            };
            changed |= links[at] != link;
        }
        let new = if changed { self.plan_node(&links, &info, plan)? } else { address };
        moved.insert(address, new);
        Ok(new)
    }

    fn say_claim(&self, v: &Version, vba: u64, block: u64, keeps: &Claim, plan: &mut Plan) {
        let (disk, other) = (self.name_of(v), self.disk_name(keeps.slot));
        plan.say(format!(
            "disk {disk}: disk block {vba} (block {block}) is lost: the block stays disk block {} of disk {other}",
            keeps.vba
        ));
    }

    /// What takes the place of link `at` of a node. In place of a leaf there is a leaf of lost
    /// blocks, so that they are there again once they are written.
    fn lost_link(&mut self, parent: &NodeInfo, at: usize, plan: &mut Plan) -> Result<u64, Error> {
        if parent.level != 1 {
            return Ok(node::LOST | node::READ_ONLY);
        }
        // Whoever has the node above has it.
        let leaf = NodeInfo { level: 0, index: parent.index << LEVEL_BITS | at as u64, ..*parent };
        let address = self.plan_node(&LOST_LINKS, &leaf, plan)?;
        Ok(node::link_to(address, leaf.generation))
    }

    /// A root in place of one that is somebody else's.
    fn lose_root(&mut self, v: &Version, plan: &mut Plan) -> Result<(), Error> {
        let origin = self.disk(v.slot).and_then(|d| d.record.origin);
        let generation = self.superblock.generation;
        let info = NodeInfo {
            level: v.root_level,
            owner: v.slot,
            index: 0,
            generation,
            birth: if origin.is_some() { 0 } else { v.epoch },
            shared_with: 0,
        };
        let root = self.plan_node(&LOST_LINKS, &info, plan)?;
        self.set_root(v, root, Some(generation), plan);
        Ok(())
    }

    fn plan_node(
        &mut self,
        links: &[u64; LINKS],
        info: &NodeInfo,
        plan: &mut Plan,
    ) -> Result<u64, Error> {
        let address = self.take_free(1)?;
        let mut block = Box::new([0; BLOCK_SIZE]);
        node::write(&mut block, links, info, self.store, self.number as u16, address);
        plan.writes.push((address, block));
        Ok(address)
    }

    /// The root of a version is at another place from now on; `None`: as old as before.
    fn set_root(&mut self, v: &Version, root: u64, generation: Option<u64>, plan: &mut Plan) {
        if let Some(snap) = v.snap {
            self.note_hole(v.slot, snap, plan);
        }
        let Some(id) = v.snap else {
            let record = plan.record(self, v.slot);
            record.root = root;
            record.root_generation = generation.unwrap_or(record.root_generation);
            return;
        };
        for entry in plan.log(self, v.slot).iter_mut().filter(|e| e.snap == id) {
            entry.root = root;
            entry.root_generation = generation.unwrap_or(entry.root_generation);
        }
    }

    /// Writes over nodes that cannot be used: what is good of their links stays, the rest is lost.
    /// False: there are none.
    pub fn write_over(&mut self, plan: &mut Plan) -> bool {
        let geometry = self.geometry();
        for broken in std::mem::take(&mut self.broken) {
            let Broken { address, stamp, place, slot, birth } = broken;
            let Some(generation) = stamp.newest(self.superblock.generation) else { continue };
            if self.contested.contains(&address) || !geometry.linkable(address) {
                continue;
            }
            let mut links = Box::new([node::LOST; LINKS]);
            let mut info = NodeInfo {
                level: place.level,
                owner: slot,
                index: place.index,
                generation,
                birth,
                shared_with: 0,
            };
            let mut kept = 0;
            if let Some((read, found)) = self.salvage(&broken) {
                (links, info) = (read, found);
                kept = links.iter().filter(|l| geometry.linkable(**l & node::ADDRESS)).count();
            }
            let mut block = Box::new([0; BLOCK_SIZE]);
            let (store, shard) = (self.store, self.number as u16);
            node::write(&mut block, &links, &info, store, shard, address);
            plan.writes.push((address, block));
            let disk = self.disk_name(slot);
            let from = place.first_block();
            plan.say(format!(
                "disk {disk}: the map node at block {address} (level {}, disk block {from} and up) was given up; {kept} of its links are kept",
                place.level
            ));
        }
        !plan.writes.is_empty()
    }

    /// The good links of a node whose only fault is that others lead astray.
    fn salvage(&mut self, broken: &Broken) -> Option<(Box<[u64; LINKS]>, NodeInfo)> {
        let (store, shard) = (self.store, self.number as u16);
        let block = self.reader.node(broken.address).ok()?;
        let mut links = Box::new([0; LINKS]);
        let info = node::read(block, &mut links, store, shard, broken.address).ok()?;
        let lawful = info.level == broken.place.level
            && info.index == broken.place.index
            && info.generation <= self.superblock.generation
            && broken.stamp.fits(info.generation);
        for link in links.iter_mut() {
            if self.bad_link(*link, info.level) {
                *link = node::LOST;
            }
        }
        lawful.then_some((links, info))
    }
}
