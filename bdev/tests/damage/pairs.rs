//! Pairs of which the newer copy is gone, by rot or since the device lost the write: the older one
//! must never pass for it.

use super::Store;
use super::case::{Case, NONE, S, SOLO, refused, serves};
use lamina_bdev::check::FindingKind::{Catalogue, Record, SnapshotLog, Superblock};

/// Slot of the disk that was deleted.
const FREE: u64 = 5;

fn rot(store: &mut Store, block: u64) {
    store.rot(block, |b| b[99] ^= 1);
}

pub const PAIRS: &[Case] = &[
    serves("pair: the newer record is rotten", SOLO, Record, "was committed", |s| {
        rot(s, s.record(S));
    }),
    serves("pair: the newer record was never written", SOLO, Record, "was committed", |s| {
        s.lose_write(s.record(S));
    }),
    serves("pair: both records are older", SOLO, Record, "was committed", |s| {
        let pair = s.record_pair(S);
        s.lose_write(s.record(S));
        let (from, to) = if s.record(S) == pair { (0, 1) } else { (1, 0) };
        let older = s.u64_at(pair + from, 48) - 1;
        s.edit(pair + to, 0, |b| b[48..56].copy_from_slice(&older.to_le_bytes()));
    }),
    serves("pair: the newer record of a free slot is rotten", NONE, Record, "disk gone", |s| {
        rot(s, s.record(FREE));
    }),
    serves("pair: the newer record of a free slot is gone", NONE, Record, "disk gone", |s| {
        s.lose_write(s.record(FREE));
    }),
    serves("pair: the newer log is rotten", SOLO, SnapshotLog, "was committed", |s| {
        rot(s, s.log(S));
    }),
    serves("pair: the newer log was never written", SOLO, SnapshotLog, "was committed", |s| {
        s.lose_write(s.log(S));
    }),
    serves("pair: the newer catalogue is rotten", NONE, Catalogue, "was committed", |s| {
        rot(s, s.current(s.sb(72)));
    }),
    serves("pair: the newer catalogue was never written", NONE, Catalogue, "was committed", |s| {
        s.lose_write(s.current(s.sb(72)));
    }),
    serves("pair: one superblock was never written", NONE, Superblock, "disagree", |s| {
        s.lose_write(0);
    }),
    refused("pair: both superblocks were never written", Superblock, "older than what", |s| {
        s.lose_write(0);
        s.lose_write(1);
    }),
    serves("pair: the sums of a group are wrong", SOLO, Record, "not the one", |s| {
        // Its group has one member; more than it holds was never committed.
        let at = 64 + 112 + 16 * (1 + S as usize);
        for copy in 0..2 {
            s.edit(copy, 0, |b| b[at] ^= 0x55);
        }
    }),
];
