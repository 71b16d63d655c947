//! The mark: walks the trees of all versions, each node once, and proves what every node says of
//! itself.
//!
//! A node belongs to one place (level, index). So a node met again at another place is damage, and
//! that ends every cycle, since children lie one level down. What a version may hold of other
//! disks' nodes follows from its descent: of each disk before it, what was born up to the snapshot
//! it was cloned from.

use super::CheckPhase;
use super::repair::Broken;
use super::report::{FindingKind, Severity};
use super::system::{Shard, Slot};
use crate::error::Error;
use crate::format::disk_record::{REAP_LIVE, State};
use crate::format::node::{self, NodeInfo};
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
    /// Blocks mapped below; `None`: something below could not be read.
    mapped: Option<u64>,
    /// Met in the second walk.
    pub again: bool,
}

const LOG_LEVEL: u64 = 0xff;

impl NodeSeen {
    /// A pair of the snapshot log of disk `slot`.
    pub fn log(slot: u32) -> NodeSeen {
        NodeSeen {
            place: LOG_LEVEL,
            family: 0,
            owner: slot,
            birth: 0,
            generation: 0,
            mapped: None,
            again: false,
        }
    }

    pub fn is_log(&self) -> bool {
        self.place == LOG_LEVEL
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
    pub root: u64,
    pub root_level: u8,
    pub family: u32,
    /// Newest epoch that its own nodes may be from.
    epoch: u64,
    /// Leaves below this have been taken apart already.
    reaped: u64,
    /// Mapped blocks, as its record or log entry says; `None`: not to be compared.
    mapped: Option<u64>,
}

impl Version {
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
                    root: snap.root,
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
                    root: record.root,
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
            let mapped = if v.taken_apart(top) { None } else { self.mark(v, top, v.root)? };
            if v.snap.is_none()
                && let Slot::Disk(disk) = &mut self.slots[v.slot as usize]
            {
                disk.counted = mapped.filter(|_| v.mapped.is_some());
            }
            if let (Some(says), Some(has)) = (v.mapped, mapped)
                && says != has
            {
                let text = format!("its record says {says} blocks are mapped, its tree has {has}");
                self.find_in(Severity::Warning, FindingKind::Counter, v, v.root, &text);
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

    /// Marks the subtree at `address`; answers how many blocks it maps, if all of it can be read.
    /// As deep as the tree is high: four calls.
    fn mark(&mut self, v: &Version, place: Place, address: u64) -> Result<Option<u64>, Error> {
        if let Some(seen) = self.nodes.get(&address).copied() {
            return Ok(self.met_again(v, place, address, &seen));
        }
        let doubly = self.used.add(address);
        if doubly {
            self.contested.insert(address);
            let text = format!(
                "map node at block {address} ({}) is also a data block elsewhere",
                describe(place)
            );
            self.find_in(Severity::Error, FindingKind::Shared, v, address, &text);
        }
        self.report.counts.nodes += 1;
        let opened = match self.open_node(place, address) {
            Ok(opened) => opened,
            Err(damage) => {
                self.blind = true;
                // Of a disk that was cloned, nobody knows how old it was.
                let origin = self.disk(v.slot).and_then(|d| d.record.origin);
                let birth = if origin.is_some() { 0 } else { v.epoch };
                self.broken.push(Broken { address, place, slot: v.slot, birth });
                let text = format!(
                    "map node at block {address} ({}) cannot be used: {damage}",
                    describe(place)
                );
                self.find_in(Severity::Error, FindingKind::Node, v, address, &text);
                self.remember(v, place, address, None);
                return Ok(None);
            }
        };
        self.remember(v, place, address, Some(&opened.info));
        if let Err(why) = self.may_hold(v, &opened.info) {
            let text = format!("map node at block {address} ({}): {why}", describe(place));
            self.find_in(Severity::Error, FindingKind::Shared, v, address, &text);
        }
        let mapped = if place.level == 0 {
            self.mark_leaf(v, place, address, &opened)?
        } else {
            self.mark_children(v, place, &opened)?
        };
        self.nodes.get_mut(&address).expect("remembered").mapped = mapped;
        Ok(mapped)
    }

    fn mark_children(
        &mut self,
        v: &Version,
        place: Place,
        opened: &Opened,
    ) -> Result<Option<u64>, Error> {
        let mut sum = Some(0u64);
        let mut lost = 0u64;
        for (at, link) in opened.links.iter().enumerate() {
            let child = place.child(at);
            let address = link & node::ADDRESS;
            if address == 0 || v.taken_apart(child) {
                continue;
            }
            if address == node::LOST {
                lost += 1;
                sum = None;
                continue;
            }
            let below = self.mark(v, child, address)?;
            sum = sum.zip(below).map(|(a, b)| a + b);
        }
        if lost > 0 {
            let text = format!(
                "{lost} of 512 subtrees from disk block {} on ({}) were given up after earlier damage and answer with errors",
                place.first_block(),
                describe(place)
            );
            self.find_in(Severity::Note, FindingKind::Lost, v, v.root, &text);
        }
        Ok(sum)
    }

    fn mark_leaf(
        &mut self,
        v: &Version,
        place: Place,
        leaf: u64,
        opened: &Opened,
    ) -> Result<Option<u64>, Error> {
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
            if self.nodes.contains_key(&block) {
                self.contested.insert(block);
                let vba = place.first_block() + at as u64;
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
        Ok((lost == 0).then_some(mapped))
    }

    fn remember(&mut self, v: &Version, place: Place, address: u64, info: Option<&NodeInfo>) {
        let (owner, birth) = info.map_or((v.slot, 0), |i| (i.owner, i.birth));
        let seen = NodeSeen {
            place: place.packed(),
            family: v.family,
            owner,
            birth,
            // One that cannot be read may be anybody's.
            generation: info.map_or(u64::MAX, |i| i.generation),
            mapped: None,
            again: false,
        };
        self.nodes.insert(address, seen);
    }

    fn met_again(
        &mut self,
        v: &Version,
        place: Place,
        address: u64,
        seen: &NodeSeen,
    ) -> Option<u64> {
        let why = if seen.is_log() {
            format!("is part of the snapshot log of disk {}", self.disk_name(seen.owner))
        } else if seen.place != place.packed() {
            let level = (seen.place & 0xff) as u8;
            let other = Place { level, index: seen.place >> 8 };
            format!("is also linked as {}", describe(other))
        } else if seen.family != v.family {
            "is also held by a disk that it does not descend from".to_string()
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
        None
    }

    /// Reads the node at `address` and proves that it is the one of this place.
    pub fn open_node(&mut self, place: Place, address: u64) -> Result<Opened, String> {
        let (store, number) = (self.store, self.number as u16);
        let geometry = self.geometry();
        if !geometry.linkable(address) {
            return Err("it lies out of bounds".to_string());
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
                return Err(if log.is_ok() { format!("{text} (snapshot log)") } else { text });
            }
            Err(damage) => return Err(damage.to_string()),
        };
        if info.level != place.level || info.index != place.index {
            let other = Place { level: info.level, index: info.index };
            return Err(format!("it is the node of {}", describe(other)));
        }
        if info.generation > self.superblock.generation {
            let (is, last) = (info.generation, self.superblock.generation);
            return Err(format!("it is from consistency point {is}, but {last} was the last"));
        }
        if let Some(at) = bad_link(&links, |b| geometry.linkable(b)) {
            let block = links[at] & node::ADDRESS;
            return Err(format!("its link {at} leads out of bounds, to block {block}"));
        }
        Ok(Opened { links, info })
    }

    /// Whether a version may hold a node with this owner and birth.
    fn may_hold(&self, v: &Version, info: &NodeInfo) -> Result<(), String> {
        let mut at = v.slot;
        let mut newest = v.epoch;
        for _ in 0..=self.slots.len() {
            let Some(disk) = self.disk(at) else { return Ok(()) };
            let record = &disk.record;
            // A slot may have been another disk's before: that one's nodes are older.
            if info.owner == at && info.generation >= record.born {
                if info.birth <= newest {
                    return Ok(());
                }
                let name = &record.name;
                return Err(format!(
                    "it was born in epoch {} of disk {name}, after this version",
                    info.birth
                ));
            }
            // Between have been snapshots that are deleted: who came before is no longer known.
            if record.adopted {
                return Ok(());
            }
            let Some((disk, snap)) = record.origin else {
                let other = self.disk_name(info.owner);
                return Err(format!(
                    "it belongs to disk {other}, which this one does not descend from"
                ));
            };
            (at, newest) = (disk, snap);
        }
        Ok(())
    }
}

fn bad_link(links: &[u64; LINKS], linkable: impl Fn(u64) -> bool) -> Option<usize> {
    links.iter().position(|link| {
        let block = link & node::ADDRESS;
        block != 0 && block != node::LOST && !linkable(block)
    })
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
