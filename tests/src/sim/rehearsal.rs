//! Recovering twice is recovering once: what a crash has left is recovered on copies, and each
//! copy must end up as the same store.
//!
//! ```text
//!                    ┌─▶ copy: recover ──────────────────────▶ store A ─▶ recover again ─▶ A
//!  image at a crash ─┤
//!                    └─▶ copy: recover, cut, ..., recover ───▶ store A
//! ```
//!
//! The copies lie on a device without faults, whose content is all durable at the beginning. The
//! run itself goes on with the image as it was. A copy in which something is ruined that costs
//! nobody anything (`ruin`) must end up as the same store too.

use lamina_bdev::{BaseTraits, Config, DiskInfo, Engine, EngineState, Seg, SnapInfo, StoreLabel};

use super::base::Base;
use super::fsck::{self, Findings};
use super::image::Image;
use super::pages::Pages;
use super::plan::{Faults, Latency, Lie};
use super::power::Crash;
use super::rng::{Rng, mix};
use super::world::World;

/// One crash in so many is looked at this way.
const ONE_IN: u64 = 8;
/// Cuts of one recovery.
const CUTS_MAX: u64 = 3;
/// Turns within which a recovery must end.
const TURNS_MAX: u64 = 100_000;

/// A store as it is after a recovery.
#[derive(Debug, PartialEq)]
struct Store {
    disks: Vec<(DiskInfo, Vec<SnapInfo>)>,
    free_blocks: u64,
    found: Findings,
}

/// One copy and what recovers it.
struct Stage<'a> {
    base: Base,
    label: &'a StoreLabel,
    shard: u32,
    config: Config,
    traits: BaseTraits,
    now: u64,
    /// Something of it is ruined: the log may say so, and it is looked at only once it is open.
    ruined: bool,
}

impl World {
    /// Tries the recoveries of some crashes. Draws nothing from the run's own chance.
    pub(super) fn rehearse(&self) -> Result<(), String> {
        let drawn = mix(self.seed ^ mix(self.crashes) ^ u64::from(self.plan.shard));
        if !drawn.is_multiple_of(ONE_IN) || self.damage.done() || self.empty_blocks.is_none() {
            return Ok(());
        }
        self.twice(drawn)
            .map_err(|why| format!("recover twice: after crash {}, {why}", self.crashes))
    }

    fn twice(&self, drawn: u64) -> Result<(), String> {
        let mut copy = self.stage(drawn);
        let whole = |copy: &mut Stage, what: &str| {
            let store = copy.recover(None).map_err(|why| format!("in {what}, {why}"))?;
            Ok::<Store, String>(store.expect("nothing cuts it"))
        };
        let once = whole(&mut copy, "a recovery")?;
        copy.base.crash(Crash::Kill);
        let twice = whole(&mut copy, "a second recovery")?;
        same(&once, &twice).map_err(|why| format!("after a second recovery {why}"))?;
        let pieces = in_pieces(&mut self.stage(mix(drawn)), drawn)?;
        same(&once, &pieces).map_err(|why| format!("after a recovery in pieces {why}"))
    }

    /// A copy with these pages, recovered in pieces, is the store that the image is.
    pub(super) fn recovers_all_the_same(&self, pages: Pages, drawn: u64) -> Result<(), String> {
        let once = self.stage(drawn).recover(None)?.expect("nothing cuts it");
        let mut copy = self.stage(mix(drawn));
        copy.base.pages = pages;
        copy.ruined = true;
        let pieces = in_pieces(&mut copy, drawn)?;
        same(&once, &pieces).map_err(|why| format!("after a recovery in pieces {why}"))
    }

    fn stage(&self, seed: u64) -> Stage<'_> {
        let mut base = Base::new(self.plan.traits, None, seed);
        base.pages = self.base.pages.clone();
        // So that operations overlap, and a cut has something to choose from.
        let latency = Latency { min_ns: 100, spread_ns: 1_000, ..Latency::INSTANT };
        base.behave(latency, Faults::default(), Lie::None);
        Stage {
            base,
            label: &self.label,
            shard: self.plan.shard,
            config: self.config,
            traits: self.plan.traits,
            now: 0,
            ruined: false,
        }
    }
}

/// Recovers a store with cuts in between.
fn in_pieces(copy: &mut Stage, drawn: u64) -> Result<Store, String> {
    let mut rng = Rng::new(drawn);
    for _ in 0..rng.between(1, CUTS_MAX) {
        let at = copy.base.happened + rng.between(1, 80);
        let open = copy.recover(Some(at)).map_err(|why| format!("in a piece, {why}"))?;
        let power = rng.chance(700);
        copy.base.crash(if power { Crash::Power } else { Crash::Kill });
        if open.is_some() {
            break;
        }
    }
    let whole = copy.recover(None).map_err(|why| format!("in the last piece, {why}"))?;
    Ok(whole.expect("nothing cuts it"))
}

/// Two stores are the same, but for what a consistency point changes in any case.
fn same(a: &Store, b: &Store) -> Result<(), String> {
    if a.disks != b.disks {
        return Err(format!(
            "the disks and snapshots are\n    {:?}, were\n    {:?}",
            b.disks, a.disks
        ));
    }
    let (x, y) = (&a.found, &b.found);
    if x.mapping != y.mapping {
        return Err("other blocks are mapped".to_string());
    }
    if (x.leaked, x.damaged) != (y.leaked, y.damaged) {
        return Err(format!("the check finds {y:?}, found {x:?}"));
    }
    // What is deleted may have got on with its way out.
    let going = x.dying > 0 && (y.dying <= x.dying && y.free >= x.free);
    if (x.dying, x.free, a.free_blocks) != (y.dying, y.free, b.free_blocks) && !going {
        return Err(format!(
            "{} blocks are free ({y:?}), {} were ({x:?})",
            b.free_blocks, a.free_blocks
        ));
    }
    Ok(())
}

impl Stage<'_> {
    /// Opens the store and looks at it. `None`: `cut_at` was reached before it was open.
    fn recover(&mut self, cut_at: Option<u64>) -> Result<Option<Store>, String> {
        let mut engine = Engine::open(self.config, self.traits, self.label, self.shard);
        for _ in 0..TURNS_MAX {
            self.turn(&mut engine)?;
            let ready = engine.state() == EngineState::Ready;
            if ready || cut_at.is_some_and(|at| self.base.happened >= at) {
                // The device takes what is in flight while its memory is still there.
                self.base.materialize();
                if self.ruined && !ready {
                    return Ok(None);
                }
                let found = self.check()?;
                return Ok(ready.then(|| store(&engine, found)));
            }
            let waits = self.base.next_time().into_iter().chain(engine.deadline_ns()).min();
            match waits {
                _ if engine.busy() => self.now += 100,
                Some(at) => self.now = self.now.max(at),
                None => return Err("it stands still".to_string()),
            }
        }
        Err("it does not end".to_string())
    }

    fn turn(&mut self, engine: &mut Engine) -> Result<(), String> {
        let region = self.label.first_region + u64::from(self.shard) * self.label.region_bytes;
        while let Some((tag, result)) = self.base.poll(self.now) {
            engine.complete(tag, result);
        }
        engine.tick(self.now);
        let mut segs: Vec<Seg> = Vec::new();
        while let Some(io) = engine.next_io() {
            engine.gather(&io, &mut segs);
            self.base.start(&io, region + io.offset, &segs, self.now);
        }
        while let Some(event) = engine.next_event() {
            if event.severe && !self.ruined {
                return Err(format!("it says: {}", event.text));
            }
        }
        match engine.open_error() {
            Some(error) => Err(format!("it fails: {:?}: {error}", error.kind)),
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<Findings, String> {
        fsck::check(&Image::new(&self.base, self.label, self.shard), false)
    }
}

fn store(engine: &Engine, found: Findings) -> Store {
    let disks = engine.disks().into_iter();
    let disks = disks.map(|disk| (disk.clone(), engine.snapshots(disk.id))).collect();
    Store { disks, free_blocks: engine.store_info().free_blocks, found }
}
