//! Guest memory: regions a front-end shares with us, mapped, checked and translated.
//!
//! ```text
//!  descriptor ─► guest address ──find──► region ─► host address ─► Seg (to the engine)
//!                (an allegation)          │  sorted array, last hit first
//!                                         └─ Mapping: mmap of the front-end's fd, unmapped when
//!                                            the last region, map or span that needs it has gone
//! ```
//!
//! An address from the guest is an allegation until it has been checked here. Guest memory is
//! written by others at any time, so no Rust reference into it ever exists: everything is copied
//! with volatile or atomic accesses. Mapping is done on control threads only; a reactor
//! translates and copies, and never drops the last owner of a mapping (the session keeps one).
#![allow(unsafe_code)]
// UNSAFETY: mapping foreign memory and volatile access to it have no safe interface. All of it
// is in this file and `span`, so that rings, requests and the in-flight log are safe code.

use std::fs::File;
use std::marker::PhantomData;
use std::sync::Arc;

use lamina_bdev::Seg;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::sigbus::Watch;

mod span;
pub use span::GuestSpan;

/// Most regions of one guest.
pub const REGIONS_MAX: usize = 256;

/// `f_type` of hugetlbfs, whose mappings are whole huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const PAGE_SIZE: u64 = 4096;

/// Why a memory table was refused; the text names the region and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryError(pub String);

impl std::fmt::Display for MemoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MemoryError {}

fn refuse<T>(text: String) -> Result<T, MemoryError> {
    Err(MemoryError(text))
}

/// A region as a front-end describes it. All values are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address.
    pub guest_addr: u64,
    /// Length.
    pub size: u64,
    /// Address in the front-end's process: ring addresses come in this form.
    pub user_addr: u64,
    /// Where the region begins in the file.
    pub offset: u64,
}

impl RegionSpec {
    /// Checks that the region is not empty and wraps nowhere.
    fn check(&self) -> Result<(), MemoryError> {
        if self.size == 0 {
            return refuse(format!("memory region at {:#x} is empty", self.guest_addr));
        }
        // Guest-physical addresses, user addresses and file offsets all lie below 2^63 on the
        // machines we run on, so one bound serves the three.
        let wraps = [self.guest_addr, self.user_addr, self.offset]
            .iter()
            .any(|start| start.checked_add(self.size).is_none_or(|end| end > i64::MAX as u64));
        if wraps {
            return refuse(format!(
                "memory region at {:#x} of {:#x} bytes wraps around the address space",
                self.guest_addr, self.size
            ));
        }
        Ok(())
    }

    fn guest_end(&self) -> u64 {
        self.guest_addr + self.size
    }
}

/// Shared memory mapped into this process; unmapped on drop.
#[derive(Debug)]
struct Mapping {
    base: usize,
    len: usize,
    /// `None` only while dropping: the watch ends before the mapping does.
    watch: Option<Watch>,
}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset`; returns the mapping and where `offset` is in it.
    fn new(file: &File, offset: u64, size: u64) -> Result<(Mapping, usize), MemoryError> {
        let align = check_file(file, offset, size)?;
        let map_offset = offset / align * align;
        let len = (offset - map_offset + size).next_multiple_of(align);
        let Ok(len) = usize::try_from(len) else {
            return refuse(format!("{len} bytes do not fit this machine's address space"));
        };
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                map_offset,
            )
        };
        let base = match base {
            Ok(base) => base,
            Err(error) => return refuse(format!("cannot map {size} bytes of memory: {error}")),
        };
        // SAFETY: the range was mapped just above. A guest's memory has no place in our core
        // dumps; failure of this advice changes nothing.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxDontDump) };
        let watch = Watch::new(base as usize, len);
        let mapping = Mapping { base: base as usize, len, watch };
        if mapping.watch.is_none() {
            return refuse("too many guest memory regions are mapped by this daemon".to_string());
        }
        let start = mapping.base + (offset - map_offset) as usize;
        Ok((mapping, start))
    }

    fn damaged(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::hit)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: base and len are what mmap returned; spans and regions hold an Arc of this
        // mapping, so none of them is left.
        let result = unsafe { rustix::mm::munmap(self.base as *mut _, self.len) };
        debug_assert!(result.is_ok());
    }
}

/// Checks that all of the range is in the file now (touching beyond its end raises SIGBUS) and
/// returns the page size its mappings have.
fn check_file(file: &File, offset: u64, size: u64) -> Result<u64, MemoryError> {
    let stat = rustix::fs::fstat(file)
        .map_err(|error| MemoryError(format!("cannot examine the shared memory: {error}")))?;
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    if offset.checked_add(size).is_none_or(|end| end > length) {
        return refuse(format!(
            "the front-end shares {size} bytes at offset {offset}, but its file has only {length}"
        ));
    }
    let huge = rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type as u64 == HUGETLBFS_MAGIC);
    let block = u64::try_from(stat.st_blksize).unwrap_or(PAGE_SIZE);
    Ok(if huge && block.is_power_of_two() { block.max(PAGE_SIZE) } else { PAGE_SIZE })
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    host: usize,
    mapping: Arc<Mapping>,
}

impl Region {
    /// Maps a region from the file a front-end passed. Control threads only: mapping may block.
    ///
    /// # Errors
    /// The region is empty or wraps, the file is shorter than the region, or mapping failed.
    pub fn map(spec: RegionSpec, file: &File) -> Result<Arc<Region>, MemoryError> {
        spec.check()?;
        let (mapping, host) = Mapping::new(file, spec.offset, spec.size)?;
        Ok(Arc::new(Region { spec, host, mapping: Arc::new(mapping) }))
    }

    /// What the front-end said of it.
    pub fn spec(&self) -> RegionSpec {
        self.spec
    }
}

/// All regions of one guest, immutable: a change makes a new one, which shares the regions that
/// stay.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// Sorted by guest address, without overlap.
    regions: Vec<Arc<Region>>,
    /// Of each of them, in the same order: what a look-up needs.
    places: Vec<Place>,
}

/// Where a region is for the guest, and for us.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u64,
    end: u64,
    host: usize,
}

impl GuestMemory {
    /// Puts regions together.
    ///
    /// # Errors
    /// Too many regions, or two of them overlap in guest-physical addresses.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<GuestMemory, MemoryError> {
        if regions.len() > REGIONS_MAX {
            return refuse(format!(
                "{} memory regions, at most {REGIONS_MAX} are allowed",
                regions.len()
            ));
        }
        regions.sort_by_key(|region| region.spec.guest_addr);
        for pair in regions.windows(2) {
            if pair[0].spec.guest_end() > pair[1].spec.guest_addr {
                return refuse(format!(
                    "memory regions at {:#x} and {:#x} overlap",
                    pair[0].spec.guest_addr, pair[1].spec.guest_addr
                ));
            }
        }
        let place = |region: &Arc<Region>| {
            let spec = region.spec;
            Place { start: spec.guest_addr, end: spec.guest_end(), host: region.host }
        };
        let places = regions.iter().map(place).collect();
        Ok(GuestMemory { regions, places })
    }

    /// This memory and one more region.
    ///
    /// # Errors
    /// As for [`GuestMemory::new`].
    pub fn with(&self, region: Arc<Region>) -> Result<GuestMemory, MemoryError> {
        let mut regions = self.regions.clone();
        regions.push(region);
        GuestMemory::new(regions)
    }

    /// This memory less one region, found by its three addresses (offsets are not compared, as
    /// the protocol says).
    ///
    /// # Errors
    /// There is no such region.
    pub fn without(&self, spec: &RegionSpec) -> Result<GuestMemory, MemoryError> {
        let same = |region: &Arc<Region>| {
            let own = region.spec;
            (own.guest_addr, own.size, own.user_addr)
                == (spec.guest_addr, spec.size, spec.user_addr)
        };
        let Some(position) = self.regions.iter().position(same) else {
            return refuse(format!(
                "there is no memory region at {:#x} of {:#x} bytes to remove",
                spec.guest_addr, spec.size
            ));
        };
        let mut regions = self.regions.clone();
        regions.remove(position);
        GuestMemory::new(regions)
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// True if there is no region at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// True if the front-end has shrunk a file under us: contents are lost, stop serving.
    pub fn damaged(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.damaged())
    }

    /// The region that holds `addr`; `hint` is the index of the last hit and is kept by the caller,
    /// because this structure is shared between threads.
    #[inline]
    fn find(&self, hint: &mut usize, addr: u64) -> Option<Place> {
        if let Some(&place) = self.places.get(*hint)
            && addr >= place.start
            && addr < place.end
        {
            return Some(place);
        }
        let index = self.places.partition_point(|place| place.start <= addr).checked_sub(1)?;
        let place = self.places[index];
        (addr < place.end).then(|| {
            *hint = index;
            place
        })
    }

    /// Turns a guest range into host pieces, in order, one for each region it crosses. False if
    /// any byte of it is in no region, or if it is empty or wraps; pieces before the bad byte
    /// have been reported then.
    #[must_use]
    #[inline]
    pub fn translate(
        &self,
        hint: &mut usize,
        addr: u64,
        len: u64,
        mut each: impl FnMut(Seg),
    ) -> bool {
        let Some(end) = addr.checked_add(len) else { return false };
        let mut at = addr;
        while at < end {
            let Some(place) = self.find(hint, at) else { return false };
            let piece = end.min(place.end) - at;
            each(Seg { addr: place.host + (at - place.start) as usize, len: piece as usize });
            at += piece;
        }
        len > 0
    }

    /// True if the byte at `addr` is in a region.
    #[inline]
    #[must_use]
    pub fn holds(&self, hint: &mut usize, addr: u64) -> bool {
        self.find(hint, addr).is_some()
    }

    /// The region that holds `addr`, to look up more than one address in.
    #[inline]
    #[must_use]
    pub fn window(&self, hint: &mut usize, addr: u64) -> Option<Window<'_>> {
        self.find(hint, addr).map(|place| Window { place, memory: PhantomData })
    }

    /// Copies guest memory out; false if any byte of the range is in no region.
    #[must_use]
    pub fn read(&self, hint: &mut usize, addr: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        self.translate(hint, addr, out.len() as u64, |seg| {
            // SAFETY: the piece lies in a region of this memory, whose mapping `self` keeps.
            unsafe { copy_out(seg.addr, &mut out[done..done + seg.len]) };
            done += seg.len;
        })
    }

    /// Copies into guest memory; false if any byte of the range is in no region.
    #[must_use]
    pub fn write(&self, hint: &mut usize, addr: u64, data: &[u8]) -> bool {
        let mut done = 0;
        self.translate(hint, addr, data.len() as u64, |seg| {
            // SAFETY: as in `read`.
            unsafe { copy_in(seg.addr, &data[done..done + seg.len]) };
            done += seg.len;
        })
    }

    /// Writes one byte; false if it is in no region.
    #[inline]
    #[must_use]
    pub fn write_u8(&self, hint: &mut usize, addr: u64, value: u8) -> bool {
        let Some(place) = self.find(hint, addr) else { return false };
        let at = place.host + (addr - place.start) as usize;
        // SAFETY: inside a region of this memory, whose mapping `self` keeps.
        unsafe { std::ptr::write_volatile(at as *mut u8, value) };
        true
    }

    /// Where the byte at `addr` is for us, 0 if it is in no region: to ask for its line.
    #[inline]
    #[must_use]
    pub fn line(&self, hint: &mut usize, addr: u64) -> usize {
        self.find(hint, addr).map_or(0, |place| place.host + (addr - place.start) as usize)
    }

    /// A piece of one region by its address in the front-end's process: how rings are found.
    /// `None` if it is in no region as a whole, or not aligned to `align`.
    pub fn span_by_user_addr(&self, user_addr: u64, len: usize, align: usize) -> Option<GuestSpan> {
        let end = user_addr.checked_add(len as u64)?;
        let region = self.regions.iter().find(|region| {
            let spec = region.spec;
            user_addr >= spec.user_addr && end <= spec.user_addr + spec.size
        })?;
        let addr = region.host + (user_addr - region.spec.user_addr) as usize;
        (addr.is_multiple_of(align) && len > 0).then(|| GuestSpan {
            mapping: region.mapping.clone(),
            addr,
            len,
        })
    }
}

/// One region of a [`GuestMemory`], found once for several addresses.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    place: Place,
    memory: PhantomData<&'a GuestMemory>,
}

impl Window<'_> {
    /// The guest range as a host piece; `None` if it is empty or not in this region as a whole.
    #[inline]
    #[must_use]
    pub fn seg(&self, addr: u64, len: u64) -> Option<Seg> {
        let Place { start, end, host } = self.place;
        let (into, size) = (addr.wrapping_sub(start), end - start);
        let inside = len > 0 && len <= size && into <= size - len;
        inside.then(|| Seg { addr: host + into as usize, len: len as usize })
    }

    /// Copies two little-endian words out; `None` as [`Window::seg`], or if they are not aligned.
    #[inline]
    #[must_use]
    pub fn words(&self, addr: u64) -> Option<(u64, u64)> {
        let at = self.seg(addr, 16)?.addr;
        // SAFETY: inside a region of the memory that `self` borrows, and aligned; volatile, as
        // others write it.
        let word = |i: usize| unsafe { std::ptr::read_volatile((at + 8 * i) as *const u64) };
        at.is_multiple_of(8).then(|| (u64::from_le(word(0)), u64::from_le(word(1))))
    }
}

/// Copies from foreign memory, eight bytes at a time where alignment allows.
///
/// # Safety
/// `addr` and the following `out.len()` bytes are mapped and stay so during the call.
unsafe fn copy_out(addr: usize, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let at = addr + done;
        if at.is_multiple_of(8) && out.len() - done >= 8 {
            // SAFETY: in the range the caller vouches for, aligned; volatile, as others write it.
            let word = unsafe { std::ptr::read_volatile(at as *const u64) };
            out[done..done + 8].copy_from_slice(&word.to_ne_bytes());
            done += 8;
        } else {
            // SAFETY: in the range the caller vouches for.
            out[done] = unsafe { std::ptr::read_volatile(at as *const u8) };
            done += 1;
        }
    }
}

/// Copies to foreign memory.
///
/// # Safety
/// `addr` and the following `data.len()` bytes are mapped and stay so during the call.
unsafe fn copy_in(addr: usize, data: &[u8]) {
    for (offset, byte) in data.iter().enumerate() {
        // SAFETY: in the range the caller vouches for.
        unsafe { std::ptr::write_volatile((addr + offset) as *mut u8, *byte) };
    }
}

#[cfg(test)]
mod tests;
