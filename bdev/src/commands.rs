//! Control commands. Most change the registry of disks at the next freeze and answer when that
//! consistency point has committed, so each is durable and whole without a record of its own; a
//! snapshot goes through the journal instead.

mod resize;

use crate::canary::{Canary, planted};
use crate::control::{Command, Reply, Target};
use crate::disk::write::Admit;
use crate::disk::{Disk, Root, Snap};
use crate::engine::{Engine, EngineState};
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::REAP_NONE;
use crate::format::journal::Record;
use crate::limits::{DISK_BYTES_MAX, DISK_BYTES_MIN};
use crate::slots::{Kind, Stage};
use crate::space::Grant;
use crate::status::Status;
use crate::types::{BLOCK_SIZE, DiskId, Name, SnapId, SnapRef, Uuid};

pub(crate) use resize::Resize;
use resize::ResizeStage;

/// A snapshot on its way through the journal.
pub(crate) struct PendingSnapshot {
    cookie: u64,
    disk: u32,
    uuid: Uuid,
    label: Name,
    time: u64,
    /// Number it got when it took effect.
    id: u64,
    /// Its record is on the way, and a place in the log set aside.
    pub admitted: bool,
}

pub(crate) type Outcome = Result<Reply, Error>;

/// What became of a command at a freeze.
enum Executed {
    /// Answer when the checkpoint has committed.
    AtCommit(Reply),
    /// Answer now.
    Now(Outcome),
    /// Not yet: try at the next freeze.
    Later,
}

pub(crate) fn error(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, message)
}

impl Engine {
    pub(crate) fn take_command(&mut self, cookie: u64, command: Command) {
        if self.state != EngineState::Ready {
            let refused = error(ErrorKind::Busy, "the store is still being opened");
            self.replies.push_back((cookie, Err(refused)));
            return;
        }
        match command {
            Command::Attach(target) => self.attach(cookie, target),
            Command::Detach(handle) => {
                let outcome = self.detach(handle);
                self.replies.push_back((cookie, outcome));
            }
            Command::Snapshot { disk, uuid, label, time } => {
                self.start_snapshot(cookie, disk, uuid, label, time);
            }
            Command::Resize(disk, size) => self.start_resize(cookie, disk, size),
            Command::Diff(query) => self.start_diff(cookie, query),
            Command::Hold => self.start_hold(cookie),
            Command::Unhold => self.end_hold(cookie),
            _ if self.failed.is_some() => self.refuse(cookie),
            other => self.wait_for_point(cookie, other),
        }
    }

    pub(crate) fn refuse(&mut self, cookie: u64) {
        let why = self.failed.clone().unwrap_or_default();
        self.replies.push_back((cookie, Err(error(ErrorKind::Io, why))));
    }

    /// The shard has failed: nothing will commit any more.
    pub(crate) fn fail_commands(&mut self) {
        while let Some((cookie, _)) = self.commands.pop_front() {
            self.refuse(cookie);
        }
        let early = std::mem::take(&mut self.checkpoint.replies);
        let late = std::mem::take(&mut self.checkpoint.late_replies);
        for (cookie, _) in early.into_iter().chain(late) {
            self.refuse(cookie);
        }
        for at in 0..self.resizes.len() {
            if std::mem::take(&mut self.resizes[at].active)
                && self.resizes[at].stage == ResizeStage::Due
            {
                self.refuse(self.resizes[at].cookie);
            }
        }
    }

    pub(crate) fn commands_want_checkpoint(&self) -> bool {
        let waiting = |c: &Command| match c {
            // These wait for a snapshot to settle as well; `settled` says when that happened.
            Command::Attach(Target::Snapshot(snap)) => self.unsettled(*snap) == Some(true),
            _ => true,
        };
        self.commands.iter().any(|(_, c)| waiting(c))
            || self.resizes.iter().any(|r| r.active && r.stage == ResizeStage::Due)
    }

    /// After a checkpoint: commands that waited for a snapshot's tree may go on.
    pub(crate) fn retry_commands(&mut self) {
        self.checkpoint.settled = false;
        for _ in 0..self.commands.len() {
            let (cookie, command) = self.commands.pop_front().expect("counted");
            match command {
                Command::Attach(target) => self.attach(cookie, target),
                other => self.commands.push_back((cookie, other)),
            }
        }
    }

    /// Some(true): the snapshot's tree is not written. Some(false): it is. `None`: no such
    /// snapshot.
    fn unsettled(&self, at: SnapRef) -> Option<bool> {
        let disk = self.disks.get(at.disk.0 as usize)?.as_ref().filter(|d| !d.deleting)?;
        let snap = disk.snap(at.snap.0).filter(|s| !s.dying)?;
        Some(!snap.written)
    }

    /// The snapshot's tree, once it is written and in-place writes older than it are done.
    pub(crate) fn settled_root(&self, at: SnapRef) -> Result<Option<Root>, Error> {
        let disk = self.live(at.disk)?;
        let missing = || {
            let text = format!("disk {} has no snapshot number {}", disk.name, at.snap.0);
            error(ErrorKind::NotFound, text)
        };
        let snap = disk.snap(at.snap.0).filter(|s| !s.dying).ok_or_else(missing)?;
        let drained = snap.drain == 0 || planted(Canary::DrainForgotten);
        Ok(snap.root.filter(|_| snap.written && drained))
    }

    /// True while writes older than the snapshot may still change its blocks.
    fn draining(&self, at: SnapRef) -> bool {
        let disk = self.live(at.disk);
        disk.is_ok_and(|d| d.snap(at.snap.0).is_some_and(|s| s.drain > 0))
    }

    pub(crate) fn live(&self, id: DiskId) -> Result<&Disk, Error> {
        let found = self.disks.get(id.0 as usize).and_then(|d| d.as_deref());
        found
            .filter(|d| !d.deleting)
            .ok_or_else(|| error(ErrorKind::NotFound, format!("there is no disk number {}", id.0)))
    }

    pub(crate) fn live_mut(&mut self, id: DiskId) -> Result<&mut Disk, Error> {
        self.live(id)?;
        Ok(self.disks[id.0 as usize].as_mut().expect("just found"))
    }

    fn start_snapshot(&mut self, cookie: u64, id: DiskId, uuid: Uuid, label: Name, time: u64) {
        let checked = self.live(id).and_then(|disk| {
            disk.whole(None)?;
            let taken = !label.is_empty()
                && (disk.snaps.iter().any(|s| !s.dying && s.label == label)
                    || self.pending_snapshots.iter().any(|p| p.disk == id.0 && p.label == label));
            if taken {
                let text = format!("disk {} has a snapshot labelled {label} already", disk.name);
                return Err(error(ErrorKind::Exists, text));
            }
            Ok(())
        });
        if let Err(refused) = checked {
            self.replies.push_back((cookie, Err(refused)));
            return;
        }
        if self.failed.is_some() {
            return self.refuse(cookie);
        }
        let Some(index) = self.slots.take(false) else {
            let text = "too many snapshots are being taken at once; try again";
            self.replies.push_back((cookie, Err(error(ErrorKind::Busy, text))));
            return;
        };
        self.pending_snapshots.push(PendingSnapshot {
            cookie,
            disk: id.0,
            uuid,
            label,
            time,
            id: 0,
            admitted: false,
        });
        let op = &mut self.slots[index];
        op.kind = Kind::Snapshot;
        op.cookie = cookie;
        op.disk = id.0;
        op.tree = id.0;
        self.advance(index);
    }

    fn pending_snapshot(&self, cookie: u64) -> usize {
        let found = self.pending_snapshots.iter().position(|p| p.cookie == cookie);
        found.expect("a snapshot in the pipeline is pending")
    }

    pub(crate) fn advance_snapshot(&mut self, index: u32) {
        if self.failed.is_some() {
            return self.finish(index, Status::IoError);
        }
        if !self.journal_has_room() {
            return self.wait_for_journal(index);
        }
        // Its place in the log must be sure before it is promised.
        let short = self.space.free < self.reserve_of_overwrites();
        match if short { Grant::Full } else { self.secure_pairs(1) } {
            Grant::Run(..) => {}
            Grant::Wait => return self.park(index),
            Grant::Full => {
                return match self.no_space(index, false) {
                    Admit::Fail(status) => self.finish(index, status),
                    Admit::Park | Admit::Go => self.park(index),
                };
            }
        }
        self.journal.reserve();
        let at = self.pending_snapshot(self.slots[index].cookie);
        self.pending_snapshots[at].admitted = true;
        let p = &self.pending_snapshots[at];
        // Its number is settled when it takes effect; the journal's order is the order of numbers,
        // and replay counts again.
        let (disk, uuid, time, label) = (p.disk, p.uuid, p.time, p.label);
        let record = Record::Snapshot { disk, snap: 0, uuid, time, label };
        self.slots[index].stage = Stage::Journal;
        self.journal_append(index, 1, |_| record);
    }

    /// The record is written: this is the instant the snapshot holds.
    pub(crate) fn apply_snapshot(&mut self, index: u32) {
        let at = self.pending_snapshot(self.slots[index].cookie);
        let p = &self.pending_snapshots[at];
        let (disk, uuid, label, time) = (p.disk, p.uuid, p.label, p.time);
        let id = self.enter_snapshot(disk, uuid, label, time);
        self.pending_snapshots[at].id = id;
        self.pending_snapshots[at].admitted = false;
        self.stats.snapshots += 1;
        // I/O has gone on already; only the answer waits until the record is durable.
        self.start_flush(index);
    }

    /// Ends the disk's epoch with a snapshot.
    pub(crate) fn enter_snapshot(&mut self, disk: u32, uuid: Uuid, label: Name, time: u64) -> u64 {
        let disk = self.disks[disk as usize].as_mut().expect("a disk in the pipeline exists");
        let id = disk.epoch;
        disk.snaps.push(Snap {
            id,
            uuid,
            label,
            time,
            size: disk.record_size, // a shrink counts from its commit on: see `Disk::record_size`
            mapped: disk.mapped,
            root: None,
            written: false,
            drain: disk.in_place,
            dying: false,
            ghost: false,
            holed: false,
            attached: 0,
            clones: 0,
            place: None,
        });
        disk.epoch += 1;
        disk.dirty = true;
        disk.refresh_newest();
        id
    }

    pub(crate) fn snapshot_done(&mut self, cookie: u64, status: Status) {
        let at = self.pending_snapshot(cookie);
        let pending = self.pending_snapshots.swap_remove(at);
        let outcome = match status {
            Status::Ok => Ok(Reply::Snapshot(SnapId(pending.id))),
            Status::NoSpace => {
                let text = "the store is too full for a snapshot: delete a disk or snapshot, or discard, first";
                Err(error(ErrorKind::NoSpace, text))
            }
            _ => Err(error(ErrorKind::Io, self.failed.clone().unwrap_or_default())),
        };
        self.replies.push_back((cookie, outcome));
    }

    /// At a freeze: registry changes that the checkpoint will commit.
    pub(crate) fn execute_commands(&mut self) {
        for at in 0..self.resizes.len() {
            let resize = &self.resizes[at];
            if !resize.active || resize.stage != ResizeStage::Due {
                continue;
            }
            let (cookie, disk, size) = (resize.cookie, resize.disk, resize.size);
            self.resizes[at].active = false;
            let disk = self.disks[disk as usize].as_mut().expect("a disk being resized exists");
            disk.size = size;
            disk.record_size = size;
            disk.resizing = false;
            disk.dirty = true;
            self.checkpoint.replies.push((cookie, Reply::Unit));
        }
        for _ in 0..self.commands.len() {
            let (cookie, command) = self.commands.pop_front().expect("counted");
            match self.execute(&command) {
                Executed::AtCommit(reply) if matches!(command, Command::Checkpoint) => {
                    self.checkpoint.late_replies.push((cookie, reply));
                }
                Executed::AtCommit(reply) => self.checkpoint.replies.push((cookie, reply)),
                Executed::Now(outcome) => self.replies.push_back((cookie, outcome)),
                Executed::Later => self.commands.push_back((cookie, command)),
            }
        }
    }

    fn execute(&mut self, command: &Command) -> Executed {
        let outcome = match command {
            Command::CreateDisk { name, uuid, size, from, time } => {
                match self.create_disk(*name, *uuid, *size, *from, *time) {
                    Ok(None) => return Executed::Later,
                    Ok(Some(id)) => Ok(Reply::Disk(id)),
                    Err(refused) => Err(refused),
                }
            }
            Command::DeleteDisk(id) => self.delete_disk(*id),
            Command::DeleteSnapshot(at) => {
                if self.draining(*at) {
                    return Executed::Later;
                }
                self.delete_snapshot(*at)
            }
            Command::LabelSnapshot(at, label) => self.label_snapshot(*at, *label),
            Command::RenameDisk(id, name) => self.rename_disk(*id, *name),
            Command::SetBlob(id, blob) => self.set_blob(*id, blob),
            Command::SetClaims(id, claims) => self.set_claims(*id, claims),
            Command::Checkpoint => Ok(Reply::Unit),
            Command::Attach(_) => return Executed::Later,
            Command::Snapshot { .. }
            | Command::Detach(_)
            | Command::Resize(..)
            | Command::Diff(_)
            | Command::Hold
            | Command::Unhold => {
                unreachable!("these are not queued")
            }
        };
        match outcome {
            Ok(reply) => Executed::AtCommit(reply),
            Err(refused) => Executed::Now(Err(refused)),
        }
    }

    fn create_disk(
        &mut self,
        name: Name,
        uuid: Uuid,
        size: u64,
        from: Option<SnapRef>,
        time: u64,
    ) -> Result<Option<DiskId>, Error> {
        if name.is_empty() {
            return Err(error(ErrorKind::Invalid, "a disk needs a name"));
        }
        let mut taken = self.disks.iter().flatten().filter(|d| !d.deleting);
        if taken.clone().any(|d| d.name == name) {
            let text = format!("a disk named {name} exists already: choose another name");
            return Err(error(ErrorKind::Exists, text));
        }
        if taken.any(|d| d.uuid == uuid) {
            let text = format!("a disk with UUID {uuid} exists already");
            return Err(error(ErrorKind::Exists, text));
        }
        let root = match from {
            None => None,
            Some(at) => match self.settled_root(at)? {
                None => return Ok(None),
                Some(root) => {
                    self.live(at.disk)?.whole(Some(at.snap.0))?;
                    Some((at, root))
                }
            },
        };
        let snap = from.and_then(|at| self.live(at.disk).ok()?.snap(at.snap.0).cloned());
        let least = snap.as_ref().map_or(0, |s| s.size);
        let size = if size == 0 && least > 0 { least } else { checked_size(size)? };
        if size < least {
            let text = format!("a clone cannot be smaller than its snapshot ({least} bytes)");
            return Err(error(ErrorKind::Invalid, text));
        }
        if self.space.free < self.reserve_of_overwrites() {
            let text = "the store is full: delete a disk or snapshot, or discard, first";
            return Err(error(ErrorKind::NoSpace, text));
        }
        let unused = |(slot, d): (usize, &Option<Box<Disk>>)| {
            (d.is_none() && !self.lost.contains(&(slot as u32))).then_some(slot)
        };
        let free = self.disks.iter().enumerate().find_map(unused);
        let slot = free.unwrap_or(self.disks.len());
        if slot as u64 >= self.record_slots() {
            let text = format!("all {slot} disk records are in use: delete a disk first");
            return Err(error(ErrorKind::NoSpace, text));
        }
        let mut disk = Box::new(Disk::new(name, uuid, size, time));
        disk.born = self.superblock.generation + 1;
        if let (Some((at, root)), Some(snap)) = (root, snap) {
            disk.root = root;
            disk.mapped = snap.mapped;
            disk.origin = Some((at.disk.0, at.snap.0));
            self.live_mut(at.disk)?.snap_mut(at.snap.0).expect("settled").clones += 1;
        }
        if let Some(at) = self.free_records.iter().position(|&(s, _)| s == slot as u32) {
            // The slot's committed record says it is free: keep that copy until this one commits.
            disk.side = self.free_records.swap_remove(at).1;
            disk.fresh = false;
        }
        if slot == self.disks.len() {
            self.disks.push(Some(disk));
        } else {
            self.disks[slot] = Some(disk);
        }
        Ok(Some(DiskId(slot as u32)))
    }

    fn delete_disk(&mut self, id: DiskId) -> Outcome {
        let disk = self.live(id)?;
        let name = disk.name;
        let in_use = disk.attached > 0 || disk.snaps.iter().any(|s| s.attached > 0);
        let pending = self.pending_snapshots.iter().any(|p| p.disk == id.0);
        if in_use || disk.resizing || pending {
            let text = format!("disk {name} is in use: detach its exports first");
            return Err(error(ErrorKind::Busy, text));
        }
        let disk = self.live_mut(id)?;
        disk.deleting = true;
        disk.dirty = true;
        self.unsettle_clones(id.0, |_| true);
        self.count_reapable();
        Ok(Reply::Unit)
    }

    fn delete_snapshot(&mut self, at: SnapRef) -> Outcome {
        self.settled_root(at)?;
        let disk = self.live(at.disk)?;
        let snap = disk.snap(at.snap.0).expect("looked up");
        if snap.attached > 0 {
            let what = format!("snapshot {} of disk {}", snap_name(snap), disk.name);
            return Err(error(ErrorKind::Busy, format!("{what} is in use: detach it first")));
        }
        let disk = self.live_mut(at.disk)?;
        disk.dirty = true;
        let snap = disk.snap_mut(at.snap.0).expect("looked up");
        snap.dying = true;
        let snap_clones = snap.clones;
        if let Some((block, _)) = snap.place {
            disk.log[block as usize].dirty = true;
        }
        assert!(disk.reaping == REAP_NONE || !disk.deleting);
        if snap_clones > 0 {
            self.unsettle_clones(at.disk.0, |snap| snap == at.snap.0);
        }
        self.count_reapable();
        Ok(Reply::Unit)
    }

    fn label_snapshot(&mut self, at: SnapRef, label: Name) -> Outcome {
        self.settled_root(at)?;
        let disk = self.live_mut(at.disk)?;
        let others = disk.snaps.iter().filter(|s| !s.dying && s.id != at.snap.0);
        if !label.is_empty() && others.clone().any(|s| s.label == label) {
            let text = format!("disk {} has a snapshot labelled {label} already", disk.name);
            return Err(error(ErrorKind::Exists, text));
        }
        let snap = disk.snap_mut(at.snap.0).expect("looked up");
        snap.label = label;
        if let Some((block, _)) = snap.place {
            disk.log[block as usize].dirty = true;
        }
        Ok(Reply::Unit)
    }

    fn rename_disk(&mut self, id: DiskId, name: Name) -> Outcome {
        let taken = self.disks.iter().enumerate().any(|(slot, d)| {
            slot as u32 != id.0 && d.as_ref().is_some_and(|d| !d.deleting && d.name == name)
        });
        if taken || name.is_empty() {
            let text = format!("a disk named {name} exists already: choose another name");
            return Err(error(ErrorKind::Exists, text));
        }
        let disk = self.live_mut(id)?;
        disk.name = name;
        disk.dirty = true;
        Ok(Reply::Unit)
    }
}

pub(crate) fn snap_name(snap: &Snap) -> String {
    if snap.label.is_empty() { snap.id.to_string() } else { snap.label.to_string() }
}

/// A lawful disk size: rounded up to whole blocks, 1 MiB to 256 TiB.
fn checked_size(size: u64) -> Result<u64, Error> {
    let rounded = size.checked_next_multiple_of(BLOCK_SIZE as u64).unwrap_or(u64::MAX);
    if !(DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&rounded) {
        let text = format!("a disk has 1 MiB to 256 TiB, not {size} bytes");
        return Err(error(ErrorKind::Invalid, text));
    }
    Ok(rounded)
}
