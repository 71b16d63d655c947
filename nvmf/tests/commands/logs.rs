//! Get Log Page (Base 2.1, 5.1.12).

use lamina_nvmf::controller::{ControllerKey, Usage};
use lamina_nvmf::subsystem::{AnaState, Host, NamespaceSpec, Referral};
use lamina_nvmf::wire::{Command, Sgl, Status};

use crate::rig::{
    ConnectWith, DISCOVERY, DISK_BYTES, HOST, OTHER_HOST, Rig, SUBSYSTEM, address, disk, identify,
    log, nqn, u16_at, u32_at, u64_at,
};

#[test]
fn unknown_pages_are_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    let known = [0, 1, 2, 3, 4, 5, 0x0c, 0x12, 0x13, 0x80];
    for page in 0..=255 {
        let status = rig.status(key, &log(page, 512, 0));
        let expected =
            if known.contains(&page) { Status::SUCCESS } else { Status::INVALID_LOG_PAGE.dnr() };
        assert_eq!(status, expected, "{page:#x}");
    }
    let supported = rig.data(key, &log(0, 1024, 0));
    for page in 0..=255 {
        let told = u32_at(&supported, 4 * page as usize) & 1 == 1;
        assert_eq!(told, known.contains(&page), "{page:#x}");
    }
}

#[test]
fn lengths_and_offsets_are_checked() {
    let mut rig = Rig::new();
    let key = rig.host();
    let health = rig.data(key, &log(2, 512, 0));
    assert_eq!(rig.data(key, &log(2, 4, 0)), health[..4]);
    assert_eq!(rig.data(key, &log(2, 8, 504)), health[504..]);
    assert_eq!(rig.data(key, &log(2, 1024, 0))[512..], [0; 512], "zeros behind the end");
    assert_eq!(rig.data(key, &log(2, 4, 512)), [0; 4], "just at the end");
    let invalid = Status::INVALID_FIELD.dnr();
    for offset in [1, 2, 3, 513, 516, 1 << 32, u64::MAX - 3] {
        assert_eq!(rig.status(key, &log(2, 4, offset)), invalid, "{offset}");
    }
    let index = Command { cdw14: 1 << 23, ..log(2, 4, 0) };
    assert_eq!(rig.status(key, &index), invalid);
    assert_eq!(rig.status(key, &log(2, (128 << 10) + 4, 0)), invalid, "more than MDTS");
    let most = Command { cdw10: 2 | 0xffff << 16, cdw11: 0xffff, ..log(2, 4, 0) };
    assert_eq!(rig.status(key, &most), invalid, "16 GiB");
    let short = Command { sgl: Sgl::transport(508), ..log(2, 512, 0) };
    assert_eq!(rig.status(key, &short), Status::DATA_SGL_LENGTH_INVALID.dnr());
}

#[test]
fn the_health_page_counts_what_was_moved() {
    let mut rig = Rig::new();
    let key = rig.host();
    let id = rig.service.controller(key).expect("there").subsystem;
    let usage =
        Usage { bytes_read: 512_001, bytes_written: 0, reads: 7, writes: 8, media_errors: 9 };
    rig.service.set_usage(id, usage);
    let data = rig.data(key, &log(2, 512, 0));
    assert_eq!([32, 48, 64, 80].map(|at| u64_at(&data, at)), [2, 0, 7, 8]);
    let one = Command { nsid: 1, ..log(2, 512, 0) };
    assert_eq!(rig.status(key, &one), Status::INVALID_FIELD.dnr(), "not of a namespace");
    let all = Command { nsid: u32::MAX, ..log(2, 512, 0) };
    assert!(rig.status(key, &all).is_ok());
}

#[test]
fn failures_are_in_the_error_log_newest_first() {
    let mut rig = Rig::new();
    let key = rig.host();
    for cid in 0..20 {
        rig.status(key, &Command { cid, ..identify(0xff, 9) });
    }
    let data = rig.data(key, &log(1, 1024, 0));
    assert_eq!((u64_at(&data, 0), u16_at(&data, 10)), (20, 19));
    assert_eq!(u16_at(&data, 12) >> 1, Status::INVALID_FIELD.dnr().0);
    assert_eq!(u32_at(&data, 24), 9);
    assert_eq!(u64_at(&data, 15 * 64), 5, "sixteen are kept");
}

#[test]
fn changed_namespaces_are_listed_until_read() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(2, DISK_BYTES))).expect("added");
    rig.edit(|t| t.resize_device(lamina_nvmf::subsystem::DeviceKey(1), 8 << 20));
    let retain = Command { cdw10: log(4, 4096, 0).cdw10 | 1 << 15, ..log(4, 4096, 0) };
    let data = rig.data(key, &retain);
    assert_eq!([0, 4, 8].map(|at| u32_at(&data, at)), [1, 2, 0]);
    let data = rig.data(key, &log(4, 4096, 0));
    assert_eq!([0, 4, 8].map(|at| u32_at(&data, at)), [1, 2, 0], "kept by RAE");
    assert_eq!(rig.data(key, &log(4, 4096, 0)), vec![0; 4096], "read");
    assert_eq!(u64_at(&rig.data(key, &identify(0, 1)), 0), (8 << 20) / 512, "resized");
}

#[test]
fn more_than_1024_changed_namespaces_are_many() {
    let mut rig = Rig::with(|mut spec| {
        spec.max_namespaces = 2000;
        spec
    });
    let key = rig.host();
    for number in 2..=1100u32 {
        let uuid = lamina_bdev::Uuid(u128::from(number).to_be_bytes());
        let spec = NamespaceSpec { uuid: Some(uuid), ..disk(2, DISK_BYTES) };
        rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    }
    let data = rig.data(key, &log(4, 4096, 0));
    assert_eq!((u32_at(&data, 0), u32_at(&data, 4)), (u32::MAX, 0));
}

#[test]
fn commands_and_effects_agree_with_what_is_done() {
    let mut rig = Rig::new();
    let key = rig.host();
    let data = rig.data(key, &log(5, 4096, 0));
    for opcode in 0..=255u8 {
        let told = u32_at(&data, 4 * usize::from(opcode)) & 1 == 1;
        let command = crate::rig::admin_command(opcode, 0, 0, 0);
        let slot = lamina_nvmf::SlotId(1);
        let answer = rig.service.admin(key, slot, &command, 4096, rig.now);
        let unknown = match &answer {
            lamina_nvmf::controller::Answer::Reply(r) => {
                r.completion.status == Status::INVALID_OPCODE.dnr()
            }
            _ => false,
        };
        // Fabrics commands have no place in this page.
        assert!(opcode == 0x7f || told != unknown, "{opcode:#x}: {answer:?}");
    }
}

fn ana(rig: &mut Rig, key: lamina_nvmf::controller::ControllerKey, rgo: u32) -> Vec<u8> {
    let command = log(0x0c, 4096, 0);
    rig.data(key, &Command { cdw10: command.cdw10 | rgo << 8, ..command })
}

#[test]
fn ana_groups_have_the_state_of_the_listener() {
    let mut rig = Rig::new();
    rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(2, DISK_BYTES))).expect("added");
    let first = rig.host();
    let port = rig.second_port;
    let second = rig.enabled(&ConnectWith { port: Some(port), ..ConnectWith::default() });
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), Some(2), AnaState::NonOptimized))
        .expect("set");
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4421), None, AnaState::Inaccessible))
        .expect("set");
    let data = ana(&mut rig, first, 0);
    assert_eq!((u64_at(&data, 0), u16_at(&data, 8)), (1, 2), "changes, groups");
    assert_eq!([16, 20].map(|at| u32_at(&data, at)), [1, 1], "group 1 with one namespace");
    assert_eq!((data[32], u32_at(&data, 48)), (1, 1), "optimized, namespace 1");
    assert_eq!((u32_at(&data, 52), data[68], u32_at(&data, 84)), (2, 2, 2), "group 2");
    let data = ana(&mut rig, first, 1);
    assert_eq!((u32_at(&data, 20), u32_at(&data, 48), data[64]), (0, 2, 2), "groups only");
    let data = ana(&mut rig, second, 0);
    assert_eq!((data[32], data[68]), (3, 3), "inaccessible through the other port");
}

#[test]
fn the_ana_log_can_be_read_in_parts_up_to_its_greatest_size() {
    let mut rig = Rig::new();
    let key = rig.host();
    let most = 16 + 32 * 256 + 4 * 256;
    let whole = rig.data(key, &log(0x0c, most, 0));
    let mut parts = Vec::new();
    for offset in (0..most).step_by(4096) {
        parts.extend(rig.data(key, &log(0x0c, (most - offset).min(4096), offset.into())));
    }
    assert_eq!(parts, whole);
    let beyond = log(0x0c, 4, u64::from(most) + 4);
    assert_eq!(rig.status(key, &beyond), Status::INVALID_FIELD.dnr());
}

#[test]
fn ana_groups_can_be_shared_and_left() {
    let mut rig = Rig::new();
    let spec = NamespaceSpec { ana_group: Some(1), ..disk(2, DISK_BYTES) };
    rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    let key = rig.host();
    let data = ana(&mut rig, key, 0);
    assert_eq!((u16_at(&data, 8), u32_at(&data, 20)), (1, 2), "one group of two namespaces");
    rig.edit(|t| t.set_namespace_group(SUBSYSTEM, 2, 9)).expect("moved");
    let data = ana(&mut rig, key, 0);
    assert_eq!((u16_at(&data, 8), u32_at(&data, 52)), (2, 9));
}

fn discovery(rig: &mut Rig, key: lamina_nvmf::controller::ControllerKey) -> Vec<u8> {
    rig.data(key, &log(0x70, 16 << 10, 0))
}

#[test]
fn discovery_shows_subsystems_listeners_and_referrals() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith::discovery());
    let data = discovery(&mut rig, key);
    assert_eq!(u64_at(&data, 8), 2, "two listeners");
    let entry = &data[1024..2048];
    assert_eq!(entry[..4], [3, 1, 2, 0b110], "TCP, IPv4, NVM, flow control can be off");
    assert_eq!(u16_at(entry, 6), 0xffff, "dynamic controllers");
    assert_eq!(&entry[32..37], b"4420 ");
    assert_eq!(&entry[256..256 + SUBSYSTEM.len()], SUBSYSTEM.as_bytes());
    assert_eq!(&entry[512..522], b"127.0.0.1 ");
    let before = u64_at(&data, 0);
    let referral = Referral { address: address(8009), nqn: nqn(DISCOVERY), secure: false };
    rig.edit(|t| t.add_referral(referral.clone())).expect("added");
    let data = discovery(&mut rig, key);
    assert_eq!(u64_at(&data, 8), 3);
    assert!(u64_at(&data, 0) > before, "GENCTR");
    assert_eq!(data[3 * 1024 + 2], 1, "a referral");
    let error = rig.edit(|t| t.add_referral(referral)).expect_err("twice");
    assert!(error.message.contains("exists already"), "{}", error.message);
    rig.edit(|t| t.remove_referral(&address(8009), &nqn(DISCOVERY))).expect("removed");
    assert_eq!(u64_at(&discovery(&mut rig, key), 8), 2);
}

#[test]
fn discovery_is_read_in_parts() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith::discovery());
    let whole = discovery(&mut rig, key);
    let mut parts = Vec::new();
    for offset in (0..3072).step_by(512) {
        parts.extend(rig.data(key, &log(0x70, 512, offset)));
    }
    assert_eq!(parts, whole[..3072]);
}

#[test]
fn discovery_shows_a_host_only_what_it_may_use() {
    let mut rig = Rig::with(|mut spec| {
        spec.allow_any_host = false;
        spec
    });
    rig.edit(|t| t.add_host(SUBSYSTEM, Host { nqn: nqn(HOST), keys: Default::default() }))
        .expect("added");
    let mine = rig.enabled(&ConnectWith::discovery());
    let host = OTHER_HOST.to_string();
    let other = rig.enabled(&ConnectWith { host, ..ConnectWith::discovery() });
    assert_eq!(u64_at(&discovery(&mut rig, mine), 8), 2);
    assert_eq!(u64_at(&discovery(&mut rig, other), 8), 0);
}

#[test]
fn a_wildcard_listener_is_shown_as_the_address_the_host_used() {
    let mut rig = Rig::new();
    let any = lamina_nvmf::subsystem::Address::parse(None, "0.0.0.0", "4444").expect("good");
    rig.edit(|t| t.add_listener(SUBSYSTEM, &any, true)).expect("added");
    let key = rig.enabled(&ConnectWith::discovery());
    let data = discovery(&mut rig, key);
    let entry = &data[3 * 1024..4 * 1024];
    assert_eq!(&entry[512..522], b"127.0.0.1 ");
    assert_eq!((entry[3] & 3, entry[768]), (1, 2), "TLS 1.3 is required");
}

#[test]
fn firmware_is_this_version() {
    let mut rig = Rig::new();
    let key = rig.host();
    let data = rig.data(key, &log(3, 512, 0));
    assert_eq!(data[0], 1);
    assert!(data[8..16].starts_with(env!("CARGO_PKG_VERSION").as_bytes()));
    assert_eq!(data[8..16], rig.data(key, &identify(1, 0))[64..72]);
}

/// A discovery controller's host, and the page in parts as it reads it.
fn discovery_part(rig: &mut Rig, key: ControllerKey, len: u32, offset: u64) -> Vec<u8> {
    rig.data(key, &log(0x70, len, offset))
}

#[test]
fn a_discovery_log_that_changes_between_two_parts_is_seen_by_its_generation() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith::discovery());
    let whole = discovery_part(&mut rig, key, 16384, 0);
    let header = discovery_part(&mut rig, key, 16, 0);
    assert_eq!(header, whole[..16]);
    // A listener goes while the host is at it: entries move up.
    rig.edit(|t| t.remove_listener(SUBSYSTEM, &address(4420))).expect("removed");
    let records = u64_at(&header, 8);
    for at in 0..records {
        let entry = discovery_part(&mut rig, key, 1024, 1024 * (1 + at));
        let from = 1024 * (1 + at) as usize;
        assert!(entry == whole[from..from + 1024], "entry {at} is of the page that was begun");
    }
    let again = discovery_part(&mut rig, key, 16, 0);
    assert_ne!(u64_at(&again, 0), u64_at(&header, 0), "the host reads it anew");
    assert_eq!(u64_at(&again, 8), records - 1);
    let last = log(0x70, 1024, 1024 * records);
    assert!(rig.data(key, &last).iter().all(|byte| *byte == 0), "behind the end of the new page");
}

#[test]
fn parts_of_a_discovery_log_are_each_hosts_own() {
    let mut rig = Rig::new();
    let first = rig.enabled(&ConnectWith::discovery());
    let before = discovery_part(&mut rig, first, 16, 0);
    rig.edit(|t| t.remove_listener(SUBSYSTEM, &address(4420))).expect("removed");
    let other = ConnectWith { subsystem: DISCOVERY.into(), ..ConnectWith::other_host() };
    let second = rig.enabled(&other);
    let after = discovery_part(&mut rig, second, 16, 0);
    assert_eq!(u64_at(&before, 8), u64_at(&after, 8) + 1);
    let entry = |rig: &mut Rig, key| discovery_part(rig, key, 1024, 1024);
    assert_ne!(entry(&mut rig, first), entry(&mut rig, second));
}
