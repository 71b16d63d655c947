//! The last phase of a run: faults stop, everything ends, everything is read; then, maybe after
//! one more crash, everything is deleted and all space must be back.

use super::commands::Intent;
use super::model::{Place, Uid};
use super::plan::Faults;
use super::power::Crash;
use super::world::World;
use lamina_bdev::{Command, Op};

/// Blocks read by one errand.
const ERRAND_BLOCKS: u64 = 64;
/// Consistency points within which deleted space must be back.
const CHECKPOINTS_MAX: u32 = 60;

impl World {
    /// Runs the last phase.
    ///
    /// # Errors
    /// The first violation.
    pub fn finish(&mut self) -> Result<(), String> {
        self.calm_down()?;
        self.drain()?;
        self.each(World::verify)?;
        if self.plan.last_crash {
            let power = self.plan.power_permille > 0 && self.rng.chance(500);
            self.crash(if power { Crash::Power } else { Crash::Kill })?;
            self.drain()?;
            self.each(World::attach_all)?;
            self.each(World::verify)?;
        }
        self.each(World::tear_down)?;
        if self.rng.chance(300) {
            self.crash(Crash::Kill)?;
            self.drain()?;
            self.each(World::check_empty)?;
        }
        Ok(())
    }

    /// No faults and crashes from now on. First liveness: whatever is in flight ends in bounded
    /// virtual time, and what is asked for after that is answered. Then a life that has seen errors
    /// ends: the engine may rightly refuse to go on in it.
    pub(super) fn calm_down(&mut self) -> Result<(), String> {
        self.each(|world| {
            world.calm = true;
            world.errands.clear();
            Ok(())
        })?;
        self.forget_crash();
        self.set_faults(Faults::default());
        self.base.harms.lift();
        self.base.relent(self.now);
        let crashes = self.crashes;
        self.drain()?;
        if self.crashes == crashes {
            self.each(World::probe)?;
        }
        if self.base.injected_any() {
            self.crash(Crash::Kill)?;
            self.drain()?;
        }
        self.each(|world| {
            if world.held.is_some() {
                world.give(Command::Unhold, Intent::Unhold, None, vec![]);
            }
            world.attach_all()
        })
    }

    /// One write, flush and read on each disk; all are answered, and well, unless the shard has
    /// said that it has failed, or its device is gone.
    fn probe(&mut self) -> Result<(), String> {
        self.healthy = true;
        for op in [Op::Write, Op::Flush, Op::Read] {
            let open = self.attachments.iter().filter(|(_, a)| !a.closing);
            let keys: Vec<u32> = open.map(|(key, _)| *key).collect();
            for key in keys {
                self.probe_with(key, op)?;
            }
            self.drain()?;
        }
        Ok(())
    }

    fn attach_all(&mut self) -> Result<(), String> {
        for uid in self.model.live_disks() {
            let place = Place::Disk(uid);
            if !self.attachments.values().any(|a| a.place == place && !a.closing) {
                self.attach(place);
            }
        }
        self.drain()
    }

    /// Queues reads of everything ever written on the disks that are there.
    pub(super) fn wish_reads(&mut self) {
        for uid in self.model.live_disks() {
            self.wish_reads_of(Place::Disk(uid));
        }
    }

    fn wish_reads_of(&mut self, place: Place) {
        let mut run: Option<(u64, u64)> = None;
        for block in self.model.touched(place) {
            run = match run {
                Some((first, count)) if block - (first + count) < 4 && count < ERRAND_BLOCKS => {
                    Some((first, block + 1 - first))
                }
                Some((first, count)) => {
                    self.errands.push_back((place, first << 12, count << 12));
                    Some((block, 1))
                }
                None => Some((block, 1)),
            };
        }
        if let Some((first, count)) = run {
            self.errands.push_back((place, first << 12, count << 12));
        }
    }

    /// Reads all disks and snapshots and compares all listings, with nothing else going on.
    fn verify(&mut self) -> Result<(), String> {
        self.check_listing()?;
        self.wish_reads();
        self.drain()?;
        self.check_mapped()?;
        let mut before = None;
        for snap in self.model.live_snaps() {
            let place = Place::Snap(snap);
            if self.model.touched(place).is_empty() {
                continue;
            }
            self.attach(place);
            self.drain()?;
            self.wish_reads_of(place);
            self.drain()?;
            self.verify_changes(snap, before)?;
            before = Some(snap);
            let keys: Vec<u32> = self
                .attachments
                .iter()
                .filter(|(_, a)| a.place == place)
                .map(|(key, _)| *key)
                .collect();
            for key in keys {
                self.detach(key);
            }
            self.drain()?;
        }
        self.check_listing()
    }

    /// Lists what a snapshot that has just been read has, and what differs from another one.
    fn verify_changes(&mut self, snap: Uid, other: Option<Uid>) -> Result<(), String> {
        if self.plan.command_weights[12] == 0 {
            return Ok(());
        }
        self.list_all(snap, None);
        self.drain()?;
        let Some(other) = other else { return Ok(()) };
        self.attach(Place::Snap(other));
        self.drain()?;
        self.list_all(snap, Some(other));
        self.drain()?;
        self.list_all(other, Some(snap));
        self.drain()?;
        let key = self.attachments.iter().find(|(_, a)| a.place == Place::Snap(other));
        let key = *key.expect("just attached").0;
        self.detach(key);
        self.drain()
    }

    /// The engine's count of mapped blocks against what was just read.
    fn check_mapped(&mut self) -> Result<(), String> {
        for info in self.engine().disks() {
            let uid = self
                .model
                .disks
                .iter()
                .find(|(_, disk)| disk.exists.now && disk.uuid == info.uuid)
                .map(|(uid, _)| *uid)
                .ok_or_else(|| format!("disk {} is not due", info.name))?;
            if self.damage.hurts(self.model.disk(uid).family) {
                continue;
            }
            let (low, high) = self.model.mapped_bounds(uid);
            if info.mapped_blocks < low || info.mapped_blocks > high {
                return Err(format!(
                    "disk {uid} counts {} mapped blocks, {low} to {high} are due",
                    info.mapped_blocks
                ));
            }
        }
        Ok(())
    }

    /// Deletes everything; then no block may be missing.
    fn tear_down(&mut self) -> Result<(), String> {
        let keys: Vec<u32> = self.attachments.keys().copied().collect();
        for key in keys {
            self.detach(key);
        }
        self.drain()?;
        // In any order: clones outlive the disks they came from.
        let mut disks = self.model.live_disks();
        self.rng.shuffle(&mut disks);
        for uid in disks {
            if self.rng.chance(500) {
                self.drain()?;
            }
            if !self.delete_disk(uid) {
                self.drain()?;
                self.delete_disk(uid);
            }
        }
        self.drain()?;
        if !self.model.live_disks().is_empty() {
            return Err("the disks that are left cannot be deleted".to_string());
        }
        self.check_empty()
    }

    /// Nothing is there, and all space is back.
    fn check_empty(&mut self) -> Result<(), String> {
        self.check_listing()?;
        self.check_space()
    }

    fn check_space(&mut self) -> Result<(), String> {
        let due = self.empty_blocks.expect("measured at the first opening");
        for _ in 0..CHECKPOINTS_MAX {
            let info = self.engine().store_info();
            let back = info.free_blocks == due || self.damage.done() && info.free_blocks < due;
            if info.pending_blocks == 0 && back {
                return self.check_free();
            }
            self.give(Command::Checkpoint, Intent::Checkpoint, None, vec![]);
            self.drain()?;
        }
        let info = self.engine().store_info();
        Err(format!(
            "all is deleted, but {} blocks are free and {} pending; {due} were free at first",
            info.free_blocks, info.pending_blocks
        ))
    }

    /// The bitmaps on disk and the engine's count of free blocks, with nothing else going on.
    fn check_free(&mut self) -> Result<(), String> {
        let info = self.engine().store_info();
        let counted = info.free_blocks + info.reserved_blocks;
        let found = self.check_image()?;
        if counted == found.free || self.damage.done() {
            return Ok(());
        }
        Err(format!("the engine counts {counted} free blocks, the bitmaps have {}", found.free))
    }
}
