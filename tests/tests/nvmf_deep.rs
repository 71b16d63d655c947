//! Hosts that use all that a queue and a controller offer at once: everything ends, nobody waits
//! for a thing that waits for him.

use std::io::Write;

use lamina_tests::nvme::{
    Connection, Controller, Exported, Options, Payload, Queue, Status, nvm, pattern, rw,
};
use serde_json::json;

/// Bytes of the largest command.
const LARGE: usize = 128 << 10;
const LARGE_BLOCKS: u16 = 256;

fn deep_queue(exported: &Exported) -> (Controller, Queue) {
    let mut controller = exported.connect();
    controller.ask_queues(1);
    controller.connection.options = Options { depth: 512, ..Options::default() };
    let queue = controller.io_queue(1, 512);
    (controller, queue)
}

fn all_succeed(queue: &mut Queue, commands: usize) {
    for n in 0..commands {
        let done = queue.next_end().unwrap_or_else(|lost| panic!("after {n} answers: {lost:?}"));
        assert_eq!(done.completion.status, Status::SUCCESS);
    }
}

/// More large writes than the connection has buffers, then reads: the reads wait for buffers that
/// the writes hold, so no write may wait for a read.
#[test]
fn large_reads_and_writes_beyond_the_buffers_all_end() {
    let exported = Exported::new();
    let (_controller, mut queue) = deep_queue(&exported);
    let data = pattern(1, LARGE);
    for _ in 0..3 {
        for at in 0..40 {
            let write = rw(nvm::WRITE, 1, at * 256, LARGE_BLOCKS);
            queue.submit(write, Payload::Out(data.clone()));
        }
        for at in 0..40 {
            let into = Payload::In(vec![0; LARGE]);
            queue.submit(rw(nvm::READ, 1, at * 256, LARGE_BLOCKS), into);
        }
        all_succeed(&mut queue, 80);
    }
}

/// The same with small in-capsule writes behind, which stop the stream when they have no buffer.
#[test]
fn in_capsule_writes_behind_large_commands_do_not_stop_the_data_those_wait_for() {
    let exported = Exported::new();
    let (_controller, mut queue) = deep_queue(&exported);
    let (large, small) = (pattern(1, LARGE), pattern(2, 4096));
    for at in 0..33 {
        let write = rw(nvm::WRITE, 1, at * 256, LARGE_BLOCKS);
        queue.submit(write, Payload::Out(large.clone()));
    }
    queue.submit(rw(nvm::READ, 1, 0, LARGE_BLOCKS), Payload::In(vec![0; LARGE]));
    for at in 0..200 {
        queue.submit(rw(nvm::WRITE, 1, 16384 + at * 8, 8), Payload::Out(small.clone()));
    }
    all_succeed(&mut queue, 33 + 1 + 200);
}

/// Compare needs a second buffer while it holds one.
#[test]
fn compares_beyond_the_buffers_all_end() {
    let exported = Exported::new();
    let (_controller, mut queue) = deep_queue(&exported);
    let data = pattern(1, LARGE);
    queue.write(1, 0, &data);
    for _ in 0..60 {
        let compare = rw(nvm::COMPARE, 1, 0, LARGE_BLOCKS);
        queue.submit(compare, Payload::Out(data.clone()));
        let into = Payload::In(vec![0; LARGE]);
        queue.submit(rw(nvm::READ, 1, 0, LARGE_BLOCKS), into);
    }
    all_succeed(&mut queue, 120);
}

/// Namespaces on RAM are not kept over a restart; their numbers are taken all the same.
#[test]
fn a_namespace_gets_a_number_that_no_other_has() {
    let exported = Exported::new();
    let daemon = &exported.daemon;
    daemon.ask("lamina_store_create", json!({"name": "ram", "path": "ram:64M"}));
    for (name, nsid) in [("a", 2), ("b", 3)] {
        let disk = json!({"lvol_name": name, "lvs_name": "ram", "size": 1 << 20});
        daemon.ask("bdev_lvol_create", disk);
        assert_eq!(exported.add(&format!("ram/{name}")), nsid);
    }
}

/// A read from it would show what another host had in the buffer.
#[test]
fn a_disk_that_keeps_no_data_is_not_shown_to_hosts() {
    let exported = Exported::new();
    let daemon = &exported.daemon;
    daemon.ask("lamina_store_create", json!({"name": "void", "path": "null:64M"}));
    let disk = json!({"lvol_name": "a", "lvs_name": "void", "size": 1 << 20});
    daemon.ask("bdev_lvol_create", disk);
    let namespace = json!({"bdev_name": "void/a"});
    let subsystems = daemon.ask("nvmf_get_subsystems", json!({}));
    let found = subsystems.as_array().expect("a list").iter();
    let nqn = found
        .map(|one| &one["nqn"])
        .find(|nqn| nqn.as_str().is_some_and(|n| !n.contains("discovery")));
    let params = json!({"nqn": nqn.expect("a subsystem"), "namespace": namespace});
    let refused = daemon.try_ask("nvmf_subsystem_add_ns", params).expect_err("no data");
    assert!(format!("{refused:?}").contains("keeps no data"), "{refused:?}");
}

/// A host that turns flow control off is told so by the queue head of its Connect (Base 2.1, 6.3).
#[test]
fn connect_without_flow_control_says_so_in_the_queue_head() {
    let exported = Exported::new();
    for flow_control in [false, true] {
        let connection = Connection { flow_control, ..exported.connection() };
        let (_queue, done) = connection.open_queue(0, 0xffff, 32).expect("a connection");
        let expected = if flow_control { 1 } else { 0xffff };
        assert_eq!(done.completion.sq_head, expected, "flow control {flow_control}");
    }
}

/// What a host sent last and the end of its connection may come together: both are seen.
#[test]
fn a_queue_that_ends_in_the_middle_of_a_pdu_is_gone_at_once() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    for _ in 0..40 {
        let queue = controller.io_queue(1, 16);
        queue.socket().write_all(&[4, 0, 72]).expect("room in the socket");
        drop(queue);
        // The same number is free again, with the controller still there.
        exported.wait_until("the queue is gone", |e| e.stats()["connections"] == 1);
    }
}
