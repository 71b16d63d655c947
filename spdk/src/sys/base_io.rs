//! I/O of a shard on the bdev below: a fixed set of slots, nothing allocated on the way.
//!
//! ```text
//!  submit ─► slot (tag, memory list) ─► spdk_bdev_*_blocks ─► done callback ─► ring ─► next_done
//! ```
//!
//! The callback only notes what is done: it may come while anything runs on this thread.
#![allow(unsafe_code)]
// UNSAFETY: slots are known to SPDK by address while it works on them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;

use lamina_bdev::{BaseOp, Seg};

use super::channel::{Channel, Descriptor, Watcher};
use crate::ffi;

/// An operation that SPDK works on.
struct Slot {
    ring: *const Ring,
    index: u32,
    tag: u64,
    iovs: Vec<ffi::iovec>,
}

/// What is done.
struct Ring(RefCell<VecDeque<(u32, bool)>>);

/// The slots of one shard. Must be idle when it is dropped.
pub struct BaseIos {
    slots: Box<[Slot]>,
    free: Vec<u32>,
    ring: Box<Ring>,
}

// SAFETY: goes to another thread only when idle (see `HostBase`), and then nobody else knows of
// its slots.
unsafe impl Send for BaseIos {}

/// What is to be done, in bytes on the bdev.
#[derive(Clone, Copy)]
pub struct What {
    /// Given back.
    pub tag: u64,
    /// What to do.
    pub op: BaseOp,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl BaseIos {
    /// For `count` operations of at most `segs` pieces of memory.
    pub fn new(count: u32, segs: usize) -> BaseIos {
        let ring = Box::new(Ring(RefCell::new(VecDeque::with_capacity(count as usize))));
        let slot =
            |index| Slot { ring: &raw const *ring, index, tag: 0, iovs: Vec::with_capacity(segs) };
        BaseIos { slots: (0..count).map(slot).collect(), free: (0..count).rev().collect(), ring }
    }

    /// True if one more operation may be started.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Operations that SPDK works on, or that are done and not taken.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts an operation. False: SPDK has no room for it now.
    ///
    /// # Errors
    /// SPDK refuses it.
    ///
    /// # Panics
    /// Without room.
    pub fn start<W: Watcher>(
        &mut self,
        desc: &Descriptor<W>,
        channel: &Channel,
        what: &What,
        segs: &[Seg],
    ) -> Result<bool, i32> {
        let index = *self.free.last().expect("started without room");
        let slot = &mut self.slots[index as usize];
        slot.tag = what.tag;
        slot.iovs.clear();
        slot.iovs.extend(segs.iter().map(|seg| ffi::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(seg.addr),
            iov_len: seg.len,
        }));
        let (iovs, count) = (slot.iovs.as_mut_ptr(), slot.iovs.len() as i32);
        let arg: *mut c_void = (&raw mut *slot).cast();
        let (desc, ch) = (desc.raw(), channel.raw());
        let (at, len) = (what.offset, what.len);
        // SAFETY: descriptor and channel are open, this is the channel's thread; slot and memory
        // stay where they are until the callback.
        let rc = unsafe {
            match (what.op, segs) {
                (BaseOp::Read, [one]) => {
                    let memory = std::ptr::with_exposed_provenance_mut(one.addr);
                    ffi::spdk_bdev_read(desc, ch, memory, at, len, Some(done), arg)
                }
                (BaseOp::Write, [one]) => {
                    let memory = std::ptr::with_exposed_provenance_mut(one.addr);
                    ffi::spdk_bdev_write(desc, ch, memory, at, len, Some(done), arg)
                }
                (BaseOp::Read, _) => {
                    ffi::spdk_bdev_readv(desc, ch, iovs, count, at, len, Some(done), arg)
                }
                (BaseOp::Write, _) => {
                    ffi::spdk_bdev_writev(desc, ch, iovs, count, at, len, Some(done), arg)
                }
                (BaseOp::Flush, _) => {
                    let bdev = ffi::spdk_bdev_desc_get_bdev(desc);
                    let blocks = ffi::spdk_bdev_get_num_blocks(bdev);
                    ffi::spdk_bdev_flush_blocks(desc, ch, 0, blocks, Some(done), arg)
                }
            }
        };
        match rc {
            0 => {
                self.free.pop();
                Ok(true)
            }
            rc if rc == -libc::ENOMEM => Ok(false),
            rc => Err(rc),
        }
    }

    /// The next operation that is done: its tag, and whether it went well.
    pub fn next_done(&mut self) -> Option<(u64, bool)> {
        let (index, good) = self.ring.0.borrow_mut().pop_front()?;
        self.free.push(index);
        Some((self.slots[index as usize].tag, good))
    }
}

impl Drop for BaseIos {
    fn drop(&mut self) {
        assert!(self.in_flight() == 0, "dropped while SPDK works on it");
    }
}

unsafe extern "C" fn done(io: *mut ffi::spdk_bdev_io, good: bool, arg: *mut c_void) {
    // SAFETY: the slot that `start` gave; slots and ring live while anything is in flight.
    unsafe {
        ffi::spdk_bdev_free_io(io);
        let slot = arg.cast::<Slot>();
        (*(*slot).ring).0.borrow_mut().push_back(((*slot).index, good));
    }
}
