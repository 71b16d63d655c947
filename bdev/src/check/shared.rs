//! Second walk: data blocks that several leaves hold. That is lawful only at the same place of
//! disks that descend from each other, and if at most one of the leaves may overwrite it in place.
//!
//! The table of places is bounded: where many blocks are shared, the walk goes over a window of
//! blocks at a time.

use super::CheckPhase;
use super::cuts::Claim;
use super::report::{FindingKind, Severity};
use super::system::Shard;
use super::tree::{Opened, Place, Version};
use crate::error::Error;
use crate::format::node::{self, NodeRef};
use std::collections::BTreeMap;

/// Shared blocks whose places are kept at a time (some 48 bytes each).
const WINDOW_BLOCKS: u64 = 1 << 20;

/// Where a shared block was met first.
struct Held {
    claim: Claim,
    /// A leaf that was met holds it as its own, not as an older version's.
    owned: bool,
    reported: bool,
}

impl Shard<'_> {
    pub fn check_shared(&mut self) -> Result<(), Error> {
        let count = self.shared.count();
        self.report.counts.shared_blocks += count;
        if count == 0 && self.contested.is_empty() {
            return Ok(());
        }
        let versions = self.versions();
        let blocks = self.geometry().region_blocks;
        let mut from = 0;
        while from < blocks {
            let to = self.shared.window_end(from, WINDOW_BLOCKS);
            let mut held = BTreeMap::new();
            self.nodes.values_mut().for_each(|seen| seen.again = false);
            for v in &versions {
                self.tell(CheckPhase::Shared, from, blocks)?;
                let top = Place { level: v.root_level, index: 0 };
                self.compare(v, top, v.root, from..to, &mut held)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Goes through the subtree of `node` as the mark did; what was wrong has been said then.
    fn compare(
        &mut self,
        v: &Version,
        place: Place,
        node: NodeRef,
        window: std::ops::Range<u64>,
        held: &mut BTreeMap<u64, Held>,
    ) -> Result<(), Error> {
        let address = node.address;
        let Some(seen) = self.nodes.get_mut(&address).filter(|seen| !seen.is_log()) else {
            return Ok(());
        };
        if std::mem::replace(&mut seen.again, true) {
            return Ok(());
        }
        let Ok(opened) = self.open_node(place, node) else { return Ok(()) };
        if place.level == 0 {
            self.compare_leaf(v, place, address, &opened, window, held);
            return Ok(());
        }
        for (at, link) in opened.links.iter().enumerate() {
            let (child, node) = (place.child(at), NodeRef::of_link(*link));
            if !matches!(node.address, 0 | node::LOST) && !v.taken_apart(child) {
                self.compare(v, child, node, window.clone(), held)?;
            }
        }
        Ok(())
    }

    fn compare_leaf(
        &mut self,
        v: &Version,
        place: Place,
        leaf: u64,
        opened: &Opened,
        window: std::ops::Range<u64>,
        held: &mut BTreeMap<u64, Held>,
    ) {
        for (at, &link) in opened.links.iter().enumerate() {
            let block = link & node::ADDRESS;
            if block == 0 || !window.contains(&block) {
                continue;
            }
            let vba = place.first_block() + at as u64;
            if self.contested.contains(&block)
                && self.nodes.get(&block).is_some_and(|seen| !seen.is_broken())
            {
                self.lose_data(v, leaf, at, vba, block, "it holds metadata");
                continue;
            }
            if !self.shared.has(block) {
                continue;
            }
            let owned = link & node::READ_ONLY == 0;
            let claim = Claim::new(v, vba, &opened.links, at);
            let new = Held { claim, owned: false, reported: false };
            let first = held.entry(block).or_insert(new);
            let other = first.claim;
            let why = if other.vba != vba {
                format!("is also disk block {} of disk", other.vba)
            } else if other.family != v.family {
                "is also held by an unrelated disk,".to_string()
            } else if owned && first.owned {
                "may be overwritten in place, but so it may by disk".to_string()
            } else {
                first.owned |= owned;
                first.claim.beside = other.beside.max(claim.beside);
                continue;
            };
            let reported = std::mem::replace(&mut first.reported, true);
            if claim.same(&other) {
                self.share(v, leaf, at, vba);
            } else {
                self.contend(block, other, claim);
            }
            if reported {
                continue;
            }
            let other = self.disk_name(other.slot);
            let text = format!(
                "disk block {vba} (leaf at block {leaf}) is at block {block}, which {why} {other}"
            );
            self.find_in(Severity::Error, FindingKind::Shared, v, block, &text);
        }
    }
}
