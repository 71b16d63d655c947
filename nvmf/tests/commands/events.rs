//! Asynchronous Event Requests and Abort (Base 2.1, 5.1.1 and 5.1.2).

use lamina_nvmf::controller::{Action, Answer, ControllerKey};
use lamina_nvmf::subsystem::{AnaState, SubsystemSpec};
use lamina_nvmf::wire::{Command, Status};

use crate::rig::{ConnectWith, DISK_BYTES, Rig, SUBSYSTEM, address, admin_command, disk, log, nqn};

const EVENT_REQUEST: u8 = 0x0c;
const ABORT: u8 = 0x08;
const NAMESPACE_CHANGED: u32 = 0x04_00_02;
const ANA_CHANGED: u32 = 0x0c_03_02;
const DISCOVERY_CHANGED: u32 = 0x70_f0_02;

fn ask(rig: &mut Rig, key: ControllerKey, cid: u16) -> Answer {
    rig.answer(key, &Command { cid, ..admin_command(EVENT_REQUEST, 0, 0, 0) })
}

fn configure(rig: &mut Rig, key: ControllerKey, events: u32) {
    assert!(rig.status(key, &admin_command(9, 0, 0x0b, events)).is_ok());
}

fn add_disk(rig: &mut Rig, number: u8) {
    rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(number, DISK_BYTES))).expect("added");
}

#[test]
fn a_held_request_tells_of_an_added_namespace() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(ask(&mut rig, key, 1), Answer::Hold);
    add_disk(&mut rig, 2);
    assert_eq!(rig.responded(), [(NAMESPACE_CHANGED, Status::SUCCESS)]);
}

#[test]
fn an_event_waits_for_a_request() {
    let mut rig = Rig::new();
    let key = rig.host();
    add_disk(&mut rig, 2);
    assert_eq!(rig.responded(), []);
    assert_eq!(ask(&mut rig, key, 1), Answer::Hold);
    assert_eq!(rig.responded(), [(NAMESPACE_CHANGED, Status::SUCCESS)]);
}

#[test]
fn it_is_told_once_until_the_log_page_is_read() {
    let mut rig = Rig::new();
    let key = rig.host();
    (0..3).for_each(|cid| drop(ask(&mut rig, key, cid)));
    add_disk(&mut rig, 2);
    add_disk(&mut rig, 3);
    assert_eq!(rig.responded().len(), 1);
    let retain = Command { cdw10: log(4, 4096, 0).cdw10 | 1 << 15, ..log(4, 4096, 0) };
    rig.data(key, &retain);
    add_disk(&mut rig, 4);
    assert_eq!(rig.responded().len(), 0, "RAE keeps it masked");
    rig.data(key, &log(4, 4096, 0));
    add_disk(&mut rig, 5);
    assert_eq!(rig.responded().len(), 1);
}

#[test]
fn removal_and_resize_are_told_too() {
    let mut rig = Rig::new();
    let key = rig.host();
    (0..2).for_each(|cid| drop(ask(&mut rig, key, cid)));
    rig.edit(|t| t.resize_device(lamina_nvmf::subsystem::DeviceKey(1), 8 << 20));
    assert_eq!(rig.responded().len(), 1);
    rig.data(key, &log(4, 4096, 0));
    rig.edit(|t| t.remove_namespace(SUBSYSTEM, 1)).expect("removed");
    assert_eq!(rig.responded().len(), 1);
    rig.data(key, &log(4, 4096, 0));
    rig.edit(|t| t.resize_device(lamina_nvmf::subsystem::DeviceKey(1), 16 << 20));
    assert_eq!(rig.take_actions(), [], "the disk is nobody's any more");
}

#[test]
fn ana_changes_are_told_on_their_listener_only() {
    let mut rig = Rig::new();
    let here = rig.host();
    let port = rig.second_port;
    let there = rig.enabled(&ConnectWith { port: Some(port), ..ConnectWith::default() });
    ask(&mut rig, here, 1);
    ask(&mut rig, there, 1);
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, AnaState::Change)).expect("set");
    let told: Vec<ControllerKey> = rig
        .take_actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Respond { controller, reply, .. } => {
                assert_eq!(reply.completion.dw0, ANA_CHANGED);
                Some(controller)
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [here]);
}

#[test]
fn discovery_changes_are_told_to_discovery_controllers() {
    let mut rig = Rig::new();
    let io = rig.host();
    let discovery = rig.enabled(&ConnectWith::discovery());
    ask(&mut rig, io, 1);
    ask(&mut rig, discovery, 1);
    rig.edit(|t| {
        t.add_subsystem(SubsystemSpec::new(nqn("nqn.2026-01.io.lamina:cnode9"))).expect("added");
        t.add_listener("nqn.2026-01.io.lamina:cnode9", &address(4420), false).expect("added");
    });
    assert_eq!(rig.responded(), [(DISCOVERY_CHANGED, Status::SUCCESS)]);
}

#[test]
fn events_that_are_not_configured_are_not_told() {
    let mut rig = Rig::new();
    let key = rig.host();
    configure(&mut rig, key, 0);
    ask(&mut rig, key, 1);
    add_disk(&mut rig, 2);
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, AnaState::NonOptimized))
        .expect("set");
    assert_eq!(rig.responded(), []);
    configure(&mut rig, key, 1 << 11);
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, AnaState::Optimized))
        .expect("set");
    assert_eq!(rig.responded(), [(ANA_CHANGED, Status::SUCCESS)]);
}

#[test]
fn too_many_requests_are_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    for cid in 0..4 {
        assert_eq!(ask(&mut rig, key, cid), Answer::Hold);
    }
    let Answer::Reply(reply) = ask(&mut rig, key, 4) else { panic!("held a fifth") };
    assert_eq!(reply.completion.status, Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
}

#[test]
fn a_held_request_can_be_aborted() {
    let mut rig = Rig::new();
    let key = rig.host();
    ask(&mut rig, key, 7);
    let abort = |cid: u32, sqid: u32| admin_command(ABORT, 0, cid << 16 | sqid, 0);
    assert_eq!(rig.admin(key, &abort(8, 0)).completion.dw0, 1, "no such command");
    assert_eq!(rig.admin(key, &abort(7, 0)).completion.dw0, 0, "aborted");
    assert_eq!(rig.responded(), [(0, Status::ABORTED_BY_REQUEST)]);
    assert_eq!(rig.status(key, &abort(1, 5)), Status::INVALID_FIELD.dnr(), "no such queue");
    rig.connect(&ConnectWith::io(1, 5)).expect("connects");
    assert_eq!(rig.admin(key, &abort(1, 5)).completion.dw0, 1, "it runs to its end");
}

#[test]
fn tables_are_published_with_every_change() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.take_actions();
    add_disk(&mut rig, 2);
    assert_eq!(rig.take_actions(), [Action::Publish { controller: key, drain: false }]);
    let table = rig.service.table(key);
    assert_eq!(table.iter().count(), 2);
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), Some(2), AnaState::Inaccessible))
        .expect("set");
    assert_eq!(rig.take_actions(), [Action::Publish { controller: key, drain: false }]);
    let newer = rig.service.table(key);
    assert!(newer.version > table.version);
    assert_eq!(newer.get(2).expect("there").ana, AnaState::Inaccessible);
    assert_eq!(newer.get(1).expect("there").ana, AnaState::Optimized);
}

#[test]
fn a_command_that_takes_the_identifier_of_a_held_request_ends_it_in_silence() {
    let mut rig = Rig::new();
    let key = rig.host();
    for cid in [7, 8] {
        assert_eq!(ask(&mut rig, key, cid), Answer::Hold);
    }
    rig.take_actions();
    let other = Command { cid: 7, ..log(4, 4096, 0) };
    assert!(matches!(rig.answer(key, &other), Answer::Reply(_)), "it is carried out");
    let actions = rig.take_actions();
    assert!(matches!(actions[..], [Action::Forget { controller, .. }] if controller == key));
    add_disk(&mut rig, 2);
    assert_eq!(rig.responded().len(), 1, "the other one is still held");
    add_disk(&mut rig, 3);
    assert_eq!(rig.responded().len(), 0, "there is none left");
}
