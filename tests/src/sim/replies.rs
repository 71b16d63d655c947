//! Taking the answers to commands: what an answer does to the model, and what a crash makes of
//! commands that had none yet.

use lamina_bdev::{CommandDone, Error, ErrorKind, Handle, Reply};

use super::commands::{Intent, Pending};
use super::model::Place;
use super::model::Uid;
use super::pattern::OpId;
use super::world::{Attachment, World};

impl World {
    /// Takes the answers to commands.
    pub(super) fn take_replies(&mut self) -> Result<(), String> {
        while let Some((cookie, outcome)) = self.engine_mut().next_reply() {
            let Some(pending) = self.pending.remove(&cookie) else {
                return Err(format!("an answer to command {cookie}, which is not in flight"));
            };
            self.trace.note("reply", [cookie, u64::from(outcome.is_ok()), 0]);
            let now = self.now;
            self.trace.line(now, || format!("reply {cookie} {outcome:?}"));
            let text = format!("{:?}", pending.intent);
            self.judge_reply(pending, (cookie, outcome))
                .map_err(|why| format!("command {cookie}, {text}: {why}"))?;
        }
        Ok(())
    }

    fn judge_reply(&mut self, pending: Pending, done: CommandDone) -> Result<(), String> {
        match (done.1, pending.expect) {
            (Ok(reply), None) => self.apply(&pending, reply),
            (Ok(_), Some(kind)) => Err(format!("it succeeded, but must be refused ({kind:?})")),
            (Err(error), Some(kind)) if error.kind == kind && !error.message.is_empty() => Ok(()),
            (Err(error), _) => self.failed_command(&pending, error),
        }
    }

    fn failed_command(&mut self, pending: &Pending, error: Error) -> Result<(), String> {
        let info = self.engine().store_info();
        let tight = info.free_blocks < 512 + info.total_blocks / 32;
        if let (Intent::Unhold, ErrorKind::NoSpace) = (&pending.intent, error.kind) {
            return self.hold_over(true);
        }
        if let (Intent::List(listing), ErrorKind::Corrupt) = (&pending.intent, error.kind) {
            self.listing_over(listing);
            let excused = self.base.injected.reads > 0 || listing.snaps().any(|uid| self.hurt(uid));
            return excused.then_some(()).ok_or_else(|| format!("{error}"));
        }
        match error.kind {
            ErrorKind::Io if self.base.injected.any() => {
                // Nobody knows whether it happened before the engine is opened again.
                self.half_done.push(pending.intent.clone());
                self.errors_seen += 100;
                Ok(())
            }
            ErrorKind::Io if let Some((uid, op)) = self.harmed_resize(&pending.intent) => {
                self.model.failed(uid, op);
                Ok(())
            }
            ErrorKind::NoSpace if tight || self.base.injected.no_space() => {
                self.no_space_seen += 1;
                match &pending.intent {
                    Intent::Create(uid) => self.model.forget_disk(*uid),
                    Intent::Snapshot(uid) => drop(self.model.snaps.remove(uid)),
                    Intent::Resize(uid, _, Some(op)) => self.model.failed(*uid, *op),
                    _ => {}
                }
                Ok(())
            }
            kind => {
                let due = pending.expect.map_or("success".to_string(), |kind| format!("{kind:?}"));
                Err(format!("{kind:?} ({error}), but {due} is due"))
            }
        }
    }

    /// A shrink whose trim may meet damaged nodes.
    fn harmed_resize(&self, intent: &Intent) -> Option<(Uid, OpId)> {
        let Intent::Resize(uid, _, Some(op)) = intent else { return None };
        self.damage.hurts(self.model.disk(*uid).family).then_some((*uid, *op))
    }

    fn apply(&mut self, pending: &Pending, reply: Reply) -> Result<(), String> {
        let from = pending.from;
        match (&pending.intent, reply) {
            (Intent::Create(uid), Reply::Disk(id)) => {
                self.model.fill_clone(*uid);
                let disk = self.model.disk_mut(*uid);
                disk.id = Some(id);
                disk.exists.set(true);
                self.damage.resides(id, disk.family);
                if let Some(origin) = disk.origin {
                    let parent = self.model.snaps[&origin].disk;
                    self.model.snap_mut(origin).exists.fix();
                    self.model.durable_since(parent, 0);
                }
            }
            (Intent::Snapshot(uid), Reply::Snapshot(id)) => {
                self.model.freeze(*uid);
                let snap = self.model.snap_mut(*uid);
                snap.id = Some(id);
                snap.exists.set_unsure(true, false);
            }
            (Intent::Attach(place), Reply::Handle(handle)) => self.attached(*place, handle)?,
            (Intent::Delete(uid), Reply::Unit) => {
                self.doomed.remove(uid);
                self.errands.retain(|(place, ..)| *place != Place::Disk(*uid));
                self.model.forget_disk(*uid);
            }
            (Intent::DeleteSnap(uid), Reply::Unit) => drop(self.model.snaps.remove(uid)),
            (Intent::Detach(key), Reply::Unit) => drop(self.attachments.remove(key)),
            (Intent::Resize(uid, size, op), Reply::Unit) => {
                if let Some(op) = op {
                    self.model.acked(*uid, *op, true);
                    self.shrinks.push((Place::Disk(*uid), *size, self.model.clock));
                }
                self.model.disk_mut(*uid).size.set(*size);
                self.model.durable_since(*uid, from);
            }
            (Intent::Label(uid, label), Reply::Unit) => {
                let snap = self.model.snap_mut(*uid);
                snap.label.set(*label);
                let disk = snap.disk;
                self.model.durable_since(disk, from);
            }
            (Intent::Rename(uid, name), Reply::Unit) => {
                self.model.disk_mut(*uid).name.set(*name);
                self.model.durable_since(*uid, from);
            }
            (Intent::Blob(uid, blob), Reply::Unit) => {
                self.model.disk_mut(*uid).blob.set(blob.clone());
                self.model.durable_since(*uid, from);
            }
            (Intent::Claims(uid, claims), Reply::Unit) => {
                self.model.disk_mut(*uid).claims.set(claims.clone());
                self.model.durable_since(*uid, from);
            }
            (Intent::Checkpoint, Reply::Unit) => {
                for uid in self.model.live_disks() {
                    self.model.durable_since(uid, from);
                }
            }
            (Intent::List(listing), Reply::Changes(page)) => self.take_page(listing, &page)?,
            (Intent::Hold, Reply::Unit) => self.hold_begun(),
            (Intent::HoldPoint, Reply::Unit) => self.hold_reached()?,
            (Intent::Unhold, Reply::Unit) => self.hold_over(false)?,
            (intent, reply) => return Err(format!("{reply:?} does not answer {intent:?}")),
        }
        Ok(())
    }

    fn attached(&mut self, place: Place, handle: Handle) -> Result<(), String> {
        let due = (self.model.size(place), matches!(place, Place::Snap(_)));
        let shown = self.engine().handle_info(handle);
        if shown != Some(due) {
            return Err(format!("the handle shows {shown:?}, (size, read-only) {due:?} is due"));
        }
        if self.attachments.values().any(|a| a.handle == handle) {
            return Err(format!("{handle:?} is in use already"));
        }
        self.attachment_count += 1;
        let closing = self.doomed.contains(&self.disk_of(place));
        let attachment = Attachment { place, handle, in_flight: 0, closing };
        self.attachments.insert(self.attachment_count, attachment);
        Ok(())
    }

    /// The engine has died: what was in flight may have happened.
    pub(super) fn propose_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let cut = pending.into_values().map(|p| p.intent);
        let intents: Vec<Intent> = self.half_done.drain(..).chain(cut).collect();
        for intent in intents {
            match intent {
                Intent::Create(uid) => {
                    self.model.fill_clone(uid);
                    self.model.disk_mut(uid).exists.propose(true);
                }
                Intent::Delete(uid) => self.model.disk_mut(uid).exists.propose(false),
                Intent::Snapshot(uid) => {
                    self.model.freeze(uid);
                    self.model.snap_mut(uid).exists.propose(true);
                }
                Intent::DeleteSnap(uid) => self.model.snap_mut(uid).exists.propose(false),
                Intent::Resize(uid, size, op) => {
                    self.model.disk_mut(uid).size.propose(size);
                    self.cut_shrinks.extend(op.map(|op| (uid, size, op)));
                }
                Intent::Label(uid, label) => self.model.snap_mut(uid).label.propose(label),
                Intent::Rename(uid, name) => self.model.disk_mut(uid).name.propose(name),
                Intent::Blob(uid, blob) => self.model.disk_mut(uid).blob.propose(blob),
                Intent::Claims(uid, claims) => self.model.disk_mut(uid).claims.propose(claims),
                Intent::Attach(_)
                | Intent::Detach(_)
                | Intent::Checkpoint
                | Intent::List(_)
                | Intent::Hold
                | Intent::HoldPoint
                | Intent::Unhold
                | Intent::Refused => {}
            }
        }
    }
}
