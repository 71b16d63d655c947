//! Reservation commands (Base 2.1, 7.5 to 7.8 and 8.1.22), through the service.

use lamina_nvmf::controller::{Action, Answer, ControllerKey, Reply};
use lamina_nvmf::subsystem::AnaState;
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Sgl, Status};

use crate::rig::{
    ConnectWith, Queue, Rig, SUBSYSTEM, address, admin_command, io, log, u16_at, u32_at, u64_at,
};

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

/// Two hosts with an I/O queue each.
fn hosts(rig: &mut Rig) -> [ControllerKey; 2] {
    let one = rig.host();
    let two = rig.enabled(&ConnectWith::other_host());
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    let other = ConnectWith { qid: 1, cntlid: 2, ..ConnectWith::other_host() };
    rig.connect(&other).expect("connects");
    rig.take_actions();
    [one, two]
}

fn send(rig: &mut Rig, key: ControllerKey, opcode: u8, cdw10: u32, keys: &[u64]) -> Answer {
    let data: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    let sgl = Sgl::transport(data.len() as u32);
    let command = Command { opcode, nsid: 1, cdw10, sgl, ..Command::default() };
    rig.forwarded(key, 1, &command, &data)
}

fn status(answer: Answer) -> Status {
    match answer {
        Answer::Reply(reply) | Answer::ReplyAfterActions(reply) => reply.completion.status,
        Answer::Hold | Answer::Later(_) => panic!("held"),
    }
}

fn register(rig: &mut Rig, key: ControllerKey, cdw10: u32, current: u64, new: u64) -> Status {
    status(send(rig, key, nvm::RESERVATION_REGISTER, cdw10, &[current, new]))
}

fn acquire(rig: &mut Rig, key: ControllerKey, kind: u32, current: u64) -> Status {
    status(send(rig, key, nvm::RESERVATION_ACQUIRE, kind << 8, &[current, 0]))
}

fn report(rig: &mut Rig, key: ControllerKey) -> Vec<u8> {
    let command = Command {
        opcode: nvm::RESERVATION_REPORT,
        nsid: 1,
        cdw10: 1023,
        cdw11: 1,
        sgl: Sgl::transport(4096),
        ..Command::default()
    };
    match rig.forwarded(key, 1, &command, &[]) {
        Answer::Reply(Reply { completion, data }) if completion.status.is_ok() => data,
        other => panic!("{other:?}"),
    }
}

/// Whether the controller's queue may (read, write).
fn may(rig: &mut Rig, key: ControllerKey) -> (bool, bool) {
    let mut queue = Queue::new(rig.service.table(key));
    let read = queue.status(&io(nvm::READ, 0, 1), &[]);
    let write = queue.status(&io(nvm::WRITE, 0, 1), &[0; 512]);
    assert!([read, write].iter().all(|s| s.is_ok() || *s == CONFLICT));
    (read.is_ok(), write.is_ok())
}

#[test]
fn a_reservation_keeps_others_out() {
    for (kind, other) in [(1, (true, false)), (2, (false, false)), (3, (true, false))] {
        let mut rig = Rig::new();
        let [one, two] = hosts(&mut rig);
        assert!(register(&mut rig, one, 0, 0, 11).is_ok());
        assert_eq!(may(&mut rig, two), (true, true), "registered is not reserved");
        assert!(acquire(&mut rig, one, kind, 11).is_ok());
        assert_eq!(may(&mut rig, one), (true, true));
        assert_eq!(may(&mut rig, two), other, "{kind}");
        assert_eq!(acquire(&mut rig, two, kind, 11), CONFLICT, "not registered");
    }
}

#[test]
fn compare_and_verify_need_read_and_flush_needs_write() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    register(&mut rig, one, 0, 0, 11);
    acquire(&mut rig, one, 1, 11);
    let mut queue = Queue::new(rig.service.table(two));
    for (opcode, good) in [
        (nvm::READ, true),
        (nvm::COMPARE, true),
        (nvm::VERIFY, true),
        (nvm::FLUSH, false),
        (nvm::WRITE, false),
        (nvm::WRITE_ZEROES, false),
        (nvm::DATASET_MANAGEMENT, false),
        (nvm::COPY, false),
    ] {
        let status = queue.status(&io(opcode, 0, 1), &[0; 512]);
        let expected = if good { Status::SUCCESS } else { CONFLICT };
        assert_eq!(status, expected, "{opcode:#x}");
    }
}

#[test]
fn the_answer_waits_for_tables_and_the_saved_copy() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    let answer = send(&mut rig, one, nvm::RESERVATION_REGISTER, 3 << 30, &[0, 11]);
    assert!(matches!(answer, Answer::ReplyAfterActions(_)), "{answer:?}");
    let actions = rig.take_actions();
    let published = actions.iter().filter(|a| matches!(a, Action::Publish { .. })).count();
    assert_eq!(published, 2, "both hosts' queues hear of it");
    let saved = actions.iter().find_map(|a| match a {
        Action::Save { nsid: 1, image, .. } => Some(image.clone()),
        _ => None,
    });
    let image = saved.expect("saved").expect("persistence is on");
    let off = register(&mut rig, one, 2 << 30, 0, 11);
    assert!(off.is_ok());
    let forgotten =
        rig.take_actions().into_iter().any(|a| matches!(a, Action::Save { image: None, .. }));
    assert!(forgotten, "persistence was turned off");
    let mut after = Rig::new();
    after.edit(|t| t.restore_reservations(SUBSYSTEM, 1, &image)).expect("restored");
    let [one_after, _] = hosts(&mut after);
    let data = report(&mut after, one_after);
    assert_eq!((u16_at(&data, 5), data[9], u64_at(&data, 72)), (1, 1, 11));
    let _ = two;
}

#[test]
fn preempt_and_abort_drains() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    register(&mut rig, one, 0, 0, 11);
    register(&mut rig, two, 0, 0, 22);
    acquire(&mut rig, one, 1, 11);
    rig.take_actions();
    let answer = send(&mut rig, two, nvm::RESERVATION_ACQUIRE, 2 | 1 << 8, &[22, 11]);
    assert!(status(answer).is_ok());
    let drains =
        rig.take_actions().iter().any(|a| matches!(a, Action::Publish { drain: true, .. }));
    assert!(drains, "commands in flight end first");
    assert_eq!(may(&mut rig, one), (true, false));
    assert_eq!(may(&mut rig, two), (true, true));
}

#[test]
fn the_report_tells_registrants_and_holder() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    register(&mut rig, one, 0, 0, 11);
    register(&mut rig, two, 0, 0, 22);
    acquire(&mut rig, two, 4, 22);
    let data = report(&mut rig, one);
    assert_eq!((u32_at(&data, 0), data[4], u16_at(&data, 5)), (2, 4, 2));
    assert_eq!((u64_at(&data, 64 + 8), data[64 + 2]), (11, 0));
    assert_eq!((u64_at(&data, 128 + 8), data[128 + 2]), (22, 1));
    assert_eq!(data[128 + 16..128 + 32], [2; 16], "the host's identifier");
    let short = Command {
        opcode: nvm::RESERVATION_REPORT,
        nsid: 1,
        cdw10: 1023,
        sgl: Sgl::transport(4096),
        ..Command::default()
    };
    let answer = rig.forwarded(one, 1, &short, &[]);
    assert_eq!(status(answer), Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT.dnr());
    let beyond = Command { cdw11: 1, cdw10: u32::MAX, ..short };
    assert_eq!(status(rig.forwarded(one, 1, &beyond, &[])), INVALID);
    let sgl = Sgl::transport(4092);
    let small = Command { cdw11: 1, sgl, ..short };
    let answer = rig.forwarded(one, 1, &small, &[]);
    assert_eq!(status(answer), Status::DATA_SGL_LENGTH_INVALID.dnr());
}

#[test]
fn sixty_four_hosts_register_reload_and_the_next_is_told_no() {
    let mut rig = Rig::new();
    let mut keys = Vec::new();
    for number in 1..=65u8 {
        let host = format!("nqn.2026-01.io.lamina:h{number}");
        let connect = ConnectWith { host_id: number, host, ..ConnectWith::default() };
        let connected = rig.connect(&connect).expect("connects");
        rig.property_set(connected.controller, 0x14, crate::rig::ENABLE);
        let cntlid = connected.completion.dw0 as u16;
        rig.connect(&ConnectWith { qid: 1, cntlid, ..connect }).expect("connects");
        keys.push(connected.controller);
    }
    for (number, key) in keys.iter().enumerate().take(64) {
        let new = number as u64 + 1;
        assert!(register(&mut rig, *key, 3 << 30, 0, new).is_ok(), "{number}");
        let image = rig
            .take_actions()
            .into_iter()
            .find_map(|a| match a {
                Action::Save { image, .. } => image,
                _ => None,
            })
            .expect("saved");
        let mut again = Rig::new();
        again.edit(|t| t.restore_reservations(SUBSYSTEM, 1, &image)).expect("restored");
        let (_, subsystem) = again.service.target().find(SUBSYSTEM).expect("there");
        let restored = &subsystem.namespace(1).expect("there").reservations;
        assert_eq!(restored.registrants().len(), number + 1);
    }
    assert_eq!(register(&mut rig, keys[64], 0, 0, 65), Status::INTERNAL_ERROR);
    assert!(register(&mut rig, keys[0], 1, 1, 0).is_ok(), "one leaves");
    assert!(register(&mut rig, keys[64], 0, 0, 65).is_ok(), "now there is room");
}

#[test]
fn hosts_without_an_identifier_cannot_reserve() {
    let mut rig = Rig::new();
    let connect = ConnectWith { host_id: 0, ..ConnectWith::default() };
    let key = rig.enabled(&connect);
    rig.connect(&ConnectWith { host_id: 0, ..ConnectWith::io(1, 1) }).expect("connects");
    let status = register(&mut rig, key, 0, 0, 11);
    assert_eq!(status, Status::HOST_IDENTIFIER_NOT_INITIALIZED.dnr());
}

#[test]
fn malformed_reservation_commands_are_refused() {
    let mut rig = Rig::new();
    let [one, _] = hosts(&mut rig);
    let short = Status::DATA_SGL_LENGTH_INVALID.dnr();
    for (opcode, bytes) in [
        (nvm::RESERVATION_REGISTER, 16),
        (nvm::RESERVATION_ACQUIRE, 16),
        (nvm::RESERVATION_RELEASE, 8),
    ] {
        for length in 0..bytes {
            let sgl = Sgl::transport(length as u32);
            let command = Command { opcode, nsid: 1, cdw10: 1 << 8, sgl, ..Command::default() };
            let answer = rig.forwarded(one, 1, &command, &vec![0; length]);
            assert_eq!(status(answer), short, "{opcode:#x} {length}");
        }
    }
    for action in 3..8 {
        assert_eq!(register(&mut rig, one, action, 0, 1), INVALID);
    }
    assert_eq!(register(&mut rig, one, 1 << 30, 0, 1), INVALID, "CPTPL 01b is reserved");
    assert_eq!(register(&mut rig, one, 0, 0, 0), INVALID, "key 0");
    register(&mut rig, one, 0, 0, 11);
    for kind in [0, 7, 255] {
        assert_eq!(acquire(&mut rig, one, kind, 11), INVALID, "{kind}");
    }
    for action in 3..8 {
        let answer = send(&mut rig, one, nvm::RESERVATION_ACQUIRE, action | 1 << 8, &[11, 0]);
        assert_eq!(status(answer), INVALID);
        let answer = send(&mut rig, one, nvm::RESERVATION_RELEASE, action | 1 << 8, &[11]);
        assert!(action < 2 || status(answer) == INVALID);
    }
    for opcode in [nvm::RESERVATION_ACQUIRE, nvm::RESERVATION_RELEASE] {
        let answer = send(&mut rig, one, opcode, 1 << 3 | 1 << 8, &[11, 0]);
        assert_eq!(status(answer), INVALID, "IEKEY");
    }
    let nowhere = Command { opcode: nvm::RESERVATION_REPORT, nsid: 9, ..Command::default() };
    let answer = rig.forwarded(one, 1, &nowhere, &[]);
    assert_eq!(status(answer), Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    let answer = rig.forwarded(one, 2, &nowhere, &[]);
    assert_eq!(status(answer), Status::ABORTED_SQ_DELETION, "no such queue");
}

#[test]
fn an_inaccessible_path_takes_no_reservations() {
    let mut rig = Rig::new();
    let [one, _] = hosts(&mut rig);
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, AnaState::Inaccessible))
        .expect("set");
    assert_eq!(register(&mut rig, one, 0, 0, 11), Status::ANA_INACCESSIBLE);
}

#[test]
fn a_preempted_host_reads_of_it_in_its_log() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    register(&mut rig, one, 0, 0, 11);
    register(&mut rig, two, 0, 0, 22);
    acquire(&mut rig, one, 1, 11);
    rig.answer(one, &admin_command(0x0c, 0, 0, 0));
    send(&mut rig, two, nvm::RESERVATION_ACQUIRE, 1 | 1 << 8, &[22, 11]);
    assert_eq!(rig.responded(), [(0x80_00_06, Status::SUCCESS)]);
    let data = rig.data(one, &log(0x80, 64, 0));
    assert_eq!((data[8], u32_at(&data, 12)), (1, 1), "registration preempted, namespace 1");
    assert_eq!(rig.data(one, &log(0x80, 64, 0)), [0; 64], "read");
    assert_eq!(rig.data(two, &log(0x80, 64, 0)), [0; 64], "not its own doing");
}

#[test]
fn masked_notices_are_not_told() {
    let mut rig = Rig::new();
    let [one, two] = hosts(&mut rig);
    register(&mut rig, one, 0, 0, 11);
    register(&mut rig, two, 0, 0, 22);
    acquire(&mut rig, one, 1, 11);
    let mask = admin_command(9, u32::MAX, 0x82, 0b0010);
    assert!(rig.status(one, &mask).is_ok());
    rig.answer(one, &admin_command(0x0c, 0, 0, 0));
    send(&mut rig, two, nvm::RESERVATION_ACQUIRE, 1 | 1 << 8, &[22, 11]);
    assert_eq!(rig.responded(), []);
}

#[test]
fn persistence_is_a_feature_too() {
    let mut rig = Rig::new();
    let [one, _] = hosts(&mut rig);
    assert!(rig.status(one, &admin_command(9, 1, 0x83, 1)).is_ok());
    let saves = rig.take_actions().iter().any(|a| matches!(a, Action::Save { image: Some(_), .. }));
    assert!(saves);
    assert_eq!(rig.admin(one, &admin_command(10, 1, 0x83, 0)).completion.dw0, 1);
    assert_eq!(report(&mut rig, one)[9], 1);
}
