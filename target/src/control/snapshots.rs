//! Snapshots: taken and labelled. (They are deleted where disks are, and cloned there too.)

use lamina_bdev::{Command, Error, ErrorKind, Name, Uuid};

use super::changes::NOW_PREFIX;
use super::names::Entity;
use super::{Control, name, now_seconds, random};

impl Control {
    /// A snapshot of a disk, while its guests go on.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (the label), `Invalid`, `NoSpace`.
    pub(super) fn snapshot(&self, disk: &str, label: Option<&str>) -> Result<Uuid, Error> {
        let label = label_of(label.unwrap_or(""))?;
        let (_change, found, disk) = self.change_of_disk(disk)?;
        let uuid = random::new_uuid();
        let command = Command::Snapshot { disk: disk.id, uuid, label, time: now_seconds() };
        found.store.shards[found.shard].command(command)?;
        Ok(uuid)
    }

    /// Gives a snapshot another label, or none.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub(super) fn label_snapshot(&self, snapshot: &str, label: &str) -> Result<(), Error> {
        let label = label_of(label)?;
        let (_change, found) = self.change_of(snapshot)?;
        let Entity::Snapshot(_, snap) = &found.entity else {
            let why = format!("{} is a disk; only snapshots have labels", found.alias());
            return Err(Error::new(ErrorKind::Invalid, why));
        };
        found.store.shards[found.shard].command(Command::LabelSnapshot(snap.snap, label))?;
        Ok(())
    }
}

/// Checks a label that a person gave; empty for none.
///
/// # Errors
/// `Invalid`.
pub(super) fn label_of(text: &str) -> Result<Name, Error> {
    if text.starts_with(NOW_PREFIX) {
        let why = format!("labels that begin with {NOW_PREFIX} are the daemon's own");
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    if text.is_empty() { Ok(Name::EMPTY) } else { name(text) }
}
