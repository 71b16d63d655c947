//! The mark: walks the trees of all versions, each node once, and proves what every node says of
//! itself.
//!
//! A node belongs to one place (level, index). So a node met again at another place is damage, and
//! that ends every cycle, since children lie one level down. What a version may hold of other
//! disks' nodes follows from its descent: of each disk before it, what was born up to the snapshot
//! it was cloned from.

use super::CheckPhase;
use super::cuts::Broken;
use super::lineage::Related;
use super::report::{FindingKind, Severity};
use super::system::{Shard, Slot};
use crate::error::Error;
use crate::format::disk_record::{REAP_LIVE, State};
use crate::format::node::{self, NodeInfo, NodeRef, Stamp};
use crate::format::{Damage, Header, Kind, unseal};
use crate::limits::{LEVEL_BITS, LINKS};

/// What is kept of a node that was met. For a pair of a snapshot log: its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NodeSeen {
    /// Level in the low byte, index above.
    place: u64,
    family: u32,
    owner: u32,
    birth: u64,
    generation: u64,
    /// When it must have been written, as what was followed to it first says.
    stamp: Stamp,
    /// Blocks mapped below; `None`: something below could not be read.
    mapped: Option<Mapped>,
    /// Met in the second walk.
    pub again: bool,
}

/// Blocks that a subtree maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapped {
    /// Lost ones in leaves count.
    blocks: u64,
    /// None is lost, so that its record must say the same.
    whole: bool,
}

const LOG_LEVEL: u64 = 0xff;

/// What leads to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    /// The record of a disk, or the log entry of a snapshot: it is a root.
    Root(u32, Option<u64>),
    /// This link of the node at that block.
    Link(u64, u16),
}

/// Why a node cannot be used.
pub(super) struct Unusable {
    pub why: String,
    /// It is a good node, but of another place.
    pub elsewhere: bool,
}

impl From<String> for Unusable {
    fn from(why: String) -> Unusable {
        Unusable { why, elsewhere: false }
    }
}

impl NodeSeen {
    /// A pair of the snapshot log of disk `slot`.
    pub fn log(slot: u32) -> NodeSeen {
        NodeSeen {
            place: LOG_LEVEL,
            family: 0,
            owner: slot,
            birth: 0,
            generation: 0,
            stamp: Stamp::exactly(0),
            mapped: None,
            again: false,
        }
    }

    pub fn is_log(&self) -> bool {
        self.place == LOG_LEVEL
    }

    /// Where it was met first.
    fn place(&self) -> Place {
        Place { level: (self.place & 0xff) as u8, index: self.place >> 8 }
    }

    /// It could not be used.
    pub fn is_broken(&self) -> bool {
        self.generation == u64::MAX
    }
}

/// Where a node has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub level: u8,
    pub index: u64,
}

impl Place {
    fn packed(self) -> u64 {
        u64::from(self.level) | self.index << 8
    }

    pub fn child(self, at: usize) -> Place {
        Place { level: self.level - 1, index: self.index << LEVEL_BITS | at as u64 }
    }

    /// First leaf behind it.
    fn past(self) -> u64 {
        (self.index + 1) << (LEVEL_BITS * u32::from(self.level))
    }

    /// First disk block below it.
    pub fn first_block(self) -> u64 {
        self.index << (LEVEL_BITS * (u32::from(self.level) + 1))
    }
}

/// One tree: a snapshot's or the live one of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub slot: u32,
    /// `None`: the live tree.
    pub snap: Option<u64>,
    pub root: NodeRef,
    pub root_level: u8,
    pub family: u32,
    /// Newest epoch that its own nodes may be from.
    pub epoch: u64,
    /// Leaves below this have been taken apart already.
    reaped: u64,
    /// Mapped blocks, as its record or log entry says; `None`: not to be compared.
    mapped: Option<u64>,
}

impl Version {
    /// Where its root is.
    pub fn top(&self) -> Place {
        Place { level: self.root_level, index: 0 }
    }

    /// True if the reaper has freed what this version alone held below a place.
    pub fn taken_apart(&self, place: Place) -> bool {
        place.past() <= self.reaped
    }
}

/// A node just read.
pub(super) struct Opened {
    pub links: Box<[u64; LINKS]>,
    pub info: NodeInfo,
}

impl Shard<'_> {
    /// All trees, those of older versions first, so that a node shared by several counts as the
    /// oldest one's.
    pub fn versions(&self) -> Vec<Version> {
        let mut all = Vec::new();
        for (slot, held) in self.slots.iter().enumerate() {
            let Slot::Disk(disk) = held else { continue };
            let record = &disk.record;
            let (slot, family) = (slot as u32, disk.family);
            let deleting = record.state == State::Deleting;
            for snap in disk.snaps.iter().filter(|s| !s.ghost && s.root != 0) {
                let reaping = record.reaping == snap.snap;
                all.push(Version {
                    slot,
                    snap: Some(snap.snap),
                    root: root_of(snap.root, snap.root_generation),
                    root_level: snap.root_level,
                    family,
                    epoch: snap.snap,
                    reaped: if reaping { record.reap_cursor } else { 0 },
                    mapped: (!reaping).then_some(snap.mapped),
                });
            }
            if record.root != 0 {
                let reaping = record.reaping == REAP_LIVE;
                all.push(Version {
                    slot,
                    snap: None,
                    root: root_of(record.root, record.root_generation),
                    root_level: record.root_level,
                    family,
                    epoch: record.epoch,
                    reaped: if reaping { record.reap_cursor } else { 0 },
                    mapped: (!reaping && !deleting).then_some(record.mapped),
                });
            }
        }
        all.sort_by_key(|v| v.snap.is_none());
        all
    }

    fn what(&self, v: &Version) -> String {
        let label = v.snap.and_then(|id| {
            let snap = self.disk(v.slot)?.snaps.iter().find(|s| s.snap == id)?;
            (!snap.label.is_empty()).then(|| format!(" ({})", snap.label))
        });
        match v.snap {
            Some(id) => format!("snapshot {id}{}: ", label.unwrap_or_default()),
            None => String::new(),
        }
    }

    pub fn find_in(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        v: &Version,
        block: u64,
        text: &str,
    ) {
        let text = format!("{}{text}", self.what(v));
        let before = self.report.findings.len();
        self.find_on(severity, kind, v.slot, Some(block), &text);
        if let Some(finding) = self.report.findings.get_mut(before) {
            finding.snapshot = v.snap;
        }
    }

    /// Marks all that the versions hold.
    pub fn mark_trees(&mut self) -> Result<(), Error> {
        let versions = self.versions();
        for v in &versions {
            self.tell_trees()?;
            let top = Place { level: v.root_level, index: 0 };
            let holder = Holder::Root(v.slot, v.snap);
            let mapped = if v.taken_apart(top) { None } else { self.mark(v, top, v.root, holder)? };
            if let Some(snap) = v.snap
                && !mapped.is_some_and(|mapped| mapped.whole)
                && !v.taken_apart(top)
            {
                self.holed.push((v.slot, snap));
            }
            if v.snap.is_none()
                && let Slot::Disk(disk) = &mut self.slots[v.slot as usize]
            {
                disk.counted = mapped.filter(|_| v.mapped.is_some()).map(|mapped| mapped.blocks);
            }
            if let (Some(says), Some(Mapped { blocks: has, whole: true })) = (v.mapped, mapped)
                && says != has
            {
                let text = format!("its record says {says} blocks are mapped, its tree has {has}");
                let root = v.root.address;
                self.find_in(Severity::Warning, FindingKind::Counter, v, root, &text);
            }
        }
        Ok(())
    }

    fn tell_trees(&mut self) -> Result<(), Error> {
        let g = self.geometry();
        let free: u64 = self.entries.iter().flatten().map(|e| u64::from(e.free)).sum();
        let counts = &self.report.counts;
        let done = counts.nodes + counts.data_blocks;
        let total = (g.extent_count * g.extent_blocks).saturating_sub(free);
        self.tell(CheckPhase::Trees, done, total)
    }

    /// Marks the subtree of `node`; answers how many blocks it maps, if all of it can be read.
    /// As deep as the tree is high: four calls.
    fn mark(
        &mut self,
        v: &Version,
        place: Place,
        node: NodeRef,
        holder: Holder,
    ) -> Result<Option<Mapped>, Error> {
        let NodeRef { address, stamp } = node;
        if let Some(seen) = self.nodes.get(&address).copied() {
            return Ok(self.met_again(v, place, node, &seen, holder));
        }
        self.report.counts.nodes += 1;
        let opened = self.open_node(place, node);
        let lawful = match &opened {
            Ok(opened) => self.may_hold(v, &opened.info),
            Err(_) => Ok(()),
        };
        if let (Ok(_), Err(why)) = (&opened, lawful) {
            let text = format!("map node at block {address} ({}): {why}", describe(place));
            self.find_in(Severity::Error, FindingKind::Shared, v, address, &text);
            self.lose(v, place, address, holder, &why);
            return Ok(None);
        }
        let doubly = !opened.as_ref().is_err_and(|e| e.elsewhere) && self.used.add(address);
        if doubly {
            self.contested.insert(address);
            let text = format!(
                "map node at block {address} ({}) is also a data block elsewhere",
                describe(place)
            );
            self.find_in(Severity::Error, FindingKind::Shared, v, address, &text);
        }
        let opened = match opened {
            Ok(opened) => opened,
            Err(Unusable { why, elsewhere }) => {
                self.blind = true;
                let text = format!(
                    "map node at block {address} ({}) cannot be used: {why}",
                    describe(place)
                );
                self.find_in(Severity::Error, FindingKind::Node, v, address, &text);
                if elsewhere {
                    // Whoever it belongs to may still come to it.
                    self.lose(v, place, address, holder, &why);
                    return Ok(None);
                }
                // Of a disk that was cloned, nobody knows how old it was.
                let origin = self.disk(v.slot).and_then(|d| d.record.origin);
                let birth = if origin.is_some() { 0 } else { v.epoch };
                self.broken.push(Broken { address, stamp, place, slot: v.slot, birth });
                if doubly {
                    self.lose_node(v, place, address);
                }
                self.remember(v, place, node, None);
                return Ok(None);
            }
        };
        self.remember(v, place, node, Some(&opened.info));
        let mapped = if place.level == 0 {
            self.mark_leaf(v, place, address, &opened)?
        } else {
            self.mark_children(v, place, address, &opened)?
        };
        self.nodes.get_mut(&address).expect("remembered").mapped = mapped;
        Ok(mapped)
    }

    fn mark_children(
        &mut self,
        v: &Version,
        place: Place,
        parent: u64,
        opened: &Opened,
    ) -> Result<Option<Mapped>, Error> {
        let mut sum = Some(Mapped { blocks: 0, whole: true });
        let mut lost = 0u64;
        for (at, link) in opened.links.iter().enumerate() {
            let (child, node) = (place.child(at), NodeRef::of_link(*link));
            if node.address == 0 || v.taken_apart(child) {
                continue;
            }
            if node.address == node::LOST {
                lost += 1;
                sum = sum.map(|sum| Mapped { whole: false, ..sum });
                continue;
            }
            let holder = Holder::Link(parent, at as u16);
            let below = self.mark(v, child, node, holder)?;
            sum = sum
                .zip(below)
                .map(|(a, b)| Mapped { blocks: a.blocks + b.blocks, whole: a.whole && b.whole });
        }
        if lost > 0 {
            let text = format!(
                "{lost} of 512 subtrees from disk block {} on ({}) were given up after earlier damage and answer with errors",
                place.first_block(),
                describe(place)
            );
            self.find_in(Severity::Note, FindingKind::Lost, v, v.root.address, &text);
        }
        Ok(sum)
    }

    fn mark_leaf(
        &mut self,
        v: &Version,
        place: Place,
        leaf: u64,
        opened: &Opened,
    ) -> Result<Option<Mapped>, Error> {
        let (mut mapped, mut lost) = (0, 0);
        for (at, link) in opened.links.iter().enumerate() {
            let block = link & node::ADDRESS;
            if block == 0 {
                continue;
            }
            mapped += 1;
            if block == node::LOST {
                lost += 1;
                continue;
            }
            if !self.used.add(block) {
                self.report.counts.data_blocks += 1;
                continue;
            }
            if let Some(seen) = self.nodes.get(&block).copied() {
                self.contested.insert(block);
                let vba = place.first_block() + at as u64;
                if seen.is_broken() {
                    // Overwritten by the data, for all anybody can tell.
                    self.lose_node(v, seen.place(), block);
                } else {
                    self.lose_data(v, leaf, at, vba, block, "it holds metadata");
                }
                let text = format!(
                    "disk block {vba} (leaf at block {leaf}) is at block {block}, which holds metadata"
                );
                self.find_in(Severity::Error, FindingKind::Shared, v, block, &text);
            } else {
                self.shared.add(block);
            }
        }
        if lost > 0 {
            let text = format!(
                "{lost} of 512 blocks from disk block {} on were given up after earlier damage and answer with errors",
                place.first_block()
            );
            self.find_in(Severity::Note, FindingKind::Lost, v, leaf, &text);
        }
        self.tell_trees()?;
        Ok(Some(Mapped { blocks: mapped, whole: lost == 0 }))
    }

    fn remember(&mut self, v: &Version, place: Place, node: NodeRef, info: Option<&NodeInfo>) {
        let (owner, birth) = info.map_or((v.slot, 0), |i| (i.owner, i.birth));
        let seen = NodeSeen {
            place: place.packed(),
            family: v.family,
            owner,
            birth,
            // One that cannot be read may be anybody's.
            generation: info.map_or(u64::MAX, |i| i.generation),
            stamp: node.stamp,
            mapped: None,
            again: false,
        };
        self.nodes.insert(node.address, seen);
    }

    fn met_again(
        &mut self,
        v: &Version,
        place: Place,
        node: NodeRef,
        seen: &NodeSeen,
        holder: Holder,
    ) -> Option<Mapped> {
        let address = node.address;
        let why = if seen.is_log() {
            format!("is part of the snapshot log of disk {}", self.disk_name(seen.owner))
        } else if seen.place != place.packed() {
            format!("is also linked as {}", describe(seen.place()))
        } else if seen.family != v.family {
            "is also held by a disk that it does not descend from".to_string()
        } else if !seen.stamp.agrees(node.stamp) {
            "is also linked as it was at another consistency point".to_string()
        } else {
            let info = NodeInfo {
                level: place.level,
                owner: seen.owner,
                index: place.index,
                generation: seen.generation,
                birth: seen.birth,
                shared_with: 0,
            };
            match self.may_hold(v, &info) {
                Ok(()) => return seen.mapped,
                Err(why) => why,
            }
        };
        self.contested.insert(address);
        let text = format!("map node at block {address} ({}) {why}", describe(place));
        self.find_in(Severity::Error, FindingKind::Shared, v, address, &text);
        self.lose(v, place, address, holder, &format!("that node {why}"));
        None
    }

    /// Reads what `node` leads to and proves that it is the node of this place, not an older one.
    pub fn open_node(&mut self, place: Place, node: NodeRef) -> Result<Opened, Unusable> {
        let address = node.address;
        let (store, number) = (self.store, self.number as u16);
        let geometry = self.geometry();
        if !geometry.linkable(address) {
            return Err("it lies out of bounds".to_string().into());
        }
        let block = self.reader.node(address).map_err(|error| error.message)?;
        let mut links = Box::new([0; LINKS]);
        let read = node::read(block, &mut links, store, number, address);
        let info = match read {
            Ok(info) => info,
            // Say what it is instead, where that is known.
            Err(Damage::Kind) => {
                let log: Result<Header, Damage> =
                    unseal(block, Kind::SnapshotLog, store, number, address);
                let text = Damage::Kind.to_string();
                let text = if log.is_ok() { format!("{text} (snapshot log)") } else { text };
                return Err(text.into());
            }
            Err(damage) => return Err(damage.to_string().into()),
        };
        if info.level != place.level || info.index != place.index {
            let other = Place { level: info.level, index: info.index };
            let why = format!("it is the node of {}", describe(other));
            return Err(Unusable { why, elsewhere: true });
        }
        if info.generation > self.superblock.generation {
            let (is, last) = (info.generation, self.superblock.generation);
            let why = format!("it is from consistency point {is}, but {last} was the last");
            return Err(why.into());
        }
        if !node.stamp.fits(info.generation) {
            let why = format!("it {}: it is of point {}", Damage::Stale, info.generation);
            return Err(Unusable { why, elsewhere: true });
        }
        if let Some(at) = links.iter().position(|&link| self.bad_link(link, place.level)) {
            let block = links[at] & node::ADDRESS;
            return Err(match geometry.linkable(block) {
                false => format!("its link {at} leads out of bounds, to block {block}").into(),
                true => format!("its link {at}, to block {block}, is from the future").into(),
            });
        }
        Ok(Opened { links, info })
    }

    /// True if nothing can be where a link of a node of that level leads to.
    pub fn bad_link(&self, link: u64, level: u8) -> bool {
        let NodeRef { address, stamp } = NodeRef::of_link(link);
        let dated = level == 0 || stamp.newest(self.superblock.generation).is_some();
        let fits = dated && self.geometry().linkable(address);
        !(fits || matches!(address, 0 | node::LOST))
    }

    /// Whether a version may hold a node with this owner and birth.
    fn may_hold(&self, v: &Version, info: &NodeInfo) -> Result<(), String> {
        let owner = self.disk(info.owner).map(|disk| &disk.record);
        // A slot may have been another disk's before: that one's nodes are older.
        let its_own = owner.is_some_and(|record| info.generation >= record.born);
        let newest = match self.lineage.related(v.slot, info.owner, its_own) {
            Related::Same => v.epoch,
            Related::Ancestor(snap) => snap,
            // Between have been snapshots that are deleted: who came before is no longer known.
            Related::Perhaps => return Ok(()),
            Related::No => {
                let other = self.disk_name(info.owner);
                return Err(format!(
                    "it belongs to disk {other}, which this one does not descend from"
                ));
            }
        };
        if info.birth <= newest {
            return Ok(());
        }
        let name = self.disk_name(info.owner);
        Err(format!("it was born in epoch {} of disk {name}, after this version", info.birth))
    }
}

fn root_of(address: u64, generation: u64) -> NodeRef {
    NodeRef { address, stamp: Stamp::exactly(generation) }
}

/// A place, for people.
pub(super) fn describe(place: Place) -> String {
    format!(
        "level {}, index {}, disk block {} and up",
        place.level,
        place.index,
        place.first_block()
    )
}
