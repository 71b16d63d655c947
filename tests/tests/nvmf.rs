//! Remote hosts on a real `laminad`: our own initiator over loopback reads and writes, and sees
//! namespaces come, change and go.

use std::time::Duration;

use lamina_tests::guest::MIB;
use lamina_tests::nvme::{
    Command, Connection, Controller, Exported, Fuse, Lost, NQN, Options, Payload, Queue, Status,
    address_json, namespace_blocks, nvm, pattern, rw,
};
use serde_json::json;

const CHANGED_NAMESPACES: u8 = 0x04;
const EVENT_NAMESPACE: u32 = 0x04_00_02;
const EVENT_ANA: u32 = 0x0c_03_02;

fn status(queue: &mut Queue, command: Command, payload: Payload) -> Status {
    queue.run(command, payload).expect("an answer").completion.status
}

/// Dword 0 of the event that answers a request.
fn event(controller: &mut Controller, request: u16) -> u32 {
    let done = controller.admin.wait(request).expect("an event");
    assert_eq!(done.completion.status, Status::SUCCESS);
    done.completion.dw0
}

/// Waits until the daemon has closed a connection.
fn wait_for_end(queue: &mut Queue) {
    loop {
        match queue.step() {
            Ok(()) => {}
            Err(Lost::Closed) => return,
            Err(lost) => panic!("the connection is not closed: {lost:?}"),
        }
    }
}

/// Writes through one queue after the other, and reads through all.
fn exercise(controller: &mut Controller, queues: u16, in_capsule: usize) {
    assert!(controller.ask_queues(queues) >= queues);
    let mut queues: Vec<_> = (1..=queues).map(|qid| controller.io_queue(qid, 64)).collect();
    for queue in &mut queues {
        queue.initiator().set_in_capsule(in_capsule);
    }
    for (at, blocks) in [(0u64, 1u16), (7, 9), (100, 16), (1000, 32), (4096, 256)] {
        let data = pattern(at, usize::from(blocks) * 512);
        let writer = at as usize % queues.len();
        queues[writer].write(1, at, &data);
        queues[writer].flush_disk(1);
        for queue in &mut queues {
            assert!(queue.read(1, at, blocks) == data, "{blocks} blocks at {at}");
        }
    }
}

#[test]
fn a_host_connects_identifies_writes_and_reads() {
    let exported = Exported::with(json!({"serial_number": "SN-1", "model_number": "A model"}));
    let mut controller = exported.connect();
    assert_eq!(controller.namespaces(), [1]);
    assert_eq!(namespace_blocks(&controller.identify(0, 1)), 16 * MIB / 512);
    let identify = controller.identify(1, 0);
    assert_eq!(String::from_utf8_lossy(&identify[4..24]).trim_end(), "SN-1");
    assert_eq!(String::from_utf8_lossy(&identify[24..64]).trim_end(), "A model");
    exercise(&mut controller, 4, 8192);
    let found = exported.daemon.ask("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert_eq!(found[0]["cntlid"], json!(controller.cntlid));
    exported.wait_until("the queues are closed", |exported| {
        let groups = exported.stats()["poll_groups"].clone();
        groups[0]["current_io_qpairs"] == 0 && groups[0]["completed_nvme_io"].as_u64() >= Some(30)
    });
    drop(controller);
    exported.wait_until_alone();
}

#[test]
fn digests_alignment_and_flow_control_change_nothing() {
    let exported = Exported::new();
    for (header_digest, data_digest, hpda, in_capsule, flow_control) in [
        (true, false, 0, 8192, false),
        (false, true, 0, 0, true),
        (true, true, 31, 4096, false),
        (true, true, 15, 8192, true),
    ] {
        let options = Options { header_digest, data_digest, hpda, ..Options::default() };
        let connection = Connection { options, flow_control, ..exported.connection() };
        let mut controller = Controller::connect(connection);
        exercise(&mut controller, 2, in_capsule);
    }
}

#[test]
fn many_commands_in_flight_end_each_once_and_right() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let options = Options { depth: 256, ..Options::default() };
    controller.connection.options = options;
    let mut queue = controller.io_queue(1, 512);
    for round in 0..4u64 {
        let blocks: Vec<u64> = (0..256).collect();
        for block in &blocks {
            let data = pattern(round << 32 | block, 4096);
            queue.submit(rw(nvm::WRITE, 1, block * 8, 8), Payload::Out(data));
        }
        for _ in &blocks {
            assert_eq!(queue.next_end().expect("an answer").completion.status, Status::SUCCESS);
        }
        let mut asked = std::collections::BTreeMap::new();
        for block in &blocks {
            let payload = Payload::In(vec![0; 4096]);
            asked.insert(queue.submit(rw(nvm::READ, 1, block * 8, 8), payload), *block);
        }
        for _ in &blocks {
            let done = queue.next_end().expect("an answer");
            let block = asked.remove(&done.cid).expect("each command ends once");
            assert!(done.payload == Payload::In(pattern(round << 32 | block, 4096)));
        }
    }
}

#[test]
fn discard_zeroes_compare_and_write_and_wrong_commands() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    let (mut queue, mut other) = (controller.io_queue(1, 64), controller.io_queue(2, 64));
    let (old, new) = (pattern(1, 4096), pattern(2, 4096));
    queue.write(1, 0, &old);
    let zeroes = rw(nvm::WRITE_ZEROES, 1, 8, 8);
    queue.write(1, 8, &new);
    assert_eq!(status(&mut queue, zeroes, Payload::None), Status::SUCCESS);
    assert!(other.read(1, 8, 8) == vec![0; 4096]);
    let mut range = vec![0; 16];
    range[4..8].copy_from_slice(&8u32.to_le_bytes());
    let discard =
        Command { opcode: nvm::DATASET_MANAGEMENT, nsid: 1, cdw11: 1 << 2, ..Command::default() };
    assert_eq!(status(&mut queue, discard, Payload::Out(range)), Status::SUCCESS);
    assert!(other.read(1, 0, 8) == vec![0; 4096]);
    queue.write(1, 0, &old);
    for (expected, written, ends) in
        [(&new, &old, Status::COMPARE_FAILURE), (&old, &new, Status::SUCCESS)]
    {
        let first = Command { fuse: Fuse::First, ..rw(nvm::COMPARE, 1, 0, 8) };
        let second = Command { fuse: Fuse::Second, ..rw(nvm::WRITE, 1, 0, 8) };
        let compare = queue.submit(first, Payload::Out(expected.clone()));
        let write = queue.submit(second, Payload::Out(written.clone()));
        let compared = queue.wait(compare).expect("an answer").completion.status;
        assert_eq!(compared.code(), ends.code());
        let wrote = queue.wait(write).expect("an answer").completion.status;
        assert_eq!(wrote.is_ok(), ends.is_ok());
        assert!(other.read(1, 0, 8) == new || !ends.is_ok());
    }
    let beyond = rw(nvm::READ, 1, 16 * MIB / 512, 1);
    let ends = status(&mut queue, beyond, Payload::In(vec![0; 512]));
    assert_eq!(ends.code(), Status::LBA_OUT_OF_RANGE.code());
    let nowhere = rw(nvm::READ, 9, 0, 1);
    let ends = status(&mut queue, nowhere, Payload::In(vec![0; 512]));
    assert_eq!(ends.code(), Status::INVALID_NAMESPACE_OR_FORMAT.code());
}

#[test]
fn namespaces_come_grow_and_go_while_connected() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 64);
    let request = controller.ask_event();
    exported.daemon.create_disk("more", 8);
    assert_eq!(exported.add("more"), 2);
    assert_eq!(event(&mut controller, request), EVENT_NAMESPACE);
    assert_eq!(&controller.log(CHANGED_NAMESPACES, 4096)[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(controller.namespaces(), [1, 2]);
    let data = pattern(5, 8192);
    queue.write(2, 16, &data);
    assert!(queue.read(2, 16, 16) == data);

    let request = controller.ask_event();
    exported.daemon.ask("bdev_lvol_resize", json!({"name": "more", "size": 12 * MIB}));
    assert_eq!(event(&mut controller, request), EVENT_NAMESPACE);
    controller.log(CHANGED_NAMESPACES, 4096);
    assert_eq!(namespace_blocks(&controller.identify(0, 2)), 12 * MIB / 512);
    queue.write(2, 12 * MIB / 512 - 16, &data);

    let busy = exported.daemon.try_ask("bdev_lvol_delete", json!({"name": "more"})).unwrap_err();
    assert!(busy.code == -16 && busy.message.contains("namespace 2"), "{busy:?}");
    let request = controller.ask_event();
    exported.remove(2);
    assert_eq!(event(&mut controller, request), EVENT_NAMESPACE);
    assert_eq!(controller.namespaces(), [1]);
    let ends = status(&mut queue, rw(nvm::READ, 2, 0, 1), Payload::In(vec![0; 512]));
    assert_eq!(ends.code(), Status::INVALID_NAMESPACE_OR_FORMAT.code());
    exported.daemon.ask("bdev_lvol_delete", json!({"name": "more"}));
    queue.write(1, 0, &data);
}

#[test]
fn a_disk_shrinks_goes_and_comes_under_io_and_each_command_is_answered() {
    let exported = Exported::new();
    exported.daemon.create_disk("busy", 8);
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 128);
    let mut answered = 0;
    for round in 0..10 {
        let nsid = exported.add("busy") as u32;
        for at in 0..64 {
            let data = pattern(at, 4096);
            queue.submit(rw(nvm::WRITE, nsid, at * 8, 8), Payload::Out(data));
        }
        queue.flush().expect("an open connection");
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        exported.remove(u64::from(nsid));
        for _ in 0..64 {
            let ends = queue.next_end().expect("an answer").completion.status;
            let lawful = [Status::INVALID_NAMESPACE_OR_FORMAT, Status::NAMESPACE_NOT_READY];
            assert!(ends.is_ok() || lawful.iter().any(|s| s.code() == ends.code()), "{ends:?}");
            answered += 1;
        }
    }
    assert_eq!(answered, 640);
    exported.daemon.ask("bdev_lvol_delete", json!({"name": "busy"}));
}

#[test]
fn a_snapshot_is_a_namespace_that_only_reads() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 64);
    let (before, after) = (pattern(1, 4096), pattern(2, 4096));
    queue.write(1, 0, &before);
    exported.daemon.snapshot("vm", "base");
    queue.write(1, 0, &after);
    let nsid = exported.add("vm@base") as u32;
    assert!(queue.read(nsid, 0, 8) == before && queue.read(1, 0, 8) == after);
    let ends = status(&mut queue, rw(nvm::WRITE, nsid, 0, 8), Payload::Out(after));
    assert_eq!(ends.code(), Status::NAMESPACE_IS_WRITE_PROTECTED.code());
    let busy = exported.daemon.try_ask("bdev_lvol_delete", json!({"name": "vm@base"}));
    assert_eq!(busy.unwrap_err().code, -16);
}

#[test]
fn an_inaccessible_path_says_so_and_comes_back() {
    let exported = Exported::with(json!({"ana_reporting": true}));
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 64);
    let set = |state: &str| {
        let address = address_json(exported.port);
        let params = json!({"nqn": NQN, "listen_address": address, "ana_state": state});
        exported.daemon.ask("nvmf_subsystem_listener_set_ana_state", params);
    };
    let request = controller.ask_event();
    set("inaccessible");
    assert_eq!(event(&mut controller, request), EVENT_ANA);
    let ends = status(&mut queue, rw(nvm::READ, 1, 0, 8), Payload::In(vec![0; 4096]));
    assert_eq!(ends.code(), Status::ANA_INACCESSIBLE.code());
    controller.log(0x0c, 4096);
    set("optimized");
    assert_eq!(queue.read(1, 0, 8).len(), 4096);
}

#[test]
fn queues_reach_disks_of_other_reactors() {
    let exported = Exported::on_two_reactors();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    let mut queues = [controller.io_queue(1, 128), controller.io_queue(2, 128)];
    for round in 0..8u64 {
        for (n, queue) in queues.iter_mut().enumerate() {
            for nsid in 1..=2u32 {
                for block in 0..32u64 {
                    let seed = round << 40 | u64::from(nsid) << 32 | (n as u64) << 16 | block;
                    let lba = (n as u64 * 32 + block) * 8;
                    queue.submit(rw(nvm::WRITE, nsid, lba, 8), Payload::Out(pattern(seed, 4096)));
                }
            }
        }
        for queue in &mut queues {
            for _ in 0..64 {
                assert_eq!(queue.next_end().expect("an answer").completion.status, Status::SUCCESS);
            }
        }
        for n in 0..2u64 {
            for nsid in 1..=2u32 {
                for block in 0..32u64 {
                    let seed = round << 40 | u64::from(nsid) << 32 | n << 16 | block;
                    let other = &mut queues[1 - n as usize];
                    let read = other.read(nsid, (n * 32 + block) * 8, 8);
                    assert!(read == pattern(seed, 4096), "round {round}, {nsid}, {block}");
                }
            }
        }
    }
    let groups = exported.stats()["poll_groups"].clone();
    for n in 0..2 {
        assert_eq!(groups[n]["current_io_qpairs"], 1, "{groups}");
        assert!(groups[n]["remote_io"].as_u64() >= Some(8 * 32), "{groups}");
    }
    // Taken away under I/O from the other reactor.
    for block in 0..100u64 {
        let data = Payload::Out(pattern(block, 4096));
        queues[0].submit(rw(nvm::WRITE, 2, block * 8, 8), data);
    }
    queues[0].flush().expect("an open connection");
    exported.remove(2);
    for _ in 0..100 {
        queues[0].next_end().expect("an answer");
    }
    drop((queues, controller));
    exported.wait_until_alone();
}

#[test]
fn a_host_that_is_silent_for_too_long_is_disconnected() {
    let exported = Exported::new();
    let connect = || Controller::connect(Connection { kato_ms: 1000, ..exported.connection() });
    let mut silent = connect();
    silent.ask_queues(1);
    let mut its_queue = silent.io_queue(1, 16);
    let mut polite = connect();
    let mut busy = connect();
    busy.ask_queues(1);
    let mut busy_queue = busy.io_queue(1, 16);
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(polite.keep_alive().expect("an answer").completion.status, Status::SUCCESS);
        busy_queue.read(1, 0, 1);
    }
    wait_for_end(&mut silent.admin);
    wait_for_end(&mut its_queue);
    assert!(polite.keep_alive().is_ok(), "the polite host stays");
    assert!(busy.keep_alive().is_ok(), "I/O counts as a sign of life");
}

#[test]
fn a_stopping_daemon_ends_connections_and_itself() {
    let mut exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(1);
    let mut queue = controller.io_queue(1, 16);
    queue.write(1, 0, &pattern(1, 4096));
    assert!(exported.daemon.terminate().success());
    wait_for_end(&mut queue);
    wait_for_end(&mut controller.admin);
}

#[test]
fn no_command_is_slept_over() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    let mut queues = [controller.io_queue(1, 16), controller.io_queue(2, 16)];
    // The reactor sleeps after 50 microseconds: pauses about as long, and some longer.
    for round in 0..1500u64 {
        let data = pattern(round, 512);
        queues[round as usize % 2].write(1, round, &data);
        if round % 50 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        } else {
            let pause = Duration::from_micros(round * 7 % 120);
            let begun = std::time::Instant::now();
            while begun.elapsed() < pause {
                std::hint::spin_loop();
            }
        }
        assert!(queues[(round as usize + 1) % 2].read(1, round, 1) == data);
    }
}
