//! Holding the store: what was freed is not given out, so that the trees of a consistency point can
//! be read past the engine.
//!
//! ```text
//!  Hold ─▶ consistency point ─▶ its trees are noted ─▶ ... ─▶ Unhold ─▶ nodes as they were,
//!                                                                       no block is another's
//! ```

use std::rc::Rc;

use lamina_bdev::{Command, ErrorKind};

use super::commands::Intent;
use super::fsck::{self, Trees};
use super::image::Image;
use super::world::World;

/// Blocks by which a count may be late.
const SLACK: u64 = 64;

/// A hold under way.
pub struct Held {
    /// What lay on the device at a consistency point committed since.
    trees: Option<Trees>,
    /// The least that was free at the end of a turn.
    least_free: u64,
}

impl World {
    /// Begins or ends a hold.
    pub(super) fn draw_hold(&mut self) {
        let moving = |i: &Intent| matches!(i, Intent::Hold | Intent::HoldPoint | Intent::Unhold);
        if self.pending.values().any(|p| moving(&p.intent)) {
            return;
        }
        match self.held {
            None => self.give(Command::Hold, Intent::Hold, None, vec![]),
            Some(_) if self.rng.chance(200) => {
                self.give(Command::Hold, Intent::Refused, Some(ErrorKind::Busy), vec![]);
            }
            Some(_) => self.give(Command::Unhold, Intent::Unhold, None, vec![]),
        }
    }

    /// The hold has begun.
    pub(super) fn hold_begun(&mut self) {
        self.held = Some(Held { trees: None, least_free: u64::MAX });
        self.give(Command::Checkpoint, Intent::HoldPoint, None, vec![]);
    }

    /// A consistency point of the hold has been committed: its trees stay from here on.
    pub(super) fn hold_reached(&mut self) -> Result<(), String> {
        let trees = self.trees()?;
        if let Some(held) = &mut self.held {
            held.trees = Some(trees);
        }
        Ok(())
    }

    fn trees(&self) -> Result<Trees, String> {
        let image = Image::new(&self.base, &self.label, self.plan.shard);
        fsck::trees(&image, self.damage.done()).map_err(|why| format!("image: {why}"))
    }

    /// Notes how short space is.
    pub(super) fn watch_hold(&mut self) {
        let Some(held) = &mut self.held else { return };
        let info = self.engine.as_ref().expect("it lives").store_info();
        held.least_free = held.least_free.min(info.free_blocks + info.reserved_blocks);
    }

    /// The hold is over; if `cut_short`, since space was.
    pub(super) fn hold_over(&mut self, cut_short: bool) -> Result<(), String> {
        self.watch_hold();
        let held = self.held.take().ok_or("nothing is held")?;
        if cut_short {
            let info = self.engine().store_info();
            return match held.least_free <= info.total_blocks / 2 + SLACK {
                true => Ok(()),
                false => Err(format!("{} blocks were free all the time", held.least_free)),
            };
        }
        let Some(old) = held.trees else { return Ok(()) };
        let image = Image::new(&self.base, &self.label, self.plan.shard);
        for (at, page) in &old.nodes {
            let now = image.block(*at);
            if !Rc::ptr_eq(&now, page) && now != *page {
                return Err(format!("the node at block {at} was held and has changed"));
            }
        }
        let new = self.trees()?;
        for (block, owner) in &old.owners {
            let now = new.owners.get(block);
            // A family may have lost its first disk.
            if now.is_some_and(|now| fsck::role(*now) != fsck::role(*owner)) {
                return Err(format!(
                    "block {block} was held as {} and is {} now",
                    fsck::describe(*owner),
                    now.map(|now| fsck::describe(*now)).unwrap_or_default()
                ));
            }
        }
        Ok(())
    }
}
