//! A bdev below us: its descriptor, a channel to it on one thread, and single blocking-style I/O
//! for control threads.
#![allow(unsafe_code)]
// UNSAFETY: descriptors and channels are SPDK's, known by pointer.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use super::dma::DmaBuffer;
use super::thread::{Thread, text};
use crate::ffi;

/// Told on the application's thread when something happens to an open bdev.
pub trait Watcher: Send + Sync + 'static {
    /// The bdev goes: everything that holds it is to be given back.
    fn removed(&self);
    /// It has another size.
    fn resized(&self);
}

/// An open bdev. Opened and closed on the application's thread; used on any.
pub struct Descriptor<W: Watcher> {
    desc: NonNull<ffi::spdk_bdev_desc>,
    watcher: *const W,
    claimed: bool,
}

// SAFETY: SPDK lets a descriptor be used from any thread; closing goes to the right one.
unsafe impl<W: Watcher> Send for Descriptor<W> {}
// SAFETY: as above.
unsafe impl<W: Watcher> Sync for Descriptor<W> {}

impl<W: Watcher> Descriptor<W> {
    /// Opens the bdev of this name, for reading.
    ///
    /// # Errors
    /// `-errno`.
    ///
    /// # Panics
    /// Anywhere but on the application's thread.
    pub fn open(name: &str, watcher: Arc<W>) -> Result<Descriptor<W>, i32> {
        assert!(Thread::app().is_some_and(|app| app.is_current()));
        let name = CString::new(name).map_err(|_| -libc::EINVAL)?;
        let watcher = Arc::into_raw(watcher);
        let mut desc = std::ptr::null_mut();
        // SAFETY: `watcher` outlives the descriptor (see `drop`).
        let rc = unsafe {
            ffi::spdk_bdev_open_ext(
                name.as_ptr(),
                false,
                Some(event::<W>),
                watcher.cast_mut().cast(),
                &mut desc,
            )
        };
        match NonNull::new(desc) {
            Some(desc) if rc == 0 => Ok(Descriptor { desc, watcher, claimed: false }),
            _ => {
                // SAFETY: the share just taken; nobody else knows it.
                drop(unsafe { Arc::from_raw(watcher) });
                Err(rc)
            }
        }
    }

    fn bdev(&self) -> *mut ffi::spdk_bdev {
        // SAFETY: an open descriptor has its bdev.
        unsafe { ffi::spdk_bdev_desc_get_bdev(self.desc.as_ptr()) }
    }

    /// Takes the bdev for us alone, and for writing. On the application's thread.
    ///
    /// # Errors
    /// `-errno`: somebody else has it.
    pub fn claim(&mut self) -> Result<(), i32> {
        let module = super::disk::module();
        // SAFETY: bdev and descriptor are open; the module is static.
        let rc =
            unsafe { ffi::spdk_bdev_module_claim_bdev(self.bdev(), self.desc.as_ptr(), module) };
        self.claimed = rc == 0;
        if rc == 0 { Ok(()) } else { Err(rc) }
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> u32 {
        // SAFETY: the bdev is open.
        unsafe { ffi::spdk_bdev_get_block_size(self.bdev()) }
    }

    /// Bytes of metadata with each block.
    pub fn metadata_bytes(&self) -> u32 {
        // SAFETY: the bdev is open.
        unsafe { ffi::spdk_bdev_get_md_size(self.bdev()) }
    }

    /// Bytes altogether.
    pub fn bytes(&self) -> u64 {
        // SAFETY: the bdev is open.
        let blocks = unsafe { ffi::spdk_bdev_get_num_blocks(self.bdev()) };
        blocks.saturating_mul(u64::from(self.block_bytes()))
    }

    /// True if completed writes may be lost without a flush.
    pub fn has_write_cache(&self) -> bool {
        // SAFETY: the bdev is open.
        unsafe { ffi::spdk_bdev_has_write_cache(self.bdev()) }
    }

    /// What kind of device it is.
    pub fn product(&self) -> String {
        // SAFETY: the bdev is open, and its text lives with it.
        unsafe { text(ffi::spdk_bdev_get_product_name(self.bdev())) }
    }

    /// True if it can be flushed.
    pub fn can_flush(&self) -> bool {
        // SAFETY: the bdev is open.
        unsafe { ffi::spdk_bdev_io_type_supported(self.bdev(), ffi::SPDK_BDEV_IO_TYPE_FLUSH) }
    }

    /// A channel to it for the calling thread.
    pub fn channel(&self) -> Option<Channel> {
        let thread = Thread::current()?;
        // SAFETY: the descriptor is open.
        let raw = unsafe { ffi::spdk_bdev_get_io_channel(self.desc.as_ptr()) };
        NonNull::new(raw).map(|raw| Channel { raw, thread })
    }

    pub(super) fn raw(&self) -> *mut ffi::spdk_bdev_desc {
        self.desc.as_ptr()
    }
}

unsafe extern "C" fn event<W: Watcher>(
    kind: ffi::spdk_bdev_event_type,
    _bdev: *mut ffi::spdk_bdev,
    watcher: *mut c_void,
) {
    // SAFETY: the descriptor keeps its share until it is closed. One more for this call, since
    // the watcher may close it.
    let watcher = unsafe {
        Arc::increment_strong_count(watcher.cast::<W>());
        Arc::from_raw(watcher.cast::<W>())
    };
    match kind {
        ffi::SPDK_BDEV_EVENT_REMOVE => watcher.removed(),
        ffi::SPDK_BDEV_EVENT_RESIZE => watcher.resized(),
        _ => {}
    }
}

impl<W: Watcher> Drop for Descriptor<W> {
    fn drop(&mut self) {
        struct Last<W>(NonNull<ffi::spdk_bdev_desc>, *const W, bool);
        // SAFETY: goes to the thread that opened it.
        unsafe impl<W: Watcher> Send for Last<W> {}
        let last = Last(self.desc, self.watcher, self.claimed);
        let close = move || {
            let last = last;
            // SAFETY: open until now; nothing of ours uses it any more, channels included.
            unsafe {
                if last.2 {
                    let bdev = ffi::spdk_bdev_desc_get_bdev(last.0.as_ptr());
                    ffi::spdk_bdev_module_release_bdev(bdev);
                }
                ffi::spdk_bdev_close(last.0.as_ptr());
                drop(Arc::from_raw(last.1));
            }
        };
        match Thread::app() {
            Some(app) if !app.is_current() => app.send(close),
            _ => close(),
        }
    }
}

/// A channel to a bdev, of one thread; given back when dropped.
pub struct Channel {
    raw: NonNull<ffi::spdk_io_channel>,
    thread: Thread,
}

// SAFETY: only dropped elsewhere, which sends a message to its own thread.
unsafe impl Send for Channel {}

impl Channel {
    /// The pointer, on the channel's own thread.
    ///
    /// # Panics
    /// Anywhere else.
    pub(super) fn raw(&self) -> *mut ffi::spdk_io_channel {
        debug_assert!(self.thread.is_current());
        self.raw.as_ptr()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        struct Last(NonNull<ffi::spdk_io_channel>);
        // SAFETY: goes to the channel's own thread.
        unsafe impl Send for Last {}
        let last = Last(self.raw);
        let put = move || {
            let last = last;
            // SAFETY: on the channel's own thread, once.
            unsafe { ffi::spdk_put_io_channel(last.0.as_ptr()) };
        };
        if self.thread.is_current() { put() } else { self.thread.send(put) }
    }
}

/// What a control thread wants of a bdev.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Single {
    /// Device to buffer.
    Read,
    /// Buffer to device.
    Write,
    /// What was written becomes durable.
    Flush,
}

/// How that ends: the buffer comes back, and whether it went well.
pub type SingleDone = Box<dyn FnOnce(DmaBuffer, bool) + Send>;

struct SingleIo {
    buffer: DmaBuffer,
    done: SingleDone,
    _channel: Channel,
}

/// Starts one I/O on the application's thread; `done` is told there how it ended.
pub fn start_single<W: Watcher>(
    desc: &Descriptor<W>,
    what: Single,
    offset: u64,
    buffer: DmaBuffer,
    done: SingleDone,
) {
    let Some(channel) = desc.channel() else { return done(buffer, false) };
    let (raw, len) = (channel.raw(), buffer.size() as u64);
    let address = buffer.address();
    let io = Box::into_raw(Box::new(SingleIo { buffer, done, _channel: channel }));
    // SAFETY: descriptor, channel and buffer live until `single_done`, which takes `io` back.
    let rc = unsafe {
        let (desc, arg) = (desc.raw(), io.cast());
        match what {
            Single::Read => {
                ffi::spdk_bdev_read(desc, raw, address, offset, len, Some(single_done), arg)
            }
            Single::Write => {
                ffi::spdk_bdev_write(desc, raw, address, offset, len, Some(single_done), arg)
            }
            Single::Flush => {
                let size = ffi::spdk_bdev_get_num_blocks(ffi::spdk_bdev_desc_get_bdev(desc));
                ffi::spdk_bdev_flush_blocks(desc, raw, 0, size, Some(single_done), arg)
            }
        }
    };
    if rc != 0 {
        // SAFETY: it was not started, so the box is still ours.
        let io = *unsafe { Box::from_raw(io) };
        (io.done)(io.buffer, false);
    }
}

unsafe extern "C" fn single_done(io: *mut ffi::spdk_bdev_io, good: bool, arg: *mut c_void) {
    // SAFETY: the box that `start_single` gave; the I/O is over.
    let single = unsafe {
        ffi::spdk_bdev_free_io(io);
        *Box::from_raw(arg.cast::<SingleIo>())
    };
    (single.done)(single.buffer, good);
}
