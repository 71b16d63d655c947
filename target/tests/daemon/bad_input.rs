//! Bad input: each a clear error, and the daemon goes on.

use std::os::unix::fs::FileExt;

use lamina_bdev::limits::CACHE_BYTES_MAX;
use lamina_rpc::methods::*;
use serde_json::{Value, json};

use crate::harness::{Daemon, Dir};
use crate::life::{attach, create_disk, create_store};

const MIB: u64 = 1 << 20;

fn check(daemon: &mut Daemon, cases: &[(&str, Value, i32, &str)]) {
    for (method, params, code, words) in cases {
        let error = daemon.refused(method, params);
        assert_eq!(error.code, *code, "{method} {params}: {error}");
        assert!(error.message.contains(words), "{method} {params}: {error}");
    }
}

#[test]
fn command_lines_that_make_no_sense() {
    let dir = Dir::new();
    for (args, words) in [
        (&["--reactors", "1000"][..], "reactors need as many cores"),
        (&["--reactors", "0"], "reactors need as many cores"),
        (&["--cores", "4000"], "not one we may use"),
        (&["--cores", "x"], "not a list of cores"),
        (&["--cache-size", "12"], "--cache-size"),
        (&["--slots", "0"], "--slots"),
        (&["--what"], "unexpected argument"),
    ] {
        let (status, log) = Daemon::try_start(&dir, "d", args).err().unwrap();
        assert!(!status.success() && log.contains(words), "{args:?}: {status}: {log}");
    }
    Daemon::start(&dir, &[]).stop();
}

#[test]
fn paths_that_are_no_store() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    std::fs::write(dir.path("empty"), "").unwrap();
    std::fs::write(dir.path("noise"), vec![0x5a; 64 << 10]).unwrap();
    let zeros = std::fs::File::create(dir.path("zeros")).unwrap();
    zeros.set_len(64 * MIB).unwrap();
    let open = |name: &str| json!({ "path": dir.text(name) });
    check(
        &mut daemon,
        &[
            ("lamina_store_open", open("missing"), -19, "does not exist"),
            ("lamina_store_open", open("."), -22, "a directory"),
            ("lamina_store_open", open("empty"), -84, "not a Lamina store"),
            ("lamina_store_open", open("noise"), -84, "not a Lamina store"),
            ("lamina_store_open", open("zeros"), -84, "not a Lamina store"),
            ("lamina_store_open", json!({ "path": "/dev/null" }), -22, "neither a file"),
            ("lamina_store_open", json!({ "path": "ram:1G" }), -22, "RAM"),
        ],
    );
    assert!(daemon.call(LaminaStoreInfo::default()).is_empty());
    daemon.stop();
}

#[test]
fn places_where_no_store_can_be_made() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    std::fs::write(dir.path("noise"), vec![0x5a; 64 << 20]).unwrap();
    let create = |name: &str, file: &str, size: Option<u64>| {
        let path = dir.text(file);
        json!({ "name": name, "path": path, "size": size })
    };
    let method = "lamina_store_create";
    check(
        &mut daemon,
        &[
            (method, create("pool", "x", Some(128 * MIB)), -17, "pool"),
            (method, create("x y", "x", Some(128 * MIB)), -22, "not allowed"),
            (method, create("", "x", Some(128 * MIB)), -22, "1 to 63"),
            (method, create("x", "x", None), -22, "give a size"),
            (method, create("x", "no/folder", Some(128 * MIB)), -19, "does not exist"),
            (method, create("x", "noise", None), -17, "force"),
            (method, create("x", "pool.store", None), -17, "is open already"),
            (method, json!({ "name": "x", "path": "rel", "size": 128 * MIB }), -22, "absolute"),
            (method, json!({ "name": "x", "path": "ram:1X" }), -22, "not a size"),
            (method, json!({ "name": "x", "path": "ram:90T" }), -28, "smaller"),
        ],
    );
    for size in [1, 4096, MIB] {
        let error = daemon.refused(method, &create("x", "tiny", Some(size)));
        assert!(matches!(error.code, -22 | -28), "{error}");
        assert!(!dir.path("tiny").exists(), "a failed creation leaves nothing behind");
    }
    for (key, value) in
        [("journal_size", u64::MAX), ("shards", 0), ("shards", 1 << 31), ("size", u64::MAX)]
    {
        let mut params = create("x", "odd", Some(128 * MIB));
        params[key] = json!(value);
        let error = daemon.refused(method, &params);
        assert!(matches!(error.code, -22 | -28), "{params}: {error}");
        assert!(!dir.path("odd").exists());
    }
    let empty = json!({ "name": "x", "path": "ram:0" });
    assert!(matches!(daemon.refused(method, &empty).code, -22 | -28));
    let shards = json!({ "name": "x", "path": dir.text("s"), "size": 128 * MIB, "shards": 5000 });
    assert_eq!(daemon.refused(method, &shards).code, -22);
    assert!(!dir.path("s").exists());
    assert_eq!(std::fs::read(dir.path("noise")).unwrap(), vec![0x5a; 64 << 20]);
    let force = Some(true);
    let (name, path) = ("noise".into(), dir.text("noise"));
    daemon.call(LaminaStoreCreate { name, path, force, ..LaminaStoreCreate::default() });
    assert_eq!(daemon.call(LaminaStoreInfo::default()).len(), 2);
    daemon.stop();
}

/// Shards that together want more than all memory of this host, whatever it has, with the largest
/// cache.
fn shards_beyond_memory() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
    let kib: usize = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    u32::try_from(kib / (CACHE_BYTES_MAX >> 10) + 1).unwrap()
}

#[test]
fn engines_that_do_not_fit_the_memory_are_refused() {
    let (dir, shards) = (Dir::new(), shards_beyond_memory());
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", shards);
    daemon.stop();
    let mut daemon = Daemon::start(&dir, &["--cache-size", &CACHE_BYTES_MAX.to_string()]);
    let known = daemon.call(LaminaStoreInfo::default());
    assert_eq!(known.len(), 1, "it is listed");
    assert_eq!(known[0].state, "failed", "and not open");
    let size = u64::from(shards) * 128 * MIB;
    let create = json!({ "name": "x", "path": dir.text("x"), "size": size, "shards": shards });
    let open = json!({ "path": dir.text("pool.store") });
    let words = "bytes of memory";
    check(
        &mut daemon,
        &[("lamina_store_create", create, -28, words), ("lamina_store_open", open, -28, words)],
    );
    assert!(!dir.path("x").exists(), "a failed creation leaves nothing behind");
    daemon.stop();
    let mut daemon = Daemon::start(&dir, &[]);
    create_disk(&mut daemon, "d", MIB);
    daemon.stop();
}

#[test]
fn a_store_of_another_version_or_a_copy() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    daemon.call(LaminaCheckpoint::default());
    std::fs::copy(dir.path("pool.store"), dir.path("copy")).unwrap();
    let open = json!({ "path": dir.text("copy") });
    let error = daemon.refused("lamina_store_open", &open);
    assert_eq!(error.code, -17, "{error}");
    // A cut copy.
    let copy = std::fs::OpenOptions::new().write(true).open(dir.path("copy")).unwrap();
    copy.set_len(64 * MIB).unwrap();
    let error = daemon.refused("lamina_store_open", &open);
    assert!(matches!(error.code, -22 | -84), "{error}");
    daemon.stop();
}

#[test]
fn a_damaged_store_is_an_error_and_the_others_go_on() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "good", 1);
    create_store(&mut daemon, &dir, "bad", 1);
    create_disk_in(&mut daemon, "good", "d");
    create_disk_in(&mut daemon, "bad", "d");
    daemon.call(LaminaStoreClose { name: "bad".into(), force: None });
    let bad = std::fs::OpenOptions::new().write(true).open(dir.path("bad.store")).unwrap();
    // The label stays, all that follows is noise.
    let label = lamina_bdev::LABEL_BYTES as u64;
    bad.write_all_at(&vec![0x5a; 8 << 20], label).unwrap();
    let open = json!({ "path": dir.text("bad.store") });
    for _ in 0..2 {
        // The second time shows that the first let go of everything.
        let error = daemon.refused("lamina_store_open", &open);
        assert_eq!(error.code, -84, "{error}");
    }
    assert_eq!(daemon.call(LaminaStoreInfo::default()).len(), 1);
    create_disk_in(&mut daemon, "good", "e");
    daemon.stop();
}

fn create_disk_in(daemon: &mut Daemon, store: &str, name: &str) {
    daemon.call(BdevLvolCreate {
        lvol_name: name.into(),
        size: Some(MIB),
        lvs_name: Some(store.into()),
        ..BdevLvolCreate::default()
    });
}

#[test]
fn disks_and_snapshots_that_cannot_be() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    let disk = |name: &str, size: u64| json!({ "lvol_name": name, "size": size });
    check(&mut daemon, &[("bdev_lvol_create", disk("d", MIB), -19, "no store is open")]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", 16 * MIB);
    daemon.call(BdevLvolSnapshot { lvol_name: "d".into(), snapshot_name: Some("s".into()) });
    check(
        &mut daemon,
        &[
            ("bdev_lvol_create", disk("d", MIB), -17, "already"),
            ("bdev_lvol_create", disk("../d", MIB), -22, "not allowed"),
            ("bdev_lvol_create", disk("d@s", MIB), -22, "not allowed"),
            ("bdev_lvol_create", disk(&"x".repeat(64), MIB), -22, "63"),
            ("bdev_lvol_create", disk("x", 0), -22, ""),
            ("bdev_lvol_create", disk("x", u64::MAX), -22, ""),
            ("bdev_lvol_create", json!({ "lvol_name": "x" }), -22, "size"),
            ("bdev_lvol_create", json!({ "lvol_name": "x", "size": -1 }), -32602, ""),
            (
                "bdev_lvol_create",
                json!({ "lvol_name": "x", "size": MIB, "lvs_name": "no" }),
                -19,
                "no",
            ),
            ("bdev_lvol_resize", json!({ "name": "d@s", "size": MIB }), -22, "snapshot"),
            ("bdev_lvol_resize", json!({ "name": "d", "size": u64::MAX }), -22, ""),
            ("bdev_lvol_delete", json!({ "name": "none" }), -19, "none"),
            ("bdev_lvol_delete", json!({ "name": "no/d" }), -19, "no store"),
            ("bdev_lvol_delete", json!({ "name": "d@9" }), -19, "d@9"),
            ("bdev_lvol_snapshot", json!({ "lvol_name": "d@s" }), -22, "a disk is needed"),
            ("bdev_lvol_snapshot", json!({ "lvol_name": "d", "snapshot_name": "s" }), -17, ""),
            ("bdev_lvol_snapshot", json!({ "lvol_name": "d", "snapshot_name": "a b" }), -22, ""),
            (
                "bdev_lvol_clone",
                json!({ "snapshot_name": "d", "clone_name": "c" }),
                -22,
                "snapshot",
            ),
            ("bdev_lvol_clone", json!({ "snapshot_name": "d@x", "clone_name": "c" }), -19, "d@x"),
            ("bdev_lvol_clone", json!({ "snapshot_name": "d@s", "clone_name": "d" }), -17, "d"),
            ("bdev_lvol_rename", json!({ "old_name": "d", "new_name": "a/b" }), -22, ""),
            ("lamina_snapshot_label", json!({ "snapshot": "d", "label": "x" }), -22, "disk"),
            ("lamina_store_close", json!({ "name": "none" }), -19, "none"),
            ("bdev_get_iostat", json!({ "name": "d", "names": ["d"] }), -22, "one of them"),
            ("bdev_get_iostat", json!({ "per_channel": true }), -22, "per_channel"),
            ("bdev_get_iostat", json!({ "name": "none" }), -19, "none"),
            ("no_such_method", json!({}), -32601, "no_such_method"),
            ("bdev_lvol_delete", json!({ "name": "d", "nam": 1 }), -32602, "nam"),
        ],
    );
    assert_eq!(daemon.call(BdevGetBdevs::default()).len(), 2);
    daemon.stop();
}

#[test]
fn exports_that_cannot_be() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 1);
    create_disk(&mut daemon, "d", 16 * MIB);
    create_disk(&mut daemon, "e", 16 * MIB);
    attach(&mut daemon, "vm1", "d");
    std::fs::write(dir.path("file"), "").unwrap();
    let taken = std::os::unix::net::UnixListener::bind(dir.path("taken")).unwrap();
    let export = |ctrlr: &str, device: &str| json!({ "ctrlr": ctrlr, "dev_name": device });
    let method = "vhost_create_blk_controller";
    check(
        &mut daemon,
        &[
            (method, export("vm1", "e"), -17, "vm1"),
            (method, export("vm2", "none"), -19, "none"),
            (method, export("a/b", "e"), -22, "absolute path"),
            (method, export("", "e"), -22, "printable"),
            (method, export(&"x".repeat(200), "e"), -22, "shorter"),
            (method, export(&dir.text("file"), "e"), -17, "not a socket"),
            (method, export(&dir.text("taken"), "e"), -16, "in use"),
            (method, export(&dir.text("no/folder"), "e"), -19, "folder"),
            (method, json!({ "ctrlr": "q", "dev_name": "e", "num_queues": 0 }), -22, "queues"),
            (method, json!({ "ctrlr": "q", "dev_name": "e", "num_queues": 65535 }), -22, "queues"),
            (method, json!({ "ctrlr": "q", "dev_name": "e", "transport": "x" }), -22, "transport"),
        ],
    );
    drop(taken);
    // Nothing of the refused ones is left, on the disk or on the reactor.
    assert_eq!(daemon.call(VhostGetControllers::default()).len(), 1);
    let disk = &daemon.call(LaminaDiskInfo { name: Some("e".into()) })[0];
    assert_eq!(disk.attached, 0);
    attach(&mut daemon, &dir.text("taken"), "e");
    // More exports of one disk than can be kept with it.
    let refused =
        (0..100).find_map(|i| daemon.try_call(method, &export(&format!("many{i}"), "e")).err());
    let refused = refused.expect("a blob is bounded");
    assert_eq!(refused.code, -28, "{refused}");
    daemon.stop();
}
