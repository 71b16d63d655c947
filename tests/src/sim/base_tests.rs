//! The simulated device keeps its own promises, and breaks the ones it may break.

use super::super::memory::Buffer;
use super::super::power::Crash;
use super::*;

const HARD: BaseTraits = BaseTraits { volatile_cache: true, atomic_4k: true, atomic_rw: true };

/// A device and the buffers of its operations.
struct Bench {
    base: Base,
    buffers: Vec<Buffer>,
}

impl Bench {
    fn new(traits: BaseTraits, seed: u64) -> Bench {
        let mut base = Base::new(traits, None, seed);
        let latency = Latency { min_ns: 10, spread_ns: 50, ..Latency::INSTANT };
        base.behave(latency, Faults::default(), Lie::None);
        Bench { base, buffers: Vec::new() }
    }

    fn start(&mut self, op: BaseOp, block: u64, fill: u8) -> &Buffer {
        let len = if op == BaseOp::Flush { 0 } else { PAGE };
        let buffer = Buffer::new(&[len], 0);
        buffer.store(&vec![fill; len]);
        let first = buffer.segs()[0];
        let io = BaseIo::on(Tag(1), op, block << 12, first);
        self.base.start(&io, io.offset, buffer.segs(), 0);
        self.buffers.push(buffer);
        self.buffers.last().unwrap()
    }

    fn finish(&mut self) {
        while self.base.in_flight() > 0 {
            assert!(self.base.poll(1 << 40).is_some());
        }
    }

    fn page(&self, block: u64) -> Box<Page> {
        self.base.pages.copy(block)
    }
}

#[test]
fn a_flush_covers_what_completed_before_it_began() {
    let mut survived = [false; 2];
    for seed in 0..200 {
        let mut bench = Bench::new(HARD, seed);
        bench.start(BaseOp::Write, 1, 1);
        bench.finish();
        bench.start(BaseOp::Flush, 0, 0);
        bench.start(BaseOp::Write, 2, 2);
        bench.finish();
        assert!(bench.base.crash(Crash::Power));
        assert_eq!(bench.page(1)[..], [1; PAGE], "seed {seed}");
        let second = bench.page(2)[0];
        assert_eq!(bench.page(2)[..], [second; PAGE], "4 KiB are atomic, seed {seed}");
        survived[usize::from(second == 2)] = true;
    }
    assert_eq!(survived, [true, true], "an unflushed write may go either way");
}

#[test]
fn a_kill_loses_nothing_completed_but_a_later_cut_may() {
    let mut lost = false;
    for seed in 0..200 {
        let mut bench = Bench::new(HARD, seed);
        bench.start(BaseOp::Write, 1, 1);
        bench.finish();
        assert!(!bench.base.crash(Crash::Kill));
        assert_eq!(bench.page(1)[..], [1; PAGE]);
        bench.base.crash(Crash::Power);
        lost |= bench.page(1)[0] == 0;
    }
    assert!(lost, "the write was still in the device's cache");
}

#[test]
fn writes_tear_only_where_they_may() {
    for (atomic_4k, expect) in [(true, false), (false, true)] {
        let mut torn = false;
        for seed in 0..300 {
            let mut bench = Bench::new(BaseTraits { atomic_4k, ..HARD }, seed);
            bench.start(BaseOp::Write, 1, 1);
            if seed % 2 == 0 {
                bench.finish();
            }
            bench.base.crash(Crash::Power);
            let page = bench.page(1);
            torn |= page.iter().any(|byte| *byte != page[0]);
        }
        assert_eq!(torn, expect, "atomic_4k {atomic_4k}");
    }
}

#[test]
fn a_read_mixes_with_a_write_only_without_atomic_rw() {
    for (atomic_rw, expect) in [(true, false), (false, true)] {
        let mut mixed = false;
        for seed in 0..500 {
            let mut bench = Bench::new(BaseTraits { atomic_rw, ..HARD }, seed);
            bench.start(BaseOp::Write, 1, 1);
            bench.start(BaseOp::Read, 1, 9);
            bench.finish();
            let mut seen = Vec::new();
            bench.buffers[1].load(&mut seen);
            assert!(!seen.contains(&9), "a read fills its buffer");
            mixed |= seen.iter().any(|byte| *byte != seen[0]);
        }
        assert_eq!(mixed, expect, "atomic_rw {atomic_rw}");
    }
}

#[test]
fn without_a_cache_completed_is_safe() {
    for seed in 0..100 {
        let mut bench = Bench::new(BaseTraits { volatile_cache: false, ..HARD }, seed);
        bench.start(BaseOp::Write, 3, 7);
        bench.finish();
        bench.base.crash(Crash::Power);
        assert_eq!(bench.page(3)[..], [7; PAGE]);
    }
}

#[test]
fn a_failed_flush_drops_data_only_at_the_reopening() {
    let mut lost = false;
    for seed in 0..100 {
        let mut bench = Bench::new(HARD, seed);
        bench.start(BaseOp::Write, 1, 1);
        bench.finish();
        bench.base.faults.flush = 10_000;
        bench.start(BaseOp::Flush, 0, 0);
        assert!(bench.base.poll(1 << 40).is_some_and(|(_, result)| result.is_err()));
        bench.base.faults.flush = 0;
        bench.start(BaseOp::Flush, 0, 0);
        bench.finish();
        assert_eq!(bench.page(1)[0], 1, "it still shows");
        assert!(bench.base.crash(Crash::Kill), "this is as bad as a power cut");
        lost |= bench.page(1)[0] == 0;
    }
    assert!(lost, "the second flush does not bring it back");
}
