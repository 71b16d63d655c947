//! What the kernel says about a block device: is its cache volatile, are 4 KiB writes atomic.
//!
//! ```text
//!  /sys/dev/block/MAJ:MIN ─► .../block/sda          queue/write_cache
//!                            .../block/sda/sda1     queue/physical_block_size
//!                              partition, start     queue/atomic_write_unit_max_bytes
//! ```
//!
//! What is not known is taken as the worse case: a wrong "atomic" would cost data in a power
//! cut, a wrong "not atomic" costs a little speed.

use std::path::{Path, PathBuf};

const ATOMIC_BYTES: u64 = 4096;
const SECTORS_PER_BLOCK: u64 = 8;

/// What was found out about one block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueTraits {
    /// The device keeps completed writes in a cache that a power cut empties.
    pub volatile_cache: bool,
    /// A 4 KiB write, aligned to 4 KiB on this device, is old or new after a power cut.
    pub atomic_4k: bool,
}

impl QueueTraits {
    /// For a device that says nothing.
    pub const UNKNOWN: QueueTraits = QueueTraits { volatile_cache: true, atomic_4k: false };
}

/// Asks sysfs about the block device with number `device` (as in `st_dev` or `st_rdev`).
pub fn queue_traits(device: u64) -> QueueTraits {
    let (major, minor) = (libc::major(device), libc::minor(device));
    queue_traits_at(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")))
}

fn queue_traits_at(link: &Path) -> QueueTraits {
    let Ok(mut folder) = std::fs::canonicalize(link) else {
        return QueueTraits::UNKNOWN;
    };
    let mut aligned = true;
    if folder.join("partition").exists() {
        aligned =
            number(&folder.join("start")).is_some_and(|s| s.is_multiple_of(SECTORS_PER_BLOCK));
        folder.pop();
    }
    // A loop device repeats what its file's device says, but the file may lie anywhere on it.
    let direct = !folder.join("loop").exists();
    let queue = folder.join("queue");
    let cache = std::fs::read_to_string(queue.join("write_cache")).unwrap_or_default();
    let at_least = |name: &str| number(&queue.join(name)).is_some_and(|v| v >= ATOMIC_BYTES);
    let atomic = at_least("physical_block_size") || at_least("atomic_write_unit_max_bytes");
    QueueTraits {
        volatile_cache: cache.trim() != "write through" || !direct,
        atomic_4k: aligned && direct && atomic,
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn device(files: &[(&str, &str)]) -> (TempDir, PathBuf) {
        let dir = TempDir::new("probe");
        let disk = dir.path().join("sda");
        for (name, content) in files {
            let path = disk.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        (dir, disk)
    }

    #[test]
    fn a_write_through_4k_device_is_neither_volatile_nor_torn() {
        let (_dir, disk) = device(&[
            ("queue/write_cache", "write through\n"),
            ("queue/physical_block_size", "4096\n"),
        ]);
        let traits = queue_traits_at(&disk);
        assert_eq!(traits, QueueTraits { volatile_cache: false, atomic_4k: true });
    }

    #[test]
    fn a_512_byte_device_is_not_atomic_unless_it_says_so() {
        let mut files =
            vec![("queue/write_cache", "write back\n"), ("queue/physical_block_size", "512\n")];
        let (_dir, disk) = device(&files);
        assert_eq!(queue_traits_at(&disk), QueueTraits::UNKNOWN);
        files.push(("queue/atomic_write_unit_max_bytes", "16384\n"));
        let (_dir, disk) = device(&files);
        assert_eq!(queue_traits_at(&disk), QueueTraits { volatile_cache: true, atomic_4k: true });
    }

    #[test]
    fn a_partition_off_the_4k_grid_is_not_atomic() {
        for (start, atomic) in [("63\n", false), ("2048\n", true)] {
            let (_dir, disk) = device(&[
                ("queue/physical_block_size", "4096\n"),
                ("sda1/partition", "1\n"),
                ("sda1/start", start),
            ]);
            assert_eq!(queue_traits_at(&disk.join("sda1")).atomic_4k, atomic, "start {start}");
        }
    }

    #[test]
    fn a_loop_device_and_a_missing_one_are_the_worse_case() {
        let (_dir, disk) = device(&[
            ("queue/write_cache", "write through\n"),
            ("queue/physical_block_size", "4096\n"),
            ("loop/backing_file", "/x\n"),
        ]);
        assert_eq!(queue_traits_at(&disk), QueueTraits::UNKNOWN);
        assert_eq!(queue_traits_at(&disk.join("none")), QueueTraits::UNKNOWN);
        assert_eq!(queue_traits(0), QueueTraits::UNKNOWN);
    }
}
