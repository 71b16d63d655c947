//! Addresses, counts and identities: one newtype each, so that a virtual block can never be used
//! as a physical one. Only lawful arithmetic is offered.

/// Bytes in a block: the unit of mapping, allocation and checksums.
pub const BLOCK_SIZE: usize = 4096;
/// Bytes in a sector: the smallest unit a request may address.
pub const SECTOR_SIZE: usize = 512;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;

/// Index of a 4 KiB block in a virtual disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct VirtBlock(pub u64);

/// Index of a 4 KiB block in one shard's region of the base device; 0 is never a data block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct PhysBlock(pub u64);

impl PhysBlock {
    /// The block that stands for "nothing is mapped here".
    pub const HOLE: PhysBlock = PhysBlock(0);

    /// Byte offset of this block inside the shard's region.
    pub fn byte_offset(self) -> u64 {
        self.0 << BLOCK_SHIFT
    }

    /// The block `count` further on.
    #[must_use]
    pub fn advance(self, count: u64) -> PhysBlock {
        PhysBlock(self.0 + count)
    }
}

/// Journal block sequence number; grows by one for each journal block of a shard, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Lsn(pub u64);

/// Persistent number of a disk inside its shard: the slot of its record. Reused after deletion,
/// so a person is shown names and UUIDs instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct DiskId(pub u32);

/// Number of a snapshot inside its disk: 1, 2, 3, ... in the order taken, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct SnapId(pub u64);

/// A snapshot, named by the disk it was taken of and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct SnapRef {
    /// The disk it was taken of.
    pub disk: DiskId,
    /// Its number there.
    pub snap: SnapId,
}

/// An attached address space (a live disk or a read-only snapshot); what requests name.
/// Index in the low 16 bits, a generation above, so a stale handle is an error and not a mix-up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Handle(pub u32);

/// Identity of a base operation; given back in [`crate::Engine::complete`] exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tag(pub u64);

/// 128-bit identity, made by the host (the engine has no randomness).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Uuid(pub [u8; 16]);

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Uuid {
    type Err = ();

    /// Reads the usual 8-4-4-4-12 form.
    fn from_str(text: &str) -> Result<Uuid, ()> {
        let dashes = [8, 13, 18, 23];
        if text.len() != 36 || !text.is_ascii() {
            return Err(());
        }
        let mut bytes = [0u8; 16];
        let mut nibbles = 0;
        for (i, c) in text.chars().enumerate() {
            if dashes.contains(&i) {
                if c != '-' {
                    return Err(());
                }
                continue;
            }
            let value = c.to_digit(16).ok_or(())? as u8;
            bytes[nibbles / 2] = bytes[nibbles / 2] << 4 | value;
            nibbles += 1;
        }
        Ok(Uuid(bytes))
    }
}

/// A name of at most [`Name::LEN_MAX`] bytes, kept inline so that records need no heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    len: u8,
    bytes: [u8; Name::LEN_MAX],
}

impl Name {
    /// Longest name, bytes.
    pub const LEN_MAX: usize = 63;

    /// The empty name: an unlabelled snapshot.
    pub const EMPTY: Name = Name { len: 0, bytes: [0; Name::LEN_MAX] };

    /// Checks and takes `text`.
    ///
    /// # Errors
    /// A sentence that says what a name may hold, if `text` is empty, too long, does not start
    /// with a letter or digit, or has a character other than letters, digits, `.`, `_`, `-`.
    pub fn new(text: &str) -> Result<Name, String> {
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > Name::LEN_MAX {
            return Err(format!(
                "a name has 1 to {} characters, not {}",
                Name::LEN_MAX,
                text.len()
            ));
        }
        if !text.as_bytes()[0].is_ascii_alphanumeric() || !text.bytes().all(good) {
            return Err(format!(
                "the name {text:?} is not allowed: use letters, digits, '.', '_' and '-', starting with a letter or digit"
            ));
        }
        let mut name = Name::EMPTY;
        name.bytes[..text.len()].copy_from_slice(text.as_bytes());
        name.len = text.len() as u8;
        Ok(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len as usize]).unwrap_or("")
    }

    /// True for [`Name::EMPTY`].
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// 64 bytes for a disk record or journal record: a length byte, then the text.
    pub(crate) fn to_bytes(self) -> [u8; 64] {
        let mut out = [0; 64];
        out[0] = self.len;
        out[1..].copy_from_slice(&self.bytes);
        out
    }

    /// Reads what [`Name::to_bytes`] wrote; `None` if it is not a lawful name.
    pub(crate) fn from_bytes(raw: &[u8; 64]) -> Option<Name> {
        let len = raw[0] as usize;
        if len == 0 {
            return Some(Name::EMPTY);
        }
        if len > Name::LEN_MAX {
            return None;
        }
        Name::new(std::str::from_utf8(&raw[1..=len]).ok()?).ok()
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips_and_rejects_noise() {
        let uuid = Uuid(std::array::from_fn(|i| (i * 17) as u8));
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        for bad in
            ["", "00112233-4455-6677-8899-aabbccddeef", "00112233x4455-6677-8899-aabbccddeeff"]
        {
            assert!(bad.parse::<Uuid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_closed() {
        for good in ["a", "vm-1.disk_0", &"x".repeat(63)] {
            let name = Name::new(good).unwrap();
            assert_eq!(name.as_str(), good);
            assert_eq!(Name::from_bytes(&name.to_bytes()), Some(name));
        }
        for bad in ["", "../x", "a b", "-a", "ä", "a/b", "a@b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }
}
