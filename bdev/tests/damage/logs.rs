//! Damage to snapshot logs.

use super::case::{Case, G, Opens, S, SOLO, past_end, serves};
use super::{FRONT, put};
use lamina_bdev::check::FindingKind::{Leak, Record, SnapshotLog};

pub const LOGS: &[Case] = &[
    serves("log: both copies rotten", SOLO, SnapshotLog, "disk solo", |s| {
        let pair = s.u64_at(s.record(S), 200);
        s.rot(pair, |b| b[99] ^= 1);
        s.rot(pair + 1, |b| b[99] ^= 1);
    }),
    serves("log: head out of range", SOLO, Record, "out of bounds", |s| {
        let past = past_end(s);
        s.edit_record(S, |b| put(b, 200, past));
    }),
    serves("log: head is the last block of the region", SOLO, Record, "out of bounds", |s| {
        let last = s.sb(120) + s.sb(128) * s.sb(136) - 1;
        s.edit_record(S, |b| put(b, 200, last));
    }),
    serves("log: head without blocks", SOLO, Record, "0 blocks", |s| {
        s.edit_record(S, |b| put(b, 208, 0));
    }),
    serves("log: more blocks than the store", SOLO, Record, "blocks", |s| {
        s.edit_record(S, |b| put(b, 208, 1 << 40));
    }),
    serves("log: a block more than there is", SOLO, SnapshotLog, "stale", |s| {
        s.edit_record(S, |b| put(b, 208, 3));
    }),
    serves("log: as long as it could be", SOLO, SnapshotLog, "stale", |s| {
        let most = s.sb(136) * s.sb(128) / 2;
        s.edit_record(S, |b| put(b, 208, most));
        let log = s.log(S);
        s.edit(log, FRONT, |b| put(b, 40, most));
    }),
    serves("log: a cycle", SOLO, SnapshotLog, "disk solo", |s| {
        let (log, head) = (s.log(S), s.u64_at(s.record(S), 200));
        s.edit(log, FRONT, |b| put(b, 4032, head));
    }),
    serves("log: ends too soon", SOLO, SnapshotLog, "out of bounds", |s| {
        let log = s.log(S);
        s.edit(log, FRONT, |b| put(b, 4032, 0));
    }),
    serves("log: the one before is the last block", SOLO, SnapshotLog, "out of bounds", |s| {
        let log = s.log(S);
        let last = s.sb(120) + s.sb(128) * s.sb(136) - 1;
        s.edit(log, FRONT, |b| put(b, 4032, last));
    }),
    serves("log: another disk's", SOLO, SnapshotLog, "disk solo", |s| {
        let other = s.u64_at(s.record(G), 200);
        s.edit_record(S, |b| put(b, 200, other));
    }),
    serves("log: two entries of one number", SOLO, SnapshotLog, "snapshot 1", |s| {
        let (block, _) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| put(b, 64 + 128, 1));
    }),
    serves("log: a snapshot from the future", SOLO, SnapshotLog, "future", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| put(b, at, 1 << 50));
    }),
    serves("log: a root past the end", SOLO, SnapshotLog, "out of bounds", |s| {
        let ((block, at), past) = (s.log_entry(S, 1), past_end(s));
        s.edit(block, FRONT, |b| put(b, at + 16, past));
    }),
    serves("log: a root from the future", SOLO, SnapshotLog, "root of snapshot 1 is from", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 47] = 1);
    }),
    serves("log: larger than any disk", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| put(b, at + 24, 1 << 60));
    }),
    serves("log: half a block too large", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| put(b, at + 24, (1 << 20) + 2048));
    }),
    serves("log: of more blocks than memory holds", SOLO, Record, "cannot have", |s| {
        s.edit_record(S, |b| put(b, 208, (1 << 24) - 1));
    }),
    serves("log: a root too high", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 40] = 9);
    }),
    serves("log: flags unknown", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 41] = 0x80);
    }),
    serves("log: a ghost with a tree", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 41] = 3);
    }),
    serves("log: a label that is none", SOLO, SnapshotLog, "impossible", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 65] = 0xff);
    }),
    Case {
        name: "log: a living snapshot says it is dying",
        victims: SOLO,
        opens: Opens::Serves,
        finds: None,
        says: "",
        damage: |s| {
            let (block, at) = s.log_entry(S, 1);
            s.edit(block, FRONT, |b| b[at + 41] = 1);
        },
    },
    serves("log: reaped to behind the end", SOLO, Leak, "allocated", |s| {
        let (block, at) = s.log_entry(S, 1);
        s.edit(block, FRONT, |b| b[at + 41] = 1);
        s.edit_record(S, |b| {
            put(b, 216, 1);
            put(b, 224, u64::MAX);
        });
    }),
];
