//! Authentication of queues (Base 2.1, 6.1, 6.2 and 8.3.5.5), through the service.

use lamina_nvmf::auth::{AuthKey, Group, HashId, HostSide};
use lamina_nvmf::controller::{Action, Answer, AuthWork, ControllerKey};
use lamina_nvmf::subsystem::{Host, HostKeys, Secret};
use lamina_nvmf::wire::opcode::fabrics;
use lamina_nvmf::wire::{Command, Sgl, Status};

use crate::rig::{ConnectWith, ENABLE, HOST, OTHER_HOST, Rig, SECOND, SUBSYSTEM, identify, nqn};

const PROTOCOL: u32 = 0xe901_0100;
const REQUIRED: Status = Status::AUTHENTICATION_REQUIRED.dnr();

/// Bytes that look random and come again with every run.
fn random() -> impl FnMut(&mut [u8]) + Send {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
    }
}

fn key(seed: u8) -> AuthKey {
    AuthKey::generate(HashId::Sha256, &mut |out: &mut [u8]| out.fill(seed))
}

fn secret(key: &AuthKey) -> Option<Secret> {
    Some(Secret { name: "key".to_string(), text: key.to_text() })
}

/// A subsystem whose usual host has to authenticate.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.service.set_random(Box::new(random()));
    let (dhchap, dhchap_controller) = (secret(&key(1)), secret(&key(2)));
    let keys = HostKeys { dhchap, dhchap_controller, psk: None };
    rig.edit(|t| t.add_host(SUBSYSTEM, Host { nqn: nqn(HOST), keys })).expect("added");
    rig
}

fn command(fctype: u8, len: u32) -> Command {
    let (opcode, nsid) = (fabrics::OPCODE, u32::from(fctype));
    let sgl = Sgl::transport(len);
    Command { opcode, nsid, cdw10: PROTOCOL, cdw11: len, sgl, ..Command::default() }
}

fn exchange(
    rig: &mut Rig,
    at: (ControllerKey, u16),
    command: &Command,
    data: &[u8],
) -> Result<Vec<u8>, Status> {
    let (key, qid) = at;
    let len = command.sgl.length;
    let mut answer = rig.service.authenticate(key, qid, command, len, data, rig.now);
    if let Answer::Later(number) = answer {
        let done = rig.service.next_work().expect("the work it waits for").run();
        assert_eq!((done.number(), done.queue()), (number, at));
        answer = Answer::Reply(rig.service.computed(done, rig.now).expect("it is there"));
    }
    match answer {
        Answer::Reply(reply) if reply.completion.status.is_ok() => Ok(reply.data),
        Answer::Reply(reply) => Err(reply.completion.status),
        other => panic!("{other:?}"),
    }
}

fn send(rig: &mut Rig, at: (ControllerKey, u16), message: &[u8]) -> Result<(), Status> {
    let command = command(fabrics::AUTHENTICATION_SEND, message.len() as u32);
    exchange(rig, at, &command, message).map(drop)
}

fn receive(rig: &mut Rig, at: (ControllerKey, u16)) -> Result<Vec<u8>, Status> {
    exchange(rig, at, &command(fabrics::AUTHENTICATION_RECEIVE, 4096), &[])
}

/// The whole conversation; what the host says of it.
fn talk(
    rig: &mut Rig,
    at: (ControllerKey, u16),
    host_key: &AuthKey,
    controller_key: Option<AuthKey>,
) -> Result<(), String> {
    let mut random = random();
    let mut host = HostSide::new(HOST, SUBSYSTEM, host_key.clone(), controller_key, 3);
    let mut next = Some(host.negotiate(&HashId::ALL, &[Group::Null, Group::Ffdhe2048]));
    while let Some(message) = next.take() {
        send(rig, at, &message).map_err(|status| format!("{status:?}"))?;
        if rig.service.is_trusted(at.0, at.1) {
            break;
        }
        let answer = receive(rig, at).map_err(|status| format!("{status:?}"))?;
        next = host.take(&answer, &mut random)?;
    }
    Ok(())
}

#[test]
fn nothing_but_authentication_before_it_is_done() {
    let mut rig = rig();
    let connected = rig.connect(&ConnectWith::default()).expect("connects");
    assert!(connected.authenticate);
    assert_eq!(connected.completion.dw0, 1 | 1 << 17, "the answer says so");
    let key = connected.controller;
    assert_eq!(rig.property_set(key, 0x14, ENABLE).status, REQUIRED);
    assert_eq!(rig.property(key, 0, 8).status, REQUIRED);
    assert_eq!(rig.status(key, &identify(1, 0)), REQUIRED);
    assert!(rig.connect(&ConnectWith::io(1, 1)).is_err());
    assert!(!rig.service.is_trusted(key, 0));
}

#[test]
fn the_right_key_opens_the_queue() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    talk(&mut rig, (admin, 0), &key(1), None).expect("authenticated");
    assert!(rig.service.is_trusted(admin, 0));
    assert!(rig.property_set(admin, 0x14, ENABLE).status.is_ok());
    let io = rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    assert!(io.authenticate && !rig.service.is_trusted(admin, 1), "each queue for itself");
    let report = Command { opcode: 0x0e, nsid: 1, ..Command::default() };
    let Answer::Reply(reply) = rig.forwarded(admin, 1, &report, &[]) else { panic!("held") };
    assert_eq!(reply.completion.status, REQUIRED);
    talk(&mut rig, (admin, 1), &key(1), None).expect("authenticated");
    assert!(rig.service.is_trusted(admin, 1));
}

#[test]
fn a_message_that_finds_no_room_can_be_asked_for_again() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let mut host = HostSide::new(HOST, SUBSYSTEM, key(1), None, 3);
    send(&mut rig, (admin, 0), &host.negotiate(&HashId::ALL, &[Group::Null])).expect("sent");
    let short = command(fabrics::AUTHENTICATION_RECEIVE, 16);
    let refused = exchange(&mut rig, (admin, 0), &short, &[]);
    assert_eq!(refused, Err(Status::DATA_SGL_LENGTH_INVALID.dnr()));
    let challenge = receive(&mut rig, (admin, 0)).expect("the same message");
    let reply = host.take(&challenge, &mut random()).expect("a challenge").expect("a reply");
    send(&mut rig, (admin, 0), &reply).expect("sent");
    receive(&mut rig, (admin, 0)).expect("success");
    assert!(rig.service.is_trusted(admin, 0));
}

#[test]
fn both_sides_can_prove_themselves() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    talk(&mut rig, (admin, 0), &key(1), Some(key(2))).expect("authenticated");
    assert!(rig.service.is_trusted(admin, 0));
    let other = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let error = talk(&mut rig, (other, 0), &key(1), Some(key(9))).expect_err("a wrong key");
    assert!(error.contains("could not prove"), "{error}");
    assert!(!rig.service.is_trusted(other, 0), "the host has not accepted our proof");
}

#[test]
fn a_wrong_key_never_opens_the_queue() {
    let mut rig = rig();
    let admin = rig
        .connect(&ConnectWith { kato: 60_000, ..ConnectWith::default() })
        .expect("connects")
        .controller;
    assert!(talk(&mut rig, (admin, 0), &key(3), None).is_err());
    assert!(!rig.service.is_trusted(admin, 0));
    assert_eq!(rig.status(admin, &identify(1, 0)), REQUIRED);
    let again = talk(&mut rig, (admin, 0), &key(1), None);
    assert!(again.is_err(), "a queue has one chance");
    rig.now += 30 * SECOND + 1;
    rig.service.tick(rig.now);
    assert_eq!(rig.ended(), [(admin, "authentication failed or did not come")]);
}

#[test]
fn a_queue_that_does_not_authenticate_is_closed() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    talk(&mut rig, (admin, 0), &key(1), None).expect("authenticated");
    rig.property_set(admin, 0x14, ENABLE);
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    rig.take_actions();
    rig.now += 30 * SECOND + 1;
    rig.service.heard(admin, rig.now);
    rig.service.tick(rig.now);
    assert_eq!(rig.take_actions(), [Action::CloseQueue { controller: admin, qid: 1 }]);
}

#[test]
fn a_host_may_authenticate_again_and_loses_if_it_fails() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    talk(&mut rig, (admin, 0), &key(1), None).expect("authenticated");
    let message =
        HostSide::new(HOST, SUBSYSTEM, key(1), None, 4).negotiate(&HashId::ALL, &[Group::Null]);
    send(&mut rig, (admin, 0), &message).expect("begins");
    assert!(rig.service.is_trusted(admin, 0), "until then it stays open");
    receive(&mut rig, (admin, 0)).expect("a challenge");
    send(&mut rig, (admin, 0), &[0; 64]).expect("nonsense is a message too");
    receive(&mut rig, (admin, 0)).expect("a failure");
    assert!(!rig.service.is_trusted(admin, 0));
}

#[test]
fn a_host_without_keys_need_not_and_cannot() {
    let mut rig = rig();
    let connected = rig.connect(&ConnectWith::other_host()).expect("connects");
    assert!(!connected.authenticate);
    let message = HostSide::new(OTHER_HOST, SUBSYSTEM, key(1), None, 4)
        .negotiate(&HashId::ALL, &[Group::Null]);
    let refused = send(&mut rig, (connected.controller, 0), &message);
    assert_eq!(refused, Err(Status::INVALID_FIELD.dnr()));
}

#[test]
fn without_randomness_nobody_gets_in() {
    let mut rig = Rig::new();
    let keys = HostKeys { dhchap: secret(&key(1)), ..HostKeys::default() };
    rig.edit(|t| t.add_host(SUBSYSTEM, Host { nqn: nqn(HOST), keys })).expect("added");
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    assert!(talk(&mut rig, (admin, 0), &key(1), None).is_err());
    assert!(!rig.service.is_trusted(admin, 0));
}

#[test]
fn malformed_authentication_commands_are_refused() {
    let mut rig = rig();
    let admin = (rig.connect(&ConnectWith::default()).expect("connects").controller, 0);
    let early = receive(&mut rig, admin);
    assert_eq!(early, Err(Status::COMMAND_SEQUENCE_ERROR.dnr()), "nothing is due");
    for protocol in [0, PROTOCOL ^ 1 << 8, PROTOCOL ^ 1 << 16, PROTOCOL ^ 1 << 24, u32::MAX] {
        for fctype in [fabrics::AUTHENTICATION_SEND, fabrics::AUTHENTICATION_RECEIVE] {
            let bad = Command { cdw10: protocol, ..command(fctype, 64) };
            let result = exchange(&mut rig, admin, &bad, &[0; 64]);
            assert_eq!(result, Err(Status::INVALID_FIELD.dnr()), "{protocol:#x}");
        }
    }
    let long = Command { cdw11: 65, ..command(fabrics::AUTHENTICATION_SEND, 64) };
    let result = exchange(&mut rig, admin, &long, &[0; 64]);
    assert_eq!(result, Err(Status::DATA_SGL_LENGTH_INVALID.dnr()), "TL beyond the data");
    let elsewhere = (admin.0, 7);
    assert_eq!(send(&mut rig, elsewhere, &[0; 64]), Err(Status::ABORTED_SQ_DELETION));
    let message =
        HostSide::new(HOST, SUBSYSTEM, key(1), None, 4).negotiate(&HashId::ALL, &[Group::Null]);
    send(&mut rig, admin, &message).expect("begins");
    let turn = send(&mut rig, admin, &message);
    assert_eq!(turn, Err(Status::COMMAND_SEQUENCE_ERROR.dnr()), "it is the target's turn");
    let small = command(fabrics::AUTHENTICATION_RECEIVE, 8);
    let result = exchange(&mut rig, admin, &small, &[]);
    assert_eq!(result, Err(Status::DATA_SGL_LENGTH_INVALID.dnr()), "no room for the challenge");
}

#[test]
fn random_messages_never_open_a_queue() {
    let mut rig = rig();
    let mut noise = random();
    for round in 0..2_000usize {
        let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
        let mut message =
            HostSide::new(HOST, SUBSYSTEM, key(1), None, 4).negotiate(&HashId::ALL, &[Group::Null]);
        for _ in 0..3 {
            let mut bytes = [0; 4];
            noise(&mut bytes);
            let at = usize::from(bytes[0]) % message.len();
            message[at] ^= bytes[1];
            message.truncate(message.len() - usize::from(bytes[2]) % 4);
            let _ = send(&mut rig, (admin, 0), &message);
            let _ = receive(&mut rig, (admin, 0));
            message = vec![0; 16 + round % 64];
            noise(&mut message);
        }
        assert!(!rig.service.is_trusted(admin, 0));
        rig.service.admin_closed(admin);
        rig.take_actions();
    }
}

#[test]
fn keys_are_checked_when_they_are_given() {
    let mut rig = Rig::new();
    let bad = Secret { name: "key9".to_string(), text: "DHHC-1:00:AAAA:".to_string() };
    let keys = HostKeys { dhchap: Some(bad), ..HostKeys::default() };
    let host = Host { nqn: nqn(HOST), keys };
    let error = rig.edit(|t| t.add_host(SUBSYSTEM, host)).expect_err("a bad key");
    assert!(error.message.contains("key9"), "{}", error.message);
    let keys = HostKeys { dhchap_controller: secret(&key(1)), ..HostKeys::default() };
    let host = Host { nqn: nqn(HOST), keys };
    assert!(rig.edit(|t| t.add_host(SUBSYSTEM, host)).is_err(), "one way alone: the other way");
}

/// Sends what makes the target compute.
fn ask_for_work(rig: &mut Rig, at: (ControllerKey, u16)) -> AuthWork {
    let host = HostSide::new(HOST, SUBSYSTEM, key(1), None, 1);
    let message = host.negotiate(&HashId::ALL, &[Group::Ffdhe2048]);
    let command = command(fabrics::AUTHENTICATION_SEND, message.len() as u32);
    let (key, qid) = at;
    let len = command.sgl.length;
    let answer = rig.service.authenticate(key, qid, &command, len, &message, rig.now);
    assert!(matches!(answer, Answer::Later(_)), "{answer:?}");
    rig.service.next_work().expect("work")
}

#[test]
fn nothing_is_computed_before_the_owner_of_the_service_does_it() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let work = ask_for_work(&mut rig, (admin, 0));
    assert!(rig.service.next_work().is_none());
    let early = receive(&mut rig, (admin, 0));
    assert_eq!(early, Err(Status::COMMAND_SEQUENCE_ERROR.dnr()), "there is no challenge yet");
    let again = send(&mut rig, (admin, 0), &[0; 16]);
    assert_eq!(again, Err(Status::COMMAND_SEQUENCE_ERROR.dnr()), "one at a time");
    let reply = rig.service.computed(work.run(), rig.now).expect("the answer");
    assert!(reply.completion.status.is_ok());
    receive(&mut rig, (admin, 0)).expect("a challenge");
}

#[test]
fn work_that_is_refused_ends_the_authentication_and_not_the_service() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let work = ask_for_work(&mut rig, (admin, 0));
    let reply = rig.service.computed(work.refuse(), rig.now).expect("the answer");
    assert_eq!(reply.completion.status, Status::INTERNAL_ERROR, "it may be tried again");
    assert!(!rig.service.is_trusted(admin, 0));
    let again = send(&mut rig, (admin, 0), &[0; 16]);
    assert_eq!(again, Err(Status::COMMAND_SEQUENCE_ERROR.dnr()), "on another queue");
}

#[test]
fn work_of_a_queue_that_is_gone_answers_nothing() {
    let mut rig = rig();
    let admin = rig.connect(&ConnectWith::default()).expect("connects").controller;
    let work = ask_for_work(&mut rig, (admin, 0));
    rig.service.admin_closed(admin);
    assert_eq!(rig.service.computed(work.run(), rig.now), None);
    // The same queue number of a controller that goes on, authenticating anew.
    let key = rig.connect(&ConnectWith::default()).expect("connects").controller;
    talk_well(&mut rig, (key, 0));
    rig.property_set(key, 0x14, ENABLE);
    let at = (key, 1);
    rig.connect(&ConnectWith::io(rig_cntlid(&rig, key), 1)).expect("connects");
    let old = ask_for_work(&mut rig, at);
    rig.service.queue_closed(key, 1);
    rig.connect(&ConnectWith::io(rig_cntlid(&rig, key), 1)).expect("connects again");
    assert_eq!(rig.service.computed(old.run(), rig.now), None);
    let work = ask_for_work(&mut rig, at);
    assert!(rig.service.computed(work.run(), rig.now).is_some(), "its own counts");
}

fn rig_cntlid(rig: &Rig, key: ControllerKey) -> u16 {
    rig.service.controller(key).expect("there").cntlid
}

fn talk_well(rig: &mut Rig, at: (ControllerKey, u16)) {
    talk(rig, at, &key(1), None).expect("authenticated");
}
