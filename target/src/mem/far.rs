//! Memory that is far from the core: asked for ahead of its use, and written past the caches.
//!
//! A random block of a store in RAM is in no cache. Copied as it comes, the core waits for each of
//! its 64 lines, and a write first fetches what it is about to replace:
//!
//! ```text
//!  copy:              request ──── waits for lines ──── request ──── waits for lines ────
//!  asked for ahead:   request ask ── request ask ── request copy ask ── request copy ask ──
//!  streamed:          request store request store      (lines go out behind the core's back)
//! ```
#![allow(unsafe_code)]
// UNSAFETY: hints and streaming stores exist as intrinsics and instructions only, and the copies
// are between addresses that no Rust reference may be made of (a guest writes there).

/// Bytes that come and go together.
pub const LINE: usize = 64;

/// True if two addresses of the same space lie in one line.
#[inline(always)]
pub fn same_line(one: u64, other: u64) -> bool {
    one / LINE as u64 == other / LINE as u64
}

/// Asks for the line at `addr`, to be read soon. Any address is harmless.
#[inline(always)]
pub fn soon_read(addr: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing that the program can see and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(addr));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = addr;
}

/// Asks for the line at `addr` for this core alone, to be written soon. Any address is harmless.
#[inline(always)]
pub fn soon_written(addr: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; a processor without the instruction takes it for one that does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) addr, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = addr;
}

/// How this machine streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Whole lines at a time.
    Avx512,
    /// Half lines.
    Avx2,
    /// Not at all: an ordinary copy.
    Plain,
}

/// Copies past the caches, in the way that this machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream(Kind);

impl Stream {
    /// The best that this machine can.
    pub fn detect() -> Stream {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Stream(Kind::Avx512);
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                return Stream(Kind::Avx2);
            }
        }
        Stream(Kind::Plain)
    }

    /// Copies `len` bytes; whole lines leave the caches alone. Other threads see them after this
    /// one's next [`settle`].
    ///
    /// # Safety
    /// Both ranges are mapped, `to` writable, and they do not overlap.
    #[inline]
    pub unsafe fn copy(self, from: *const u8, to: *mut u8, len: usize) {
        let whole = to.addr().is_multiple_of(LINE) && len.is_multiple_of(LINE);
        match self.0 {
            // SAFETY: the caller's promise; `detect` found the instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 if whole => unsafe { copy_avx512(from, to, len) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 if whole => unsafe { copy_avx2(from, to, len) },
            // SAFETY: the caller's promise.
            _ => unsafe { std::ptr::copy_nonoverlapping(from, to, len) },
        }
    }
}

/// Puts everything this thread has streamed before everything it writes from here on.
#[inline]
pub fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence needs nothing; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// # Safety
/// As [`Stream::copy`], of whole lines, on a machine with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn copy_avx512(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{_mm512_loadu_si512, _mm512_stream_si512};
    for at in (0..len).step_by(LINE) {
        // SAFETY: inside both ranges; `to` is aligned to a line. Guests may write meanwhile: then
        // either content is copied.
        unsafe {
            let line = _mm512_loadu_si512(from.add(at).cast());
            _mm512_stream_si512(to.add(at).cast(), line);
        }
    }
}

/// # Safety
/// As [`Stream::copy`], of whole lines, on a machine with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_avx2(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm256_stream_si256};
    for at in (0..len).step_by(LINE) {
        // SAFETY: as in `copy_avx512`.
        unsafe {
            let low = _mm256_loadu_si256(from.add(at).cast());
            let high = _mm256_loadu_si256(from.add(at + LINE / 2).cast());
            _mm256_stream_si256(to.add(at).cast(), low);
            _mm256_stream_si256(to.add(at + LINE / 2).cast(), high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Lines([u8; 8192]);

    #[test]
    fn every_kind_copies_exactly_what_it_is_told_to() {
        let source: Vec<u8> = (0..8192u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut kinds = vec![Stream(Kind::Plain), Stream::detect()];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            kinds.push(Stream(Kind::Avx2));
        }
        for kind in kinds {
            for (from, to, len) in
                [(0, 0, 4096), (3, 64, 512), (64, 128, 64), (1, 5, 700), (0, 64, 65), (0, 0, 0)]
            {
                let mut lines = Box::new(Lines([0xee; 8192]));
                let target = lines.0.as_mut_ptr();
                // SAFETY: both ranges lie inside their arrays, which are two.
                unsafe { kind.copy(source.as_ptr().add(from), target.add(to), len) };
                settle();
                assert!(lines.0[..to].iter().all(|&b| b == 0xee), "{kind:?} {to} {len}");
                assert_eq!(lines.0[to..to + len], source[from..from + len], "{kind:?} {to} {len}");
                assert!(lines.0[to + len..].iter().all(|&b| b == 0xee), "{kind:?} {to} {len}");
            }
        }
    }

    #[test]
    fn hints_change_nothing_and_take_any_address() {
        let mut byte = 7u8;
        for addr in [0, 1, usize::MAX, (&raw mut byte).addr()] {
            soon_read(addr);
            soon_written(addr);
        }
        assert_eq!(byte, 7);
    }
}
