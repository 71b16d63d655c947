//! I/O commands (NVM 1.1, 3.3).

use std::sync::Arc;

use lamina_bdev::Status as EngineStatus;
use lamina_nvmf::io::{GateUse, Step, WorkOp};
use lamina_nvmf::subsystem::{AnaState, NamespaceSpec};
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Sgl, Status};

use crate::rig::{DISK_BYTES, Queue, Rig, SUBSYSTEM, address, disk, io};

const BLOCKS: u64 = DISK_BYTES / 512;
const OUT_OF_RANGE: Status = Status::LBA_OUT_OF_RANGE.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();
const SHORT: Status = Status::DATA_SGL_LENGTH_INVALID.dnr();

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn what_is_written_is_read() {
    let mut queue = Queue::usual();
    let data = pattern(4096);
    assert!(queue.status(&io(nvm::WRITE, 3, 8), &data).is_ok());
    let outcome = queue.outcome(&io(nvm::READ, 3, 8), &[]);
    assert!(outcome.status.is_ok());
    assert_eq!(outcome.data, data);
    assert_eq!(queue.log[0].gate, GateUse::Write);
    assert_eq!(queue.log[1].gate, GateUse::Open);
}

#[test]
fn a_namespace_of_4096_byte_blocks_is_addressed_in_them() {
    let mut rig = Rig::new();
    let spec = NamespaceSpec { block_size: 4096, ..disk(2, DISK_BYTES) };
    rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    let key = rig.host();
    let mut queue = Queue::new(rig.service.table(key));
    let write = Command { nsid: 2, sgl: Sgl::transport(8192), ..io(nvm::WRITE, 5, 2) };
    assert!(queue.status(&write, &pattern(8192)).is_ok());
    assert_eq!(queue.disk[5 * 4096..7 * 4096], pattern(8192));
    let last = Command { nsid: 2, sgl: Sgl::transport(4096), ..io(nvm::READ, 1023, 1) };
    assert!(queue.status(&last, &[]).is_ok());
    let behind = Command { nsid: 2, sgl: Sgl::transport(8192), ..io(nvm::READ, 1023, 2) };
    assert_eq!(queue.status(&behind, &[]), OUT_OF_RANGE);
}

#[test]
fn ranges_end_within_the_namespace() {
    let mut queue = Queue::usual();
    let data = pattern(1024);
    for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::VERIFY, nvm::WRITE_ZEROES] {
        for (slba, blocks) in [
            (BLOCKS, 1),
            (BLOCKS - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 1, 2),
            (1 << 55, 1),
            ((1 << 55) - 1, 2),
        ] {
            let status = queue.status(&io(opcode, slba, blocks), &data);
            assert_eq!(status, OUT_OF_RANGE, "{opcode:#x} {slba:#x} {blocks}");
        }
    }
    assert!(queue.log.is_empty(), "nothing reached the engine");
    assert!(queue.status(&io(nvm::READ, BLOCKS - 1, 1), &[]).is_ok());
}

#[test]
fn no_namespace_but_those_there_are() {
    let mut queue = Queue::usual();
    for opcode in [0, 1, 2, 5, 8, 9, 0x0c, 0x19] {
        for nsid in [0, 2, 3, 0xffff_fffe, 0xffff_ffff] {
            let command = Command { nsid, ..io(opcode, 0, 1) };
            let status = queue.status(&command, &pattern(512));
            let flush_all = opcode == nvm::FLUSH && nsid == u32::MAX;
            let expected =
                if flush_all { Status::SUCCESS } else { Status::INVALID_NAMESPACE_OR_FORMAT.dnr() };
            assert_eq!(status, expected, "{opcode:#x} {nsid:#x}");
        }
    }
}

#[test]
fn more_than_mdts_is_refused() {
    let mut queue = Queue::usual();
    let most = queue.outcome(&io(nvm::READ, 0, 256), &[]);
    assert_eq!(most.data.len(), 128 << 10);
    for blocks in [257, 65536] {
        assert_eq!(
            queue.status(&io(nvm::READ, 0, blocks), &[]),
            match blocks {
                257 => INVALID,
                _ => OUT_OF_RANGE,
            }
        );
        let data = pattern(blocks as usize * 512);
        assert!(!queue.status(&io(nvm::WRITE, 0, blocks), &data).is_ok());
    }
    assert_eq!(queue.log.len(), 1);
}

#[test]
fn data_shorter_than_the_blocks_is_refused() {
    let mut queue = Queue::usual();
    for length in [0, 1, 511, 512, 1023] {
        let command = Command { sgl: Sgl::transport(length), ..io(nvm::READ, 0, 2) };
        assert_eq!(queue.status(&command, &[]), SHORT, "{length}");
        for opcode in [nvm::WRITE, nvm::COMPARE] {
            let command = Command { sgl: Sgl::transport(length), ..io(opcode, 0, 2) };
            assert_eq!(queue.status(&command, &pattern(length as usize)), SHORT, "{length}");
        }
    }
    assert!(queue.log.is_empty());
}

#[test]
fn data_longer_than_the_blocks_is_cut() {
    let mut queue = Queue::usual();
    let long = Command { sgl: Sgl::transport(2048), ..io(nvm::WRITE, 0, 1) };
    assert!(queue.status(&long, &pattern(2048)).is_ok());
    assert_eq!(queue.disk[512..2048], [0; 1536]);
    let long = Command { sgl: Sgl::transport(2048), ..io(nvm::READ, 0, 1) };
    assert_eq!(queue.outcome(&long, &[]).data.len(), 512);
    let long = Command { sgl: Sgl::transport(2048), ..io(nvm::COMPARE, 0, 1) };
    assert!(queue.status(&long, &pattern(2048)).is_ok(), "one block is compared");
}

#[test]
fn forced_unit_access_is_passed_on() {
    let mut queue = Queue::usual();
    let fua = Command { cdw12: 1 << 30, ..io(nvm::WRITE, 0, 1) };
    assert!(queue.status(&fua, &pattern(512)).is_ok());
    assert!(queue.log[0].fua);
    let fua = Command { cdw12: 1 << 30, ..io(nvm::READ, 0, 1) };
    assert_eq!(queue.outcome(&fua, &[]).data, pattern(512));
    let ops: Vec<WorkOp> = queue.log.iter().map(|w| w.op).collect();
    assert_eq!(ops, [WorkOp::Write, WorkOp::Flush, WorkOp::Read], "what is read is durable");
}

#[test]
fn without_the_write_cache_every_write_is_durable() {
    let mut queue = Queue::usual();
    let mut table = (*queue.table).clone();
    table.write_through = true;
    queue.table = Arc::new(table);
    queue.status(&io(nvm::WRITE, 0, 1), &pattern(512));
    queue.status(&io(nvm::WRITE_ZEROES, 0, 1), &[]);
    assert!(queue.log.iter().all(|work| work.fua));
}

#[test]
fn flush_reaches_one_or_all_namespaces() {
    let mut rig = Rig::new();
    for number in 2..=4 {
        rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(number, DISK_BYTES))).expect("added");
    }
    let key = rig.host();
    let mut queue = Queue::new(rig.service.table(key));
    let all = Command { nsid: u32::MAX, ..Command::default() };
    assert!(queue.status(&Command { nsid: 2, ..Command::default() }, &[]).is_ok());
    assert!(queue.status(&all, &[]).is_ok());
    let devices: Vec<u64> = queue.log.iter().map(|w| w.device.0).collect();
    assert_eq!(devices, [2, 1, 2, 3, 4]);
    queue.failures = vec![EngineStatus::Ok, EngineStatus::IoError];
    assert_eq!(
        queue.status(&all, &[]),
        Status::WRITE_FAULT,
        "a failed flush is never told as done"
    );
    rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), Some(3), AnaState::Inaccessible))
        .expect("set");
    queue.table = rig.service.table(key);
    assert_eq!(queue.status(&all, &[]), Status::ANA_INACCESSIBLE, "nor one that was not done");
}

#[test]
fn write_zeroes_of_the_longest_range() {
    let mut queue = Queue::usual();
    queue.disk.fill(7);
    let deac = Command { cdw12: 7999 | 1 << 25, ..io(nvm::WRITE_ZEROES, 0, 1) };
    assert!(queue.status(&deac, &[]).is_ok());
    assert_eq!(queue.log[0].len, 8000 * 512);
    assert!(queue.disk[..8000 * 512].iter().all(|b| *b == 0));
}

#[test]
fn compare_tells_a_difference_in_the_last_byte() {
    let mut queue = Queue::usual();
    let mut data = pattern(4096);
    queue.status(&io(nvm::WRITE, 0, 8), &data);
    assert!(queue.status(&io(nvm::COMPARE, 0, 8), &data).is_ok());
    data[4095] ^= 1;
    assert_eq!(queue.status(&io(nvm::COMPARE, 0, 8), &data), Status::COMPARE_FAILURE.dnr());
}

#[test]
fn verify_reads_all_of_it_in_pieces() {
    let mut queue = Queue::usual();
    assert!(queue.status(&io(nvm::VERIFY, 10, 1000), &[]).is_ok());
    let pieces: Vec<(u64, u64)> = queue.log.iter().map(|w| (w.offset / 512, w.len / 512)).collect();
    assert_eq!(pieces, [(10, 256), (266, 256), (522, 256), (778, 232)]);
    queue.failures = vec![EngineStatus::Ok, EngineStatus::Corrupt];
    let status = queue.status(&io(nvm::VERIFY, 10, 1000), &[]);
    assert_eq!(status, Status::UNRECOVERED_READ_ERROR.dnr());
}

fn dsm(ranges: &[(u32, u64)], attributes: u32) -> (Command, Vec<u8>) {
    let mut data = Vec::new();
    for (blocks, slba) in ranges {
        data.extend_from_slice(&0u32.to_le_bytes());
        data.extend_from_slice(&blocks.to_le_bytes());
        data.extend_from_slice(&slba.to_le_bytes());
    }
    let (nsid, opcode) = (1, nvm::DATASET_MANAGEMENT);
    let sgl = Sgl::transport(data.len() as u32);
    let cdw10 = ranges.len() as u32 - 1;
    (Command { opcode, nsid, cdw10, cdw11: attributes, sgl, ..Command::default() }, data)
}

#[test]
fn dataset_management_frees_its_ranges() {
    let mut queue = Queue::usual();
    queue.disk.fill(9);
    let (command, data) = dsm(&[(8, 0), (0, 5), (16, 100)], 4);
    assert!(queue.status(&command, &data).is_ok());
    let freed: Vec<(u64, u64)> = queue.log.iter().map(|w| (w.offset / 512, w.len / 512)).collect();
    assert_eq!(freed, [(0, 8), (100, 16)], "an empty range is nothing");
    let (hints, data) = dsm(&[(8, 0)], 3);
    assert!(queue.status(&hints, &data).is_ok());
    assert_eq!(queue.log.len(), 2, "hints change nothing");
}

#[test]
fn dataset_management_of_256_ranges() {
    let mut queue = Queue::usual();
    let ranges: Vec<(u32, u64)> = (0..256).map(|i| (8, i * 16)).collect();
    let (command, data) = dsm(&ranges, 4);
    assert!(queue.status(&command, &data).is_ok());
    assert_eq!(queue.log.len(), 256);
}

#[test]
fn dataset_management_checks_all_before_it_frees_any() {
    let mut queue = Queue::usual();
    for bad in [(1, BLOCKS), (u32::MAX, 0), (1, u64::MAX), (2, u64::MAX), (0, BLOCKS + 1)] {
        let (command, data) = dsm(&[(8, 0), bad], 4);
        assert_eq!(queue.status(&command, &data), OUT_OF_RANGE, "{bad:?}");
    }
    let (command, data) = dsm(&[(8, 0), (8, 8)], 4);
    for length in 0..data.len() {
        assert_eq!(queue.status(&command, &data[..length]), SHORT, "{length}");
    }
    assert!(queue.log.is_empty());
}

/// Copy of (blocks, slba) ranges to `target`.
fn copy(ranges: &[(u32, u64)], target: u64) -> (Command, Vec<u8>) {
    let mut data = vec![0; 32 * ranges.len()];
    for (at, (blocks, slba)) in ranges.iter().enumerate() {
        let entry = &mut data[32 * at..][..32];
        entry[8..16].copy_from_slice(&slba.to_le_bytes());
        entry[16..18].copy_from_slice(&((blocks - 1) as u16).to_le_bytes());
    }
    let command = Command {
        opcode: nvm::COPY,
        nsid: 1,
        cdw10: target as u32,
        cdw11: (target >> 32) as u32,
        cdw12: ranges.len() as u32 - 1,
        sgl: Sgl::transport(data.len() as u32),
        ..Command::default()
    };
    (command, data)
}

#[test]
fn copy_gathers_its_ranges() {
    let mut queue = Queue::usual();
    queue.disk[..1 << 20].copy_from_slice(&pattern(1 << 20));
    let (command, data) = copy(&[(600, 0), (1, 1000), (8, 1024)], 4000);
    assert!(queue.status(&command, &data).is_ok());
    let at = |block: usize, blocks: usize| &queue.disk[block * 512..(block + blocks) * 512];
    assert_eq!(at(4000, 600), at(0, 600));
    assert_eq!(at(4600, 1), at(1000, 1));
    assert_eq!(at(4601, 8), at(1024, 8));
    let writes = queue.log.iter().filter(|w| w.op == WorkOp::Write).count();
    assert_eq!(writes, 3 + 2, "600 blocks take three pieces");
}

#[test]
fn copy_is_held_to_its_limits() {
    let mut queue = Queue::usual();
    let too_big = Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr();
    let (command, data) = copy(&[(2049, 0)], 4000);
    assert_eq!(queue.status(&command, &data), too_big, "MSSRL");
    let (command, data) = copy(&[(1, 0); 129], 4000);
    assert_eq!(queue.status(&command, &data), too_big, "MSRC");
    let (command, data) = copy(&[(2048, 0); 9], 4000);
    assert_eq!(queue.status(&command, &data), too_big, "MCL");
    for format in 1..16 {
        let (command, data) = copy(&[(1, 0)], 4000);
        let other = Command { cdw12: command.cdw12 | format << 8, ..command };
        assert_eq!(queue.status(&other, &data), INVALID, "format {format}");
    }
    let (command, data) = copy(&[(1, 0), (1, 1)], 4000);
    assert_eq!(queue.status(&command, &data[..63]), SHORT);
    for (range, target) in [((1, BLOCKS), 0), ((2, BLOCKS - 1), 0), ((2, 0), BLOCKS - 1)] {
        let (command, data) = copy(&[range], target);
        assert_eq!(queue.status(&command, &data), OUT_OF_RANGE, "{range:?} {target}");
    }
    let (command, data) = copy(&[(1, u64::MAX)], u64::MAX);
    assert_eq!(queue.status(&command, &data), OUT_OF_RANGE);
    let (command, data) = copy(&[(8, 0)], 7);
    assert_eq!(queue.status(&command, &data), INVALID, "the target overlaps the source");
    assert!(queue.log.is_empty());
}

#[test]
fn a_copy_that_fails_names_its_range() {
    let mut queue = Queue::usual();
    let (command, data) = copy(&[(1, 0), (1, 1), (1, 2)], 4000);
    queue.failures =
        vec![EngineStatus::Ok, EngineStatus::Ok, EngineStatus::Ok, EngineStatus::NoSpace];
    let outcome = queue.outcome(&command, &data);
    assert_eq!((outcome.status, outcome.dw0), (Status::CAPACITY_EXCEEDED.dnr(), 1));
}

#[test]
fn the_engines_answers_become_nvmes() {
    let mut queue = Queue::usual();
    let cases = [
        (EngineStatus::IoError, Status::UNRECOVERED_READ_ERROR, Status::WRITE_FAULT),
        (EngineStatus::NoSpace, Status::CAPACITY_EXCEEDED.dnr(), Status::CAPACITY_EXCEEDED.dnr()),
        (
            EngineStatus::ReadOnly,
            Status::NAMESPACE_IS_WRITE_PROTECTED.dnr(),
            Status::NAMESPACE_IS_WRITE_PROTECTED.dnr(),
        ),
        (EngineStatus::OutOfRange, OUT_OF_RANGE, OUT_OF_RANGE),
        (
            EngineStatus::Corrupt,
            Status::UNRECOVERED_READ_ERROR.dnr(),
            Status::UNRECOVERED_READ_ERROR.dnr(),
        ),
        (EngineStatus::Invalid, INVALID, INVALID),
        (EngineStatus::Detached, Status::NAMESPACE_NOT_READY, Status::NAMESPACE_NOT_READY),
    ];
    for (engine, read, write) in cases {
        queue.failures = vec![engine];
        let outcome = queue.outcome(&io(nvm::READ, 0, 1), &[]);
        assert_eq!((outcome.status, outcome.data.len()), (read, 0));
        queue.failures = vec![engine];
        assert_eq!(queue.status(&io(nvm::WRITE, 0, 1), &pattern(512)), write);
    }
}

#[test]
fn paths_that_do_not_serve_say_which_way() {
    let mut rig = Rig::new();
    let key = rig.host();
    let cases = [
        (AnaState::NonOptimized, Status::SUCCESS),
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
    ];
    for (state, expected) in cases {
        rig.edit(|t| t.set_ana_state(SUBSYSTEM, &address(4420), None, state)).expect("set");
        let mut queue = Queue::new(rig.service.table(key));
        for opcode in [nvm::READ, nvm::WRITE, nvm::FLUSH, nvm::COMPARE, nvm::VERIFY] {
            let status = queue.status(&io(opcode, 0, 1), &[0; 512]);
            assert_eq!(status, expected, "{opcode:#x} {state:?}");
        }
    }
}

#[test]
fn a_read_only_namespace_refuses_every_write() {
    let mut rig = Rig::new();
    let spec = NamespaceSpec { readonly: true, ..disk(2, DISK_BYTES) };
    rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
    let key = rig.host();
    let mut queue = Queue::new(rig.service.table(key));
    let protected = Status::NAMESPACE_IS_WRITE_PROTECTED.dnr();
    for opcode in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::DATASET_MANAGEMENT, nvm::COPY] {
        let command = Command { nsid: 2, ..io(opcode, 0, 1) };
        assert_eq!(queue.status(&command, &[0; 512]), protected, "{opcode:#x}");
    }
    for opcode in [nvm::READ, nvm::FLUSH, nvm::COMPARE, nvm::VERIFY] {
        let command = Command { nsid: 2, ..io(opcode, 0, 1) };
        assert!(queue.status(&command, &[0; 512]).is_ok(), "{opcode:#x}");
    }
}

#[test]
fn a_namespace_that_goes_meanwhile_ends_commands_of_several_steps() {
    let mut queue = Queue::usual();
    let (slot, step) = queue.start(&io(nvm::VERIFY, 0, 1000), &[]);
    let Step::Submit(work) = step else { panic!("{step:?}") };
    queue.table = Arc::default();
    assert_eq!(queue.run(work), Step::Wait);
    let outcomes = queue.outcomes();
    assert_eq!((outcomes.len(), outcomes[0].0), (1, slot));
    assert_eq!(outcomes[0].1.status, Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
}

/// Another disk with other blocks gets the number: commands that were meant for the first touch
/// neither it nor more memory than they brought.
#[test]
fn a_namespace_replaced_meanwhile_is_not_the_one_that_was_meant() {
    let (deallocate, ranges) = dsm(&[(8, 0), (8, 16)], 4);
    let (copy, sources) = copy(&[(16, 0)], 1000);
    let fua_read = Command { cdw12: 1 << 30, ..io(nvm::READ, 0, 1) };
    for (command, data) in [
        (fua_read, Vec::new()),
        (io(nvm::VERIFY, 0, 1000), Vec::new()),
        (deallocate, ranges),
        (copy, sources),
    ] {
        for block_size in [512, 4096] {
            let mut rig = Rig::new();
            let key = rig.host();
            let mut queue = Queue::new(rig.service.table(key));
            let (_, step) = queue.start(&command, &data);
            let Step::Submit(work) = step else { panic!("{step:?}") };
            let spec = NamespaceSpec { nsid: Some(1), block_size, ..disk(2, DISK_BYTES) };
            rig.edit(|t| t.remove_namespace(SUBSYSTEM, 1)).expect("removed");
            rig.edit(|t| t.add_namespace(SUBSYSTEM, spec)).expect("added");
            queue.table = rig.service.table(key);
            assert_eq!(queue.run(work), Step::Wait, "{command:?}");
            let status = queue.outcomes()[0].1.status;
            assert_eq!(status, Status::INVALID_NAMESPACE_OR_FORMAT.dnr(), "{command:?}");
        }
    }
}

#[test]
fn a_closed_connection_stops_commands_of_several_steps() {
    let mut queue = Queue::usual();
    let ranges: Vec<(u32, u64)> = (0..256).map(|i| (8, i * 16)).collect();
    let (command, data) = dsm(&ranges, 4);
    let (_, step) = queue.start(&command, &data);
    let Step::Submit(work) = step else { panic!("{step:?}") };
    queue.queue.close();
    assert_eq!(queue.run(work), Step::Wait);
    assert_eq!(queue.outcomes()[0].1.status, Status::ABORTED_SQ_DELETION);
    assert!(queue.queue.is_idle());
}

#[test]
fn writes_with_a_directive_are_refused() {
    let mut queue = Queue::usual();
    for directive in 1..16 {
        let command = Command { cdw12: directive << 20, ..io(nvm::WRITE, 0, 1) };
        assert_eq!(queue.status(&command, &pattern(512)), INVALID, "{directive}");
    }
}

#[test]
fn slow_commands_are_forwarded() {
    let mut queue = Queue::usual();
    for opcode in [0x0d, 0x0e, 0x11, 0x15, 0x7f] {
        let (_, step) = queue.start(&Command { opcode, nsid: 1, ..Command::default() }, &[]);
        assert_eq!(step, Step::Forward, "{opcode:#x}");
    }
    assert!(queue.queue.is_idle());
}
