//! The ANA log page (Base 2.1, 5.1.12.1.13): states of the groups as one listener has them.
//!
//! ```text
//!  0         8      10     16
//!  | CHGCNT | groups |      | group: id, namespaces, CHGCNT, state (32 bytes) | nsid ... | ...
//! ```

use std::collections::BTreeMap;

use super::page::Page;
use crate::subsystem::{AnaState, Listener, Subsystem};

const HEADER_BYTES: usize = 16;
const GROUP_BYTES: usize = 32;

/// The page; without the numbers of namespaces if only groups are asked for (RGO). Zeros follow up
/// to the size it may have, since hosts read that much, in parts.
pub(super) fn page(
    subsystem: &Subsystem,
    listener: Option<&Listener>,
    groups_only: bool,
) -> Vec<u8> {
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for namespace in subsystem.namespaces() {
        groups.entry(namespace.ana_group).or_default().push(namespace.nsid);
    }
    let changes = listener.map_or(0, |l| l.changes);
    let spec = subsystem.spec();
    let most = (spec.ana_groups() as usize, spec.max_namespaces as usize);
    let mut page = Page::new(HEADER_BYTES + GROUP_BYTES * most.0 + 4 * most.1);
    page.u64(0, changes);
    page.u16(8, groups.len() as u16);
    let mut at = HEADER_BYTES;
    for (group, nsids) in groups {
        let state = listener.map_or(AnaState::Inaccessible, |l| l.state(group));
        page.u32(at, group);
        page.u64(at + 8, changes);
        page.u8(at + 16, state as u8);
        if !groups_only {
            page.u32(at + 4, nsids.len() as u32);
            for (index, nsid) in nsids.iter().enumerate() {
                page.u32(at + GROUP_BYTES + 4 * index, *nsid);
            }
            at += 4 * nsids.len();
        }
        at += GROUP_BYTES;
    }
    page.done()
}
