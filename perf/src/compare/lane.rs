//! A target with its client: one of those that take turns.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::Options;
use super::figure::Figure;
use super::fresh::Host;
use super::rows::{Case, Client, FILL, Peer};
use super::spdk::{BdevPerf, Build, nvme_perf};
use super::target::{SUBSYSTEM, Target, pause, resume};
use crate::clock;
use crate::load::{self, Load, Pattern, Sample};
use crate::random::Random;
use crate::store::{Store, Took, Verb};
use crate::vhost::qsd::{Format, Qsd};
use crate::vhost::rig::{Peer as Served, Rig};

/// A run in which more of the time than this was spent waiting for a core is repeated.
const DISTURBED: f64 = 0.05;
/// Runs at most, where one would do.
const TRIES: usize = 3;

/// How requests get there. The client goes before its target.
enum Way {
    Bdev(BdevPerf, Target),
    Nvme(u16, Target),
    Host(Box<Host>, Target),
    Ring(Box<Rig>, Vec<u32>),
}

/// One of those compared.
pub struct Lane {
    /// Who.
    pub peer: Peer,
    way: Way,
    spdk: Option<Build>,
    /// Processes that stand still between turns.
    pids: Vec<u32>,
    client_core: usize,
    size: u64,
    rounds: u64,
}

/// laminad's disk, as the other client wants it.
struct OneDisk(Target, PathBuf);

impl Served for OneDisk {
    fn name(&self) -> String {
        "laminad".into()
    }

    fn create(&mut self, _number: usize, _bytes: u64) -> Result<PathBuf> {
        Ok(self.1.clone())
    }

    fn delete(&mut self, _number: usize) -> Result<()> {
        Ok(())
    }

    fn delete_snapshots(&mut self, _number: usize) -> Result<()> {
        Ok(())
    }

    fn pid(&self, _number: usize) -> u32 {
        self.0.pid()
    }

    fn settle(&mut self) -> Result<()> {
        self.0.settle()
    }

    fn has_snapshots(&self) -> bool {
        false
    }

    fn ask_snapshot(&mut self, _number: usize) -> Result<()> {
        anyhow::bail!("no snapshots are asked for here")
    }

    fn snapshot_answer(&mut self) -> Result<Option<Took>> {
        Ok(None)
    }
}

impl Lane {
    /// Starts a target and its client, fills the disk, and lets both stand still.
    ///
    /// # Errors
    /// Something does not start, or a request failed.
    pub fn open(
        peer: Peer,
        client: Client,
        options: &Options,
        spdk: Option<&Build>,
    ) -> Result<Lane> {
        let mut target = match peer.is_qemu() {
            true => None,
            false => Some(Target::start(peer, options, spdk)?),
        };
        let core = options.client_core;
        let way = match (client, target.take()) {
            (Client::BdevPerf, Some(mut target)) => {
                let socket = target.export()?;
                let build = spdk.context("no build of SPDK")?;
                Way::Bdev(BdevPerf::start(build, core, &socket)?, target)
            }
            (Client::NvmePerf, Some(mut target)) => Way::Nvme(target.export_nvme()?, target),
            (Client::Initiator, Some(mut target)) => {
                let port = target.export_nvme()?;
                let host = clock::on_core(core, || Host::connect(port))??;
                Way::Host(Box::new(host), target)
            }
            (Client::VirtioDriver, target) => ring(peer, target, options)?,
            (_, None) => anyhow::bail!("{} has no such client", peer.name()),
        };
        let pids = match &way {
            Way::Bdev(client, target) => vec![target.pid(), client.pid()],
            Way::Nvme(_, target) | Way::Host(_, target) => vec![target.pid()],
            Way::Ring(rig, _) => vec![rig.pid()],
        };
        let (spdk, size) = (spdk.cloned(), options.size);
        let mut lane = Lane { peer, way, spdk, pids, client_core: core, size, rounds: 0 };
        lane.prepare()?;
        lane.pause()?;
        Ok(lane)
    }

    /// Writes every block, then takes the snapshots.
    fn prepare(&mut self) -> Result<()> {
        if let Way::Ring(rig, order) = &mut self.way {
            clock::on_core(self.client_core, || {
                load::fill(&mut **rig, order, 4096)?;
                rig.settle()
            })??;
            return Ok(());
        }
        if let Way::Host(host, target) = &mut self.way {
            clock::on_core(self.client_core, || host.fill(&FILL, self.size))??;
            return target.settle();
        }
        let filled = self.drive(&FILL, 1)?;
        // A second of it must have been enough for the whole disk.
        let bytes = filled.iops * f64::from(FILL.bytes);
        ensure!(bytes > self.size as f64, "{} is not full after a second", self.peer.name());
        let (Way::Bdev(_, target) | Way::Nvme(_, target)) = &mut self.way else { return Ok(()) };
        (0..self.peer.snapshots()).try_for_each(|number| target.snapshot(number).map(|_| ()))?;
        target.settle()
    }

    /// One run.
    ///
    /// # Errors
    /// A request failed.
    pub fn run(&mut self, case: &Case, seconds: u32) -> Result<Figure> {
        self.pids.iter().try_for_each(|&pid| resume(pid))?;
        let mut figure = self.drive(case, seconds);
        for _ in 1..TRIES {
            match &figure {
                Ok(first) if first.waited > DISTURBED => {}
                _ => break,
            }
            // Somebody else was at work on these cores; the quieter run counts.
            let again = self.drive(case, seconds);
            let quieter = match (&figure, &again) {
                (Ok(first), Ok(second)) => second.waited < first.waited,
                _ => true,
            };
            if quieter {
                figure = again;
            }
        }
        self.pause()?;
        figure.with_context(|| format!("{}, {}", self.peer.name(), case.name()))
    }

    fn drive(&mut self, case: &Case, seconds: u32) -> Result<Figure> {
        self.rounds += 1;
        let core = self.client_core;
        match &mut self.way {
            Way::Bdev(client, target) => client.run(target, case, seconds),
            Way::Nvme(port, target) => {
                let build = self.spdk.as_ref().context("no build of SPDK")?;
                nvme_perf(build, core, target, (*port, SUBSYSTEM), case, seconds)
            }
            Way::Host(host, target) => {
                let size = self.size;
                clock::on_core(core, || host.run(target, case, size))?
            }
            Way::Ring(rig, _) => {
                let units = self.size / u64::from(case.bytes);
                let pattern = match case.is_random() {
                    true => Pattern::Random(Random::new(self.rounds), units),
                    false => Pattern::Sequential { next: 0, units },
                };
                let mut load = Load {
                    verb: if case.write { Verb::Write } else { Verb::Read },
                    depth: case.depth as usize,
                    len: case.bytes,
                    pattern,
                    time_ns: Some(u64::from(seconds) * 1_000_000_000),
                };
                let target = rig.pid();
                let run = || -> Result<(Sample, u64)> {
                    let waited = || -> Result<u64> {
                        Ok(clock::thread_wait_ns()? + clock::process_wait_ns(target)?)
                    };
                    let before = waited()?;
                    let sample = load::run(&mut **rig, &mut load, None)?;
                    Ok((sample, waited()?.saturating_sub(before)))
                };
                let (sample, waited) = clock::on_core(core, run)??;
                let wall = sample.wall_ns as f64;
                let iops = sample.ios as f64 * 1e9 / wall;
                let cpu_ns = sample.cpu_ns as f64 / sample.ios as f64;
                Ok(Figure { iops, cpu_ns, waited: waited as f64 / wall })
            }
        }
    }

    fn pause(&self) -> Result<()> {
        self.pids.iter().try_for_each(|&pid| pause(pid))
    }
}

/// A disk over the crate `virtio-driver`.
fn ring(peer: Peer, target: Option<Target>, options: &Options) -> Result<Way> {
    let served: Box<dyn Served> = match target {
        Some(mut target) => {
            let socket = target.export()?;
            Box::new(OneDisk(target, socket))
        }
        None => {
            let format = match peer {
                Peer::QemuRaw | Peer::QemuRawFile => Format::Raw,
                _ => Format::Qcow2,
            };
            let in_ram = matches!(peer, Peer::QemuRaw | Peer::QemuQcow2);
            let folder = if in_ram { PathBuf::from("/dev/shm") } else { options.folder() };
            let cores = (options.target_core, options.client_core);
            Box::new(Qsd::new(None, format, cores, &folder, !in_ram)?)
        }
    };
    let order = Random::new(7).permutation((options.size / 4096) as u32);
    let rig = clock::on_core(options.client_core, || -> Result<Rig> {
        let mut rig = Rig::new(served)?;
        rig.create(options.size)?;
        Ok(rig)
    })??;
    Ok(Way::Ring(Box::new(rig), order))
}
