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
    /// The same for what remote hosts claim of the disk (reservations), up to
    /// [`crate::limits::CLAIMS_LEN_MAX`] bytes. Apart from the blob, since somebody else writes it.
    SetClaims(DiskId, Vec<u8>),
    /// What differs between two attached snapshots, or what one has at all. Nothing durable.
    /// Reply: [`Reply::Changes`].
    Diff(DiffQuery),
    /// From now on, blocks that come free are remembered and not given out, so that the trees of
    /// every consistency point committed from here on stay on disk; for [`crate::check`]. Refused
    /// (Busy) while held.
    Hold,
    /// Gives them back. Fails with `NoSpace` if the hold has ended before, since space was short.
    Unhold,
    /// A consistency point now; the reply comes when it is durable and what was freed before it can
    /// be used again.
    Checkpoint,
}

/// The answer to a [`Command`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Done; nothing to say.
    Unit,
    /// The new disk.
    Disk(DiskId),
    /// The new snapshot.
    Snapshot(SnapId),
    /// The new attachment.
    Handle(Handle),
    /// Changed blocks.
    Changes(Box<Changes>),
}

/// What a list of changed blocks is to be of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiffQuery {
    /// The older snapshot; `None`: what `view` has mapped.
    pub base: Option<Handle>,
    /// The newer snapshot. Only what lies within its size is listed.
    pub view: Handle,
    /// Byte to begin at (rounded down to a block).
    pub offset: u64,
    /// Most extents in the reply; at most [`crate::limits::DIFF_EXTENTS_MAX`].
    pub extents_max: u32,
    /// Map nodes read before the reply is given with what there is.
    pub reads_max: u32,
}

/// One page of changed blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Ascending, apart from one another or of different kinds.
    pub extents: Vec<ChangedExtent>,
    /// Byte to go on from; `None`: that was all.
    pub next: Option<u64>,
}

/// Blocks that changed. By address: a block that was written again with the same bytes is among
/// them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What is there now.
    pub kind: ChangeKind,
}

/// What a changed block is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// Mapped.
    Data,
    /// Not mapped: reads as zeros.
    Hole,
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
    /// What remote hosts claim of it (see [`Command::SetClaims`]).
    pub claims: Vec<u8>,
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

/// How full a store (one shard of it) is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Blocks taken, without those whose return only waits for a consistency point.
    pub used_blocks: u64,
    /// Blocks that can be used; not so what is kept back for metadata. 0 before the store is open.
    pub usable_blocks: u64,
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
