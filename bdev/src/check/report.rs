//! What a check found: findings for people and programs, and counts.

use std::fmt;

/// Findings kept with their text; more are only counted.
const FINDINGS_MAX: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing; nothing has to be done, and the store counts as clean.
    Note,
    /// Space or redundancy is lost, but no data: `--repair` mends it.
    Warning,
    /// Data or metadata is damaged.
    Error,
}

impl Severity {
    /// One lower-case word.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// What kind of thing is wrong; stable words for programs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FindingKind {
    /// The device label.
    Label,
    /// A superblock.
    Superblock,
    /// A block of the catalogue of extents.
    Catalogue,
    /// An allocation bitmap that cannot be used.
    Bitmap,
    /// A disk's record.
    Record,
    /// A disk's snapshot log.
    SnapshotLog,
    /// A map node that cannot be used.
    Node,
    /// One block held at two places, or by two that cannot share it.
    Shared,
    /// In use, but free in its bitmap.
    NotAllocated,
    /// Allocated, but held by nothing.
    Leak,
    /// The journal.
    Journal,
    /// Descent of disks and snapshots.
    Descent,
    /// A counter that does not agree with what it counts.
    Counter,
    /// Data given up on earlier.
    Lost,
    /// The base device could not be read.
    Io,
    /// Something was not looked at.
    Skipped,
}

impl FindingKind {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            FindingKind::Label => "label",
            FindingKind::Superblock => "superblock",
            FindingKind::Catalogue => "catalogue",
            FindingKind::Bitmap => "bitmap",
            FindingKind::Record => "record",
            FindingKind::SnapshotLog => "snapshot-log",
            FindingKind::Node => "node",
            FindingKind::Shared => "shared",
            FindingKind::NotAllocated => "not-allocated",
            FindingKind::Leak => "leak",
            FindingKind::Journal => "journal",
            FindingKind::Descent => "descent",
            FindingKind::Counter => "counter",
            FindingKind::Lost => "lost",
            FindingKind::Io => "io",
            FindingKind::Skipped => "skipped",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            FindingKind::Label | FindingKind::Superblock => {
                "--repair writes both copies anew if one is good; otherwise restore a backup"
            }
            FindingKind::Catalogue | FindingKind::Bitmap | FindingKind::NotAllocated => {
                "take the store out of use and run --repair: it rebuilds the bitmaps"
            }
            FindingKind::Record | FindingKind::SnapshotLog => {
                "--repair mends names and counts; what cannot be read is given up, and clones and the rest kept, by --repair --cut-off; then restore a backup"
            }
            FindingKind::Node => {
                "that part of the disk answers with errors; copy off what can be read, then --repair --cut-off"
            }
            FindingKind::Shared => {
                "stop writing to these disks and copy them elsewhere; --repair --cut-off leaves the block to one and marks it lost in the other, named"
            }
            FindingKind::Leak => "--repair frees it",
            FindingKind::Journal => {
                "what is missing is lost; open the store once, so that the rest is replayed; --repair --cut-off accepts the loss"
            }
            FindingKind::Descent => {
                "--repair --cut-off finds where the disk comes from, if what it shares tells; else copy it elsewhere and delete it"
            }
            FindingKind::Counter => "--repair counts again",
            FindingKind::Lost => {
                "restore that range from a backup; writing a lost block clears its mark"
            }
            FindingKind::Io => "look at the device and its cables, then check again",
            FindingKind::Skipped => "check again when the store is less busy, or closed",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Of what kind.
    pub kind: FindingKind,
    /// In which shard.
    pub shard: u32,
    /// The disk it is about.
    pub disk: Option<String>,
    /// Snapshot number, if it is about one.
    pub snapshot: Option<u64>,
    /// 4 KiB block of the shard's region.
    pub block: Option<u64>,
    /// For people: names disk and block.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (severity, kind) = (self.severity.word(), self.kind.word());
        write!(f, "{severity} ({kind}): shard {}: {}", self.shard, self.text)
    }
}

/// What was looked at.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Shards.
    pub shards: u64,
    /// Disks, those being deleted included.
    pub disks: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Map nodes, each once.
    pub nodes: u64,
    /// Data blocks, each once.
    pub data_blocks: u64,
    /// Data blocks that several leaves hold.
    pub shared_blocks: u64,
    /// Free blocks, as the bitmaps say.
    pub free_blocks: u64,
    /// Allocated blocks that nothing holds.
    pub leaked_blocks: u64,
    /// Journal records not replayed yet.
    pub journal_records: u64,
}

/// The outcome of a check.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Report {
    /// In the order found.
    pub findings: Vec<Finding>,
    /// Findings beyond those kept.
    pub more: u64,
    /// What was looked at.
    pub counts: Counts,
    worst: Option<Severity>,
}

impl Report {
    /// True if nothing worse than a note was found.
    pub fn clean(&self) -> bool {
        self.worst.is_none_or(|worst| worst == Severity::Note)
    }

    /// Findings of this severity among those kept.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// Adds one.
    pub(super) fn add(&mut self, finding: Finding) {
        self.worst = self.worst.max(Some(finding.severity));
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}
