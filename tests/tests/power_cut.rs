//! Power cuts under the real daemon: a disk with a volatile cache loses, tears and reorders what
//! was not flushed, and the daemon dies at that instant. What comes after it must keep the
//! contract.
//!
//! ```text
//!  client ─ vhost-user ─▶ laminad ─ FUSE ─▶ Disk        RPC: snapshots, deletions meanwhile
//!                            ✗ ─────────── ✗ one instant
//!  restart (sometimes cut again on its way) ─▶ read the disk and every snapshot ─▶ next round
//! ```
//!
//! `LAMINA_POWER_CUTS` sets the number of cuts, `LAMINA_SEED` the seed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::disk::{Faults, Rig, Running, Way, ready};
use lamina_tests::load::{After, Mix, Rng, Snapshots};
use lamina_tests::number;

/// Snapshots kept at most.
const SNAPSHOTS_MAX: usize = 3;
/// Cuts after which everything is made anew.
const CUTS_OF_A_STORE: u64 = 12;

/// What happened in all rounds.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    cuts_in_recovery: u64,
    cuts_that_lost_something: u64,
    flushes: u64,
    changes: u64,
    snapshots: u64,
    snapshots_cut: u64,
}

/// One store through several cuts.
struct Run {
    rig: Rig,
    snapshots: Snapshots,
    rng: Rng,
    tally: Tally,
}

impl Run {
    fn new(seed: u64, way: Way, faults: Faults, tally: Tally) -> Run {
        let rig = Rig::new(way, faults);
        let snapshots = Snapshots::new("vm", rig.model.clone());
        Run { rig, snapshots, rng: Rng::new(seed), tally }
    }

    /// Lets the client write for a while and takes the power away.
    fn write_and_cut(&mut self) {
        let device = self.rig.connect(self.rng.below(2) == 0);
        // The rarer flushes are, the more there is to lose.
        let flushes = [1, 5, 40][self.rng.index(3)];
        let mix = Mix { flushes, ..Mix::default() };
        let client = self.rig.client(&device, self.rng.next()).mix(mix);
        let running = Running::new(client);
        let end = Instant::now() + Duration::from_millis(self.rng.between(50, 900));
        while self.rng.below(3) > 0 && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now()).as_millis() as u64;
            sleep(Duration::from_millis(self.rng.below(left + 1)));
            self.change_snapshots();
        }
        sleep(end.saturating_duration_since(Instant::now()));
        // Half of the time a snapshot is being taken at that instant.
        let begun = (self.rng.below(2) == 0).then(|| self.snapshots.begin(&self.rig.daemon));
        sleep(Duration::from_micros(self.rng.below(4000)));
        self.cut();
        if let Some(begun) = begun {
            let sure = self.snapshots.end(begun);
            self.tally.snapshots_cut += u64::from(!sure);
        }
        let client = running.stop();
        self.rig.tag = client.tag();
        self.tally.flushes += client.counts.flushes;
        self.tally.changes += client.counts.changes;
    }

    fn cut(&mut self) {
        let cut = self.rig.cut(&mut self.rng);
        self.tally.cuts += 1;
        self.tally.cuts_that_lost_something += u64::from(cut.newest < cut.sectors);
    }

    /// Takes a snapshot, or deletes one.
    fn change_snapshots(&mut self) {
        if self.snapshots.len() < SNAPSHOTS_MAX {
            let begun = self.snapshots.begin(&self.rig.daemon);
            assert!(self.snapshots.end(begun), "a snapshot can be taken");
            self.tally.snapshots += 1;
        } else {
            self.snapshots.delete_one(&self.rig.daemon, &mut self.rng);
        }
    }

    /// Starts the daemon again; sometimes the power goes before it has recovered.
    fn restart(&mut self) {
        while self.rng.below(4) == 0 {
            self.rig.daemon.spawn();
            sleep(Duration::from_millis(self.rng.below(80)));
            self.cut();
            self.tally.cuts_in_recovery += 1;
        }
        self.rig.daemon.start();
    }

    fn check(&mut self) -> Result<(), String> {
        self.rig.settle()?;
        self.snapshots.check(&self.rig.daemon, After::PowerCut)
    }
}

#[test]
fn the_contract_holds_after_every_power_cut() {
    if !ready("the_contract_holds_after_every_power_cut") {
        return;
    }
    let (cuts, seed) = (number("LAMINA_POWER_CUTS", 50), number("LAMINA_SEED", 1));
    let (mut tally, begun) = (Tally::default(), Instant::now());
    let mut store = 0;
    while tally.cuts < cuts {
        store += 1;
        let last = (tally.cuts + CUTS_OF_A_STORE).min(cuts);
        let way = if store % 2 == 0 { Way::Block } else { Way::File };
        let mut run = Run::new(seed * 1000 + store, way, Faults::default(), tally);
        while run.tally.cuts < last {
            run.write_and_cut();
            run.restart();
            let checked = run.check();
            checked.unwrap_or_else(|why| {
                panic!("seed {seed}, store {store} ({way:?}), cut {}: {why}", run.tally.cuts)
            });
        }
        tally = run.tally;
    }
    println!("power cuts: {tally:?} in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(tally.flushes > cuts && tally.cuts_that_lost_something > 0 && tally.snapshots > 0);
}

#[test]
fn a_disk_that_lies_about_fsync_is_found_out() {
    if !ready("a_disk_that_lies_about_fsync_is_found_out") {
        return;
    }
    // The test above must be able to fail.
    let lying = Faults { lying: true, ..Faults::default() };
    let mut run = Run::new(7, Way::File, lying, Tally::default());
    let found = (0..10).any(|_| {
        run.write_and_cut();
        run.rig.daemon.start();
        // An error either way: something is lost, or the store cannot be opened.
        run.check().is_err()
    });
    assert!(found, "ten power cuts on a disk that loses flushed writes went unnoticed");
}
