//! What a seed means: the draw of base device, store, features, faults and their rates.
//!
//! Each seed turns a random part of all this on (swarm testing): a run that does everything at
//! once hides the combinations that matter.

use lamina_bdev::{BaseOp, BaseTraits, Config};

use super::rng::Rng;

/// A way in which the base device betrays its traits; for proving that the checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lie {
    /// Honest.
    #[default]
    None,
    /// Flushes do nothing.
    Flush,
    /// 4 KiB writes tear although `atomic_4k` was promised.
    Tear,
    /// The death of the daemon loses completed writes.
    Forget,
    /// A flush that fails is made known to its shard alone.
    Alone,
}

/// Errors of the base device, in 10,000 operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Reads that fail.
    pub read: u32,
    /// Writes that fail.
    pub write: u32,
    /// Flushes that fail.
    pub flush: u32,
    /// Some failing writes say that the base is out of space.
    pub no_space: bool,
    /// Writes in 10,000 from which on, for a while, the base has no space for blocks that were
    /// never written: a sparse file on a full file system.
    pub full: u32,
    /// Operations that take up to 30 s.
    pub stall: u32,
    /// Operations that do not end before the faults stop.
    pub stuck: u32,
    /// The device goes away after about so many operations; 0 = it stays.
    pub gone_every: u64,
    /// Reads of metadata that return something else.
    pub harm: Harm,
}

/// How reads of metadata blocks go wrong, in 10,000 of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Harm {
    /// Bits flip.
    pub rot: u32,
    /// What was there before the last write comes back.
    pub stale: u32,
    /// Another block comes back.
    pub astray_read: u32,
    /// Writes that land in another metadata block, whose own content they hide.
    pub astray_write: u32,
    /// Damage lasts until the block is written again, permille.
    pub lasting_permille: u32,
}

impl Harm {
    /// True if any may happen.
    pub fn any(&self) -> bool {
        self.rot + self.stale + self.astray_read + self.astray_write > 0
    }
}

/// How long base operations take.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// At least, ns.
    pub min_ns: u64,
    /// Mean on top of that, ns.
    pub spread_ns: u64,
    /// Operations in 10,000 that take the tail.
    pub tail_per_10k: u32,
    /// Mean of the tail, ns.
    pub tail_ns: u64,
    /// Flushes take so many times longer.
    pub flush_factor: u64,
    /// Only writes from the memory of guests take the tail.
    pub tail_of_data: bool,
}

impl Latency {
    /// Done at once, like RAM.
    pub const INSTANT: Latency = Latency {
        min_ns: 0,
        spread_ns: 0,
        tail_per_10k: 0,
        tail_ns: 0,
        flush_factor: 1,
        tail_of_data: false,
    };

    /// Nanoseconds that one operation takes.
    pub fn draw(&self, op: BaseOp, is_data: bool, rng: &mut Rng) -> u64 {
        if self.tail_of_data && !is_data {
            return self.min_ns + rng.around(self.spread_ns);
        }
        if rng.below(10_000) < u64::from(self.tail_per_10k) {
            return rng.around(self.tail_ns);
        }
        if self.min_ns + self.spread_ns == 0 {
            return 0;
        }
        let took = self.min_ns + rng.around(self.spread_ns.max(1));
        if op == BaseOp::Flush { took * self.flush_factor } else { took }
    }
}

/// In proportion: kinds of guest requests.
#[derive(Clone, Copy, Debug)]
pub struct RequestMix {
    /// read, write, flush, discard, write-zeroes, malformed.
    pub weights: [u32; 6],
    /// 512-byte granular, one block, some blocks, long, whole-disk (discard and zeroes only).
    pub lengths: [u32; 5],
    /// Writes with FUA, permille.
    pub fua_permille: u32,
    /// Requests inside the hot windows, permille.
    pub hot_permille: u32,
}

/// Everything a seed decides before the run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Shards of the store, and the one that runs.
    pub shards: u32,
    /// The shard that runs.
    pub shard: u32,
    /// The others run too.
    pub all_shards: bool,
    /// Bytes of journal, 0 = by size.
    pub journal_bytes: u64,
    /// Promises of the base device.
    pub traits: BaseTraits,
    /// The device held something else before.
    pub rubbish: bool,
    /// Its speed.
    pub latency: Latency,
    /// Its errors.
    pub faults: Faults,
    /// Engine sizes.
    pub config: Config,
    /// Disks made at the start.
    pub disks: usize,
    /// Requests in flight at most.
    pub depth: usize,
    /// Requests submitted in one turn at most.
    pub burst: u64,
    /// Mean pause between bursts, ns.
    pub pause_ns: u64,
    /// Kinds of requests.
    pub mix: RequestMix,
    /// Blocks in a hot window.
    pub window_blocks: u64,
    /// Control commands, permille of operations.
    pub command_permille: u32,
    /// Weights of the kinds of commands, in the order of `commands::KINDS`.
    pub command_weights: [u32; 14],
    /// Commands in flight at once.
    pub commands_max: usize,
    /// Mean base events between crashes; 0 = none.
    pub crash_every: u64,
    /// Power cuts among crashes, permille.
    pub power_permille: u32,
    /// Kills while a superblock is being written, permille of such writes.
    pub aimed_permille: u32,
    /// Crashes during recovery, permille of recoveries.
    pub nested_permille: u32,
    /// Segments may begin and end anywhere, not only at sectors.
    pub odd_segments: bool,
    /// One more crash after everything has been drained.
    pub last_crash: bool,
    /// Idle nodes are evicted as if the cache were full: how often, permille of turns, and how many
    /// at most.
    pub squeeze: (u32, usize),
    /// Compact copies go with them.
    pub forgets: bool,
    /// Some requests go to the base past the engine's outbox.
    pub straight: bool,
    /// The clock leaps forward, permille of turns.
    pub leap_permille: u32,
    /// The host ticks without need now and then.
    pub idle_ticks: bool,
    /// Operations (requests and commands).
    pub ops: u64,
}

impl Plan {
    /// The plan of a seed, with `ops` operations. What came later to the simulator is drawn from
    /// `late`, so that seeds that do not use it are still the runs they were.
    pub fn draw(rng: &mut Rng, late: &mut Rng, ops: u64) -> Plan {
        let traits = BaseTraits {
            volatile_cache: rng.chance(750),
            atomic_4k: rng.chance(700),
            atomic_rw: rng.chance(500),
        };
        let small = rng.chance(150);
        let shards = rng.pick(&[1, 1, 1, 2, 3]);
        let mebibytes =
            if small { rng.pick(&[17, 20, 32]) } else { rng.pick(&[48, 64, 128, 256, 512]) };
        // More than `depth` are never in use: larger tables would only cost time at each opening.
        let slots = rng.pick(&[4, 16, 64, 72, 128]);
        let mut plan = Plan {
            device_bytes: (mebibytes << 20) * u64::from(shards)
                + rng.pick(&[0, 0, 512, 4096, 1_234_944]),
            shards,
            shard: rng.below(u64::from(shards)) as u32,
            journal_bytes: rng.pick(&[0, 0, 1 << 20, 4 << 20]),
            traits,
            rubbish: rng.chance(400),
            latency: draw_latency(rng),
            faults: draw_late_faults(late, draw_faults(rng)),
            config: Config { slots, cache_bytes: rng.pick(&[1, 1, 2, 4]) << 20 },
            disks: rng.between(1, 6) as usize,
            depth: rng.pick(&[1, 2, 4, 8, 16, 32, 64]),
            burst: rng.pick(&[1, 2, 8, 32]),
            pause_ns: rng.pick(&[0, 0, 1_000, 50_000, 2_000_000]),
            mix: draw_mix(rng, small),
            window_blocks: if small { 2048 } else { rng.pick(&[4, 16, 64, 256, 1024]) },
            command_permille: rng.pick(&[10, 30, 80, 200]),
            command_weights: draw_weights(rng),
            commands_max: rng.pick(&[1, 1, 2, 6]),
            crash_every: rng.pick(&[0, 40, 150, 400, 400, 1000]),
            power_permille: rng.pick(&[0, 500, 700, 1000]),
            nested_permille: rng.pick(&[0, 200, 500]),
            odd_segments: rng.chance(200),
            last_crash: rng.chance(500),
            all_shards: false,
            aimed_permille: 0,
            squeeze: (0, 0),
            forgets: false,
            straight: true,
            leap_permille: if late.chance(100) { late.pick(&[1, 10, 50]) } else { 0 },
            idle_ticks: rng.chance(300),
            ops,
        };
        plan.all_shards = shards > 1 && late.chance(600);
        if late.chance(300) {
            plan.command_weights[12] = late.pick(&[5, 20, 60]);
        }
        if late.chance(200) {
            plan.command_weights[13] = late.pick(&[3, 10]);
        }
        match late.below(1000) {
            0..60 => plan.storm(late),
            60..120 => plan.dawdle(late),
            120..180 => plan.narrow(late),
            180..280 => plan.aim(late),
            _ => {}
        }
        if late.chance(80) {
            plan.faults.full = late.pick(&[10, 50, 200]);
        }
        if late.chance(500) {
            plan.squeeze = (late.pick(&[20, 100, 400]), late.pick(&[2, 10, 1000]));
        }
        plan
    }
}

impl Plan {
    /// Many small writes at once on a device that tears, and power cuts one after the other: long
    /// journal blocks are written over those of the life before.
    fn storm(&mut self, late: &mut Rng) {
        (self.traits.volatile_cache, self.traits.atomic_4k) = (true, false);
        (self.depth, self.burst, self.pause_ns) = (64, 48, late.pick(&[0, 50_000]));
        self.config.slots = self.config.slots.max(72);
        self.mix.weights = [5, 90, 3, 3, 3, 0];
        self.mix.lengths = [late.pick(&[0, 10]), 80, 5, 0, 0];
        self.latency = Latency { min_ns: 1_000, spread_ns: 900_000, ..self.latency };
        (self.crash_every, self.power_permille) = (late.pick(&[60, 150, 400]), 1000);
        self.nested_permille = late.pick(&[0, 200]);
    }

    /// The smallest journals: they wrap within moments, and are full while a consistency point is
    /// still to commit what it has taken over.
    fn narrow(&mut self, late: &mut Rng) {
        self.journal_bytes = late.pick(&[16, 16, 24, 40]) << 12;
        self.latency = Latency {
            min_ns: 500,
            spread_ns: late.pick(&[5_000, 100_000]),
            flush_factor: late.pick(&[1, 20]),
            ..self.latency
        };
        (self.depth, self.burst) = (late.pick(&[4, 32]), late.pick(&[1, 2, 8]));
        self.pause_ns = late.pick(&[0, 5_000]);
        self.mix.weights = [10, 80, late.pick(&[0, 5]), 6, 4, 0];
        self.crash_every = late.pick(&[40, 150, 400]);
        self.power_permille = late.pick(&[500, 1000]);
    }

    /// Kills between the writing of a superblock and the flush behind it, again in the recovery
    /// that follows, and then a power cut: what two lives have read was never durable.
    fn aim(&mut self, late: &mut Rng) {
        self.traits.volatile_cache = true;
        self.latency.flush_factor = 20;
        self.aimed_permille = late.pick(&[500, 900]);
        (self.crash_every, self.power_permille) = (late.pick(&[150, 1000]), 1000);
        self.nested_permille = late.pick(&[400, 700]);
        // Short recoveries, most of which is the consistency point at their end.
        (self.disks, self.all_shards) = (late.pick(&[1, 2]), false);
        (self.command_permille, self.command_weights[10]) = (late.pick(&[80, 200]), 200);
    }

    /// Single blocks here and there in a few leaves, which so have many runs, and are evicted and
    /// read again between writes.
    pub fn comb(&mut self, late: &mut Rng) {
        (self.disks, self.window_blocks) = (late.pick(&[1, 2]), late.pick(&[64, 256]));
        self.mix.weights = [late.pick(&[40, 60]), 40, 2, 4, 2, 0];
        self.mix.lengths = [late.pick(&[0, 10]), 90, 2, 0, 0];
        self.mix.hot_permille = 980;
        // What has changed is evicted once it has been written.
        (self.command_permille, self.command_weights[10]) = (late.pick(&[30, 80]), 200);
        (self.burst, self.pause_ns) = (late.pick(&[1, 2]), late.pick(&[0, 20_000]));
        self.squeeze = (late.pick(&[100, 400]), late.pick(&[2, 10]));
    }

    /// Leaves are forgotten one by one on a device that is memory, so that the node above knows the
    /// way to links that are read where they lie.
    pub fn forget(&mut self, late: &mut Rng) {
        self.traits.atomic_rw = true;
        (self.disks, self.window_blocks) = (late.pick(&[1, 2, 4]), late.pick(&[1024, 4096]));
        self.mix.weights = [60, late.pick(&[10, 40]), 2, 4, 2, 0];
        self.mix.lengths = [late.pick(&[0, 20]), 90, 2, 0, 0];
        (self.burst, self.pause_ns) = (late.pick(&[1, 4]), late.pick(&[0, 20_000]));
        self.squeeze = (late.pick(&[30, 100]), late.pick(&[1, 3]));
        self.forgets = true;
    }

    /// Writes of guests now and then take far longer than everything else, while snapshots are
    /// taken, cloned and read.
    fn dawdle(&mut self, late: &mut Rng) {
        // Else hardly anything is written in place so soon after a snapshot.
        (self.traits.atomic_4k, self.traits.volatile_cache) = (true, late.chance(300));
        self.latency = Latency {
            min_ns: 500,
            spread_ns: 2_000,
            tail_per_10k: late.pick(&[500, 2000]),
            tail_ns: late.pick(&[300_000, 2_000_000]),
            flush_factor: 1,
            tail_of_data: true,
        };
        (self.window_blocks, self.pause_ns) = (late.pick(&[4, 16]), late.pick(&[2_000, 20_000]));
        (self.depth, self.burst) = (32, late.pick(&[1, 2]));
        self.config.slots = self.config.slots.max(64);
        self.disks = late.pick(&[1, 2]);
        self.mix.weights = [40, 50, 3, 1, 1, 0];
        self.mix.lengths = [10, 60, 10, 0, 0];
        self.mix.hot_permille = 1000;
        (self.command_permille, self.commands_max) = (late.pick(&[80, 200]), 6);
        let [snapshot, checkpoint, attach, clone] = [2, 10, 8, 1];
        for (kind, weight) in [(snapshot, 15), (checkpoint, 30), (attach, 40), (clone, 5)] {
            self.command_weights[kind] = weight;
        }
        self.crash_every = late.pick(&[0, 1000]);
    }
}

fn draw_latency(rng: &mut Rng) -> Latency {
    let (min_ns, spread_ns) =
        rng.pick(&[(0, 0), (500, 2_000), (10_000, 40_000), (60_000, 60_000), (1_000, 900_000)]);
    let tail = rng.chance(400);
    Latency {
        min_ns,
        spread_ns,
        tail_per_10k: if tail { rng.pick(&[20, 100, 500]) } else { 0 },
        tail_ns: rng.pick(&[2_000_000, 50_000_000, 3_000_000_000]),
        flush_factor: rng.pick(&[1, 4, 20]),
        tail_of_data: false,
    }
}

fn draw_faults(rng: &mut Rng) -> Faults {
    if rng.chance(600) {
        return Faults::default();
    }
    let rates = [0, 0, 5, 30, 200];
    Faults {
        read: rng.pick(&rates),
        write: rng.pick(&rates),
        flush: rng.pick(&rates),
        no_space: rng.chance(300),
        ..Faults::default()
    }
}

fn draw_late_faults(late: &mut Rng, faults: Faults) -> Faults {
    let slow = late.chance(100);
    let sticking = late.chance(60);
    let going = late.chance(60);
    let harming = late.chance(150);
    let on = |late: &mut Rng, rates: &[u32]| {
        let rate = late.pick(rates);
        if harming { rate } else { 0 }
    };
    Faults {
        stall: if slow { late.pick(&[3, 10, 50]) } else { 0 },
        stuck: if sticking { late.pick(&[3, 10, 30]) } else { 0 },
        gone_every: if going { late.pick(&[100, 500, 2000]) } else { 0 },
        harm: Harm {
            rot: on(late, &[0, 10, 50, 200, 1000]),
            stale: on(late, &[0, 0, 50, 500]),
            astray_read: on(late, &[0, 0, 20, 100]),
            astray_write: on(late, &[0, 0, 0, 5, 30]),
            lasting_permille: late.pick(&[0, 200, 700, 1000]),
        },
        ..faults
    }
}

fn draw_mix(rng: &mut Rng, fill: bool) -> RequestMix {
    let on = |rng: &mut Rng, weight: u32| if rng.chance(650) { weight } else { 0 };
    let mut mix = RequestMix {
        weights: [
            rng.pick(&[10, 30, 60]),
            rng.pick(&[30, 50, 80]),
            on(rng, 6),
            on(rng, 10),
            on(rng, 10),
            on(rng, 2),
        ],
        lengths: [on(rng, 40), rng.pick(&[5, 40, 80]), on(rng, 30), on(rng, 4), on(rng, 1)],
        fua_permille: rng.pick(&[0, 0, 50, 300]),
        hot_permille: rng.pick(&[700, 950, 1000]),
    };
    if fill {
        // Long writes fill a small store up.
        mix.lengths[3] = 40;
    }
    mix
}

/// Those of the newer kinds are 0 here.
fn draw_weights(rng: &mut Rng) -> [u32; 14] {
    const FULL: [u32; 12] = [4, 10, 30, 10, 4, 8, 5, 4, 12, 5, 8, 6];
    let mut weights = FULL.map(|weight| if rng.chance(700) { weight } else { 0 });
    if weights.iter().all(|weight| *weight == 0) {
        weights = FULL;
    }
    std::array::from_fn(|kind| weights.get(kind).copied().unwrap_or(0))
}
