//! Bdevs of ours, and the module that they belong to.
//!
//! ```text
//!  SPDK ─► fn_table ─► submit_request ─► Backend::submit(channel, I/O)
//!       ─► get_io_channel ─► io_device = Registered ─► ChannelState, one a thread
//!       ─► destruct ─► channels gone ─► destruct_done ─► freed
//! ```
#![allow(unsafe_code)]
// UNSAFETY: SPDK calls back with pointers to what was registered.

use std::cell::UnsafeCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::{Backend, ChannelState, Spec};
use super::bdev_io::{BdevIo, CTX_BYTES};
use super::json::JsonWriter;
use super::thread::{Thread, text};
use crate::ffi;

pub(super) struct Registered<B> {
    /// SPDK changes it at any time.
    bdev: UnsafeCell<ffi::spdk_bdev>,
    pub(super) backend: Arc<B>,
    name: CString,
    alive: Arc<AtomicBool>,
}

/// A bdev of ours. Everything here is for the application's thread.
pub struct Disk<B: Backend> {
    raw: NonNull<Registered<B>>,
    /// False once SPDK has let it go.
    alive: Arc<AtomicBool>,
    alias: String,
}

// SAFETY: a handle; what it leads to is touched on the application's thread only (asserted).
unsafe impl<B: Backend> Send for Disk<B> {}

const PRODUCT: &std::ffi::CStr = c"Lamina disk";

impl<B: Backend> Disk<B> {
    const TABLE: ffi::spdk_bdev_fn_table = ffi::spdk_bdev_fn_table {
        destruct: Some(destruct::<B>),
        submit_request: Some(submit_request::<B>),
        io_type_supported: Some(io_type_supported),
        get_io_channel: Some(get_io_channel::<B>),
        dump_info_json: Some(dump_info_json::<B>),
        write_config_json: Some(write_config_json),
        get_spin_time: None,
        get_module_ctx: None,
        get_memory_domains: None,
        get_memory_domain_types: None,
        reset_device_stat: None,
        dump_device_stat_json: None,
        accel_sequence_supported: None,
    };

    /// Makes a bdev appear.
    ///
    /// # Errors
    /// `-errno`.
    pub fn register(spec: &Spec, backend: Arc<B>) -> Result<Disk<B>, i32> {
        assert!(on_app_thread());
        let name = CString::new(spec.name.as_str()).map_err(|_| -libc::EINVAL)?;
        let alive = Arc::new(AtomicBool::new(true));
        // SAFETY: a bdev is plain data, for which zeros mean "nothing".
        let mut bdev: ffi::spdk_bdev = unsafe { std::mem::zeroed() };
        bdev.product_name = PRODUCT.as_ptr().cast_mut();
        bdev.write_cache = c_int::from(spec.write_cache);
        bdev.blocklen = spec.block_bytes;
        bdev.phys_blocklen = lamina_bdev::BLOCK_SIZE as u32;
        bdev.blockcnt = spec.bytes / u64::from(spec.block_bytes);
        bdev.max_num_segments = spec.segs_max;
        bdev.max_segment_size = !4095;
        bdev.uuid.u.raw = spec.uuid;
        bdev.reset_io_drain_timeout = ffi::SPDK_BDEV_RESET_IO_DRAIN_RECOMMENDED_VALUE as u16;
        bdev.fn_table = const { &Self::TABLE };
        bdev.module = module();
        let mark = alive.clone();
        let made = Box::into_raw(Box::new(Registered {
            bdev: UnsafeCell::new(bdev),
            backend,
            name,
            alive: mark,
        }));
        // SAFETY: `made` stays where it is until `freed`.
        let rc = unsafe {
            let bdev = (*made).bdev.get();
            (*bdev).name = (*made).name.as_ptr().cast_mut();
            (*bdev).ctxt = made.cast();
            ffi::spdk_io_device_register(
                made.cast(),
                Some(channel_made::<B>),
                Some(channel_gone::<B>),
                size_of::<ChannelState>() as u32,
                (*made).name.as_ptr(),
            );
            ffi::spdk_bdev_register(bdev)
        };
        if rc != 0 {
            // SAFETY: no bdev came of it; the device has no channels.
            unsafe { ffi::spdk_io_device_unregister(made.cast(), Some(never_was::<B>)) };
            return Err(rc);
        }
        let raw = NonNull::new(made).expect("a box");
        let mut disk = Disk { raw, alive, alias: String::new() };
        disk.rename(&spec.alias);
        Ok(disk)
    }

    /// The bdev, if SPDK has not let it go.
    fn bdev(&self) -> Option<*mut ffi::spdk_bdev> {
        assert!(on_app_thread());
        let alive = self.alive.load(Ordering::Acquire);
        // SAFETY: alive, so not freed; it is freed on this thread.
        alive.then(|| unsafe { self.raw.as_ref() }.bdev.get())
    }

    /// Gives it another alias.
    pub fn rename(&mut self, alias: &str) {
        let Some(bdev) = self.bdev() else { return };
        if self.alias == alias {
            return;
        }
        let c = |text: &str| CString::new(text).unwrap_or_default();
        // SAFETY: a registered bdev; SPDK copies names.
        unsafe {
            if !self.alias.is_empty() {
                ffi::spdk_bdev_alias_del(bdev, c(&self.alias).as_ptr());
            }
            // A name that is taken leaves it without: it has its own.
            ffi::spdk_bdev_alias_add(bdev, c(alias).as_ptr());
        }
        self.alias = alias.to_string();
    }

    /// Gives it another size; whoever has it open is told.
    pub fn resize(&self, bytes: u64) {
        let Some(bdev) = self.bdev() else { return };
        // SAFETY: a registered bdev.
        unsafe {
            let blocks = bytes / u64::from((*bdev).blocklen);
            if (*bdev).blockcnt != blocks {
                ffi::spdk_bdev_notify_blockcnt_change(bdev, blocks);
            }
        }
    }

    /// Makes it vanish; `done` runs when nobody has it open any more.
    pub fn unregister(self, done: impl FnOnce() + Send + 'static) {
        let Some(bdev) = self.bdev() else { return done() };
        let done: Box<Box<dyn FnOnce() + Send>> = Box::new(Box::new(done));
        // SAFETY: a registered bdev; the box is taken back once.
        unsafe {
            ffi::spdk_bdev_unregister(bdev, Some(unregistered), Box::into_raw(done).cast());
        }
    }
}

fn on_app_thread() -> bool {
    Thread::app().is_some_and(|app| app.is_current())
}

unsafe extern "C" fn unregistered(done: *mut c_void, _rc: c_int) {
    // SAFETY: the box that `unregister` gave.
    let done = unsafe { Box::from_raw(done.cast::<Box<dyn FnOnce() + Send>>()) };
    done();
}

/// # Safety
/// `ctxt` is what was registered, and not freed.
pub(super) unsafe fn registered<'a, B: Backend>(ctxt: *mut c_void) -> &'a Registered<B> {
    // SAFETY: by contract.
    unsafe { &*ctxt.cast::<Registered<B>>() }
}

unsafe extern "C" fn destruct<B: Backend>(ctxt: *mut c_void) -> c_int {
    // SAFETY: SPDK destructs once.
    unsafe {
        registered::<B>(ctxt).alive.store(false, Ordering::Release);
        ffi::spdk_io_device_unregister(ctxt, Some(channels_gone::<B>));
    }
    1
}

unsafe extern "C" fn channels_gone<B: Backend>(device: *mut c_void) {
    // SAFETY: the last that SPDK does with it, after `destruct`.
    unsafe {
        let made = device.cast::<Registered<B>>();
        ffi::spdk_bdev_destruct_done((*made).bdev.get(), 0);
        drop(Box::from_raw(made));
    }
}

unsafe extern "C" fn never_was<B: Backend>(device: *mut c_void) {
    // SAFETY: as `channels_gone`, of one that was never registered.
    drop(unsafe { Box::from_raw(device.cast::<Registered<B>>()) });
}

/// What SPDK keeps of a channel for us.
///
/// # Safety
/// A channel of ours, on its own thread.
unsafe fn state<'a>(channel: *mut ffi::spdk_io_channel) -> &'a ChannelState {
    // SAFETY: SPDK lays our part out behind its own, which has this size.
    unsafe { &*channel.byte_add(ffi::SPDK_IO_CHANNEL_STRUCT_SIZE as usize).cast() }
}

unsafe extern "C" fn channel_made<B: Backend>(device: *mut c_void, ctx: *mut c_void) -> c_int {
    // SAFETY: memory for our part, and the device.
    unsafe {
        ctx.cast::<ChannelState>().write(ChannelState::default());
        registered::<B>(device).backend.channel_opened();
    }
    0
}

unsafe extern "C" fn channel_gone<B: Backend>(device: *mut c_void, _ctx: *mut c_void) {
    // SAFETY: the device outlives its channels; our part needs no drop.
    unsafe { registered::<B>(device) }.backend.channel_closed();
}

unsafe extern "C" fn get_io_channel<B: Backend>(ctxt: *mut c_void) -> *mut ffi::spdk_io_channel {
    // SAFETY: what was registered is the device.
    unsafe { ffi::spdk_get_io_channel(ctxt) }
}

unsafe extern "C" fn submit_request<B: Backend>(
    channel: *mut ffi::spdk_io_channel,
    io: *mut ffi::spdk_bdev_io,
) {
    // SAFETY: SPDK gives one of our channels on its thread, and an I/O for us.
    unsafe {
        let io = BdevIo::new(io);
        if io.wants_memory() {
            let len = io.bytes();
            ffi::spdk_bdev_io_get_buf(io.into_raw(), Some(got_memory::<B>), len);
            return;
        }
        registered::<B>(io.bdev_ctxt()).backend.submit(state(channel), io);
    }
}

unsafe extern "C" fn got_memory<B: Backend>(
    channel: *mut ffi::spdk_io_channel,
    io: *mut ffi::spdk_bdev_io,
    good: bool,
) {
    // SAFETY: the I/O that `submit_request` gave away; dropped, it fails.
    unsafe {
        let io = BdevIo::from_raw(io);
        if good {
            registered::<B>(io.bdev_ctxt()).backend.submit(state(channel), io);
        }
    }
}

/// What stands behind the bdev that an I/O is for. All bdevs of this crate have one kind of it.
pub fn backend<B: Backend>(io: &BdevIo) -> &B {
    // SAFETY: a bdev stays while it has I/O under way, and all of them are registered with `B`.
    unsafe { &registered::<B>(io.bdev_ctxt()).backend }
}

/// Brings an I/O to another thread, to [`Backend::arrived`].
pub fn forward<B: Backend>(io: BdevIo, to: &Thread) {
    // SAFETY: the thread lives; `arrived` takes the I/O back.
    let sent =
        unsafe { ffi::spdk_thread_send_msg(to.raw(), Some(arrived::<B>), io.into_raw().cast()) };
    assert_eq!(sent, 0, "SPDK takes no more messages");
}

unsafe extern "C" fn arrived<B: Backend>(io: *mut c_void) {
    // SAFETY: sent by `forward`; a bdev stays while it has I/O under way.
    unsafe {
        let io = BdevIo::from_raw(io.cast());
        registered::<B>(io.bdev_ctxt()).backend.arrived(io);
    }
}

unsafe extern "C" fn io_type_supported(_: *mut c_void, kind: ffi::spdk_bdev_io_type) -> bool {
    matches!(
        kind,
        ffi::SPDK_BDEV_IO_TYPE_READ
            | ffi::SPDK_BDEV_IO_TYPE_WRITE
            | ffi::SPDK_BDEV_IO_TYPE_FLUSH
            | ffi::SPDK_BDEV_IO_TYPE_UNMAP
            | ffi::SPDK_BDEV_IO_TYPE_WRITE_ZEROES
            | ffi::SPDK_BDEV_IO_TYPE_RESET
            | ffi::SPDK_BDEV_IO_TYPE_ABORT
    )
}

unsafe extern "C" fn dump_info_json<B: Backend>(
    ctxt: *mut c_void,
    writer: *mut ffi::spdk_json_write_ctx,
) -> c_int {
    // SAFETY: a registered bdev, and a writer for this call.
    unsafe {
        if let Some(mut writer) = JsonWriter::new(writer) {
            writer.member("lamina", &registered::<B>(ctxt).backend.info());
        }
    }
    0
}

/// Nothing to write: a disk is in its store, and a store is found when its bdev appears.
unsafe extern "C" fn write_config_json(_: *mut ffi::spdk_bdev, _: *mut ffi::spdk_json_write_ctx) {}

struct ModuleCell(UnsafeCell<MaybeUninit<ffi::spdk_bdev_module>>);

// SAFETY: written once before `main`, then SPDK's.
unsafe impl Sync for ModuleCell {}

static MODULE: ModuleCell = ModuleCell(UnsafeCell::new(MaybeUninit::zeroed()));

/// The module that all our bdevs belong to.
pub(super) fn module() -> *mut ffi::spdk_bdev_module {
    MODULE.0.get().cast()
}

/// Tells SPDK of the module. Before SPDK starts, once.
pub(super) fn register_module() {
    const NAME: *const c_char = c"lamina".as_ptr();
    // SAFETY: nobody else knows the static yet; zeros mean "nothing" in it.
    unsafe {
        let module = module();
        (*module).name = NAME;
        (*module).module_init = Some(module_init);
        (*module).fini_start = Some(fini_start);
        (*module).async_fini_start = true;
        (*module).module_fini = Some(module_fini);
        (*module).get_ctx_size = Some(ctx_size);
        (*module).examine_disk = Some(examine_disk);
        ffi::spdk_bdev_module_list_add(module);
    }
}

unsafe extern "C" fn module_init() -> c_int {
    match crate::module::start() {
        Ok(()) => 0,
        Err(error) => {
            lamina_target::log::error(format!("Lamina does not start: {error}"));
            -libc::EIO
        }
    }
}

unsafe extern "C" fn fini_start() {
    // SAFETY: said once, on the application's thread.
    crate::module::stop(|| unsafe { ffi::spdk_bdev_module_fini_start_done() });
}

unsafe extern "C" fn module_fini() {}

unsafe extern "C" fn ctx_size() -> c_int {
    CTX_BYTES as c_int
}

unsafe extern "C" fn examine_disk(bdev: *mut ffi::spdk_bdev) {
    // SAFETY: a registered bdev.
    let (name, ours) = unsafe { (text((*bdev).name), (*bdev).module == module()) };
    let done = || {
        // SAFETY: once for each examination, on the application's thread.
        unsafe { ffi::spdk_bdev_module_examine_done(module()) };
    };
    if ours { done() } else { crate::module::examine(name, done) }
}
