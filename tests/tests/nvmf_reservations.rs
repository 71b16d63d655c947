//! Reservations over the end of the daemon: those that persist through power loss are in the store.

use std::path::Path;

use lamina_nvmf::host::Payload;
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Status};
use lamina_tests::nvme::{
    Connection, Controller, Exported, Host, NQN, Queue, address_json, pattern, rw,
};
use serde_json::json;

/// CPTPL of Reservation Register: keep it, or do not.
const KEEP: u32 = 0b11 << 30;
const DO_NOT_KEEP: u32 = 0b10 << 30;
/// RTYPE of Reservation Acquire and Release.
const WRITE_EXCLUSIVE: u32 = 1 << 8;

/// A host and its first I/O queue.
fn host(exported: &Exported, number: u8) -> (Controller, Queue) {
    let connection = Connection { host: Host::new(number), ..exported.connection() };
    let mut controller = Controller::connect(connection);
    controller.ask_queues(1);
    let queue = controller.io_queue(1, 16);
    (controller, queue)
}

fn reserve(queue: &mut Queue, opcode: u8, cdw10: u32, keys: [u64; 2]) -> Status {
    let command = Command { opcode, nsid: 1, cdw10, ..Command::default() };
    let data = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    queue.run(command, Payload::Out(data)).expect("an answer").completion.status
}

fn register(queue: &mut Queue, persist: u32, key: u64) {
    let ends = reserve(queue, nvm::RESERVATION_REGISTER, persist, [0, key]);
    assert_eq!(ends, Status::SUCCESS);
}

fn write(queue: &mut Queue) -> u16 {
    let done = queue.run(rw(nvm::WRITE, 1, 0, 1), Payload::Out(pattern(1, 512)));
    done.expect("an answer").completion.status.code()
}

/// Generation, type, PTPL state, and for each registrant: holds it, host, key.
type Report = (u32, u8, u8, Vec<(bool, u8, u64)>);

fn report(queue: &mut Queue) -> Report {
    let command = Command {
        opcode: nvm::RESERVATION_REPORT,
        nsid: 1,
        cdw10: 4096 / 4 - 1,
        cdw11: 1,
        ..Command::default()
    };
    let data = queue.must(command, Payload::In(vec![0; 4096]));
    let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"));
    let count = usize::from(u16::from_le_bytes([data[5], data[6]]));
    let registrants = data[64..].chunks(64).take(count).map(|one| {
        let key = u64::from_le_bytes(one[8..16].try_into().expect("8 bytes"));
        (one[2] & 1 != 0, one[16], key)
    });
    (word(0), data[4], data[9], registrants.collect())
}

fn hold(exported: &Exported) -> Report {
    let (_one, mut holder) = host(exported, 1);
    let (_two, mut second) = host(exported, 2);
    register(&mut holder, KEEP, 7);
    register(&mut second, 0, 8);
    let ends = reserve(&mut holder, nvm::RESERVATION_ACQUIRE, WRITE_EXCLUSIVE, [7, 0]);
    assert_eq!(ends, Status::SUCCESS);
    let report = report(&mut second);
    assert_eq!(report.3, [(true, 1, 7), (false, 2, 8)]);
    report
}

#[test]
fn a_reservation_outlives_the_daemon() {
    let mut exported = Exported::new();
    let before = hold(&exported);
    for _ in 0..3 {
        exported.daemon.kill();
        exported.daemon.start();
        let (_three, mut stranger) = host(&exported, 3);
        assert_eq!(write(&mut stranger), Status::RESERVATION_CONFLICT.code());
        assert_eq!(report(&mut stranger), before);
        let (_one, mut holder) = host(&exported, 1);
        assert_eq!(write(&mut holder), Status::SUCCESS.code());
    }
    // Given back, and that is kept too.
    let (_one, mut holder) = host(&exported, 1);
    let ends = reserve(&mut holder, nvm::RESERVATION_RELEASE, WRITE_EXCLUSIVE, [7, 0]);
    assert_eq!(ends, Status::SUCCESS);
    exported.daemon.kill();
    exported.daemon.start();
    let (_three, mut stranger) = host(&exported, 3);
    assert_eq!(write(&mut stranger), Status::SUCCESS.code());
    assert_eq!(report(&mut stranger).3, [(false, 1, 7), (false, 2, 8)]);
}

#[test]
fn one_that_is_not_to_persist_ends_with_the_daemon() {
    let mut exported = Exported::new();
    hold(&exported);
    let (_two, mut second) = host(&exported, 2);
    let ends = reserve(&mut second, nvm::RESERVATION_REGISTER, 2 | DO_NOT_KEEP, [8, 9]);
    assert_eq!(ends, Status::SUCCESS);
    assert_eq!(report(&mut second).2, 0, "PTPL is off");
    exported.daemon.kill();
    exported.daemon.start();
    let (_three, mut stranger) = host(&exported, 3);
    assert_eq!(write(&mut stranger), Status::SUCCESS.code());
    assert_eq!(report(&mut stranger).3, []);
}

/// Makes the subsystem again in a daemon that knows nothing but the path of a store.
fn export_anew(exported: &Exported, store: &Path) {
    let daemon = &exported.daemon;
    assert_eq!(daemon.ask("nvmf_get_subsystems", json!({})).as_array().map(Vec::len), Some(1));
    daemon.ask("lamina_store_open", json!({"path": store}));
    daemon.ask("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true}));
    assert_eq!(exported.add("vm"), 1);
    let address = address_json(exported.port);
    let listener = json!({"nqn": NQN, "listen_address": address});
    daemon.ask("nvmf_subsystem_add_listener", listener);
}

#[test]
fn a_store_that_moves_takes_its_reservations_along() {
    let mut exported = Exported::new();
    let before = hold(&exported);
    exported.daemon.kill();
    let state = exported.daemon.path("state");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::create_dir(&state).unwrap();
    let moved = exported.daemon.path("moved.store");
    std::fs::rename(exported.daemon.path("pool.store"), &moved).unwrap();
    exported.daemon.start();
    export_anew(&exported, &moved);
    let (_three, mut stranger) = host(&exported, 3);
    assert_eq!(report(&mut stranger), before);
    assert_eq!(write(&mut stranger), Status::RESERVATION_CONFLICT.code());
    // A namespace that goes and comes back is the same one.
    exported.remove(1);
    assert_eq!(exported.add("vm"), 1);
    assert_eq!(report(&mut stranger), before);
    let (_one, mut holder) = host(&exported, 1);
    assert_eq!(write(&mut holder), Status::SUCCESS.code());
}

#[test]
fn sixty_four_hosts_are_kept_and_one_more_is_told_so() {
    let mut exported = Exported::new();
    for number in 1..=64 {
        let (_one, mut queue) = host(&exported, number);
        register(&mut queue, KEEP, u64::from(number));
    }
    let (_last, mut queue) = host(&exported, 65);
    let ends = reserve(&mut queue, nvm::RESERVATION_REGISTER, 0, [0, 65]);
    assert_eq!(ends.code(), Status::INTERNAL_ERROR.code());
    exported.daemon.kill();
    exported.daemon.start();
    let (_last, mut queue) = host(&exported, 65);
    let count = |queue: &mut Queue| {
        let command = Command {
            opcode: nvm::RESERVATION_REPORT,
            nsid: 1,
            cdw10: 8192 / 4 - 1,
            cdw11: 1,
            ..Command::default()
        };
        let data = queue.must(command, Payload::In(vec![0; 8192]));
        u16::from_le_bytes([data[5], data[6]])
    };
    assert_eq!(count(&mut queue), 64);
}
