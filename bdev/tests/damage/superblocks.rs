//! Damage to what a store begins with: the labels of the device and the superblocks of the shard.

use super::case::{Case, NONE, both, refused, serves};
use super::{FRONT, Store, put, put32};
use lamina_bdev::BLOCK_SIZE;
use lamina_bdev::check::FindingKind::{Label, Superblock};

pub const SUPERBLOCKS: &[Case] = &[
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

pub const LABELS: &[Case] = &[
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
