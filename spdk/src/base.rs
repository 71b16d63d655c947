//! One shard's region of a bdev.
//!
//! ```text
//!  engine's operations ─► copied, where the bdev is memory
//!                      ─► submit ─┬─ started by SPDK ─► done ring ─┐
//!                                 ├─ no room now: tried again ─────┤
//!                                 └─ bdev gone: failed at once ────┴─► poll
//!  I/O that is one operation ─► hand_on ─► the bdev itself ─► Drive::below_done ─► handed_back
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use lamina_bdev::limits::SEGS_MAX;
use lamina_bdev::{BaseError, BaseOp, BaseTraits, Seg, Tag};
use lamina_target::base::flushes::Others;
use lamina_target::base::{BaseResult, HandedOn, HostBase, Operation, RamBase, Region};

use crate::device::{BaseDevice, Opened};
use crate::disk::Backed;
use crate::sys::base_io::{BaseIos, What};
use crate::sys::bdev_io::BdevIo;
use crate::sys::below;
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
    /// I/O that was handed on, and not given back.
    handed_on: usize,
    /// One of them had no room, and is to be handed on again.
    again: bool,
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
            handed_on: 0,
            again: false,
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

    /// Why operations fail now.
    fn error(&self) -> BaseError {
        if self.device.is_gone() { BaseError::Gone } else { BaseError::Io }
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
        assert!(self.ios.in_flight() + self.handed_on == 0, "let go with I/O in flight");
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

    fn room(&self) -> usize {
        let by_io = matches!(self.held, Some(Held { way: Way::Io(_), .. }));
        // What is gone is let go once nothing is in flight: whoever asks again and again must not
        // keep it.
        let held_up = self.paused || self.refused.is_some() || self.again;
        if !by_io || held_up || self.device.is_gone() {
            return 0;
        }
        (IN_FLIGHT_MAX as usize).saturating_sub(self.ios.in_flight() + self.handed_on)
    }

    fn hand_on(&mut self, number: u64, offset: u64) -> HandedOn {
        let io = BdevIo::from_engine(number);
        let offset = self.region.device_offset(offset, io.bytes() as usize);
        let at = offset >> self.device.block_bytes().trailing_zeros();
        self.handed_on += usize::from(!std::mem::take(&mut self.again));
        let (io, rc) = match &self.held {
            Some(Held { way: Way::Io(channel), opened }) if !self.device.is_gone() => {
                // `at` and the I/O's own length are in the same blocks.
                assert_eq!(io.blocks() * u64::from(self.device.block_bytes()), io.bytes());
                match below::start::<Backed, _>(&opened.desc, channel, io, at) {
                    Ok(()) => return HandedOn::Started,
                    Err(refused) => refused,
                }
            }
            Some(_) | None => (io, -libc::ENODEV),
        };
        io.into_engine();
        if rc == -libc::ENOMEM {
            self.again = true;
            return HandedOn::NotNow;
        }
        self.handed_on -= 1;
        HandedOn::Failed(self.error())
    }

    fn handed_back(&mut self, good: bool) -> BaseResult {
        assert!(self.handed_on > 0, "given back more than was handed on");
        self.handed_on -= 1;
        if good { Ok(()) } else { Err(self.error()) }
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
        let idle = self.ios.in_flight() + self.handed_on == 0;
        if self.device.is_gone() && idle && self.held.is_some() {
            self.release();
            return true;
        }
        false
    }

    fn poll(&mut self) -> Option<(Tag, BaseResult)> {
        while let Some((tag, good)) = self.ios.next_done() {
            let result = if good { Ok(()) } else { Err(self.error()) };
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
        self.ios.in_flight() + self.handed_on + waiting + self.done.len()
    }
}
