//! RAM as a base device: served on the reactor itself, gone when the daemon is.
#![allow(unsafe_code)]
// UNSAFETY: the other side of each copy is guest memory or engine pages, known by address only; a
// host may lend the memory of one of its own devices, which is known by address too.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use lamina_bdev::{BaseOp, BaseTraits, Error, ErrorKind, Seg};

use super::{BaseResult, Operation, Region};
use crate::mem::far::{self, Stream};
use crate::mem::hugepage::{Mapping, Pages};

/// A piece of memory that shards share, each keeping to its region.
pub struct RamDevice {
    memory: Memory,
    size: u64,
}

/// Whose it is.
enum Memory {
    Own(Mapping),
    Lent(Lent),
}

/// Memory that is there as long as its keeper.
struct Lent {
    start: NonNull<u8>,
    _keeper: Box<dyn Any + Send + Sync>,
}

// SAFETY: plain memory, touched as a mapping of our own is; the keeper may go anywhere.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl RamDevice {
    /// Takes `size` bytes of memory and touches them all, so that no reactor has to.
    ///
    /// # Errors
    /// `NoSpace` with a sentence if there is not that much memory.
    pub fn new(size: u64) -> Result<RamDevice, Error> {
        let full = |why: String| {
            Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{size} bytes of RAM for a store are not there ({why}): \
                     use a smaller size or a file"
                ),
            )
        };
        if let Some(available) = available_bytes(true)
            && size > available
        {
            return Err(full(format!("{available} bytes are available")));
        }
        let len = usize::try_from(size).map_err(|e| full(e.to_string()))?;
        let memory = Mapping::new(len).map_err(|e| full(e.to_string()))?;
        memory.populate().map_err(|e| full(e.to_string()))?;
        Ok(RamDevice { memory: Memory::Own(memory), size })
    }

    /// The memory of another host's device.
    ///
    /// # Safety
    /// `size` bytes from `start` may be read and written, by any thread, until `keeper` is dropped.
    /// Whoever else touches them does so by copies whose order with ours does not matter.
    pub unsafe fn lent(
        start: NonNull<u8>,
        size: u64,
        keeper: Box<dyn Any + Send + Sync>,
    ) -> RamDevice {
        RamDevice { memory: Memory::Lent(Lent { start, _keeper: keeper }), size }
    }

    /// `size` bytes of which only those that are written take up memory.
    ///
    /// # Errors
    /// `NoSpace`: the address space is not that large.
    pub fn sparse(size: u64) -> Result<RamDevice, Error> {
        let full = |why: String| Error::new(ErrorKind::NoSpace, why);
        let len = usize::try_from(size).map_err(|e| full(e.to_string()))?;
        let memory = Mapping::sparse(len).map_err(|e| full(e.to_string()))?;
        Ok(RamDevice { memory: Memory::Own(memory), size })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What kind of memory it is, for the log; `None` if it is lent.
    pub fn pages(&self) -> Option<Pages> {
        match &self.memory {
            Memory::Own(memory) => Some(memory.pages()),
            Memory::Lent(_) => None,
        }
    }

    /// Reads on a control thread. While a shard is served from this memory, what is being written
    /// may be read half old and half new: only for blocks with checksums.
    ///
    /// Panics if the range is outside.
    pub fn read_at(&self, out: &mut [u8], offset: u64) {
        let from = self.address(offset, out.len());
        // SAFETY: `address` checked the range; `out` is ours alone and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Writes on a control thread, before any shard is served from this memory.
    ///
    /// Panics if the range is outside.
    pub fn write_at(&self, bytes: &[u8], offset: u64) {
        let to = self.address(offset, bytes.len());
        // SAFETY: as in `read_at`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    fn address(&self, offset: u64, len: usize) -> *mut u8 {
        let end = offset.checked_add(len as u64).expect("RAM range overflows");
        assert!(end <= self.size, "RAM range {offset}+{len} leaves {} bytes", self.size);
        let start = match &self.memory {
            Memory::Own(memory) => memory.as_ptr(),
            Memory::Lent(lent) => lent.start.as_ptr(),
        };
        // SAFETY: inside the memory, as just asserted.
        unsafe { start.add(offset as usize) }
    }
}

/// One shard's view of a [`RamDevice`].
pub struct RamBase {
    device: Arc<RamDevice>,
    region: Region,
    stream: Stream,
    /// Something was streamed since [`RamBase::settle`].
    unsettled: bool,
}

impl RamBase {
    /// Panics if the region is not inside the device.
    pub fn new(device: Arc<RamDevice>, region: Region) -> RamBase {
        assert!(region.offset.checked_add(region.len).is_some_and(|end| end <= device.size()));
        RamBase { device, region, stream: Stream::detect(), unsettled: false }
    }

    /// Nothing is volatile here that a restart would keep; copies happen on one thread.
    pub fn traits(&self) -> BaseTraits {
        BaseTraits { volatile_cache: false, atomic_4k: true, atomic_rw: true }
    }

    /// Bytes in the region.
    pub fn size(&self) -> u64 {
        self.region.len
    }

    /// Does one operation.
    ///
    /// Panics if it leaves the region or `segs` do not add up to its length.
    pub fn run(&mut self, io: &Operation, segs: &[Seg]) -> BaseResult {
        let mut offset = self.region.device_offset(io.offset, io.len as usize);
        if io.op == BaseOp::Flush {
            return Ok(());
        }
        let total: usize = segs.iter().map(|seg| seg.len).sum();
        assert_eq!(total, io.len as usize, "segments do not add up");
        for seg in segs {
            self.transfer(io.op, offset, seg);
            offset += seg.len as u64;
        }
        Ok(())
    }

    /// Reads into, or writes from, one piece of memory.
    ///
    /// Panics if the range leaves the region.
    #[inline]
    pub fn copy(&mut self, op: BaseOp, offset: u64, seg: &Seg) {
        let offset = self.region.device_offset(offset, seg.len);
        self.transfer(op, offset, seg);
    }

    #[inline]
    fn transfer(&mut self, op: BaseOp, offset: u64, seg: &Seg) {
        let ours = self.device.address(offset, seg.len);
        let theirs = std::ptr::with_exposed_provenance_mut::<u8>(seg.addr);
        // SAFETY: `ours` was bounds-checked; the host promises that `theirs` stays mapped until the
        // answer. A guest may hand us memory it changes meanwhile (it then gets either content),
        // but never the device's own memory, which no guest can map.
        unsafe {
            match op {
                BaseOp::Read => std::ptr::copy_nonoverlapping(ours, theirs, seg.len),
                BaseOp::Write => {
                    self.unsettled = true;
                    self.stream.copy(theirs, ours, seg.len);
                }
                BaseOp::Flush => {}
            }
        }
    }

    /// The 8 bytes at `offset`.
    ///
    /// Panics if they leave the region.
    #[inline]
    pub fn word(&self, offset: u64) -> [u8; 8] {
        let from = self.device.address(self.region.device_offset(offset, 8), 8);
        // SAFETY: `address` checked the range; an array of bytes needs no alignment.
        unsafe { from.cast::<[u8; 8]>().read() }
    }

    /// Where the bytes of an operation begin, to be asked for ahead of it.
    ///
    /// Panics if it leaves the region.
    #[inline]
    pub fn address(&self, offset: u64, len: usize) -> usize {
        let offset = self.region.device_offset(offset, len);
        self.device.address(offset, len).addr()
    }

    /// From here on other threads see what was written. Once a turn.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.unsettled) {
            far::settle();
        }
    }
}

/// What the kernel believes can still be used without swapping, bytes; `huge`: free reserved
/// hugepages too. `None` if it does not say.
pub(crate) fn available_bytes(huge: bool) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let huge = if huge { field("HugePages_Free:")? * field("Hugepagesize:")? } else { 0 };
    Some((field("MemAvailable:")? + huge) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_bdev::{BaseOp, Tag};

    fn io(op: BaseOp, offset: u64, segs: &[Seg]) -> Operation {
        let len = segs.iter().map(|seg| seg.len as u32).sum();
        Operation { tag: Tag(1), op, offset, len, guest: true }
    }

    fn seg(bytes: &mut [u8]) -> Seg {
        Seg { addr: bytes.as_mut_ptr().expose_provenance(), len: bytes.len() }
    }

    #[test]
    fn regions_are_apart_and_segments_are_gathered() {
        let device = Arc::new(RamDevice::new(1 << 20).unwrap());
        let mut bases: Vec<_> = (0..2)
            .map(|i| RamBase::new(device.clone(), Region { offset: i << 19, len: 1 << 19 }))
            .collect();
        let (mut a, mut b) = ([1u8; 512], [2u8; 1024]);
        let segs = [seg(&mut a), seg(&mut b)];
        assert_eq!(bases[1].run(&io(BaseOp::Write, 4096, &segs), &segs), Ok(()));
        let mut out = [9u8; 1536];
        let segs = [seg(&mut out)];
        assert_eq!(bases[0].run(&io(BaseOp::Read, 4096, &segs), &segs), Ok(()));
        assert_eq!(out, [0; 1536]);
        assert_eq!(bases[1].run(&io(BaseOp::Read, 4096, &segs), &segs), Ok(()));
        assert_eq!(out[..512], [1; 512]);
        assert_eq!(out[512..], [2; 1024]);
        assert_eq!(bases[1].word(4096 + 508), [1, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(bases[1].run(&io(BaseOp::Flush, 0, &[]), &[]), Ok(()));
    }

    #[test]
    fn lent_memory_goes_back_with_its_last_user() {
        let mut memory = vec![3u8; 8192];
        let keeper = Arc::new(());
        let start = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: the vector outlives the device.
        let device = unsafe { RamDevice::lent(start, 8192, Box::new(keeper.clone())) };
        assert!(device.pages().is_none());
        let mut base = RamBase::new(Arc::new(device), Region { offset: 4096, len: 4096 });
        let mut data = [5u8; 512];
        let segs = [seg(&mut data)];
        assert_eq!(base.run(&io(BaseOp::Write, 1024, &segs), &segs), Ok(()));
        base.settle();
        assert_eq!(Arc::strong_count(&keeper), 2);
        drop(base);
        assert_eq!(Arc::strong_count(&keeper), 1);
        assert_eq!(memory[5120..5632], [5; 512]);
        assert_eq!((memory[5119], memory[5632]), (3, 3));
    }

    #[test]
    #[should_panic(expected = "leaves the region")]
    fn a_range_outside_the_region_is_a_bug() {
        let device = Arc::new(RamDevice::new(1 << 20).unwrap());
        let mut base = RamBase::new(device, Region { offset: 0, len: 4096 });
        let mut out = [0u8; 512];
        let segs = [seg(&mut out)];
        let _ = base.run(&io(BaseOp::Read, 4096, &segs), &segs);
    }

    #[test]
    fn more_memory_than_there_is_is_refused_in_a_sentence() {
        let error = RamDevice::new(1 << 60).err().unwrap();
        assert_eq!(error.kind, ErrorKind::NoSpace);
        assert!(error.message.contains("use a smaller size"), "{error}");
    }
}
