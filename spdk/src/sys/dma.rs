//! Memory that devices can reach: SPDK's hugepages.
//!
//! The engine allocates its pages, and control its buffers, through the allocator, aligned to
//! 4 KiB; nothing else in this program is. So whatever is aligned like that comes from SPDK once
//! SPDK is up, and devices can write to it directly, without the engine knowing of SPDK.
#![allow(unsafe_code)]
// UNSAFETY: memory from a foreign allocator, and the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::ffi;

/// Alignment from which memory is meant for devices.
const DEVICE_ALIGN: usize = 4096;
/// Pieces of device memory at one time; more come from the system.
const PIECES_MAX: usize = 4096;

/// Set once SPDK's environment is up.
static UP: AtomicBool = AtomicBool::new(false);
/// Where the pieces are, so that each goes back to where it came from.
static PIECES: [AtomicUsize; PIECES_MAX] = [const { AtomicUsize::new(0) }; PIECES_MAX];

/// SPDK's environment is up: device memory comes from it from now on.
pub fn start() {
    UP.store(true, Ordering::Release);
}

/// The allocator of this program or library.
pub struct DeviceAlloc;

impl DeviceAlloc {
    fn take(layout: Layout) -> *mut u8 {
        let free = PIECES.iter().find(|piece| {
            piece.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        let Some(piece) = free else { return std::ptr::null_mut() };
        // SAFETY: SPDK's environment is up.
        let memory = unsafe {
            ffi::spdk_zmalloc(
                layout.size(),
                layout.align(),
                std::ptr::null_mut(),
                ffi::SPDK_ENV_NUMA_ID_ANY,
                ffi::SPDK_MALLOC_DMA,
            )
        };
        piece.store(memory.addr(), Ordering::Release);
        memory.cast()
    }
}

#[global_allocator]
static ALLOCATOR: DeviceAlloc = DeviceAlloc;

// SAFETY: each piece comes from one of two allocators that keep the contract, and goes back to
// the same one.
unsafe impl GlobalAlloc for DeviceAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() >= DEVICE_ALIGN && UP.load(Ordering::Acquire) {
            let memory = DeviceAlloc::take(layout);
            if !memory.is_null() {
                return memory;
            }
        }
        // SAFETY: by contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.align() >= DEVICE_ALIGN {
            let piece = PIECES.iter().find(|p| p.load(Ordering::Acquire) == memory.addr());
            if let Some(piece) = piece {
                // First: once freed, the address may be another piece's.
                piece.store(0, Ordering::Release);
                // SAFETY: it came from there, and is given back once.
                unsafe { ffi::spdk_free(memory.cast()) };
                return;
            }
        }
        // SAFETY: by contract; it did not come from SPDK.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() >= DEVICE_ALIGN && UP.load(Ordering::Acquire) {
            let memory = DeviceAlloc::take(layout);
            if !memory.is_null() {
                return memory;
            }
        }
        // SAFETY: by contract.
        unsafe { System.alloc_zeroed(layout) }
    }
}

/// A zeroed buffer that devices can reach.
pub struct DmaBuffer {
    memory: NonNull<u8>,
    len: usize,
}

// SAFETY: owned memory; no thread is special.
unsafe impl Send for DmaBuffer {}

impl DmaBuffer {
    /// `len` bytes, at least one. `None`: no hugepages left.
    pub fn new(len: usize) -> Option<DmaBuffer> {
        // SAFETY: SPDK's environment is up wherever bdevs are.
        let memory = unsafe {
            ffi::spdk_zmalloc(
                len.max(1),
                DEVICE_ALIGN,
                std::ptr::null_mut(),
                ffi::SPDK_ENV_NUMA_ID_ANY,
                ffi::SPDK_MALLOC_DMA,
            )
        };
        NonNull::new(memory.cast()).map(|memory| DmaBuffer { memory, len })
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        self.len
    }

    /// The bytes. While no device works on them: whoever starts I/O gives the buffer away.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: owned and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }

    pub(super) fn address(&self) -> *mut std::ffi::c_void {
        self.memory.as_ptr().cast()
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        // SAFETY: ours, once.
        unsafe { ffi::spdk_free(self.memory.as_ptr().cast()) };
    }
}
