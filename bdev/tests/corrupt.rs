//! A damaged store: whatever lies on disk, opening it ends, soon and in bounded memory, without a
//! panic; what is damaged is named with disk and block; the other disks serve every byte; and
//! `check` finds it. Each case damages one thing, most with the checksum made right again.

mod damage;
mod simple;

use damage::case::*;
use damage::journals::{JOURNALS, torn_journals};
use damage::pairs::PAIRS;
use damage::{Due, FRONT, NODE, ROOT_GENERATION_AT, Store, checked, put, put32, repaired};
use lamina_bdev::check::{FindingKind, Severity};
use lamina_bdev::*;
use simple::{FILE, RAM, Rig};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// CPU time that opening, reading and writing a damaged store may take.
const CPU_NS_MAX: u64 = 2_000_000_000;
/// Memory that it may take, the engine's own included.
const MEMORY_KIB_MAX: u64 = 64 << 10;
/// Turns of the host's loop before opening counts as hung.
const TURNS_MAX: u64 = 200_000;

use FindingKind::{
    Bitmap, Catalogue, Counter, Descent, Journal, Label, Leak, Node, NotAllocated, Record, Shared,
    SnapshotLog, Superblock,
};

const SUPERBLOCKS: &[Case] = &[
    serves("superblock a: rotten", NONE, Superblock, "block 0", |s| {
        s.rot(0, |b| b[700] ^= 1);
    }),
    serves("superblock b: rotten", NONE, Superblock, "block 1", |s| {
        s.rot(1, |b| b[700] ^= 1);
    }),
    refused("superblocks: both rotten", Superblock, "both superblocks", |s| {
        s.rot(0, |b| b[700] ^= 1);
        s.rot(1, |b| b[700] ^= 1);
    }),
    refused("superblocks: both of no magic", Superblock, "no Lamina metadata", |s| {
        both(s, 0, |b| b[0] = b'X');
    }),
    refused("superblocks: both of another version", Superblock, "version 9", |s| {
        both(s, 0, |b| b[6] = 9);
    }),
    refused("superblocks: both of another store", Superblock, "another store", |s| {
        both(s, 0, |b| b[16] ^= 0xff);
    }),
    refused("superblocks: both of another shard", Superblock, "another store or shard", |s| {
        both(s, 0, |b| b[56] = 7);
    }),
    refused("superblocks: exchanged", Superblock, "misdirected", |s| {
        let (a, b) = (s.block(0).to_vec(), s.block(1).to_vec());
        s.block_mut(0).copy_from_slice(&b);
        s.block_mut(1).copy_from_slice(&a);
    }),
    refused("superblocks: a catalogue for more extents", Superblock, "impossible", |s| {
        let (records, slots) = (s.sb(88), s.sb(96));
        s.set_sb(80, 2);
        s.set_sb(88, records + 2);
        s.set_sb(96, slots - 1);
    }),
    refused("superblocks: a region larger than the device", Superblock, "region", |s| {
        let blocks = s.sb(64) * 1000;
        s.set_sb(64, blocks);
    }),
    refused("superblocks: extents past the region", Superblock, "impossible", |s| {
        s.set_sb(136, 1 << 19);
    }),
    refused("superblocks: journal of one block", Superblock, "impossible", |s| {
        s.set_sb(112, 1);
    }),
    refused("superblocks: extents of no blocks", Superblock, "impossible", |s| {
        s.set_sb(128, 0);
    }),
    refused("superblocks: more records than slots", Superblock, "impossible", |s| {
        s.set_sb(160, 1 << 40);
    }),
    refused("superblocks: numbers that overflow", Superblock, "impossible", |s| {
        s.set_sb(80, u64::MAX / 2);
    }),
    refused("superblocks: an older point than all pairs", Superblock, "older than what", |s| {
        s.set_sb(48, 1);
    }),
    refused("superblocks: generation at the end of numbers", Superblock, "impossible", |s| {
        s.set_sb(48, u64::MAX);
    }),
    refused("superblocks: journal tail at the end of numbers", Superblock, "impossible", |s| {
        s.set_sb(144, u64::MAX - 3);
    }),
    refused("superblocks: incarnation at the end of numbers", Superblock, "impossible", |s| {
        s.set_sb(152, u64::MAX);
    }),
    serves("superblocks: disagree", NONE, Superblock, "disagree", |s| {
        let older = if s.u64_at(1, 48) > s.u64_at(0, 48) { 0 } else { 1 };
        let generation = s.sb(48) - 2;
        s.edit(older, FRONT, |b| put(b, 48, generation));
    }),
];

const LABELS: &[Case] = &[
    serves("label a: rotten", NONE, Label, "block 0 of the device", |s| s.disk[100] ^= 1),
    serves("label b: rotten", NONE, Label, "block 1 of the device", |s| s.disk[4196] ^= 1),
    refused("labels: both rotten", Label, "both labels", |s| {
        s.disk[100] ^= 1;
        s.disk[4196] ^= 1;
    }),
    refused("labels: more than the device", Label, "truncated", |s| {
        label(s, |b| put(b, 136, 1 << 40));
    }),
    refused("labels: no shards", Label, "impossible", |s| label(s, |b| put32(b, 152, 0))),
    refused("labels: shards that overflow", Label, "impossible", |s| {
        label(s, |b| put(b, 136, !0xfff));
    }),
    refused("labels: another version", Label, "version 200", |s| label(s, |b| b[6] = 200)),
    refused("labels: regions begin elsewhere", Label, "impossible", |s| {
        label(s, |b| put(b, 128, 4096));
    }),
    refused("labels: a name that is none", Label, "impossible", |s| label(s, |b| b[65] = 0xff)),
];

/// Changes both labels and seals them.
fn label(store: &mut Store, change: impl Fn(&mut [u8])) {
    for copy in 0..2 {
        let block = &mut store.disk[copy * BLOCK_SIZE..(copy + 1) * BLOCK_SIZE];
        change(block);
        block[8..12].fill(0);
        let crc = crc32c::crc32c(block);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

const RECORDS: &[Case] = &[
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

const DESCENT: &[Case] = &[
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

const LOGS: &[Case] = &[
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

const NODES: &[Case] = &[
    serves("root: rotten", SOLO, Node, "disk solo", |s| {
        let [root, ..] = s.path(S);
        s.rot(root, |b| b[10] ^= 1);
    }),
    serves("inner node: rotten", SOLO, Node, "disk solo", |s| {
        let [_, inner, _] = s.path(S);
        s.rot(inner, |b| b[10] ^= 1);
    }),
    serves("leaf: rotten", SOLO, Node, "disk solo", |s| {
        let [.., leaf] = s.path(S);
        s.rot(leaf, |b| b[10] ^= 1);
    }),
    serves("node: a link past the end", SOLO, Node, "out of bounds", |s| {
        let ([_, inner, _], past) = (s.path(S), past_end(s));
        s.set_link(inner, 7, past);
    }),
    serves("node: a link to the superblock", SOLO, Node, "out of bounds", |s| {
        let [_, inner, _] = s.path(S);
        s.set_link(inner, 7, 1);
    }),
    serves("leaf: a link into the journal", SOLO, Node, "out of bounds", |s| {
        let ([.., leaf], journal) = (s.path(S), s.sb(104));
        s.set_link(leaf, 7, journal);
    }),
    serves("leaf: a link to a bitmap", SOLO, Node, "out of bounds", |s| {
        let ([.., leaf], bitmap) = (s.path(S), s.sb(120) + 1);
        s.set_link(leaf, 7, bitmap);
    }),
    serves("leaf: a link marked lost", SOLO, Leak, "held by nothing", |s| {
        let [.., leaf] = s.path(S);
        s.set_link(leaf, 7, (1 << 47) - 1);
    }),
    serves("node: a link from the future", SOLO, Node, "future", |s| {
        let ([_, inner, leaf], stamp) = (s.path(S), s.sb(48) + 1);
        s.set_link_stamped(inner, 0, leaf, stamp);
    }),
    serves("node: a cycle to the root", SOLO, Shared, "disk solo", |s| {
        let [root, inner, _] = s.path(S);
        s.set_link(inner, 0, root);
    }),
    serves("node: a cycle to itself", SOLO, Shared, "disk solo", |s| {
        let [_, inner, _] = s.path(S);
        s.set_link(inner, 0, inner);
    }),
    serves("node: a child at the wrong depth", SOLO, Node, "disk solo", |s| {
        let [root, _, leaf] = s.path(S);
        s.set_link(root, 0, leaf);
    }),
    serves("node: two parents", SOLO, Shared, "disk solo", |s| {
        let [_, inner, leaf] = s.path(S);
        s.set_link(inner, 1, leaf);
    }),
    serves("node: a child of another disk", SOLO, Shared, "disk solo", |s| {
        let ([_, inner, _], [.., other]) = (s.path(S), s.path(W));
        s.set_link(inner, 0, other);
    }),
    serves("node: a clone into its origin's private tree", &["vm1"], Shared, "disk vm1", |s| {
        let ([_, inner, _], [.., other]) = (s.path(V1), s.path(G));
        s.set_link(inner, 0, other);
    }),
    serves("leaf: a data block of another disk", SOLO, Shared, "at block", |s| {
        let ([.., leaf], [.., other]) = (s.path(S), s.path(W));
        let data = s.child(other, 3);
        s.set_link(leaf, 3, data);
    }),
    serves("leaf: one data block twice", SOLO, Shared, "at block", |s| {
        let [.., leaf] = s.path(S);
        let data = s.child(leaf, 3);
        s.set_link(leaf, 9, data);
    }),
    serves("leaf: a data block that is a node", SOLO, Shared, "metadata", |s| {
        let [root, _, leaf] = s.path(S);
        s.set_link(leaf, 9, root);
    }),
    serves("leaf: a data block that is another disk's node", SOLO, Shared, "data block", |s| {
        let ([.., leaf], [other, ..]) = (s.path(S), s.path(W));
        s.set_link(leaf, 9, other);
    }),
    serves("leaf: a data block that is a snapshot log", SOLO, Shared, "metadata", |s| {
        let ([.., leaf], log) = (s.path(S), s.u64_at(s.record(G), 200));
        s.set_link(leaf, 9, log);
    }),
    serves("leaf: a data block that is free", SOLO, NotAllocated, "free in its bitmap", |s| {
        let [.., leaf] = s.path(S);
        let free = s.free_block(s.root(W));
        s.set_link(leaf, 9, free);
    }),
    serves("node: of a snapshot log", SOLO, Shared, "snapshot log", |s| {
        let ([_, inner, _], log) = (s.path(S), s.u64_at(s.record(S), 200));
        s.set_link(inner, 0, log);
    }),
    serves("node: of another index", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 40, 5));
    }),
    serves("node: of another level", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| b[NODE + 5] = 1);
    }),
    serves("node: of another address", SOLO, Node, "misdirected", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 32, 12345));
    }),
    serves("node: of another store", SOLO, Node, "another store", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| b[NODE + 16] ^= 1);
    }),
    serves("node: of another owner", SOLO, Shared, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put32(b, NODE + 12, W as u32));
    }),
    serves("node: generation from the future", SOLO, Node, "consistency point", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 48, 1 << 50));
    }),
    serves("node: born in the future", SOLO, Shared, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.edit(leaf, NODE, |b| put(b, NODE + 64, 1 << 50));
    }),
    serves("leaf: stale", SOLO, Node, "lost", |s| {
        let [.., leaf] = s.path(S);
        s.make_stale(leaf, 1, 3);
    }),
    serves("leaf: stale, shared by clones", FAMILY, Node, "lost", |s| {
        let root = s.snapshot_root(G, 1);
        let leaf = s.child(s.child(root, 1), 0);
        s.make_stale(leaf, 1, 3);
    }),
    serves("inner node: stale", SOLO, Node, "lost", |s| {
        let [_, inner, _] = s.path(S);
        s.make_stale(inner, 1, 0);
    }),
    serves("root: stale", SOLO, Node, "lost", |s| {
        let [root, ..] = s.path(S);
        s.make_stale(root, 1, 0);
    }),
    serves("root: stale, of a snapshot", SOLO, Node, "lost", |s| {
        let root = s.snapshot_root(S, 1);
        s.make_stale(root, 1, 0);
    }),
    serves("node: torn at 512", SOLO, Node, "torn", |s| {
        let [_, _, leaf] = s.path(S);
        s.rot(leaf, |b| b[512..1024].fill(0xa5));
    }),
    serves("node: zeroed", SOLO, Node, "disk solo", |s| {
        let [_, _, leaf] = s.path(S);
        s.rot(leaf, |b| b.fill(0));
    }),
];

const SPACE: &[Case] = &[
    serves("catalogue: both copies rotten", NONE, Catalogue, "catalogue", |s| {
        let pair = s.sb(72);
        s.rot(pair, |b| b[99] ^= 1);
        s.rot(pair + 1, |b| b[99] ^= 1);
    }),
    serves("catalogue: a type unknown", NONE, Catalogue, "impossible", |s| {
        let block = s.current(s.sb(72));
        s.edit(block, FRONT, |b| b[64 + 16] = 9);
    }),
    serves("catalogue: more free than there are", NONE, Catalogue, "impossible", |s| {
        let block = s.current(s.sb(72));
        s.edit(block, FRONT, |b| put32(b, 64 + 4, u32::MAX));
    }),
    serves("catalogue: a free count lies", NONE, Bitmap, "the catalogue says", |s| {
        let (_, catalogue, entry) = s.bitmap_of(s.root(W));
        s.edit(catalogue, FRONT, |b| b[entry + 4] ^= 1);
    }),
    serves("catalogue: a used extent said to be fresh", NONE, Bitmap, "never written", |s| {
        let (_, catalogue, entry) = s.bitmap_of(s.root(W));
        s.edit(catalogue, FRONT, |b| put(b, entry + 8, 0));
    }),
    harmless("catalogue: a type lies", |s| {
        let (_, catalogue, entry) = s.bitmap_of(s.root(W));
        s.edit(catalogue, FRONT, |b| b[entry] = 3 - b[entry]);
    }),
    serves("catalogue: a bitmap from the future", NONE, Bitmap, "future", |s| {
        let (_, catalogue, entry) = s.bitmap_of(s.root(W));
        s.edit(catalogue, FRONT, |b| put(b, entry + 8, 1 << 50));
    }),
    serves("catalogue: of another place", NONE, Catalogue, "stale", |s| {
        let block = s.current(s.sb(72));
        s.edit(block, FRONT, |b| put(b, 40, 1));
    }),
    serves("bitmap: rotten", NONE, Bitmap, "bitmap of extent", |s| {
        let (bitmap, _, _) = s.bitmap_of(s.root(W));
        s.rot(bitmap, |b| b[99] ^= 1);
    }),
    serves("bitmap: of another extent", NONE, Bitmap, "bitmap of extent", |s| {
        let (bitmap, _, _) = s.bitmap_of(s.root(W));
        s.edit(bitmap, FRONT, |b| put(b, 40, 77));
    }),
    serves("bitmap: its own blocks are free", NONE, Bitmap, "own blocks", |s| {
        let block = s.root(W);
        let (bitmap, _, _) = s.bitmap_of(block);
        let start = block - (block - s.sb(120)) % s.sb(128);
        let (free, _) = (s.free_block(block), bitmap);
        s.mark(start, false);
        s.mark(free, true);
    }),
    serves("bitmap: a data block in use is free", SOLO, NotAllocated, "free in its bitmap", |s| {
        let [.., leaf] = s.path(S);
        let data = s.child(leaf, 3);
        s.mark(data, false);
    }),
    serves("bitmap: a leaf in use is free", SOLO, NotAllocated, "free in its bitmap", |s| {
        let [.., leaf] = s.path(S);
        s.mark(leaf, false);
    }),
    serves("bitmap: a snapshot log in use is free", SOLO, NotAllocated, "in its bitmap", |s| {
        let log = s.u64_at(s.record(S), 200);
        s.mark(log, false);
    }),
    serves("bitmap: a free block is in use", NONE, Leak, "allocated", |s| {
        let free = s.free_block(s.root(W));
        s.mark(free, true);
    }),
];

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for group in [SUPERBLOCKS, LABELS, RECORDS, DESCENT, LOGS, NODES, SPACE, PAIRS, JOURNALS] {
        all.extend(group.iter().map(|c| Case { ..*c }));
    }
    all.extend(torn_journals());
    all
}

/// Nanoseconds this thread has run.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// A line of /proc/self/status, KiB.
fn memory_kib(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(key)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Opens the store as a host would; the engine's state is what came of it.
fn open(disk: Vec<u8>, store: &Store) -> Result<Rig, String> {
    let label = read_label(&disk[..LABEL_BYTES], disk.len() as u64).map_err(|e| e.to_string())?;
    let mut rig = Rig::start(disk, label, store.traits);
    rig.cookie = 1 << 40;
    for _ in 0..TURNS_MAX {
        match rig.engine.state() {
            EngineState::Opening => rig.turn(),
            EngineState::Ready => return Ok(rig),
            EngineState::Failed => {
                let why = rig.engine.open_error().map(ToString::to_string);
                return Err(why.expect("a refusal says why"));
            }
        }
    }
    Err("HUNG: opening never ended".to_string())
}

fn attach(rig: &mut Rig, target: Target) -> Option<Handle> {
    match rig.command(Command::Attach(target)) {
        Ok(Reply::Handle(handle)) => Some(handle),
        Ok(other) => panic!("{other:?} is no handle"),
        Err(_) => None,
    }
}

/// A healthy disk reads what is due and takes writes.
fn assert_healthy(rig: &mut Rig, due: &Due, writes: bool) {
    let handle = attach(rig, due.target).unwrap_or_else(|| panic!("{} is gone", due.name));
    for (at, bytes) in &due.bytes {
        let mut data = vec![0x5a; bytes.len()];
        let status = rig.request(handle, Op::Read, *at, &mut data);
        assert_eq!(status, Status::Ok, "{} at {at}", due.name);
        assert!(data == *bytes, "{} reads other bytes at {at}", due.name);
    }
    if writes && matches!(due.target, Target::Disk(_)) {
        // Away from the bytes that are compared.
        assert_eq!(rig.request(handle, Op::Write, 2 << 30, &mut [7; 8192]), Status::Ok);
        assert_eq!(rig.request(handle, Op::Flush, 0, &mut []), Status::Ok);
        assert_eq!(rig.read(handle, 2 << 30, 8192), vec![7; 8192], "{}", due.name);
    }
    rig.command(Command::Detach(handle)).unwrap();
}

/// A damaged disk may answer anything but a panic or nothing at all.
fn use_victim(rig: &mut Rig, due: &Due) {
    let Some(handle) = attach(rig, due.target) else { return };
    for (at, bytes) in &due.bytes {
        rig.request(handle, Op::Read, *at, &mut vec![0; bytes.len()]);
        if matches!(due.target, Target::Disk(_)) {
            rig.request(handle, Op::Write, *at + 4096, &mut vec![9; 40 << 10]);
            rig.ranged(handle, Op::Discard, *at + (32 << 10), 32 << 10, &mut []);
        }
    }
    rig.command(Command::Detach(handle)).unwrap();
}

fn is_victim(case: &Case, due: &Due) -> bool {
    let disk = due.name.split('@').next().expect("a name");
    case.victims.contains(&disk)
}

/// Opens, serves, makes a consistency point, opens again.
fn serve(case: &Case, store: &Store, whole: &Store) {
    let mut rig = match open(store.disk.clone(), store) {
        Ok(rig) => rig,
        Err(why) => {
            assert_eq!(case.opens, Opens::Refused, "not served: {why}");
            return;
        }
    };
    assert_eq!(case.opens, Opens::Serves, "it was served");
    case.assert_named(&rig.take_events(), store, whole);
    let healthy: Vec<&Due> = store.due.iter().filter(|d| !is_victim(case, d)).collect();
    healthy.iter().for_each(|due| assert_healthy(&mut rig, due, true));
    store.due.iter().filter(|d| is_victim(case, d)).for_each(|due| use_victim(&mut rig, due));
    for _ in 0..3 {
        let _ = rig.command(Command::Checkpoint);
    }
    healthy.iter().for_each(|due| assert_healthy(&mut rig, due, true));
    let mut again = open(rig.disk, store).expect("it opens again");
    healthy.iter().for_each(|due| assert_healthy(&mut again, due, false));
}

fn look(case: &Case, store: &Store) {
    let report = match checked(&store.disk) {
        Ok(report) => report,
        Err(error) => {
            assert_eq!(case.finds, Some(Label), "it could not check: {error}");
            assert!(error.message.contains(case.says), "it says only: {error}");
            return;
        }
    };
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let Some(kind) = case.finds else {
        assert!(report.clean(), "{texts:#?}");
        return;
    };
    let named = report.findings.iter().find(|f| f.kind == kind && f.text.contains(case.says));
    let named = named.unwrap_or_else(|| panic!("check does not say {:?}: {texts:#?}", case.says));
    assert!(named.block.is_some(), "no block is named: {named}");
    let mended = named.severity == Severity::Note;
    assert!(!report.clean() || mended, "{texts:#?}");
}

fn run(case: &Case, whole: &Store) -> Result<(), String> {
    let mut store = whole.clone();
    let before = memory_kib("VmRSS");
    // Starts the peak anew; where that is not allowed, the peak of all cases has to do.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let start = cpu_ns();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (case.damage)(&mut store);
        assert!(store.disk != whole.disk, "nothing was damaged");
        look(case, &store);
        serve(case, &store, whole);
    }));
    let (cpu, peak) = (cpu_ns() - start, memory_kib("VmHWM").saturating_sub(before));
    let copies = 2 * (store.disk.len() as u64 >> 10);
    outcome.map_err(|panic| panic_text(&*panic))?;
    if cpu > CPU_NS_MAX {
        return Err(format!("it took {} ms of CPU time", cpu / 1_000_000));
    }
    if peak > MEMORY_KIB_MAX + copies {
        return Err(format!("it took {peak} KiB of memory"));
    }
    Ok(())
}

/// What a repair without loss makes clean again.
const MENDED: [FindingKind; 7] =
    [Superblock, Label, Catalogue, Bitmap, NotAllocated, Leak, Counter];

/// What a repair that may cut off does not make clean: what a journal says of disks that are not
/// there stays, and of disks that descend from each other nobody knows which came first.
const NOT_CUT_CLEAN: &[&str] =
    &["origin: a cycle of two", "record: deleting, reaped to behind the end"];

/// Repairs, looks, and serves as `case` says or better.
fn mend(case: &Case, store: &mut Store, cut_off: bool) -> Result<bool, String> {
    let whole = checked(&store.disk).is_ok_and(|report| report.clean());
    let (report, done) = match repaired(&mut store.disk, cut_off) {
        Ok(found) => found,
        Err(error) => {
            assert_eq!(case.opens, Opens::Refused, "not repaired: {error}");
            return Ok(false);
        }
    };
    let clean = report.clean();
    if clean {
        assert!(!done.is_empty() || whole, "clean, but nothing was done");
        let (again, nothing) = repaired(&mut store.disk, cut_off).unwrap();
        assert!(again.clean() && nothing.is_empty(), "a second repair did {nothing:?}");
    }
    if let Ok(mut rig) = open(store.disk.clone(), store) {
        for due in store.due.iter().filter(|d| !is_victim(case, d)) {
            assert_healthy(&mut rig, due, true);
        }
    } else {
        assert_eq!(case.opens, Opens::Refused, "it is not served any more");
    }
    let must = case.finds.is_none_or(|kind| MENDED.contains(&kind))
        || cut_off && case.finds != Some(Journal) && !NOT_CUT_CLEAN.contains(&case.name);
    let lost = case.opens == Opens::Refused && case.finds != Some(Catalogue);
    if must && !lost && !clean {
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        return Err(format!("not clean after repair (cut off: {cut_off}): {texts:#?}; {done:#?}"));
    }
    Ok(clean)
}

#[test]
fn repair_mends_what_it_can_and_harms_nobody() {
    let only = std::env::var("CORRUPT_CASE").ok();
    let whole = Store::new(RAM);
    let mut failed = Vec::new();
    for case in cases() {
        if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        for cut_off in [false, true] {
            let mut store = whole.clone();
            (case.damage)(&mut store);
            let outcome = catch_unwind(AssertUnwindSafe(|| mend(&case, &mut store, cut_off)));
            match outcome {
                Ok(Ok(_)) => {}
                Ok(Err(why)) => failed.push(format!("{}: {why}", case.name)),
                Err(panic) => failed.push(format!("{}: {}", case.name, panic_text(&*panic))),
            }
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

#[test]
fn no_damage_panics_hangs_or_spreads() {
    let only = std::env::var("CORRUPT_CASE").ok();
    let mut failed = Vec::new();
    let mut count = 0;
    for traits in [RAM, FILE] {
        let whole = Store::new(traits);
        let report = checked(&whole.disk).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert!(report.counts.journal_records >= 40, "{:?}", report.counts);
        for case in cases() {
            if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                continue;
            }
            count += 1;
            if let Err(why) = run(&case, &whole) {
                failed.push(format!("{} ({traits:?}): {why}", case.name));
            }
        }
    }
    assert!(count >= 2 * 60 || only.is_some(), "only {count} cases");
    assert!(failed.is_empty(), "{} of {count} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Where nothing tears, a block at the journal's end that says what it was has rotted.
#[test]
fn a_lost_journal_block_seals_its_disk_until_the_loss_is_accepted() {
    let mut store =
        Store::new(BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: false });
    let block = store.journal(store.last());
    store.rot(block, |b| b[1000] ^= 1);
    let find = |name| store.due.iter().find(|d| d.name == name).expect("it is listed").clone();
    let (well, solo) = (find("well"), find("solo"));
    let mut rig = open(store.disk.clone(), &store).unwrap();
    for _ in 0..2 {
        let refused = rig.command(Command::Attach(well.target)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Corrupt);
        assert!(refused.message.contains("well is sealed"), "{refused}");
        assert_healthy(&mut rig, &solo, true);
        let texts: Vec<String> = rig.take_events().into_iter().map(|e| e.text).collect();
        assert!(texts.iter().any(|text| text.contains("journal block")), "{texts:?}");
        // The journal is gone after the first time; the record knows.
        rig = open(rig.disk, &store).unwrap();
    }
    let mut disk = rig.disk;
    assert!(!checked(&disk).unwrap().clean());
    assert!(!repaired(&mut disk, false).unwrap().0.clean(), "it takes a decision");
    assert!(repaired(&mut disk, true).unwrap().0.clean());
    let mut rig = open(disk, &store).unwrap();
    assert!(attach(&mut rig, well.target).is_some());
    assert_healthy(&mut rig, &solo, true);
}
