//! Resizing a disk. Growing is a change of its record; a shrink first frees what it cuts off, by
//! the ways of a discard, so that it holds whatever moment the power fails in.

use super::{checked_size, error};
use crate::canary::{Canary, planted};
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::slots::Kind;
use crate::status::Status;
use crate::types::DiskId;

/// A resize under way.
pub(crate) struct Resize {
    pub(super) cookie: u64,
    pub(super) disk: u32,
    /// Bytes.
    pub(super) size: u64,
    pub(super) stage: ResizeStage,
    /// Entry in use.
    pub(super) active: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ResizeStage {
    /// What a shrink cuts off is being freed.
    Trimming,
    /// The record may be changed at the next freeze.
    Due,
}

impl Engine {
    pub(super) fn start_resize(&mut self, cookie: u64, id: DiskId, size: u64) {
        if self.failed.is_some() {
            return self.refuse(cookie);
        }
        let checked = checked_size(size).and_then(|size| {
            let disk = self.live(id)?;
            disk.whole(None)?;
            if disk.resizing && self.failed.is_none() {
                let text = format!("disk {} is being resized already", disk.name);
                return Err(error(ErrorKind::Busy, text));
            }
            Ok((size, disk.size))
        });
        let (size, old) = match checked {
            Ok(sizes) => sizes,
            Err(refused) => {
                self.replies.push_back((cookie, Err(refused)));
                return;
            }
        };
        let disk = self.live_mut(id).expect("checked");
        disk.resizing = true;
        let shrinks = size < old && !planted(Canary::TrimForgotten);
        let stage = if shrinks { ResizeStage::Trimming } else { ResizeStage::Due };
        let entry = Resize { cookie, disk: id.0, size, stage, active: true };
        let free = self.resizes.iter().position(|r| !r.active);
        let at = free.unwrap_or(self.resizes.len());
        if at == self.resizes.len() {
            self.resizes.push(entry);
        } else {
            self.resizes[at] = entry;
        }
        if shrinks {
            self.start_trim(at, id, size, old);
        }
    }

    /// From now on requests past the new end are refused; what lies there is freed.
    fn start_trim(&mut self, at: usize, id: DiskId, size: u64, old: u64) {
        let Some(index) = self.slots.take(false) else {
            self.resizes[at].active = false;
            self.live_mut(id).expect("checked").resizing = false;
            let text = "too many commands are under way; try again";
            let cookie = self.resizes[at].cookie;
            self.replies.push_back((cookie, Err(error(ErrorKind::Busy, text))));
            return;
        };
        self.live_mut(id).expect("checked").size = size;
        let op = &mut self.slots[index];
        op.kind = Kind::Trim;
        op.cookie = at as u64;
        op.disk = id.0;
        op.tree = id.0;
        op.offset = size;
        op.len = old - size;
        self.advance(index);
    }

    pub(crate) fn trim_done(&mut self, at: usize, status: Status) {
        if status == Status::Ok {
            self.resizes[at].stage = ResizeStage::Due;
            return;
        }
        let (cookie, disk) = (self.resizes[at].cookie, self.resizes[at].disk);
        self.resizes[at].active = false;
        let disk = self.disks[disk as usize].as_mut().expect("a disk being resized exists");
        disk.resizing = false;
        disk.size = disk.record_size;
        let name = disk.name;
        let refused = if status == Status::NoSpace {
            let text = format!(
                "disk {name} keeps its size: the store is too full even for noting what a shrink frees; delete a disk or snapshot first"
            );
            error(ErrorKind::NoSpace, text)
        } else {
            let why = match status {
                Status::Corrupt => "its map is damaged; `lamina check` says where",
                _ => self.failed.as_deref().unwrap_or("the base device failed"),
            };
            let text = format!(
                "disk {name} keeps its size: freeing what lies past the new end failed ({why})"
            );
            error(ErrorKind::Io, text)
        };
        self.replies.push_back((cookie, Err(refused)));
    }
}
