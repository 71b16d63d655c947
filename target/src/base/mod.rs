//! Base devices: where the engine's blocks really are.
//!
//! ```text
//!  engine.next_io() ─► Base::submit ─┬─ RAM: copied at once, answered at once
//!                                    └─ uring: queued ─► Base::enter (one call a turn)
//!  engine.complete() ◄─ Base::poll ◄──────────────────── completion ring
//! ```
//!
//! Contract. The host gives operations whose range lies inside the shard's region and whose
//! memory stays valid until the operation has been answered; it asks [`Base::has_room`] first.
//! A base answers each operation exactly once, with `Ok` only if every byte was transferred: a
//! short transfer is an error. A flush covers every write answered before it was submitted.
//! Once one has failed, every later one on the device fails, of any shard, until it is opened again
//! (see [`flushes`]).

pub mod file;
pub mod flushes;
pub mod null;
pub mod probe;
pub mod ram;
pub mod uring;

use std::os::fd::RawFd;

use lamina_bdev::{BaseError, BaseIo, BaseOp, BaseTraits, Seg, Tag};

pub use file::BaseFile;
pub use null::NullBase;
pub use ram::{RamBase, RamDevice};
pub use uring::UringBase;

/// One operation on a base: what [`BaseIo`] says without its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// To be given back.
    pub tag: Tag,
    /// What to do.
    pub op: BaseOp,
    /// Byte offset inside the region.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub len: u32,
    /// See [`BaseIo::guest`].
    pub guest: bool,
}

impl From<&BaseIo> for Operation {
    fn from(io: &BaseIo) -> Operation {
        let BaseIo { tag, op, offset, len, guest, .. } = *io;
        Operation { tag, op, offset, len, guest }
    }
}

/// How an operation ended.
pub type BaseResult = Result<(), BaseError>;

/// What became of an operation given to [`Base::submit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Submitted {
    /// Over already; [`Base::poll`] will not mention it.
    Done(BaseResult),
    /// Started or queued; [`Base::poll`] answers it later.
    Queued,
}

/// The part of a device that one shard sees: its region, beginning at offset 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Region {
    /// Offset on the device of `len` bytes inside this region.
    ///
    /// Panics if they leave the region: the engine never asks for that.
    #[inline]
    pub fn device_offset(&self, offset: u64, len: usize) -> u64 {
        let end = offset.checked_add(len as u64).expect("base range overflows");
        assert!(end <= self.len, "base range {offset}+{len} leaves the region");
        self.offset + offset
    }
}

/// What became of a request given to [`HostBase::hand_on`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandedOn {
    /// It is under way.
    Started,
    /// There is no room for it now: to be handed on again. It counts as in flight.
    NotNow,
    /// It failed, and is over.
    Failed(BaseError),
}

/// A base that another host provides (see `lamina-spdk`). It keeps the contract above; unlike the
/// others it may go from one thread to another, between [`HostBase::release`] and
/// [`HostBase::adopt`], with nothing in flight.
pub trait HostBase: Send {
    /// The calling thread drives it from now on.
    ///
    /// # Errors
    /// What the host says if it cannot.
    fn adopt(&mut self) -> std::io::Result<()>;
    /// Gives back what belongs to the calling thread. With nothing in flight.
    fn release(&mut self);
    /// While set there is no room, so that what is in flight comes to an end.
    fn pause(&mut self, paused: bool);
    /// See [`Base::traits`].
    fn traits(&self) -> BaseTraits;
    /// See [`Base::size`].
    fn size(&self) -> u64;
    /// See [`Base::has_room`].
    fn has_room(&self) -> bool;
    /// Its memory, if it is reached as such: operations are then copied, and do not come to
    /// [`HostBase::submit`]. This changes in [`HostBase::adopt`], [`HostBase::release`] and
    /// [`HostBase::enter`] alone.
    fn memory(&mut self) -> Option<&mut RamBase>;
    /// See [`Base::submit`]; always answered by [`HostBase::poll`].
    fn submit(&mut self, io: &Operation, segs: &[Seg]);
    /// How many operations it takes now by [`HostBase::hand_on`]; 0 if it takes none that way.
    fn room(&self) -> usize;
    /// Starts the one operation of a request of the host's, which the host knows by this number, at
    /// byte `offset` of the region. Not answered by [`HostBase::poll`]: the host gets the request
    /// back, and calls [`HostBase::handed_back`].
    fn hand_on(&mut self, number: u64, offset: u64) -> HandedOn;
    /// What was handed on is over, and went well or not: what the engine is to be told.
    fn handed_back(&mut self, good: bool) -> BaseResult;
    /// See [`Base::enter`].
    fn enter(&mut self) -> bool;
    /// See [`Base::poll`].
    fn poll(&mut self) -> Option<(Tag, BaseResult)>;
    /// See [`Base::in_flight`].
    fn in_flight(&self) -> usize;
}

/// One shard's base device. A closed set: a call, not a virtual call, on the data path of the
/// daemon.
pub enum Base {
    /// Memory of this process.
    Ram(RamBase),
    /// Memory for the metadata, and nothing for data.
    Null(NullBase),
    /// A file or block device through `io_uring`.
    Uring(Box<UringBase>),
    /// A device of another host.
    Host(Box<dyn HostBase>),
}

impl Base {
    /// To be called once on the thread that will drive this base, before anything else.
    ///
    /// # Errors
    /// What the kernel says if the ring cannot be enabled.
    pub fn adopt(&mut self) -> std::io::Result<()> {
        match self {
            Base::Ram(_) | Base::Null(_) => Ok(()),
            Base::Uring(base) => base.adopt(),
            Base::Host(base) => base.adopt(),
        }
    }

    /// What the engine must know.
    pub fn traits(&self) -> BaseTraits {
        match self {
            Base::Ram(base) => base.traits(),
            Base::Null(base) => base.traits(),
            Base::Uring(base) => base.traits(),
            Base::Host(base) => base.traits(),
        }
    }

    /// Bytes in the region.
    pub fn size(&self) -> u64 {
        match self {
            Base::Ram(base) => base.size(),
            Base::Null(base) => base.size(),
            Base::Uring(base) => base.size(),
            Base::Host(base) => base.size(),
        }
    }

    /// True if one more operation may be submitted.
    pub fn has_room(&self) -> bool {
        match self {
            Base::Ram(_) | Base::Null(_) => true,
            Base::Uring(base) => base.has_room(),
            Base::Host(base) => base.has_room(),
        }
    }

    /// True if operations are over when they have been submitted.
    #[inline]
    pub fn answers_at_once(&mut self) -> bool {
        matches!(self, Base::Null(_)) || self.ram().is_some()
    }

    /// The memory that operations are copied from and to, if that is what this base is.
    #[inline]
    pub fn ram(&mut self) -> Option<&mut RamBase> {
        match self {
            Base::Ram(base) => Some(base),
            Base::Host(base) => base.memory(),
            Base::Null(_) | Base::Uring(_) => None,
        }
    }

    /// Takes one operation; `segs` is its memory (not looked at for a flush).
    pub fn submit(&mut self, io: &Operation, segs: &[Seg]) -> Submitted {
        match self {
            Base::Ram(base) => Submitted::Done(base.run(io, segs)),
            Base::Null(base) => Submitted::Done(base.run(io, segs)),
            Base::Uring(base) => {
                base.submit(io, segs);
                Submitted::Queued
            }
            Base::Host(base) => {
                if let Some(memory) = base.memory() {
                    return Submitted::Done(memory.run(io, segs));
                }
                base.submit(io, segs);
                Submitted::Queued
            }
        }
    }

    /// Gives what is queued to the kernel and collects what is done: at most one system call, none
    /// if there is nothing to do. True if it did anything.
    pub fn enter(&mut self) -> bool {
        match self {
            Base::Ram(base) => {
                base.settle();
                false
            }
            Base::Null(_) => false,
            Base::Uring(base) => base.enter(),
            Base::Host(base) => base.enter(),
        }
    }

    /// The next operation that is done.
    pub fn poll(&mut self) -> Option<(Tag, BaseResult)> {
        match self {
            Base::Ram(_) | Base::Null(_) => None,
            Base::Uring(base) => base.poll(),
            Base::Host(base) => base.poll(),
        }
    }

    /// Operations submitted and not yet answered.
    pub fn in_flight(&self) -> usize {
        match self {
            Base::Ram(_) | Base::Null(_) => 0,
            Base::Uring(base) => base.in_flight(),
            Base::Host(base) => base.in_flight(),
        }
    }

    /// The eventfd that is signalled by completions between [`Base::prepare_sleep`] and
    /// [`Base::woken`].
    pub fn wake_fd(&self) -> Option<RawFd> {
        match self {
            Base::Ram(_) | Base::Null(_) | Base::Host(_) => None,
            Base::Uring(base) => Some(base.wake_fd()),
        }
    }

    /// Turns completion signals on. False if something is done already: do not sleep.
    pub fn prepare_sleep(&mut self) -> bool {
        match self {
            // Another host has its own sleep.
            Base::Ram(_) | Base::Null(_) | Base::Host(_) => true,
            Base::Uring(base) => base.prepare_sleep(),
        }
    }

    /// Turns completion signals off again.
    pub fn woken(&mut self) {
        match self {
            Base::Ram(_) | Base::Null(_) | Base::Host(_) => {}
            Base::Uring(base) => base.woken(),
        }
    }
}

#[cfg(test)]
mod tests;
