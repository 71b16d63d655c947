//! Fused Compare-and-Write (NVM 1.1, 3.1.5; Base 2.1, 3.4.2).

use lamina_bdev::Status as EngineStatus;
use lamina_nvmf::io::{Entry, GateUse, Step, WorkOp};
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Fuse, Sgl, Status};

use crate::rig::{Queue, io};

fn first(slba: u64, blocks: u32) -> Command {
    Command { fuse: Fuse::First, cid: 1, ..io(nvm::COMPARE, slba, blocks) }
}

fn second(slba: u64, blocks: u32) -> Command {
    Command { fuse: Fuse::Second, cid: 2, ..io(nvm::WRITE, slba, blocks) }
}

/// Runs a pair to its end: both statuses, in the order they were answered.
fn pair(queue: &mut Queue, one: &Command, two: &Command, old: &[u8], new: &[u8]) -> [Status; 2] {
    let (slot, step) = queue.start(one, old);
    assert_eq!(step, Step::Wait);
    let (second_slot, mut step) = queue.start(two, new);
    while let Step::Submit(work) = step {
        step = queue.run(work);
    }
    let outcomes = queue.outcomes();
    assert_eq!(outcomes.iter().map(|o| o.0).collect::<Vec<_>>(), [slot, second_slot]);
    assert!(queue.queue.is_idle() && queue.gate.is_idle());
    [outcomes[0].1.status, outcomes[1].1.status]
}

#[test]
fn a_pair_that_matches_writes() {
    let mut queue = Queue::usual();
    let statuses = pair(&mut queue, &first(8, 8), &second(8, 8), &[0; 4096], &[5; 4096]);
    assert_eq!(statuses, [Status::SUCCESS; 2]);
    assert_eq!(queue.disk[8 * 512..16 * 512], [5; 4096]);
    let gates: Vec<GateUse> = queue.log.iter().map(|w| w.gate).collect();
    assert_eq!(gates, [GateUse::Hold, GateUse::Unhold]);
}

#[test]
fn a_pair_that_differs_writes_nothing() {
    let mut queue = Queue::usual();
    let statuses = pair(&mut queue, &first(0, 1), &second(0, 1), &[1; 512], &[5; 512]);
    assert_eq!(statuses, [Status::COMPARE_FAILURE.dnr(), Status::ABORTED_FAILED_FUSED]);
    assert_eq!(queue.disk[..512], [0; 512]);
    assert_eq!(queue.log[1].op, WorkOp::Release, "the hold is given up");
}

#[test]
fn a_second_half_alone_is_aborted() {
    let mut queue = Queue::usual();
    let status = queue.status(&second(0, 1), &[5; 512]);
    assert_eq!(status, Status::ABORTED_MISSING_FUSED);
    assert!(queue.log.is_empty());
}

#[test]
fn a_first_half_alone_is_aborted_by_what_follows() {
    let mut queue = Queue::usual();
    let (slot, step) = queue.start(&first(0, 1), &[0; 512]);
    assert_eq!(step, Step::Wait);
    assert_eq!(queue.outcomes(), [], "its other half may come");
    let (other, step) = queue.start(&io(nvm::READ, 0, 1), &[]);
    let Step::Submit(work) = step else { panic!("{step:?}") };
    queue.run(work);
    let outcomes = queue.outcomes();
    assert_eq!((outcomes[0].0, outcomes[1].0), (slot, other));
    assert_eq!(outcomes[0].1.status, Status::ABORTED_MISSING_FUSED);
    assert!(outcomes[1].1.status.is_ok());
}

#[test]
fn two_first_halves_abort_the_earlier() {
    let mut queue = Queue::usual();
    let (slot, _) = queue.start(&first(0, 1), &[0; 512]);
    let statuses = pair(&mut Queue::usual(), &first(0, 1), &second(0, 1), &[0; 512], &[1; 512]);
    assert_eq!(statuses, [Status::SUCCESS; 2]);
    let (_, step) = queue.start(&first(0, 1), &[0; 512]);
    assert_eq!(step, Step::Wait);
    let outcomes = queue.outcomes();
    assert_eq!((outcomes.len(), outcomes[0].0), (1, slot));
    assert_eq!(outcomes[0].1.status, Status::ABORTED_MISSING_FUSED);
}

#[test]
fn halves_of_different_ranges_are_refused() {
    for two in [second(1, 1), second(0, 2), Command { nsid: 2, ..second(0, 1) }] {
        let mut queue = Queue::usual();
        let statuses = pair(&mut queue, &first(0, 1), &two, &[0; 512], &[5; 1024]);
        assert_eq!(statuses, [Status::INVALID_FIELD.dnr(); 2]);
        assert!(queue.log.is_empty());
    }
}

#[test]
fn halves_of_other_commands_are_refused() {
    let mut queue = Queue::usual();
    for opcode in 0..=255u8 {
        if opcode != nvm::COMPARE {
            let one = Command { opcode, ..first(0, 1) };
            let statuses = pair(&mut queue, &one, &second(0, 1), &[0; 512], &[5; 512]);
            let expected = [Status::INVALID_FIELD.dnr(), Status::ABORTED_FAILED_FUSED];
            assert_eq!(statuses, expected, "{opcode:#x}");
        }
        if opcode != nvm::WRITE {
            let two = Command { opcode, ..second(0, 1) };
            let statuses = pair(&mut queue, &first(0, 1), &two, &[0; 512], &[5; 512]);
            let expected = [Status::ABORTED_FAILED_FUSED, Status::INVALID_FIELD.dnr()];
            assert_eq!(statuses, expected, "{opcode:#x}");
        }
    }
    assert!(queue.log.is_empty());
}

#[test]
fn the_reserved_fuse_is_refused() {
    let mut queue = Queue::usual();
    let command = Command { fuse: Fuse::Reserved, ..io(nvm::READ, 0, 1) };
    assert_eq!(queue.status(&command, &[]), Status::INVALID_FIELD.dnr());
}

#[test]
fn more_than_the_atomic_unit_is_refused() {
    let mut queue = Queue::usual();
    let statuses = pair(&mut queue, &first(0, 9), &second(0, 9), &[0; 4608], &[5; 4608]);
    let expected = [Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr(), Status::ABORTED_FAILED_FUSED];
    assert_eq!(statuses, expected);
}

#[test]
fn halves_with_too_little_data_are_refused() {
    let mut queue = Queue::usual();
    let short = Status::DATA_SGL_LENGTH_INVALID.dnr();
    let statuses = pair(&mut queue, &first(0, 1), &second(0, 1), &[0; 512], &[5; 511]);
    assert_eq!(statuses, [Status::ABORTED_FAILED_FUSED, short]);
    let one = Command { sgl: Sgl::transport(100), ..first(0, 1) };
    let statuses = pair(&mut queue, &one, &second(0, 1), &[0; 100], &[5; 512]);
    assert_eq!(statuses, [short, Status::ABORTED_FAILED_FUSED]);
    assert_eq!(queue.disk[..512], [0; 512]);
}

#[test]
fn a_pair_beyond_the_end_is_refused() {
    let mut queue = Queue::usual();
    for slba in [8192, u64::MAX] {
        let statuses = pair(&mut queue, &first(slba, 1), &second(slba, 1), &[0; 512], &[5; 512]);
        assert_eq!(statuses, [Status::LBA_OUT_OF_RANGE.dnr(), Status::ABORTED_FAILED_FUSED]);
    }
}

#[test]
fn a_pair_whose_read_or_write_fails_gives_its_hold_up() {
    let mut queue = Queue::usual();
    queue.failures = vec![EngineStatus::IoError];
    let statuses = pair(&mut queue, &first(0, 1), &second(0, 1), &[0; 512], &[5; 512]);
    assert_eq!(statuses, [Status::UNRECOVERED_READ_ERROR, Status::ABORTED_FAILED_FUSED]);
    queue.failures = vec![EngineStatus::Ok, EngineStatus::NoSpace];
    let statuses = pair(&mut queue, &first(0, 1), &second(0, 1), &[0; 512], &[5; 512]);
    assert_eq!(statuses, [Status::SUCCESS, Status::CAPACITY_EXCEEDED.dnr()]);
}

#[test]
fn a_connection_that_closes_between_read_and_write_gives_its_hold_up() {
    let mut queue = Queue::usual();
    queue.start(&first(0, 1), &[0; 512]);
    let (_, step) = queue.start(&second(0, 1), &[5; 512]);
    let Step::Submit(read) = step else { panic!("{step:?}") };
    queue.queue.close();
    let Step::Submit(release) = queue.run(read) else { panic!("no release") };
    assert_eq!(release.op, WorkOp::Release);
    assert_eq!(queue.run(release), Step::Wait);
    assert!(queue.queue.is_idle() && queue.gate.is_idle());
    assert_eq!(queue.disk[..512], [0; 512]);
}

#[test]
fn a_write_in_between_waits() {
    let mut queue = Queue::usual();
    queue.start(&first(0, 1), &[0; 512]);
    let (_, step) = queue.start(&second(0, 1), &[5; 512]);
    let Step::Submit(read) = step else { panic!("{step:?}") };
    let Step::Submit(write) = queue.run(read) else { panic!("no write") };
    assert_eq!(queue.gate.enter(Entry::Write, 0, 512, 99), None, "another queue's write");
    queue.run(write);
    assert_eq!(queue.gate.next_ready().map(|(ticket, _)| ticket), Some(99));
}
