//! Changed blocks, a page at a time; a disk's "now" is a snapshot that nobody keeps.
//!
//! ```text
//!  snapshot of the disk's now (label lamina.now.…) ─► attach both ─► pages ─► the last: delete it
//!     └─ forgotten by its client: deleted after ten minutes, or when the store is opened again
//! ```

use std::time::{Duration, Instant};

use lamina_bdev::{
    ChangeKind, Changes, Command, DiffQuery, DiskInfo, Error, ErrorKind, Handle, Name, Reply,
    SnapInfo, SnapRef, Target, Uuid, limits,
};
use lamina_rpc::methods as rpc;

use super::names::{Entity, Found};
use super::stores::Store;
use super::{Control, now_seconds, random, unpoisoned};
use crate::log;
use crate::reactor::handle::ShardHandle;

/// Labels of the daemon's own snapshots begin so.
pub(super) const NOW_PREFIX: &str = "lamina.now.";
/// A "now" that nobody asks for any more goes after this time.
const NOW_KEPT: Duration = Duration::from_secs(600);
/// Map nodes read for one page.
const PAGE_READS: u32 = 1024;
/// How long the end of an attachment waits for requests that are still in flight.
const DETACH_TRIES: u32 = 500;
const DETACH_RETRY: Duration = Duration::from_millis(10);

/// A snapshot that a disk's "now" stands for, and when it was last used.
pub(super) type Now = (Uuid, Instant);

/// An attachment of the daemon's own; ends when dropped.
pub(super) struct Attached {
    /// Where it is.
    pub shard: ShardHandle,
    /// Its handle.
    pub handle: Handle,
}

impl Attached {
    /// Attaches a disk, or a snapshot once it has settled.
    ///
    /// # Errors
    /// `NotFound`, `NoSpace` (too many attachments), `Io`.
    pub fn new(shard: &ShardHandle, target: Target) -> Result<Attached, Error> {
        let Reply::Handle(handle) = shard.command(Command::Attach(target))? else {
            unreachable!("an attachment is answered with a handle");
        };
        Ok(Attached { shard: shard.clone(), handle })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for _ in 0..DETACH_TRIES {
            match self.shard.command(Command::Detach(self.handle)) {
                // Requests of a stream that broke off are still in flight.
                Err(error) if error.kind == ErrorKind::Busy && self.shard.query(|_| ()).is_ok() => {
                    std::thread::sleep(DETACH_RETRY);
                }
                Ok(_) | Err(_) => return,
            }
        }
        log::error("an attachment of the daemon's own does not end: its requests hang");
    }
}

/// One page of what changed.
///
/// # Errors
/// The engine's: `Corrupt` for a damaged map, `Io`.
pub(super) fn changes(shard: &ShardHandle, query: DiffQuery) -> Result<Changes, Error> {
    match shard.command(Command::Diff(query))? {
        Reply::Changes(page) => Ok(*page),
        other => unreachable!("a list of changes is answered with {other:?}"),
    }
}

impl Control {
    /// The snapshot that `text` names.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a disk.
    pub(super) fn find_snapshot(&self, text: &str) -> Result<(Found, SnapInfo), Error> {
        let found = self.find(text)?;
        match found.entity {
            Entity::Snapshot(_, snap) => Ok((found, snap)),
            Entity::Disk(_) => {
                let why = format!("{} is a disk; a snapshot is needed here", found.alias());
                Err(Error::new(ErrorKind::Invalid, why))
            }
        }
    }

    /// `lamina_snapshot_diff`.
    pub(super) fn snapshot_diff(
        &self,
        params: &rpc::LaminaSnapshotDiff,
    ) -> Result<rpc::SnapshotDiff, Error> {
        self.drop_forgotten();
        let since = params.since.as_deref().map(|text| self.find_snapshot(text)).transpose()?;
        let newer = match (&params.snapshot, &since) {
            (Some(text), _) => self.find(text)?,
            (None, Some((found, _))) => {
                let disk = found.entity.disk().clone();
                Found { entity: Entity::Disk(disk), ..found.clone() }
            }
            (None, None) => {
                let why = "say which snapshot, or since which";
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        };
        if let Some((older, _)) = &since {
            comparable(&newer, older)?;
        }
        let shard = newer.store.shards[newer.shard].clone();
        let (snap, now) = match &newer.entity {
            Entity::Snapshot(_, snap) => (*snap, snap.label.as_str().starts_with(NOW_PREFIX)),
            Entity::Disk(disk) => (self.take_now(&newer, disk)?, true),
        };
        let answer = diff_page(&shard, &snap, since.as_ref().map(|(_, snap)| snap), params);
        if now {
            let mut nows = unpoisoned(self.nows.lock());
            nows.retain(|(uuid, _)| *uuid != snap.uuid);
            if matches!(&answer, Ok(page) if page.next.is_some()) {
                nows.push((snap.uuid, Instant::now()));
            } else {
                drop(nows);
                delete_now(&shard, snap.snap);
            }
        }
        answer
    }

    /// A snapshot of the disk as it is now, that the daemon deletes again.
    ///
    /// # Errors
    /// The engine's.
    pub(super) fn take_now(&self, found: &Found, disk: &DiskInfo) -> Result<SnapInfo, Error> {
        let _change = self.change_in(&found.store)?;
        let shard = &found.store.shards[found.shard];
        let uuid = random::new_uuid();
        let text = format!("{NOW_PREFIX}{}", &uuid.to_string()[..8]);
        let label = Name::new(&text).map_err(|why| Error::new(ErrorKind::Invalid, why))?;
        let (disk, time) = (disk.id, now_seconds());
        shard.command(Command::Snapshot { disk, uuid, label, time })?;
        unpoisoned(self.nows.lock()).push((uuid, Instant::now()));
        let found = shard.query(move |engine| {
            engine.snapshots(disk).into_iter().find(|snap| snap.uuid == uuid)
        })?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "the disk is gone"))
    }

    /// Deletes what clients took and forgot.
    fn drop_forgotten(&self) {
        let mut forgotten = Vec::new();
        unpoisoned(self.nows.lock()).retain(|(uuid, used)| {
            let keep = used.elapsed() < NOW_KEPT;
            if !keep {
                forgotten.push(*uuid);
            }
            keep
        });
        for uuid in forgotten {
            if let Ok((found, snap)) = self.find_snapshot(&uuid.to_string()) {
                delete_now(&found.store.shards[found.shard], snap.snap);
            }
        }
    }
}

/// Deletes the daemon's own snapshots that an earlier daemon left in a store.
pub(super) fn drop_leftovers(store: &Store) {
    for shard in &store.shards {
        let left = shard.query(|engine| {
            let disks = engine.disks().into_iter().filter(|disk| disk.snapshots > 0);
            let snaps = disks.flat_map(|disk| engine.snapshots(disk.id));
            let own = snaps.filter(|snap| snap.label.as_str().starts_with(NOW_PREFIX));
            own.map(|snap| snap.snap).collect::<Vec<_>>()
        });
        for snap in left.unwrap_or_default() {
            delete_now(shard, snap);
        }
    }
}

/// Deletes one of the daemon's own snapshots; one that stays is deleted at the next start.
pub(super) fn delete_now(shard: &ShardHandle, snap: SnapRef) {
    if let Err(error) = shard.command(Command::DeleteSnapshot(snap)) {
        log::warn(format!("a snapshot of the daemon's own stays for now: {error}"));
    }
}

/// Blocks are compared by address, which means something within a shard only.
///
/// # Errors
/// `Invalid`.
pub(super) fn comparable(newer: &Found, older: &Found) -> Result<(), Error> {
    if newer.store.uuid == older.store.uuid && newer.shard == older.shard {
        return Ok(());
    }
    let why = format!(
        "{} and {} have no common origin: compare snapshots of one disk and its clones",
        older.alias(),
        newer.alias()
    );
    Err(Error::new(ErrorKind::Invalid, why))
}

fn diff_page(
    shard: &ShardHandle,
    newer: &SnapInfo,
    older: Option<&SnapInfo>,
    params: &rpc::LaminaSnapshotDiff,
) -> Result<rpc::SnapshotDiff, Error> {
    let view = Attached::new(shard, Target::Snapshot(newer.snap))?;
    let base = older.map(|snap| Attached::new(shard, Target::Snapshot(snap.snap))).transpose()?;
    let max = params.max.unwrap_or(rpc::DIFF_EXTENTS_DEFAULT);
    let page = changes(
        shard,
        DiffQuery {
            base: base.as_ref().map(|base| base.handle),
            view: view.handle,
            offset: params.offset.unwrap_or(0),
            extents_max: max.clamp(1, limits::DIFF_EXTENTS_MAX),
            reads_max: PAGE_READS,
        },
    )?;
    let extent = |found: lamina_bdev::ChangedExtent| rpc::DiffExtent {
        offset: found.offset,
        length: found.length,
        kind: match found.kind {
            ChangeKind::Data => "data".into(),
            ChangeKind::Hole => "hole".into(),
        },
    };
    Ok(rpc::SnapshotDiff {
        snapshot: newer.uuid.to_string(),
        size: newer.size,
        since: older.map(|snap| snap.uuid.to_string()),
        extents: page.extents.into_iter().map(extent).collect(),
        next: page.next,
    })
}
