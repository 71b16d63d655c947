//! Changed blocks, exports and imports with a real daemon and the real command: what comes out of
//! another store is what went in, byte for byte, whatever is cut, damaged or killed in between.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options, Request, lock, read_all, wait};
use lamina_tests::guest::{Daemon, program};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Bytes of the disks here: more than one import writes between two flushes.
const DISK_MIB: u64 = 192;

/// What a disk must hold: the seed of each block, and nothing for zeros.
type Model = BTreeMap<u64, u64>;

fn content(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    while bytes.len() < BLOCK as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

struct Test {
    daemon: Daemon,
    model: Model,
    seed: u64,
}

impl Test {
    fn new() -> Test {
        let daemon = Daemon::with_store(1024 * MIB);
        let path = daemon.path("other.store");
        let store = json!({"name": "other", "path": path, "size": 1024 * MIB});
        daemon.ask("lamina_store_create", store);
        let disk = json!({"lvol_name": "vm", "size": DISK_MIB * MIB, "lvs_name": "pool"});
        daemon.ask("bdev_lvol_create", disk);
        Test { daemon, model: Model::new(), seed: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("lamina"));
        command.arg("--socket").arg(self.path("rpc.sock")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn lamina(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("lamina can be run")
    }

    /// Must go well.
    fn good(&self, arguments: &[&str]) -> Value {
        let output = self.lamina(&[&["--json"], arguments].concat());
        let (text, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {error}\n{}", self.daemon.log());
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Must be refused; what was said.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.lamina(arguments);
        assert!(!output.status.success(), "{arguments:?} went well: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Writes and discards as a guest would: (first block, blocks, new data or zeros).
    fn change(&mut self, changes: &[(u64, u64, bool)]) {
        let socket = self.daemon.export("vm", false);
        let device = Device::connect(&socket, Options::default()).expect("a device");
        let queue = device.queue(0);
        let run = |request: Request<'_>| {
            let slot = lock(&queue).free_slot().expect("nothing in flight");
            lock(&queue).submit(slot, request);
            assert!(wait(&queue).good, "{request:?}");
        };
        for &(first, count, data) in changes {
            if !data {
                run(Request::Discard { offset: first * BLOCK, len: count * BLOCK });
                self.model.retain(|block, _| !(first..first + count).contains(block));
                continue;
            }
            for block in first..first + count {
                self.seed += 1;
                run(Request::Write { offset: block * BLOCK, data: &content(self.seed) });
                self.model.insert(block, self.seed);
            }
        }
        run(Request::Flush);
        drop(device);
        self.daemon.unexport("vm");
    }

    fn verify(&self, disk: &str, model: &Model) {
        let socket = self.daemon.export(disk, true);
        let mut device = Device::connect(&socket, Options::default()).expect("a device");
        assert_eq!(device.capacity(), Ok(DISK_MIB * MIB));
        let queue = device.queue(0);
        for chunk in 0..DISK_MIB {
            let bytes = read_all(&queue, chunk * MIB, MIB as usize).expect("readable");
            for (at, got) in bytes.chunks(BLOCK as usize).enumerate() {
                let block = chunk * (MIB / BLOCK) + at as u64;
                match model.get(&block) {
                    Some(seed) => assert!(got == content(*seed), "{disk}: block {block}"),
                    None => assert!(got.iter().all(|b| *b == 0), "{disk}: block {block}"),
                }
            }
        }
        drop(device);
        self.daemon.unexport(disk);
    }

    fn export(&self, snapshot: &str, since: Option<&str>, file: &str) -> PathBuf {
        let path = self.path(file);
        let shown = path.to_str().expect("a plain path").to_string();
        let mut arguments = vec!["snapshot", "export", snapshot, "--output", &shown];
        if let Some(since) = since {
            arguments.extend(["--since", since]);
        }
        self.good(&arguments);
        path
    }

    fn mapped(&self, disk: &str) -> u64 {
        self.daemon.ask("lamina_disk_info", json!({"name": disk}))[0]["mapped"]
            .as_u64()
            .expect("a number")
    }
}

impl Test {
    fn mapped_if_there(&self, disk: &str) -> u64 {
        let info = self.daemon.try_ask("lamina_disk_info", json!({"name": disk}));
        info.ok().and_then(|info| info[0]["mapped"].as_u64()).unwrap_or(0)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn a_full_stream_and_three_incremental_ones_make_the_same_disk_in_another_store() {
    let mut test = Test::new();
    let rounds: [&[(u64, u64, bool)]; 4] = [
        &[(0, 700, true), (5000, 40, true), (49_151, 1, true)],
        &[(10, 5, true), (600, 100, false), (20_000, 3, true)],
        &[(0, 1, true), (49_151, 1, false), (511, 2, true)],
        &[(5000, 40, false), (30_000, 300, true)],
    ];
    let mut models = Vec::new();
    for (round, changes) in rounds.iter().enumerate() {
        test.change(changes);
        test.daemon.snapshot("vm", &format!("s{round}"));
        models.push(test.model.clone());
    }
    // What changed: exactly the blocks of the round, in whole extents, and "now" is empty.
    let diff = test.good(&["snapshot", "diff", "vm@s0", "vm@s1"]);
    assert_eq!(
        diff["extents"],
        json!([
            {"offset": 10 * BLOCK, "length": 5 * BLOCK, "kind": "data"},
            {"offset": 600 * BLOCK, "length": 100 * BLOCK, "kind": "hole"},
            {"offset": 20_000 * BLOCK, "length": 3 * BLOCK, "kind": "data"},
        ])
    );
    assert_eq!(diff["changed"], 108 * BLOCK);
    assert_eq!(test.good(&["snapshot", "diff", "vm@s3"])["extents"], json!([]));
    test.change(&[(77, 1, true)]);
    let now = test.good(&["snapshot", "diff", "vm@s3"]);
    assert_eq!(now["extents"], json!([{"offset": 77 * BLOCK, "length": BLOCK, "kind": "data"}]));
    let snapshots = test.daemon.ask("lamina_snapshot_list", json!({"disk": "vm"}));
    assert_eq!(snapshots.as_array().map(Vec::len), Some(4), "no snapshot of a \"now\" is left");

    let full = test.export("vm@s0", None, "full");
    test.good(&["snapshot", "import", shown(&full), "--disk", "copy", "--store", "other"]);
    test.verify("copy", &models[0]);
    assert_eq!(test.mapped("copy"), models[0].len() as u64 * BLOCK, "the copy is thin");
    for (round, model) in models.iter().enumerate().skip(1).take(3) {
        let since = format!("vm@s{}", round - 1);
        let file = test.export(&format!("vm@s{round}"), Some(&since), &format!("part{round}"));
        assert!(file.metadata().expect("there").len() < 2 * MIB, "only what changed");
        test.good(&["snapshot", "import", shown(&file), "--onto", "copy"]);
        test.verify("copy", model);
    }
    for (round, model) in models.iter().enumerate() {
        test.verify(&format!("copy@s{round}"), model);
    }
    assert_eq!(test.mapped("copy"), models[3].len() as u64 * BLOCK);

    // Onto what is not the base, onto what was changed, over what exists, of the wrong kind.
    let part = test.path("part2");
    let error = test.refused(&["snapshot", "import", shown(&part), "--onto", "copy"]);
    assert!(error.contains("begins from snapshot"), "{error}");
    let error = test.refused(&["snapshot", "import", shown(&part), "--disk", "new"]);
    assert!(error.contains("--onto"), "{error}");
    let error = test.refused(&["snapshot", "import", shown(&full), "--disk", "copy"]);
    assert!(error.contains("data of its own"), "{error}");
    // A clone of the older snapshot in the same store becomes the newer one.
    test.good(&["snapshot", "clone", "vm@s1", "clone"]);
    test.good(&["snapshot", "import", shown(&part), "--onto", "clone"]);
    test.verify("clone", &models[2]);
    test.good(&["snapshot", "clone", "vm@s1", "changed"]);
    let socket = test.daemon.export("changed", false);
    let device = Device::connect(&socket, Options::default()).expect("a device");
    lock(&device.queue(0)).submit(0, Request::Write { offset: 0, data: &content(1) });
    assert!(wait(&device.queue(0)).good);
    drop(device);
    test.daemon.unexport("changed");
    let error = test.refused(&["snapshot", "import", shown(&part), "--onto", "changed"]);
    assert!(error.contains("has been changed since"), "{error}");
}

#[test]
fn cut_and_damaged_streams_are_refused_or_go_on() {
    let mut test = Test::new();
    test.change(&[(0, 3000, true), (40_000, 100, true)]);
    test.daemon.snapshot("vm", "base");
    let full = test.export("vm@base", None, "full");
    let bytes = std::fs::read(&full).expect("just written");
    // Through a pipe it is the same.
    let piped = test.lamina(&["snapshot", "export", "vm@base", "--output", "-"]);
    assert!(piped.status.success() && piped.stdout == bytes);

    for cut in [100, 300, 1 << 20, (5 << 20) + 77, bytes.len() - 1] {
        let part = test.path(&format!("cut{cut}"));
        std::fs::write(&part, &bytes[..cut]).expect("writable");
        let output = ["snapshot", "export", "vm@base", "--output", shown(&part)];
        assert!(test.refused(&output).contains("--resume"));
        if cut > 256 {
            test.good(&[&output[..], &["--resume"]].concat());
        } else {
            test.good(&[&output[..], &["--force"]].concat());
        }
        test.good(&["snapshot", "import", shown(&part), "--disk", &format!("other/d{cut}")]);
        test.verify(&format!("d{cut}"), &test.model);
        test.good(&["disk", "delete", &format!("d{cut}"), "--with-snapshots"]);
    }
    // Half a stream, then all of it.
    let half = test.path("half");
    std::fs::write(&half, &bytes[..bytes.len() / 2]).expect("writable");
    let error = test.refused(&["snapshot", "import", shown(&half), "--disk", "other/two"]);
    assert!(error.contains("ends before its end"), "{error}");
    let done = test.good(&["snapshot", "import", shown(&full), "--disk", "other/two"]);
    assert!(done["resumed_at"].as_u64().expect("a number") > MIB, "{done}");
    test.verify("two", &test.model);
    // Damage is found, whatever it is in, and said with its place.
    for (at, word) in [(3, "not a stream"), (70, "header"), (260, "record 0"), (3 << 20, "record")]
    {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let file = test.path("bad");
        std::fs::write(&file, &bad).expect("writable");
        let error = test.refused(&["snapshot", "import", shown(&file), "--disk", "other/bad"]);
        assert!(error.contains(word) && error.contains("damaged"), "byte {at}: {error}");
    }
    let snapshots = test.daemon.ask("lamina_snapshot_list", json!({"disk": "bad"}));
    assert_eq!(snapshots, json!([]), "a damaged stream gives no snapshot");
    let none = test.path("none");
    let same = ["snapshot", "export", "vm@base", "--since", "vm@base", "-o", shown(&none)];
    let error = test.refused(&same);
    assert!(error.contains("both"), "{error}");
    assert!(!none.exists(), "what was refused leaves no file");
}

#[test]
fn a_killed_daemon_in_mid_export_and_mid_import_costs_nothing() {
    let mut test = Test::new();
    test.change(&[(0, 24_000, true), (48_000, 10, true)]);
    test.daemon.snapshot("vm", "base");
    // Through a pipe that nobody reads on, so that the daemon dies in the middle for certain.
    let piped = ["snapshot", "export", "vm@base", "--output", "-"];
    let mut child = test.command(&piped).spawn().expect("lamina can be run");
    let mut bytes = vec![0; 8 << 20];
    let mut pipe = child.stdout.take().expect("a pipe");
    pipe.read_exact(&mut bytes).expect("a stream");
    test.daemon.kill();
    pipe.read_to_end(&mut bytes).expect("the rest of it");
    assert!(!child.wait().expect("it ends").success(), "an export without a daemon fails");
    let part = test.path("stream");
    std::fs::write(&part, &bytes).expect("writable");
    test.daemon.start();
    let export = ["snapshot", "export", "vm@base", "--output", shown(&part), "--resume"];
    let done = test.good(&export);
    assert!(done["resumed_at"].as_u64().expect("a number") > 6 * MIB, "{done}");

    let bytes = std::fs::read(&part).expect("just written");
    let import = ["snapshot", "import", "-", "--disk", "copy", "--store", "other"];
    let mut child = test.command(&import).stdin(Stdio::piped()).spawn().expect("lamina can be run");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(&bytes[..75 << 20]).expect("it reads");
    let end = Instant::now() + Duration::from_secs(60);
    while test.mapped_if_there("copy") < 68 * MIB {
        assert!(Instant::now() < end, "the import does not get on\n{}", test.daemon.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    test.daemon.kill();
    drop(pipe);
    assert!(!child.wait().expect("it ends").success(), "an import without a daemon fails");
    test.daemon.start();
    let done = test.good(&["snapshot", "import", shown(&part), "--disk", "copy"]);
    assert!(done["resumed_at"].as_u64().expect("a number") >= 60 * MIB, "{done}");
    test.verify("copy", &test.model);
    test.verify("copy@base", &test.model);
    // What the daemon took for itself, and a kill left, goes at the next start.
    let error = test.daemon.try_ask(
        "bdev_lvol_snapshot",
        json!({"lvol_name": "vm", "snapshot_name": "lamina.now.mine"}),
    );
    assert!(error.is_err(), "labels of the daemon's own are refused");
    let error = test
        .daemon
        .try_ask("bdev_lvol_rename", json!({"old_name": "vm@base", "new_name": "lamina.now.mine"}));
    assert!(error.is_err(), "a snapshot renamed so would be gone at the next start");
    let page = test.daemon.ask("lamina_snapshot_diff", json!({"snapshot": "vm", "max": 1}));
    assert!(page["next"].is_u64(), "{page}");
    let count = |test: &Test| {
        let list = test.daemon.ask("lamina_snapshot_list", json!({"disk": "vm"}));
        list.as_array().map_or(0, Vec::len)
    };
    assert_eq!(count(&test), 2, "a \"now\" with pages to come");
    test.daemon.kill();
    test.daemon.start();
    assert_eq!(count(&test), 1, "a \"now\" of a daemon that is gone");
}
