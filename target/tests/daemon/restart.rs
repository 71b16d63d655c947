//! What is there again after a restart, a crash, and a restart that goes wrong.

use lamina_rpc::methods::*;
use serde_json::json;

use crate::harness::{Daemon, Dir, listens};
use crate::life::{attach, create_disk, create_store};

const MIB: u64 = 1 << 20;

/// UUIDs and names of everything, and the exports.
fn inventory(daemon: &mut Daemon) -> String {
    let bdevs = daemon.call(BdevGetBdevs::default());
    let mut lines: Vec<String> = bdevs
        .iter()
        .map(|b| format!("{} {} {} {}", b.aliases[0], b.uuid, b.num_blocks, b.claimed))
        .collect();
    let exports = daemon.call(VhostGetControllers::default());
    lines.extend(exports.iter().map(|e| {
        let block = &e.backend_specific.block;
        format!("{} {} {} {}", e.ctrlr, e.socket, block.bdev, block.readonly)
    }));
    lines.sort();
    lines.join("\n")
}

#[test]
fn everything_is_there_again_after_a_stop_and_after_a_crash() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", 16 * MIB);
    daemon.call(BdevLvolSnapshot { lvol_name: "d".into(), snapshot_name: Some("s".into()) });
    daemon.call(BdevLvolClone { snapshot_name: "d@s".into(), clone_name: "c".into() });
    attach(&mut daemon, "vm1", "d");
    attach(&mut daemon, "vm2", "c");
    attach(&mut daemon, "old", "d@s");
    let before = inventory(&mut daemon);
    assert_eq!(before.lines().count(), 6, "{before}");
    daemon.kill_hard();
    assert!(dir.path("d.run/vm1").exists() && !listens(&dir.path("d.run/vm1")));

    let mut daemon = Daemon::start(&dir, &[]);
    assert_eq!(inventory(&mut daemon), before);
    for socket in ["vm1", "vm2", "old"] {
        assert!(listens(&dir.path("d.run").join(socket)), "{socket} is not served");
    }
    daemon.call(VhostDeleteController { ctrlr: "vm2".into() });
    let before = inventory(&mut daemon);
    daemon.stop();
    assert!(!dir.path("d.run/vm1").exists());

    for round in 0..3 {
        let mut daemon = Daemon::start(&dir, &[]);
        assert_eq!(inventory(&mut daemon), before, "round {round}");
        if round % 2 == 0 { daemon.kill_hard() } else { daemon.stop() }
    }
}

#[test]
fn a_closed_store_is_not_opened_again_by_itself() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", MIB);
    attach(&mut daemon, "vm1", "d");
    daemon.call(LaminaStoreClose { name: "pool".into(), force: Some(true) });
    daemon.stop();
    let mut daemon = Daemon::start(&dir, &[]);
    assert!(daemon.call(LaminaStoreInfo::default()).is_empty());
    // Opening it brings its exports back: they are kept with the disk.
    let opened = daemon.call(LaminaStoreOpen { path: dir.text("pool.store") });
    assert_eq!(opened.name, "pool");
    assert!(listens(&dir.path("d.run/vm1")));
    daemon.stop();
    let store = dir.text("pool.store");
    let mut daemon = Daemon::try_start(&dir, "other", &["--store", &store]).ok().unwrap();
    assert_eq!(daemon.call(LaminaStoreInfo::default())[0].name, "pool");
}

#[test]
fn a_store_that_is_missing_at_start_is_listed_as_failed_and_can_come_back() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "a", 1);
    create_store(&mut daemon, &dir, "b", 1);
    daemon.stop();
    std::fs::rename(dir.path("a.store"), dir.path("away")).unwrap();
    let mut daemon = Daemon::start(&dir, &[]);
    let states = |daemon: &mut Daemon| {
        let mut states: Vec<_> = daemon
            .call(LaminaStoreInfo::default())
            .into_iter()
            .map(|store| (store.name, store.state))
            .collect();
        states.sort();
        states.into_iter().map(|(name, state)| format!("{name} {state}")).collect::<Vec<_>>()
    };
    assert_eq!(states(&mut daemon), ["a failed", "b online"]);
    daemon.stop();
    // It is not forgotten by a daemon that could not open it.
    let mut daemon = Daemon::start(&dir, &[]);
    assert_eq!(states(&mut daemon), ["a failed", "b online"]);
    std::fs::rename(dir.path("away"), dir.path("a.store")).unwrap();
    daemon.call(LaminaStoreOpen { path: dir.text("a.store") });
    assert_eq!(states(&mut daemon), ["a online", "b online"]);
    daemon.stop();
}

#[test]
fn an_export_whose_socket_is_taken_does_not_stop_the_others() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    for name in ["a", "b"] {
        create_disk(&mut daemon, name, MIB);
        attach(&mut daemon, name, name);
    }
    daemon.stop();
    std::fs::write(dir.path("d.run/a"), "not a socket").unwrap();
    let mut daemon = Daemon::start(&dir, &[]);
    assert!(listens(&dir.path("d.run/b")));
    assert_eq!(std::fs::read(dir.path("d.run/a")).unwrap(), b"not a socket");
    // It is still known, and can be ended.
    assert_eq!(daemon.call(VhostGetControllers::default()).len(), 2);
    daemon.call(VhostDeleteController { ctrlr: "a".into() });
    assert_eq!(daemon.call(VhostGetControllers::default()).len(), 1);
    daemon.call(BdevLvolDelete { name: "a".into() });
    daemon.stop();
}

#[test]
fn a_second_daemon_is_refused() {
    let dir = Dir::new();
    let mut first = Daemon::start(&dir, &[]);
    create_store(&mut first, &dir, "pool", 1);

    // The same state folder.
    let (status, log) = Daemon::try_start(&dir, "d", &[]).err().unwrap();
    assert!(!status.success() && log.contains("another laminad"), "{status}: {log}");

    // Another state folder, the same store.
    let store = dir.text("pool.store");
    let mut second = Daemon::try_start(&dir, "e", &["--store", &store]).ok().unwrap();
    assert_eq!(second.call(LaminaStoreInfo::default())[0].state, "failed");
    let error = second.refused("lamina_store_open", &json!({ "path": store }));
    assert_eq!(error.code, -16);
    assert!(error.message.contains("another laminad"), "{error}");
    let params = json!({ "name": "x", "path": store, "force": true });
    assert_eq!(second.refused("lamina_store_create", &params).code, -16);

    // The same RPC socket.
    let socket = dir.text("d.sock");
    let (status, log) = Daemon::try_start(&dir, "f", &["--rpc-socket", &socket]).err().unwrap();
    assert!(!status.success() && log.contains("d.sock"), "{status}: {log}");

    create_disk(&mut first, "still-works", MIB);
    first.stop();
    // The lock goes with the first.
    second.call(LaminaStoreOpen { path: store });
    assert_eq!(second.call(LaminaStoreInfo::default())[0].disks, 1);
    second.stop();
}

#[test]
fn a_damaged_state_file_is_not_overwritten() {
    let dir = Dir::new();
    Daemon::start(&dir, &[]).stop();
    let file = dir.path("d.state/stores.json");
    std::fs::write(&file, "{\"version\":1,").unwrap();
    let (status, log) = Daemon::try_start(&dir, "d", &[]).err().unwrap();
    assert!(!status.success() && log.contains("stores.json"), "{status}: {log}");
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"version\":1,");
}

#[test]
fn a_store_that_cannot_be_written_down_leaves_no_file() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "first", 1);
    // Nothing can be written where the next state file is to be.
    let way = dir.path("d.state/stores.json.new");
    std::fs::create_dir(&way).unwrap();
    let file = dir.text("pool.store");
    let params = json!({ "name": "pool", "path": file, "size": 64 * MIB });
    let error = daemon.refused("lamina_store_create", &params);
    assert!(error.message.contains("stores.json"), "{error}");
    assert!(!dir.path("pool.store").exists(), "it was made for the store");
    let names = |daemon: &mut Daemon| {
        let stores = daemon.call(LaminaStoreInfo::default());
        stores.into_iter().map(|store| (store.name, store.state)).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut daemon), [("first".into(), "online".into())]);
    std::fs::remove_dir(&way).unwrap();
    create_store(&mut daemon, &dir, "pool", 1);
    assert_eq!(names(&mut daemon).len(), 2);
    daemon.stop();
}
