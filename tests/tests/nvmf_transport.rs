//! The transport's settings, queues that are given back, usage counters, and discovery that lasts.

use std::time::Duration;

use lamina_tests::nvme::{
    Command, Connection, Controller, Exported, Lost, NQN, Payload, Queue, Status, address_json,
    admin, fabrics, nvm, pattern, rw,
};
use serde_json::{Value, json};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
const EVENT_DISCOVERY: u32 = 0x70_f0_02;
const HEALTH_LOG: u8 = 2;
/// CAP, low half.
const CAP: u32 = 0;

fn create(exported: &Exported, params: &Value) -> Result<Value, String> {
    let made = exported.daemon.try_ask("nvmf_create_transport", params.clone());
    made.map_err(|error| error.message)
}

fn status(queue: &mut Queue, command: Command, payload: Payload) -> Status {
    queue.run(command, payload).expect("an answer").completion.status
}

fn closed(queue: &mut Queue) -> bool {
    loop {
        match queue.step() {
            Ok(()) => {}
            Err(lost) => return matches!(lost, Lost::Closed),
        }
    }
}

fn capabilities(controller: &mut Controller) -> u64 {
    let command = Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::PROPERTY_GET),
        cdw10: 1,
        cdw11: CAP,
        ..Command::default()
    };
    let done = controller.admin.run(command, Payload::None).expect("an answer");
    u64::from(done.completion.dw1) << 32 | u64::from(done.completion.dw0)
}

#[test]
fn the_transport_is_as_it_was_made_and_stays_so() {
    let mut exported = Exported::new();
    let given = json!({"max_queue_depth": 64, "max_io_qpairs_per_ctrlr": 3, "max_aq_depth": 32,
        "in_capsule_data_size": 4096, "max_io_size": 32768, "io_unit_size": 16384,
        "c2h_success": false, "acceptor_backlog": 100});
    let mut params = given.clone();
    params["trtype"] = json!("tcp");
    params["num_shared_buffers"] = json!(4095);
    let host = exported.connect();
    let busy = create(&exported, &params).expect_err("a host is connected");
    assert!(busy.contains("hosts are connected"), "{busy}");
    drop(host);
    exported.wait_until_alone();
    for (key, value) in [("zcopy", json!(true)), ("max_queue_depth", json!(4096))] {
        let refused = create(&exported, &json!({"trtype": "TCP", key: value}));
        assert!(refused.expect_err(key).contains(key));
    }
    let unknown = create(&exported, &json!({"trtype": "TCP", "max_srq_depth": 1}));
    assert!(unknown.expect_err("RDMA's").contains("max_srq_depth"));
    assert_eq!(create(&exported, &params), Ok(json!(true)));
    for _ in 0..2 {
        let again = create(&exported, &params).expect_err("it is there");
        assert_eq!(again, "Transport type 'TCP' already exists");
        let shown = &exported.daemon.ask("nvmf_get_transports", Value::Null)[0];
        for (key, value) in given.as_object().expect("an object") {
            assert_eq!(&shown[key], value, "{key}");
        }
        let mut controller = exported.connect();
        assert_eq!(capabilities(&mut controller) & 0xffff, 63, "CAP.MQES");
        let identify = controller.identify(1, 0);
        assert_eq!(identify[77], 3, "MDTS");
        assert_eq!(identify[1792..1796], ((64 + 4096u32) / 16).to_le_bytes(), "IOCCSZ");
        assert_eq!(controller.ask_queues(64), 3);
        let (_, done) = controller.connection.open_queue(1, controller.cntlid, 65).expect("a try");
        assert_eq!(done.completion.status.code(), Status::CONNECT_INVALID_PARAMETERS.code());
        let (_, done) = controller.connection.open_queue(0, 0xffff, 33).expect("a try");
        assert_eq!(done.completion.status.code(), Status::CONNECT_INVALID_PARAMETERS.code());
        let mut queue = controller.io_queue(1, 64);
        queue.initiator().set_in_capsule(4096);
        let data = pattern(1, 32768);
        queue.write(1, 0, &data);
        assert!(queue.read(1, 0, 64) == data);
        let ends = status(&mut queue, rw(nvm::READ, 1, 0, 65), Payload::In(vec![0; 65 * 512]));
        assert_eq!(ends.code(), Status::INVALID_FIELD.code(), "above MDTS");
        drop((queue, controller));
        exported.daemon.kill();
        exported.daemon.start();
    }
}

fn disconnect(format: u32) -> Command {
    Command {
        opcode: fabrics::OPCODE,
        nsid: u32::from(fabrics::DISCONNECT),
        cdw10: format,
        ..Command::default()
    }
}

#[test]
fn a_queue_that_is_disconnected_answers_what_came_before_and_is_free_at_once() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    assert_eq!(controller.identify(1, 0)[1804] & 1, 1, "OFCS: Disconnect");
    let mut other = controller.io_queue(2, 16);
    for round in 0..20u64 {
        let mut queue = controller.io_queue(1, 128);
        let wrong = status(&mut queue, disconnect(1), Payload::None);
        assert_eq!(wrong.code(), Status::CONNECT_INCOMPATIBLE_FORMAT.code());
        for block in 0..64 {
            let data = Payload::Out(pattern(round << 8 | block, 4096));
            queue.submit(rw(nvm::WRITE, 1, block * 8, 8), data);
        }
        let leave = queue.submit(disconnect(0), Payload::None);
        // Too late: it gets no answer.
        let late = queue.submit(rw(nvm::READ, 1, 0, 8), Payload::In(vec![0; 4096]));
        for _ in 0..64 {
            let done = queue.next_end().expect("an answer");
            assert_eq!(done.completion.status, Status::SUCCESS);
            assert!(done.cid != leave && done.cid != late, "in order");
        }
        let done = queue.next_end().expect("an answer");
        assert_eq!((done.cid, done.completion.status), (leave, Status::SUCCESS));
        // Its number is free before the connection is gone.
        let again = controller.io_queue(1, 128);
        assert!(closed(&mut queue), "the daemon closes the connection");
        drop(again);
        for block in 0..64 {
            assert!(other.read(1, block * 8, 8) == pattern(round << 8 | block, 4096));
        }
        let one = |e: &Exported| e.stats()["poll_groups"][0]["current_io_qpairs"] == 1;
        exported.wait_until("one queue is left", one);
    }
    let ends = status(&mut controller.admin, disconnect(0), Payload::None);
    assert_eq!(ends.code(), Status::DISCONNECT_INVALID_QUEUE_TYPE.code());
    assert!(controller.keep_alive().is_ok(), "the admin queue stays");
    drop((other, controller));
    exported.wait_until_alone();
}

#[test]
fn what_hosts_have_moved_is_in_the_health_log() {
    let exported = Exported::new();
    let mut controller = exported.connect();
    controller.ask_queues(2);
    let counters = |controller: &mut Controller| {
        let log = controller.log(HEALTH_LOG, 512);
        let at = |at: usize| u128::from_le_bytes(log[at..at + 16].try_into().expect("16 bytes"));
        [at(32), at(48), at(64), at(80), at(160)]
    };
    assert_eq!(counters(&mut controller), [0; 5]);
    let mut queue = controller.io_queue(1, 64);
    let data = pattern(1, 128 << 10);
    for at in 0..40 {
        queue.write(1, at * 256, &data);
    }
    for at in 0..50 {
        queue.read(1, at % 40 * 256, 256);
    }
    let compare = rw(nvm::COMPARE, 1, 0, 256);
    assert_eq!(status(&mut queue, compare, Payload::Out(data.clone())), Status::SUCCESS);
    let beyond = rw(nvm::READ, 1, 1 << 40, 1);
    assert!(!status(&mut queue, beyond, Payload::In(vec![0; 512])).is_ok());
    queue.flush_disk(1);
    // In thousands of 512 bytes, rounded up.
    let units = |bytes: u128| bytes.div_ceil(512_000);
    let due = [units(51 * (128 << 10)), units(40 * (128 << 10)), 51, 40, 0];
    assert_eq!(counters(&mut controller), due);
    // What queues have moved that are gone still counts, and other hosts see it too.
    drop(queue);
    let mut queue = controller.io_queue(2, 64);
    queue.write(1, 0, &data);
    let mut second = exported.connect();
    let due = [due[0], units(41 * (128 << 10)), 51, 41, 0];
    assert_eq!(counters(&mut second), due);
}

#[test]
fn a_discovery_controller_lasts_while_it_is_kept_alive() {
    let exported = Exported::new();
    let connection = Connection { kato_ms: 1000, ..Connection::new(exported.address(), DISCOVERY) };
    let mut controller = Controller::connect(connection);
    let oaes = u32::from_le_bytes(controller.identify(1, 0)[92..96].try_into().expect("4 bytes"));
    assert_eq!(oaes >> 31, 1, "it tells of changes of the discovery log");
    let command = Command { opcode: admin::GET_FEATURES, cdw10: 0x0f, ..Command::default() };
    let done = controller.admin.run(command, Payload::None).expect("an answer");
    assert_eq!((done.completion.status, done.completion.dw0), (Status::SUCCESS, 1000), "KATO");
    let mut request = controller.ask_event();
    let other = "nqn.2016-06.io.spdk:cnode2";
    for round in 0..4 {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(200));
            let alive = controller.keep_alive().expect("an answer").completion.status;
            assert_eq!(alive, Status::SUCCESS, "round {round}");
        }
        let daemon = &exported.daemon;
        match round % 2 {
            0 => {
                daemon.ask("nvmf_create_subsystem", json!({"nqn": other, "allow_any_host": true}));
                let listener = json!({"nqn": other, "listen_address": address_json(exported.port)});
                daemon.ask("nvmf_subsystem_add_listener", listener)
            }
            _ => daemon.ask("nvmf_delete_subsystem", json!({"nqn": other})),
        };
        let done = controller.admin.wait(request).expect("an event");
        assert_eq!(done.completion.dw0, EVENT_DISCOVERY, "round {round}");
        assert_eq!(controller.log(0x70, 4096)[8], [2, 1][round % 2], "records");
        request = controller.ask_event();
    }
    // Silent for longer than it said: it is over.
    assert!(closed(&mut controller.admin));
    exported.wait_until_alone();
    assert_eq!(exported.daemon.ask("nvmf_get_subsystems", json!({"nqn": NQN}))[0]["nqn"], NQN);
}
