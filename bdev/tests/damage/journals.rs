//! Damage to the journal: what had been promised is never lost in silence, and costs only the disk
//! that the block was about.

use super::case::{Case, G, SOLO, past_end, refused, serves};
use super::{FRONT, Store, put, put32};
use lamina_bdev::SECTOR_SIZE;
use lamina_bdev::check::FindingKind::{Journal, Superblock};

pub const JOURNALS: &[Case] = &[
    serves("journal: a gap", SOLO, Journal, "durable", |s| {
        let block = s.journal(s.tail() + 2);
        s.rot(block, |b| b[100] ^= 1);
    }),
    serves("journal: a duplicate of another number", SOLO, Journal, "durable", |s| {
        let (from, to) = (s.journal(s.tail() + 1), s.journal(s.tail() + 2));
        let copy = s.block(from).to_vec();
        s.block_mut(to).copy_from_slice(&copy);
    }),
    serves("journal: a stale wrap", SOLO, Journal, "durable", |s| {
        let (block, lsn) = (s.journal(s.tail() + 2), s.tail() + 2);
        let older = lsn.saturating_sub(s.sb(112));
        s.edit(block, FRONT, |b| put(b, 40, older));
    }),
    refused("journal: another incarnation", Superblock, "older than what", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| put(b, 48, 99));
    }),
    serves("journal: more units than fit", SOLO, Journal, "durable", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| b[64..66].copy_from_slice(&[0xff, 0xff]));
    }),
    serves("journal: a record of no kind", SOLO, Journal, "durable", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| b[192] = 99);
    }),
    serves("journal: a record of a disk not there", SOLO_AND_WELL, Journal, "not available", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| put32(b, 192 + 4, 4000));
    }),
    serves("journal: a record past the disk", SOLO_AND_WELL, Journal, "outside the disk", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| put(b, 192 + 8, 1 << 40));
    }),
    serves("journal: a record that overflows", SOLO_AND_WELL, Journal, "outside the disk", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| put(b, 192 + 8, !511));
    }),
    serves("journal: data past the end", SOLO_AND_WELL, Journal, "out of bounds", |s| {
        let (block, past) = (s.journal(s.tail() + 2), past_end(s));
        s.edit(block, FRONT, |b| put(b, 192 + 16, past));
    }),
    serves("journal: data at the end of numbers", SOLO_AND_WELL, Journal, "out of bounds", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| put(b, 192 + 16, u64::MAX));
    }),
    serves("journal: data that is another disk's", SOLO_AND_WELL, Journal, "holds already", |s| {
        let (block, [.., leaf]) = (s.journal(s.tail() + 2), s.path(G));
        let data = s.child(leaf, 0);
        s.edit(block, FRONT, |b| put(b, 192 + 16, data));
    }),
    serves("journal: a record of no blocks", SOLO_AND_WELL, Journal, "outside the disk", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| b[194..196].fill(0));
    }),
    serves("journal: a record on two leaves", SOLO_AND_WELL, Journal, "outside the disk", |s| {
        let block = s.journal(s.tail() + 2);
        s.edit(block, FRONT, |b| {
            b[194..196].copy_from_slice(&[2, 0]);
            put(b, 192 + 8, 511);
        });
    }),
    serves("journal: two records of one block", SOLO_AND_WELL, Journal, "two journal", |s| {
        let (from, to) = (s.journal(s.tail() + 1), s.journal(s.tail() + 2));
        let pba = s.u64_at(from, 192 + 16);
        s.edit(to, FRONT, |b| put(b, 192 + 16, pba));
    }),
    serves("journal: the first block is gone", SOLO, Journal, "durable", |s| {
        let block = s.journal(s.tail());
        s.rot(block, |b| b.fill(0));
    }),
    serves("journal: a write of it was lost", SOLO, Journal, "durable", |s| {
        let block = s.journal(s.tail() + 4);
        s.lose_write(block);
    }),
    serves("journal: two in a row are gone", SOLO_AND_WELL, Journal, "durable", |s| {
        for lsn in [s.tail() + 3, s.tail() + 4] {
            let block = s.journal(lsn);
            s.rot(block, |b| b[100] ^= 1);
        }
    }),
    serves("journal: two apart are gone", SOLO_AND_WELL, Journal, "durable", |s| {
        for lsn in [s.tail() + 3, s.tail() + 6] {
            let block = s.journal(lsn);
            s.rot(block, |b| b[100] ^= 1);
        }
    }),
    // No later block says whether it had been promised.
    serves("journal: the last block is rotten", WELL, Journal, "torn or rotten", |s| {
        let block = s.journal(s.last());
        s.rot(block, |b| b[1000] ^= 1);
    }),
    refused("journal: written after a later point", Superblock, "older than what", |s| {
        let (block, next) = (s.journal(s.tail() + 2), s.sb(48) + 1);
        s.edit(block, FRONT, |b| put(b, 80, next));
    }),
];

const WELL: &[&str] = &["well"];
pub const SOLO_AND_WELL: &[&str] = &["solo", "well"];

/// A journal block torn after `sectors` sectors.
pub fn torn_journal(store: &mut Store, sectors: usize) {
    let block = store.journal(store.tail() + 2);
    store.rot(block, |b| b[sectors * SECTOR_SIZE..].fill(0x5a));
}

/// A name, and what it does to a store.
type Torn = (&'static str, fn(&mut Store));

/// A journal block torn in the middle of the journal.
pub fn torn_journals() -> impl Iterator<Item = Case> {
    let torn: [Torn; 8] = [
        ("journal: torn at 0", |s| torn_journal(s, 0)),
        ("journal: torn at 512", |s| torn_journal(s, 1)),
        ("journal: torn at 1024", |s| torn_journal(s, 2)),
        ("journal: torn at 1536", |s| torn_journal(s, 3)),
        ("journal: torn at 2048", |s| torn_journal(s, 4)),
        ("journal: torn at 2560", |s| torn_journal(s, 5)),
        ("journal: torn at 3072", |s| torn_journal(s, 6)),
        ("journal: torn at 3584", |s| torn_journal(s, 7)),
    ];
    torn.into_iter().map(|(name, damage)| serves(name, SOLO, Journal, "durable", damage))
}
