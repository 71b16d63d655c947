//! Identify (Base 2.1, 5.1.13; NVM 1.1, 4.1.5): what is told is true.

use lamina_nvmf::subsystem::{AnaState, NamespaceSpec};
use lamina_nvmf::wire::{Command, Sgl, Status};

use crate::rig::{
    ConnectWith, DISK_BYTES, Rig, SUBSYSTEM, address, disk, identify, u16_at, u32_at, u64_at,
};

const NO_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.dnr();

#[test]
fn the_controller_says_what_it_is() {
    let mut rig = Rig::new();
    let key = rig.host();
    let data = rig.data(key, &identify(1, 0));
    assert_eq!(data.len(), 4096);
    assert_eq!(&data[4..24], b"00000000000000000000");
    assert_eq!(&data[24..64], format!("{:40}", "Lamina virtual disk").as_bytes());
    assert_eq!(data[76], 0b1011, "several ports and controllers, ANA");
    assert_eq!(data[77], 5, "MDTS: 128 KiB");
    assert_eq!(u16_at(&data, 78), 1, "CNTLID");
    assert_eq!(u32_at(&data, 80), 0x0002_0100, "VER as the property says");
    assert_eq!(data[111], 1, "CNTRLTYPE: I/O");
    assert_eq!(u16_at(&data, 320), 10, "KAS: a second");
    assert_eq!((data[512], data[513]), (0x66, 0x44));
    assert_eq!(u16_at(&data, 514), 1024, "MAXCMD");
    assert_eq!((u32_at(&data, 516), u32_at(&data, 540)), (256, 256), "NN, MNAN");
    assert_eq!(u16_at(&data, 520), 0b1_1011_1101, "ONCS");
    assert_eq!(u16_at(&data, 522), 1, "FUSES: compare-and-write");
    assert_eq!(data[525], 0b111, "VWC, flush of all namespaces");
    assert_eq!(u32_at(&data, 536) & 3, 1, "SGLs");
    assert_eq!(&data[768..768 + SUBSYSTEM.len()], SUBSYSTEM.as_bytes());
    assert_eq!(data[768 + SUBSYSTEM.len()], 0);
    assert_eq!(u32_at(&data, 1792), (64 + 8192) / 16, "IOCCSZ");
    assert_eq!(u32_at(&data, 1796), 1, "IORCSZ");
}

#[test]
fn a_discovery_controller_says_what_it_is() {
    let mut rig = Rig::new();
    let key = rig.enabled(&ConnectWith::discovery());
    let data = rig.data(key, &identify(1, 0));
    assert_eq!(data[111], 2, "CNTRLTYPE: discovery");
    assert_eq!(u32_at(&data, 92), 1 << 31, "OAES: discovery log changes");
    assert_eq!(u32_at(&data, 516), 0, "no namespaces");
    for cns in [0, 2, 3, 5, 6, 7, 8, 0x13, 0x1c] {
        assert_eq!(rig.status(key, &identify(cns, 1)), Status::INVALID_FIELD.dnr(), "{cns:#x}");
    }
}

#[test]
fn without_ana_nothing_is_said_of_it() {
    let mut rig = Rig::with(|mut spec| {
        spec.ana_reporting = false;
        spec
    });
    let key = rig.host();
    let data = rig.data(key, &identify(1, 0));
    assert_eq!((data[76] & 8, data[342], data[343], u32_at(&data, 348)), (0, 0, 0, 0));
    assert_eq!(u32_at(&data, 92), 1 << 8, "OAES: namespaces only");
    assert_eq!(u32_at(&rig.data(key, &identify(0, 1)), 92), 0, "ANAGRPID");
}

#[test]
fn a_namespace_of_512_byte_blocks() {
    let mut rig = Rig::new();
    let key = rig.host();
    let data = rig.data(key, &identify(0, 1));
    assert_eq!([0, 8, 16].map(|at| u64_at(&data, at)), [DISK_BYTES / 512; 3]);
    assert_eq!(data[26], 0, "format 0");
    assert_eq!(u32_at(&data, 128), 9 << 16, "512 bytes, no metadata");
    assert_eq!(data[24] & 0b1_0010, 0b1_0010, "atomic and preferred sizes are told");
    let atomic = [34, 36, 38, 40, 44].map(|at| u16_at(&data, at));
    assert_eq!(atomic, [7; 5], "4 KiB, and a boundary every 4 KiB");
    assert_eq!(u16_at(&data, 42), 0, "the first boundary is at 0");
    assert_eq!(data[30] & 1, 1, "shared");
    assert_eq!(data[31], 0xff, "all reservations");
    assert_eq!(data[33], 9, "deallocated reads as zeros, Write Zeroes deallocates");
    assert_eq!(u32_at(&data, 92), 1, "ANAGRPID");
    assert_eq!(data[104..120], [1; 16], "NGUID");
}

#[test]
fn a_namespace_of_4096_byte_blocks() {
    let mut rig = Rig::new();
    let spec = NamespaceSpec { block_size: 4096, readonly: true, ..disk(2, DISK_BYTES) };
    assert_eq!(rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added"), 2);
    let key = rig.host();
    let data = rig.data(key, &identify(0, 2));
    assert_eq!(u64_at(&data, 0), DISK_BYTES / 4096);
    assert_eq!(u32_at(&data, 128), 12 << 16);
    assert_eq!([34, 36, 38, 40, 44].map(|at| u16_at(&data, at)), [0; 5], "one block is 4 KiB");
    assert_eq!(data[99], 1, "write protected");
}

#[test]
fn namespace_numbers_are_checked() {
    let mut rig = Rig::new();
    let key = rig.host();
    assert_eq!(rig.data(key, &identify(0, 256)), vec![0; 4096], "not there: zeros");
    for nsid in [0, 257, 0xffff_fffe, 0xffff_ffff] {
        assert_eq!(rig.status(key, &identify(0, nsid)), NO_NAMESPACE, "{nsid:#x}");
        assert_eq!(rig.status(key, &identify(3, nsid)), NO_NAMESPACE, "{nsid:#x}");
        assert_eq!(rig.status(key, &identify(8, nsid)), NO_NAMESPACE, "{nsid:#x}");
    }
    assert_eq!(rig.status(key, &identify(3, 2)), NO_NAMESPACE);
}

#[test]
fn the_active_list_begins_after_the_number_given() {
    let mut rig = Rig::new();
    for nsid in [5, 200] {
        let spec = NamespaceSpec { nsid: Some(nsid), ..disk(nsid as u8, DISK_BYTES) };
        rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    }
    let key = rig.host();
    let list = |rig: &mut Rig, nsid| {
        let data = rig.data(key, &identify(2, nsid));
        let all = (0..1024).map(|at| u32_at(&data, 4 * at));
        all.take_while(|nsid| *nsid != 0).collect::<Vec<u32>>()
    };
    assert_eq!(list(&mut rig, 0), [1, 5, 200]);
    assert_eq!(list(&mut rig, 1), [5, 200]);
    assert_eq!(list(&mut rig, 200), []);
    for nsid in [0xffff_fffe, 0xffff_ffff] {
        assert_eq!(rig.status(key, &identify(2, nsid)), NO_NAMESPACE);
    }
}

#[test]
fn a_list_of_more_namespaces_than_fit_goes_on() {
    let mut rig = Rig::with(|mut spec| {
        spec.max_namespaces = 2000;
        spec
    });
    for number in 2..=1500u32 {
        let uuid = lamina_bdev::Uuid(u128::from(number).to_be_bytes());
        let spec = NamespaceSpec { uuid: Some(uuid), ..disk(2, DISK_BYTES) };
        rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    }
    let key = rig.host();
    let first = rig.data(key, &identify(2, 0));
    assert_eq!(u32_at(&first, 4092), 1024);
    let rest = rig.data(key, &identify(2, 1024));
    assert_eq!((u32_at(&rest, 0), u32_at(&rest, 475 * 4), u32_at(&rest, 476 * 4)), (1025, 1500, 0));
}

#[test]
fn identification_descriptors_are_all_there() {
    let mut rig = Rig::new();
    let key = rig.host();
    let data = rig.data(key, &identify(3, 1));
    let mut at = 0;
    let mut found = Vec::new();
    while data[at] != 0 {
        found.push((data[at], data[at + 1]));
        at += 4 + usize::from(data[at + 1]);
    }
    assert_eq!(found, [(1, 8), (2, 16), (3, 16), (4, 1)]);
}

#[test]
fn command_set_structures_exist_for_nvm_only() {
    let mut rig = Rig::new();
    let key = rig.host();
    for cns in [5, 6, 7] {
        let command = Command { cdw11: 0, ..identify(cns, 1) };
        assert!(rig.status(key, &command).is_ok(), "{cns}");
        for csi in [1, 2, 3, 255] {
            let command = Command { cdw11: csi << 24, ..identify(cns, 1) };
            assert_eq!(rig.status(key, &command), Status::INVALID_FIELD.dnr(), "{cns} {csi}");
        }
    }
    let all = Command { cdw10: 0x1c | 0xffff << 16, ..identify(0, 0) };
    assert_eq!(u64_at(&rig.data(key, &all), 0), 1);
    let other = Command { cdw10: 0x1c | 77 << 16, ..identify(0, 0) };
    assert_eq!(rig.status(key, &other), Status::INVALID_FIELD.dnr());
}

#[test]
fn the_controller_list_counts_from_a_number() {
    let mut rig = Rig::new();
    let key = rig.host();
    for _ in 0..3 {
        rig.host();
    }
    let command = Command { cdw10: 0x13 | 2 << 16, ..identify(0, 0) };
    let data = rig.data(key, &command);
    assert_eq!([0, 2, 4, 6].map(|at| u16_at(&data, at)), [3, 2, 3, 4]);
}

#[test]
fn an_inaccessible_namespace_keeps_its_size() {
    let mut rig = Rig::new();
    let key = rig.host();
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, AnaState::Inaccessible))
        .expect("set");
    let data = rig.data(key, &identify(0, 1));
    assert_eq!([0, 8, 16].map(|at| u64_at(&data, at)), [DISK_BYTES / 512, DISK_BYTES / 512, 0]);
    assert_eq!(rig.data(key, &identify(8, 1))[14], 1, "ready: ANA says what the path is");
}

#[test]
fn the_ana_log_fits_one_command_whatever_the_number_of_namespaces() {
    let mut rig = Rig::with(|mut spec| {
        spec.max_namespaces = 8192;
        spec
    });
    let spec = NamespaceSpec { nsid: Some(8192), ..disk(2, DISK_BYTES) };
    rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    let key = rig.host();
    let data = rig.data(key, &identify(1, 0));
    let (groups, namespaces) = (u32_at(&data, 348), u32_at(&data, 540));
    assert!(16 + 32 * groups + 4 * namespaces <= 128 << 10, "what a host sets aside for it");
    assert_eq!(u32_at(&rig.data(key, &identify(0, 8192)), 92), groups, "the last of them");
}

#[test]
fn a_buffer_too_small_for_identify_is_refused() {
    let mut rig = Rig::new();
    let key = rig.host();
    for length in [0, 1, 4095] {
        let command = Command { sgl: Sgl::transport(length), ..identify(1, 0) };
        assert_eq!(rig.status(key, &command), Status::DATA_SGL_LENGTH_INVALID.dnr());
    }
}
