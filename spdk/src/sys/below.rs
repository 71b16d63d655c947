//! An I/O of ours that is one operation on the bdev below: handed on as it is, with its own memory.
//!
//! ```text
//!  BdevIo ─► start ─► spdk_bdev_*_blocks ─► done callback ─► Backend::below_done ─► answered
//! ```
//!
//! Nothing of ours is needed to know it by: the callback gets the I/O itself. It may come while
//! anything runs on this thread.
#![allow(unsafe_code)]
// UNSAFETY: an I/O goes through SPDK as a pointer.

use std::ffi::c_void;

use super::backend::Backend;
use super::bdev_io::{BdevIo, Kind};
use super::channel::{Channel, Descriptor, Watcher};
use super::disk::registered;
use crate::ffi;

/// Starts a read or write from block `at` of the bdev below on, which has blocks of the same size.
/// [`Backend::below_done`] gets it back.
///
/// # Errors
/// The I/O, with `-ENOMEM` if SPDK has no room for it now, or why SPDK refuses it.
pub fn start<B: Backend, W: Watcher>(
    desc: &Descriptor<W>,
    channel: &Channel,
    io: BdevIo,
    at: u64,
) -> Result<(), (BdevIo, i32)> {
    let (desc, ch) = (desc.raw(), channel.raw());
    let (kind, (iovs, count), blocks) = (io.kind(), io.iovs(), io.blocks());
    let raw = io.into_below();
    let (done, arg): (ffi::spdk_bdev_io_completion_cb, *mut c_void) = (Some(done::<B>), raw.cast());
    // SAFETY: descriptor and channel are open, this is the channel's thread; the I/O and its memory
    // stay where they are until it is answered, which is after the callback.
    let rc = unsafe {
        match (kind, count) {
            (Some(Kind::Read), 1) => {
                ffi::spdk_bdev_read_blocks(desc, ch, (*iovs).iov_base, at, blocks, done, arg)
            }
            (Some(Kind::Write), 1) => {
                ffi::spdk_bdev_write_blocks(desc, ch, (*iovs).iov_base, at, blocks, done, arg)
            }
            (Some(Kind::Read), _) => {
                ffi::spdk_bdev_readv_blocks(desc, ch, iovs, count, at, blocks, done, arg)
            }
            (Some(Kind::Write), _) => {
                ffi::spdk_bdev_writev_blocks(desc, ch, iovs, count, at, blocks, done, arg)
            }
            (_, _) => -libc::EINVAL,
        }
    };
    match rc {
        0 => Ok(()),
        // SAFETY: it was not started, so it is still ours.
        rc => Err((unsafe { BdevIo::from_below(raw) }, rc)),
    }
}

unsafe extern "C" fn done<B: Backend>(io: *mut ffi::spdk_bdev_io, good: bool, arg: *mut c_void) {
    // SAFETY: the operation is over, and the I/O what `start` has handed on; its bdev stays while
    // it has I/O under way.
    unsafe {
        ffi::spdk_bdev_free_io(io);
        let ours = BdevIo::from_below(arg.cast());
        registered::<B>(ours.bdev_ctxt()).backend.below_done(ours, good);
    }
}
