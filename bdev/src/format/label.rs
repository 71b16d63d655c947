//! The device label: the first two blocks of the device, and how a device is divided into regions.

use super::superblock::Geometry;
use super::{Block, FORMAT_VERSION, Header, Kind, MAGIC, payload, payload_mut, seal, unseal};
use crate::error::{Error, ErrorKind};
use crate::limits::{REGION_BYTES_MIN, SHARDS_MAX};
use crate::types::{BLOCK_SIZE, Name, Uuid};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes at offset 0 that [`read_label`] wants: both copies.
pub const LABEL_BYTES: usize = 2 * BLOCK_SIZE;
/// First block of shard 0's region.
const FIRST_REGION_BLOCK: u64 = 16;

/// What the first blocks of a device say about the store on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLabel {
    /// Identity of the store.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// Engine shards; one region each.
    pub shards: u32,
    /// Byte offset of shard 0's region; region i begins at `first_region + i * region_bytes`.
    pub first_region: u64,
    /// Bytes of a region.
    pub region_bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// Parameters of a new store.
#[derive(Clone, Copy, Debug)]
pub struct FormatParams {
    /// Made by the host.
    pub uuid: Uuid,
    /// For people.
    pub name: Name,
    /// Bytes of the base device.
    pub device_bytes: u64,
    /// Engine shards (regions); 1 if in doubt.
    pub shards: u32,
    /// Bytes of journal a shard; 0 = by size.
    pub journal_bytes: u64,
    /// Seconds since 1970.
    pub time: u64,
}

/// One block-aligned write of a format plan.
pub struct FormatWrite {
    /// Byte offset on the device.
    pub offset: u64,
    /// Whole blocks.
    pub bytes: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLabel {
    name: [u8; 64],
    first_region: U64,
    region_bytes: U64,
    created: U64,
    shards: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<RawLabel>() == 96);

fn label_block(label: &StoreLabel, copy: u64) -> Block {
    let mut block = [0; BLOCK_SIZE];
    *payload_mut::<RawLabel>(&mut block) = RawLabel {
        name: label.name.to_bytes(),
        first_region: U64::new(label.first_region),
        region_bytes: U64::new(label.region_bytes),
        created: U64::new(label.created),
        shards: U32::new(label.shards),
        reserved: U32::new(0),
    };
    let header = Header {
        kind: Kind::Label,
        level: 0,
        owner: 0,
        store: label.uuid,
        shard: 0,
        address: copy,
        index: 0,
        generation: 1,
    };
    seal(&mut block, &header);
    block
}

/// The writes that turn a device into an empty store, in order. The label comes last: flush before
/// it and after it, and a crash in between leaves no half-made store.
///
/// # Errors
/// Invalid: the device is too small for that many shards, or a parameter is out of range.
pub fn format_plan(params: &FormatParams) -> Result<Vec<FormatWrite>, Error> {
    let label = plan_label(params)?;
    let mut writes = Vec::new();
    for (shard, start) in regions(&label) {
        for (at, bytes) in super::superblock::format_region(&label, shard, params.journal_bytes)? {
            writes.push(FormatWrite { offset: start + at * BLOCK_SIZE as u64, bytes });
        }
    }
    writes.push(FormatWrite { offset: 0, bytes: write_labels(&label) });
    Ok(writes)
}

/// The byte ranges (offset, length) of a device that an empty store made with these parameters
/// writes in place for as long as it lives: a host that makes it in a sparse file had better
/// reserve them, since a shard whose journal cannot be written fails. Of the disk records those
/// of the first 1,024 disks.
///
/// # Errors
/// As [`format_plan`].
pub fn fixed_areas(params: &FormatParams) -> Result<Vec<(u64, u64)>, Error> {
    let label = plan_label(params)?;
    let block = BLOCK_SIZE as u64;
    let mut areas = vec![(0, label.first_region)];
    for (_, start) in regions(&label) {
        let geometry = Geometry::plan(label.region_bytes / block, params.journal_bytes / block)?;
        let fixed = geometry.fixed_areas();
        areas.extend(
            fixed.map(|blocks| (start + blocks.start * block, (blocks.end - blocks.start) * block)),
        );
    }
    Ok(areas)
}

/// Each shard's number and where its region begins, bytes.
fn regions(label: &StoreLabel) -> impl Iterator<Item = (u32, u64)> {
    let (first, bytes) = (label.first_region, label.region_bytes);
    (0..label.shards).map(move |shard| (shard, first + u64::from(shard) * bytes))
}

fn plan_label(params: &FormatParams) -> Result<StoreLabel, Error> {
    let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
    if params.shards == 0 || params.shards > SHARDS_MAX {
        return invalid(format!(
            "{} shards asked for; a store has 1 to {SHARDS_MAX}",
            params.shards
        ));
    }
    let block = BLOCK_SIZE as u64;
    let usable = (params.device_bytes / block).saturating_sub(FIRST_REGION_BLOCK);
    let region_bytes = usable / u64::from(params.shards) * block;
    if region_bytes < REGION_BYTES_MIN {
        let need = REGION_BYTES_MIN * u64::from(params.shards) + FIRST_REGION_BLOCK * block;
        return invalid(format!(
            "the device has {} bytes; a store with {} shard(s) needs at least {need}",
            params.device_bytes, params.shards
        ));
    }
    Ok(StoreLabel {
        uuid: params.uuid,
        name: params.name,
        shards: params.shards,
        first_region: FIRST_REGION_BLOCK * block,
        region_bytes,
        created: params.time,
    })
}

/// Both copies of a label, as they lie in the first blocks of the device.
pub(crate) fn write_labels(label: &StoreLabel) -> Vec<u8> {
    [label_block(label, 0), label_block(label, 1)].concat()
}

/// Reads the label from the first [`LABEL_BYTES`] bytes of a device.
///
/// # Errors
/// Corrupt: not a store, or both labels damaged. Version: another format. Invalid: the device is
/// smaller than the label says.
pub fn read_label(first: &[u8], device_bytes: u64) -> Result<StoreLabel, Error> {
    let mut damage = None;
    for copy in 0..2 {
        let Some(bytes) = first.get(copy * BLOCK_SIZE..(copy + 1) * BLOCK_SIZE) else { break };
        let block: &Block = bytes.try_into().expect("sliced to a block");
        // The store's identity is learnt here, so the block vouches for itself.
        let store = Uuid(block[16..32].try_into().expect("16 bytes"));
        match unseal(block, Kind::Label, store, 0, copy as u64) {
            Ok(_) => return parse(block, store, device_bytes),
            Err(found) => damage = damage.or(Some((found, block[..4] == MAGIC))),
        }
    }
    match damage {
        Some((super::Damage::Version(v), true)) => Err(Error::new(
            ErrorKind::Version,
            format!(
                "this store has format version {v}; this program reads version {FORMAT_VERSION}"
            ),
        )),
        Some((found, true)) => Err(Error::new(
            ErrorKind::Corrupt,
            format!("both labels of the store are damaged: {found}"),
        )),
        _ => {
            Err(Error::new(ErrorKind::Corrupt, "not a Lamina store (no label in its first blocks)"))
        }
    }
}

fn parse(block: &Block, uuid: Uuid, device_bytes: u64) -> Result<StoreLabel, Error> {
    let raw = payload::<RawLabel>(block);
    let corrupt = || Error::new(ErrorKind::Corrupt, "the store's label holds impossible values");
    let label = StoreLabel {
        uuid,
        name: Name::from_bytes(&raw.name).ok_or_else(corrupt)?,
        shards: raw.shards.get(),
        first_region: raw.first_region.get(),
        region_bytes: raw.region_bytes.get(),
        created: raw.created.get(),
    };
    let aligned = label.region_bytes.is_multiple_of(BLOCK_SIZE as u64)
        && label.first_region == FIRST_REGION_BLOCK * BLOCK_SIZE as u64;
    if label.shards == 0
        || label.shards > SHARDS_MAX
        || !aligned
        || label.region_bytes < REGION_BYTES_MIN
    {
        return Err(corrupt());
    }
    let end = label
        .region_bytes
        .checked_mul(u64::from(label.shards))
        .and_then(|bytes| bytes.checked_add(label.first_region))
        .ok_or_else(corrupt)?;
    if end > device_bytes {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the store needs {end} bytes but the device has only {device_bytes}: was it truncated?"
            ),
        ));
    }
    Ok(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(device_bytes: u64, shards: u32) -> FormatParams {
        let name = Name::new("store").unwrap();
        FormatParams { uuid: Uuid([9; 16]), name, device_bytes, shards, journal_bytes: 0, time: 5 }
    }

    fn image(params: &FormatParams) -> Vec<u8> {
        let mut image = vec![0; LABEL_BYTES];
        let plan = format_plan(params).unwrap();
        image.copy_from_slice(&plan.last().unwrap().bytes);
        image
    }

    #[test]
    fn a_label_survives_the_loss_of_one_copy() {
        let p = params(64 << 20, 2);
        let mut image = image(&p);
        let label = read_label(&image, p.device_bytes).unwrap();
        assert_eq!((label.shards, label.uuid, label.name), (2, p.uuid, p.name));
        image[100] ^= 1;
        assert_eq!(read_label(&image, p.device_bytes).unwrap(), label);
        image[BLOCK_SIZE + 100] ^= 1;
        assert_eq!(read_label(&image, p.device_bytes).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn what_is_written_in_place_is_what_the_plan_writes_and_the_journal() {
        for (device_bytes, shards) in [(64 << 20, 1), (64 << 20, 2), (1 << 40, 3)] {
            let params = params(device_bytes, shards);
            let areas = fixed_areas(&params).unwrap();
            for write in format_plan(&params).unwrap() {
                let end = write.offset + write.bytes.len() as u64;
                let inside = |&(at, len): &(u64, u64)| at <= write.offset && end <= at + len;
                assert!(areas.iter().any(inside), "{} to {end}", write.offset);
            }
            assert!(areas.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{areas:?}");
            let reserved: u64 = areas.iter().map(|area| area.1).sum();
            assert!(reserved * 16 < device_bytes, "{reserved} of {device_bytes}");
            let region = (device_bytes - (FIRST_REGION_BLOCK << 12)) / u64::from(shards);
            let journal = Geometry::plan(region >> 12, 0).unwrap().journal_blocks << 12;
            let journals = areas.iter().filter(|area| area.1 == journal).count();
            assert_eq!(journals, shards as usize);
        }
    }

    #[test]
    fn small_foreign_truncated_and_future_devices_are_refused() {
        assert_eq!(format_plan(&params(1 << 20, 1)).err().unwrap().kind, ErrorKind::Invalid);
        assert_eq!(format_plan(&params(1 << 40, 0)).err().unwrap().kind, ErrorKind::Invalid);
        assert_eq!(read_label(&[0; LABEL_BYTES], 1 << 30).unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(read_label(&[], 0).unwrap_err().kind, ErrorKind::Corrupt);
        let p = params(64 << 20, 1);
        let mut image = image(&p);
        assert_eq!(read_label(&image, 32 << 20).unwrap_err().kind, ErrorKind::Invalid);
        image[6] = 9;
        image[BLOCK_SIZE + 6] = 9;
        assert_eq!(read_label(&image, p.device_bytes).unwrap_err().kind, ErrorKind::Version);
    }
}
