//! A store in a sparse file whose file system really runs full: writes that need space fail,
//! everything else goes on, and nothing has to be reopened once there is room again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options, Request, lock, read_all, wait};
use lamina_tests::guest::{Daemon, Folder};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// Of the file system, and of a file that takes a part of it.
const HOST_MIB: u64 = 96;
const FILLER_MIB: u64 = 32;
const WRITE_BYTES: usize = 64 << 10;

/// A file system in memory, mounted for a test.
struct Host {
    folder: Folder,
}

impl Host {
    /// `None`: this user may not mount anything, or no such file system for direct I/O.
    fn mount() -> Option<Host> {
        let folder = Folder::new();
        let size = format!("size={HOST_MIB}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "lamina-tests"])
            .arg(folder.path())
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Host { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).output();
    }
}

/// True if the write of a piece, all of whose bytes are `byte`, succeeds.
fn write(device: &Device, piece: u64, byte: u8) -> bool {
    let queue = device.queue(0);
    let slot = lock(&queue).free_slot().expect("nothing is in flight");
    let (offset, data) = (piece * WRITE_BYTES as u64, vec![byte; WRITE_BYTES]);
    lock(&queue).submit(slot, Request::Write { offset, data: &data });
    wait(&queue).good
}

fn assert_holds(device: &Device, pieces: u64) {
    for piece in 0..pieces {
        let found = read_all(&device.queue(0), piece * WRITE_BYTES as u64, WRITE_BYTES).unwrap();
        assert!(found == vec![piece as u8 | 1; WRITE_BYTES], "piece {piece}");
    }
}

fn fill(path: &Path) {
    std::fs::write(path, vec![7; (FILLER_MIB * MIB) as usize]).expect("there is room for it");
}

#[test]
fn a_full_file_system_costs_the_writes_that_need_space_and_nothing_else() {
    let Some(host) = Host::mount() else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let mut daemon = Daemon::new();
    daemon.start();
    let path = host.path("pool.store");
    daemon.ask("lamina_store_create", json!({"name": "pool", "path": path, "size": 1 << 30}));
    fill(&host.path("filler"));
    daemon.create_disk("vm", 512);
    let device = Device::connect(&daemon.export("vm", false), Options::default()).unwrap();
    let mut good = 0;
    while write(&device, good, good as u8 | 1) {
        good += 1;
        assert!(good * (WRITE_BYTES as u64) < HOST_MIB * MIB, "more than there is room for");
    }
    assert!(good > 64, "only {good} writes before it was full");
    // Consistency points come and find no space; the shard lives on. Twice the time between two.
    let end = Instant::now() + Duration::from_secs(11);
    while Instant::now() < end {
        let _ = write(&device, good, good as u8 | 1);
        sleep(Duration::from_millis(20));
    }
    let info = daemon.ask("lamina_store_info", json!({"name": "pool"}));
    assert_eq!(info[0]["state"], "online", "{}", daemon.log());
    assert!(daemon.log().contains("the base device has no space"), "{}", daemon.log());
    assert_holds(&device, good);

    std::fs::remove_file(host.path("filler")).unwrap();
    let begun = Instant::now();
    while !write(&device, good, good as u8 | 1) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
    daemon.ask("lamina_checkpoint", json!({}));
    daemon.kill();
    daemon.start();
    let device = Device::connect(&daemon.path("exports").join("vm.sock"), Options::default());
    assert_holds(&device.unwrap(), good + 1);
}
