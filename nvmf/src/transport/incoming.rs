//! Data of a PDU on its way in.
//!
//! ```text
//!  ┌ pad ┬──── digested ───────────────┬ digest ┐
//!  │     │ before │  stored  │  after  │        │      before and after: data of a capsule that no
//!  └─────┴────────┴──────────┴─────────┴────────┘      command has asked for
//! ```

use crate::SlotId;
use crate::pool::Buffer;
use crate::wire::pdu::DIGEST_BYTES;

/// What the data is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Capsule,
    Transfer,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming {
    pub slot: SlotId,
    pub source: Source,
    /// Bytes before the data.
    pub pad: u32,
    /// Bytes of data that are dropped, then kept, then dropped.
    pub before: u32,
    pub stored: u32,
    pub after: u32,
    /// A digest follows.
    pub digest: bool,
    crc: u32,
}

impl Incoming {
    /// `pad` bytes, then data of which bytes `at .. at + stored` are kept.
    pub fn new(
        slot: SlotId,
        source: Source,
        pad: u32,
        data: u32,
        at: u32,
        stored: u32,
    ) -> Incoming {
        let after = data - at - stored;
        Incoming { slot, source, pad, before: at, stored, after, digest: false, crc: 0 }
    }

    pub fn with_digest(self, digest: bool) -> Incoming {
        Incoming { digest, ..self }
    }

    /// Takes what `bytes` has of pad and data; how much that was. `buffer` is filled from byte
    /// `received` on.
    pub fn take(&mut self, bytes: &[u8], buffer: Option<&mut Buffer>, received: &mut u32) -> usize {
        let mut rest = bytes;
        pass(&mut rest, &mut self.pad);
        let before = pass(&mut rest, &mut self.before);
        self.digest_of(before);
        let stored = pass(&mut rest, &mut self.stored);
        if !stored.is_empty() {
            let buffer = buffer.expect("data that is kept has a buffer");
            let at = *received as usize;
            let place = &mut buffer.as_mut_slice()[at..at + stored.len()];
            place.copy_from_slice(stored);
            if self.digest {
                self.crc = lamina_bdev::crc32c::crc32c_append(self.crc, place);
            }
            *received += stored.len() as u32;
        }
        let after = pass(&mut rest, &mut self.after);
        self.digest_of(after);
        bytes.len() - rest.len()
    }

    fn digest_of(&mut self, bytes: &[u8]) {
        if self.digest && !bytes.is_empty() {
            self.crc = lamina_bdev::crc32c::crc32c_append(self.crc, bytes);
        }
    }

    /// Bytes that can come straight into the buffer now.
    pub fn straight(&self) -> usize {
        if self.pad == 0 && self.before == 0 { self.stored as usize } else { 0 }
    }

    /// `filled` has come straight into the buffer.
    pub fn took_straight(&mut self, filled: &[u8]) {
        self.digest_of(filled);
        self.stored -= filled.len() as u32;
    }

    /// All of the data is in.
    pub fn is_complete(&self) -> bool {
        (self.pad, self.before, self.stored, self.after) == (0, 0, 0, 0)
    }

    /// This digest is the data's.
    pub fn matches(&self, digest: [u8; DIGEST_BYTES]) -> bool {
        self.crc == u32::from_le_bytes(digest)
    }
}

/// The first `count` of `rest`, or all it has.
fn pass<'a>(rest: &mut &'a [u8], count: &mut u32) -> &'a [u8] {
    let (taken, left) = rest.split_at(rest.len().min(*count as usize));
    *rest = left;
    *count -= taken.len() as u32;
    taken
}

#[cfg(test)]
mod tests {
    use crate::pool::Pool;

    use super::*;

    #[test]
    fn only_the_part_that_is_wanted_is_kept_and_all_is_digested() {
        let data = b"before, kept, after";
        let bytes = [&b"pad"[..], data].concat();
        for piece in 1..=bytes.len() {
            let mut buffer = Pool::new(1, 0, 16384).take(1).expect("a buffer");
            let mut incoming = Incoming::new(SlotId(0), Source::Capsule, 3, 19, 8, 4);
            incoming = incoming.with_digest(true);
            let mut received = 0;
            for bytes in bytes.chunks(piece) {
                assert!(!incoming.is_complete());
                let taken = incoming.take(bytes, Some(&mut buffer), &mut received);
                assert_eq!(taken, bytes.len());
            }
            assert!(incoming.is_complete() && incoming.take(b"x", None, &mut received) == 0);
            assert_eq!((&buffer.as_slice()[..4], received), (&b"kept"[..], 4));
            assert!(incoming.matches(lamina_bdev::crc32c::crc32c(data).to_le_bytes()));
            assert!(!incoming.matches([0; 4]));
        }
    }
}
