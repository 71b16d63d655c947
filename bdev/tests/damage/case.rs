//! One damage, and what must come of it.

use super::{FRONT, Store};
use lamina_bdev::check::FindingKind;

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
