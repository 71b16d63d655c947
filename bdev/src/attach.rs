//! Attachments: a live disk or a snapshot made usable for requests, and given back.

use crate::commands::{Outcome, error};
use crate::control::{Command, Reply, Target};
use crate::disk::Root;
use crate::engine::{Attached, Attachment, Engine};
use crate::error::{Error, ErrorKind};
use crate::limits::ATTACHMENTS_MAX;
use crate::slots::Stage;
use crate::types::{Handle, SnapRef};

impl Engine {
    pub(crate) fn attach(&mut self, cookie: u64, target: Target) {
        if self.attachments.iter().filter(|a| a.target.is_some()).count() >= ATTACHMENTS_MAX {
            let text = format!("{ATTACHMENTS_MAX} attachments exist: detach some first");
            self.replies.push_back((cookie, Err(error(ErrorKind::NoSpace, text))));
            return;
        }
        let attached = match target {
            Target::Disk(id) => self.live_mut(id).and_then(|disk| {
                disk.whole(None)?;
                disk.attached += 1;
                let (tree, root, size) = (id.0, Root::default(), disk.size);
                Ok(Some(Attached { tree, disk: id.0, snap: 0, root, size }))
            }),
            Target::Snapshot(at) => self.attach_snapshot(at),
        };
        match attached {
            Ok(Some(attached)) => {
                let handle = self.new_handle(attached);
                self.replies.push_back((cookie, Ok(Reply::Handle(handle))));
            }
            Ok(None) if self.failed.is_some() => self.refuse(cookie),
            Ok(None) => self.commands.push_back((cookie, Command::Attach(target))),
            Err(refused) => self.replies.push_back((cookie, Err(refused))),
        }
    }

    fn attach_snapshot(&mut self, at: SnapRef) -> Result<Option<Attached>, Error> {
        let Some(root) = self.settled_root(at)? else { return Ok(None) };
        self.live(at.disk)?.whole(Some(at.snap.0))?;
        let tree = self.next_view;
        self.next_view = if tree == u32::MAX { crate::engine::VIEW_TREES } else { tree + 1 };
        let snap = self.live_mut(at.disk)?.snap_mut(at.snap.0).expect("settled");
        snap.attached += 1;
        Ok(Some(Attached { tree, disk: at.disk.0, snap: at.snap.0, root, size: snap.size }))
    }

    fn new_handle(&mut self, attached: Attached) -> Handle {
        let free = self.attachments.iter().position(|a| a.target.is_none());
        let index = free.unwrap_or_else(|| {
            self.attachments.push(Attachment { generation: 0, target: None });
            self.attachments.len() - 1
        });
        assert!(index < 1 << 16, "more attachments than handles");
        let entry = &mut self.attachments[index];
        entry.generation = entry.generation.wrapping_add(1);
        entry.target = Some(attached);
        Handle(u32::from(entry.generation) << 16 | index as u32)
    }

    pub(crate) fn detach(&mut self, handle: Handle) -> Outcome {
        let Some(target) = self.attached(handle).copied() else {
            return Err(error(ErrorKind::NotFound, "that attachment has ended already"));
        };
        let used = |op: &crate::slots::Op| op.stage != Stage::Free && op.tree == target.tree;
        let disk = self.disks[target.disk as usize].as_ref().expect("attached disks exist");
        let last = target.snap != 0 || disk.attached == 1;
        if last && (self.slots.ops.iter().any(used) || self.straights.uses(target.tree)) {
            let text = "requests of that attachment are still in flight";
            return Err(error(ErrorKind::Busy, text));
        }
        self.attachments[(handle.0 & 0xffff) as usize].target = None;
        let disk = self.disks[target.disk as usize].as_mut().expect("attached disks exist");
        if target.snap == 0 {
            disk.attached -= 1;
        } else {
            disk.snap_mut(target.snap).expect("attached snapshots exist").attached -= 1;
        }
        Ok(Reply::Unit)
    }
}
