//! As much as a host may ask for: IPv6, 64 queues, 1,024 commands in flight, many connections on
//! several reactors.

use std::net::{Ipv6Addr, SocketAddr};

use lamina_tests::nvme::{
    Connection, Controller, Exported, Host, NQN, Options, Payload, Queue, Status, free_port, nvm,
    pattern, rw,
};
use serde_json::json;

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const DISCOVERY_LOG: u8 = 0x70;
/// Commands in flight at most, as Options have it.
const DEPTH_MAX: u16 = 1024;

#[test]
fn a_listener_of_ipv6_is_found_and_serves() {
    let exported = Exported::new();
    let port = free_port();
    let address = json!({"trtype": "TCP", "adrfam": "IPv6", "traddr": "::1",
        "trsvcid": port.to_string()});
    let listener = json!({"nqn": NQN, "listen_address": address});
    exported.daemon.ask("nvmf_subsystem_add_listener", listener.clone());
    let listeners = exported.daemon.ask("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
    assert_eq!(listeners[1]["address"], address);
    let socket = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    // Discovered over IPv6, with both addresses.
    let mut discovery = Controller::connect(Connection::new(socket, DISCOVERY));
    let log = discovery.log(DISCOVERY_LOG, 4096);
    let entries: Vec<(u8, String, String)> = (1..=u64::from(log[8]))
        .map(|at| {
            let entry = &log[at as usize * 1024..(at as usize + 1) * 1024];
            let text = |range: std::ops::Range<usize>| {
                String::from_utf8_lossy(&entry[range]).trim().to_string()
            };
            (entry[1], text(32..64), text(512..768))
        })
        .collect();
    assert!(entries.contains(&(2, port.to_string(), "::1".into())), "{entries:?}");
    assert!(entries.contains(&(1, exported.port.to_string(), "127.0.0.1".into())), "{entries:?}");
    for options in [
        Options::default(),
        Options { header_digest: true, data_digest: true, ..Options::default() },
    ] {
        let connection = Connection { options, ..Connection::new(socket, NQN) };
        let mut controller = Controller::connect(connection);
        controller.ask_queues(2);
        let mut queues = [controller.io_queue(1, 64), controller.io_queue(2, 64)];
        let data = pattern(5, 128 << 10);
        queues[0].write(1, 64, &data);
        queues[0].flush_disk(1);
        assert!(queues[1].read(1, 64, 256) == data);
    }
    let queue = exported.daemon.ask("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert!(queue.as_array().is_some_and(|all| all.len() <= 2), "{queue}");
    exported.daemon.ask("nvmf_subsystem_remove_listener", listener);
    assert!(Controller::try_connect(Connection::new(socket, NQN)).is_err(), "nobody listens");
    assert_eq!(exported.connect().namespaces(), [1], "the other listener stays");
}

/// Writes a block through each queue at once, then reads it through the next one.
fn round(queues: &mut [Queue], nsid: u32, seed: u64) {
    for (at, queue) in queues.iter_mut().enumerate() {
        let data = pattern(seed + at as u64, 4096);
        queue.submit(rw(nvm::WRITE, nsid, at as u64 * 8, 8), Payload::Out(data));
        queue.flush().expect("an open connection");
    }
    for queue in queues.iter_mut() {
        assert_eq!(queue.next_end().expect("an answer").completion.status, Status::SUCCESS);
    }
    let count = queues.len();
    for at in 0..count {
        let read = queues[(at + 1) % count].read(nsid, at as u64 * 8, 8);
        assert!(read == pattern(seed + at as u64, 4096), "block {at}");
    }
}

#[test]
fn one_controller_has_sixty_four_queues() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    assert_eq!(controller.ask_queues(64), 64);
    let mut queues: Vec<_> = (1..=64).map(|qid| controller.io_queue(qid, 128)).collect();
    for seed in 0..4 {
        round(&mut queues, 1, seed << 16);
    }
    assert_eq!(exported.stats()["poll_groups"][0]["current_io_qpairs"], 64);
    let listed = exported.daemon.ask("nvmf_subsystem_get_qpairs", json!({"nqn": NQN}));
    assert_eq!(listed.as_array().map(Vec::len), Some(65));
    drop((queues, controller));
    exported.wait_until_alone();
}

#[test]
fn a_queue_has_1024_entries_and_as_many_commands_in_flight() {
    let exported = Exported::new();
    for (flow_control, in_flight) in [(false, 1024u64), (true, 1023)] {
        let options = Options { depth: DEPTH_MAX, ..Options::default() };
        let connection = Connection { options, flow_control, ..exported.connection() };
        let mut controller = Controller::connect(connection);
        controller.ask_queues(1);
        let mut queue = controller.io_queue(1, 1024);
        for seed in 0..3u64 {
            for block in 0..in_flight {
                let data = Payload::Out(pattern(seed << 16 | block, 4096));
                queue.submit(rw(nvm::WRITE, 1, block * 8, 8), data);
            }
            for _ in 0..in_flight {
                let done = queue.next_end().expect("an answer");
                assert_eq!(done.completion.status, Status::SUCCESS);
            }
            let reads: Vec<u16> = (0..in_flight)
                .map(|block| {
                    queue.submit(rw(nvm::READ, 1, block * 8, 8), Payload::In(vec![0; 4096]))
                })
                .collect();
            for (block, cid) in (0..).zip(reads) {
                let done = queue.wait(cid).expect("an answer");
                let due = Payload::In(pattern(seed << 16 | block, 4096));
                assert!(done.payload == due, "block {block} of round {seed}");
            }
        }
    }
    exported.wait_until_alone();
}

#[test]
fn many_hosts_share_several_reactors() {
    let exported = Exported::on_two_reactors();
    let idle = (exported.stats(), exported.daemon.descriptors());
    let mut controllers = Vec::new();
    let mut queues = Vec::new();
    for number in 1..=40 {
        let connection = Connection { host: Host::new(number), ..exported.connection() };
        let mut controller = Controller::connect(connection);
        controller.ask_queues(6);
        queues.extend((1..=6).map(|qid| controller.io_queue(qid, 32)));
        controllers.push(controller);
    }
    for seed in 0..3u64 {
        for nsid in 1..=2 {
            round(&mut queues, nsid, seed << 32 | u64::from(nsid) << 16);
        }
    }
    let stats = exported.stats();
    assert_eq!(stats["connections"], 40 * 7);
    for n in 0..2 {
        assert_eq!(stats["poll_groups"][n]["current_io_qpairs"], 120, "{stats}");
    }
    drop((queues, controllers));
    exported.wait_until_alone();
    assert_eq!(exported.stats()["connections"], idle.0["connections"]);
    exported.wait_until("descriptors are closed", |e| e.daemon.descriptors() <= idle.1);
}
