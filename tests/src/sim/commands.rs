//! Control commands: drawing them, and knowing their answer beforehand (`replies.rs` takes it).
//!
//! A command locks the disks it speaks of, shared or alone, against other commands in flight, so
//! that its lawful answer is known when it is given. Requests are never locked out.

use lamina_bdev::limits::CLAIMS_LEN_MAX;
use lamina_bdev::{Command, DiskId, ErrorKind, Handle, Name, SnapId, SnapRef, Target, Uuid};

use super::changed::Listing;
use super::model::{Place, Uid};
use super::ops::NEVER;
use super::pattern::OpId;
use super::rng::mix;
use super::world::{Attachment, World};

/// Kinds of random commands, in the order of `Plan::command_weights`.
pub const KINDS: [&str; 14] = [
    "create",
    "clone",
    "snapshot",
    "delete-snapshot",
    "delete-disk",
    "resize",
    "label",
    "rename",
    "attach-snapshot",
    "blob",
    "checkpoint",
    "refused",
    "changed",
    "hold",
];

/// Most disks and snapshots that random commands make.
const DISKS_MAX: usize = 9;
const SNAPS_MAX: usize = 24;

/// What a command is meant to do to the model.
#[derive(Clone, Debug)]
pub enum Intent {
    /// A new disk, maybe a clone.
    Create(Uid),
    /// A disk and its snapshots go.
    Delete(Uid),
    /// Another size; the zeroing operation, if it shrinks.
    Resize(Uid, u64, Option<OpId>),
    /// A new snapshot.
    Snapshot(Uid),
    /// A snapshot goes.
    DeleteSnap(Uid),
    /// Another label.
    Label(Uid, Name),
    /// Another name.
    Rename(Uid, Name),
    /// Other bytes.
    Blob(Uid, Vec<u8>),
    /// Sets a disk's claims.
    Claims(Uid, Vec<u8>),
    /// A new attachment.
    Attach(Place),
    /// An attachment ends.
    Detach(u32),
    /// A consistency point.
    Checkpoint,
    /// A page of changed blocks.
    List(Box<Listing>),
    /// What comes free is not given out.
    Hold,
    /// The first consistency point after that.
    HoldPoint,
    /// It is given out again.
    Unhold,
    /// It is refused and changes nothing.
    Refused,
}

/// A command in flight.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What it is meant to do.
    pub intent: Intent,
    /// The only lawful refusal; `None` if it must succeed.
    pub expect: Option<ErrorKind>,
    /// When it was given.
    pub from: u64,
    /// Disks it speaks of; true if it speaks of them alone.
    pub locks: Vec<(Uid, bool)>,
}

impl Pending {
    /// The size that `place` will have, if this changes it.
    pub fn resize_of(&self, place: Place) -> Option<u64> {
        match (&self.intent, place) {
            (Intent::Resize(uid, size, _), Place::Disk(disk)) if *uid == disk => Some(*size),
            _ => None,
        }
    }
}

impl World {
    /// Housekeeping that is not drawn: first disks, attachments, detaching, wished deletions.
    pub(super) fn issue_chores(&mut self) -> Result<(), String> {
        if self.parked.is_some() {
            return Ok(());
        }
        let making = |p: &Pending| matches!(p.intent, Intent::Create(_));
        if self.model.live_disks().is_empty() && !self.pending.values().any(making) {
            // Those of the start may all have been cut short; without a disk nothing would happen.
            self.disks_to_make = self.disks_to_make.max(1);
        }
        while self.disks_to_make > 0 && self.pending.len() < self.plan.commands_max {
            self.disks_to_make -= 1;
            self.create_disk();
        }
        for uid in self.model.live_disks() {
            let place = Place::Disk(uid);
            let attached = self.attachments.values().any(|a| a.place == place);
            let unwanted = self.doomed.contains(&uid);
            if !attached && !unwanted && self.lockable(&[(uid, true)]) {
                self.attach(place);
            }
            if unwanted && self.places_of(uid).is_empty() && self.lockable(&[(uid, true)]) {
                self.delete_disk(uid);
            }
        }
        let drained: Vec<u32> = self
            .attachments
            .iter()
            .filter(|(_, a)| a.closing && a.in_flight == 0)
            .map(|(key, _)| *key)
            .collect();
        for key in drained {
            let uid = self.disk_of(self.attachments[&key].place);
            if self.lockable(&[(uid, false)]) && !self.is_detaching(key) {
                self.detach(key);
            }
        }
        Ok(())
    }

    fn is_detaching(&self, key: u32) -> bool {
        self.pending.values().any(|p| matches!(p.intent, Intent::Detach(k) if k == key))
    }

    /// The disk that a place belongs to.
    pub(super) fn disk_of(&self, place: Place) -> Uid {
        match place {
            Place::Disk(uid) => uid,
            Place::Snap(uid) => self.model.snaps[&uid].disk,
        }
    }

    /// Attachments of a disk and its snapshots.
    fn places_of(&self, uid: Uid) -> Vec<u32> {
        let belongs = |a: &Attachment| self.disk_of(a.place) == uid;
        self.attachments.iter().filter(|(_, a)| belongs(a)).map(|(key, _)| *key).collect()
    }

    fn lockable(&self, locks: &[(Uid, bool)]) -> bool {
        let held = self.pending.values().flat_map(|p| &p.locks);
        !held.clone().any(|(uid, alone)| {
            locks.iter().any(|(other, other_alone)| uid == other && (*alone || *other_alone))
        })
    }

    /// Gives one random command, if the one drawn can be given now.
    pub(super) fn issue_command(&mut self) {
        if self.parked.is_some() || self.pending.len() >= self.plan.commands_max {
            return;
        }
        let weights = self.plan.command_weights;
        match KINDS[self.rng.weighted(&weights)] {
            "create" if self.model.live_disks().len() < DISKS_MAX => self.create_disk(),
            "clone" if self.model.live_disks().len() < DISKS_MAX => self.clone_snapshot(),
            "snapshot" if self.model.live_snaps().len() < SNAPS_MAX => self.snapshot(),
            "delete-snapshot" => self.draw_snap(true).into_iter().for_each(|s| self.delete_snap(s)),
            "delete-disk" => self.doom_disk(),
            "resize" => self.resize(),
            "label" => self.label(),
            "rename" => self.rename(),
            "attach-snapshot" => self.attach_or_close_snapshot(),
            "blob" => self.set_blob(),
            "checkpoint" => self.give(Command::Checkpoint, Intent::Checkpoint, None, vec![]),
            "refused" => self.refused(),
            "changed" => self.draw_listing(),
            "hold" => self.draw_hold(),
            _ => {}
        }
    }

    /// Hands a command to the engine.
    pub(super) fn give(
        &mut self,
        command: Command,
        intent: Intent,
        expect: Option<ErrorKind>,
        locks: Vec<(Uid, bool)>,
    ) {
        let cookie = self.new_cookie();
        let from = match &intent {
            Intent::Snapshot(uid) => self.model.snaps[uid].window.from,
            _ => self.model.tick(),
        };
        self.trace.note("command", [cookie, from, 0]);
        let now = self.now;
        self.trace.line(now, || format!("event {from} command {cookie} {command:?} ({intent:?})"));
        self.move_all();
        self.engine_mut().command(cookie, command);
        self.pending.insert(cookie, Pending { intent, expect, from, locks });
        self.issued += 1;
    }

    /// A new identity.
    fn new_uuid(&self, uid: Uid) -> Uuid {
        let (a, b) = (mix(self.seed ^ u64::from(uid) << 32), mix(self.seed.wrapping_add(7)));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&(b ^ u64::from(uid)).to_le_bytes());
        Uuid(bytes)
    }

    fn draw_size(&mut self) -> u64 {
        let base = self.rng.pick(&[
            1 << 20,
            1 << 20,
            (2 << 20) + 4096,
            7 << 20,
            64 << 20,
            (1 << 30) + (12 << 10),
            600 << 30,
            256 << 40,
        ]);
        if base < 256 << 40 && self.rng.chance(300) {
            base + self.rng.below(2048) * 512
        } else {
            base
        }
    }

    fn create_disk(&mut self) {
        let uid = self.model.new_uid();
        let size = self.draw_size();
        let (uuid, name) = (self.new_uuid(uid), name(&format!("disk-{uid}")));
        let time = 1_700_000_000 + u64::from(uid);
        let rounded = size.next_multiple_of(4096);
        self.model.plan_disk(uid, (uuid, name, rounded), None, time);
        let command = Command::CreateDisk { name, uuid, size, from: None, time };
        self.give(command, Intent::Create(uid), None, vec![(uid, true)]);
    }

    fn clone_snapshot(&mut self) {
        let Some(snap) = self.draw_snap(false) else { return };
        let uid = self.model.new_uid();
        let (uuid, name) = (self.new_uuid(uid), name(&format!("clone-{uid}")));
        let time = 1_700_000_000 + u64::from(uid);
        let snap_size = self.model.snaps[&snap].size;
        let size = match self.rng.below(6) {
            0 => (snap_size + (1 << 20)).min(256 << 40),
            1 => snap_size,
            _ => 0,
        };
        let shown = if size == 0 { snap_size } else { size };
        self.model.plan_disk(uid, (uuid, name, shown), Some(snap), time);
        let from = Some(self.snap_ref(snap));
        let locks = vec![(uid, true), (self.model.snaps[&snap].disk, false)];
        let command = Command::CreateDisk { name, uuid, size, from, time };
        self.give(command, Intent::Create(uid), None, locks);
    }

    fn snapshot(&mut self) {
        let Some(disk) = self.draw_disk(false) else { return };
        let uid = self.model.new_uid();
        let uuid = self.new_uuid(uid);
        let label = if self.rng.chance(500) { Name::EMPTY } else { name(&format!("s{uid}")) };
        let time = 1_700_000_000 + u64::from(uid);
        self.model.plan_snap(uid, disk, uuid, label, time);
        let command = Command::Snapshot { disk: self.disk_id(disk), uuid, label, time };
        self.give(command, Intent::Snapshot(uid), None, vec![(disk, false)]);
    }

    /// Deletes a snapshot (or is refused, if it is in use).
    pub(super) fn delete_snap(&mut self, snap: Uid) {
        let attached = self.attachments.values().any(|a| a.place == Place::Snap(snap));
        let locks = vec![(self.model.snaps[&snap].disk, true)];
        let (command, intent) =
            (Command::DeleteSnapshot(self.snap_ref(snap)), Intent::DeleteSnap(snap));
        self.give(command, intent, attached.then_some(ErrorKind::Busy), locks);
    }

    /// Decides that a disk is to go; its attachments close first (or the engine refuses).
    fn doom_disk(&mut self) {
        let Some(uid) = self.draw_disk(true) else { return };
        if self.rng.chance(200) {
            self.delete_disk(uid);
            return;
        }
        if self.model.live_disks().len() <= 1 + self.doomed.len() {
            return;
        }
        self.doomed.insert(uid);
        for key in self.places_of(uid) {
            self.attachments.get_mut(&key).expect("just listed").closing = true;
        }
    }

    /// Deletes a disk (or is refused, if it is in use). False: another command is in the way.
    pub(super) fn delete_disk(&mut self, uid: Uid) -> bool {
        let busy = !self.places_of(uid).is_empty();
        let origin = self.model.disk(uid).origin;
        let mut locks = vec![(uid, true)];
        locks.extend(origin.and_then(|o| self.model.snaps.get(&o)).map(|s| (s.disk, true)));
        if !self.lockable(&locks) {
            return false;
        }
        if busy {
            self.doomed.remove(&uid);
        }
        let command = Command::DeleteDisk(self.disk_id(uid));
        self.give(command, Intent::Delete(uid), busy.then_some(ErrorKind::Busy), locks);
        true
    }

    fn resize(&mut self) {
        let Some(uid) = self.draw_disk(true) else { return };
        let old = self.model.disk(uid).size.now;
        let shrunk = (old / 2).max(1 << 20) + self.rng.below(256) * 4096;
        let grown = old + self.rng.below(1024) * 4096;
        let fresh = self.draw_size();
        let size = self.rng.pick(&[shrunk, shrunk, grown, fresh, old]).clamp(1 << 20, 256 << 40);
        let rounded = size.next_multiple_of(4096);
        let op = (rounded < old).then(|| {
            let op = self.model.ops.add(NEVER, true);
            self.model.begin(uid, op, (rounded, old - rounded), NEVER);
            op
        });
        let command = Command::Resize(self.disk_id(uid), size);
        self.give(command, Intent::Resize(uid, rounded, op), None, vec![(uid, true)]);
    }

    fn label(&mut self) {
        let Some(snap) = self.draw_snap(true) else { return };
        let serial = self.model.new_uid();
        let label = if self.rng.chance(300) { Name::EMPTY } else { name(&format!("l{serial}")) };
        let locks = vec![(self.model.snaps[&snap].disk, true)];
        let command = Command::LabelSnapshot(self.snap_ref(snap), label);
        self.give(command, Intent::Label(snap, label), None, locks);
    }

    fn rename(&mut self) {
        let Some(uid) = self.draw_disk(true) else { return };
        let serial = self.model.new_uid();
        let name = name(&format!("renamed-{serial}"));
        let command = Command::RenameDisk(self.disk_id(uid), name);
        self.give(command, Intent::Rename(uid, name), None, vec![(uid, true)]);
    }

    fn set_blob(&mut self) {
        let Some(uid) = self.draw_disk(true) else { return };
        let len = self.rng.pick(&[0, 1, 100, 2048]);
        let blob: Vec<u8> = (0..len).map(|_| self.rng.next() as u8).collect();
        // Claims go the same way. Chosen by what was drawn anyway, so that kept seeds stay what
        // they are.
        if blob.first().is_some_and(|byte| byte % 2 == 1) {
            let claims = blob[..blob.len().min(CLAIMS_LEN_MAX)].to_vec();
            let command = Command::SetClaims(self.disk_id(uid), claims.clone());
            self.give(command, Intent::Claims(uid, claims), None, vec![(uid, true)]);
            return;
        }
        let command = Command::SetBlob(self.disk_id(uid), blob.clone());
        self.give(command, Intent::Blob(uid, blob), None, vec![(uid, true)]);
    }

    fn attach_or_close_snapshot(&mut self) {
        let open: Vec<u32> = self
            .attachments
            .iter()
            .filter(|(_, a)| matches!(a.place, Place::Snap(_)) && !a.closing)
            .map(|(key, _)| *key)
            .collect();
        if open.len() >= 3 || !open.is_empty() && self.rng.chance(400) {
            let key = self.rng.pick(&open);
            self.attachments.get_mut(&key).expect("just listed").closing = true;
        } else if let Some(snap) = self.draw_snap(false) {
            self.attach(Place::Snap(snap));
        }
    }

    /// Attaches a disk or snapshot.
    pub(super) fn attach(&mut self, place: Place) {
        let target = match place {
            Place::Disk(uid) => Target::Disk(self.disk_id(uid)),
            Place::Snap(uid) => Target::Snapshot(self.snap_ref(uid)),
        };
        let locks = vec![(self.disk_of(place), false)];
        self.give(Command::Attach(target), Intent::Attach(place), None, locks);
    }

    /// Ends an attachment without requests.
    pub(super) fn detach(&mut self, key: u32) {
        let attachment = self.attachments[&key];
        let locks = vec![(self.disk_of(attachment.place), false)];
        self.give(Command::Detach(attachment.handle), Intent::Detach(key), None, locks);
    }

    /// A command that must be refused.
    fn refused(&mut self) {
        let uid = self.model.new_uid();
        let (uuid, time) = (self.new_uuid(uid), 1);
        let nobody = DiskId(60_000);
        let fresh = name(&format!("never-{uid}"));
        let (command, expect, locks) = match self.rng.below(8) {
            0 => {
                let Some(twin) = self.draw_disk(false) else { return };
                let name = self.model.disk(twin).name.now;
                let command = Command::CreateDisk { name, uuid, size: 1 << 20, from: None, time };
                (command, ErrorKind::Exists, vec![(twin, false)])
            }
            1 => {
                let size = self.rng.pick(&[0, 4096, (256 << 40) + 1]);
                let command = Command::CreateDisk { name: fresh, uuid, size, from: None, time };
                (command, ErrorKind::Invalid, vec![])
            }
            2 => (Command::DeleteDisk(nobody), ErrorKind::NotFound, vec![]),
            3 => (Command::Attach(Target::Disk(nobody)), ErrorKind::NotFound, vec![]),
            4 => (Command::Detach(Handle(0xDEAD_FFFF)), ErrorKind::NotFound, vec![]),
            5 => {
                let Some(disk) = self.draw_disk(false) else { return };
                let snap = SnapRef { disk: self.disk_id(disk), snap: SnapId(1 << 40) };
                (Command::DeleteSnapshot(snap), ErrorKind::NotFound, vec![(disk, false)])
            }
            6 => {
                let Some(disk) = self.draw_disk(false) else { return };
                let command = Command::SetBlob(self.disk_id(disk), vec![1; 2049]);
                (command, ErrorKind::Invalid, vec![(disk, false)])
            }
            _ => {
                let Some(disk) = self.draw_disk(false) else { return };
                let command = Command::Resize(self.disk_id(disk), (256 << 40) + 4096);
                (command, ErrorKind::Invalid, vec![(disk, false)])
            }
        };
        self.give(command, Intent::Refused, Some(expect), locks);
    }

    fn draw_disk(&mut self, alone: bool) -> Option<Uid> {
        let doomed = &self.doomed;
        let mut disks = self.model.live_disks();
        disks.retain(|uid| !doomed.contains(uid) && self.lockable(&[(*uid, alone)]));
        (!disks.is_empty()).then(|| self.rng.pick(&disks))
    }

    fn draw_snap(&mut self, alone: bool) -> Option<Uid> {
        let mut snaps = self.model.live_snaps();
        snaps.retain(|snap| {
            let disk = self.model.snaps[snap].disk;
            !self.doomed.contains(&disk) && self.lockable(&[(disk, alone)])
        });
        (!snaps.is_empty()).then(|| self.rng.pick(&snaps))
    }

    fn disk_id(&self, uid: Uid) -> DiskId {
        self.model.disk(uid).id.expect("a disk that is there has a number")
    }

    fn snap_ref(&self, uid: Uid) -> SnapRef {
        let snap = &self.model.snaps[&uid];
        let number = snap.id.expect("a snapshot that is there has a number");
        SnapRef { disk: self.disk_id(snap.disk), snap: number }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("the simulator makes lawful names")
}
