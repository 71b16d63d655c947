//! One damage, and what must come of it.

use super::{FRONT, Store};
use lamina_bdev::check::FindingKind;
use lamina_bdev::{BLOCK_SIZE, Event};

/// What comes of opening.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opens {
    /// The shard serves.
    Serves,
    /// The shard, or the store, is refused with a sentence.
    Refused,
}

/// One damage.
pub struct Case {
    pub name: &'static str,
    /// Disks that may answer with errors, or be gone.
    pub victims: &'static [&'static str],
    pub opens: Opens,
    /// What `check` says; `None`: no harm was done.
    pub finds: Option<FindingKind>,
    /// Must be in what `check` says.
    pub says: &'static str,
    pub damage: fn(&mut Store),
}

/// Disks that suffer.
pub const SOLO: &[&str] = &["solo"];
pub const NONE: &[&str] = &[];
pub const ALL: &[&str] = &["golden", "vm1", "vm2", "solo", "well"];
pub const FAMILY: &[&str] = &["golden", "vm1", "vm2"];

pub const fn serves(
    name: &'static str,
    victims: &'static [&'static str],
    finds: FindingKind,
    says: &'static str,
    damage: fn(&mut Store),
) -> Case {
    Case { name, victims, opens: Opens::Serves, finds: Some(finds), says, damage }
}

pub const fn harmless(name: &'static str, damage: fn(&mut Store)) -> Case {
    Case { name, victims: NONE, opens: Opens::Serves, finds: None, says: "", damage }
}

pub const fn refused(
    name: &'static str,
    finds: FindingKind,
    says: &'static str,
    damage: fn(&mut Store),
) -> Case {
    Case { name, victims: ALL, opens: Opens::Refused, finds: Some(finds), says, damage }
}

/// Slot of the disk that is damaged, of golden, and of the clones.
pub const S: u64 = 3;
pub const G: u64 = 0;
pub const V1: u64 = 1;
pub const V2: u64 = 2;
pub const W: u64 = 4;

pub fn both(store: &mut Store, pair: u64, change: impl Fn(&mut [u8])) {
    store.edit(pair, FRONT, &change);
    store.edit(pair + 1, FRONT, &change);
}

pub fn past_end(store: &Store) -> u64 {
    store.sb(64) + 5
}

impl Case {
    /// Of the blocks that the log names, one must have been damaged, or be the other of its pair.
    pub fn assert_named(&self, events: &[Event], store: &Store, whole: &Store) {
        // Other damage shows where it leads to.
        if !["journal: ", "pair: the newer"].iter().any(|kind| self.name.starts_with(kind)) {
            return;
        }
        let texts: Vec<&str> = events.iter().map(|event| event.text.as_str()).collect();
        let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        let after = |text: &&str| -> Vec<u64> {
            text.replace("blocks ", "block ").split("block ").skip(1).filter_map(number).collect()
        };
        let named: Vec<u64> = texts.iter().flat_map(after).collect();
        let blocks = (store.at(0)..store.disk.len()).step_by(BLOCK_SIZE);
        let damaged = blocks
            .zip(0u64..)
            .filter(|&(at, _)| store.disk[at..at + BLOCK_SIZE] != whole.disk[at..at + BLOCK_SIZE]);
        let damaged: Vec<u64> = damaged.map(|(_, block)| block).collect();
        let hit = named.iter().any(|named| damaged.iter().any(|block| named.abs_diff(*block) <= 1));
        assert!(hit || named.is_empty(), "{damaged:?} are damaged, and the log says {texts:?}");
    }
}
