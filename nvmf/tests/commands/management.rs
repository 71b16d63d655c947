//! Management calls: what they check, and what they do to connected hosts.

use lamina_bdev::ErrorKind;
use lamina_nvmf::subsystem::{
    AnaState, Host, NamespaceSpec, Nqn, SubsystemId, SubsystemSpec, Target,
};
use lamina_nvmf::wire::Status;

use crate::rig::{
    ConnectWith, DISCOVERY, DISK_BYTES, HOST, Rig, SUBSYSTEM, address, disk, identify, log, nqn,
    u64_at,
};

fn kind<T: std::fmt::Debug>(result: Result<T, lamina_bdev::Error>) -> ErrorKind {
    let error = result.expect_err("must fail");
    assert!(error.message.len() > 10, "a sentence: {}", error.message);
    error.kind
}

#[test]
fn subsystems_are_checked() {
    let mut target = Target::new();
    let spec = |change: fn(&mut SubsystemSpec)| {
        let mut spec = SubsystemSpec::new(nqn(SUBSYSTEM));
        change(&mut spec);
        spec
    };
    let bad: [fn(&mut SubsystemSpec); 8] = [
        |s| s.serial.clear(),
        |s| s.serial = "x".repeat(21),
        |s| s.model = "x".repeat(41),
        |s| s.model = "ä".to_string(),
        |s| s.min_cntlid = 0,
        |s| s.max_cntlid = 0xfff0,
        |s| (s.min_cntlid, s.max_cntlid) = (5, 4),
        |s| s.max_namespaces = 0,
    ];
    for change in bad {
        assert_eq!(kind(target.add_subsystem(spec(change))), ErrorKind::Invalid);
    }
    target.add_subsystem(spec(|_| ())).expect("good");
    assert_eq!(kind(target.add_subsystem(spec(|_| ()))), ErrorKind::Exists);
    let discovery = SubsystemSpec::new(Nqn::discovery());
    assert_eq!(kind(target.add_subsystem(discovery)), ErrorKind::Exists);
}

#[test]
fn the_discovery_subsystem_comes_first_and_stays() {
    let mut target = Target::new();
    let (id, first) = target.subsystems().next().expect("there");
    assert_eq!((id, first.nqn().as_str()), (SubsystemId::DISCOVERY, DISCOVERY));
    assert_eq!(kind(target.remove_subsystem(DISCOVERY)), ErrorKind::Invalid);
    assert_eq!(kind(target.add_namespace(DISCOVERY, disk(1, 4096))), ErrorKind::Invalid);
}

#[test]
fn subsystems_are_bounded() {
    let mut target = Target::new();
    let add = |target: &mut Target, number: usize| {
        target.add_subsystem(SubsystemSpec::new(nqn(&format!("nqn.2026-01.io.lamina:c{number}"))))
    };
    for number in 0..1024 {
        add(&mut target, number).expect("below the bound");
    }
    assert_eq!(kind(add(&mut target, 1024)), ErrorKind::NoSpace);
}

#[test]
fn namespaces_get_the_next_free_number() {
    let mut rig = Rig::new();
    let add = |rig: &mut Rig, number, nsid| {
        let spec = NamespaceSpec { nsid, ..disk(number, DISK_BYTES) };
        rig.edit(|t| t.add_namespace(SUBSYSTEM, spec))
    };
    assert_eq!(add(&mut rig, 2, Some(3)).expect("free"), 3);
    assert_eq!(add(&mut rig, 3, None).expect("free"), 2);
    assert_eq!(add(&mut rig, 4, None).expect("free"), 4);
    assert_eq!(kind(add(&mut rig, 5, Some(4))), ErrorKind::Exists);
    for nsid in [0, 257, u32::MAX] {
        assert_eq!(kind(add(&mut rig, 5, Some(nsid))), ErrorKind::Invalid);
    }
    assert_eq!(kind(add(&mut rig, 4, None)), ErrorKind::Exists, "the same identity");
    rig.edit(|t| t.remove_namespace(SUBSYSTEM, 3)).expect("removed");
    assert_eq!(kind(rig.edit(|t| t.remove_namespace(SUBSYSTEM, 3))), ErrorKind::NotFound);
    assert_eq!(add(&mut rig, 6, None).expect("free"), 3);
}

#[test]
fn a_full_subsystem_takes_no_more_namespaces() {
    let mut rig = Rig::with(|mut spec| {
        spec.max_namespaces = 2;
        spec
    });
    rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(2, DISK_BYTES))).expect("the second");
    let third = rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(3, DISK_BYTES)));
    assert_eq!(kind(third), ErrorKind::NoSpace);
}

#[test]
fn a_removed_host_is_disconnected() {
    let mut rig = Rig::with(|mut spec| {
        spec.allow_any_host = false;
        spec
    });
    let host = || Host { nqn: nqn(HOST), keys: Default::default() };
    rig.edit(|t| t.add_host(SUBSYSTEM, host())).expect("added");
    assert_eq!(kind(rig.edit(|t| t.add_host(SUBSYSTEM, host()))), ErrorKind::Exists);
    let key = rig.host();
    rig.edit(|t| t.remove_host(SUBSYSTEM, &nqn(HOST))).expect("removed");
    assert_eq!(rig.ended(), [(key, "the host is no longer allowed")]);
    assert_eq!(kind(rig.edit(|t| t.remove_host(SUBSYSTEM, &nqn(HOST)))), ErrorKind::NotFound);
}

#[test]
fn a_removed_host_stays_where_any_may_come() {
    let mut rig = Rig::new();
    rig.edit(|t| t.add_host(SUBSYSTEM, Host { nqn: nqn(HOST), keys: Default::default() }))
        .expect("added");
    rig.host();
    rig.edit(|t| t.remove_host(SUBSYSTEM, &nqn(HOST))).expect("removed");
    assert_eq!(rig.ended(), []);
}

#[test]
fn a_removed_listener_disconnects_its_hosts_only() {
    let mut rig = Rig::new();
    let here = rig.host();
    let port = rig.second_port;
    let there = rig.enabled(&ConnectWith { port: Some(port), ..ConnectWith::default() });
    let closed = rig.edit(|t| t.remove_listener(SUBSYSTEM, &address(4420))).expect("removed");
    assert_eq!(closed, Some(rig.port), "nobody else listens there");
    assert_eq!(rig.ended(), [(here, "the listener was removed")]);
    assert!(rig.status(there, &identify(1, 0)).is_ok());
    assert_eq!(
        kind(rig.edit(|t| t.remove_listener(SUBSYSTEM, &address(4420)))),
        ErrorKind::NotFound
    );
}

#[test]
fn a_port_stays_while_somebody_listens() {
    let mut rig = Rig::new();
    let discovery = rig.edit(|t| t.add_listener(DISCOVERY, &address(4420), false)).expect("added");
    assert_eq!(discovery, rig.port, "the same address is the same port");
    let closed = rig.edit(|t| t.remove_listener(SUBSYSTEM, &address(4420))).expect("removed");
    assert_eq!(closed, None);
    assert_eq!(rig.service.target().ports().count(), 2);
}

#[test]
fn a_deleted_subsystem_disconnects_everybody() {
    let mut rig = Rig::new();
    let one = rig.host();
    let two = rig.enabled(&ConnectWith::other_host());
    rig.edit(|t| t.remove_subsystem(SUBSYSTEM)).expect("removed");
    let ended: Vec<_> = rig.ended().into_iter().map(|(key, _)| key).collect();
    assert_eq!(ended, [one, two]);
    assert_eq!(rig.service.target().ports().count(), 0);
    assert_eq!(rig.status(one, &identify(1, 0)), Status::ABORTED_SQ_DELETION);
    assert_eq!(rig.service.table(one).iter().count(), 0);
}

#[test]
fn ana_states_need_ana_reporting_and_a_group_there_is() {
    let mut rig = Rig::new();
    let set = |rig: &mut Rig, at: u16, group| {
        rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(at), group, AnaState::Inaccessible))
    };
    assert_eq!(kind(set(&mut rig, 4420, Some(0))), ErrorKind::Invalid);
    assert_eq!(kind(set(&mut rig, 4420, Some(257))), ErrorKind::Invalid);
    assert_eq!(kind(set(&mut rig, 4499, None)), ErrorKind::NotFound);
    let mut plain = Rig::with(|mut spec| {
        spec.ana_reporting = false;
        spec
    });
    assert_eq!(kind(set(&mut plain, 4420, None)), ErrorKind::Invalid);
}

#[test]
fn the_ana_log_counts_a_namespace_that_changes_its_group() {
    let mut rig = Rig::new();
    let key = rig.host();
    let count = |rig: &mut Rig| u64_at(&rig.data(key, &log(0x0c, 64, 0)), 0);
    let before = count(&mut rig);
    rig.edit(|t| t.set_namespace_group(SUBSYSTEM, 1, 7)).expect("moved");
    assert_eq!(count(&mut rig), before + 1);
}

#[test]
fn secrets_are_not_printed() {
    let secret = lamina_nvmf::subsystem::Secret {
        name: "key0".to_string(),
        text: "DHHC-1:00:secret".to_string(),
    };
    let shown = format!("{secret:?}");
    assert!(shown.contains("key0") && !shown.contains("secret:") && !shown.contains("DHHC"));
}
