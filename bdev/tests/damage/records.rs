//! Damage to the records of disks, and to what they say a disk was cloned from.

use super::case::{Case, FAMILY, G, S, SOLO, V1, V2, W, past_end, serves};
use super::{ROOT_GENERATION_AT, Store, put, put32};
use lamina_bdev::check::FindingKind::{
    Counter, Descent, Journal, Leak, Node, Record, Shared, SnapshotLog,
};

pub const RECORDS: &[Case] = &[
    serves("record: both copies rotten", SOLO, Record, "slot 3", |s| {
        let pair = s.record_pair(S);
        s.rot(pair, |b| b[99] ^= 1);
        s.rot(pair + 1, |b| b[99] ^= 1);
    }),
    serves("record: root past the end", SOLO, Record, "out of bounds", |s| {
        let root = past_end(s);
        s.edit_record(S, |b| put(b, 160, root));
    }),
    serves("record: root in the system area", SOLO, Record, "out of bounds", |s| {
        s.edit_record(S, |b| put(b, 160, 1));
    }),
    serves("record: root in the journal", SOLO, Record, "out of bounds", |s| {
        let journal = s.sb(104);
        s.edit_record(S, |b| put(b, 160, journal));
    }),
    serves("record: root is a bitmap", SOLO, Record, "out of bounds", |s| {
        let bitmap = s.sb(120);
        s.edit_record(S, |b| put(b, 160, bitmap));
    }),
    serves("record: root is another disk's", SOLO, Shared, "disk solo", |s| {
        let root = s.root(W);
        s.set_root(S, root);
    }),
    serves("record: root from the future", SOLO, Record, "root is from the future", |s| {
        let next = s.sb(48) + 1;
        s.edit_record(S, |b| put(b, ROOT_GENERATION_AT, next));
    }),
    serves("record: root is a data block", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        let data = s.child(leaf, 0);
        s.edit_record(S, |b| put(b, 160, data));
    }),
    serves("record: level too high", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| b[65] = 4);
    }),
    serves("record: level one too high", SOLO, Shared, "also linked", |s| {
        s.edit_record(S, |b| b[65] = 3);
    }),
    serves("record: level one too low", SOLO, Shared, "also linked", |s| {
        s.edit_record(S, |b| b[65] = 1);
    }),
    serves("record: larger than any disk", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| put(b, 152, 1 << 50));
    }),
    serves("record: size not of blocks", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| put(b, 152, 4097));
    }),
    serves("record: epoch zero", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| put(b, 168, 0));
    }),
    serves("record: epoch lies below the snapshots", SOLO, SnapshotLog, "future", |s| {
        s.edit_record(S, |b| put(b, 168, 2));
    }),
    serves("record: epoch at the end of numbers", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| put(b, 168, u64::MAX));
    }),
    serves("record: name of no letters", SOLO, Record, "slot 3", |s| {
        s.edit_record(S, |b| b[72..76].copy_from_slice(&[3, 0xff, 0xfe, 0xfd]));
    }),
    serves("record: name too long", SOLO, Record, "slot 3", |s| {
        s.edit_record(S, |b| b[72] = 200);
    }),
    serves("record: no name", SOLO, Record, "no name", |s| {
        s.edit_record(S, |b| b[72..136].fill(0));
    }),
    serves("record: the name of another disk", SOLO, Record, "same name", |s| {
        let name = s.block(s.record(W))[72..136].to_vec();
        s.edit_record(S, |b| b[72..136].copy_from_slice(&name));
    }),
    serves("record: the UUID of another disk", SOLO, Record, "same UUID", |s| {
        let uuid = s.block(s.record(W))[136..152].to_vec();
        s.edit_record(S, |b| b[136..152].copy_from_slice(&uuid));
    }),
    serves("record: state unknown", SOLO, Record, "slot 3", |s| s.edit_record(S, |b| b[64] = 9)),
    serves("record: blob too long", SOLO, Record, "slot 3", |s| {
        s.edit_record(S, |b| b[240..242].copy_from_slice(&[0xff, 0xff]));
    }),
    serves("record: of another slot", SOLO, Record, "stale", |s| {
        s.edit_record(S, |b| put(b, 40, 4));
    }),
    serves("record: born in the future", SOLO, Record, "future", |s| {
        s.edit_record(S, |b| put(b, 232, 1 << 40));
    }),
    serves("record: mapped count lies", SOLO, Counter, "mapped", |s| {
        s.edit_record(S, |b| put(b, 176, 0));
    }),
    serves("record: mapped count at the end of numbers", SOLO, Record, "impossible", |s| {
        s.edit_record(S, |b| put(b, 176, u64::MAX));
    }),
    serves("record: reaps a snapshot that is not there", SOLO, Record, "reclaimed", |s| {
        s.edit_record(S, |b| put(b, 216, 77));
    }),
    serves("record: reaps a snapshot that is alive", SOLO, Record, "reclaimed", |s| {
        s.edit_record(S, |b| put(b, 216, 1));
    }),
    serves("record: reaps the live tree of a live disk", SOLO, Record, "reclaimed", |s| {
        s.edit_record(S, |b| put(b, 216, u64::MAX));
    }),
    serves("record: deleting, reaped to behind the end", SOLO, Journal, "not available", |s| {
        s.edit_record(S, |b| {
            b[64] = 2;
            put(b, 216, u64::MAX);
            put(b, 224, u64::MAX);
        });
    }),
    serves("record: free, but its disk is there", SOLO, Leak, "allocated", |s| {
        s.edit_record(S, |b| b[64] = 0);
    }),
];

pub const DESCENT: &[Case] = &[
    serves("origin: itself", SOLO, Descent, "disk solo", |s| origin(s, S, S, 1)),
    serves("origin: a cycle of two", FAMILY, Descent, "clone of itself", |s| {
        origin(s, G, V1, 1);
    }),
    serves("origin: a cycle of three", FAMILY, Descent, "clone of itself", |s| {
        origin(s, G, V2, 1);
    }),
    serves("origin: a slot never used", SOLO, Descent, "disk solo", |s| origin(s, S, 99, 1)),
    serves("origin: a slot out of all bounds", SOLO, Descent, "disk solo", |s| {
        origin(s, S, u64::from(u32::MAX), 1);
    }),
    serves("origin: a snapshot not there", &["vm2"], Descent, "disk vm2", |s| {
        origin(s, V2, V1, 500);
    }),
    serves("origin: its record is lost", FAMILY, Record, "slot 0", |s| {
        let pair = s.record_pair(G);
        s.rot(pair, |b| b[99] ^= 1);
        s.rot(pair + 1, |b| b[99] ^= 1);
    }),
];

fn origin(store: &mut Store, slot: u64, disk: u64, snap: u64) {
    store.edit_record(slot, |b| {
        b[66] = 1;
        put32(b, 68, disk as u32);
        put(b, 192, snap);
    });
}
