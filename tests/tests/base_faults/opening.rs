//! A store is opened or made on a base that does not answer: whoever asked waits, and nobody else.

use std::thread::{Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use lamina_tests::disk::{Disk, Faults, Rig, Stall, ready};
use lamina_tests::guest::{Daemon, MIB, RpcError};
use lamina_tests::number;
use serde_json::{Value, json};

use crate::hangs::change_store;
use crate::{PATIENCE, RPC_TIME_MAX, ask_soon, assert_daemon_lives, begin, go_on};

/// What the daemon says to those who want a name or path that is on its way in.
const BUSY: i64 = -16;

type Asked<'scope> = ScopedJoinHandle<'scope, Result<Value, RpcError>>;

/// Asks on a thread, and waits until the disk hangs with it.
fn ask_and_hang<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    daemon: &'env Daemon,
    stall: &Stall<'_>,
    method: &'static str,
    params: Value,
) -> Asked<'scope> {
    let asked = scope.spawn(move || daemon.try_ask(method, params));
    let end = Instant::now() + PATIENCE;
    while stall.held() == 0 {
        assert!(!asked.is_finished(), "{method} did not need the base");
        assert!(Instant::now() < end, "{method} never asked the base");
        sleep(Duration::from_millis(5));
    }
    asked
}

/// An answer that must come soon, and be a refusal.
fn refused_soon(daemon: &Daemon, method: &str, params: Value) -> RpcError {
    let begun = Instant::now();
    let answer = daemon.try_ask(method, params.clone());
    let took = begun.elapsed();
    assert!(took < RPC_TIME_MAX, "{method} {params} took {took:?}");
    answer.expect_err("what hangs cannot be had a second time")
}

/// The states of all stores, by path.
fn state_of(daemon: &Daemon, path: &str) -> Vec<String> {
    let infos = daemon.ask("lamina_store_info", json!({}));
    let infos = infos.as_array().expect("a list").iter();
    let of = infos.filter(|info| info["path"] == path);
    of.map(|info| info["state"].as_str().expect("text").to_string()).collect()
}

/// Stores that have nothing to do with the one that hangs are looked at, changed, made and closed.
fn others_go_on(daemon: &Daemon, time: Duration) {
    let end = Instant::now() + time;
    loop {
        assert_daemon_lives(daemon, "while a store hangs on its way in");
        change_store(daemon, "quick");
        ask_soon(daemon, "lamina_store_create", json!({"name": "brief", "path": "ram:64M"}));
        ask_soon(daemon, "lamina_store_close", json!({"name": "brief"}));
        let warnings = json!({"name": "quick", "percents": [50]});
        ask_soon(daemon, "lamina_store_set_warnings", warnings);
        if Instant::now() >= end {
            return;
        }
        sleep(Duration::from_millis(50));
    }
}

/// A rig with data that is flushed, its store closed, and another store.
fn closed(seed: u64) -> Rig {
    let (mut rig, device, client) = begin(seed);
    rig.tag = client.tag();
    drop((client, device));
    rig.daemon.ask("lamina_store_create", json!({"name": "quick", "path": "ram:64M"}));
    rig.daemon.ask("lamina_store_close", json!({"name": "pool", "force": true}));
    rig
}

/// What the daemon would open at its next start.
fn kept(daemon: &Daemon) -> String {
    let path = daemon.path("state").join("stores.json");
    std::fs::read_to_string(path).expect("the state file")
}

fn base(rig: &Rig) -> String {
    rig.base().to_str().expect("a path in UTF-8").to_string()
}

#[test]
fn a_store_that_hangs_while_it_is_opened_holds_up_nobody() {
    if !ready("a_store_that_hangs_while_it_is_opened_holds_up_nobody") {
        return;
    }
    let stalled = Duration::from_millis(number("LAMINA_STALL_SECONDS", 1) * 1000);
    let rig = closed(20);
    let path = base(&rig);
    // At first look, at the label, and while its engine recovers: then its name is known.
    for (served, named) in [(0, false), (1, false), (2, true), (5, true)] {
        println!("the base hangs after {served} requests");
        let daemon = &rig.daemon;
        std::thread::scope(|scope| {
            let stall = rig.disk.stall_after(served);
            let open = json!({"path": path});
            let asked = ask_and_hang(scope, daemon, &stall, "lamina_store_open", open.clone());
            others_go_on(daemon, stalled);
            assert_eq!(state_of(daemon, &path), ["opening"]);
            let force = json!({"name": "other", "path": path, "force": true});
            let mut refused = vec![("lamina_store_open", open), ("lamina_store_create", force)];
            if named {
                refused.push(("lamina_store_create", json!({"name": "pool", "path": "ram:64M"})));
                refused.push(("lamina_store_close", json!({"name": "pool", "force": true})));
            }
            for (method, params) in refused {
                let error = refused_soon(daemon, method, params);
                assert_eq!(error.code, BUSY, "{method}: {error:?}");
                assert!(error.message.contains("opened"), "{method}: {error:?}");
            }
            assert!(!asked.is_finished(), "it still waits for its base");
            drop(stall);
            let answer = asked.join().expect("it does not panic").expect("the base is well again");
            assert_eq!(answer["name"], "pool");
        });
        assert_eq!(state_of(&rig.daemon, &path), ["online"]);
        rig.daemon.ask("lamina_store_close", json!({"name": "pool", "force": true}));
    }
    rig.daemon.ask("lamina_store_open", json!({"path": path}));
    go_on(rig, "after its store hung on its way in");
}

#[test]
fn a_store_that_hangs_while_it_is_made_has_its_name_and_holds_up_nobody() {
    if !ready("a_store_that_hangs_while_it_is_made_has_its_name_and_holds_up_nobody") {
        return;
    }
    let rig = closed(21);
    let path = base(&rig);
    let new = json!({"name": "fresh", "path": path, "force": true, "journal_size": 4 << 20});
    let other = json!({"name": "fresh", "path": "ram:64M"});
    for served in [0, 3, 20] {
        println!("the base hangs after {served} requests");
        let daemon = &rig.daemon;
        std::thread::scope(|scope| {
            let stall = rig.disk.stall_after(served);
            let asked = ask_and_hang(scope, daemon, &stall, "lamina_store_create", new.clone());
            others_go_on(daemon, Duration::ZERO);
            let open = json!({"path": path});
            for (method, params) in
                [("lamina_store_create", other.clone()), ("lamina_store_open", open)]
            {
                let error = refused_soon(daemon, method, params);
                assert_eq!(error.code, BUSY, "{method}: {error:?}");
            }
            drop(stall);
            asked.join().expect("it does not panic").expect("the base is well again");
        });
        let error = refused_soon(daemon, "lamina_store_create", other.clone());
        assert!(error.message.contains("is open already"), "{error:?}");
        daemon.ask("lamina_store_close", json!({"name": "fresh"}));
    }
}

#[test]
fn a_store_whose_base_fails_after_a_while_gives_name_and_path_back() {
    if !ready("a_store_whose_base_fails_after_a_while_gives_name_and_path_back") {
        return;
    }
    let rig = closed(22);
    let path = base(&rig);
    let (daemon, disk): (&Daemon, &Disk) = (&rig.daemon, &rig.disk);
    for served in [1, 4] {
        std::thread::scope(|scope| {
            let stall = disk.stall_after(served);
            let open = json!({"path": path});
            let asked = ask_and_hang(scope, daemon, &stall, "lamina_store_open", open);
            disk.set_faults(Faults { gone: true, ..Faults::default() });
            drop(stall);
            let error = asked.join().expect("it does not panic").expect_err("the base is gone");
            assert!(error.code == -5, "{error:?}");
        });
        assert_eq!(state_of(daemon, &path), [""; 0], "it is neither there nor on its way");
        disk.set_faults(Faults::default());
        // Its name is free, and so is its path.
        daemon.ask("lamina_store_create", json!({"name": "pool", "path": "ram:64M"}));
        daemon.ask("lamina_store_close", json!({"name": "pool"}));
        daemon.ask("lamina_store_open", json!({"path": path}));
        daemon.ask("lamina_store_close", json!({"name": "pool", "force": true}));
    }
    daemon.ask("lamina_store_open", json!({"path": path}));
    go_on(rig, "after its base failed on its way in");
}

#[test]
fn a_store_that_hangs_when_the_daemon_starts_comes_later() {
    if !ready("a_store_that_hangs_when_the_daemon_starts_comes_later") {
        return;
    }
    let (mut rig, device, client) = begin(23);
    rig.tag = client.tag();
    drop((client, device));
    let path = base(&rig);
    let file = rig.daemon.path("quick.store");
    let quick = json!({"name": "quick", "path": file, "size": 64 * MIB});
    rig.daemon.ask("lamina_store_create", quick);
    rig.daemon.ask("lamina_store_set_warnings", json!({"name": "pool", "percents": [42]}));
    assert!(rig.daemon.terminate().success());
    {
        let _stall = rig.disk.stall();
        rig.daemon.start();
        assert_eq!(state_of(&rig.daemon, &path), ["opening"]);
        others_go_on(&rig.daemon, Duration::from_secs(1));
        // What is on its way is not forgotten.
        let kept = kept(&rig.daemon);
        assert!(kept.contains(&path) && kept.contains("quick.store"), "{kept}");
        assert!(kept.contains("42"), "its own warnings: {kept}");
    }
    let end = Instant::now() + PATIENCE;
    while state_of(&rig.daemon, &path) != ["online"] || rig.try_connect(false).is_err() {
        assert!(Instant::now() < end, "it never came:\n{}", rig.daemon.log());
        sleep(Duration::from_millis(20));
    }
    let kept = kept(&rig.daemon);
    assert!(kept.contains(&path) && kept.contains("42"), "{kept}");
    go_on(rig, "after a start while its base hung");
}

#[test]
fn a_store_that_hangs_on_its_way_in_does_not_keep_the_daemon_from_stopping() {
    if !ready("a_store_that_hangs_on_its_way_in_does_not_keep_the_daemon_from_stopping") {
        return;
    }
    let mut rig = closed(24);
    let path = base(&rig);
    // While its engine recovers, on a reactor.
    let stall = rig.disk.stall_after(4);
    std::thread::scope(|scope| {
        let open = json!({"path": path});
        let asked = ask_and_hang(scope, &rig.daemon, &stall, "lamina_store_open", open);
        rig.daemon.send_terminate();
        let end = Instant::now() + PATIENCE;
        while !rig.daemon.log().contains("stopped, not in good order") {
            assert!(Instant::now() < end, "it does not stop:\n{}", rig.daemon.log());
            sleep(Duration::from_millis(20));
        }
        // A process cannot end while the kernel waits for its file.
        drop(stall);
        assert!(asked.join().expect("it does not panic").is_err(), "nobody is left to answer");
    });
    let status = rig.daemon.wait();
    assert_eq!(status.code(), Some(1), "it neither crashed nor claims that all went well");
    rig.daemon.start();
    rig.daemon.ask("lamina_store_open", json!({"path": path}));
    go_on(rig, "after a stop while its store hung on its way in");
}
