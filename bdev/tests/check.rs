//! `check` on healthy stores, caught at any moment of their life: it finds nothing; and on a store
//! with something planted in it: it finds that.

mod simple;

use lamina_bdev::check::{CheckOptions, ReadBlocks, Report, check};
use lamina_bdev::*;
use simple::{FILE, RAM, Rig};

/// A store in memory.
struct Image<'a>(&'a [u8]);

impl ReadBlocks for Image<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        let at = block as usize * BLOCK_SIZE;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

fn checked(disk: &[u8]) -> Report {
    let options = CheckOptions::default();
    check(&mut Image(disk), disk.len() as u64, options, &mut |_| true).expect("a store")
}

fn assert_clean(disk: &[u8], when: &str) -> Report {
    let report = checked(disk);
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.clean(), "{when}: {texts:#?}");
    report
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }
}

/// A life of disks, snapshots and clones; `look` is shown the store after every step.
struct Life {
    rig: Rig,
    random: Random,
    disks: Vec<(DiskId, Handle)>,
    snaps: Vec<SnapRef>,
    made: u64,
    /// Is killed now and then.
    mortal: bool,
}

impl Life {
    fn new(seed: u64) -> Life {
        let traits = if seed.is_multiple_of(2) { RAM } else { FILE };
        let rig = Rig::new(48 << 20, traits);
        Life {
            rig,
            random: Random(seed),
            disks: Vec::new(),
            snaps: Vec::new(),
            made: 0,
            mortal: true,
        }
    }

    fn create(&mut self, from: Option<SnapRef>) {
        self.made += 1;
        let size = if from.is_some() { 0 } else { 3 << 30 };
        let disk = self.rig.create(&format!("d{}", self.made), size, from);
        let handle = self.rig.attach(Target::Disk(disk));
        self.disks.push((disk, handle));
    }

    fn step(&mut self) {
        let what = self.random.below(100);
        if self.disks.is_empty() {
            return self.create(None);
        }
        let at = self.random.below(self.disks.len() as u64) as usize;
        let (disk, handle) = self.disks[at];
        let offset = self.random.below(600) * 4096 + self.random.below(3) * (1 << 30);
        match what {
            0..60 => {
                let len = (1 + self.random.below(64)) as usize * 512;
                let byte = what as u8;
                let status = self.rig.request(handle, Op::Write, offset, &mut vec![byte; len]);
                assert!(matches!(status, Status::Ok | Status::NoSpace), "{status:?}");
            }
            60..70 => {
                let len = (1 + self.random.below(300)) * 4096;
                let status = self.rig.ranged(handle, Op::Discard, offset, len, &mut []);
                assert_eq!(status, Status::Ok);
            }
            70..80 => {
                let snap = self.rig.snapshot(disk, "");
                self.snaps.push(snap);
            }
            80..86 if !self.snaps.is_empty() => {
                let at = self.random.below(self.snaps.len() as u64) as usize;
                let snap = self.snaps.swap_remove(at);
                let _ = self.rig.command(Command::DeleteSnapshot(snap));
            }
            86..90 if !self.snaps.is_empty() && self.disks.len() < 12 => {
                let at = self.random.below(self.snaps.len() as u64) as usize;
                let from = self.snaps[at];
                self.create(Some(from));
            }
            90..92 => self.create(None),
            92..94 => {
                self.disks.swap_remove(at);
                self.snaps.retain(|s| s.disk != disk);
                self.rig.command(Command::Detach(handle)).unwrap();
                self.rig.command(Command::DeleteDisk(disk)).unwrap();
            }
            94..96 => {
                let size = (1 + self.random.below(4)) << 30;
                let _ = self.rig.command(Command::Resize(disk, size));
                let _ = self.rig.command(Command::Resize(disk, 3 << 30));
            }
            96..98 => {
                self.rig.command(Command::Checkpoint).unwrap();
            }
            98 if self.mortal => self.reopen(),
            _ => (0..self.random.below(20)).for_each(|_| self.rig.turn()),
        }
    }

    fn reopen(&mut self) {
        let image = self.rig.disk.clone();
        let cookie = self.rig.cookie;
        self.rig = Rig::open(image, self.rig.label, self.rig.traits);
        self.rig.cookie = cookie;
        for (disk, handle) in &mut self.disks {
            *handle = self.rig.attach(Target::Disk(*disk));
        }
    }
}

/// A store that lives on between any two reads of its checker.
struct Served<'a> {
    life: &'a mut Life,
    steps: u64,
}

impl ReadBlocks for Served<'_> {
    fn read(&mut self, block: u64, buf: &mut [u8]) -> Result<(), Error> {
        if self.life.random.below(3) == 0 {
            self.life.step();
            self.steps += 1;
        }
        Image(&self.life.rig.disk).read(block, buf)
    }
}

#[test]
fn a_store_that_is_served_meanwhile_is_clean_and_gets_its_space_back() {
    let seeds = std::env::var("CHECK_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let (mut whole, mut steps) = (0, 0);
    for seed in 0..seeds {
        let mut life = Life::new(seed);
        life.mortal = false;
        (0..100).for_each(|_| life.step());
        for round in 0..10 {
            life.rig.command(Command::Hold).unwrap();
            assert!(life.rig.command(Command::Hold).is_err(), "held twice");
            let bytes = life.rig.disk.len() as u64;
            let mut served = Served { life: &mut life, steps: 0 };
            let options = CheckOptions { online: true };
            let found = check(&mut served, bytes, options, &mut |_| true);
            steps += served.steps;
            if life.rig.command(Command::Unhold).is_err() {
                // Short of space: what was found means nothing.
                continue;
            }
            match found {
                Ok(report) => {
                    let texts: Vec<String> =
                        report.findings.iter().map(ToString::to_string).collect();
                    assert!(report.clean(), "seed {seed}, round {round}: {texts:#?}");
                    whole += 1;
                }
                Err(error) => assert_eq!(error.kind, ErrorKind::Busy, "{error}"),
            }
        }
        let info = life.rig.settle();
        let report = assert_clean(&life.rig.disk, &format!("seed {seed}, at rest"));
        assert_eq!(report.counts.free_blocks, info.free_blocks + info.reserved_blocks);
    }
    assert!(whole >= seeds && steps > seeds * 10, "{whole} whole checks, {steps} steps: too tame");
}

#[test]
fn a_healthy_store_is_clean_at_every_moment() {
    let seeds = std::env::var("CHECK_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let mut shared = 0;
    let mut records = 0;
    for seed in 0..seeds {
        let mut life = Life::new(seed);
        for step in 0..150 {
            life.step();
            let report = assert_clean(&life.rig.disk, &format!("seed {seed}, step {step}"));
            shared += report.counts.shared_blocks;
            records += report.counts.journal_records;
        }
        let info = life.rig.settle();
        let report = assert_clean(&life.rig.disk, &format!("seed {seed}, at rest"));
        assert_eq!(report.counts.leaked_blocks, 0);
        assert_eq!(report.counts.free_blocks, info.free_blocks + info.reserved_blocks);
    }
    assert!(shared > 1000 && records > 1000, "{shared} shared, {records} journalled: too tame");
}
