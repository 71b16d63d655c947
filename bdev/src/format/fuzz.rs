//! Fuzz targets of the metadata decoders: whatever a block with a right checksum holds, decoding
//! it never panics, and what decodes is written back as the same thing.

use core::time::Duration;

use super::superblock::{Geometry, Superblock};
use super::{
    Block, Kind, checksum, disk_record, extent, journal, label, node, snapshot_log, unseal,
};
use crate::limits::LINKS;
use crate::types::{BLOCK_SIZE, Name, Uuid};

const STORE: Uuid = Uuid([3; 16]);
const ADDRESS: u64 = 0x1234;

/// A block of `kind` for this store and address around the bytes of `input`, with a right checksum.
/// The first bytes of the input are the fields of the header, the others the content from its
/// beginning on; every third kilobyte repeats.
fn block_of(kind: Kind, address: u64, input: &[u8]) -> Block {
    let mut block = [0; BLOCK_SIZE];
    let (head, body) = input.split_at(input.len().min(24));
    let at = kind.header_at();
    let start = if at == 0 { super::HEADER_LEN } else { 0 };
    for (place, byte) in block[start..].iter_mut().zip(body.iter().cycle().take(BLOCK_SIZE)) {
        *place = *byte;
    }
    let header = &mut block[at..at + super::HEADER_LEN];
    header.fill(0);
    header[..4].copy_from_slice(b"LMNA");
    header[4] = kind as u8;
    header[6..8].copy_from_slice(&super::FORMAT_VERSION.to_le_bytes());
    header[16..32].copy_from_slice(&STORE.0);
    header[32..40].copy_from_slice(&address.to_le_bytes());
    // Level, owner, index, generation.
    let mut fields = [0; 24];
    fields[..head.len()].copy_from_slice(head);
    header[5] = fields[0] % 6;
    header[12..16].copy_from_slice(&fields[1..5]);
    header[40..48].copy_from_slice(&fields[5..13]);
    header[48..56].copy_from_slice(&fields[13..21]);
    let sum = checksum(&block, at);
    block[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
    block
}

fn fuzz_node(input: &[u8]) {
    let block = block_of(Kind::Node, ADDRESS, input);
    let mut links = [0; LINKS];
    let Ok(info) = node::read(&block, &mut links, STORE, 0, ADDRESS) else { return };
    let geometry = Geometry::plan(8192, 0).expect("a lawful size");
    node::linkable(&links, &geometry);
    let (mut again, mut twin) = ([0; BLOCK_SIZE], [0; LINKS]);
    node::write(&mut again, &links, &info, STORE, 0, ADDRESS);
    assert_eq!(node::read(&again, &mut twin, STORE, 0, ADDRESS), Ok(info));
    assert_eq!(links, twin);
    // Links keep all their bits; one that is lost becomes read-only as well.
    let pairs = again[..node::HEADER_AT].chunks_exact(6).zip(block.chunks_exact(6));
    for ((found, given), link) in pairs.zip(links) {
        let lost = link & node::ADDRESS == node::LOST && found[5] == given[5] | 0x80;
        assert!(found[..5] == given[..5] && (found[5] == given[5] || lost), "link {link:#x}");
    }
}

fn fuzz_journal(input: &[u8]) {
    let block = block_of(Kind::Journal, ADDRESS, input);
    let Ok(frame) = journal::open(&block, STORE, 0, ADDRESS) else { return };
    let mut found = Vec::new();
    let whole = journal::records(&block, frame.count, |record| found.push(record));
    let units: usize = found.iter().map(journal::Record::units).sum();
    assert!(units <= frame.count, "records fit the block");
    // What it would say if its checksum did not match.
    let claims = journal::claims(&block, STORE, frame.lsn, frame.incarnation);
    let touched = claims.expect("it is that block");
    assert_eq!(touched.is_err(), whole.is_err());
    if let Ok(touched) = touched {
        assert!(found.iter().all(|record| touched.has(record.disk())));
    }
    if whole.is_err() {
        return;
    }
    let (mut again, mut at) = ([0; BLOCK_SIZE], 0);
    for record in &found {
        record.write(&mut again, at);
        at += record.units();
    }
    journal::finish(&mut again, &frame, STORE, 0, ADDRESS);
    assert_eq!(journal::open(&again, STORE, 0, ADDRESS), Ok(frame));
    let mut twins = Vec::new();
    journal::records(&again, frame.count, |record| twins.push(record)).expect("just written");
    assert_eq!(found, twins);
}

fn fuzz_superblock(input: &[u8]) {
    let block = block_of(Kind::Superblock, 1, input);
    let Ok(superblock) = Superblock::read(&block, STORE, 0, 1) else { return };
    assert!(superblock.geometry.lawful());
    let mut again = [0; BLOCK_SIZE];
    superblock.write(&mut again, STORE, 0, 1);
    assert_eq!(Superblock::read(&again, STORE, 0, 1), Ok(superblock));
}

fn fuzz_disk_record(input: &[u8]) {
    let block = block_of(Kind::DiskRecord, ADDRESS, input);
    let Ok(record) = disk_record::read(&block) else { return };
    let mut again = [0; BLOCK_SIZE];
    disk_record::write(&mut again, &record, 5, STORE, 0, ADDRESS, 9);
    assert_eq!(disk_record::read(&again), Ok(record));
}

fn fuzz_snapshot_log(input: &[u8]) {
    let block = block_of(Kind::SnapshotLog, ADDRESS, input);
    let Ok((entries, previous)) = snapshot_log::read(&block) else { return };
    let mut again = [0; BLOCK_SIZE];
    let place =
        snapshot_log::Place { disk: 1, number: 2, address: ADDRESS, previous, generation: 9 };
    snapshot_log::write(&mut again, &entries, &place, STORE, 0);
    assert_eq!(snapshot_log::read(&again), Ok((entries, previous)));
}

fn fuzz_extents(input: &[u8]) {
    let block = block_of(Kind::Catalogue, ADDRESS, input);
    let mut entries = [extent::Entry::default(); extent::CATALOGUE_ENTRIES];
    if extent::read_entries(&block, &mut entries, 16384).is_ok() {
        let mut again = [0; BLOCK_SIZE];
        extent::write_catalogue(&mut again, STORE, 0, ADDRESS, 0, 9, &entries);
        let mut twins = [extent::Entry::default(); extent::CATALOGUE_ENTRIES];
        extent::read_entries(&again, &mut twins, 16384).expect("just written");
        assert_eq!(entries, twins);
    }
    let copies = [0, 1].map(|side| block_of(Kind::Bitmap, ADDRESS + side, input));
    let header = unseal(&copies[0], Kind::Bitmap, STORE, 0, ADDRESS).expect("sealed above");
    let mut words = [0; extent::BITMAP_WORDS];
    let (index, generation) = (header.index, header.generation);
    let both = [&copies[0], &copies[1]];
    let side = extent::read_bitmap(both, STORE, 0, ADDRESS, index, generation, &mut words);
    assert_eq!(side, Ok(0));
}

fn fuzz_label(input: &[u8]) {
    let block = block_of(Kind::Label, 0, input);
    let Ok(label) = label::read_label(&block, 1 << 40) else { return };
    assert!(Name::new(label.name.as_str()).is_ok() || label.name.is_empty());
    assert!(label.first_region + label.region_bytes * u64::from(label.shards) <= 1 << 40);
}

/// One byte says which decoder.
fn fuzz_metadata(input: &[u8]) {
    let Some((kind, input)) = input.split_first() else { return };
    match kind % 5 {
        0 => fuzz_superblock(input),
        1 => fuzz_disk_record(input),
        2 => fuzz_snapshot_log(input),
        3 => fuzz_extents(input),
        _ => fuzz_label(input),
    }
}

#[test]
fn node() {
    bolero::check!(name = "node")
        .with_iterations(500)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(fuzz_node);
}

#[test]
fn journal() {
    bolero::check!(name = "journal")
        .with_iterations(500)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(fuzz_journal);
}

#[test]
fn metadata() {
    bolero::check!(name = "metadata")
        .with_iterations(500)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(fuzz_metadata);
}
