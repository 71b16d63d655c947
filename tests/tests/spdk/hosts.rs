//! One store, two hosts: what the daemon wrote is there under SPDK, and the other way round; what
//! was acknowledged outlives a SIGKILL; remote hosts reach a disk through SPDK's NVMe/TCP target.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use super::app::{App, MIB, Tool, malloc, ready, ready_with, spdk_program};
use lamina_tests::client::{Device, Options, Queue, Request, lock, read_all, wait};
use lamina_tests::guest::Daemon;
use serde_json::json;

const BLOCK: u64 = 4096;
const PERF: &str = "build/bin/spdk_nvme_perf";

/// What block `index` holds in generation `seed`.
fn content(seed: u64, index: u64) -> Vec<u8> {
    let word = (seed << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes().repeat((BLOCK / 8) as usize)
}

fn write(queue: &Mutex<Queue>, seed: u64, index: u64) -> bool {
    let slot = lock(queue).free_slot().expect("nothing in flight");
    let data = content(seed, index);
    lock(queue).submit(slot, Request::Write { offset: index * BLOCK, data: &data });
    wait(queue).good
}

fn flush(queue: &Mutex<Queue>) -> bool {
    let slot = lock(queue).free_slot().expect("nothing in flight");
    lock(queue).submit(slot, Request::Flush);
    wait(queue).good
}

/// Blocks `range` of the disk on `socket` are of generation `seed`.
fn check(queue: &Mutex<Queue>, seed: u64, range: std::ops::Range<u64>) {
    for index in range {
        let read = read_all(queue, index * BLOCK, BLOCK as usize).expect("a block can be read");
        assert!(read == content(seed, index), "block {index} is not of generation {seed}");
    }
}

fn connect(socket: &Path) -> Device {
    let options = Options { huge: true, ..Options::default() };
    Device::connect(socket, options).expect("the export listens")
}

#[test]
fn a_store_goes_from_host_to_host_and_back() {
    if !ready("a_store_goes_from_host_to_host_and_back") {
        return;
    }
    let mut daemon = Daemon::with_store(256 * MIB);
    daemon.create_disk("d", 64);
    let device = connect(&daemon.export("d", false));
    let queue = device.queue(0);
    (0..512).for_each(|index| assert!(write(&queue, 1, index)));
    daemon.snapshot("d", "first");
    (0..100).for_each(|index| assert!(write(&queue, 2, index)));
    let tree = daemon.ask("lamina_tree", json!({}));
    drop(device);
    assert!(daemon.terminate().success());

    let file = daemon.path("pool.store");
    let aio = json!({"name": "Aio0", "filename": file, "block_size": 4096});
    let mut app = App::start(Tool::Target, &[("bdev_aio_create", aio)]);
    let told = app.ask("lamina_tree", json!({}));
    assert_eq!(told[0]["disks"], tree[0]["disks"], "the store is found, with all that is in it");
    assert!(app.bdev("pool/d").is_some());
    let device = connect(&app.export("pool/d"));
    let queue = device.queue(0);
    check(&queue, 2, 0..100);
    check(&queue, 1, 100..512);
    app.clone_of("d@first", "c");
    let old = connect(&app.export("pool/c"));
    check(&old.queue(0), 1, 0..512);
    (50..150).for_each(|index| assert!(write(&queue, 3, index)));
    assert!(flush(&queue));
    app.snapshot("d", "second");
    let tree = app.ask("lamina_tree", json!({}));
    drop((queue, device, old));
    app.await_no_clients();
    assert!(app.stop().success(), "{}", app.log());

    daemon.start();
    let told = daemon.ask("lamina_tree", json!({}));
    assert_eq!(told[0]["disks"], tree[0]["disks"]);
    let device = connect(&daemon.path("exports").join("d.sock"));
    let queue = device.queue(0);
    check(&queue, 2, 0..50);
    check(&queue, 3, 50..150);
    check(&queue, 1, 150..512);
    daemon.ask("lamina_check", json!({}));
    let clean = loop {
        let status = daemon.ask("lamina_check_status", json!({}));
        if status["state"] == "done" {
            break status["report"]["clean"].clone();
        }
        assert_eq!(status["state"], "running", "{status}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(clean, true);
}

#[test]
fn what_was_acknowledged_outlives_the_target() {
    if !ready("what_was_acknowledged_outlives_the_target") {
        return;
    }
    let image = std::env::temp_dir().join(format!("lamina-image-{}", std::process::id()));
    std::fs::File::create(&image).and_then(|file| file.set_len(256 * MIB)).expect("an image");
    let aio = json!({"name": "Aio0", "filename": image, "block_size": 512});
    let mut app = App::start(Tool::Target, &[("bdev_aio_create", aio)]);
    app.create_store("Aio0");
    app.create_disk("d", 64);
    let socket = app.export("pool/d");
    let mut device = connect(&socket);
    let queue = device.queue(0);
    for life in 1..=5 {
        for index in 0..400 {
            assert!(write(&queue, life, index * 7 % 4096), "{}", app.log());
            if index == 200 {
                app.snapshot("d", &format!("s{life}"));
            }
        }
        app.kill();
        app.run();
        assert_eq!(app.export("pool/d"), socket);
        device.reconnect(Duration::from_secs(20)).expect("the export is there again");
        for index in (0..400).map(|index| index * 7 % 4096) {
            check(&queue, life, index..index + 1);
        }
        let snapshots = app.ask("lamina_snapshot_list", json!({"disk": "d"}));
        assert_eq!(snapshots.as_array().map(Vec::len), Some(life as usize), "{snapshots}");
    }
    std::fs::remove_file(&image).expect("the image is there");
}

/// A port of this machine that nobody listens on.
fn free_port() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    free.expect("a free port").port().to_string()
}

/// An address of NVMe/TCP, as SPDK's methods have it.
fn tcp(port: &str) -> serde_json::Value {
    json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port})
}

/// SPDK's NVMe driver below: another daemon's disk over NVMe/TCP, which goes away and comes back
/// with everything that was acknowledged; then this host dies, and finds its store by itself.
#[test]
fn a_store_lies_on_a_namespace_of_spdks_nvme_driver() {
    if !ready("a_store_lies_on_a_namespace_of_spdks_nvme_driver") {
        return;
    }
    let (port, nqn) = (free_port(), "nqn.2026-01.io.lamina:below");
    let mut daemon = Daemon::with_store(512 * MIB);
    daemon.create_disk("below", 256);
    daemon.ask("nvmf_create_transport", json!({"trtype": "TCP"}));
    daemon.ask("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true}));
    let namespace = json!({"bdev_name": "pool/below"});
    daemon.ask("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}));
    let listener = json!({"nqn": nqn, "listen_address": tcp(&port)});
    daemon.ask("nvmf_subsystem_add_listener", listener);

    let mut attach = tcp(&port);
    attach["name"] = json!("Nvme0");
    attach["subnqn"] = json!(nqn);
    attach["ctrlr_loss_timeout_sec"] = json!(-1);
    attach["reconnect_delay_sec"] = json!(1);
    let mut app = App::start(Tool::Target, &[("bdev_nvme_attach_controller", attach)]);
    app.ask("lamina_store_create", json!({"name": "above", "path": "Nvme0n1"}));
    app.ask("lamina_bdev_lvol_create", json!({"lvol_name": "d", "size": 64 * MIB}));
    let socket = app.export("above/d");
    let mut device = connect(&socket);
    let queue = device.queue(0);
    (0..300).for_each(|index| assert!(write(&queue, 1, index), "{}", app.log()));
    app.snapshot("d", "first");
    (0..100).for_each(|index| assert!(write(&queue, 2, index)));
    assert!(flush(&queue));

    daemon.kill();
    daemon.start();
    // SPDK holds I/O back until its driver has connected again.
    check(&queue, 2, 0..100);
    check(&queue, 1, 100..300);
    (0..100).for_each(|index| assert!(write(&queue, 3, index), "{}", app.log()));

    app.kill();
    app.run();
    assert_eq!(app.export("above/d"), socket, "the store was found");
    device.reconnect(Duration::from_secs(20)).expect("the export is there again");
    check(&queue, 3, 0..100);
    check(&queue, 1, 100..300);
    app.clone_of("d@first", "c");
    let old = connect(&app.export("above/c"));
    check(&old.queue(0), 1, 0..300);
}

#[test]
fn remote_hosts_reach_a_disk_through_spdks_target() {
    if !ready_with("remote_hosts_reach_a_disk_through_spdks_target", PERF) {
        return;
    }
    let app = App::start(Tool::Target, &[malloc(256, 512)]);
    app.create_store("Malloc0");
    app.create_disk("d", 64);
    let (port, nqn) = (free_port(), "nqn.2026-01.io.lamina:spdk");
    app.ask("nvmf_create_transport", json!({"trtype": "TCP"}));
    app.ask("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true}));
    let namespace = json!({"bdev_name": "pool/d"});
    app.ask("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}));
    let listener = json!({"nqn": nqn, "listen_address": tcp(&port)});
    app.ask("nvmf_subsystem_add_listener", listener);
    let target = format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}");
    let mut command = Command::new(spdk_program(PERF).expect("asked for"));
    command.args(["-r", &target, "-q", "16", "-o", "4096", "-w", "randrw", "-M", "50"]);
    command.args(["-t", "3", "-c", "0x2", "-s", "256"]);
    if let Some(dir) = std::env::var_os("SPDK_DIR") {
        command.env("LD_LIBRARY_PATH", Path::new(&dir).join("build/lib"));
    }
    let output = command.output().expect("spdk_nvme_perf can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let total = said.lines().find(|line| line.starts_with("Total")).unwrap_or_default();
    let iops: f64 = total
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no total\n{said}\n{}", String::from_utf8_lossy(&output.stderr)));
    assert!(output.status.success() && iops > 100.0, "{said}");
    println!("spdk_nvme_perf through SPDK's NVMe/TCP target: {iops} I/O a second");
    assert!(app.counter("reads") > 0 && app.counter("writes") > 0);
}
