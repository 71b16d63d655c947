//! Reading sealed blocks of the image of one shard, as [`super::fsck`] needs them.

use std::rc::Rc;

use lamina_bdev::StoreLabel;

use super::base::Base;

/// The bytes of one block.
pub type Block = [u8; 4096];

/// Bytes in a header.
const HEADER_LEN: usize = 64;
/// Where the header of a node stands; elsewhere it comes first.
const NODE_HEADER_AT: usize = 3072;

/// Kinds of metadata blocks, by their number on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// What commits.
    Superblock = 2,
    /// List of extents.
    Catalogue = 3,
    /// A disk.
    DiskRecord = 4,
    /// A batch of records.
    Journal = 5,
    /// Blocks in use.
    Bitmap = 6,
    /// Links.
    Node = 7,
    /// Snapshots.
    SnapshotLog = 8,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::Superblock,
        Kind::Catalogue,
        Kind::DiskRecord,
        Kind::Journal,
        Kind::Bitmap,
        Kind::Node,
        Kind::SnapshotLog,
    ];

    fn header_at(self) -> usize {
        if self == Kind::Node { NODE_HEADER_AT } else { 0 }
    }
}

/// A pair of copies.
pub enum Sides {
    /// The copy that counts.
    Good(Rc<Block>),
    /// There is none; why.
    Bad(String),
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Level of a node.
    pub level: u8,
    /// Disk slot.
    pub owner: u32,
    /// Block it was written for.
    pub address: u64,
    /// Place among its kind.
    pub index: u64,
    /// Consistency point that wrote it.
    pub generation: u64,
}

/// The region of one shard on the device.
pub struct Image<'a> {
    base: &'a Base,
    first_block: u64,
    store: [u8; 16],
    shard: u16,
}

/// Eight bytes of a block.
pub fn u64_at(block: &Block, at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

/// The header of a sealed block of `kind`, if it is one of that store and shard.
///
/// # Errors
/// What is wrong with it.
pub fn unseal(block: &Block, kind: Kind, store: &[u8; 16], shard: u16) -> Result<Header, String> {
    let header = &block[kind.header_at()..kind.header_at() + HEADER_LEN];
    if &header[..4] != b"LMNA" || header[4] != kind as u8 {
        return Err(format!("no {kind:?} here"));
    }
    if header[16..32] != store[..] || header[56..58] != shard.to_le_bytes() {
        return Err("of another store or shard".to_string());
    }
    let crc_at = kind.header_at() + 8;
    let crc = crc32c::crc32c(&block[..crc_at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &block[crc_at + 4..]);
    if header[8..12] != crc.to_le_bytes() {
        return Err("its checksum does not match".to_string());
    }
    Ok(parse(header))
}

/// Gives a block of `kind` the right checksum.
pub fn seal(block: &mut Block, kind: Kind) {
    let at = kind.header_at() + 8;
    block[at..at + 4].fill(0);
    let crc = crc32c::crc32c(block);
    block[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// What a block of metadata says it is, whatever shard of whatever store it is of.
pub fn header_of(block: &Block) -> Option<(Kind, Header)> {
    let kind = Kind::ALL.into_iter().find(|kind| {
        let at = kind.header_at();
        &block[at..at + 4] == b"LMNA" && block[at + 4] == *kind as u8
    })?;
    Some((kind, parse(&block[kind.header_at()..])))
}

fn parse(header: &[u8]) -> Header {
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight"));
    Header {
        level: header[5],
        owner: u32::from_le_bytes(header[12..16].try_into().expect("four")),
        address: number(32),
        index: number(40),
        generation: number(48),
    }
}

impl<'a> Image<'a> {
    /// The region of `shard` as the device shows it.
    pub fn new(base: &'a Base, label: &StoreLabel, shard: u32) -> Image<'a> {
        let first = label.first_region + u64::from(shard) * label.region_bytes;
        Image { base, first_block: first / 4096, store: label.uuid.0, shard: shard as u16 }
    }

    /// A block of the region.
    pub fn block(&self, at: u64) -> Rc<Block> {
        self.base.pages.share(self.first_block + at)
    }

    fn open(&self, at: u64, kind: Kind) -> Result<(Rc<Block>, Header), String> {
        let block = self.block(at);
        let header = unseal(&block, kind, &self.store, self.shard)?;
        if header.address != at {
            return Err(format!("it was written for block {}", header.address));
        }
        Ok((block, header))
    }

    /// The newest superblock and its generation.
    ///
    /// # Errors
    /// Neither copy is good.
    pub fn superblock(&self) -> Result<(Rc<Block>, u64), String> {
        let copies = [0, 1].map(|copy| self.open(copy, Kind::Superblock));
        let good = copies.into_iter().filter_map(Result::ok);
        let newest = good.max_by_key(|(_, header)| header.generation);
        let (block, header) = newest.ok_or_else(|| "neither superblock is good".to_string())?;
        // One that could not be written is in the last record slot, if no disk has ever had that.
        let field = |index: usize| u64_at(&block, 64 + index * 8);
        let (records, last, used) = (field(3), field(4) - 1, field(12));
        let spare = self.open(records + 2 * last, Kind::Superblock).ok().filter(|_| used <= last);
        Ok(match spare {
            Some((spare, h)) if h.generation > header.generation => (spare, h.generation),
            _ => (block, header.generation),
        })
    }

    /// The copy of the pair at `at` that counts at consistency point `committed`.
    pub fn pair(&self, at: u64, kind: Kind, committed: u64) -> Sides {
        let copies = [at, at + 1].map(|at| self.open(at, kind));
        let why = copies.iter().find_map(|copy| copy.as_ref().err().cloned());
        let good = copies.into_iter().filter_map(Result::ok);
        let counts = good.filter(|(_, header)| header.generation <= committed);
        match counts.max_by_key(|(_, header)| header.generation) {
            Some((block, _)) => Sides::Good(block),
            None => Sides::Bad(why.unwrap_or_else(|| "neither copy is committed".to_string())),
        }
    }

    /// The node at `at`, which must be the one of `level` at `index`.
    ///
    /// # Errors
    /// It is not.
    pub fn node(
        &self,
        at: u64,
        level: u8,
        index: u64,
        committed: u64,
    ) -> Result<Rc<Block>, String> {
        let (block, header) = self.open(at, Kind::Node)?;
        let due = header.level == level && header.index == index && header.generation <= committed;
        if due { Ok(block) } else { Err(format!("another node: {header:?}")) }
    }

    /// The bitmap of an extent that `generation` names.
    ///
    /// # Errors
    /// There is none.
    pub fn bitmap(&self, at: u64, extent: u64, generation: u64) -> Result<Rc<Block>, String> {
        let mut why = "neither copy is the one named".to_string();
        for copy in 0..2 {
            match self.open(at + copy, Kind::Bitmap) {
                Ok((block, h)) if h.index == extent && h.generation == generation => {
                    return Ok(block);
                }
                Ok(_) => {}
                Err(found) => why = found,
            }
        }
        Err(why)
    }
}
