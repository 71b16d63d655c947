//! Data buffers of one thread's connections: page-aligned, owned, of two sizes, a fixed number.
//!
//! ```text
//!              small (8 KiB)                          large (as configured)
//!  pool        [] [] [] [] [] [] [] []                [      ] [      ] [      ]
//!              └ 2 kept for each connection's ┘       └ 1 kept for each connection's data that is
//!                in-capsule data                          asked for, and 1 for everything else
//!              the rest: who comes first, up to the connection's own bounds
//! ```
//!
//! In-capsule data stands in the way of all that follows it on its connection, also of the data
//! that would set other buffers free. So for it alone each connection has two buffers kept for it
//! (two, since the first of two fused commands waits for the second): whatever others do, it goes
//! on. Everything else waits in line without blocking the stream, and has large buffers kept for
//! it: one for data that the host is asked for, which comes in its own time, and one for all that
//! does not wait for the host. So neither ever waits for the other's buffers to come back.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a small buffer: in-capsule data fits.
pub const SMALL_BYTES: usize = 8192;
/// Alignment of buffers, bytes.
pub const ALIGNMENT: usize = 4096;
/// Small buffers kept for a connection's in-capsule data.
pub const KEPT_SMALL: usize = 2;
/// Large buffers kept for a connection's data that it asks for, and again as many for the rest.
pub const KEPT_LARGE: usize = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

const _: () = assert!(size_of::<Page>() == ALIGNMENT && align_of::<Page>() == ALIGNMENT);

/// On whose account a buffer is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    /// Nobody's: [`Pool::take`].
    Free,
    /// A connection's in-capsule data.
    Capsule,
    /// Data that a connection has asked for.
    Transfer,
    /// A connection's other data.
    Other,
}

/// Page-aligned memory that somebody owns. Its address stays as long as it lives, also while it is
/// moved.
pub struct Buffer {
    pages: Vec<Page>,
    lane: Lane,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Buffer {
    /// `bytes` of zeroes, rounded up to pages.
    ///
    /// # Panics
    /// There is no memory.
    fn new(bytes: usize) -> Buffer {
        let pages = Page::new_vec_zeroed(bytes.div_ceil(ALIGNMENT)).expect("memory for buffers");
        Buffer { pages, lane: Lane::Free }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.pages.len() * ALIGNMENT
    }

    /// All of its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.pages.as_bytes()
    }

    /// All of its bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes()
    }

    /// Address of the first byte, for reading.
    pub fn addr(&self) -> *const u8 {
        self.pages.as_ptr().cast()
    }

    /// Address of the first byte, for an engine that fills the buffer. Nobody else may look at the
    /// bytes meanwhile.
    pub fn addr_mut(&mut self) -> *mut u8 {
        self.pages.as_mut_ptr().cast()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer")
            .field("capacity", &self.capacity())
            .field("lane", &self.lane)
            .finish()
    }
}

#[derive(Debug)]
struct Class {
    free: Vec<Buffer>,
    /// Buffers whose memory nobody has needed yet.
    unmade: usize,
    bytes: usize,
    total: usize,
    /// Kept for connections that do not hold what is theirs.
    promised: usize,
}

impl Class {
    fn new(count: usize, bytes: usize) -> Class {
        Class { free: Vec::with_capacity(count), unmade: count, bytes, total: count, promised: 0 }
    }

    /// Buffers that are not out.
    fn available(&self) -> usize {
        self.free.len() + self.unmade
    }

    /// The one used last, or one whose memory is made now: a pool grows to what is needed of it.
    fn pop(&mut self) -> Option<Buffer> {
        self.free.pop().or_else(|| {
            self.unmade = self.unmade.checked_sub(1)?;
            Some(Buffer::new(self.bytes))
        })
    }

    /// One that nobody was promised.
    fn take_spare(&mut self) -> Option<Buffer> {
        assert!(self.available() >= self.promised, "promised buffers are there");
        if self.available() == self.promised { None } else { self.pop() }
    }

    /// One for a connection that holds `held`, of which `kept` are kept for it and at most `max`
    /// may be out.
    fn take(&mut self, held: &mut usize, kept: usize, max: usize) -> Option<Buffer> {
        let buffer = if *held < kept {
            self.promised -= 1;
            self.pop().expect("a promised buffer is there")
        } else if *held < max {
            self.take_spare()?
        } else {
            return None;
        };
        *held += 1;
        Some(buffer)
    }

    fn give(&mut self, buffer: Buffer, held: &mut usize, kept: usize) {
        *held = held.checked_sub(1).expect("a buffer comes back once");
        self.promised += usize::from(*held < kept);
        self.put(buffer);
    }

    fn put(&mut self, mut buffer: Buffer) {
        assert!(self.available() < self.total, "more buffers come back than went out");
        buffer.lane = Lane::Free;
        self.free.push(buffer);
    }
}

/// Buffers of a lane that are out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Held {
    small: usize,
    large: usize,
}

/// What a connection has out of a pool. Made by [`Pool::join`], ended by [`Pool::leave`].
#[derive(Debug)]
pub struct Share {
    capsule: usize,
    transfer: Held,
    other: Held,
    max: ShareMax,
}

impl Share {
    /// What a lane has out, and what may be out of it beside what the other has.
    fn lane(&mut self, transfer: bool) -> (&mut Held, ShareMax) {
        let (mine, theirs) = match transfer {
            true => (&mut self.transfer, self.other),
            false => (&mut self.other, self.transfer),
        };
        let small = self.max.small.saturating_sub(theirs.small);
        (mine, ShareMax { small, large: self.max.large.saturating_sub(theirs.large) })
    }
}

/// Most buffers that one connection may have out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShareMax {
    /// Small ones for in-capsule data, and again as many for other data.
    pub small: usize,
    /// Large ones (more by the one that is kept for each kind of data).
    pub large: usize,
}

/// What a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// In-capsule data, which stands in the way of the stream.
    Capsule,
    /// Data that the host is asked for: it can wait, and the buffer then waits for the host.
    Transfer,
    /// Data that is sent, or needed meanwhile: it can wait.
    Other,
}

/// The buffers of one thread.
#[derive(Debug)]
pub struct Pool {
    small: Class,
    large: Class,
    large_bytes: usize,
}

impl Pool {
    /// Room for `small` of [`SMALL_BYTES`] and `large` of `large_bytes`.
    ///
    /// # Panics
    /// `large_bytes` is not above [`SMALL_BYTES`], or there is no memory.
    pub fn new(small: usize, large: usize, large_bytes: usize) -> Pool {
        assert!(large_bytes > SMALL_BYTES, "two sizes of buffers");
        let large_bytes = large_bytes.next_multiple_of(ALIGNMENT);
        let (small, large) = (Class::new(small, SMALL_BYTES), Class::new(large, large_bytes));
        Pool { small, large, large_bytes }
    }

    /// Most bytes a buffer can hold.
    pub fn bytes_max(&self) -> usize {
        self.large_bytes
    }

    /// A buffer for `len` bytes that belongs to no connection, if one is to spare. It goes back
    /// with [`Pool::give`], or through the connection it is attached to.
    pub fn take(&mut self, len: usize) -> Option<Buffer> {
        self.class(len)?.take_spare()
    }

    /// Takes back a buffer of [`Pool::take`].
    ///
    /// # Panics
    /// The buffer is a connection's, or another pool's.
    pub fn give(&mut self, buffer: Buffer) {
        assert!(buffer.lane == Lane::Free, "a connection's buffer comes back through it");
        let capacity = buffer.capacity();
        assert!(capacity == SMALL_BYTES || capacity == self.large_bytes, "a buffer of this pool");
        self.class(capacity).expect("it fits").put(buffer);
    }

    /// Keeps a connection's buffers for it; `None` if there are not enough for one more.
    pub fn join(&mut self, max: ShareMax) -> Option<Share> {
        let room = |class: &Class, kept| class.available() >= class.promised + kept;
        if !room(&self.small, KEPT_SMALL) || !room(&self.large, 2 * KEPT_LARGE) {
            return None;
        }
        self.small.promised += KEPT_SMALL;
        self.large.promised += 2 * KEPT_LARGE;
        Some(Share { capsule: 0, transfer: Held::default(), other: Held::default(), max })
    }

    /// The end of a share.
    ///
    /// # Panics
    /// Buffers of it are still out.
    pub fn leave(&mut self, share: Share) {
        let Share { capsule, transfer, other, max: _ } = share;
        let none = Held::default();
        assert!((capsule, transfer, other) == (0, none, none), "all buffers are back: {share:?}");
        self.small.promised -= KEPT_SMALL;
        self.large.promised -= 2 * KEPT_LARGE;
    }

    /// A buffer for `len` bytes on a connection's account, `None` if none can be had now. A small
    /// one may be replaced by the large one that is kept.
    pub fn take_for(&mut self, share: &mut Share, len: usize, claim: Claim) -> Option<Buffer> {
        let max = share.max;
        let (buffer, lane) = match claim {
            Claim::Capsule => {
                assert!(len <= SMALL_BYTES, "in-capsule data fits a small buffer");
                (self.small.take(&mut share.capsule, KEPT_SMALL, max.small), Lane::Capsule)
            }
            Claim::Transfer | Claim::Other if len > self.large_bytes => (None, Lane::Other),
            Claim::Transfer | Claim::Other => {
                let transfer = claim == Claim::Transfer;
                let (held, max) = share.lane(transfer);
                let mut buffer = None;
                if len <= SMALL_BYTES {
                    buffer = self.small.take(&mut held.small, 0, max.small);
                }
                if buffer.is_none() && (len > SMALL_BYTES || held.large < KEPT_LARGE) {
                    buffer = self.large.take(&mut held.large, KEPT_LARGE, max.large);
                }
                (buffer, if transfer { Lane::Transfer } else { Lane::Other })
            }
        };
        buffer.map(|buffer| Buffer { lane, ..buffer })
    }

    /// Takes back a buffer that a connection has, of its own account or of nobody's.
    pub fn give_from(&mut self, share: &mut Share, buffer: Buffer) {
        let small = buffer.capacity() == SMALL_BYTES;
        let held = match buffer.lane {
            Lane::Free => return self.give(buffer),
            Lane::Capsule => return self.small.give(buffer, &mut share.capsule, KEPT_SMALL),
            Lane::Transfer => &mut share.transfer,
            Lane::Other => &mut share.other,
        };
        match small {
            true => self.small.give(buffer, &mut held.small, 0),
            false => self.large.give(buffer, &mut held.large, KEPT_LARGE),
        }
    }

    /// Small and large buffers that are not out.
    pub fn free(&self) -> (usize, usize) {
        (self.small.available(), self.large.available())
    }

    fn class(&mut self, len: usize) -> Option<&mut Class> {
        match len {
            _ if len <= SMALL_BYTES => Some(&mut self.small),
            _ if len <= self.large_bytes => Some(&mut self.large),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: ShareMax = ShareMax { small: 3, large: 2 };

    #[test]
    fn buffers_are_aligned_and_stay_where_they_are() {
        let mut pool = Pool::new(1, 1, 100_000);
        assert_eq!(pool.bytes_max(), 102_400);
        let mut buffer = pool.take(8193).expect("the large one");
        assert_eq!((buffer.capacity(), buffer.addr() as usize % ALIGNMENT), (102_400, 0));
        let before = buffer.addr();
        buffer.as_mut_slice()[102_399] = 7;
        let moved = Box::new(buffer);
        assert_eq!((moved.addr(), moved.as_slice()[102_399]), (before, 7));
        assert!(pool.take(8193).is_none() && pool.take(200_000).is_none());
        pool.give(*moved);
        assert_eq!(pool.free(), (1, 1));
    }

    #[test]
    fn what_is_kept_for_one_is_not_taken_by_others() {
        let mut pool = Pool::new(5, 4, 16384);
        let mut a = pool.join(MAX).expect("room");
        let mut b = pool.join(MAX).expect("room for a second");
        assert!(pool.join(MAX).is_none(), "a third one's buffers are not there");
        let spare = pool.take(1).expect("one small one is to spare");
        assert!(pool.take(1).is_none() && pool.take(10_000).is_none());
        let mut held = Vec::new();
        for _ in 0..KEPT_SMALL {
            held.push(pool.take_for(&mut a, 8192, Claim::Capsule).expect("kept for it"));
        }
        assert!(pool.take_for(&mut a, 1, Claim::Capsule).is_none());
        let large = pool.take_for(&mut a, 1, Claim::Other).expect("the large one instead");
        assert_eq!(large.capacity(), 16384);
        assert!(pool.take_for(&mut a, 1, Claim::Other).is_none());
        let other = pool.take_for(&mut b, 8192, Claim::Capsule).expect("kept for the other");
        pool.give(spare);
        held.push(pool.take_for(&mut a, 1, Claim::Capsule).expect("the spare one"));
        assert!(pool.take_for(&mut a, 1, Claim::Capsule).is_none(), "no more than its bound");
        for buffer in held.into_iter().chain([large]) {
            pool.give_from(&mut a, buffer);
        }
        pool.give_from(&mut b, other);
        pool.leave(a);
        pool.leave(b);
        assert_eq!(pool.free(), (5, 4));
        assert_eq!((pool.small.promised, pool.large.promised), (0, 0));
    }

    #[test]
    fn what_waits_for_the_host_leaves_a_buffer_for_what_does_not() {
        for (first, second) in [(Claim::Transfer, Claim::Other), (Claim::Other, Claim::Transfer)] {
            let mut pool = Pool::new(2, 10, 16384);
            let mut share = pool.join(MAX).expect("room");
            let mut held = Vec::new();
            held.extend(std::iter::from_fn(|| pool.take_for(&mut share, 9000, first)));
            assert_eq!(held.len(), MAX.large);
            held.push(pool.take_for(&mut share, 1, second).expect("the one that is kept for it"));
            assert!(pool.take_for(&mut share, 9000, second).is_none());
            held.into_iter().for_each(|buffer| pool.give_from(&mut share, buffer));
            pool.leave(share);
            assert_eq!(pool.free(), (2, 10));
        }
    }

    #[test]
    #[should_panic(expected = "all buffers are back")]
    fn a_share_with_buffers_out_cannot_end() {
        let mut pool = Pool::new(2, 2, 16384);
        let mut share = pool.join(MAX).expect("room");
        let _out = pool.take_for(&mut share, 1, Claim::Capsule);
        pool.leave(share);
    }
}
