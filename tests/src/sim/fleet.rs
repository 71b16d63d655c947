//! Several shards on one device at once: each has its own engine, region, disks, clients and
//! model; device, clock and crashes are common to all.
//!
//! ```text
//!   leader ──┬── engine, model           turn: leader acts, then each mate with the device in
//!            ├── mate ── engine, model         its hands; then a crash of all, or time passes
//!            └── mate ── engine, model
//!                └───────┴──▶ one base (regions never touched by another: see start_io)
//! ```
//!
//! The leader decides about time, faults and crashes. A cut takes the device from all; the death of
//! the daemon, or a store opened again after errors, is the death of all engines.

use super::base::Base;
use super::plan::{Faults, Plan};
use super::power::Crash;
use super::rng::{Rng, mix};
use super::world::World;

/// Makes the chance of a mate another one than the leader's.
const MATE: u64 = 0x6D61_7465;

impl World {
    /// The worlds of the other shards, if they run too.
    pub(super) fn make_mates(&mut self) {
        let shards = if self.plan.all_shards { self.plan.shards } else { 0 };
        for shard in (0..shards).filter(|shard| *shard != self.plan.shard) {
            let seed = mix(self.seed ^ MATE ^ u64::from(shard) << 40);
            let ours = &self.plan;
            let mut rng = Rng::new(seed);
            let drawn = Plan::draw(&mut rng, &mut Rng::new(mix(seed)), ours.ops / 2);
            let plan = Plan {
                device_bytes: ours.device_bytes,
                shards: ours.shards,
                shard,
                journal_bytes: ours.journal_bytes,
                traits: ours.traits,
                latency: ours.latency,
                faults: ours.faults,
                window_blocks: drawn.window_blocks.min(256),
                crash_every: 0,
                aimed_permille: 0,
                leap_permille: 0,
                ..drawn
            };
            let nothing = Base::new(plan.traits, None, 0);
            let own = (rng, self.trace.named(shard), nothing);
            let mut mate = World::on(seed, plan, self.lie, own, self.label);
            mate.is_mate = true;
            mate.open();
            self.mates.push(mate);
        }
        self.base.hand_to(self.plan.shard);
    }

    /// Does `f` to this shard, then to each other one with the device in its hands.
    pub(super) fn each(
        &mut self,
        mut f: impl FnMut(&mut World) -> Result<(), String>,
    ) -> Result<(), String> {
        f(self)?;
        self.each_mate(f)
    }

    /// Does `f` to each other shard with the device in its hands.
    pub(super) fn each_mate(
        &mut self,
        mut f: impl FnMut(&mut World) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut mates = std::mem::take(&mut self.mates);
        let mut result = Ok(());
        for mate in &mut mates {
            std::mem::swap(&mut self.base, &mut mate.base);
            mate.base.hand_to(mate.plan.shard);
            mate.now = self.now;
            result = f(mate).map_err(|why| format!("shard {}: {why}", mate.plan.shard));
            self.now = mate.now;
            mate.base.hand_to(self.plan.shard);
            std::mem::swap(&mut self.base, &mut mate.base);
            if result.is_err() {
                break;
            }
        }
        self.mates = mates;
        result
    }

    /// True if all shards are open.
    pub(super) fn all_recovered(&self) -> bool {
        self.recovered && self.mates.iter().all(|mate| mate.recovered)
    }

    /// True if all shards have been measured empty: nothing is under test before that.
    pub(super) fn all_measured(&self) -> bool {
        self.empty_blocks.is_some() && self.mates.iter().all(|mate| mate.empty_blocks.is_some())
    }

    /// How the device behaves from now on.
    pub(super) fn set_faults(&mut self, faults: Faults) {
        if !self.is_mate {
            self.base.behave(self.plan.latency, faults, self.lie);
        }
    }

    /// Another shard wants the store to be opened again.
    pub(super) fn mates_wish(&mut self) -> bool {
        let wishes = self.mates.iter_mut().map(|mate| {
            let wished = std::mem::take(&mut mate.wishes_crash);
            wished | mate.reopening_due()
        });
        wishes.fold(false, |any, wish| any | wish)
    }

    /// All engines die; what is left is opened again.
    pub(super) fn crash(&mut self, crash: Crash) -> Result<(), String> {
        if self.is_mate {
            // The leader sees to it at the end of the turn.
            self.wishes_crash = true;
            return Ok(());
        }
        self.nested += u32::from(!self.all_recovered());
        let nested = self.nested;
        self.each(|world| {
            world.fall(nested);
            Ok(())
        })?;
        let lossy = self.base.crash(crash);
        self.bury(crash, lossy)?;
        self.each_mate(|mate| mate.bury(crash, lossy))?;
        self.each(|world| {
            world.open();
            Ok(())
        })
    }
}
