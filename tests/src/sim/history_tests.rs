//! Hand-made histories, lawful and not, put to the checker.

use super::*;

/// A block, its operations, and a clock.
struct Bench {
    ops: OpTable,
    block: History,
    clock: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { ops: OpTable::new(), block: History::default(), clock: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn submit(&mut self, mask: u8, zero: bool) -> OpId {
        let at = self.tick();
        let op = self.ops.add(at, zero);
        self.block.push(op, mask);
        op
    }

    fn ack(&mut self, op: OpId) {
        let at = self.tick();
        self.ops.acked(op, at, false);
    }

    fn write(&mut self, mask: u8) -> OpId {
        let op = self.submit(mask, false);
        self.ack(op);
        op
    }

    fn crash(&mut self, power: bool) {
        let at = self.tick();
        self.ops.crash(at, power);
    }

    /// A read now, alone, of the whole block.
    fn read(&mut self, tags: [OpId; SECTORS]) -> Result<(), String> {
        let from = self.tick();
        self.read_since(from, tags)
    }

    fn read_since(&mut self, from: u64, tags: [OpId; SECTORS]) -> Result<(), String> {
        let window = Window { from, to: self.tick() };
        let lesson = self.block.check(&self.ops, Seen { tags, mask: 0xFF }, window)?;
        assert!(!lesson.unproven);
        self.block.learn(&lesson, window.to, self.ops.epoch);
        Ok(())
    }
}

#[test]
fn the_last_acknowledged_write_is_read() {
    let mut bench = Bench::new();
    bench.read([0; 8]).unwrap();
    let a = bench.write(0xFF);
    bench.read([a; 8]).unwrap();
    let b = bench.write(0xFF);
    bench.read([b; 8]).unwrap();
    bench.read([a; 8]).unwrap_err();
    bench.read([0; 8]).unwrap_err();
}

#[test]
fn a_write_in_flight_may_show_and_then_stays() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let b = bench.submit(0xFF, false);
    bench.read([a; 8]).unwrap();
    bench.read([b; 8]).unwrap();
    bench.read([a; 8]).unwrap_err();
    bench.ack(b);
    bench.read([b; 8]).unwrap();
}

#[test]
fn full_writes_never_mix() {
    let mut bench = Bench::new();
    let a = bench.submit(0xFF, false);
    let b = bench.submit(0xFF, false);
    bench.read([a, a, a, a, b, b, b, b]).unwrap_err();
    bench.read([a, a, a, a, 0, 0, 0, 0]).unwrap_err();
    bench.ack(a);
    bench.ack(b);
    bench.read([a, b, a, b, a, b, a, b]).unwrap_err();
    bench.read([a; 8]).unwrap();
    bench.read([b; 8]).unwrap_err();
}

#[test]
fn partial_writes_combine_in_order() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let b = bench.write(0b0000_0011);
    bench.read([b, b, a, a, a, a, a, a]).unwrap();
    bench.read([b, a, a, a, a, a, a, a]).unwrap_err();
    let c = bench.submit(0b0000_0110, false);
    bench.read([b, b, c, a, a, a, a, a]).unwrap_err();
    bench.read([b, c, c, a, a, a, a, a]).unwrap();
}

#[test]
fn a_read_that_overlaps_an_ack_may_show_either() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let from = bench.tick();
    let b = bench.write(0xFF);
    bench.read_since(from, [a; 8]).unwrap();
    bench.read_since(from, [b; 8]).unwrap();
}

#[test]
fn a_later_write_proves_an_earlier_one() {
    // The read saw `c`, which began after `a` was acknowledged; so `a` cannot be missing.
    let mut bench = Bench::new();
    let from = bench.tick();
    let a = bench.write(0b0000_1111);
    let c = bench.submit(0b1111_0000, false);
    bench.read_since(from, [0, 0, 0, 0, c, c, c, c]).unwrap_err();
    bench.read_since(from, [a, a, a, a, c, c, c, c]).unwrap();
}

#[test]
fn zeros_have_many_fathers() {
    let mut bench = Bench::new();
    bench.write(0xFF);
    let zero = bench.submit(0xFF, true);
    bench.ack(zero);
    bench.read([0; 8]).unwrap();
    let b = bench.write(0b0000_0001);
    let part = bench.submit(0b0000_0011, true);
    bench.read([b, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    bench.read([0; 8]).unwrap();
    bench.ack(part);
    bench.read([b, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
}

#[test]
fn the_death_of_the_daemon_loses_nothing_acknowledged() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let b = bench.submit(0xFF, false);
    bench.crash(false);
    bench.read([0; 8]).unwrap_err();
    bench.read([a; 8]).unwrap();
    // It was not there after recovery, so it may not come back.
    bench.crash(false);
    assert!(bench.read([b; 8]).is_err() || bench.block.len() == 1);
    bench.read([a; 8]).unwrap();
}

#[test]
fn a_cut_write_that_was_not_there_may_not_come_back() {
    let mut bench = Bench::new();
    let b = bench.submit(0xFF, false);
    bench.crash(false);
    bench.read([0; 8]).unwrap();
    bench.crash(true);
    bench.read([b; 8]).unwrap_err();
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_mixes_nothing() {
    for outcome in 0..3 {
        let mut bench = Bench::new();
        let a = bench.write(0xFF);
        bench.ops.made_durable(a);
        let b = bench.write(0xFF);
        let c = bench.write(0b0000_1111);
        bench.crash(true);
        bench.read([0; 8]).unwrap_err();
        bench.read([b, b, a, a, a, a, a, a]).unwrap_err();
        bench.read([c, c, a, a, a, a, a, a]).unwrap_err();
        let lawful = [[a; 8], [b; 8], [c, c, c, c, a, a, a, a]];
        bench.read(lawful[outcome]).unwrap();
        bench.read(lawful[(outcome + 1) % 3]).unwrap_err();
        // What one read has shown is on the medium: the next cut cannot take it away.
        bench.crash(true);
        bench.read(lawful[outcome]).unwrap();
        bench.read(lawful[(outcome + 2) % 3]).unwrap_err();
    }
}

#[test]
fn a_flushed_write_is_not_undone_by_an_older_one() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let b = bench.write(0xFF);
    bench.ops.made_durable(b);
    bench.crash(true);
    bench.read([a; 8]).unwrap_err();
    bench.read([b; 8]).unwrap();
}

#[test]
fn reads_before_a_power_cut_prove_nothing_after_it() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    bench.read([a; 8]).unwrap();
    bench.crash(true);
    bench.read([0; 8]).unwrap();
    bench.read([a; 8]).unwrap_err();
}

#[test]
fn a_failed_write_may_be_there_and_may_change_at_a_restart() {
    let mut bench = Bench::new();
    let a = bench.submit(0xFF, false);
    let at = bench.tick();
    bench.ops.failed(a, at);
    bench.read([a; 8]).unwrap();
    bench.read([0; 8]).unwrap_err();
    bench.crash(false);
    bench.read([0; 8]).unwrap();
    bench.read([a; 8]).unwrap_err();
}

#[test]
fn pruning_changes_no_verdict() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let b = bench.write(0xFF);
    let c = bench.write(0b0000_0001);
    bench.ops.made_durable(b);
    bench.block.prune(&bench.ops, NEVER);
    assert_eq!(bench.block.len(), 2);
    bench.read([a; 8]).unwrap_err();
    bench.read([c, b, b, b, b, b, b, b]).unwrap();
}

#[test]
fn pruning_spares_what_a_read_in_flight_may_show() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let from = bench.tick();
    let b = bench.write(0xFF);
    bench.ops.made_durable(b);
    bench.block.prune(&bench.ops, from);
    bench.read_since(from, [a; 8]).unwrap();
}

#[test]
fn a_clone_holds_what_its_snapshot_must_hold() {
    let mut bench = Bench::new();
    let a = bench.write(0xFF);
    let from = bench.tick();
    let b = bench.write(0xFF);
    let to = bench.tick();
    bench.block = bench.block.inherited(&bench.ops, Window { from, to });
    let c = bench.submit(0b0000_0001, false);
    bench.read([0; 8]).unwrap_err();
    let keep = bench.block.clone();
    bench.read([a; 8]).unwrap();
    bench.block = keep;
    bench.read([c, b, b, b, b, b, b, b]).unwrap();
    bench.read([c, a, a, a, a, a, a, a]).unwrap_err();
}

#[test]
fn many_entries_are_slimmed_not_refused() {
    let mut bench = Bench::new();
    let mut last = 0;
    for _ in 0..300 {
        last = bench.write(0xFF);
    }
    bench.read([last - 1; 8]).unwrap_err();
    bench.read([last; 8]).unwrap();
    // What was overwritten only while the read went on may still show.
    let part = bench.submit(0b0000_1111, true);
    let from = bench.tick();
    bench.ack(part);
    bench.write(0xFF);
    let [l, z] = [last, 0];
    bench.read_since(from, [z, z, z, z, l, l, l, l]).unwrap();
}
