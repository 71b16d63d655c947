//! How fast a Lamina disk is inside SPDK, beside the malloc bdev that it lies on and SPDK's own
//! logical volume on the same. Not a test: it prints, and is run by name.
//!
//! A malloc bdev lends its memory, so that a store on it needs none of its I/O. What a store costs
//! on a bdev that is reached by I/O is seen on a passthru bdev over the same malloc bdev, which
//! lends nothing.
//!
//! ```sh
//! cargo build --release -p lamina-spdk && cargo build --release
//! cargo test --release --test spdk -- measure --ignored --nocapture --test-threads=1
//! ```
//!
//! `LAMINA_MEASURE_ROUNDS` is how often each row is measured, in turn (default 1).
//!
//! Every disk is filled before it is read or written: a Lamina disk by an import, a logical volume
//! by being thick. One core serves; through vhost, a second one asks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::app::{App, MIB, Tool, malloc, passthru, ready_with, spdk_program};
use lamina_tests::client::{Device, Options, Request, lock, wait};
use lamina_tests::guest::{Daemon, program};
use serde_json::{Value, json};

const PERF: &str = "build/examples/bdevperf";
/// Size of every disk, MiB.
const DISK_MIB: u64 = 96;
const BASE_MIB: u64 = 256;
const SNAPSHOTS: u32 = 100;
/// Pages of metadata for each cluster, in percent: enough for as many snapshots of a volume on so
/// small a base, which takes about 60 otherwise.
const LVOL_METADATA: u32 = 400;
/// Seconds of each run.
const SECONDS: &str = "3";
/// Writes right after a snapshot: one in each cluster of SPDK's logical volume.
const FIRST_WRITES: u64 = 20;
const CLUSTER: u64 = 4 * MIB;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Raw,
    Lamina,
    Lvol,
}

const KINDS: [Kind; 3] = [Kind::Raw, Kind::Lamina, Kind::Lvol];

/// What it lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Under {
    /// A malloc bdev.
    Malloc,
    /// A passthru bdev over one.
    Passthru,
}

impl Under {
    fn bdev(self) -> &'static str {
        match self {
            Under::Malloc => "Malloc0",
            Under::Passthru => "Pass0",
        }
    }
}

impl Kind {
    /// The bdev that is used.
    fn bdev(self, under: Under) -> &'static str {
        match self {
            Kind::Raw => under.bdev(),
            Kind::Lamina => "pool/d",
            Kind::Lvol => "lvs/d",
        }
    }

    fn base(self, under: Under) -> Vec<(&'static str, Value)> {
        let mut bdevs = vec![malloc(if self == Kind::Raw { DISK_MIB } else { BASE_MIB }, 4096)];
        if under == Under::Passthru {
            bdevs.push(passthru());
        }
        bdevs
    }

    /// Makes the disk and fills it.
    fn set_up(self, app: &App, stream: &Path, under: Under) {
        match self {
            Kind::Raw => {}
            Kind::Lamina => {
                app.create_store(under.bdev());
                let mut import = Command::new(program("lamina"));
                import.arg("--socket").arg(app.path("rpc.sock"));
                import.args(["snapshot", "import", "--disk", "d"]).arg(stream);
                let output = import.output().expect("lamina can be run");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{said}\n{}", app.log());
                app.ask("lamina_checkpoint", json!({}));
            }
            Kind::Lvol => {
                let store = json!({
                    "bdev_name": under.bdev(), "lvs_name": "lvs",
                    "num_md_pages_per_cluster_ratio": LVOL_METADATA
                });
                app.ask("bdev_lvol_create_lvstore", store);
                let volume = json!({
                    "lvs_name": "lvs", "lvol_name": "d", "size_in_mib": DISK_MIB,
                    "thin_provision": false, "clear_method": "none"
                });
                app.ask("bdev_lvol_create", volume);
            }
        }
    }

    fn snapshot(self, app: &App, label: &str) {
        match self {
            Kind::Raw => {}
            Kind::Lamina => app.snapshot("d", label),
            Kind::Lvol => {
                let params = json!({"lvol_name": "lvs/d", "snapshot_name": label});
                app.ask("bdev_lvol_snapshot", params);
            }
        }
    }
}

/// A full disk as a stream, in the daemon's folder.
fn stream_of_full_disk() -> (Daemon, std::path::PathBuf) {
    let daemon = Daemon::with_store(BASE_MIB * MIB);
    daemon.create_disk("d", DISK_MIB);
    let options = Options { data_bytes: 1 << 20, slots: 2, ..Options::default() };
    let device = Device::connect(&daemon.export("d", false), options).expect("the export listens");
    let queue = device.queue(0);
    let mut word = 1u64;
    for at in 0..DISK_MIB {
        let mut data = Vec::with_capacity(1 << 20);
        while data.len() < 1 << 20 {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            data.extend(word.to_le_bytes());
        }
        let slot = lock(&queue).free_slot().expect("nothing in flight");
        lock(&queue).submit(slot, Request::Write { offset: at * MIB, data: &data });
        assert!(wait(&queue).good);
    }
    daemon.snapshot("d", "full");
    let path = daemon.path("full.lam");
    let mut export = Command::new(program("lamina"));
    export.arg("--socket").arg(daemon.path("rpc.sock"));
    export.args(["snapshot", "export", "d@full", "--output"]).arg(&path);
    assert!(export.status().expect("lamina can be run").success());
    (daemon, path)
}

fn rounds() -> usize {
    std::env::var("LAMINA_MEASURE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn in_process(kind: Kind, under: Under, workload: &str, depth: u32, stream: &Path) -> f64 {
    let bdev = kind.bdev(under);
    let arguments = ["-z", "-q", "64", "-o", "4096", "-w", workload, "-t", SECONDS, "-T", bdev];
    let app = App::start(Tool::Preloaded(PERF, &arguments), &kind.base(under));
    kind.set_up(&app, stream, under);
    (0..depth).for_each(|n| kind.snapshot(&app, &format!("s{n}")));
    let answer = app.ask("perform_tests", Value::Null);
    answer["results"][0]["iops"].as_f64().unwrap_or_else(|| panic!("{answer}\n{}", app.log()))
}

/// The client of `first_write.c` as a library.
fn first_writer(folder: &Path) -> PathBuf {
    let library = folder.join("first_write.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spdk/first_write.c");
    let include = Path::new(&std::env::var_os("SPDK_DIR").expect("asked for")).join("include");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-I"]).arg(include);
    let status = cc.arg(source).arg("-o").arg(&library).status();
    assert!(status.expect("there is a C compiler").success());
    library
}

/// Median microseconds of the first write to a place after a snapshot, one in each cluster of
/// SPDK's logical volume. (`bdevperf` cannot be told to leave what it has written.)
fn first_write_in_process(kind: Kind, under: Under, stream: &Path, library: &Path) -> f64 {
    let app = App::start(Tool::Beside(library), &kind.base(under));
    kind.set_up(&app, stream, under);
    kind.snapshot(&app, "first");
    let params = json!({"bdev": kind.bdev(under), "step": CLUSTER, "count": FIRST_WRITES});
    let answer = app.ask("first_writes", params);
    let mut times: Vec<f64> =
        answer.as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    assert_eq!(times.len() as u64, FIRST_WRITES);
    times.sort_by(f64::total_cmp);
    times[times.len() / 2] / 1e3
}

fn in_the_process_on(under: Under) {
    if !ready_with("in_the_process", PERF) {
        return;
    }
    let (daemon, stream) = stream_of_full_disk();
    let library = first_writer(&daemon.path(""));
    for _ in 0..rounds() {
        for kind in KINDS {
            let first = first_write_in_process(kind, under, &stream, &library);
            println!("{under:?} first write after a snapshot {kind:?}: {first:.2} us");
        }
        for (workload, depth) in [("randread", 0), ("randwrite", 0), ("randread", SNAPSHOTS)] {
            for kind in KINDS {
                if kind != Kind::Raw || depth == 0 {
                    let iops = in_process(kind, under, workload, depth, &stream);
                    println!(
                        "{under:?} bdevperf {workload} depth {depth} {kind:?}: {iops:.0} IOPS"
                    );
                }
            }
        }
    }
}

#[test]
#[ignore = "measures"]
fn in_the_process() {
    in_the_process_on(Under::Malloc);
}

#[test]
#[ignore = "measures"]
fn in_the_process_by_io() {
    in_the_process_on(Under::Passthru);
}

/// I/O a second that a second application, on the second core, gets from a vhost socket.
fn asked(app: &App, socket: &Path, workload: &str, size: &str, seconds: &str) -> f64 {
    let attach = json!({
        "name": "V0", "trtype": "user", "traddr": socket, "dev_type": "blk", "vq_count": 2,
        "vq_size": 256
    });
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_virtio_attach_controller", "params": attach}]}]});
    let path = app.path("asking.json");
    std::fs::write(&path, config.to_string()).expect("a file in the test's folder");
    let mut command = Command::new(spdk_program(PERF).expect("asked for"));
    command.args(["-m", "0x2", "-s", "256", "-g", "-q", "64", "-o", size, "-w", workload]);
    command.args(["-t", seconds, "-r"]).arg(app.path("asking.sock")).arg("-c").arg(&path);
    if let Some(dir) = std::env::var_os("SPDK_DIR") {
        command.env("LD_LIBRARY_PATH", Path::new(&dir).join("build/lib"));
    }
    let output = command.output().expect("bdevperf can be run");
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
    let total = said.lines().rfind(|line| line.trim_start().starts_with("Total"));
    let number = total.and_then(|line| line.split_whitespace().find_map(|w| w.parse().ok()));
    number
        .filter(|iops: &f64| iops.is_finite())
        .unwrap_or_else(|| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Median microseconds of a write to a place that was not written since the snapshot.
fn first_write(app: &App, kind: Kind, socket: &Path) -> f64 {
    let options = Options { huge: true, unflushed: true, ..Options::default() };
    let device = Device::connect(socket, options).expect("SPDK's vhost listens");
    let queue = device.queue(0);
    let mut times = Vec::new();
    kind.snapshot(app, "first");
    for n in 0..FIRST_WRITES {
        let slot = lock(&queue).free_slot().expect("nothing in flight");
        let begun = Instant::now();
        let offset = n * CLUSTER + 8192;
        lock(&queue).submit(slot, Request::Write { offset, data: &[9; 4096] });
        while lock(&queue).poll().is_none() {
            std::hint::spin_loop();
        }
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
#[ignore = "measures"]
fn through_vhost() {
    if !ready_with("through_vhost", PERF) {
        return;
    }
    let (_daemon, stream) = stream_of_full_disk();
    for kind in KINDS.repeat(rounds()) {
        let app = App::start(Tool::Target, &kind.base(Under::Malloc));
        kind.set_up(&app, &stream, Under::Malloc);
        let socket = app.export(kind.bdev(Under::Malloc));
        for workload in ["randread", "randwrite"] {
            let iops = asked(&app, &socket, workload, "4096", SECONDS);
            println!("vhost {workload} depth 0 {kind:?}: {iops:.0} IOPS");
        }
        let first = first_write(&app, kind, &socket);
        println!("vhost first write after a snapshot {kind:?}: {first:.1} us");
        if kind != Kind::Raw {
            (1..SNAPSHOTS).for_each(|n| kind.snapshot(&app, &format!("s{n}")));
            let iops = asked(&app, &socket, "randread", "4096", SECONDS);
            println!("vhost randread depth {SNAPSHOTS} {kind:?}: {iops:.0} IOPS");
        }
    }
}
