//! A fresh store, and the kinds of base that it may lie on.
#![allow(dead_code, reason = "each test that includes this uses a part of it")]

use lamina_bdev::*;

pub const RAM: BaseTraits = BaseTraits { volatile_cache: false, atomic_4k: true, atomic_rw: true };
pub const FILE: BaseTraits =
    BaseTraits { volatile_cache: true, atomic_4k: false, atomic_rw: false };
pub const DISK: BaseTraits = BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: false };

/// A fresh store of `bytes`.
pub fn formatted(bytes: usize) -> (Vec<u8>, StoreLabel) {
    let mut image = vec![0xa5u8; bytes];
    let params = FormatParams {
        uuid: Uuid([7; 16]),
        name: Name::new("store").unwrap(),
        device_bytes: bytes as u64,
        shards: 1,
        journal_bytes: 0,
        time: 1,
    };
    for write in format_plan(&params).unwrap() {
        let at = write.offset as usize;
        image[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let label = read_label(&image[..LABEL_BYTES], bytes as u64).unwrap();
    (image, label)
}
