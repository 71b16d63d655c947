//! A base that keeps metadata and moves no data: what the way of a request takes by itself, for
//! measurements. Reads leave the reader's memory as it is.

use std::sync::Arc;

use lamina_bdev::BaseTraits;

use super::{BaseResult, Operation, RamBase, RamDevice, Region};
use lamina_bdev::Seg;

/// One shard's view of memory that has room for metadata only as it is written.
pub struct NullBase {
    kept: RamBase,
    region: Region,
}

impl NullBase {
    /// Panics if the region is not inside the device.
    pub fn new(device: Arc<RamDevice>, region: Region) -> NullBase {
        NullBase { kept: RamBase::new(device, region), region }
    }

    /// As memory is.
    pub fn traits(&self) -> BaseTraits {
        self.kept.traits()
    }

    /// Bytes in the region.
    pub fn size(&self) -> u64 {
        self.kept.size()
    }

    /// Does one operation, unless it is on a request's own memory.
    ///
    /// Panics if it leaves the region.
    pub fn run(&mut self, io: &Operation, segs: &[Seg]) -> BaseResult {
        if io.guest {
            self.leave(io.offset, io.len as usize);
            return Ok(());
        }
        self.kept.run(io, segs)
    }

    /// Moves nothing.
    ///
    /// Panics if the range leaves the region.
    #[inline]
    pub fn leave(&self, offset: u64, len: usize) {
        self.region.device_offset(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_bdev::{BaseOp, Tag};

    #[test]
    fn metadata_is_kept_and_data_is_not_moved() {
        let device = Arc::new(RamDevice::sparse(1 << 40).unwrap());
        let mut base = NullBase::new(device, Region { offset: 4096, len: 1 << 39 });
        let mut run = |op, guest, bytes: &mut [u8]| {
            let seg = Seg { addr: bytes.as_mut_ptr().expose_provenance(), len: bytes.len() };
            let (tag, len) = (Tag(1), seg.len as u32);
            base.run(&Operation { tag, op, offset: 1 << 38, len, guest }, &[seg])
        };
        run(BaseOp::Write, false, &mut [7; 512]).unwrap();
        run(BaseOp::Write, true, &mut [8; 512]).unwrap();
        let mut out = [9; 512];
        run(BaseOp::Read, true, &mut out).unwrap();
        assert_eq!(out, [9; 512]);
        run(BaseOp::Read, false, &mut out).unwrap();
        assert_eq!(out, [7; 512]);
    }
}
