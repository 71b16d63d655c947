//! Lists of changed blocks: asking for them page by page, and judging each page by the model.
//!
//! ```text
//!  older snapshot: blocks ─▶ histories ─┐   bytes differ           ─▶ must be listed
//!                                       ├─▶ never written          ─▶ must not be
//!  newer snapshot: blocks ─▶ histories ─┘   the same writes, done  ─▶ must not be
//! ```
//!
//! What a snapshot's bytes are is known once they have been read; the last phase lists after it has
//! read everything, so that there all blocks are judged.

use std::collections::BTreeSet;

use lamina_bdev::{ChangeKind, ChangedExtent, Changes, Command, DiffQuery, SnapRef};

use super::commands::Intent;
use super::history::SECTORS;
use super::model::{Model, Place, Snap, Uid};
use super::pattern::OpId;
use super::world::World;

/// Bytes in a block.
const BLOCK: u64 = 4096;

/// One page of a list that was asked for.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The newer snapshot and its attachment.
    view: (Uid, u32),
    /// The older one.
    base: Option<(Uid, u32)>,
    query: DiffQuery,
    /// Blocks on the pages before, if the first of them began at 0.
    listed: Option<u64>,
    /// The pages that follow are wanted too.
    whole: bool,
}

impl Listing {
    /// The attachments in use.
    fn keys(&self) -> impl Iterator<Item = u32> {
        [Some(self.view.1), self.base.map(|(_, key)| key)].into_iter().flatten()
    }

    /// The snapshots it speaks of.
    pub fn snaps(&self) -> impl Iterator<Item = Uid> {
        [Some(self.view.0), self.base.map(|(uid, _)| uid)].into_iter().flatten()
    }
}

impl World {
    /// Asks for the changed blocks of one attached snapshot, maybe since another.
    pub(super) fn draw_listing(&mut self) {
        let open: Vec<(Uid, u32)> = self.open_snaps();
        if open.is_empty() {
            return;
        }
        let view = self.rng.pick(&open);
        let base = self.rng.chance(700).then(|| self.rng.pick(&open));
        let extents_max = self.rng.pick(&[1, 2, 5, 1000, u32::MAX]);
        let reads_max = self.rng.pick(&[0, 1, 2, 8, u32::MAX]);
        let size = self.model.size(Place::Snap(view.0));
        let offset = if self.rng.chance(500) { 0 } else { self.rng.below(size + size / 8) };
        let whole = self.rng.chance(500);
        self.list(view, base, (offset, extents_max, reads_max), whole);
    }

    /// Attached snapshots that are to stay attached, with the keys of their attachments.
    fn open_snaps(&self) -> Vec<(Uid, u32)> {
        let open = self.attachments.iter().filter(|(_, a)| !a.closing);
        let snaps = open.filter_map(|(key, a)| match a.place {
            Place::Snap(uid) => Some((uid, *key)),
            Place::Disk(_) => None,
        });
        snaps.collect()
    }

    /// All changed blocks of `view` since `base`; both are attached.
    pub(super) fn list_all(&mut self, view: Uid, base: Option<Uid>) {
        let open = self.open_snaps();
        let find = |uid: Uid| open.iter().find(|(open, _)| *open == uid).copied();
        let limits = (0, self.rng.pick(&[3, 100, u32::MAX]), self.rng.pick(&[2, u32::MAX]));
        if let Some(view) = find(view) {
            self.list(view, base.and_then(find), limits, true);
        }
    }

    fn list(
        &mut self,
        view: (Uid, u32),
        base: Option<(Uid, u32)>,
        (offset, extents_max, reads_max): (u64, u32, u32),
        whole: bool,
    ) {
        let handle = |key: u32| self.attachments[&key].handle;
        let (newer, older) = (handle(view.1), base.map(|(_, key)| handle(key)));
        let query = DiffQuery { base: older, view: newer, offset, extents_max, reads_max };
        let listed = (offset < BLOCK).then_some(0);
        self.ask(Listing { view, base, query, listed, whole });
    }

    fn ask(&mut self, listing: Listing) {
        for key in listing.keys() {
            self.attachments.get_mut(&key).expect("it is in use").in_flight += 1;
        }
        self.give(Command::Diff(listing.query), Intent::List(Box::new(listing)), None, vec![]);
    }

    /// The attachments of a list are not in use any more.
    pub(super) fn listing_over(&mut self, listing: &Listing) {
        for key in listing.keys() {
            self.attachments.get_mut(&key).expect("it was in use").in_flight -= 1;
        }
    }

    /// Takes one page.
    pub(super) fn take_page(&mut self, listing: &Listing, page: &Changes) -> Result<(), String> {
        self.listing_over(listing);
        let (view, base) = (listing.view.0, listing.base.map(|(uid, _)| uid));
        if page.extents.len() > listing.query.extents_max.max(1) as usize {
            return Err(format!("{} extents on one page", page.extents.len()));
        }
        let size = self.model.size(Place::Snap(view));
        let from = listing.query.offset / BLOCK * BLOCK;
        let end = page.next.unwrap_or(size.max(from));
        let moved = end > from || page.next.is_none();
        if !moved || !end.is_multiple_of(BLOCK) || page.next.is_some_and(|next| next > size) {
            return Err(format!("a page from {from:#x} ends at {end:#x} of {size:#x}"));
        }
        let hash = page.extents.iter().fold(0u64, |sum, e| {
            super::rng::mix(sum ^ e.offset ^ e.length << 1 ^ u64::from(e.kind == ChangeKind::Hole))
        });
        self.trace.note("changes", [hash, end, 0]);
        if listing.snaps().any(|uid| self.hurt(uid)) {
            // What is lost is listed, or not.
            return Ok(());
        }
        let count = self.model.check_changes(view, base, (from, end), &page.extents)?;
        let listed = listing.listed.map(|listed| listed + count);
        match page.next {
            Some(offset) if listing.whole => {
                // Ever longer, so that the list of a large disk ends.
                let longer = |max: u32| max.saturating_mul(2).saturating_add(1);
                let (extents_max, reads_max) =
                    (longer(listing.query.extents_max), longer(listing.query.reads_max));
                let query = DiffQuery { offset, extents_max, reads_max, ..listing.query };
                self.ask(Listing { query, listed, ..listing.clone() });
                Ok(())
            }
            Some(_) => Ok(()),
            None if base.is_some() => Ok(()),
            None => listed.map_or(Ok(()), |listed| self.check_count(view, listed)),
        }
    }

    /// True if damage was done to the family of a snapshot.
    pub(super) fn hurt(&self, snap: Uid) -> bool {
        self.damage.hurts(self.model.disk(self.model.snaps[&snap].disk).family)
    }

    /// A whole list without a base has as many blocks as the snapshot is said to map.
    fn check_count(&self, view: Uid, listed: u64) -> Result<(), String> {
        let snap = &self.model.snaps[&view];
        let disk = self.model.disk(snap.disk).id.expect("it is there");
        let at = SnapRef { disk, snap: snap.id.expect("it is there") };
        let info = self.engine().snapshots(disk).into_iter().find(|info| info.snap == at);
        let due = info.map(|info| info.mapped_blocks);
        if due == Some(listed) {
            return Ok(());
        }
        Err(format!("{listed} blocks are listed, the snapshot maps {due:?}"))
    }
}

impl Model {
    /// Checks the changed blocks listed of bytes `from..end`; returns how many blocks they are.
    fn check_changes(
        &self,
        view: Uid,
        base: Option<Uid>,
        (from, end): (u64, u64),
        extents: &[ChangedExtent],
    ) -> Result<u64, String> {
        let view = &self.snaps[&view];
        let base = base.map(|uid| &self.snaps[&uid]);
        let mut at = from;
        let mut last = None;
        for e in extents {
            let whole = e.offset.is_multiple_of(BLOCK) && e.length.is_multiple_of(BLOCK);
            let apart = last != Some((e.offset, e.kind));
            let inside = e.offset >= at && e.length > 0 && e.offset + e.length <= end;
            if !whole || !apart || !inside {
                return Err(format!("{e:x?} is no extent of {from:#x}..{end:#x} after {at:#x}"));
            }
            at = e.offset + e.length;
            last = Some((at, e.kind));
        }
        let blocks = from / BLOCK..end / BLOCK;
        let ours = view.blocks.range(blocks.clone()).map(|(block, _)| *block);
        let theirs = base.into_iter().flat_map(|base| base.blocks.range(blocks.clone()));
        let all: BTreeSet<u64> = ours.chain(theirs.map(|(block, _)| *block)).collect();
        for e in extents {
            let (first, past) = (e.offset / BLOCK, (e.offset + e.length) / BLOCK);
            if all.range(first..past).count() as u64 != past - first {
                return Err(format!("{e:x?} has blocks that nobody ever wrote"));
            }
        }
        let mut extents = extents.iter().peekable();
        let mut count = 0;
        for block in all {
            let offset = block * BLOCK;
            while extents.next_if(|e| e.offset + e.length <= offset).is_some() {}
            let kind = extents.peek().filter(|e| e.offset <= offset).map(|e| e.kind);
            count += u64::from(kind.is_some());
            self.check_change(view, base, block, kind)
                .map_err(|why| format!("block {block} is listed as {kind:?}: {why}"))?;
        }
        Ok(count)
    }

    fn check_change(
        &self,
        view: &Snap,
        base: Option<&Snap>,
        block: u64,
        kind: Option<ChangeKind>,
    ) -> Result<(), String> {
        let now = view.bytes(block);
        let before = base.map_or(Some([0; SECTORS]), |base| base.bytes(block));
        match (now, before, kind) {
            (Some(now), Some(before), None) if now != before => {
                return Err(format!("it was {before:?} and is {now:?}"));
            }
            (Some(now), _, Some(ChangeKind::Hole)) if now != [0; SECTORS] => {
                return Err(format!("it is {now:?}"));
            }
            _ => {}
        }
        match base.filter(|base| kind.is_some() && self.alike(view, base, block)) {
            Some(_) => {
                let ops: Vec<OpId> = view.blocks[&block].ops().collect();
                Err(format!("both are what writes {ops:?} made it"))
            }
            None => Ok(()),
        }
    }

    /// True if the same writes made the block what it is in both, and all were done before.
    fn alike(&self, a: &Snap, b: &Snap, block: u64) -> bool {
        let (Some(x), Some(y)) = (a.blocks.get(&block), b.blocks.get(&block)) else { return false };
        let first = a.window.from.min(b.window.from);
        let shown = a.size.min(b.size) > block * BLOCK;
        shown && x.ops().eq(y.ops()) && x.settled(&self.ops, first) && y.settled(&self.ops, first)
    }
}
