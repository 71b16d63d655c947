//! Namespaces come and go while the base of their disk does not answer: other subsystems, and
//! other hosts, see nothing of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::disk::{Faults, Rig, Way, ready};
use lamina_tests::guest::{Daemon, MIB};
use lamina_tests::number;
use lamina_tests::nvme::{
    Connection, Controller, Payload, Queue, address_json, free_port, nvm, pattern, rw,
};
use serde_json::{Value, json};

use crate::{PATIENCE, ask_soon, assert_daemon_lives};

/// Subsystems: two of disks on the base that hangs, one of a disk elsewhere.
const HANGS: &str = "nqn.2016-06.io.spdk:hangs";
const ENDS: &str = "nqn.2016-06.io.spdk:ends";
const QUICK: &str = "nqn.2016-06.io.spdk:quick";

/// How long the daemon waits for what hangs before it tells whoever asked.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn add(nqn: &str, disk: &str) -> Value {
    json!({"nqn": nqn, "namespace": {"bdev_name": disk}})
}

/// A rig whose disks `one` and `two` are namespaces, as is `other` of another store.
fn served() -> (Rig, u16) {
    let rig = Rig::new(Way::File, Faults::default());
    let daemon = &rig.daemon;
    daemon.ask("lamina_store_create", json!({"name": "quick", "path": "ram:64M"}));
    let port = free_port();
    for (nqn, store, disk) in
        [(HANGS, "pool", "one"), (ENDS, "pool", "two"), (QUICK, "quick", "other")]
    {
        daemon.ask("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true}));
        let listener = json!({"nqn": nqn, "listen_address": address_json(port)});
        daemon.ask("nvmf_subsystem_add_listener", listener);
        let new = json!({"lvol_name": disk, "size": 4 * MIB, "lvs_name": store});
        daemon.ask("bdev_lvol_create", new);
        daemon.ask("nvmf_subsystem_add_ns", add(nqn, disk));
    }
    let more = [("more", "pool"), ("spare", "quick")];
    for (disk, store) in more {
        let new = json!({"lvol_name": disk, "size": 4 * MIB, "lvs_name": store});
        daemon.ask("bdev_lvol_create", new);
    }
    (rig, port)
}

fn host(port: u16, nqn: &str) -> (Controller, Queue) {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut controller = Controller::connect(Connection::new(address, nqn));
    controller.ask_queues(1);
    let queue = controller.io_queue(1, 16);
    (controller, queue)
}

/// Subsystems whose disks do not hang are looked at, changed and used.
fn others_go_on(daemon: &Daemon, queue: &mut Queue, round: u64) {
    assert_daemon_lives(daemon, "while the base of namespaces stalls");
    for method in ["nvmf_get_subsystems", "nvmf_get_stats", "bdev_get_bdevs"] {
        ask_soon(daemon, method, json!({}));
    }
    let nsid = ask_soon(daemon, "nvmf_subsystem_add_ns", add(QUICK, "spare"));
    ask_soon(daemon, "nvmf_subsystem_remove_ns", json!({"nqn": QUICK, "nsid": nsid}));
    let brief = "nqn.2016-06.io.spdk:brief";
    ask_soon(daemon, "nvmf_create_subsystem", json!({"nqn": brief, "allow_any_host": true}));
    ask_soon(daemon, "nvmf_subsystem_add_ns", add(brief, "spare"));
    ask_soon(daemon, "nvmf_delete_subsystem", json!({"nqn": brief}));
    let bytes = pattern(round, 4096);
    queue.write(1, 8, &bytes);
    assert_eq!(queue.read(1, 8, 8), bytes, "a disk that does not hang");
}

#[test]
fn namespaces_whose_base_hangs_come_and_go_and_the_others_are_served() {
    if !ready("namespaces_whose_base_hangs_come_and_go_and_the_others_are_served") {
        return;
    }
    let stalled = Duration::from_secs(number("LAMINA_STALL_SECONDS", 5));
    let (rig, port) = served();
    let daemon = &rig.daemon;
    let (_one, mut one) = host(port, HANGS);
    let (_two, mut two) = host(port, ENDS);
    let (_other, mut other) = host(port, QUICK);
    let bytes = pattern(1, 4096);
    one.write(1, 0, &bytes);
    two.write(1, 0, &bytes);
    std::thread::scope(|scope| {
        let stall = rig.disk.stall();
        for queue in [&mut one, &mut two] {
            queue.submit(rw(nvm::WRITE, 1, 64, 8), Payload::Out(bytes.clone()));
            queue.flush().expect("a connection");
        }
        let end = Instant::now() + PATIENCE;
        while stall.held() == 0 {
            assert!(Instant::now() < end, "the base was never asked");
            sleep(Duration::from_millis(5));
        }
        let asked = [
            ("nvmf_subsystem_remove_ns", json!({"nqn": HANGS, "nsid": 1})),
            ("nvmf_delete_subsystem", json!({"nqn": ENDS})),
            ("nvmf_subsystem_add_ns", add(HANGS, "more")),
        ];
        let asked = asked
            .map(|(method, params)| (method, scope.spawn(move || daemon.try_ask(method, params))));
        let end = Instant::now() + stalled;
        let mut rounds = 0;
        while rounds == 0 || Instant::now() < end {
            rounds += 1;
            others_go_on(daemon, &mut other, rounds);
        }
        let waits = !asked[0].1.is_finished() || stalled >= WAIT_MAX;
        assert!(waits, "it waits for the write that is in flight");
        drop(stall);
        for (method, answer) in asked {
            let answer = answer.join().expect("it does not panic");
            // After a minute whoever asked has been told.
            let told = stalled >= WAIT_MAX;
            assert!(answer.is_ok() || told, "{method}, after the stall: {answer:?}");
        }
    });
    // Nothing is left of them, however long it took: their disks are free.
    for disk in ["one", "two"] {
        daemon.ask("bdev_lvol_delete", json!({"name": format!("pool/{disk}")}));
    }
    if stalled >= WAIT_MAX {
        return;
    }
    let (_more, mut more) = host(port, HANGS);
    let shown = daemon.ask("nvmf_get_subsystems", json!({}));
    let of_more = shown.as_array().expect("a list").iter().find(|one| one["nqn"] == HANGS);
    let nsid = of_more.expect("it is there")["namespaces"][0]["nsid"].as_u64().expect("a number");
    more.write(u32::try_from(nsid).expect("a namespace"), 0, &bytes);
}
