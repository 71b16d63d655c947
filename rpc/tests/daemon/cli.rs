//! The built command against the server: what it prints, where, and its exit codes.

use std::process::{Command, Output, Stdio};

use lamina_rpc::Call;
use lamina_rpc::methods::*;
use serde_json::Value;

use crate::Daemon;

/// Runs `lamina` with the words of `line`.
fn lamina(daemon: &Daemon, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(line.split_whitespace())
        .env("LAMINA_SOCKET", &daemon.path)
        .current_dir(daemon.folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("lamina runs")
}

/// What a command that goes well prints.
fn good(daemon: &Daemon, line: &str) -> String {
    let output = lamina(daemon, line);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "lamina {line}: {errors}");
    assert_eq!(errors, "", "lamina {line}: nothing on stderr where nobody looks");
    String::from_utf8(output.stdout).unwrap()
}

fn good_json(daemon: &Daemon, line: &str) -> Value {
    let text = good(daemon, &format!("{line} --json"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("lamina {line}: {error}: {text}"))
}

/// Exit code and errors of a command that does not go well.
fn bad(daemon: &Daemon, line: &str) -> (i32, String) {
    let output = lamina(daemon, line);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "lamina {line}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A daemon with a store, a golden disk, its snapshot and a clone.
fn prepared() -> Daemon {
    let daemon = Daemon::start();
    good(&daemon, "store create pool ram:1T --size 1T");
    good(&daemon, "disk create golden --size 1.5G");
    good(&daemon, "snapshot create golden base");
    good(&daemon, "disk create vm1 --from golden@base");
    daemon
}

fn last_call(daemon: &Daemon) -> Call {
    daemon.model.calls.lock().unwrap().last().unwrap().clone()
}

#[test]
fn a_first_session() {
    let daemon = Daemon::start();
    assert!(good(&daemon, "store list").contains("No store is open"));
    let text = good(&daemon, "store create pool pool.lamina --size 10G --shards 2");
    assert!(text.starts_with("created store pool on "), "{text}");
    let Call::LaminaStoreCreate(sent) = last_call(&daemon) else { panic!("not a creation") };
    let path = daemon.folder.path().join("pool.lamina");
    assert_eq!(sent.path, path.to_str().unwrap(), "the daemon has another folder");
    assert_eq!((sent.size, sent.shards, sent.force), (Some(10 << 30), Some(2), None));

    assert!(good(&daemon, "disk list").contains("No disks"));
    assert!(good(&daemon, "disk create golden --size 1.5G").contains("golden, 1.5 GiB ("));
    assert!(good(&daemon, "snapshot create golden base").contains("golden@base ("));
    assert!(good(&daemon, "snapshot create golden").contains("golden@2 ("));
    assert!(good(&daemon, "disk create vm1 --from golden@base").contains("1.5 GiB ("));
    assert!(good(&daemon, "snapshot clone golden@2 vm2 --size 2G").contains("2 GiB ("));
    let tree = good(&daemon, "tree");
    let lines: Vec<&str> = tree.lines().map(|line| line.split("  ").next().unwrap_or("")).collect();
    assert_eq!(lines[..2], ["pool", "└─ golden"], "{tree}");
    assert!(tree.contains("│  └─ vm1  1.5 GiB"), "{tree}");
    assert!(tree.contains("@1 base  2023-11-14 22:13:20Z"), "{tree}");
    assert!(good(&daemon, "disk list").contains("vm2     pool     2 GiB"));
    assert!(good(&daemon, "snapshot list").contains("golden       1  base   2023-11-14 22:13:20Z"));
    assert!(good(&daemon, "store list").contains("10 GiB  5 GiB"));
    assert!(good(&daemon, "store info pool").contains("path:"));
    assert!(good(&daemon, "disk info vm1").contains("origin:       golden@1"));
    assert!(good(&daemon, "tree --dot").starts_with("digraph lamina {"));
    assert!(good(&daemon, "checkpoint").contains("consistency point"));
}

#[test]
fn every_command_answers_in_json_too() {
    let daemon = prepared();
    assert_eq!(good_json(&daemon, "store list")[0]["name"], "pool");
    assert_eq!(good_json(&daemon, "store info pool")[0]["size"], 1u64 << 40);
    assert_eq!(good_json(&daemon, "disk list")[1]["origin"], "golden@1");
    assert_eq!(good_json(&daemon, "disk info vm1")["size"], 3u64 << 29);
    assert_eq!(good_json(&daemon, "disk create vm2 --size 10M")["size"], 10 << 20);
    assert_eq!(good_json(&daemon, "disk resize vm2 20M"), true);
    assert_eq!(good_json(&daemon, "disk rename vm2 vm3"), true);
    assert_eq!(good_json(&daemon, "snapshot create vm3 a")["name"], "vm3@a");
    assert_eq!(good_json(&daemon, "snapshot list vm3")[0]["label"], "a");
    assert_eq!(good_json(&daemon, "snapshot label vm3@a b"), true);
    assert_eq!(good_json(&daemon, "snapshot clone vm3@b vm4")["origin"], "vm3@1");
    assert_eq!(good_json(&daemon, "disk delete vm4"), true);
    assert_eq!(good_json(&daemon, "tree")[0]["disks"][0]["name"], "golden");
    assert_eq!(good_json(&daemon, "export attach vm1")["socket"], "/run/lamina/vm1.sock");
    assert_eq!(good_json(&daemon, "export list")[0]["ctrlr"], "vm1.sock");
    assert_eq!(good_json(&daemon, "export detach vm1.sock"), true);
    assert_eq!(good_json(&daemon, "stats")["stores"][0]["shards"][0]["reads"], 7);
    assert_eq!(good_json(&daemon, "checkpoint"), true);
    assert_eq!(good_json(&daemon, "rpc bdev_get_bdevs")[0]["aliases"][0], "pool/golden");
    assert!(good_json(&daemon, "rpc --list").as_array().unwrap().len() > 20);
    assert_eq!(good_json(&daemon, "completions bash")["shell"], "bash");
    let version = good_json(&daemon, "version");
    assert_eq!(version["lamina"], version["laminad"]);
    assert_eq!(good_json(&daemon, "store close pool"), true);
}

#[test]
fn changes_are_listed_to_the_end_and_added_up() {
    let daemon = prepared();
    let text = good(&daemon, "snapshot diff golden@base vm1@1");
    let last = "golden@base to vm1@1: 16 KiB changed (8 KiB data, 8 KiB holes) in 2 extents";
    assert!(text.trim_end().ends_with(last), "{text}");
    let value = good_json(&daemon, "snapshot diff golden@base");
    assert_eq!((&value["changed"], &value["holes"]), (&16384.into(), &8192.into()));
    assert_eq!(value["extents"][1]["offset"], 1 << 20);
    let Call::LaminaSnapshotDiff(sent) = last_call(&daemon) else { panic!("not a list") };
    let due = (Some("now".into()), Some("golden@base".into()), Some(1 << 20));
    assert_eq!((sent.snapshot, sent.since, sent.offset), due, "the page after is of the same now");
}

#[test]
fn a_file_that_is_no_stream_is_never_overwritten_unasked() {
    let daemon = prepared();
    let file = daemon.folder.path().join("notes");
    std::fs::write(&file, "my notes").unwrap();
    let (code, error) = bad(&daemon, "snapshot export golden@base -o notes");
    assert!(code == 1 && error.contains("--force"), "{error}");
    let (code, error) = bad(&daemon, "snapshot export golden@base -o notes --resume");
    assert!(code == 1 && error.contains("not the beginning of a stream"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"my notes");
    assert_eq!(bad(&daemon, "snapshot export golden@base -o - --resume").0, 2);
    assert_eq!(bad(&daemon, "snapshot import none.lam --disk copy").0, 1);
    assert_eq!(bad(&daemon, "snapshot import none.lam").0, 2, "into which disk?");
}

#[test]
fn an_export_prints_what_qemu_needs() {
    let daemon = prepared();
    let text = good(&daemon, "export attach vm1 --queues 2");
    assert!(text.contains("-chardev socket,id=lamina-vm1,path=/run/lamina/vm1.sock"), "{text}");
    assert!(text.contains("-device vhost-user-blk-pci,chardev=lamina-vm1,num-queues=2"), "{text}");
    assert!(text.contains("share=on"), "{text}");
    let answer = good_json(&daemon, "export attach golden@base --socket ./x.sock --readonly");
    let path = daemon.folder.path().join("x.sock");
    assert_eq!(answer["socket"], path.to_str().unwrap());
    assert_eq!(answer["readonly"], true);
    let list = good(&daemon, "export list");
    assert!(list.contains("pool/vm1"), "{list}");
    // By the name of the disk it was made from.
    good(&daemon, "export detach vm1");
    assert_eq!(
        last_call(&daemon),
        Call::VhostDeleteController(VhostDeleteController { ctrlr: "vm1.sock".into() })
    );
    let (code, errors) = bad(&daemon, "export detach vm1");
    assert_eq!(code, 1);
    assert!(errors.contains("hint: `lamina export list`"), "{errors}");
}

#[test]
fn what_would_lose_data_has_to_be_said() {
    let daemon = prepared();
    let (code, errors) = bad(&daemon, "disk resize vm1 1G");
    assert_eq!(code, 2);
    assert!(errors.contains("--shrink"), "{errors}");
    good(&daemon, "disk resize vm1 1G --shrink");

    good(&daemon, "snapshot create vm1 s");
    let (code, errors) = bad(&daemon, "disk delete vm1");
    assert_eq!(code, 2);
    assert!(errors.contains("1 snapshot") && errors.contains("--with-snapshots"), "{errors}");

    let (code, errors) = bad(&daemon, "snapshot delete vm1");
    assert_eq!(code, 2);
    assert!(errors.contains("is a disk, not a snapshot"), "{errors}");

    let deletions = |calls: &[Call]| calls.iter().any(|c| matches!(c, Call::BdevLvolDelete(_)));
    assert!(!deletions(&daemon.model.calls.lock().unwrap()));
    good(&daemon, "disk delete vm1 --with-snapshots");
    good(&daemon, "snapshot delete golden@base");
    assert!(deletions(&daemon.model.calls.lock().unwrap()));
}

#[test]
fn a_refusal_says_what_to_do_next() {
    let daemon = prepared();
    good(&daemon, "export attach golden");
    for (line, words) in [
        ("disk info none", "hint: `lamina disk list`"),
        ("disk create golden --size 1G", "hint: choose another name"),
        ("disk create x --from none@1", "hint: `lamina tree`"),
        ("disk create x --size 1G --store none", "hint: `lamina store list`"),
        ("snapshot create none", "hint: `lamina disk list`"),
        ("snapshot delete golden@base", "hint: detach its exports"),
        ("snapshot delete golden@none", "hint: `lamina tree`"),
        ("disk delete golden --with-snapshots", "hint: detach its exports"),
        ("export attach none", "hint: `lamina tree`"),
        ("store create pool ram:1G --size 1G", "hint: `lamina store list` shows what is open"),
        ("store create new ram:1G", "Invalid argument: a new file needs size"),
        ("store open /none", "is not a Lamina store"),
        ("store info none", "hint: `lamina store list`"),
        ("rpc no_such_method", "hint: `lamina rpc --list`"),
        ("rpc bdev_lvol_delete {\"nam\":\"x\"}", "hint: `lamina rpc --list bdev_lvol_delete`"),
    ] {
        let (code, errors) = bad(&daemon, line);
        assert_eq!(code, 1, "lamina {line}: {errors}");
        assert!(errors.starts_with("error: "), "lamina {line}: {errors}");
        assert!(errors.contains(words), "lamina {line}: {errors}");
    }
    let (code, errors) = bad(&daemon, "disk info none --json");
    let errors: Value = serde_json::from_str(&errors).unwrap();
    assert_eq!((code, &errors["error"]["code"]), (1, &Value::from(-19)));
    assert!(errors["error"]["hint"].as_str().unwrap().contains("lamina disk list"));
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_called() {
    let daemon = prepared();
    let before = daemon.model.calls.lock().unwrap().len();
    for line in [
        "disk create x",
        "disk create x --size 10GB",
        "disk create x --size -1",
        "disk resize vm1",
        "rpc",
        "rpc bdev_get_bdevs {",
        "rpc bdev_get_bdevs [1]",
        "stats --count 3",
        "stats --watch 0",
        "completions tcsh",
        "store",
        "nothing",
    ] {
        let output = lamina(&daemon, line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "lamina {line}: {errors}");
        assert!(!errors.is_empty(), "lamina {line}");
    }
    assert_eq!(daemon.model.calls.lock().unwrap().len(), before);
}

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let daemon = Daemon::start();
    for line in [
        "--socket none.sock disk list",
        "disk --socket none.sock list",
        "disk list --socket none.sock",
        "disk list --rpc-socket none.sock",
        "export attach vm1 --socket vm1.sock --rpc-socket none.sock",
        "--socket none.sock export attach vm1 --socket vm1.sock",
    ] {
        let (code, errors) = bad(&daemon, line);
        assert_eq!(code, 3, "{errors}");
        assert!(errors.contains("Is laminad running?") && errors.contains("hint: "), "{errors}");
    }
    let text = good(&daemon, "--socket none.sock version");
    assert!(text.contains("laminad: not reached"), "{text}");
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    let daemon = prepared();
    daemon.model.hold(true);
    let (code, errors) = bad(&daemon, "checkpoint --timeout 1");
    daemon.model.hold(false);
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("no answer within 1 seconds"), "{errors}");
    assert!(errors.contains("--timeout"), "{errors}");
}

#[test]
fn watching_prints_an_interval_a_line() {
    let daemon = prepared();
    let text = good(&daemon, "stats --watch 1 --count 1");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("STORE") && text.contains("\npool "), "{text}");
    let text = good(&daemon, "stats --watch --count 1 --json");
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["stores"][0]["reads_per_second"], 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = prepared();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["rpc", "--list"])
        .env("LAMINA_SOCKET", &daemon.path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn help_lists_every_method_with_its_parameters() {
    let daemon = Daemon::start();
    let text = good(&daemon, "rpc --list bdev_lvol_resize");
    assert!(text.contains("      name: The disk.\n      [size]: Bytes;"), "{text}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(good(&daemon, &format!("completions {shell}")).contains("lamina"), "{shell}");
    }
}

#[test]
fn a_store_that_fills_up_is_seen_in_the_list_and_in_the_events() {
    let daemon = prepared();
    assert_eq!(good(&daemon, "events"), "No events.\n");
    assert_eq!(good(&daemon, "store warn-at pool 90 80"), "store pool warns at 90%, 80%\n");
    let asked = LaminaStoreSetWarnings { name: "pool".into(), percents: Some(vec![90, 80]) };
    assert_eq!(last_call(&daemon), Call::LaminaStoreSetWarnings(asked));
    let list = good(&daemon, "store list");
    assert!(list.contains("84%") && list.contains("online, over 80%"), "{list}");
    assert!(good(&daemon, "store show pool").contains("online, over 80%"));
    let line = "    1  2023-11-14 22:13:20Z  warning  pool: 84 % of the usable space is used \
                (warning at 80 %)\n";
    assert_eq!(good(&daemon, "events"), line);
    assert_eq!(good(&daemon, "events --since 1"), "No events.\n");
    assert_eq!(good(&daemon, "events --follow --count 1"), line);
    assert_eq!(good_json(&daemon, "events")[0]["severity"], "warning");
    assert_eq!(good_json(&daemon, "events --follow --count 1")["seq"], 1);
    assert_eq!(good(&daemon, "store warn-at pool --never"), "store pool raises no warnings\n");
    let never = LaminaStoreSetWarnings { name: "pool".into(), percents: Some(vec![]) };
    assert_eq!(last_call(&daemon), Call::LaminaStoreSetWarnings(never));
    good(&daemon, "store warn-at pool --default");
    let default = LaminaStoreSetWarnings { name: "pool".into(), percents: None };
    assert_eq!(last_call(&daemon), Call::LaminaStoreSetWarnings(default));
    assert_eq!(good(&daemon, "events --follow --count 1 --since 1").lines().count(), 1);
    assert_eq!(bad(&daemon, "store warn-at pool 101").0, 2);
    assert_eq!(bad(&daemon, "store warn-at none 90").0, 1);
}
