//! A disk as one subsystem shows it: number, identities, geometry.

use lamina_bdev::{Error, ErrorKind, Uuid};

use crate::reservation::Reservations;

/// The daemon's name for an open disk; opaque here, given back with every piece of work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct DeviceKey(pub u64);

/// What a management call says of a new namespace.
#[derive(Clone, Debug)]
pub struct NamespaceSpec {
    /// Its number; the lowest free one if not given.
    pub nsid: Option<u32>,
    /// The disk.
    pub device: DeviceKey,
    /// The disk's name, for management.
    pub name: String,
    /// The disk's UUID: what the identities are derived from.
    pub disk_uuid: Uuid,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Writes are refused.
    pub readonly: bool,
    /// The namespace's UUID; the disk's if not given.
    pub uuid: Option<Uuid>,
    /// NGUID; the UUID's bytes if not given.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64; derived from the UUID if not given.
    pub eui64: Option<[u8; 8]>,
    /// ANA group; the one of the namespace's number if not given.
    pub ana_group: Option<u32>,
}

impl NamespaceSpec {
    /// A writable disk with 512-byte blocks and everything else derived.
    pub fn new(device: DeviceKey, name: &str, disk_uuid: Uuid, bytes: u64) -> NamespaceSpec {
        NamespaceSpec {
            nsid: None,
            device,
            name: name.to_string(),
            disk_uuid,
            bytes,
            block_size: 512,
            readonly: false,
            uuid: None,
            nguid: None,
            eui64: None,
            ana_group: None,
        }
    }
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its number in the subsystem, from 1.
    pub nsid: u32,
    /// The disk.
    pub device: DeviceKey,
    /// The disk's name, for management.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
    /// Identity, 16 bytes.
    pub nguid: [u8; 16],
    /// Identity, 8 bytes, big-endian as the specification has it.
    pub eui64: [u8; 8],
    /// log2 of the block size: 9 or 12.
    pub block_shift: u8,
    /// Logical blocks.
    pub blocks: u64,
    /// Writes are refused.
    pub readonly: bool,
    /// ANA group.
    pub ana_group: u32,
    /// Who has reserved it.
    pub reservations: Reservations,
}

impl Namespace {
    /// Checks the description; `nsid` and `ana_group` are what it got.
    pub(crate) fn new(nsid: u32, ana_group: u32, spec: NamespaceSpec) -> Result<Namespace, Error> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        let block_shift = match spec.block_size {
            512 => 9,
            4096 => 12,
            other => return invalid(format!("block size {other}: only 512 and 4096 exist")),
        };
        let blocks = spec.bytes >> block_shift;
        if blocks == 0 {
            return invalid(format!("disk {} is smaller than one block", spec.name));
        }
        if spec.bytes > lamina_bdev::limits::DISK_BYTES_MAX {
            return invalid(format!("disk {} is larger than any disk can be", spec.name));
        }
        let uuid = spec.uuid.unwrap_or(spec.disk_uuid);
        Ok(Namespace {
            nsid,
            device: spec.device,
            name: spec.name,
            uuid,
            nguid: spec.nguid.unwrap_or(uuid.0),
            eui64: spec.eui64.unwrap_or_else(|| derived_eui64(uuid)),
            block_shift,
            blocks,
            readonly: spec.readonly,
            ana_group,
            reservations: Reservations::default(),
        })
    }

    /// Bytes in a logical block.
    pub fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    /// Bytes in the namespace.
    pub fn bytes(&self) -> u64 {
        self.blocks << self.block_shift
    }
}

/// Both halves of the UUID folded together, marked as locally administered and not a group
/// address, so that it claims nobody's OUI.
fn derived_eui64(uuid: Uuid) -> [u8; 8] {
    let mut id: [u8; 8] = std::array::from_fn(|i| uuid.0[i] ^ uuid.0[i + 8]);
    id[0] = (id[0] | 0x02) & !0x01;
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NamespaceSpec {
        let uuid = Uuid(std::array::from_fn(|i| i as u8 * 7));
        NamespaceSpec::new(DeviceKey(1), "disk", uuid, 1 << 20)
    }

    #[test]
    fn identities_follow_from_the_disk() {
        let one = Namespace::new(1, 1, spec()).expect("good");
        let two = Namespace::new(1, 1, spec()).expect("good");
        assert_eq!((one.uuid, one.nguid, one.eui64), (two.uuid, two.nguid, two.eui64));
        assert_eq!(one.eui64[0] & 3, 2);
        let given = NamespaceSpec { eui64: Some([9; 8]), nguid: Some([8; 16]), ..spec() };
        let given = Namespace::new(1, 1, given).expect("good");
        assert_eq!((given.nguid, given.eui64), ([8; 16], [9; 8]));
    }

    #[test]
    fn geometry_is_checked() {
        let of = |block_size, bytes| {
            Namespace::new(1, 1, NamespaceSpec { block_size, bytes, ..spec() }).map(|n| n.blocks)
        };
        assert_eq!(of(512, 1 << 20).ok(), Some(2048));
        assert_eq!(of(4096, (1 << 20) + 512).ok(), Some(256));
        for (block_size, bytes) in [(1024, 1 << 20), (0, 1 << 20), (4096, 4095), (512, u64::MAX)] {
            assert!(of(block_size, bytes).is_err(), "{block_size} {bytes}");
        }
    }
}
