//! Requests whose base operation is the host's business. Those that the engine carries out without
//! keeping them, as a host on memory asks it to: their bytes are moved by the host, those of reads
//! as late as the contract allows. And those of which the host starts the one base operation.
//!
//! ```text
//!  at_once  ─► moves ─┬─ a write: all, in order, now ─► done, unless the engine keeps it
//!                     └─ reads: before the next command or tick ─► done
//!  straight ─► operation ─┬─ half start now ─────────────────────┬─► base ─► ended ─► done
//!                         └─ half after what comes, and the tick ┘
//! ```

use lamina_bdev::{AtOnce, BaseIo, BaseOp, Done, Op, Seg, Status, Straight};

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

/// An operation that the host starts itself.
pub struct Own {
    io: BaseIo,
    segs: Vec<Seg>,
    at_once: bool,
}

impl World {
    /// In a quarter of the seeds most reads and writes are of one block, half of these of few: they
    /// are what goes this way, and what gets in each other's.
    pub(super) fn short_range(&self, op: Op, range: (u64, u64), size: u64) -> (u64, u64) {
        let short = self.plan.straight && mix(self.seed) & 3 == 0;
        if !short || !matches!(op, Op::Read | Op::Write) {
            return range;
        }
        let draw = mix(self.model.clock ^ range.0);
        let at = range.0 - range.0 % 4096;
        let at = if draw & 4 == 0 { at } else { at % (8 * 4096) };
        if draw & 3 == 0 || at + 4096 > size { range } else { (at, 4096) }
    }

    /// Tries half of the requests the one way, and most of what is left the other one. False: they
    /// go the usual one.
    pub(super) fn try_short(&mut self, flight: &Flight) -> bool {
        let Flight { request, .. } = flight;
        // Not drawn, so that old seeds draw what they drew.
        let draw = mix(request.cookie ^ request.offset);
        if draw & 1 != 0 && !self.base.gone && self.try_at_once(flight) {
            return true;
        }
        draw & 6 != 0 && self.plan.straight && self.try_straight(flight, draw & 8 != 0)
    }

    fn try_straight(&mut self, flight: &Flight, at_once: bool) -> bool {
        let request = flight.request;
        let segs = flight.buffer.segs();
        match self.engine_mut().straight(&request, segs) {
            Straight::No => return false,
            Straight::Zeroed => {
                self.swift_dones.push(Done { cookie: request.cookie, status: Status::Ok });
            }
            Straight::Start { tag, offset } => {
                let op = if request.op == Op::Write { BaseOp::Write } else { BaseOp::Read };
                let memory = Seg { addr: segs[0].addr, len: request.len as usize };
                let io = BaseIo::on(tag, op, offset, memory);
                self.own.push(Own { io, segs: segs.to_vec(), at_once });
            }
        }
        true
    }

    /// Starts those that do not wait, or all.
    pub(super) fn start_own(&mut self, all: bool) -> Result<(), String> {
        let (now, later) = std::mem::take(&mut self.own)
            .into_iter()
            .partition::<Vec<Own>, _>(|own| all || own.at_once);
        self.own = later;
        now.iter().try_for_each(|own| self.start_one(&own.io, &own.segs))
    }

    fn try_at_once(&mut self, flight: &Flight) -> bool {
        let request = flight.request;
        let segs = flight.buffer.segs();
        let mut answer = self.engine_mut().at_once(&request, segs);
        if answer == AtOnce::No
            && let Some(offset) = self.engine_mut().link_in_place(&request, segs)
        {
            let word = self.base.word(self.region() + offset);
            answer = self.engine_mut().read_in_place(&request, segs, word);
        }
        let (offset, kept) = match answer {
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
        let region = self.region();
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

    /// Where the shard's region begins on the base.
    fn region(&self) -> u64 {
        self.label.first_region + u64::from(self.plan.shard) * self.label.region_bytes
    }
}
