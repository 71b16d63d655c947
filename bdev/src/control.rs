//! Control commands: rare, asynchronous, each durable before its reply.

use crate::{DiskId, Error, Handle, Name, SnapId, SnapRef, Uuid};

/// What an attachment shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The live disk; writable.
    Disk(DiskId),
    /// A snapshot; read-only. Waits until the snapshot has settled.
    Snapshot(SnapRef),
}

/// One control command. The reply comes from [`crate::Engine::next_reply`] when it is durable.
#[derive(Clone, Debug)]
pub enum Command {
    /// A new disk of `size` bytes (rounded up to 4 KiB; 1 MiB to 256 TiB), empty or a clone of
    /// `from` (then `size` 0 means the snapshot's size). Reply: [`Reply::Disk`].
    CreateDisk {
        /// Unique in the shard.
        name: Name,
        /// Made by the host.
        uuid: Uuid,
        /// Bytes.
        size: u64,
        /// Clone of this snapshot.
        from: Option<SnapRef>,
        /// Seconds since 1970.
        time: u64,
    },
    /// Deletes a disk and all its snapshots. Refused (Busy) while attached. Clones of its snapshots
    /// stay as they are. What nobody else holds comes back in the background.
    DeleteDisk(DiskId),
    /// New size in bytes; growing and shrinking work while attached. What a shrink cuts off is
    /// gone: growing again shows zeros.
    Resize(DiskId, u64),
    /// A snapshot; I/O goes on. One journal record. Reply: [`Reply::Snapshot`].
    Snapshot {
        /// Of which disk.
        disk: DiskId,
        /// Made by the host.
        uuid: Uuid,
        /// May be empty; unique among the disk's snapshots otherwise.
        label: Name,
        /// Seconds since 1970.
        time: u64,
    },
    /// Deletes one snapshot; refused (Busy) while attached. Its clones stay as they are. The space
    /// that it alone holds comes back in the background.
    DeleteSnapshot(SnapRef),
    /// Gives a snapshot another label (or none).
    LabelSnapshot(SnapRef, Name),
    /// Gives a disk another name.
    RenameDisk(DiskId, Name),
    /// Makes a disk or snapshot usable for requests. Reply: [`Reply::Handle`]. A disk or snapshot
    /// may be attached several times.
    Attach(Target),
    /// Ends an attachment; the host has drained its requests before.
    Detach(Handle),
    /// Stores up to [`crate::limits::BLOB_LEN_MAX`] bytes of the host's own with the disk (its
    /// exports).
    SetBlob(DiskId, Vec<u8>),
    /// A consistency point now; the reply comes when it is durable and what was freed before it can
    /// be used again.
    Checkpoint,
}

/// The answer to a [`Command`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Done; nothing to say.
    Unit,
    /// The new disk.
    Disk(DiskId),
    /// The new snapshot.
    Snapshot(SnapId),
    /// The new attachment.
    Handle(Handle),
}

/// Cookie and outcome of a command.
pub type CommandDone = (u64, Result<Reply, Error>);

/// A disk as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its record slot.
    pub id: DiskId,
    /// Its name.
    pub name: Name,
    /// Its identity.
    pub uuid: Uuid,
    /// Bytes presented.
    pub size: u64,
    /// 4 KiB blocks mapped in the live tree (shared ones included).
    pub mapped_blocks: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The snapshot it is a clone of, while that exists.
    pub origin: Option<SnapRef>,
    /// Number of its snapshots.
    pub snapshots: u64,
    /// Attachments of the live disk.
    pub attached: u32,
    /// The host's own bytes (see [`Command::SetBlob`]).
    pub blob: Vec<u8>,
}

/// A snapshot as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapInfo {
    /// Which one.
    pub snap: SnapRef,
    /// Its identity.
    pub uuid: Uuid,
    /// Its label, maybe empty.
    pub label: Name,
    /// Seconds since 1970.
    pub time: u64,
    /// Bytes presented: the disk's size when it was taken.
    pub size: u64,
    /// Blocks mapped in it.
    pub mapped_blocks: u64,
    /// Disks that are clones of it.
    pub clones: u32,
    /// Read-only attachments.
    pub attached: u32,
}

/// A store (one shard of it) as people see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreInfo {
    /// Blocks of 4 KiB in the region.
    pub total_blocks: u64,
    /// Blocks that a guest write may still take now.
    pub free_blocks: u64,
    /// Blocks freed whose return waits for a consistency point.
    pub pending_blocks: u64,
    /// Blocks kept back so that metadata can always be written.
    pub reserved_blocks: u64,
    /// Journal blocks in the ring.
    pub journal_blocks: u64,
    /// Journal blocks in use.
    pub journal_used: u64,
    /// Consistency points committed since the store was made.
    pub checkpoints: u64,
    /// Disks.
    pub disks: u64,
}
