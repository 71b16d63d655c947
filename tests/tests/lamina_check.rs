//! The program `lamina-check` on stores in files, whole and damaged: what it says, its exit codes,
//! and what `--repair` makes of them; and a daemon that serves what was repaired.

#[path = "../../bdev/tests/damage/mod.rs"]
mod damage;
#[path = "../../bdev/tests/simple/mod.rs"]
mod simple;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use damage::{Due, Store};
use lamina_tests::client::{Device, Options, read_all};
use lamina_tests::guest::{Daemon, Folder, program};
use serde_json::{Value, json};
use simple::FILE;

/// Slots of disks in a [`Store`].
const GOLDEN: u64 = 0;
const SOLO: u64 = 3;
const WELL: u64 = 4;

/// A store in a file.
struct Image {
    _folder: Folder,
    path: PathBuf,
}

impl Image {
    fn new(store: &Store) -> Image {
        let folder = Folder::new();
        let path = folder.path().join("a.store");
        std::fs::write(&path, &store.disk).expect("the folder takes a file");
        Image { _folder: folder, path }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("it is there")
    }

    /// Exit code and what was said.
    fn check(&self, arguments: &[&str]) -> (i32, String) {
        said(&run("lamina-check", &self.path, arguments))
    }
}

fn run(name: &str, path: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    if name == "lamina" {
        command.arg("check");
    }
    command.arg(path).args(arguments).output().expect("it can be run")
}

fn said(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().expect("it ends by itself"), String::from_utf8_lossy(&text).into_owned())
}

/// A damage.
struct Case {
    name: &'static str,
    damage: fn(&mut Store) -> u64,
    /// The disk that is named.
    disk: &'static str,
    /// Mended without giving anything up.
    harmless: bool,
    /// Disks and snapshots that lose something.
    losers: &'static [&'static str],
}

/// Each answers with the block that has to be named.
const CASES: &[Case] = &[
    Case {
        name: "a leaf is rotten",
        damage: |s| {
            let [.., leaf] = s.path(WELL);
            s.rot(leaf, |b| b[10] ^= 1);
            leaf
        },
        disk: "well",
        harmless: false,
        losers: &["well"],
    },
    Case {
        name: "the record of a disk with clones is rotten",
        damage: |s| {
            let pair = s.record_pair(GOLDEN);
            s.rot(pair, |b| b[99] ^= 1);
            s.rot(pair + 1, |b| b[99] ^= 1);
            pair
        },
        disk: "in record slot 0",
        harmless: false,
        losers: &["golden", "golden@1", "golden@2"],
    },
    Case {
        name: "a snapshot log is rotten",
        damage: |s| {
            let pair = s.u64_at(s.record(SOLO), 200);
            s.rot(pair, |b| b[99] ^= 1);
            s.rot(pair + 1, |b| b[99] ^= 1);
            pair
        },
        disk: "solo",
        harmless: false,
        losers: &["solo@1"],
    },
    Case {
        name: "a block has two owners",
        damage: |s| {
            let ([.., leaf], [.., other]) = (s.path(WELL), s.path(SOLO));
            let data = s.child(other, 3);
            s.set_link(leaf, 3, data);
            data
        },
        disk: "well",
        harmless: false,
        losers: &["well"],
    },
    Case {
        name: "two disks have one name",
        damage: |s| {
            let name = s.block(s.record(SOLO))[72..136].to_vec();
            s.edit_record(WELL, |b| b[72..136].copy_from_slice(&name));
            s.record_pair(WELL)
        },
        disk: "solo",
        harmless: true,
        losers: &["well"],
    },
    Case {
        name: "a block leaks",
        damage: |s| {
            let free = s.free_block(s.root(WELL));
            s.mark(free, true);
            free
        },
        disk: "",
        harmless: true,
        losers: &[],
    },
];

/// Reads what a disk or snapshot of a served store holds, and compares.
fn assert_reads(daemon: &Daemon, due: &Due) {
    let socket = daemon.export(due.name, true);
    let device = Device::connect(&socket, Options::default()).unwrap_or_else(|why| panic!("{why}"));
    for (at, bytes) in &due.bytes {
        let read = read_all(&device.queue(0), *at, bytes.len());
        let read = read.unwrap_or_else(|why| panic!("{} at {at}: {why}", due.name));
        assert!(read == *bytes, "{} reads other bytes at {at}", due.name);
    }
    drop(device);
    daemon.unexport(due.name);
}

/// A daemon opens the store; all but the losers read as before, and a check while it is served
/// finds nothing.
fn assert_served(image: &Image, store: &Store, losers: &[&str]) {
    let mut daemon = Daemon::new();
    daemon.start();
    daemon.ask("lamina_store_open", json!({"path": image.path}));
    for due in store.due.iter().filter(|due| !losers.contains(&due.name)) {
        assert_reads(&daemon, due);
    }
    if losers.is_empty() {
        // What the daemon has open is not checked behind its back. It waits for the lock a while.
        let (code, text) = image.check(&[]);
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("is in use") && text.contains("hint: "), "{text}");
    }
    daemon.ask("lamina_check", json!({}));
    let status = loop {
        let status = daemon.ask("lamina_check_status", json!({}));
        if status["state"] != "running" {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    assert_eq!((&status["state"], &status["report"]["clean"]), (&json!("done"), &json!(true)));
    assert!(daemon.terminate().success(), "the daemon ends well");
}

#[test]
fn a_whole_store_is_clean_and_left_alone() {
    let store = Store::new(FILE);
    let image = Image::new(&store);
    for arguments in [&[][..], &["--repair"], &["--repair", "--cut-off"]] {
        let (code, text) = image.check(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        assert!(text.ends_with("clean\n") && !text.contains("NOT clean"), "{text}");
        assert!(text.contains("5 disks") && !text.contains("repaired:"), "{text}");
        assert!(image.bytes() == store.disk, "{arguments:?} wrote something");
    }
    let (code, text) = said(&run("lamina", &image.path, &[]));
    assert!(code == 0 && text.ends_with("clean\n"), "lamina check PATH: {code}, {text}");
}

#[test]
fn damage_is_named_repaired_and_then_gone() {
    let whole = Store::new(FILE);
    for case in CASES {
        let (name, mut store) = (case.name, whole.clone());
        let block = (case.damage)(&mut store);
        let image = Image::new(&store);
        let (code, text) = image.check(&[]);
        assert_eq!(code, 1, "{name}: {text}");
        assert!(text.ends_with("NOT clean\n"), "{name}: {text}");
        let (code, json) = image.check(&["--json"]);
        assert_eq!(code, 1, "{name}: {json}");
        let report: Value = serde_json::from_str(&json).expect("it is JSON");
        let findings = report["findings"].as_array().expect("a list");
        let named = |f: &&Value| {
            let said = f["text"].as_str().unwrap_or("");
            f["disk"].as_str().unwrap_or("") == case.disk && said.contains(&block.to_string())
                || f["block"].as_u64() == Some(block)
        };
        let found = findings.iter().find(named);
        let found = found.unwrap_or_else(|| panic!("{name}: block {block} is not named: {json}"));
        assert!(text.contains(found["text"].as_str().expect("a text")), "{name}: {text}");
        assert!(image.bytes() == store.disk, "{name}: a check wrote something");

        let (code, text) = image.check(&["--repair"]);
        assert_eq!(code, i32::from(!case.harmless), "{name}: {text}");
        assert_eq!(text.contains("repaired: "), case.harmless, "{name}: {text}");
        let (code, text) = image.check(&["--repair", "--cut-off"]);
        assert_eq!(code, 0, "{name}: {text}");
        assert_eq!(text.contains("repaired: "), !case.harmless, "{name}: {text}");
        let mended = image.bytes();
        let (code, text) = image.check(&["--repair", "--cut-off"]);
        assert!(code == 0 && !text.contains("repaired: "), "{name}, again: {text}");
        assert!(image.bytes() == mended, "{name}: a second repair wrote something");
        assert_served(&image, &store, case.losers);
        let (code, text) = image.check(&[]);
        assert_eq!(code, 0, "{name}, after it was served: {text}");
    }
}

#[test]
fn what_is_no_store_is_an_error_of_its_own() {
    let folder = Folder::new();
    let path = folder.path().join("no.store");
    for (bytes, words) in [
        (Some(vec![7; 1 << 20]), "label"),
        (Some(vec![7; 100]), "no Lamina store"),
        (None, "does not exist"),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).expect("the folder takes a file"),
            None => std::fs::remove_file(&path).expect("it was there"),
        }
        for arguments in [&[][..], &["--repair"]] {
            let (code, text) = said(&run("lamina-check", &path, arguments));
            assert_eq!(code, 2, "{text}");
            assert!(text.starts_with("error: ") && text.contains(words), "{text}");
        }
    }
    let (code, text) = said(&run("lamina-check", &path, &["--cut-off"]));
    assert!(code == 2 && text.contains("--repair"), "cut-off alone: {code}, {text}");
}
