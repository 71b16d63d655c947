//! Damage to metadata that no checksum tells: blocks are changed and sealed again.
//!
//! ```text
//!  8 bytes of input: which block, what to do, where in it, which value
//! ```

use super::host::{BLOCK, Block, Device};

/// Most changes of one input.
const CHANGES_MAX: usize = 24;
/// Where the header of a node stands; elsewhere it comes first.
const NODE_HEADER_AT: usize = 3072;
/// Links in a node, of 6 bytes each.
const LINKS: usize = 512;
/// Bit of a link: everything below is shared.
const READ_ONLY: u64 = 1 << 47;

/// Where the header of a metadata block stands; `None`: it is none.
fn header_at(block: &Block) -> Option<usize> {
    [0, NODE_HEADER_AT].into_iter().find(|at| block[*at..*at + 4] == *b"LMNA")
}

/// Makes the checksum right again.
fn seal(block: &mut Block) {
    let Some(at) = header_at(block) else { return };
    block[at + 8..at + 12].fill(0);
    let sum = crc32c::crc32c(block);
    block[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
}

/// The metadata blocks of a store, in order.
pub fn metadata(device: &Device) -> Vec<u64> {
    (0..device.blocks()).filter(|number| header_at(device.block(*number)).is_some()).collect()
}

/// One change, as the input says it.
struct Change {
    target: usize,
    verb: u8,
    place: usize,
    value: u64,
}

impl Change {
    fn new(bytes: &[u8; 8]) -> Change {
        Change {
            target: bytes[0].into(),
            verb: bytes[1],
            place: usize::from(bytes[2]) | usize::from(bytes[3]) << 8,
            value: u64::from(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])),
        }
    }

    /// A number that a program may stumble over.
    fn number(&self, blocks: &[u64], device: &Device) -> u64 {
        let low = self.value & 0xff_ffff;
        match self.value >> 24 & 15 {
            0 => low,
            1 => u64::MAX - low,
            2 => 1 << (low % 64),
            3 => (1 << (low % 64)) - 1,
            4 => device.blocks().wrapping_add(low).wrapping_sub(8),
            5 => blocks[low as usize % blocks.len()],
            6 => low << 16,
            7 => low << 32,
            8 => 0,
            9 => low & 0xff,
            _ => low % device.blocks(),
        }
    }
}

/// A link: where it points is chosen among what is worth pointing to.
fn link(change: &Change, blocks: &[u64], device: &Device, node: &Block) -> u64 {
    let shared = if change.value & 1 << 31 != 0 { READ_ONLY } else { 0 };
    let other = (change.value as usize & 0xffff) % LINKS * 6;
    let target = match change.value >> 28 & 7 {
        // The same block twice.
        0 | 1 => {
            let mut bytes = [0; 8];
            bytes[..6].copy_from_slice(&node[other..other + 6]);
            u64::from_le_bytes(bytes)
        }
        // Metadata as data or as a child: cycles, two parents, wrong depth.
        2 | 3 => blocks[(change.value as usize & 0xffff) % blocks.len()],
        4 => READ_ONLY - 1,
        _ => change.number(blocks, device),
    };
    (target & (READ_ONLY - 1)) | shared
}

/// Does what `input` says; every changed block has a right checksum afterwards, with one exception.
pub fn apply(device: &mut Device, blocks: &[u64], input: &[u8]) {
    for bytes in input.chunks_exact(8).take(CHANGES_MAX) {
        let change = Change::new(bytes.try_into().expect("eight bytes"));
        let number = blocks[change.target % blocks.len()];
        let before = *device.block(number);
        let Some(at) = header_at(&before) else { continue };
        let value = change.number(blocks, device);
        let other = *device.block(blocks[change.value as usize % blocks.len()]);
        let to_link = link(&change, blocks, device, &before);
        let block = device.block_mut(number);
        let mut put = |place: usize, bytes: &[u8]| {
            let place = place.min(BLOCK - bytes.len());
            block[place..place + bytes.len()].copy_from_slice(bytes);
        };
        let place = change.place % BLOCK;
        match change.verb % 14 {
            0 => put(place, &[value as u8]),
            1 => put(place & !1, &(value as u16).to_le_bytes()),
            2 => put(place & !3, &(value as u32).to_le_bytes()),
            3 => put(place & !7, &value.to_le_bytes()),
            // The same, close behind the header, where most fields are.
            4 => put((at + 64 + place % 192) & !7, &value.to_le_bytes()),
            5 => put((at + 64 + place % 192) & !3, &(value as u32).to_le_bytes()),
            // The header: owner, index, generation, level.
            6 => put(at + 12, &(value as u32).to_le_bytes()),
            7 => put(at + 40, &value.to_le_bytes()),
            8 => put(at + 48, &value.to_le_bytes()),
            9 => put(at + 5, &[value as u8 % 5]),
            10 | 11 if at == NODE_HEADER_AT => {
                put(change.place % LINKS * 6, &to_link.to_le_bytes()[..6]);
            }
            10 | 11 => put((at + 64 + place % 512) & !7, &to_link.to_le_bytes()),
            // Another block's content under this one's address.
            12 => {
                put(0, &other);
                let Some(at) = header_at(&other) else { continue };
                put(at + 32, &number.to_le_bytes());
            }
            // Rot, which the checksum does tell.
            _ => {
                block[place] ^= 1 << (value % 8);
                continue;
            }
        }
        seal(block);
    }
}
