//! Records and snapshot logs put right: counts, names, what is said to be reclaimed; and, if that
//! was asked for, disks and snapshots that cannot be read given up.

use super::descent::Origin;
use super::repair::{Plan, RepairOptions};
use super::system::{Shard, Slot};
use crate::error::Error;
use crate::format::disk_record::{DiskRecord, REAP_LIVE, REAP_NONE, State};
use crate::format::snapshot_log::LogEntry;
use crate::types::{Name, Uuid};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Disks and snapshots that cannot be read.
#[derive(Default)]
struct GivenUp {
    /// Snapshots that must go on to connect what comes after them, by disk.
    ghosts: BTreeMap<u32, BTreeSet<u64>>,
    /// Where lost disks that have clones come from.
    origins: BTreeMap<u32, Origin>,
}

impl Shard<'_> {
    /// Plans what is to change in records and logs.
    pub fn mend_records(&mut self, options: RepairOptions, plan: &mut Plan) -> Result<(), Error> {
        self.mend_counts(plan);
        self.mend_names(plan);
        if options.cut_off {
            self.unseal(plan);
            let mut given_up = GivenUp::default();
            self.mend_origins(&mut given_up, plan)?;
            self.mend_logs(&given_up, plan);
            self.give_up_records(&mut given_up, plan);
        }
        Ok(())
    }

    /// Mapped blocks, and which version is being reclaimed.
    fn mend_counts(&mut self, plan: &mut Plan) {
        for slot in 0..self.slots.len() as u32 {
            let Some(disk) = self.disk(slot) else { continue };
            let name = disk.record.name;
            if let Some(mapped) = disk.counted.filter(|&c| c != disk.record.mapped) {
                plan.record(self, slot).mapped = mapped;
                plan.say(format!("disk {name}: {mapped} mapped blocks counted"));
            }
            // With a part of the log missing, it may be one of those.
            if self.disk(slot).is_some_and(|disk| disk.log_read) && !self.reaping_lawful(slot) {
                let record = plan.record(self, slot);
                (record.reaping, record.reap_cursor) = (REAP_NONE, 0);
                plan.say(format!("disk {name}: nothing is being reclaimed"));
                // What it holds is counted otherwise from now on.
                plan.again = true;
            }
        }
    }

    /// Snapshots that are not whole, and must not be taken for connecting what they do not have.
    /// True: there are such, and their logs do not say so yet.
    pub fn note_holes(&mut self, plan: &mut Plan) -> bool {
        for (slot, snap) in std::mem::take(&mut self.holed) {
            self.note_hole(slot, snap, plan);
        }
        plan.again
    }

    /// The same of one of them.
    pub fn note_hole(&self, slot: u32, snap: u64, plan: &mut Plan) {
        let known = |e: &&LogEntry| e.snap == snap && e.holed;
        if self.disk(slot).is_some_and(|disk| disk.snaps.iter().any(|e| known(&e))) {
            return;
        }
        let log = plan.log(self, slot).iter_mut();
        log.filter(|e| e.snap == snap).for_each(|e| e.holed = true);
        plan.again = true;
        for clone in 0..self.slots.len() as u32 {
            let origin = self.disk(clone).and_then(|disk| disk.record.origin);
            if origin == Some((slot, snap)) {
                plan.record(self, clone).adopted = true;
            }
        }
    }

    /// The loss is accepted.
    fn unseal(&mut self, plan: &mut Plan) {
        for slot in 0..self.slots.len() as u32 {
            let Some(disk) = self.disk(slot) else { continue };
            if let Some(seal) = disk.record.sealed {
                let name = disk.record.name;
                plan.record(self, slot).sealed = None;
                plan.say(format!("disk {name}: unsealed, though {}", seal.text()));
            }
        }
    }

    /// Every live disk has a name and a UUID of its own: the one in the later slot gets another.
    fn mend_names(&mut self, plan: &mut Plan) {
        let live = |shard: &Self, slot: u32| {
            let record = &shard.disk(slot)?.record;
            (record.state == State::Live).then_some((record.name, record.uuid))
        };
        let slots = 0..self.slots.len() as u32;
        let all: Vec<(Name, Uuid)> = slots.clone().filter_map(|slot| live(self, slot)).collect();
        let mut names: BTreeSet<Name> = all.iter().map(|(name, _)| *name).collect();
        let mut uuids: BTreeSet<Uuid> = all.iter().map(|(_, uuid)| *uuid).collect();
        let (mut met, mut met_uuids) = (BTreeSet::new(), BTreeSet::new());
        for slot in slots {
            let Some((name, uuid)) = live(self, slot) else { continue };
            if name.is_empty() || !met.insert(name) {
                let new = new_name(name, slot, &names);
                names.insert(new);
                plan.record(self, slot).name = new;
                let was = if name.is_empty() { "without a name" } else { name.as_str() };
                plan.say(format!(
                    "the disk in record slot {slot}, {was}, is now called {new}: another one had that name, or it had none"
                ));
            }
            if !met_uuids.insert(uuid) {
                let new = new_uuid(uuid, slot, &uuids);
                uuids.insert(new);
                plan.record(self, slot).uuid = new;
                plan.say(format!("disk {name} (record slot {slot}): its UUID is now {new}"));
            }
        }
    }

    /// Where clones come from, if what their records say cannot be.
    fn mend_origins(&mut self, given_up: &mut GivenUp, plan: &mut Plan) -> Result<(), Error> {
        for slot in 0..self.slots.len() as u32 {
            let Some(disk) = self.disk(slot) else { continue };
            let Some((origin, snap)) = disk.record.origin else { continue };
            let name = disk.record.name;
            let missing = match self.slots.get(origin as usize) {
                Some(Slot::Lost) if snap > 0 => {
                    if let Entry::Vacant(unknown) = given_up.origins.entry(origin) {
                        unknown.insert(self.origin_of(origin)?);
                    }
                    if given_up.origins[&origin] == Origin::Unknown {
                        continue;
                    }
                    true
                }
                Some(Slot::Disk(from))
                    if origin != slot && snap < from.record.epoch && snap > 0 =>
                {
                    !from.snaps.iter().any(|s| s.snap == snap)
                }
                _ => {
                    let Origin::Known(found) = self.origin_of(slot)? else { continue };
                    let record = plan.record(self, slot);
                    (record.origin, record.adopted) = (found, found.is_some());
                    plan.say(match found {
                        Some((from, snap)) => {
                            let from = self.disk_name(from);
                            format!("disk {name}: comes after snapshot {snap} of disk {from}")
                        }
                        None => format!("disk {name}: shares with no other, and is no clone now"),
                    });
                    plan.again = true;
                    continue;
                }
            };
            if missing {
                given_up.ghosts.entry(origin).or_default().insert(snap);
                plan.record(self, slot).adopted = true;
                plan.again = true;
            }
        }
        Ok(())
    }

    /// Logs that cannot be read whole, or must hold a ghost, are written anew.
    fn mend_logs(&mut self, given_up: &GivenUp, plan: &mut Plan) {
        for slot in 0..self.slots.len() as u32 {
            let Some(disk) = self.disk(slot) else { continue };
            let (name, reaping) = (disk.record.name, disk.record.reaping);
            let missing = given_up.ghosts.get(&slot);
            let doubled = disk.snaps.windows(2).any(|w| w[0].snap == w[1].snap);
            if disk.log_read && !doubled && missing.is_none() {
                continue;
            }
            let log = plan.log(self, slot);
            log.dedup_by_key(|entry| entry.snap);
            let kept = log.iter().filter(|entry| !entry.ghost).count();
            log.extend(missing.into_iter().flatten().map(|&snap| ghost(snap)));
            log.sort_unstable_by_key(|entry| entry.snap);
            if !matches!(reaping, REAP_NONE | REAP_LIVE) && !log.iter().any(|e| e.snap == reaping) {
                let record = plan.record(self, slot);
                (record.reaping, record.reap_cursor) = (REAP_NONE, 0);
            }
            let clones = match missing {
                Some(snaps) => format!("; clones of snapshots {snaps:?} stay"),
                None => String::new(),
            };
            plan.say(format!(
                "disk {name}: its snapshot log was written anew; {kept} snapshots are kept, what could not be read of it was given up{clones}"
            ));
            plan.again = true;
        }
    }

    /// Records that cannot be read: the slot is free, unless clones of the disk remain. Then it
    /// becomes a deleted disk whose snapshots connect its clones; the engine takes it away when it
    /// connects nothing any more.
    fn give_up_records(&mut self, given_up: &mut GivenUp, plan: &mut Plan) {
        for slot in 0..self.slots.len() as u32 {
            if !matches!(self.slots[slot as usize], Slot::Lost) {
                continue;
            }
            let origin = match given_up.origins.get(&slot) {
                Some(Origin::Unknown) => continue,
                Some(Origin::Known(origin)) => *origin,
                None => None,
            };
            let snaps = given_up.ghosts.remove(&slot).unwrap_or_default();
            plan.again = true;
            let Some(&newest) = snaps.last() else {
                plan.records.insert(slot, DiskRecord::free());
                plan.say(format!("record slot {slot}: the disk was given up, the slot is free"));
                continue;
            };
            let record = DiskRecord {
                state: State::Deleting,
                epoch: newest + 1,
                origin,
                adopted: origin.is_some(),
                ..DiskRecord::free()
            };
            plan.records.insert(slot, record);
            plan.logs.insert(slot, snaps.into_iter().map(ghost).collect());
            plan.say(format!(
                "record slot {slot}: the disk was given up; its clones stay, and no longer hold up what is deleted"
            ));
        }
    }
}

/// What is left of a snapshot that is gone.
fn ghost(snap: u64) -> LogEntry {
    LogEntry {
        snap,
        uuid: Uuid([0; 16]),
        label: Name::EMPTY,
        time: 0,
        root: 0,
        root_level: 0,
        root_generation: 0,
        size: 0,
        mapped: 0,
        dying: true,
        ghost: true,
        holed: false,
    }
}

/// A name like `name` that no disk has.
fn new_name(name: Name, slot: u32, taken: &BTreeSet<Name>) -> Name {
    let stem = if name.is_empty() { format!("disk-{slot}") } else { name.to_string() };
    let numbered = (2u32..).map(|number| {
        let suffix = format!("-{number}");
        let end = stem.len().min(Name::LEN_MAX - suffix.len());
        format!("{}{suffix}", &stem[..end])
    });
    let first = name.is_empty().then(|| stem.clone());
    let mut lawful = first.into_iter().chain(numbered).filter_map(|text| Name::new(&text).ok());
    lawful.find(|new| !taken.contains(new)).expect("fewer disks than numbers")
}

/// A UUID that no disk has, the same each time it is asked for.
fn new_uuid(uuid: Uuid, slot: u32, taken: &BTreeSet<Uuid>) -> Uuid {
    let mut new = uuid;
    for round in 1u64.. {
        let bytes = (u64::from(slot) << 32 | round).to_le_bytes();
        new.0[8..].iter_mut().zip(bytes).for_each(|(to, from)| *to ^= from);
        // As of a random one (version 4, variant 1).
        new.0[6] = new.0[6] & 0x0f | 0x40;
        new.0[8] = new.0[8] & 0x3f | 0x80;
        if !taken.contains(&new) {
            break;
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_and_uuids_are_nobody_elses() {
        let name = |text: &str| Name::new(text).unwrap();
        let mut taken = BTreeSet::from([name("vm"), name("vm-2"), name("disk-7")]);
        assert_eq!(new_name(name("vm"), 3, &taken), name("vm-3"));
        assert_eq!(new_name(Name::EMPTY, 7, &taken), name("disk-7-2"));
        assert_eq!(new_name(Name::EMPTY, 8, &taken), name("disk-8"));
        let long = name(&"x".repeat(Name::LEN_MAX));
        taken.insert(long);
        assert_eq!(new_name(long, 1, &taken).as_str().len(), Name::LEN_MAX);
        let uuid = Uuid([7; 16]);
        let first = new_uuid(uuid, 3, &BTreeSet::from([uuid]));
        let second = new_uuid(uuid, 3, &BTreeSet::from([uuid, first]));
        assert!(first != uuid && second != first && second != uuid);
    }
}
