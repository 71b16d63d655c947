//! Whom damage to metadata may hurt, and what the engine must say about it.
//!
//! A damaged map node costs at most what is below it: requests to disks that share it may end as
//! `Corrupt`, and its space may stay lost. A damaged bitmap costs the free space it describes. The
//! copy of a pair that is not needed costs nothing. All other disks stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use lamina_bdev::DiskId;

use super::harm::Note;
use super::image::Kind;
use super::model::Uid;
use super::world::World;

/// Damage done in a run.
#[derive(Default)]
pub struct Damage {
    /// Families of disks that have ever had a slot: their nodes bear its number.
    residents: BTreeMap<u32, BTreeSet<Uid>>,
    hurt: BTreeSet<Uid>,
    /// Blocks of nodes and bitmaps that were read damaged.
    blocks: BTreeSet<u64>,
    /// The engine has named one of them.
    named: bool,
}

impl Damage {
    /// True if something was lost, or may have been.
    pub fn done(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// True if a disk of the family may have lost something.
    pub fn hurts(&self, family: Uid) -> bool {
        self.hurt.contains(&family)
    }

    /// A disk of the family lives in a slot.
    pub fn resides(&mut self, slot: DiskId, family: Uid) {
        self.residents.entry(slot.0).or_default().insert(family);
    }

    /// A line of the engine's log.
    pub fn hear(&mut self, text: &str) {
        if self.named || self.blocks.is_empty() {
            return;
        }
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
        while let Some(word) = words.next() {
            let number = (word == "block").then(|| words.next()?.parse().ok()).flatten();
            self.named |= number.is_some_and(|block| self.blocks.contains(&block));
        }
    }

    /// A request to a disk of the family ended as `Corrupt`.
    ///
    /// # Errors
    /// Why that may not be.
    pub fn excuses(&self, family: Uid) -> Result<(), String> {
        if !self.hurts(family) {
            return Err("no node of this disk was damaged".to_string());
        }
        match self.named {
            true => Ok(()),
            false => Err("no line of the log names a damaged block".to_string()),
        }
    }

    fn note(&mut self, note: Note) {
        match note.kind {
            Kind::Node => {
                self.blocks.insert(note.block);
                match self.residents.get(&note.owner) {
                    Some(families) => self.hurt.extend(families),
                    None => self.hurt.extend(self.residents.values().flatten()),
                }
            }
            Kind::Bitmap => drop(self.blocks.insert(note.block)),
            Kind::Superblock | Kind::Catalogue | Kind::DiskRecord | Kind::SnapshotLog => {}
            Kind::Journal => unreachable!("journal blocks are not damaged"),
        }
    }
}

impl World {
    /// Takes note of what the device has just returned.
    pub(super) fn take_harm(&mut self) {
        for note in std::mem::take(&mut self.base.harms.notes) {
            let now = self.now;
            self.trace.note("harm", [note.kind as u64, note.block, u64::from(note.owner)]);
            self.trace.line(now, || format!("  base: damaged read: {note:?}"));
            self.damage.note(note);
        }
    }
}
