//! What a person does in a first session, and what the daemon costs meanwhile.

use std::time::Duration;

use lamina_rpc::methods::*;
use serde_json::json;

use crate::harness::{Daemon, Dir, listens};

const MIB: u64 = 1 << 20;

pub fn create_store(daemon: &mut Daemon, dir: &Dir, name: &str, shards: u32) -> String {
    daemon.call(LaminaStoreCreate {
        name: name.into(),
        path: dir.text(&format!("{name}.store")),
        size: Some(u64::from(shards) * 128 * MIB),
        shards: Some(shards),
        ..LaminaStoreCreate::default()
    })
}

pub fn create_disk(daemon: &mut Daemon, name: &str, size: u64) -> String {
    daemon.call(BdevLvolCreate {
        lvol_name: name.into(),
        size: Some(size),
        ..BdevLvolCreate::default()
    })
}

pub fn attach(daemon: &mut Daemon, ctrlr: &str, device: &str) {
    let (ctrlr, dev_name) = (ctrlr.into(), device.into());
    daemon.call(VhostCreateBlkController {
        ctrlr,
        dev_name,
        ..VhostCreateBlkController::default()
    });
}

#[test]
fn without_a_store_it_starts_answers_sleeps_and_stops() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    let version = daemon.call(SpdkGetVersion::default());
    assert!(version.version.starts_with("Lamina "), "{}", version.version);
    assert!(daemon.call(LaminaStoreInfo::default()).is_empty());
    assert!(daemon.call(BdevGetBdevs::default()).is_empty());
    let reactors = daemon.call(FrameworkGetReactors::default());
    assert_eq!((reactors.pid, reactors.reactors.len()), (daemon.pid(), 1));
    let before = daemon.cpu_ticks();
    std::thread::sleep(Duration::from_secs(3));
    let used = daemon.cpu_ticks() - before;
    assert!(used <= 3, "an idle daemon used {used} of 300 ticks");
    daemon.stop();
    assert!(!dir.path("d.sock").exists());
}

#[test]
fn a_client_may_ask_for_the_end() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    assert!(daemon.call(SpdkKillInstance { sig_name: "SIGTERM".into() }));
    assert!(daemon.wait().success());
}

#[test]
fn a_first_session() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    let store = create_store(&mut daemon, &dir, "pool", 1);
    let golden = create_disk(&mut daemon, "golden", 64 * MIB);
    let snapshot = daemon
        .call(BdevLvolSnapshot { lvol_name: "golden".into(), snapshot_name: Some("base".into()) });
    let unlabelled =
        daemon.call(BdevLvolSnapshot { lvol_name: "pool/golden".into(), snapshot_name: None });
    let clone = daemon
        .call(BdevLvolClone { snapshot_name: "golden@base".into(), clone_name: "vm1".into() });

    let infos = daemon.call(LaminaStoreInfo { name: Some("pool".into()) });
    let info = &infos[0];
    assert_eq!((info.uuid.as_str(), info.state.as_str()), (store.as_str(), "online"));
    assert_eq!((info.disks, info.snapshots, info.presented), (2, 2, 128 * MIB));
    assert!(info.free > 64 * MIB && info.free < info.size, "{info:?}");

    let snapshots = daemon.call(LaminaSnapshotList { disk: golden.clone() });
    let seen: Vec<_> =
        snapshots.iter().map(|s| (s.id, s.label.as_str(), s.uuid.as_str())).collect();
    assert_eq!(seen, [(1, "base", snapshot.as_str()), (2, "", unlabelled.as_str())]);
    assert_eq!((snapshots[0].clones, snapshots[0].size), (1, 64 * MIB));

    let disks = daemon.call(LaminaDiskInfo { name: Some(clone.clone()) });
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0].origin.as_deref(), Some("golden@base"));
    assert_eq!((disks[0].name.as_str(), disks[0].size), ("vm1", 64 * MIB));

    let tree = daemon.call(LaminaTree::default());
    assert_eq!(tree[0].disks.len(), 2);
    assert_eq!(tree[0].disks[0].snapshots[0].clones, ["vm1"]);
    let origin = tree[0].disks[1].origin.clone().unwrap();
    assert_eq!((origin.disk.as_str(), origin.snapshot), ("golden", 1));

    let bdevs = daemon.call(BdevGetBdevs::default());
    assert_eq!(bdevs.len(), 4);
    let one = daemon.call(BdevGetBdevs { name: Some("base".into()), timeout: None });
    assert_eq!((one.len(), one[0].uuid.as_str()), (1, snapshot.as_str()));
    assert_eq!(one[0].aliases, ["pool/golden@base"]);
    assert!(!one[0].supported_io_types.write);
    let lvols = daemon.call(BdevLvolGetLvols::default());
    assert_eq!(lvols.iter().filter(|l| l.is_snapshot).count(), 2);
    assert_eq!(lvols.iter().filter(|l| l.is_clone).count(), 1);
    let lvstores = daemon.call(BdevLvolGetLvstores::default());
    assert_eq!((lvstores[0].name.as_str(), lvstores[0].cluster_size), ("pool", 4096));

    daemon.call(LaminaSnapshotLabel { snapshot: "golden@2".into(), label: "second".into() });
    daemon.call(BdevLvolRename { old_name: "vm1".into(), new_name: "web1".into() });
    daemon.call(BdevLvolResize {
        name: "web1".into(),
        size_in_mib: Some(100),
        ..BdevLvolResize::default()
    });
    let disks = daemon.call(LaminaDiskInfo { name: Some("web1".into()) });
    assert_eq!(disks[0].size, 100 * MIB);

    let iostat = daemon.call(BdevGetIostat::default());
    assert_eq!((iostat.bdevs.len(), iostat.tick_rate), (2, 1_000_000_000));
    let names = Some(vec!["golden".into()]);
    let iostat = daemon.call(BdevGetIostat { names, ..BdevGetIostat::default() });
    assert_eq!((iostat.bdevs.len(), iostat.bdevs[0].name.as_str()), (1, golden.as_str()));

    what_is_deleted_leaves_its_clones(&mut daemon);
    assert!(daemon.call(LaminaCheckpoint::default()));
    let stats = daemon.call(LaminaStats::default());
    assert!(stats.stores[0].shards[0]["checkpoints"] > 0, "{stats:?}");
    assert!(stats.reactors[0].turns > 0);
    daemon.stop();
}

fn what_is_deleted_leaves_its_clones(daemon: &mut Daemon) {
    for name in ["golden@base", "golden@second", "golden"] {
        assert!(daemon.call(BdevLvolDelete { name: name.into() }), "{name}");
        let clone = &daemon.call(LaminaDiskInfo { name: Some("web1".into()) })[0];
        assert_eq!(clone.origin, None, "its snapshot is gone");
    }
    assert!(daemon.call(BdevLvolDelete { name: "web1".into() }));
    assert!(daemon.call(BdevGetBdevs::default()).is_empty());
}

#[test]
fn exports_come_and_go_and_protect_their_disk() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", 16 * MIB);
    daemon.call(BdevLvolSnapshot { lvol_name: "d".into(), snapshot_name: Some("s".into()) });
    attach(&mut daemon, "vm1", "d");
    attach(&mut daemon, &dir.text("absolute.sock"), "d@s");
    let first = dir.path("d.run/vm1");
    assert!(listens(&first) && listens(&dir.path("absolute.sock")));

    let exports = daemon.call(VhostGetControllers::default());
    let seen: Vec<_> =
        exports.iter().map(|e| (e.socket.as_str(), e.backend_specific.block.readonly)).collect();
    assert_eq!(seen, [(first.to_str().unwrap(), false), (&dir.text("absolute.sock"), true)]);
    let disk = &daemon.call(LaminaDiskInfo { name: Some("d".into()) })[0];
    assert_eq!((disk.attached, disk.exports.len()), (1, 2));
    assert!(daemon.call(BdevGetBdevs { name: Some("d".into()), timeout: None })[0].claimed);

    for (name, export) in [("d", "vm1"), ("d@s", "absolute.sock")] {
        let error = daemon.refused("bdev_lvol_delete", &json!({ "name": name }));
        assert_eq!(error.code, -16);
        assert!(error.message.contains(export), "{error}");
    }
    let error = daemon.refused("lamina_store_close", &json!({ "name": "pool" }));
    assert!(error.code == -16 && error.message.contains("vm1"), "{error}");
    daemon.call(BdevLvolResize {
        name: "d".into(),
        size: Some(32 * MIB),
        ..BdevLvolResize::default()
    });

    daemon.call(VhostDeleteController { ctrlr: "vm1".into() });
    assert!(!first.exists());
    let error = daemon.refused("vhost_delete_controller", &json!({ "ctrlr": "vm1" }));
    assert_eq!(error.code, -19);
    // The name is free again, and so is its place.
    attach(&mut daemon, "vm1", "d");
    assert!(listens(&first));
    let force = Some(true);
    assert!(daemon.call(LaminaStoreClose { name: "pool".into(), force }));
    assert!(!first.exists() && !dir.path("absolute.sock").exists());
    assert!(daemon.call(LaminaStoreInfo::default()).is_empty());
    daemon.stop();
}

#[test]
fn a_store_in_ram_and_one_on_two_reactors() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &["--reactors", "2"]);
    daemon.call(LaminaStoreCreate {
        name: "fast".into(),
        path: "ram:64M".into(),
        ..LaminaStoreCreate::default()
    });
    create_store(&mut daemon, &dir, "wide", 2);
    for i in 0..4 {
        daemon.call(BdevLvolCreate {
            lvol_name: format!("d{i}"),
            size_in_mib: Some(8),
            lvs_name: Some("wide".into()),
            ..BdevLvolCreate::default()
        });
        daemon.call(BdevLvolSnapshot { lvol_name: format!("wide/d{i}"), snapshot_name: None });
    }
    daemon.call(BdevLvolCreate {
        lvol_name: "d0".into(),
        size_in_mib: Some(8),
        lvs_name: Some("fast".into()),
        ..BdevLvolCreate::default()
    });
    // The same name in two stores needs the store before it.
    let error = daemon.refused("bdev_get_bdevs", &json!({ "name": "d0" }));
    assert!(error.code == -22 && error.message.contains("fast/d0"), "{error}");
    assert_eq!(daemon.call(BdevGetBdevs { name: Some("wide/d0".into()), timeout: None }).len(), 1);
    let mut stats = daemon.call(LaminaStats::default());
    assert_eq!(stats.reactors.len(), 2);
    stats.stores.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!((stats.stores[0].shards.len(), stats.stores[1].shards.len()), (1, 2));
    daemon.stop();

    let mut daemon = Daemon::start(&dir, &["--reactors", "1"]);
    let stores = daemon.call(LaminaStoreInfo::default());
    assert_eq!((stores.len(), stores[0].name.as_str(), stores[0].disks), (1, "wide", 4));
    daemon.stop();
}

#[test]
fn a_store_with_many_idle_exports_costs_nothing() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    daemon.call(LaminaStoreCreate {
        name: "pool".into(),
        path: dir.text("pool.store"),
        size: Some(16 << 30),
        ..LaminaStoreCreate::default()
    });
    for i in 0..100 {
        create_disk(&mut daemon, &format!("d{i}"), MIB);
        attach(&mut daemon, &format!("vm{i}"), &format!("d{i}"));
    }
    daemon.call(LaminaCheckpoint::default());
    let before = daemon.cpu_ticks();
    std::thread::sleep(Duration::from_secs(4));
    let used = daemon.cpu_ticks() - before;
    assert!(used <= 4, "100 idle disks used {used} of 400 ticks");
    daemon.stop();
}

#[test]
fn no_completion_is_lost_between_two_sleeps() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &["--idle-us", "3"]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", MIB);
    let sleeps = |daemon: &mut Daemon| daemon.call(LaminaStats::default()).reactors[0].sleeps;
    let before = sleeps(&mut daemon);
    for round in 0..500u64 {
        // Each is a journal write and a flush on the ring, and the reactor sleeps in between.
        std::thread::sleep(Duration::from_micros(round * 37 % 300));
        let started = std::time::Instant::now();
        daemon.call(BdevLvolSnapshot { lvol_name: "d".into(), snapshot_name: None });
        assert!(started.elapsed() < Duration::from_secs(3), "round {round} waited for a timer");
    }
    assert!(sleeps(&mut daemon) - before > 100);
    assert_eq!(daemon.call(LaminaSnapshotList { disk: "d".into() }).len(), 500);
    daemon.stop();
}
