//! A base device that does not answer: nobody waits for it but who asked for something of it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options};
use lamina_tests::disk::{Running, Way, ready};
use lamina_tests::guest::Daemon;
use lamina_tests::load::{Client, Model, Rng};
use lamina_tests::number;
use serde_json::json;

use crate::{PATIENCE, RPC_TIME_MAX, assert_lives, begin_on, go_on};

/// A disk is made and deleted in a store, soon.
pub fn change_store(daemon: &Daemon, store: &str) {
    let begun = Instant::now();
    let disk = json!({"lvol_name": "brief", "size": 1 << 20, "lvs_name": store});
    daemon.ask("bdev_lvol_create", disk);
    daemon.ask("bdev_lvol_delete", json!({"name": format!("{store}/brief")}));
    let took = begun.elapsed();
    assert!(took < RPC_TIME_MAX, "changes of another store took {took:?}");
}

#[test]
fn a_stalled_base_loses_no_request_and_does_not_stop_rpc() {
    if !ready("a_stalled_base_loses_no_request_and_does_not_stop_rpc") {
        return;
    }
    let stalled = Duration::from_secs(number("LAMINA_STALL_SECONDS", 30));
    let (mut rig, device, client) = begin_on(Way::Block, 4);
    let progress = client.progress();
    let running = Running::new(client);
    let end = Instant::now() + stalled;
    {
        let stall = rig.disk.stall();
        while Instant::now() < end {
            assert_lives(&rig, "while the base stalls");
            sleep(Duration::from_millis(100));
        }
        assert!(stall.held() > 0, "the base was asked for something while it stalled");
    }
    let before = progress.load(Relaxed);
    sleep(Duration::from_millis(500));
    let mut client = running.stop();
    assert!(client.flush(PATIENCE), "a flush after the stall");
    assert_eq!(client.counts.errors, 0, "a stall is no error");
    let after = progress.load(Relaxed);
    assert!(after > before + 100, "I/O went on after the stall: {before} to {after}");
    rig.tag = client.tag();
    drop((client, device));
    rig.cut(&mut Rng::new(4));
    rig.daemon.start();
    go_on(rig, "after a stall and a power cut");
}

#[test]
fn a_stalled_fuse_file_does_not_stop_other_stores_of_the_same_reactor() {
    if !ready("a_stalled_fuse_file_does_not_stop_other_stores_of_the_same_reactor") {
        return;
    }
    let stalled = Duration::from_secs(number("LAMINA_STALL_SECONDS", 30));
    let (mut rig, device, client) = begin_on(Way::File, 6);
    // The daemon has one reactor.
    rig.daemon.ask("lamina_store_create", json!({"name": "quick", "path": "ram:64M"}));
    let disk = json!({"lvol_name": "other", "size": 12 << 20, "lvs_name": "quick"});
    rig.daemon.ask("bdev_lvol_create", disk);
    let socket = rig.daemon.export("other", false);
    let other = Device::connect(&socket, Options::default()).unwrap_or_else(|why| panic!("{why}"));
    let model = Arc::new(Mutex::new(Model::new(12 << 8)));
    let quick = Client::new(other.queue(0), model, 7, 1 << 40);
    let progress = quick.progress();
    for name in ["exported", "deleted"] {
        let disk = json!({"lvol_name": name, "size": 1 << 20, "lvs_name": "pool"});
        rig.daemon.ask("bdev_lvol_create", disk);
    }
    let exported = rig.daemon.export("exported", false);
    let (slow, quick) = (Running::new(client), Running::new(quick));
    std::thread::scope(|scope| {
        let stall = rig.disk.stall();
        // Until everything that the store has room for hangs in the kernel.
        sleep(Duration::from_millis(300));
        assert!(stall.held() > 0, "the base was asked for something while it stalled");
        // What wants something of it has to wait, and nobody else because of that.
        let daemon = &rig.daemon;
        let asked = [
            ("bdev_lvol_snapshot", json!({"lvol_name": "vm", "snapshot_name": "meanwhile"})),
            ("vhost_delete_controller", json!({"ctrlr": "exported.sock"})),
            ("bdev_lvol_delete", json!({"name": "deleted"})),
        ];
        let asked = asked
            .map(|(method, params)| (method, scope.spawn(move || daemon.try_ask(method, params))));
        let end = Instant::now() + stalled;
        let mut slowest = u64::MAX;
        while Instant::now() < end {
            let before = progress.load(Relaxed);
            sleep(Duration::from_millis(500));
            slowest = slowest.min(progress.load(Relaxed) - before);
            assert_lives(&rig, "while a FUSE file stalls");
            change_store(daemon, "quick");
        }
        println!("at least {slowest} answers of the other store in each half second of the stall");
        assert!(slowest > 20, "the other store stood still: {slowest} answers in half a second");
        drop(stall);
        for (method, answer) in asked {
            let answer = answer.join().expect("it does not panic");
            assert!(answer.is_ok(), "{method}, after the stall: {answer:?}");
        }
    });
    assert!(!exported.exists(), "the export is gone");
    let (mut slow, quick) = (slow.stop(), quick.stop());
    assert!(slow.flush(PATIENCE), "a flush after the stall");
    assert_eq!((slow.counts.errors, quick.counts.errors), (0, 0), "a stall is no error");
    rig.tag = slow.tag();
    drop((slow, device));
    rig.cut(&mut Rng::new(6));
    rig.daemon.start();
    go_on(rig, "after a stall of a FUSE file and a power cut");
}
