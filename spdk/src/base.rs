//! One shard's region of a bdev.
//!
//! ```text
//!  engine's operations ─► copied, where the bdev is memory
//!                      ─► submit ─┬─ started by SPDK ─► done ring ─┐
//!                                 ├─ no room now: tried again ─────┤
//!                                 └─ bdev gone: failed at once ────┴─► poll
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{BaseError, BaseOp, BaseTraits, Seg, Tag};
use lamina_target::base::flushes::Others;
use lamina_target::base::{BaseResult, HostBase, Operation, RamBase, Region};

use crate::device::{BaseDevice, Opened};
use crate::sys::base_io::{BaseIos, What};
use crate::sys::channel::Channel;

/// Operations on the bdev at one time, for each shard.
const IN_FLIGHT_MAX: u32 = 512;

/// An operation that SPDK had no room for.
struct Refused {
    io: Operation,
    segs: Vec<Seg>,
}

/// What a shard holds of the bdev while it is driven, and until that is gone. What it is reached by
/// goes first: closing needs that there is no channel.
struct Held {
    way: Way,
    opened: Arc<Opened>,
}

/// How the bdev is reached.
enum Way {
    /// By its I/O.
    Io(Channel),
    /// As memory.
    Memory(RamBase),
}

/// See the picture above.
pub struct BdevBase {
    device: Arc<BaseDevice>,
    held: Option<Held>,
    region: Region,
    lane: usize,
    ios: BaseIos,
    refused: Option<Refused>,
    /// A flush that went well, until it is sure that no other has failed.
    unsure: Option<(Tag, Others)>,
    done: VecDeque<(Tag, BaseResult)>,
    paused: bool,
}

impl BdevBase {
    /// The shard's part of a device.
    pub fn new(device: Arc<BaseDevice>, region: Region) -> BdevBase {
        let lane = device.flushes().join();
        BdevBase {
            device,
            held: None,
            region,
            lane,
            ios: BaseIos::new(IN_FLIGHT_MAX, SEGS_MAX),
            refused: None,
            unsure: None,
            done: VecDeque::with_capacity(IN_FLIGHT_MAX as usize),
            paused: false,
        }
    }

    /// True if SPDK has taken it, or has refused it for good.
    fn start(&mut self, io: &Operation, segs: &[Seg]) -> bool {
        let offset = self.region.device_offset(io.offset, io.len as usize);
        let what = What { tag: io.tag.0, op: io.op, offset, len: u64::from(io.len) };
        let started = match &self.held {
            Some(held) if !self.device.is_gone() => match &held.way {
                Way::Io(channel) => {
                    let started = self.ios.start(&held.opened.desc, channel, &what, segs);
                    started.map_err(|_| BaseError::Io)
                }
                Way::Memory(_) => unreachable!("memory is copied, see `HostBase::memory`"),
            },
            Some(_) | None => Err(BaseError::Gone),
        };
        started.unwrap_or_else(|error| {
            self.finish(Tag(io.tag.0 & !FLUSH_BIT), io.op, Err(error));
            true
        })
    }

    /// The operation is over, as far as the bdev is concerned.
    fn finish(&mut self, tag: Tag, op: BaseOp, result: BaseResult) {
        if op != BaseOp::Flush {
            self.done.push_back((tag, result));
            return;
        }
        let others = self.device.flushes().end(self.lane, result.is_ok());
        assert!(self.unsure.is_none(), "two flushes of one shard at a time");
        match result {
            Ok(()) => self.unsure = Some((tag, others)),
            Err(_) => self.done.push_back((tag, result)),
        }
    }

    fn settle_flush(&mut self) {
        let flushes = self.device.flushes();
        if let Some((tag, _)) = self.unsure.take_if(|(_, others)| flushes.over(others)) {
            let result = if flushes.failed() { Err(BaseError::Io) } else { Ok(()) };
            self.done.push_back((tag, result));
        }
    }
}

/// A flush is told from the rest by a bit that no tag of the engine has.
const FLUSH_BIT: u64 = 1 << 63;

impl HostBase for BdevBase {
    fn adopt(&mut self) -> std::io::Result<()> {
        if self.held.is_some() {
            return Ok(());
        }
        let opened = self.device.opened();
        let way = opened.as_ref().and_then(|opened| match &opened.memory {
            Some(ram) => Some(Way::Memory(RamBase::new(ram.clone(), self.region))),
            None => opened.desc.channel().map(Way::Io),
        });
        match (opened, way) {
            (Some(opened), Some(way)) => {
                self.held = Some(Held { way, opened });
                Ok(())
            }
            // Operations fail from now on, which is what its disks are to say.
            _ if self.device.is_gone() => Ok(()),
            _ => Err(std::io::Error::other("SPDK gives no channel to the bdev")),
        }
    }

    fn release(&mut self) {
        assert!(self.ios.in_flight() == 0, "let go with I/O in flight");
        if let Some(Held { way: Way::Memory(ram), .. }) = &mut self.held {
            // Whoever drives it next may be another core.
            ram.settle();
        }
        self.held = None;
    }

    fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    fn traits(&self) -> BaseTraits {
        self.device.traits()
    }

    fn size(&self) -> u64 {
        self.region.len
    }

    fn has_room(&self) -> bool {
        let driven = self.held.is_some() || self.device.is_gone();
        driven && !self.paused && self.refused.is_none() && self.ios.has_room()
    }

    fn memory(&mut self) -> Option<&mut RamBase> {
        match &mut self.held {
            Some(Held { way: Way::Memory(ram), .. }) => Some(ram),
            Some(_) | None => None,
        }
    }

    fn submit(&mut self, io: &Operation, segs: &[Seg]) {
        assert!(self.refused.is_none(), "submitted without room");
        let mut io = *io;
        let segs = if io.op == BaseOp::Flush { &[] } else { segs };
        if io.op == BaseOp::Flush {
            self.device.flushes().begin(self.lane);
            assert!(io.tag.0 & FLUSH_BIT == 0, "a tag with the flush bit");
            if !self.device.can_flush() {
                // A device that cannot be flushed has no cache to lose.
                self.finish(io.tag, io.op, Ok(()));
                return;
            }
            io.tag = Tag(io.tag.0 | FLUSH_BIT);
        }
        if !self.start(&io, segs) {
            self.refused = Some(Refused { io, segs: segs.to_vec() });
        }
    }

    fn enter(&mut self) -> bool {
        if let Some(Held { way: Way::Memory(ram), .. }) = &mut self.held {
            ram.settle();
        }
        if let Some(refused) = self.refused.take() {
            if self.start(&refused.io, &refused.segs) {
                return true;
            }
            self.refused = Some(refused);
        }
        if self.device.is_gone() && self.ios.in_flight() == 0 && self.held.is_some() {
            self.release();
            return true;
        }
        false
    }

    fn poll(&mut self) -> Option<(Tag, BaseResult)> {
        while let Some((tag, good)) = self.ios.next_done() {
            let error = if self.device.is_gone() { BaseError::Gone } else { BaseError::Io };
            let result = if good { Ok(()) } else { Err(error) };
            if tag & FLUSH_BIT == 0 {
                return Some((Tag(tag), result));
            }
            self.finish(Tag(tag & !FLUSH_BIT), BaseOp::Flush, result);
        }
        if self.unsure.is_some() {
            self.settle_flush();
        }
        self.done.pop_front()
    }

    fn in_flight(&self) -> usize {
        let waiting = usize::from(self.refused.is_some()) + usize::from(self.unsure.is_some());
        self.ios.in_flight() + waiting + self.done.len()
    }
}
