//! What a dead device had in its hands: the in-flight log, read as the vhost-user text lays it out.
//!
//! ```text
//!  a queue's part of the file:   header | one entry a descriptor | padding to 64 bytes
//!
//!  on the ring, not in the log   the dead device never saw it
//!  in the log, not returned      it was being served: the next device serves it again
//!  in the log, returned          died between returning it and saying so: it is not served again
//! ```
//!
//! Only while no device runs: nobody else may write the log meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const ALIGN: u64 = 64;
const SPLIT_HEADER: u64 = 16;
const SPLIT_ENTRY: u64 = 16;
const PACKED_HEADER: u64 = 32;
const PACKED_ENTRY: u64 = 32;

/// The part of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    file: &'a File,
    at: u64,
    size: u16,
}

impl Part<'_> {
    /// The part of queue `index` of queues of `size` descriptors.
    pub(super) fn new(file: &File, packed: bool, size: u16, index: usize) -> Part<'_> {
        let (header, entry) =
            if packed { (PACKED_HEADER, PACKED_ENTRY) } else { (SPLIT_HEADER, SPLIT_ENTRY) };
        let bytes = (header + entry * u64::from(size)).next_multiple_of(ALIGN);
        Part { file, at: bytes * index as u64, size }
    }

    fn byte(&self, at: u64) -> io::Result<u8> {
        let mut bytes = [0];
        self.file.read_exact_at(&mut bytes, self.at + at)?;
        Ok(bytes[0])
    }

    fn word(&self, at: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, self.at + at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Entries from `first` along their links, `count` of them at most, up to one that is none.
    fn list(&self, first: u16, count: u16, next: fn(u16) -> u64) -> io::Result<BTreeSet<u16>> {
        let (mut found, mut entry) = (BTreeSet::new(), first);
        for _ in 0..count {
            if entry >= self.size {
                break;
            }
            found.insert(entry);
            entry = self.word(next(entry))?;
        }
        Ok(found)
    }

    /// First descriptors of the chains that a split ring's device held; `used` is what its used
    /// index says.
    pub(super) fn held_split(&self, used: u16) -> io::Result<Vec<u16>> {
        const LAST_BATCH_HEAD: u64 = 12;
        const USED_IDX: u64 = 14;
        const NEXT: u64 = 6;
        fn entry(head: u16) -> u64 {
            SPLIT_HEADER + SPLIT_ENTRY * u64::from(head)
        }
        let returned = used.wrapping_sub(self.word(USED_IDX)?);
        let last = self.word(LAST_BATCH_HEAD)?;
        let stale = self.list(last, returned, |head| entry(head) + NEXT)?;
        let mut held = Vec::new();
        for head in (0..self.size).filter(|head| !stale.contains(head)) {
            if self.byte(entry(head))? != 0 {
                held.push(head);
            }
        }
        Ok(held)
    }

    /// Buffer ids of the chains that a packed ring's device held. `waits(index, wrap)` says
    /// whether the descriptor there is still as it was offered in the lap of `wrap`.
    pub(super) fn held_packed(&self, waits: impl Fn(u16, bool) -> bool) -> io::Result<Vec<u16>> {
        const FREE_HEAD: u64 = 12;
        const OLD_FREE_HEAD: u64 = 14;
        const USED_IDX: u64 = 16;
        const OLD_USED_IDX: u64 = 18;
        const USED_WRAP: u64 = 20;
        const OLD_USED_WRAP: u64 = 21;
        const NEXT: u64 = 2;
        const LAST: u64 = 4;
        const ID: u64 = 16;
        fn entry(head: u16) -> u64 {
            PACKED_HEADER + PACKED_ENTRY * u64::from(head)
        }
        let new = (self.word(USED_IDX)?, self.byte(USED_WRAP)? != 0);
        let old = (self.word(OLD_USED_IDX)?, self.byte(OLD_USED_WRAP)? != 0);
        let returned = new != old && !waits(old.0, old.1);
        let first = self.word(if returned { FREE_HEAD } else { OLD_FREE_HEAD })?;
        let free = self.list(first, self.size, |index| entry(index) + NEXT)?;
        let mut held = Vec::new();
        for head in (0..self.size).filter(|head| !free.contains(head)) {
            if self.byte(entry(head))? != 0 {
                let last = self.word(entry(head) + LAST)?;
                held.push(self.word(entry(last) + ID)?);
            }
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[(u64, &[u8])]) -> File {
        let memory = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        file.set_len(4096).unwrap();
        for (at, bytes) in bytes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn a_split_log_tells_what_was_held_and_what_was_just_returned() {
        // Heads 0, 3 and 6 are noted; 3 was linked into the batch last, before it head 0.
        let bytes: &[(u64, &[u8])] =
            &[(16, &[1]), (64, &[1]), (112, &[1]), (12, &[3, 0]), (14, &[9, 0]), (70, &[0, 0])];
        let file = file(bytes);
        let part = Part::new(&file, false, 16, 0);
        assert_eq!(part.held_split(9).unwrap(), [0, 3, 6]);
        assert_eq!(part.held_split(10).unwrap(), [0, 6]);
        assert_eq!(part.held_split(11).unwrap(), [6]);
        assert!(Part::new(&file, false, 16, 1).held_split(0).unwrap().is_empty());
    }

    #[test]
    fn a_packed_log_tells_what_was_held_and_what_was_just_returned() {
        // Entry 0 (buffer 5) was returned in a batch that moves the ring from 2 to 4; entries 1
        // and 2 are one chain (buffer 7); the rest is free.
        let (mut bytes, entry) = (Vec::new(), |index: u64| 32 + 32 * index);
        for index in 0..8u64 {
            bytes.push((entry(index) + 2, [index as u8 + 1, 0]));
        }
        bytes.extend([(entry(0), [1, 0]), (entry(0) + 4, [0, 0]), (entry(0) + 16, [5, 0])]);
        bytes.extend([(entry(1), [1, 0]), (entry(1) + 4, [2, 0]), (entry(2) + 16, [7, 0])]);
        bytes.extend([(12, [0, 0]), (14, [3, 0]), (16, [4, 0]), (18, [2, 0]), (20, [1, 1])]);
        bytes.push((entry(0) + 2, [3, 0]));
        let bytes: Vec<_> = bytes.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        let file = file(&bytes);
        let part = Part::new(&file, true, 8, 0);
        let seen = |waits: bool| {
            part.held_packed(|index, wrap| {
                assert_eq!((index, wrap), (2, true));
                waits
            })
            .unwrap()
        };
        assert_eq!(seen(true), [5, 7]);
        assert_eq!(seen(false), [7]);
    }
}
