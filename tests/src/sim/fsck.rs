//! An independent reader of the store's image: every block must be exactly one of free, system,
//! journal, owned by one tree, or shared by trees of one family.
//!
//! ```text
//!  superblock ─▶ catalogue ─▶ bitmaps ────────────────┐
//!       └──────▶ records ─▶ logs ─▶ trees ─▶ owners ──┴─▶ equal, block by block
//! ```
//!
//! It shares no code with the engine, so that a mistake in reading is not made twice. It looks at
//! what the last committed consistency point says; the journal comes on top of that.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::image::{Block, Image, Kind, Sides, u64_at};
use super::rng::mix;

/// Links in a node.
const LINKS: u64 = 512;
/// Bits of a link that are the block.
const ADDRESS: u64 = (1 << 47) - 1;
/// What a link says where a damaged node had led.
const LOST: u64 = ADDRESS;
/// Catalogue lines in a block.
const CATALOGUE_ENTRIES: u64 = 252;
/// Snapshots in a block of a log.
const LOG_ENTRIES: usize = 31;
/// Where a record says where the live tree begins, and how many blocks it maps.
const RECORD_ROOT: usize = 64 + 96;
const RECORD_MAPPED: usize = 64 + 112;
/// Where an entry of a log says how many blocks its snapshot maps.
const ENTRY_MAPPED: usize = 32;
/// The live version is being reaped.
const REAP_LIVE: u64 = u64::MAX;

/// What the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Consistency point.
    pub generation: u64,
    /// Blocks of extents that no bitmap has in use.
    pub free: u64,
    /// In use by no tree.
    pub leaked: u64,
    /// The first of them.
    pub first_leaked: u64,
    /// Links to what is lost, damaged nodes, logs and bitmaps.
    pub damaged: u64,
    /// Deleted versions on their way out.
    pub dying: u64,
    /// Hash over what each version that is there maps where.
    pub mapping: u64,
}

/// Which consistency point must have written a node: its number modulo the first is the second.
type Stamp = (u64, u64);
/// Of a link.
const LINK_STAMPS: u64 = 4093;
/// Of a root.
const ROOT_STAMPS: u64 = 1 << 48;
/// Where a node has the stamps of its links, 12 bits each.
const STAMPS_AT: usize = 3152;

/// A tree to walk.
struct Version {
    family: u64,
    root: u64,
    stamp: Stamp,
    level: u8,
    /// Leaves below this have been reaped.
    cursor: u64,
    mapped: u64,
    /// Deleted.
    dying: bool,
    name: String,
    uuid: u64,
}

struct Geometry {
    records: u64,
    extents: u64,
    extent_blocks: u64,
    extent_count: u64,
}

/// Blocks mapped below a node, and the hash of what is mapped where.
#[derive(Clone, Copy, Default)]
struct Below {
    mapped: u64,
    hash: u64,
    lost: bool,
    /// Consistency point that wrote the node.
    generation: u64,
}

/// Where the trees of a consistency point lie.
pub struct Trees {
    /// The nodes.
    pub nodes: BTreeMap<u64, Rc<Block>>,
    /// Every block in use, and by what.
    pub owners: BTreeMap<u64, u64>,
}

struct Walk<'a> {
    image: &'a Image<'a>,
    geometry: Geometry,
    /// By block of the extents: who has it, 0 = nobody.
    owners: Vec<u64>,
    seen: BTreeMap<u64, Below>,
    found: Findings,
    tolerant: bool,
    /// Nodes are kept here, if anybody wants them.
    nodes: Option<BTreeMap<u64, Rc<Block>>>,
}

/// Reads the whole store. `tolerant`: metadata has been damaged on purpose, so that lost links,
/// unreadable nodes and leaks are lawful; two owners of one block never are.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(image: &Image, tolerant: bool) -> Result<Findings, String> {
    walk(image, tolerant, None).map(|walk| walk.found)
}

/// The same, and what it has seen.
///
/// # Errors
/// The first thing that is wrong.
pub fn trees(image: &Image, tolerant: bool) -> Result<Trees, String> {
    let walk = walk(image, tolerant, Some(BTreeMap::new()))?;
    let first = walk.geometry.extents;
    let owners = walk.owners.iter().enumerate().filter(|(_, owner)| **owner != 0);
    let owners = owners.map(|(place, owner)| (first + place as u64, *owner)).collect();
    Ok(Trees { nodes: walk.nodes.unwrap_or_default(), owners })
}

fn walk<'a>(
    image: &'a Image,
    tolerant: bool,
    nodes: Option<BTreeMap<u64, Rc<Block>>>,
) -> Result<Walk<'a>, String> {
    let (superblock, generation) = image.superblock()?;
    let field = |index: usize| u64_at(&superblock, 64 + index * 8);
    let geometry = Geometry {
        records: field(3),
        extents: field(7),
        extent_blocks: field(8),
        extent_count: field(9),
    };
    let (catalogue, pairs, used) = (field(1), field(2), field(12));
    let mut walk = Walk {
        image,
        owners: vec![0; (geometry.extent_blocks * geometry.extent_count) as usize],
        geometry,
        seen: BTreeMap::new(),
        found: Findings { generation, ..Findings::default() },
        tolerant,
        nodes,
    };
    let versions = walk.versions(used)?;
    for version in &versions {
        walk.version(version)?;
    }
    walk.bitmaps(catalogue, pairs)?;
    if walk.found.leaked > 0 && !tolerant {
        let f = &walk.found;
        return Err(format!(
            "{} blocks are in use by nobody, the first is {} (consistency point {generation})",
            f.leaked, f.first_leaked
        ));
    }
    Ok(walk)
}

impl Walk<'_> {
    /// Damage: an error unless it was done on purpose.
    fn damage(&mut self, what: impl Fn() -> String) -> Result<(), String> {
        self.found.damaged += 1;
        if self.tolerant { Ok(()) } else { Err(what()) }
    }

    /// All versions of all disks, and their families.
    fn versions(&mut self, used: u64) -> Result<Vec<Version>, String> {
        let mut records: BTreeMap<u64, Rc<Block>> = BTreeMap::new();
        for slot in 0..used {
            let at = self.geometry.records + 2 * slot;
            match self.image.pair(at, Kind::DiskRecord, self.found.generation) {
                Sides::Good(block) if block[64] != 0 => drop(records.insert(slot, block)),
                Sides::Good(_) => {}
                Sides::Bad(why) => self.damage(|| format!("disk record {slot}: {why}"))?,
            }
        }
        let family = |slot: u64| {
            let mut at = slot;
            for _ in 0..=records.len() {
                match records.get(&at) {
                    Some(block) if block[66] == 1 => {
                        at = u64::from(u32::from_le_bytes(block[68..72].try_into().expect("4")));
                    }
                    _ => break,
                }
            }
            at
        };
        let mut versions = Vec::new();
        for (slot, block) in &records {
            let field = |at: usize| u64_at(block, 64 + at);
            let (reaping, cursor) = (field(152), field(160));
            let deleting = block[64] == 2;
            self.found.dying += u64::from(deleting);
            let reaped = |id: u64| if reaping == id { cursor } else { 0 };
            versions.push(Version {
                family: family(*slot),
                root: u64_at(block, RECORD_ROOT),
                stamp: (ROOT_STAMPS, field(2264)),
                level: block[65],
                cursor: if deleting { reaped(REAP_LIVE) } else { 0 },
                mapped: u64_at(block, RECORD_MAPPED),
                dying: deleting,
                name: format!("the live version of disk {slot}"),
                uuid: field(72) ^ field(80),
            });
            let log = (field(136), field(144));
            self.log(*slot, log, family(*slot), deleting, &reaped, &mut versions)?;
        }
        Ok(versions)
    }

    /// The snapshots of a disk; claims the blocks of the log.
    fn log(
        &mut self,
        slot: u64,
        (head, count): (u64, u64),
        family: u64,
        deleting: bool,
        reaped: &impl Fn(u64) -> u64,
        versions: &mut Vec<Version>,
    ) -> Result<(), String> {
        let mut at = head;
        for number in (0..if head == 0 { 0 } else { count }).rev() {
            self.claim(at, 7, family, slot << 20 | number)?;
            self.claim(at + 1, 7, family, slot << 20 | 1 << 19 | number)?;
            let block = match self.image.pair(at, Kind::SnapshotLog, self.found.generation) {
                Sides::Good(block) => block,
                Sides::Bad(why) => {
                    return self.damage(|| format!("snapshot log of disk {slot}: {why}"));
                }
            };
            for entry in 0..LOG_ENTRIES {
                let entry = 64 + entry * 128;
                let id = u64_at(&block, entry);
                if id == 0 {
                    continue;
                }
                // Bit 2: a repair has given up something of it.
                let state = block[entry + 41] & 3;
                self.found.dying += u64::from(state == 1);
                versions.push(Version {
                    family,
                    root: u64_at(&block, entry + 16),
                    stamp: (ROOT_STAMPS, u64_at(&block, entry + 40) >> 16),
                    level: block[entry + 40],
                    cursor: reaped(id),
                    mapped: u64_at(&block, entry + ENTRY_MAPPED),
                    dying: deleting || state != 0,
                    name: format!("snapshot {id} of disk {slot}"),
                    uuid: u64_at(&block, entry + 48) ^ u64_at(&block, entry + 56),
                });
            }
            at = u64_at(&block, 64 + LOG_ENTRIES * 128);
        }
        Ok(())
    }

    /// Notes who has a block; an error if somebody else does. True if it was noted before.
    fn claim(&mut self, block: u64, kind: u64, family: u64, index: u64) -> Result<bool, String> {
        let place = self.place(block).ok_or_else(|| {
            format!("block {block} is no block of an extent, yet in use (kind {kind})")
        })?;
        let owner = (kind + 1) << 60 | (family & 0xf_ffff) << 40 | (index & 0xff_ffff_ffff);
        match self.owners[place] {
            0 => self.owners[place] = owner,
            other if other == owner => return Ok(true),
            other => {
                return Err(format!(
                    "block {block} has two owners: {} and {}",
                    describe(other),
                    describe(owner)
                ));
            }
        }
        Ok(false)
    }

    /// Place of a block among those of the extents, their heads excepted.
    fn place(&self, block: u64) -> Option<usize> {
        let g = &self.geometry;
        let place = block.checked_sub(g.extents)?;
        let inside = place < g.extent_blocks * g.extent_count && place % g.extent_blocks >= 2;
        inside.then_some(place as usize)
    }

    fn version(&mut self, version: &Version) -> Result<(), String> {
        if version.root == 0 {
            return match version.mapped {
                0 => Ok(()),
                _ if version.dying => Ok(()),
                count => Err(format!("{} is empty, but counts {count} blocks", version.name)),
            };
        }
        let below = self
            .node(version, version.root, version.level, 0, version.stamp)
            .map_err(|why| format!("{}: {why}", version.name))?;
        if version.dying {
            return Ok(());
        }
        if below.mapped != version.mapped && !below.lost && !self.tolerant {
            let (due, is) = (version.mapped, below.mapped);
            return Err(format!("{} maps {is} blocks, but counts {due}", version.name));
        }
        self.found.mapping = self.found.mapping.wrapping_add(mix(version.uuid ^ below.hash));
        Ok(())
    }

    /// Claims a node and what is below it.
    fn node(
        &mut self,
        v: &Version,
        at: u64,
        level: u8,
        index: u64,
        (modulus, rest): Stamp,
    ) -> Result<Below, String> {
        let span = u32::from(level) * 9;
        if (index + 1) << span <= v.cursor {
            return Ok(Below::default());
        }
        if self.claim(at, 1 + u64::from(level), v.family, index)?
            && let Some(below) = self.seen.get(&at).copied()
        {
            if below.generation % modulus != rest {
                self.damage(|| format!("node at block {at}: parents differ about its stamp"))?;
            }
            return Ok(below);
        }
        let block = match self.image.node(at, level, index, self.found.generation) {
            Ok(block) => block,
            Err(why) => {
                self.damage(|| format!("node at block {at}: {why}"))?;
                return Ok(Below { lost: true, ..Below::default() });
            }
        };
        let generation = u64_at(&block, 3072 + 48);
        if generation % modulus != rest {
            self.damage(|| {
                format!("node at block {at} is of point {generation}, due was {rest} of {modulus}")
            })?;
            return Ok(Below { lost: true, ..Below::default() });
        }
        if let Some(nodes) = &mut self.nodes {
            nodes.insert(at, block.clone());
        }
        let mut below = Below { generation, ..Below::default() };
        for child in 0..LINKS {
            let link = &block[child as usize * 6..child as usize * 6 + 6];
            let link = u64::from(u32::from_le_bytes(link[..4].try_into().expect("4")))
                | u64::from(u16::from_le_bytes(link[4..].try_into().expect("2"))) << 32;
            let (to, place) = (link & ADDRESS, index * LINKS + child);
            match (to, level) {
                (0, _) => {}
                (LOST, _) => {
                    self.damage(|| format!("node at block {at}: link {child} is lost"))?;
                    below.lost = true;
                }
                (_, 0) => {
                    self.claim(to, 0, v.family, place)?;
                    below.mapped += 1;
                    below.hash = below.hash.wrapping_add(mix(place ^ mix(to)));
                }
                _ => {
                    let stamp = u64_at(&block, STAMPS_AT + child as usize * 3 / 2);
                    let stamp = stamp >> (child % 2 * 4) & 0xfff;
                    let deeper = self.node(v, to, level - 1, place, (LINK_STAMPS, stamp))?;
                    below.mapped += deeper.mapped;
                    below.hash = below.hash.wrapping_add(deeper.hash);
                    below.lost |= deeper.lost;
                }
            }
        }
        if v.cursor == 0 {
            self.seen.insert(at, below);
        }
        Ok(below)
    }

    /// Compares all bitmaps with the owners found.
    fn bitmaps(&mut self, catalogue: u64, pairs: u64) -> Result<(), String> {
        for pair in 0..pairs {
            let at = catalogue + 2 * pair;
            let block = match self.image.pair(at, Kind::Catalogue, self.found.generation) {
                Sides::Good(block) => block,
                Sides::Bad(why) => {
                    self.damage(|| format!("catalogue pair {pair}: {why}"))?;
                    continue;
                }
            };
            let first = pair * CATALOGUE_ENTRIES;
            for extent in first..(first + CATALOGUE_ENTRIES).min(self.geometry.extent_count) {
                let line = 64 + (extent - first) as usize * 16;
                let free = u32::from_le_bytes(block[line + 4..line + 8].try_into().expect("4"));
                self.bitmap(extent, free, u64_at(&block, line + 8))?;
            }
        }
        Ok(())
    }

    fn bitmap(&mut self, extent: u64, free: u32, generation: u64) -> Result<(), String> {
        let start = self.geometry.extents + extent * self.geometry.extent_blocks;
        let bits = match generation {
            0 => Rc::new([0; 4096]),
            _ => match self.image.bitmap(start, extent, generation) {
                Ok(block) => block,
                Err(why) => return self.damage(|| format!("bitmap of extent {extent}: {why}")),
            },
        };
        let mut unused = 0;
        for block in 2..self.geometry.extent_blocks {
            let used = bits[64 + block as usize / 8] >> (block % 8) & 1 == 1;
            let owner = self.owners[(extent * self.geometry.extent_blocks + block) as usize];
            unused += u64::from(!used);
            if used && owner == 0 {
                self.found.leaked += 1;
                if self.found.leaked == 1 {
                    self.found.first_leaked = start + block;
                }
            } else if !used && owner != 0 {
                return Err(format!(
                    "block {} is free, but it is {} (extent {extent}, bitmap of {generation})",
                    start + block,
                    describe(owner)
                ));
            }
        }
        if unused != u64::from(free) {
            return Err(format!("extent {extent} counts {free} free blocks, but has {unused}"));
        }
        self.found.free += unused;
        Ok(())
    }
}

/// An owner without its family.
pub fn role(owner: u64) -> u64 {
    owner & !(0xf_ffff << 40)
}

/// An owner, for people.
pub fn describe(owner: u64) -> String {
    let (kind, family, index) = (owner >> 60, owner >> 40 & 0xf_ffff, owner & 0xff_ffff_ffff);
    match kind {
        1 => format!("virtual block {index} of the family of disk {family}"),
        8 => format!("a log block of the family of disk {family}"),
        level => format!("the level-{} node {index} of the family of disk {family}", level - 2),
    }
}

#[cfg(test)]
#[path = "fsck_tests.rs"]
mod tests;
