//! Changed blocks, and snapshots as streams of bytes.

use serde::{Deserialize, Serialize};

use crate::schema::method;
use crate::stream::StreamMark;

/// Extents in a page of changed blocks, unless asked otherwise.
pub const DIFF_EXTENTS_DEFAULT: u32 = 1000;

method! {
    /// What changed between two snapshots, as extents; without `since`: what is mapped. By address:
    /// a block written again with the same bytes counts as changed.
    LaminaSnapshotDiff = "lamina_snapshot_diff" -> SnapshotDiff;
    required {}
    optional {
        /// The newer snapshot; a disk, as it is now; left out: the disk of `since`, as it is now.
        snapshot: String,
        /// The older snapshot.
        since: String,
        /// Byte to begin at: `next` of the page before.
        offset: u64,
        /// Most extents in the answer; 1000 if left out.
        max: u32,
    }
}

method! {
    /// Opens a stream of a snapshot: who connects to the socket within 30 seconds reads it.
    LaminaSnapshotExport = "lamina_snapshot_export" -> StreamOpened;
    required {
        /// The snapshot.
        snapshot: String,
    }
    optional {
        /// An older snapshot: only what changed since.
        since: String,
        /// Where an earlier stream of the same broke off; this one goes on from there, without a
        /// header.
        resume: StreamMark,
    }
}

method! {
    /// Opens a stream into a disk: who connects to the socket within 30 seconds writes it, ends the
    /// sending side, and reads a line of JSON: an [`ImportDone`], or {"error": {code, message}}.
    LaminaSnapshotImport = "lamina_snapshot_import" -> StreamOpened;
    required {
        /// Name of a new disk, or of one whose import broke off; with `onto`, the disk or clone.
        disk: String,
    }
    optional {
        /// True: an incremental stream, onto a disk that is as the older snapshot.
        onto: bool,
        /// Name or UUID of the store for a new disk; may be left out if only one is open.
        store: String,
    }
}

/// Answer of [`LaminaSnapshotDiff`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDiff {
    /// UUID of the newer snapshot: give it for the next page. One that stands for a disk's "now"
    /// goes with the last page, or after ten minutes.
    pub snapshot: String,
    /// Bytes that it presents.
    pub size: u64,
    /// UUID of the older snapshot.
    pub since: Option<String>,
    /// What changed, ascending.
    pub extents: Vec<DiffExtent>,
    /// Byte to go on from; null: that was all.
    pub next: Option<u64>,
}

/// Bytes that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// "data", or "hole": reads as zeros now.
    pub kind: String,
}

/// Answer of [`LaminaSnapshotExport`] and [`LaminaSnapshotImport`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOpened {
    /// Path of a Unix socket, for one connection.
    pub socket: String,
}

/// How an import ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportDone {
    /// UUID of the disk.
    pub disk: String,
    /// The snapshot that was taken of it: "disk@label" or "disk@number".
    pub snapshot: String,
    /// UUID of that.
    pub uuid: String,
    /// Bytes written.
    pub written: u64,
    /// Bytes made holes.
    pub holes: u64,
    /// Byte of the disk from which an import that had broken off went on.
    pub resumed_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Call;

    #[test]
    fn a_mark_goes_over_the_wire_whole() {
        let mark = StreamMark { bytes: 1, record: 2, offset: 3, checksum: 4, ..Default::default() };
        let call = LaminaSnapshotExport {
            snapshot: "d@1".into(),
            resume: Some(mark),
            ..LaminaSnapshotExport::default()
        };
        let text = serde_json::to_string(&call).unwrap();
        let decoded = Call::decode("lamina_snapshot_export", &text);
        assert_eq!(decoded, Ok(Call::LaminaSnapshotExport(call)));
    }
}
