//! The memory of a bdev that is memory, lent by SPDK's zero-copy interface: read and written in
//! place, with no I/O of SPDK's on the way.
//!
//! ```text
//!  ask ─► spdk_bdev_zcopy_start(all of it) ─► address ─► RamDevice, whose keeper is Lent
//!  last user gone ─► Lent dropped ─► spdk_bdev_zcopy_end ─► channel, descriptor given back
//! ```
//!
//! Only for a bdev whose buffer is the medium itself, as a malloc bdev's is: others copy what was
//! lent back at its end, which is never waited for here.
#![allow(unsafe_code)]
// UNSAFETY: the memory is SPDK's, known by address.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use lamina_target::base::RamDevice;

use super::channel::{Channel, Descriptor, Watcher};
use super::thread::Thread;
use crate::ffi;

/// What has to be given back.
struct Lent<W: Watcher> {
    io: NonNull<ffi::spdk_bdev_io>,
    /// Taken when it is given back.
    rest: Option<Box<Rest<W>>>,
}

// SAFETY: only dropped elsewhere, which sends a message to the application's thread.
unsafe impl<W: Watcher> Send for Lent<W> {}
// SAFETY: nothing is done by a reference to it.
unsafe impl<W: Watcher> Sync for Lent<W> {}

/// What the zero-copy I/O needs; the channel goes before the descriptor.
struct Rest<W: Watcher> {
    _channel: Channel,
    _desc: Arc<Descriptor<W>>,
}

/// Told how it went.
type Told = Box<dyn FnOnce(Option<RamDevice>) + Send>;

struct Asked<W: Watcher> {
    rest: Box<Rest<W>>,
    bytes: u64,
    told: Told,
}

/// Asks a bdev that was claimed for all of its memory. On the application's thread; `told` runs
/// there, with `None` if the bdev lends none.
pub fn ask<W: Watcher>(
    desc: Arc<Descriptor<W>>,
    told: impl FnOnce(Option<RamDevice>) + Send + 'static,
) {
    let Some(channel) = desc.channel() else { return told(None) };
    let (raw_desc, raw_channel) = (desc.raw(), channel.raw());
    let bytes = desc.bytes();
    let rest = Box::new(Rest { _channel: channel, _desc: desc });
    let asked = Box::into_raw(Box::new(Asked { rest, bytes, told: Box::new(told) }));
    // SAFETY: descriptor and channel live in `asked`, which `answered` takes back.
    let rc = unsafe {
        let blocks = ffi::spdk_bdev_get_num_blocks(ffi::spdk_bdev_desc_get_bdev(raw_desc));
        ffi::spdk_bdev_zcopy_start(
            raw_desc,
            raw_channel,
            std::ptr::null_mut(),
            0,
            0,
            blocks,
            true,
            Some(answered::<W>),
            asked.cast(),
        )
    };
    if rc != 0 {
        // SAFETY: it was not started, so the box is still ours.
        let asked = *unsafe { Box::from_raw(asked) };
        (asked.told)(None);
    }
}

unsafe extern "C" fn answered<W: Watcher>(
    io: *mut ffi::spdk_bdev_io,
    good: bool,
    asked: *mut c_void,
) {
    // SAFETY: the box that `ask` gave.
    let Asked { rest, bytes, told } = *unsafe { Box::from_raw(asked.cast::<Asked<W>>()) };
    let io = NonNull::new(io).expect("SPDK gives an I/O");
    if !good {
        // SAFETY: a zero-copy I/O that failed is over.
        unsafe { ffi::spdk_bdev_free_io(io.as_ptr()) };
        return told(None);
    }
    let lent = Lent { io, rest: Some(rest) };
    // SAFETY: a zero-copy I/O that has begun has its memory's list, of that length.
    let (start, len) = unsafe {
        let (mut iovs, mut count): (*mut ffi::iovec, c_int) = (std::ptr::null_mut(), 0);
        ffi::spdk_bdev_io_get_iovec(io.as_ptr(), &mut iovs, &mut count);
        if count == 1 { ((*iovs).iov_base, (*iovs).iov_len) } else { (std::ptr::null_mut(), 0) }
    };
    match NonNull::new(start.cast::<u8>()) {
        Some(start) if len as u64 == bytes => {
            // SAFETY: the memory is lent until the I/O is ended, which dropping `lent` does; it is
            // claimed, so nobody else writes to it but the bdev's own I/O, by copies.
            told(Some(unsafe { RamDevice::lent(start, bytes, Box::new(lent)) }));
        }
        _ => told(None),
    }
}

impl<W: Watcher> Drop for Lent<W> {
    fn drop(&mut self) {
        struct Last<W: Watcher>(NonNull<ffi::spdk_bdev_io>, Box<Rest<W>>);
        // SAFETY: goes to the application's thread, where it came from.
        unsafe impl<W: Watcher> Send for Last<W> {}
        let last = Last(self.io, self.rest.take().expect("dropped once"));
        let end = move || {
            let Last(io, rest) = { last };
            // SAFETY: on its own thread, once; `ended` takes the rest back.
            let rc = unsafe {
                let rest = Box::into_raw(rest).cast();
                ffi::spdk_bdev_zcopy_end(io.as_ptr(), true, Some(ended::<W>), rest)
            };
            assert_eq!(rc, 0, "SPDK does not take its memory back");
        };
        // After SPDK has ended there is nobody left to give it back to.
        if let Some(app) = Thread::app() {
            if app.is_current() { end() } else { app.send(end) }
        }
    }
}

unsafe extern "C" fn ended<W: Watcher>(io: *mut ffi::spdk_bdev_io, _: bool, rest: *mut c_void) {
    // SAFETY: the I/O is over; the box that `drop` gave.
    unsafe {
        ffi::spdk_bdev_free_io(io);
        drop(Box::from_raw(rest.cast::<Rest<W>>()));
    }
}
