//! Properties, enable, reset, shutdown, keep-alive (Base 2.1, 3.1.4, 3.5 to 3.7, 3.9).

use lamina_nvmf::controller::Action;
use lamina_nvmf::wire::{Command, Status};

use crate::rig::{ConnectWith, ENABLE, Rig, SECOND, admin_command, identify, property_set};

const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const SHUTDOWN_NORMAL: u32 = 1 << 14;
const SHUTDOWN_ABRUPT: u32 = 2 << 14;
const KEEP_ALIVE: u8 = 0x18;
const EVENT_REQUEST: u8 = 0x0c;

fn csts(rig: &mut Rig, key: lamina_nvmf::controller::ControllerKey) -> u32 {
    rig.property(key, CSTS, 4).dw0
}

#[test]
fn capabilities_tell_what_there_is() {
    let mut rig = Rig::new();
    let key = rig.host();
    let cap = rig.property(key, 0, 8);
    let cap = u64::from(cap.dw1) << 32 | u64::from(cap.dw0);
    assert_eq!(cap & 0xffff, 1023, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_ne!(cap >> 24 & 0xff, 0, "TO");
    assert_eq!(cap >> 37 & 1, 1, "the NVM command set");
    assert_eq!(cap >> 48 & 0xff, 0, "pages of 4 KiB, no others");
    assert_eq!(rig.property(key, 8, 4).dw0, 0x0002_0100, "version");
    assert_ne!(rig.property(key, 0x68, 4).dw0, 0, "CRTO, which CAP.CRMS promises");
}

#[test]
fn properties_of_the_wrong_size_or_place_are_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    for (at, size) in [(0, 4), (8, 8), (0x14, 8), (0x1c, 8), (4, 4), (0x24, 4), (u32::MAX, 4)] {
        let completion = rig.property(key, at, size);
        assert_eq!(completion.status, Status::INVALID_FIELD.dnr(), "{at:#x} {size}");
    }
    for at in (0..0x80).filter(|at| *at != CC) {
        let status = rig.property_set(key, at, 0).status;
        assert_eq!(status, Status::INVALID_FIELD.dnr(), "{at:#x}");
    }
    let eight = Command { cdw10: 1, ..property_set(CC, ENABLE) };
    assert_eq!(rig.status(key, &eight), Status::INVALID_FIELD.dnr());
}

#[test]
fn enable_makes_ready_and_commands_wait_for_it() {
    let mut rig = Rig::new();
    let key = rig.connect(&ConnectWith::default()).expect("connects").controller;
    assert_eq!(csts(&mut rig, key), 0);
    assert_eq!(rig.status(key, &identify(1, 0)), Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert!(rig.status(key, &admin_command(KEEP_ALIVE, 0, 0, 0)).is_ok());
    rig.property_set(key, CC, ENABLE);
    assert_eq!(csts(&mut rig, key), 1);
    assert_eq!(rig.property(key, CC, 4).dw0, ENABLE);
    assert!(rig.status(key, &identify(1, 0)).is_ok());
}

#[test]
fn enable_with_what_is_not_supported_is_refused() {
    let mut rig = Rig::new();
    let key = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let bad =
        [ENABLE | 1 << 4, ENABLE | 1 << 7, ENABLE | 1 << 11, 0x0000_0001, 0x0047_0001, 0x0036_0001];
    for cc in bad {
        assert_eq!(rig.property_set(key, CC, cc).status, Status::INVALID_FIELD.dnr(), "{cc:#x}");
        assert_eq!(csts(&mut rig, key), 0, "{cc:#x}");
    }
    for css in [6, 7] {
        rig.property_set(key, CC, 0);
        assert!(rig.property_set(key, CC, ENABLE | css << 4).status.is_ok());
        assert_eq!(csts(&mut rig, key), 1);
    }
}

#[test]
fn both_shutdowns_end_the_io_queues_and_say_so() {
    for kind in [SHUTDOWN_NORMAL, SHUTDOWN_ABRUPT] {
        let mut rig = Rig::new();
        let key = rig.host();
        rig.connect(&ConnectWith::io(1, 1)).expect("connects");
        rig.take_actions();
        assert!(rig.property_set(key, CC, ENABLE | kind).status.is_ok());
        assert_eq!(csts(&mut rig, key), 1 | 1 << 2, "writes of the queue may still be under way");
        assert_eq!(rig.status(key, &identify(1, 0)), Status::COMMAND_SEQUENCE_ERROR.dnr());
        let actions = rig.take_actions();
        assert_eq!(actions, [Action::CloseQueue { controller: key, qid: 1 }]);
        rig.all_leave();
        assert_eq!(csts(&mut rig, key), 1 | 2 << 2, "shutdown complete");
        assert!(rig.connect(&ConnectWith::io(1, 1)).is_err());
        assert_eq!(rig.status(key, &identify(1, 0)), Status::COMMAND_SEQUENCE_ERROR.dnr());
        rig.property_set(key, CC, 0);
        rig.property_set(key, CC, ENABLE);
        assert_eq!(csts(&mut rig, key), 1, "back after a reset");
    }
}

#[test]
fn a_reset_ends_io_queues_and_gives_held_commands_back() {
    let mut rig = Rig::new();
    let key = rig.host();
    for qid in 1..=3 {
        rig.connect(&ConnectWith::io(1, qid)).expect("connects");
    }
    // Not the identifier of the Property Set below: that would end a held request.
    for cid in 1..3 {
        let request = Command { cid, ..admin_command(EVENT_REQUEST, 0, 0, 0) };
        rig.answer(key, &request);
    }
    rig.take_actions();
    rig.property_set(key, CC, 0);
    let actions = rig.take_actions();
    let closed = actions.iter().filter(|a| matches!(a, Action::CloseQueue { .. })).count();
    let answered = actions.iter().filter(|a| matches!(a, Action::Respond { .. })).count();
    assert_eq!((closed, answered), (3, 2));
    for _ in 0..3 {
        assert_eq!(csts(&mut rig, key), 1, "a write of an old queue could still land");
        rig.one_leaves();
    }
    assert_eq!(csts(&mut rig, key), 0);
    assert_eq!(rig.service.controller(key).expect("still there").queues().count(), 0);
}

#[test]
fn a_reset_puts_features_back() {
    let mut rig = Rig::new();
    let key = rig.host();
    let cache_off = admin_command(9, 0, 6, 0);
    assert!(rig.status(key, &cache_off).is_ok());
    assert!(rig.service.table(key).write_through);
    rig.property_set(key, CC, 0);
    rig.property_set(key, CC, ENABLE);
    assert!(!rig.service.table(key).write_through);
    assert_eq!(rig.admin(key, &admin_command(10, 0, 6, 0)).completion.dw0, 1);
}

#[test]
fn resets_at_every_state_a_hundred_times_leave_nothing_behind() {
    let mut rig = Rig::new();
    for round in 0..100u32 {
        let key = rig.connect(&ConnectWith::default()).expect("connects").controller;
        let steps = [ENABLE, ENABLE | SHUTDOWN_NORMAL, 0, ENABLE, 0, 0, ENABLE | SHUTDOWN_ABRUPT];
        for cc in &steps[..round as usize % (steps.len() + 1)] {
            assert!(rig.property_set(key, CC, *cc).status.is_ok());
            let _ = rig.connect(&ConnectWith::io(1, 1));
        }
        rig.service.admin_closed(key);
        assert_eq!(rig.ended().len(), 1);
        assert_eq!(rig.service.controllers().count(), 0);
        rig.all_leave();
    }
}

#[test]
fn a_silent_host_is_ended_after_its_keep_alive_timeout() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith { kato: 5_000, ..ConnectWith::default() });
    rig.now += 5 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty());
    rig.status(key, &admin_command(KEEP_ALIVE, 0, 0, 0));
    rig.now += 5 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty(), "kept alive");
    // Heard at the beginning of one timeout: the host is due at the end of the next.
    rig.service.heard(key, rig.now);
    rig.now += 10 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty(), "commands count");
    rig.now += 1;
    rig.service.tick(rig.now);
    assert_eq!(rig.ended(), [(key, "keep-alive timeout")]);
    assert_eq!(rig.status(key, &identify(1, 0)), Status::ABORTED_SQ_DELETION);
}

#[test]
fn keep_alive_extremes() {
    let mut rig = Rig::new();
    let off = rig.enabled(&ConnectWith { kato: 0, ..ConnectWith::default() });
    let least = rig.enabled(&ConnectWith { kato: 1, ..ConnectWith::default() });
    let most = rig.enabled(&ConnectWith { kato: u32::MAX, ..ConnectWith::default() });
    let kato = |rig: &Rig, key| rig.service.controller(key).expect("there").kato_ms();
    assert_eq!([off, least, most].map(|key| kato(&rig, key)), [0, 1000, 4_294_967_000]);
    rig.now += 2 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty(), "a millisecond is rounded up to the granularity");
    rig.now += SECOND;
    rig.service.tick(rig.now);
    assert_eq!(rig.ended(), [(least, "keep-alive timeout")]);
    rig.now += 1_000_000 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty(), "off is off, and 49 days are not over");
    rig.now = u64::MAX;
    rig.service.tick(rig.now);
    assert_eq!(rig.ended(), [(most, "keep-alive timeout")]);
}

#[test]
fn a_host_that_connects_and_does_nothing_is_ended() {
    let mut rig = Rig::new();
    let idle = rig.connect(&ConnectWith { kato: 0, ..ConnectWith::default() }).expect("connects");
    let discovery = rig.enabled(&ConnectWith { kato: 0, ..ConnectWith::discovery() });
    rig.now += 120 * SECOND;
    rig.service.tick(rig.now);
    assert!(rig.ended().is_empty());
    rig.now += 1;
    rig.service.tick(rig.now);
    let ended: Vec<_> = rig.ended().into_iter().map(|(key, _)| key).collect();
    assert_eq!(ended, [idle.controller, discovery]);
}

#[test]
fn properties_on_an_io_queue_are_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    let disconnect = u32::from(lamina_nvmf::wire::opcode::fabrics::DISCONNECT);
    for fctype in (0..=255).filter(|fctype| *fctype != disconnect) {
        let command = Command { opcode: 0x7f, nsid: fctype, cdw11: CC, ..Command::default() };
        let answer = rig.forwarded(key, 1, &command, &[]);
        let lamina_nvmf::controller::Answer::Reply(reply) = answer else { panic!("{answer:?}") };
        let expected = match fctype {
            // Authentication, without its protocol's number.
            5 | 6 => Status::INVALID_FIELD.dnr(),
            _ => Status::INVALID_OPCODE.dnr(),
        };
        assert_eq!(reply.completion.status, expected, "{fctype}");
    }
    assert_eq!(csts(&mut rig, key), 1, "nothing has changed");
}

#[test]
fn a_reset_that_queues_hold_up_is_fatal_in_time_and_ends_when_they_leave() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith { kato: 0, ..ConnectWith::default() });
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    rig.property_set(key, CC, 0);
    rig.now += 15 * SECOND;
    rig.service.tick(rig.now);
    assert_eq!(csts(&mut rig, key), 1, "CAP.TO is 15 s");
    rig.now += 1;
    rig.service.tick(rig.now);
    assert_eq!(csts(&mut rig, key), 3, "CFS: never the lie that it is disabled");
    rig.all_leave();
    assert_eq!(csts(&mut rig, key), 0);
    rig.property_set(key, CC, ENABLE);
    assert_eq!(csts(&mut rig, key), 1);
}

#[test]
fn a_host_that_enables_before_it_is_disabled_gets_a_fresh_controller_in_the_end() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    rig.property_set(key, CC, 0);
    rig.property_set(key, CC, ENABLE);
    assert_eq!(rig.status(key, &identify(1, 0)), Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert!(rig.connect(&ConnectWith::io(1, 1)).is_err(), "not ready");
    rig.all_leave();
    assert_eq!(csts(&mut rig, key), 1);
    assert!(rig.status(key, &identify(1, 0)).is_ok());
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
}

#[test]
fn a_new_association_is_ready_when_the_old_ones_writes_are_over() {
    for port in [false, true] {
        let mut rig = Rig::new();
        let old = rig.host();
        rig.connect(&ConnectWith::io(1, 1)).expect("connects");
        rig.service.admin_closed(old);
        // Its connection broke; the host comes again, by whichever way, and sends its writes anew.
        let port = port.then_some(rig.second_port);
        let again = ConnectWith { port, ..ConnectWith::default() };
        let new = rig.connect(&again).expect("connects").controller;
        rig.property_set(new, CC, ENABLE);
        assert_eq!(csts(&mut rig, new), 0, "an old write would land on a new one");
        assert!(rig.connect(&ConnectWith { port, ..ConnectWith::io(1, 1) }).is_err());
        // Another host has nothing to do with it.
        let other = rig.enabled(&ConnectWith::other_host());
        assert_eq!(csts(&mut rig, other), 1);
        rig.all_leave();
        assert_eq!(csts(&mut rig, new), 1);
        rig.connect(&ConnectWith { port, ..ConnectWith::io(1, 1) }).expect("connects");
    }
}

#[test]
fn a_shutdown_and_a_reset_at_once_end_in_both() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    rig.property_set(key, CC, SHUTDOWN_NORMAL);
    assert_eq!(csts(&mut rig, key), 1 | 1 << 2);
    rig.all_leave();
    assert_eq!(csts(&mut rig, key), 2 << 2);
}
