//! Hosts that use all that a queue and a controller offer at once: everything ends, nobody waits
//! for a thing that waits for him.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lamina_nvmf::host::Builder;
use lamina_tests::nvme::{
    Connection, Controller, Exported, Options, Payload, Queue, Status, nvm, pattern, rw,
};
use rustix::net::{AddressFamily, SocketType};
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

/// Sockets closed with bytes unread reset their connections, and a host may lose what it has not
/// read yet: so the daemon reads on for a while.
#[test]
fn a_host_that_goes_on_sending_reads_why_it_was_ended() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    // On the service thread, before and after the ICReq, and on a reactor.
    for round in 0..40 {
        let mut socket = match round % 4 {
            0 => TcpStream::connect(exported.address()).expect("a connection"),
            1 => {
                let mut socket = TcpStream::connect(exported.address()).expect("a connection");
                let mut icreq = Vec::new();
                Builder::default().icreq(&mut icreq, 0, 0);
                socket.write_all(&icreq).expect("room in the socket");
                socket.read_exact(&mut [0; 128]).expect("an ICResp");
                socket
            }
            2 => {
                let other = exported.connect();
                assert_eq!(other.cntlid, 2, "the controller before is gone");
                other.admin.socket().try_clone().expect("a descriptor")
            }
            _ => controller.io_queue(1, 16).socket().try_clone().expect("a descriptor"),
        };
        socket.set_nonblocking(false).expect("a blocking socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut lie = vec![0x55; 300_000];
        lie[..8].copy_from_slice(&[0x55, 0, 72, 0, 72, 0, 0, 0]);
        let _ = socket.write_all(&lie);
        // Not at once: a reset would have thrown away by now what is there.
        std::thread::sleep(Duration::from_millis(20));
        let mut said = Vec::new();
        let ended = socket.read_to_end(&mut said);
        assert!(ended.is_ok(), "round {round}: {ended:?} after {} bytes", said.len());
        assert_eq!((said[0], said[8]), (3, 1), "a termination request: a wrong field");
        drop(socket);
        exported.wait_until("the queue is gone", |e| e.stats()["connections"] == 1);
    }
}

/// When CSTS says that a controller is reset, no old write lands any more.
#[test]
fn nothing_written_before_a_reset_lands_after_it() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    let (old, new) = (pattern(1, 64 << 10), pattern(2, 64 << 10));
    for round in 0..20 {
        controller.ask_queues(1);
        let mut queue = controller.io_queue(1, 128);
        for at in 0..64 {
            queue.submit(rw(nvm::WRITE, 1, at * 128, 128), Payload::Out(old.clone()));
        }
        let _ = queue.flush();
        controller.set_property(0x14, 0);
        controller.wait_for_status(1, 0);
        controller.set_property(0x14, 1 | 6 << 16 | 4 << 20);
        controller.wait_for_status(1, 1);
        controller.ask_queues(1);
        let mut queue = controller.io_queue(1, 128);
        for at in 0..64 {
            queue.write(1, at * 128, &new);
        }
        for at in 0..64 {
            assert!(queue.read(1, at * 128, 128) == new, "round {round}, command {at}");
        }
        drop(queue);
        exported.wait_until("the queue is gone", |e| e.stats()["connections"] == 1);
    }
}

/// An address that sends nothing but garbage is turned away for a while; others come in.
#[test]
fn an_address_of_garbage_is_turned_away_and_no_other() {
    let exported = Exported::new();
    let from = |last: u8, bytes: &[u8]| -> Vec<u8> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
        let socket = socket.expect("a socket");
        let local = SocketAddr::from(([127, 0, 0, last], 0));
        rustix::net::bind(&socket, &local).expect("an address of this machine");
        rustix::net::connect(&socket, &exported.address()).expect("a connection");
        let mut socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let _ = socket.write_all(bytes);
        let mut said = vec![0; 128];
        let length = socket.read(&mut said).unwrap_or(0);
        said.truncate(length);
        said
    };
    for n in 0..32 {
        assert_eq!(from(2, &[0x55; 128])[0], 3, "number {n} is told what was wrong");
    }
    let mut icreq = Vec::new();
    Builder::default().icreq(&mut icreq, 0, 0);
    assert!(from(2, &icreq).is_empty(), "closed without a word");
    assert_eq!(from(3, &icreq)[0], 1, "another address gets its ICResp");
    let mut controller = exported.connect();
    assert_eq!(controller.namespaces(), [1]);
}
