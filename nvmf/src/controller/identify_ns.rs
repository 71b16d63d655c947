//! Identify: structures of one namespace (NVM 1.1, 4.1.5; Base 2.1, 5.1.13.2).

use super::identify::{CSI_NVM, IDENTIFY_BYTES};
use super::page::Page;
use crate::io::{COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX};
use crate::subsystem::{AnaState, Listener, Namespace, Subsystem};
use crate::wire::Status;

/// Bytes the engine changes atomically, and prefers.
const ENGINE_BLOCK_BYTES: u32 = lamina_bdev::BLOCK_SIZE as u32;
/// RESCAP: persistence, six types, Ignore Existing Key as of NVMe 1.3.
const RESCAP: u8 = 0xff;
/// NMIC: several controllers.
const SHARED: u8 = 1;
/// NSFEAT of the NVM structure: its atomic sizes and its preferred sizes are told.
const NSFEAT: u8 = 1 << 1 | 1 << 4;
/// DLFEAT: deallocated blocks read as zeros, Write Zeroes deallocates.
const DLFEAT: u8 = 0b1001;
/// NSATTR: write protected.
const WRITE_PROTECTED: u8 = 1;

/// Checks a number: not 0, not beyond what there can be.
fn find(subsystem: &Subsystem, nsid: u32) -> Result<Option<&Namespace>, Status> {
    if nsid == 0 || nsid > subsystem.spec().max_namespaces {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    }
    Ok(subsystem.namespace(nsid))
}

/// Whether NUSE is told: not in the states Inaccessible and Persistent Loss (Base 2.1, 8.1.1.4).
/// The size is, or hosts would take the namespace for removed.
fn usage_is_known(listener: Option<&Listener>, namespace: &Namespace) -> bool {
    let state = listener.map_or(AnaState::Inaccessible, |l| l.state(namespace.ana_group));
    !matches!(state, AnaState::Inaccessible | AnaState::PersistentLoss)
}

/// Identify Namespace (CNS 00h); zeros for a namespace that is not there.
pub(super) fn namespace(
    subsystem: &Subsystem,
    listener: Option<&Listener>,
    nsid: u32,
) -> Result<Vec<u8>, Status> {
    let mut page = Page::new(IDENTIFY_BYTES);
    let Some(namespace) = find(subsystem, nsid)? else { return Ok(page.done()) };
    page.u64(0, namespace.blocks);
    page.u64(8, namespace.blocks);
    if usage_is_known(listener, namespace) {
        page.u64(16, namespace.blocks);
    }
    page.u8(24, NSFEAT);
    page.u8(30, SHARED);
    page.u8(31, RESCAP);
    page.u8(33, DLFEAT);
    // All zero-based, in logical blocks: the engine's block is the atomic unit, and writes that
    // cross its boundary are atomic block by block only.
    let unit = (ENGINE_BLOCK_BYTES / namespace.block_size()) as u16 - 1;
    for field in [34, 36, 38, 40, 44, 64, 66, 68, 70, 72] {
        page.u16(field, unit);
    }
    page.u128(48, u128::from(namespace.bytes()));
    page.u16(74, COPY_RANGE_BLOCKS_MAX);
    page.u32(76, COPY_BLOCKS_MAX);
    page.u8(80, (COPY_RANGES_MAX - 1) as u8);
    if subsystem.spec().ana_reporting {
        page.u32(92, namespace.ana_group);
    }
    page.u8(99, if namespace.readonly { WRITE_PROTECTED } else { 0 });
    page.put(104, &namespace.nguid);
    page.put(120, &namespace.eui64);
    page.u32(128, u32::from(namespace.block_shift) << 16);
    Ok(page.done())
}

/// Namespace Identification Descriptor list (CNS 03h).
pub(super) fn descriptors(subsystem: &Subsystem, nsid: u32) -> Result<Vec<u8>, Status> {
    let found = find(subsystem, nsid)?;
    let namespace = found.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())?;
    let mut page = Page::new(IDENTIFY_BYTES);
    let mut at = 0;
    let all: [(u8, &[u8]); 4] = [
        (1, &namespace.eui64),
        (2, &namespace.nguid),
        (3, &namespace.uuid.0),
        (4, &[CSI_NVM as u8]),
    ];
    for (kind, value) in all {
        page.u8(at, kind);
        page.u8(at + 1, value.len() as u8);
        page.put(at + 4, value);
        at += 4 + value.len();
    }
    Ok(page.done())
}

/// What only the NVM command set knows of a namespace (CNS 05h): no protection information, so
/// nothing but zeros.
pub(super) fn nvm(subsystem: &Subsystem, nsid: u32) -> Result<Vec<u8>, Status> {
    find(subsystem, nsid)?;
    Ok(Page::new(IDENTIFY_BYTES).done())
}

/// What all command sets know of a namespace (CNS 08h).
pub(super) fn independent(subsystem: &Subsystem, nsid: u32) -> Result<Vec<u8>, Status> {
    let mut page = Page::new(IDENTIFY_BYTES);
    let Some(namespace) = find(subsystem, nsid)? else { return Ok(page.done()) };
    page.u8(1, SHARED);
    page.u8(2, RESCAP);
    if subsystem.spec().ana_reporting {
        page.u32(4, namespace.ana_group);
    }
    page.u8(8, if namespace.readonly { WRITE_PROTECTED } else { 0 });
    // NSTAT: ready. Whether this path serves it is ANA's to say.
    page.u8(14, 1);
    Ok(page.done())
}
