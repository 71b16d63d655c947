//! Damage to what says which blocks are in use: the catalogue and its bitmaps.

use super::case::{Case, NONE, S, SOLO, W, harmless, serves};
use super::{FRONT, put, put32};
use lamina_bdev::check::FindingKind::{Bitmap, Catalogue, Leak, NotAllocated};

pub const SPACE: &[Case] = &[
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
