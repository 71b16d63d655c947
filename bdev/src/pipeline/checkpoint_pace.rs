//! How fast a consistency point goes.
//!
//! ```text
//!  nodes written                       all, by: SPREAD at the latest, an eighth of the journal,
//!    │                      ╱          or an eighth of the leaves that may become dirty
//!    │                 ╱               ahead of the line: requests have the turn to themselves
//!    │            ╱                    behind it: steps in proportion to the requests beside them
//!    └──────╱───────────────► time, journal blocks, dirty leaves since the freeze
//! ```
//!
//! All the steps a turn can take are taken if nothing else is to be done, or if somebody waits.

use std::hint::black_box;

use crate::engine::{Engine, EngineState};
use crate::limits::{
    CHECKPOINT_NODE_NS, CHECKPOINT_NODES_AT_ONCE, CHECKPOINT_SPREAD_NS, CHECKPOINT_STEPS_TURN,
    LINKS, QUIET_TURNS, REQUESTS_A_STEP,
};
use crate::pipeline::checkpoint::Phase;

/// What was used up since the freeze by the time all nodes should be written: one part in so many
/// of the journal, or of the leaves that may be dirty.
const SHARE_USED: u64 = 8;

/// Links of the next leaf that one turn touches: eight lines.
const PART: usize = 64;

impl Engine {
    /// How many steps this turn may take: all if there is nothing else to do or if somebody waits
    /// for what the point sets free, none if it is ahead of its time, and otherwise in proportion
    /// to the requests. So a point ends in bounded time under any load, and requests take a little
    /// longer each instead of a few much longer.
    pub(crate) fn checkpoint_share(&mut self) -> usize {
        let c = &mut self.checkpoint;
        let requests = std::mem::take(&mut c.requests);
        c.quiet = if requests > 0 { 0 } else { c.quiet.saturating_add(1) };
        let alone = c.quiet >= QUIET_TURNS || self.state != EngineState::Ready;
        let awaited = c.urgent
            || !self.parked.is_empty()
            || c.dirty_count() * 4 > c.dirty_max * 3
            || self.journal.nearly_full();
        if alone || awaited {
            return CHECKPOINT_STEPS_TURN;
        }
        if c.phase == Phase::Nodes && !self.reaping() {
            let owed = self.nodes_owed();
            if owed == 0 {
                self.look_ahead();
            }
            return (requests / REQUESTS_A_STEP).max(1).min(owed);
        }
        (requests / REQUESTS_A_STEP).clamp(1, CHECKPOINT_STEPS_TURN)
    }

    /// How many nodes the running point is behind.
    fn nodes_owed(&self) -> usize {
        let c = &self.checkpoint;
        let nodes = c.entries.len() as u64;
        let spread = (nodes * CHECKPOINT_NODE_NS).clamp(1, CHECKPOINT_SPREAD_NS);
        let journal = self.journal.used() - (c.cut - self.journal.tail);
        // Each as a share: what has gone by, of what may go by.
        let shares = [
            (self.now.saturating_sub(c.last_ns), spread),
            (journal * SHARE_USED, self.journal.blocks()),
            (c.dirty.len() as u64 * SHARE_USED, c.dirty_max as u64),
        ];
        let due = |(gone, all): (u64, u64)| nodes * gone.min(all) / all.max(1);
        let due = shares.into_iter().map(due).max().unwrap_or(nodes);
        let due = due as usize + CHECKPOINT_NODES_AT_ONCE;
        due.saturating_sub(c.at).min(CHECKPOINT_STEPS_TURN)
    }

    /// Touches a part of the leaf that comes next, so that the turn that writes it does not wait
    /// for all of its lines.
    fn look_ahead(&mut self) {
        let c = &mut self.checkpoint;
        let Some(slot) = c.next_leaf().map(|leaf| leaf.slot as usize) else { return };
        if c.looked_at.0 != c.at {
            c.looked_at = (c.at, 0);
        }
        let part = c.looked_at.1;
        if part * PART < LINKS {
            c.looked_at.1 += 1;
            let links = &self.cache.links[slot][part * PART..][..PART];
            // One word a line.
            let touched = links.iter().step_by(8).fold(0, |all, link| all | link);
            black_box(touched | self.cache.meta[slot].birth);
        }
    }
}
