//! The plain model the engine is compared with: disks, snapshots, and the history of each block
//! anybody ever wrote.
//!
//! ```text
//!  Model ─┬─ ops        every write: when asked for, acknowledged, flushed
//!         ├─ disks ──── name, size, ... (each an `Attr`) and block ─▶ History
//!         └─ snaps ──── label, ..., the histories frozen at its reply, and what was read
//! ```
//!
//! Time is a count of events (`clock`): submissions and answers, in the order the host saw them.

use std::collections::BTreeMap;
use std::rc::Rc;

use lamina_bdev::{DiskId, Name, SnapId, Uuid};

use super::history::{History, SECTORS, Seen, Window};
use super::ops::OpTable;
use super::pattern::OpId;

/// The model's own number of a disk or snapshot, never reused.
pub type Uid = u32;

/// A control attribute: durable when its command is answered; a command cut short leaves a choice.
#[derive(Clone, Debug)]
pub struct Attr<T> {
    /// What it is.
    pub now: T,
    /// What commands in flight at a crash would have made it.
    proposed: Vec<T>,
    /// What a power cut may turn it back into: nothing durable has happened since.
    unsure: Vec<T>,
}

impl<T: Clone + PartialEq + std::fmt::Debug> Attr<T> {
    /// Certainly `now`.
    pub fn new(now: T) -> Attr<T> {
        Attr { now, proposed: Vec::new(), unsure: Vec::new() }
    }

    /// Acknowledged: certainly `now`.
    pub fn set(&mut self, now: T) {
        *self = Attr::new(now);
    }

    /// `now`, but a power cut may still make it `other`.
    pub fn set_unsure(&mut self, now: T, other: T) {
        *self = Attr { now, proposed: Vec::new(), unsure: vec![other] };
    }

    /// A command that would have made it `value` was cut short.
    pub fn propose(&mut self, value: T) {
        self.proposed.push(value);
    }

    /// Something durable has happened: no way back.
    pub fn fix(&mut self) {
        self.unsure.clear();
    }

    /// True if a command cut short would have made it `value`.
    pub fn was_proposed(&self, value: &T) -> bool {
        self.proposed.contains(value)
    }

    /// Recovery shows `found`; `lossy` after a power cut.
    ///
    /// # Errors
    /// What it could have been.
    pub fn settle(&mut self, found: T, lossy: bool) -> Result<(), String> {
        let lawful = found == self.now
            || self.proposed.contains(&found)
            || lossy && self.unsure.contains(&found);
        if !lawful {
            return Err(format!(
                "is {found:?}, can be {:?}, {:?} after commands in flight, {:?} after a power cut",
                self.now, self.proposed, self.unsure
            ));
        }
        let old = std::mem::replace(&mut self.now, found.clone());
        let proposed = std::mem::take(&mut self.proposed);
        if lossy {
            self.unsure.clear();
        } else {
            self.unsure.extend(proposed.into_iter().chain([old]).filter(|v| *v != found));
        }
        Ok(())
    }
}

/// One disk.
pub struct Disk {
    /// Its identity in the store.
    pub uuid: Uuid,
    /// Its number in the store, once known.
    pub id: Option<DiskId>,
    /// Whether it is there.
    pub exists: Attr<bool>,
    /// Its name.
    pub name: Attr<Name>,
    /// Bytes presented.
    pub size: Attr<u64>,
    /// The host's bytes.
    pub blob: Attr<Vec<u8>>,
    /// What remote hosts claim of it.
    pub claims: Attr<Vec<u8>>,
    /// Time of its creation.
    pub created: u64,
    /// The snapshot it is a clone of.
    pub origin: Option<Uid>,
    /// The disk at the root of its clones: they share map nodes.
    pub family: Uid,
    /// What its blocks may hold; blocks not listed are zero.
    pub blocks: BTreeMap<u64, Rc<History>>,
    /// Acknowledged operations that no flush has covered.
    unflushed: Vec<OpId>,
    /// Discards and write-zeroes in flight: operation, bytes from, bytes to.
    zeroing: Vec<(OpId, u64, u64)>,
}

/// One snapshot.
pub struct Snap {
    /// Of which disk.
    pub disk: Uid,
    /// Its identity.
    pub uuid: Uuid,
    /// Its number, once known.
    pub id: Option<SnapId>,
    /// Whether it is there.
    pub exists: Attr<bool>,
    /// Its label.
    pub label: Attr<Name>,
    /// Time of its creation.
    pub time: u64,
    /// Bytes presented.
    pub size: u64,
    /// Asked for, answered.
    pub window: Window,
    /// What its blocks may hold.
    pub blocks: BTreeMap<u64, Rc<History>>,
    /// What was read from it: exact from then on.
    known: BTreeMap<u64, [Option<OpId>; SECTORS]>,
    /// No crash can change what it holds.
    content_durable: bool,
    /// Operations in flight when it was answered.
    open: Vec<OpId>,
}

impl Snap {
    /// The writes that a block shows, if all of it has been read, or nobody ever wrote to it.
    pub fn bytes(&self, block: u64) -> Option<[OpId; SECTORS]> {
        if !self.blocks.contains_key(&block) || block * 4096 >= self.size {
            return Some([0; SECTORS]);
        }
        let known = self.known.get(&block)?;
        known.iter().all(Option::is_some).then(|| known.map(Option::unwrap_or_default))
    }
}

/// A disk or a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The live disk.
    Disk(Uid),
    /// The snapshot.
    Snap(Uid),
}

/// All there is.
#[derive(Default)]
pub struct Model {
    /// Every write.
    pub ops: OpTable,
    /// Events so far.
    pub clock: u64,
    /// Disks, gone ones included until the next recovery.
    pub disks: BTreeMap<Uid, Disk>,
    /// Snapshots, likewise.
    pub snaps: BTreeMap<Uid, Snap>,
    /// A crash since the last recovery may have lost completed writes.
    pub lossy: bool,
    /// Reads let pass because their proof would have taken too long.
    pub unproven: u64,
    uids: Uid,
}

/// A block range's sectors as a mask per block.
pub fn block_masks(offset: u64, len: u64) -> impl Iterator<Item = (u64, u8)> {
    let (first, end) = (offset >> 9, (offset + len) >> 9);
    (first >> 3..end.div_ceil(8)).map(move |block| {
        let low = first.saturating_sub(block << 3).min(8);
        let high = (end - (block << 3)).min(8);
        (block, ((1u16 << high) - (1u16 << low)) as u8)
    })
}

impl Model {
    /// The next event number.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A fresh number.
    pub fn new_uid(&mut self) -> Uid {
        self.uids += 1;
        self.uids
    }

    /// A disk that is there.
    pub fn disk(&self, uid: Uid) -> &Disk {
        &self.disks[&uid]
    }

    /// A disk that is there, to be changed.
    pub fn disk_mut(&mut self, uid: Uid) -> &mut Disk {
        self.disks.get_mut(&uid).expect("the model keeps the disks it names")
    }

    /// A snapshot, to be changed.
    pub fn snap_mut(&mut self, uid: Uid) -> &mut Snap {
        self.snaps.get_mut(&uid).expect("the model keeps the snapshots it names")
    }

    /// Bytes presented by a place.
    pub fn size(&self, place: Place) -> u64 {
        match place {
            Place::Disk(uid) => self.disks[&uid].size.now,
            Place::Snap(uid) => self.snaps[&uid].size,
        }
    }

    /// A disk about to be made (it is not there before [`Attr::set`] says so).
    pub fn plan_disk(&mut self, uid: Uid, disk: (Uuid, Name, u64), origin: Option<Uid>, time: u64) {
        let (uuid, name, size) = disk;
        let parent = origin.and_then(|snap| self.snaps.get(&snap)).map(|snap| snap.disk);
        let family = parent.map_or(uid, |parent| self.disks[&parent].family);
        let disk = Disk {
            uuid,
            id: None,
            exists: Attr::new(false),
            name: Attr::new(name),
            size: Attr::new(size),
            blob: Attr::new(Vec::new()),
            claims: Attr::new(Vec::new()),
            created: time,
            origin,
            family,
            blocks: BTreeMap::new(),
            unflushed: Vec::new(),
            zeroing: Vec::new(),
        };
        self.disks.insert(uid, disk);
    }

    /// Gives a new clone what its snapshot holds.
    pub fn fill_clone(&mut self, uid: Uid) {
        let Some(origin) = self.disk(uid).origin else { return };
        let snap = &self.snaps[&origin];
        let end = snap.size.div_ceil(4096);
        let mut blocks = BTreeMap::new();
        for (block, history) in snap.blocks.range(..end) {
            let known = snap.known.get(block).filter(|_| snap.content_durable);
            let exact = known.and_then(|tags| {
                tags.iter().all(Option::is_some).then(|| tags.map(Option::unwrap_or_default))
            });
            let start = match exact {
                Some(tags) => History::known(tags),
                None => history.inherited(&self.ops, snap.window),
            };
            blocks.insert(*block, Rc::new(start));
        }
        self.disk_mut(uid).blocks = blocks;
    }

    /// A snapshot about to be taken.
    pub fn plan_snap(&mut self, uid: Uid, disk: Uid, uuid: Uuid, label: Name, time: u64) {
        let size = self.disk(disk).size.now;
        let from = self.tick();
        let snap = Snap {
            disk,
            uuid,
            id: None,
            exists: Attr::new(false),
            label: Attr::new(label),
            time,
            size,
            window: Window { from, to: from },
            blocks: BTreeMap::new(),
            known: BTreeMap::new(),
            content_durable: false,
            open: Vec::new(),
        };
        self.snaps.insert(uid, snap);
    }

    /// The snapshot was answered (or the engine died before it could be).
    pub fn freeze(&mut self, uid: Uid) {
        let to = self.tick();
        let disk = self.snaps[&uid].disk;
        let blocks = self.disks[&disk].blocks.clone();
        let is_open = |op: &OpId| self.ops.get(*op).closed > to;
        let mut open: Vec<OpId> =
            blocks.values().flat_map(|history| history.ops()).filter(is_open).collect();
        open.sort_unstable();
        open.dedup();
        let snap = self.snap_mut(uid);
        snap.window.to = to;
        snap.blocks = blocks;
        snap.open = open;
    }

    /// `op` (made by [`OpTable::add`]) goes to bytes of a disk now; `horizon` is the submission
    /// of the oldest read in flight.
    pub fn begin(&mut self, uid: Uid, op: OpId, range: (u64, u64), horizon: u64) {
        let submit = self.tick();
        self.ops.submitted(op, submit);
        let zero = self.ops.get(op).zero;
        let (offset, len) = range;
        let ops = &self.ops;
        let disk = self.disks.get_mut(&uid).expect("writes go to disks that are there");
        if zero {
            disk.zeroing.push((op, offset, offset + len));
            let last = (offset + len).div_ceil(4096);
            for (block, history) in disk.blocks.range_mut(offset >> 12..last) {
                let mask = mask_of(*block, offset, offset + len);
                if mask != 0 {
                    Rc::make_mut(history).push(op, mask);
                }
            }
            return;
        }
        for (block, mask) in block_masks(offset, len) {
            let zeroing = &disk.zeroing;
            let history = disk.blocks.entry(block).or_insert_with(|| {
                let mut fresh = History::default();
                for (op, from, to) in zeroing {
                    let mask = mask_of(block, *from, *to);
                    if mask != 0 {
                        fresh.push(*op, mask);
                    }
                }
                Rc::new(fresh)
            });
            let history = Rc::make_mut(history);
            if history.len() >= 10 {
                history.prune(ops, horizon);
            }
            history.push(op, mask);
        }
    }

    /// `op` on a disk was acknowledged.
    pub fn acked(&mut self, uid: Uid, op: OpId, durable: bool) {
        let at = self.tick();
        self.ops.acked(op, at, durable);
        let disk = self.disk_mut(uid);
        disk.zeroing.retain(|(other, ..)| *other != op);
        if !durable {
            disk.unflushed.push(op);
        }
    }

    /// `op` on a disk ended with an error.
    pub fn failed(&mut self, uid: Uid, op: OpId) {
        let at = self.tick();
        self.ops.failed(op, at);
        self.disk_mut(uid).zeroing.retain(|(other, ..)| *other != op);
    }

    /// A flush of the disk, submitted at event `from`, has succeeded.
    pub fn flushed(&mut self, uid: Uid, from: u64) {
        self.tick();
        let disk = self.disks.get_mut(&uid).expect("flushes go to disks that are there");
        let ops = &mut self.ops;
        disk.unflushed.retain(|op| {
            let covered = ops.get(*op).ack < from;
            if covered {
                ops.made_durable(*op);
            }
            !covered
        });
        for snap in self.snaps.values_mut().filter(|s| s.disk == uid && s.window.to < from) {
            snap.content_durable |= snap.open.iter().all(|op| ops.get(*op).closed < from);
        }
        self.durable_since(uid, from);
    }

    /// Something about the disk, asked for at event `from`, has become durable, and with it
    /// what was there before.
    pub fn durable_since(&mut self, uid: Uid, from: u64) {
        if let Some(disk) = self.disks.get_mut(&uid) {
            disk.exists.fix();
            disk.name.fix();
            disk.size.fix();
            disk.blob.fix();
            disk.claims.fix();
        }
        for snap in self.snaps.values_mut().filter(|s| s.disk == uid && s.window.to < from) {
            snap.exists.fix();
            snap.label.fix();
        }
    }

    /// Checks what a read of `place` returned: one tag a sector from byte `offset` on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_read(
        &mut self,
        place: Place,
        offset: u64,
        tags: &[OpId],
        window: Window,
    ) -> Result<(), String> {
        for (block, mask) in block_masks(offset, tags.len() as u64 * 512) {
            let mut seen = Seen { tags: [0; SECTORS], mask };
            for sector in (0..8).filter(|s| mask & 1 << s != 0) {
                seen.tags[sector] = tags[((block << 3) + sector as u64 - (offset >> 9)) as usize];
            }
            let verdict = match place {
                Place::Disk(uid) => self.check_disk_block(uid, block, seen, window),
                Place::Snap(uid) => self.check_snap_block(uid, block, seen),
            };
            verdict.map_err(|why| format!("block {block} of {place:?}: {why}"))?;
        }
        Ok(())
    }

    fn check_disk_block(
        &mut self,
        uid: Uid,
        block: u64,
        seen: Seen,
        window: Window,
    ) -> Result<(), String> {
        let disk = self.disks.get_mut(&uid).expect("reads come from disks that are there");
        let Some(history) = disk.blocks.get_mut(&block) else {
            return History::default().check(&self.ops, seen, window).map(|_| ());
        };
        let lesson = history.check(&self.ops, seen, window)?;
        self.unproven += u64::from(lesson.unproven);
        if lesson.teaches() {
            Rc::make_mut(history).learn(&lesson, window.to, self.ops.epoch);
        }
        Ok(())
    }

    fn check_snap_block(&mut self, uid: Uid, block: u64, seen: Seen) -> Result<(), String> {
        let snap = self.snaps.get_mut(&uid).expect("reads come from snapshots that are there");
        let fresh = History::default();
        let history = snap.blocks.get(&block).map_or(&fresh, |history| &**history);
        let known = snap.known.get(&block).copied().unwrap_or_default();
        let mut now_known = known;
        for sector in (0..SECTORS).filter(|s| seen.mask & 1 << s != 0) {
            let tag = seen.tags[sector];
            if known[sector].is_some_and(|old| old != tag) {
                return Err(format!(
                    "the snapshot has changed: it read as {known:?} before, now as {:?}",
                    seen.tags
                ));
            }
            now_known[sector] = Some(tag);
        }
        let lesson = history.check(&self.ops, seen, snap.window)?;
        self.unproven += u64::from(lesson.unproven);
        if snap.blocks.contains_key(&block) {
            snap.known.insert(block, now_known);
        }
        Ok(())
    }

    /// The engine has died; `lossy` if completed writes may be gone.
    pub fn crash(&mut self, lossy: bool) {
        let at = self.tick();
        self.ops.crash(at, lossy);
        self.lossy |= lossy;
        for disk in self.disks.values_mut() {
            disk.zeroing.clear();
            if lossy {
                disk.unflushed.clear();
            }
        }
        for snap in self.snaps.values_mut().filter(|_| lossy) {
            if !snap.content_durable {
                snap.known.clear();
                // From here on it is on the medium, whatever it is.
                snap.content_durable = true;
            }
        }
    }

    /// Blocks of a place that were ever written.
    pub fn touched(&self, place: Place) -> Vec<u64> {
        let (blocks, size) = match place {
            Place::Disk(uid) => (&self.disks[&uid].blocks, self.disks[&uid].size.now),
            Place::Snap(uid) => (&self.snaps[&uid].blocks, self.snaps[&uid].size),
        };
        blocks.range(..size.div_ceil(4096)).map(|(block, _)| *block).collect()
    }

    /// How many blocks of a disk may be mapped, if all its blocks have just been read.
    pub fn mapped_bounds(&self, uid: Uid) -> (u64, u64) {
        let disk = &self.disks[&uid];
        let mut bounds = (0, 0);
        for history in disk.blocks.range(..disk.size.now.div_ceil(4096)).map(|(_, h)| h) {
            let (low, high) = history.mapped(&self.ops);
            bounds.0 += u64::from(low);
            bounds.1 += u64::from(high);
        }
        bounds
    }

    /// Disks that are there.
    pub fn live_disks(&self) -> Vec<Uid> {
        self.disks.iter().filter(|(_, d)| d.exists.now).map(|(uid, _)| *uid).collect()
    }

    /// Snapshots that are there.
    pub fn live_snaps(&self) -> Vec<Uid> {
        self.snaps.iter().filter(|(_, s)| s.exists.now).map(|(uid, _)| *uid).collect()
    }

    /// Disks that are there and are clones of `snap`.
    pub fn clones(&self, snap: Uid) -> usize {
        self.disks.values().filter(|d| d.exists.now && d.origin == Some(snap)).count()
    }

    /// Forgets a disk and its snapshots.
    pub fn forget_disk(&mut self, uid: Uid) {
        self.disks.remove(&uid);
        self.snaps.retain(|_, snap| snap.disk != uid);
    }
}

fn mask_of(block: u64, from: u64, to: u64) -> u8 {
    (0..8u64)
        .filter(|sector| {
            let at = (block << 12) + (sector << 9);
            at >= from && at < to
        })
        .fold(0, |mask, sector| mask | 1 << sector)
}
