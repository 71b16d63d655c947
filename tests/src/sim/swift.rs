//! Requests that the engine carries out without keeping them, as a host on memory asks it to: their
//! bytes are moved by the host, those of reads as late as the contract allows.
//!
//! ```text
//!  at_once ─► moves ─┬─ a write: all, in order, now ─► done, unless the engine keeps it
//!                    └─ reads: before the next command or tick ─► done
//! ```

use lamina_bdev::{AtOnce, BaseOp, Done, Op, Seg, Status};

use super::requests::Flight;
use super::rng::mix;
use super::world::World;

/// A request that was carried out so far that only its bytes have to be moved.
pub struct Swift {
    cookie: u64,
    op: BaseOp,
    /// Byte offset inside the region; `None`: it was a hole.
    offset: Option<u64>,
    segs: Vec<Seg>,
    /// The engine answers it itself.
    kept: bool,
}

impl World {
    /// Tries half of the requests that way. False: they go the other one.
    pub(super) fn try_at_once(&mut self, flight: &Flight) -> bool {
        let request = flight.request;
        // Not drawn, so that old seeds draw what they drew.
        if self.base.gone || mix(request.cookie ^ request.offset) & 1 == 0 {
            return false;
        }
        let segs = flight.buffer.segs();
        let (offset, kept) = match self.engine_mut().at_once(&request, segs) {
            AtOnce::No => return false,
            AtOnce::Zeroed => (None, false),
            AtOnce::Move { offset } => (Some(offset), false),
            AtOnce::Kept { offset } => (Some(offset), true),
        };
        let op = if request.op == Op::Write { BaseOp::Write } else { BaseOp::Read };
        self.swift.push(Swift { cookie: request.cookie, op, offset, segs: segs.to_vec(), kept });
        true
    }

    /// Moves what the contract wants moved now, so that the next call may be any.
    pub(super) fn move_writes(&mut self) {
        if self.swift.iter().any(|swift| swift.op == BaseOp::Write) {
            self.move_all();
        }
    }

    /// Moves everything; the requests are done then.
    pub(super) fn move_all(&mut self) {
        let region = self.label.first_region + u64::from(self.plan.shard) * self.label.region_bytes;
        for Swift { cookie, op, offset, segs, kept } in std::mem::take(&mut self.swift) {
            if let Some(offset) = offset {
                self.base.at_once(op, region + offset, &segs);
                self.take_harm();
            }
            if !kept {
                self.swift_dones.push(Done { cookie, status: Status::Ok });
            }
        }
    }
}
