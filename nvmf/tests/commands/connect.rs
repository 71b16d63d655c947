//! Connect (Base 2.1, 6.3).

use lamina_nvmf::controller::{Answer, TlsIdentity};
use lamina_nvmf::subsystem::Host;
use lamina_nvmf::wire::{Command, Status};

use crate::rig::{ConnectWith, ENABLE, HOST, OTHER_HOST, Rig, SUBSYSTEM, address, nqn};

/// Refused with this status and dword 0.
fn refused(rig: &mut Rig, connect: &ConnectWith) -> (Status, u32) {
    let completion = rig.connect(connect).expect_err("must be refused");
    (completion.status, completion.dw0)
}

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS.dnr();
const IN_DATA: u32 = 1 << 16;

#[test]
fn admin_connect_makes_a_controller() {
    let mut rig = Rig::new();
    let connected = rig.connect(&ConnectWith::default()).expect("connects");
    assert_eq!((connected.qid, connected.entries, connected.flow_control), (0, 32, true));
    assert_eq!(connected.completion.dw0, 1, "the lowest free controller id");
    let second = rig.connect(&ConnectWith { cattr: 4, ..ConnectWith::default() }).expect("too");
    assert_eq!((second.completion.dw0, second.flow_control), (2, false));
    assert_eq!(second.completion.sq_head, 0xffff, "the host is told that it is off");
}

#[test]
fn a_controller_id_is_free_again_after_its_connection_went() {
    let mut rig = Rig::new();
    let first = rig.connect(&ConnectWith::default()).expect("connects");
    rig.service.admin_closed(first.controller);
    assert_eq!(rig.ended().len(), 1);
    let again = rig.connect(&ConnectWith::default()).expect("connects");
    assert_eq!(again.completion.dw0, 1);
    assert_ne!(again.controller, first.controller, "keys are never used twice");
}

#[test]
fn controller_ids_stay_in_the_subsystems_range() {
    let mut rig = Rig::with(|mut spec| {
        (spec.min_cntlid, spec.max_cntlid) = (7, 8);
        spec
    });
    let ids: Vec<u32> = (0..2)
        .map(|_| rig.connect(&ConnectWith::default()).expect("fits").completion.dw0)
        .collect();
    assert_eq!(ids, [7, 8]);
    let (status, _) = refused(&mut rig, &ConnectWith::default());
    assert_eq!(status, Status::CONNECT_CONTROLLER_BUSY);
}

#[test]
fn a_static_controller_id_is_given_if_it_is_free() {
    let mut rig = Rig::new();
    let ask = ConnectWith { cntlid: 9, ..ConnectWith::default() };
    assert_eq!(rig.connect(&ask).expect("free").completion.dw0, 9);
    assert_eq!(refused(&mut rig, &ask).0, Status::CONNECT_CONTROLLER_BUSY);
    let any = ConnectWith { cntlid: 0xfffe, ..ConnectWith::default() };
    assert_eq!(rig.connect(&any).expect("any").completion.dw0, 1);
    for reserved in [0, 0xfff0, 0xfffd] {
        let ask = ConnectWith { cntlid: reserved, ..ConnectWith::default() };
        assert_eq!(refused(&mut rig, &ask), (INVALID, 16 | IN_DATA), "{reserved:#x}");
    }
}

#[test]
fn an_unknown_record_format_is_refused() {
    let mut rig = Rig::new();
    let connect = ConnectWith { recfmt: 1, ..ConnectWith::default() };
    assert_eq!(refused(&mut rig, &connect).0, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
}

#[test]
fn short_connect_data_is_refused_at_every_length() {
    let mut rig = Rig::new();
    for data_len in 0..1024 {
        let connect = ConnectWith { data_len, ..ConnectWith::default() };
        assert_eq!(refused(&mut rig, &connect).0, Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
    assert_eq!(rig.service.controllers().count(), 0);
}

#[test]
fn queue_sizes_of_zero_and_beyond_mqes_are_refused() {
    let mut rig = Rig::new();
    for sqsize in [0, 1024, 0xffff] {
        let connect = ConnectWith { sqsize, ..ConnectWith::default() };
        assert_eq!(refused(&mut rig, &connect), (INVALID, 44), "{sqsize}");
    }
    let most = ConnectWith { sqsize: 1023, ..ConnectWith::default() };
    assert_eq!(rig.connect(&most).expect("MQES").entries, 1024);
}

#[test]
fn wrong_names_are_refused_with_their_offset() {
    let mut rig = Rig::new();
    let unknown = "nqn.2026-01.io.lamina:nobody".to_string();
    let subsystem = ConnectWith { subsystem: unknown, ..ConnectWith::default() };
    assert_eq!(refused(&mut rig, &subsystem), (INVALID, 256 | IN_DATA));
    for bad in ["x", "nqn.2026-01.io.lamina:", &"n".repeat(256)] {
        let host = ConnectWith { host: bad.to_string(), ..ConnectWith::default() };
        assert_eq!(refused(&mut rig, &host), (INVALID, 512 | IN_DATA), "{bad}");
    }
}

#[test]
fn a_host_without_a_name_may_where_any_host_may() {
    let mut rig = Rig::new();
    let nameless = ConnectWith { host: String::new(), ..ConnectWith::default() };
    rig.connect(&nameless).expect("any host may");
    rig.edit(|target| target.set_allow_any_host(SUBSYSTEM, false)).expect("edited");
    assert_eq!(refused(&mut rig, &nameless).0, Status::CONNECT_INVALID_HOST.dnr());
}

#[test]
fn a_host_that_is_not_on_the_list_is_refused() {
    let mut rig = Rig::with(|mut spec| {
        spec.allow_any_host = false;
        spec
    });
    let connect = ConnectWith::default();
    assert_eq!(refused(&mut rig, &connect).0, Status::CONNECT_INVALID_HOST.dnr());
    let host = Host { nqn: nqn(HOST), keys: Default::default() };
    rig.edit(|target| target.add_host(SUBSYSTEM, host)).expect("added");
    assert!(rig.connect(&connect).is_ok());
    let (status, _) = refused(&mut rig, &ConnectWith::other_host());
    assert_eq!(status, Status::CONNECT_INVALID_HOST.dnr());
}

#[test]
fn a_port_the_subsystem_does_not_listen_on_is_refused() {
    let mut rig = Rig::new();
    let other = "nqn.2026-01.io.lamina:cnode2";
    let spec = lamina_nvmf::subsystem::SubsystemSpec::new(nqn(other));
    rig.edit(|target| target.add_subsystem(spec)).expect("added");
    let port = rig.edit(|target| target.add_listener(other, &address(4500), false)).expect("port");
    let connect = ConnectWith { port: Some(port), ..ConnectWith::default() };
    assert_eq!(refused(&mut rig, &connect).0, Status::CONNECT_INVALID_HOST.dnr());
}

#[test]
fn a_secure_listener_wants_tls_of_the_same_names() {
    let mut rig = Rig::new();
    let secure = rig.edit(|t| t.add_listener(SUBSYSTEM, &address(4430), true)).expect("a port");
    let connect = ConnectWith { port: Some(secure), ..ConnectWith::default() };
    assert_eq!(refused(&mut rig, &connect).0, Status::CONNECT_INVALID_HOST.dnr());
    for (host, good) in [(OTHER_HOST, false), (HOST, true)] {
        let identity = TlsIdentity { host: nqn(host), subsystem: nqn(SUBSYSTEM) };
        let origin =
            lamina_nvmf::controller::Origin { port: secure, tls: Some(identity), ..rig.origin() };
        let mut data = vec![0; 1024];
        data[..16].fill(1);
        data[16..18].fill(0xff);
        data[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
        data[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
        let command =
            lamina_nvmf::wire::Command { opcode: 0x7f, nsid: 1, cdw11: 31, ..Default::default() };
        let result = rig.service.connect(&origin, &command, &data, rig.now);
        assert_eq!(result.is_ok(), good, "{host}");
    }
}

#[test]
fn an_io_queue_connects_to_its_controller() {
    let mut rig = Rig::new();
    rig.host();
    let connected = rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    assert_eq!((connected.qid, connected.entries, connected.completion.dw0), (1, 128, 1));
    assert!(!connected.authenticate);
}

#[test]
fn an_io_queue_with_a_wrong_controller_id_is_refused() {
    let mut rig = Rig::new();
    rig.host();
    for cntlid in [0, 2, 0xfffe, 0xffff] {
        let connect = ConnectWith::io(cntlid, 1);
        assert_eq!(refused(&mut rig, &connect), (INVALID, 16 | IN_DATA), "{cntlid:#x}");
    }
}

#[test]
fn an_io_queue_of_another_host_is_refused() {
    let mut rig = Rig::new();
    rig.host();
    let nqn = ConnectWith { host: OTHER_HOST.to_string(), ..ConnectWith::io(1, 1) };
    assert_eq!(refused(&mut rig, &nqn), (INVALID, 512 | IN_DATA));
    let id = ConnectWith { host_id: 2, ..ConnectWith::io(1, 1) };
    assert_eq!(refused(&mut rig, &id), (INVALID, 512 | IN_DATA));
}

#[test]
fn an_io_queue_through_another_port_is_refused() {
    let mut rig = Rig::new();
    rig.host();
    let connect = ConnectWith { port: Some(rig.second_port), ..ConnectWith::io(1, 1) };
    assert_eq!(refused(&mut rig, &connect), (INVALID, 16 | IN_DATA));
}

#[test]
fn an_io_queue_before_enable_is_refused() {
    let mut rig = Rig::new();
    let connected = rig.connect(&ConnectWith::default()).expect("connects");
    assert_eq!(refused(&mut rig, &ConnectWith::io(1, 1)), (INVALID, 42));
    rig.property_set(connected.controller, 0x14, ENABLE);
    assert!(rig.connect(&ConnectWith::io(1, 1)).is_ok());
}

#[test]
fn an_io_queue_id_beyond_those_granted_is_refused() {
    let mut rig = Rig::new();
    rig.host();
    for qid in [129, 0xffff] {
        assert_eq!(refused(&mut rig, &ConnectWith::io(1, qid)), (INVALID, 42), "{qid}");
    }
    assert!(rig.connect(&ConnectWith::io(1, 128)).is_ok());
}

#[test]
fn an_io_queue_id_in_use_is_refused_until_its_connection_went() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    let (status, _) = refused(&mut rig, &ConnectWith::io(1, 1));
    assert_eq!(status, Status::INVALID_QUEUE_IDENTIFIER.dnr());
    rig.service.queue_closed(key, 1);
    assert!(rig.connect(&ConnectWith::io(1, 1)).is_ok());
}

#[test]
fn sixty_four_io_queues_connect() {
    let mut rig = Rig::new();
    let key = rig.host();
    for qid in 1..=64 {
        assert!(rig.connect(&ConnectWith::io(1, qid)).is_ok(), "{qid}");
    }
    assert_eq!(rig.service.controller(key).expect("there").queues().count(), 64);
}

#[test]
fn a_discovery_controller_has_no_io_queues() {
    let mut rig = Rig::new();
    rig.enabled(&ConnectWith::discovery());
    let io = ConnectWith { qid: 1, cntlid: 1, ..ConnectWith::discovery() };
    assert_eq!(refused(&mut rig, &io), (INVALID, 42));
}

#[test]
fn a_second_connect_on_a_queue_is_a_sequence_error() {
    let mut rig = Rig::new();
    let key = rig.host();
    let connect = lamina_nvmf::wire::Command { opcode: 0x7f, nsid: 1, ..Default::default() };
    assert_eq!(rig.status(key, &connect), Status::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn controllers_are_bounded() {
    let mut rig = Rig::new();
    for _ in 0..4096 {
        rig.connect(&ConnectWith::default()).expect("below the bound");
    }
    let (status, _) = refused(&mut rig, &ConnectWith::default());
    assert_eq!(status, Status::CONNECT_CONTROLLER_BUSY);
}

#[test]
fn a_queue_that_is_disconnected_is_free_at_once() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    let disconnect = Command { opcode: 0x7f, nsid: 8, ..Command::default() };
    let mut ends = |cdw10| {
        let answer = rig.forwarded(key, 1, &Command { cdw10, ..disconnect }, &[]);
        let Answer::Reply(reply) = answer else { panic!("{answer:?}") };
        reply.completion.status
    };
    assert_eq!(ends(1), Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    assert_eq!(ends(0), Status::SUCCESS);
    assert_eq!(ends(0), Status::ABORTED_SQ_DELETION, "it is no queue any more");
    rig.connect(&ConnectWith::io(1, 1)).expect("its number is free");
}
