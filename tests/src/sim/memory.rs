//! Request memory, as a guest's: raw addresses that the engine and the base may read and write
//! until the request is done.
//!
//! ```text
//! | canary | segment 0 | canary | segment 1 | canary |     one heap allocation
//! ```
#![allow(unsafe_code)]
// UNSAFETY: the engine's interface speaks of memory by address, as guests do. This file owns
// the allocations behind those addresses and is the only one that follows them.

use lamina_bdev::Seg;

/// Bytes between two segments that nobody may touch.
const CANARY_LEN: usize = 24;
/// What they hold.
const CANARY: u8 = 0xC5;
/// Most bytes that the first segment is off alignment.
const SKEW_MAX: usize = 512;
/// What a buffer holds before a read has filled it.
pub const UNFILLED: u8 = 0xA7;

/// The memory of one request.
pub struct Buffer {
    start: *mut u8,
    total: usize,
    segs: Vec<Seg>,
    lens: Vec<usize>,
}

impl Buffer {
    /// Memory for segments of the lengths `lens`, `skew` bytes off alignment, filled with
    /// [`UNFILLED`].
    pub fn new(lens: &[usize], skew: usize) -> Buffer {
        assert!(skew <= SKEW_MAX, "a skew of {skew} bytes");
        let sum: usize = lens.iter().sum();
        let total = sum + CANARY_LEN * (lens.len() + 1) + skew;
        let mut bytes = vec![UNFILLED; total].into_boxed_slice();
        let (mut at, mut gap) = (skew + CANARY_LEN, 0);
        let mut offsets = Vec::with_capacity(lens.len());
        for len in lens {
            bytes[gap..at].fill(CANARY);
            offsets.push(at);
            gap = at + len;
            at = gap + CANARY_LEN;
        }
        bytes[gap..].fill(CANARY);
        let start = Box::into_raw(bytes).cast::<u8>();
        let base = start.expose_provenance();
        let segs = offsets.iter().zip(lens).map(|(at, len)| Seg { addr: base + at, len: *len });
        Buffer { start, total, segs: segs.collect(), lens: lens.to_vec() }
    }

    /// The segments, as a request names them.
    pub fn segs(&self) -> &[Seg] {
        &self.segs
    }

    /// Bytes in all segments.
    pub fn len(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Puts `data` (of length [`Buffer::len`]) into the segments.
    pub fn store(&self, data: &[u8]) {
        assert_eq!(data.len(), self.len(), "data fills the buffer");
        write_segs(&self.segs, 0, data);
    }

    /// The bytes of all segments in order, put into `out`.
    pub fn load(&self, out: &mut Vec<u8>) {
        out.resize(self.len(), 0);
        read_segs(&self.segs, 0, out);
    }

    /// True if the segments hold `data`.
    pub fn holds(&self, data: &[u8]) -> bool {
        let mut at = 0;
        data.len() == self.len()
            && self.segs.iter().all(|seg| {
                let due = &data[at..at + seg.len];
                at += seg.len;
                matches(*seg, due)
            })
    }

    /// True if nobody wrote outside the segments.
    pub fn canaries_intact(&self) -> bool {
        let base = self.start.expose_provenance();
        let mut gap_start = base;
        let end = Seg { addr: base + self.total, len: 0 };
        self.segs.iter().chain([&end]).all(|seg| {
            let gap = Seg { addr: gap_start, len: seg.addr - gap_start };
            gap_start = seg.addr + seg.len;
            // The first gap is longer: it holds the skew.
            matches(gap, &[CANARY; CANARY_LEN + SKEW_MAX][..gap.len])
        })
    }
}

/// True if the memory of `seg` holds `due`, compared piece by piece.
fn matches(seg: Seg, due: &[u8]) -> bool {
    let mut piece = [0; 4096];
    let mut at = 0;
    due.chunks(piece.len()).all(|due| {
        let piece = &mut piece[..due.len()];
        read_segs(&[Seg { addr: seg.addr + at, len: due.len() }], 0, piece);
        at += due.len();
        piece == due
    })
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.start, self.total);
        // SAFETY: `start` and `total` come from the boxed slice leaked in `new`, and a buffer is
        // dropped once, after its request is done or its engine is gone.
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// Calls `each(address, length, bytes done)` for the pieces of `segs` that make up `len` bytes
/// from byte `skip` on.
fn for_pieces(
    segs: &[Seg],
    mut skip: usize,
    len: usize,
    mut each: impl FnMut(usize, usize, usize),
) {
    let mut done = 0;
    for seg in segs {
        if skip >= seg.len {
            skip -= seg.len;
            continue;
        }
        let count = (seg.len - skip).min(len - done);
        if count == 0 {
            break;
        }
        each(seg.addr + skip, count, done);
        done += count;
        skip = 0;
    }
    assert_eq!(done, len, "the segments cover the operation");
}

/// Copies from the memory of `segs`, from byte `skip` on, into all of `out`.
pub fn read_segs(segs: &[Seg], skip: usize, out: &mut [u8]) {
    let target = out.as_mut_ptr();
    for_pieces(segs, skip, out.len(), |addr, count, done| {
        let source = std::ptr::with_exposed_provenance::<u8>(addr);
        // SAFETY: the segment belongs to a live `Buffer` or to engine memory that stays valid
        // until the operation is completed; `done + count` is at most `out.len()`.
        unsafe { std::ptr::copy(source, target.add(done), count) };
    });
}

/// Copies all of `data` into the memory of `segs`, from byte `skip` on.
pub fn write_segs(segs: &[Seg], skip: usize, data: &[u8]) {
    for_pieces(segs, skip, data.len(), |addr, count, done| {
        let target = std::ptr::with_exposed_provenance_mut::<u8>(addr);
        // SAFETY: as in `read_segs`; no Rust reference to the memory of a segment exists.
        unsafe { std::ptr::copy(data.as_ptr().add(done), target, count) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_through_odd_segments_and_back() {
        let buffer = Buffer::new(&[3, 512, 1, 508], 5);
        let data: Vec<u8> = (0..1024).map(|i| (i * 7) as u8).collect();
        buffer.store(&data);
        let mut out = Vec::new();
        buffer.load(&mut out);
        assert_eq!(out, data);
        let mut middle = vec![0; 520];
        read_segs(buffer.segs(), 2, &mut middle);
        assert_eq!(middle, data[2..522]);
        assert!(buffer.canaries_intact());
    }

    #[test]
    fn a_write_outside_the_segments_is_seen() {
        let buffer = Buffer::new(&[512, 512], 0);
        let first = buffer.segs()[0];
        write_segs(&[Seg { addr: first.addr + first.len, len: 1 }], 0, &[0]);
        assert!(!buffer.canaries_intact());
    }
}
