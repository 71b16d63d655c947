//! Get and Set Features (Base 2.1, 5.1.11 and 5.1.25).

use lamina_nvmf::controller::ControllerKey;
use lamina_nvmf::wire::{Command, Status};

use crate::rig::{ConnectWith, Rig, admin_command};

const GET: u8 = 0x0a;
const SET: u8 = 0x09;
const INVALID: Status = Status::INVALID_FIELD.dnr();

fn get(rig: &mut Rig, key: ControllerKey, fid: u32) -> u32 {
    let reply = rig.admin(key, &admin_command(GET, 0, fid, 0));
    assert!(reply.completion.status.is_ok(), "{fid:#x}: {:?}", reply.completion);
    reply.completion.dw0
}

fn set(rig: &mut Rig, key: ControllerKey, fid: u32, value: u32) -> (Status, u32) {
    let completion = rig.admin(key, &admin_command(SET, 0, fid, value)).completion;
    (completion.status, completion.dw0)
}

#[test]
fn queues_are_granted_up_to_the_limit() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(set(&mut rig, key, 7, 3 << 16 | 3), (Status::SUCCESS, 3 << 16 | 3));
    assert_eq!(get(&mut rig, key, 7), 3 << 16 | 3);
    assert_eq!(set(&mut rig, key, 7, 63 << 16 | 7), (Status::SUCCESS, 7 << 16 | 7), "pairs");
    assert_eq!(set(&mut rig, key, 7, 0xfffe_fffe), (Status::SUCCESS, 127 << 16 | 127));
    for bad in [0xffff, 0xffff_0000, 0xffff_ffff] {
        assert_eq!(set(&mut rig, key, 7, bad).0, INVALID, "{bad:#x}");
    }
    rig.connect(&ConnectWith::io(1, 1)).expect("connects");
    assert_eq!(set(&mut rig, key, 7, 0).0, Status::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn fewer_queues_granted_are_fewer_connected() {
    let mut rig = Rig::new();
    let key = rig.host();
    set(&mut rig, key, 7, 0);
    assert!(rig.connect(&ConnectWith::io(1, 1)).is_ok());
    assert!(rig.connect(&ConnectWith::io(1, 2)).is_err());
}

#[test]
fn keep_alive_cannot_be_turned_off() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(get(&mut rig, key, 0x0f), 15_000);
    assert_eq!(set(&mut rig, key, 0x0f, 0).0, Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr());
    assert_eq!(set(&mut rig, key, 0x0f, 1_500).0, Status::SUCCESS);
    assert_eq!(get(&mut rig, key, 0x0f), 2_000);
}

#[test]
fn the_write_cache_can_be_turned_off_truthfully() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(get(&mut rig, key, 6), 1);
    assert!(set(&mut rig, key, 6, 0).0.is_ok());
    assert_eq!(get(&mut rig, key, 6), 0);
    assert!(rig.service.table(key).write_through, "writes are durable from now on");
}

#[test]
fn select_tells_default_saved_and_capabilities() {
    let mut rig = Rig::new();
    let key = rig.host();
    set(&mut rig, key, 6, 0);
    assert_eq!(get(&mut rig, key, 6 | 1 << 8), 1, "default");
    assert_eq!(get(&mut rig, key, 6 | 2 << 8), 1, "saved: the default");
    assert_eq!(get(&mut rig, key, 6 | 3 << 8), 0b100, "changeable");
    assert_eq!(get(&mut rig, key, 0x83 | 3 << 8), 0b110, "changeable, of a namespace");
    assert_eq!(get(&mut rig, key, 0x81 | 3 << 8), 0, "neither");
    for select in 4..8 {
        let command = admin_command(GET, 0, 6 | select << 8, 0);
        assert_eq!(rig.status(key, &command), INVALID);
    }
}

#[test]
fn nothing_can_be_saved() {
    let mut rig = Rig::new();
    let key = rig.host();
    let (status, _) = set(&mut rig, key, 6 | 1 << 31, 1);
    assert_eq!(status, Status::FEATURE_NOT_SAVEABLE.dnr());
}

#[test]
fn features_of_the_controller_take_no_namespace() {
    let mut rig = Rig::new();
    let key = rig.host();
    let command = admin_command(SET, 1, 6, 1);
    assert_eq!(rig.status(key, &command), Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
    let all = admin_command(SET, u32::MAX, 6, 1);
    assert!(rig.status(key, &all).is_ok());
}

#[test]
fn features_of_a_namespace_need_one() {
    let mut rig = Rig::new();
    let key = rig.host();
    for fid in [5, 0x82, 0x83] {
        for nsid in [0, 2, 257] {
            let command = admin_command(GET, nsid, fid, 0);
            let expected = Status::INVALID_NAMESPACE_OR_FORMAT.dnr();
            assert_eq!(rig.status(key, &command), expected, "{fid:#x} {nsid}");
        }
        assert!(rig.status(key, &admin_command(GET, 1, fid, 0)).is_ok(), "{fid:#x}");
    }
    let dulbe = admin_command(SET, 1, 5, 1 << 16);
    assert_eq!(rig.status(key, &dulbe), INVALID, "deallocated blocks are no errors");
}

#[test]
fn the_host_identifier_is_the_long_one() {
    let mut rig = Rig::new();
    let key = rig.host();
    let long = rig.data(key, &admin_command(GET, 0, 0x81, 1));
    assert_eq!(long, [1; 16]);
    let short = rig.status(key, &admin_command(GET, 0, 0x81, 0));
    assert_eq!(short, Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT.dnr());
    assert_eq!(set(&mut rig, key, 0x81, 1).0, Status::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn thresholds_and_power_have_their_ranges() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(get(&mut rig, key, 4), 0xffff, "over-temperature: never");
    assert!(set(&mut rig, key, 4, 350).0.is_ok());
    assert_eq!(get(&mut rig, key, 4), 350);
    assert_eq!(set(&mut rig, key, 4, 3 << 20).0, INVALID);
    assert!(set(&mut rig, key, 2, 0).0.is_ok());
    assert_eq!(set(&mut rig, key, 2, 1).0, INVALID, "there is one power state");
    assert_eq!(set(&mut rig, key, 0x19, 1).0, INVALID, "there is one command set");
}

#[test]
fn a_discovery_controller_has_two_features() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith::discovery());
    let good: Vec<u32> =
        (0..=255).filter(|fid| rig.status(key, &admin_command(GET, 0, *fid, 0)).is_ok()).collect();
    assert_eq!(good, [0x0b, 0x0f]);
}

#[test]
fn unknown_features_are_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    let effects = rig.data(key, &crate::rig::log(0x12, 1024, 0));
    for fid in 0..=255u32 {
        let told = crate::rig::u32_at(&effects, 4 * fid as usize) & 1 == 1;
        let command = Command { cdw11: 1, ..admin_command(GET, 1, fid, 0) };
        let status = match fid {
            4 => rig.status(key, &admin_command(GET, 1, fid, 0)),
            _ => rig.status(key, &command),
        };
        assert_eq!(status.is_ok(), told, "{fid:#x}: {status:?}");
    }
}
