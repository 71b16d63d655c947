//! A daemon that dies by SIGKILL again and again under a real guest, at instants drawn from a seed:
//! while it serves, while it recovers, while a snapshot is taken, while memory is plugged into the
//! guest or pulled out, so that the memory table changes. The guest's writer checks every sector it
//! reads and sees no error; neither does its kernel.
//!
//! `LAMINA_GUEST_KILLS` sets the number of deaths, `LAMINA_SEED` the seed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lamina_tests::guest::{Daemon, MIB, Machine, Qmp, call, ready, turn};
use lamina_tests::load::Rng;
use lamina_tests::number;
use serde_json::json;

/// The program that knows what every sector must hold.
const GUEST_IO: &str = env!("CARGO_BIN_EXE_guest-io");
/// Longest wait for the guest's first request after a restart: it looks once a second.
const FIRST_IO_TIME_MAX: Duration = Duration::from_secs(20);
const SNAPSHOTS_MAX: u64 = 3;
/// Memory modules plugged in at most: one less than there are slots.
const MODULES_MAX: usize = 3;
/// Longest wait for a guest to let go of a memory module; one that will not keeps it.
const UNPLUG_TIME_MAX: Duration = Duration::from_secs(20);

/// Requests that this life of the daemon has answered.
fn answered(daemon: &Daemon) -> u64 {
    let stats = daemon.ask("lamina_stats", json!({}));
    let shard = &stats["stores"][0]["shards"][0];
    ["reads", "writes", "flushes"]
        .iter()
        .map(|name| shard[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}")))
        .sum()
}

/// Kills the daemon in one of three scenes; gives how often it died.
fn die(daemon: &mut Daemon, rng: &mut Rng, snapshots: &mut u64) -> u64 {
    match rng.below(4) {
        0 => {
            daemon.kill();
            daemon.spawn();
            sleep(Duration::from_millis(rng.below(80)));
            daemon.kill();
            2
        }
        1 => {
            *snapshots += 1;
            let (socket, label) = (daemon.path("rpc.sock"), format!("s{snapshots}"));
            let old = snapshots.checked_sub(SNAPSHOTS_MAX).filter(|old| *old > 0);
            if let Some(old) = old {
                // It may not be there: the call that made it may not have got through.
                let name = format!("vm@s{old}");
                let _absent = daemon.try_ask("bdev_lvol_delete", json!({"name": name}));
            }
            let params = json!({"lvol_name": "vm", "snapshot_name": label});
            let asked = std::thread::spawn(move || call(&socket, "bdev_lvol_snapshot", params));
            sleep(Duration::from_micros(rng.below(3000)));
            daemon.kill();
            // Answered or not: both are right.
            let _answer = asked.join().expect("a call ends");
            1
        }
        _ => {
            daemon.kill();
            1
        }
    }
}

/// Memory modules that come and go.
struct Modules {
    monitor: Qmp,
    plugged: u64,
    pulled: u64,
}

impl Modules {
    /// Plugs in a module or pulls one out.
    fn change(&mut self, rng: &mut Rng) {
        let there = self.monitor.plugged();
        if there == 0 || (there < MODULES_MAX && rng.below(2) == 0) {
            self.monitor.plug();
            self.plugged += 1;
        } else {
            self.pulled += u64::from(self.monitor.unplug(UNPLUG_TIME_MAX));
        }
    }

    /// Kills the daemon while the memory table changes.
    fn die(&mut self, daemon: &mut Daemon, rng: &mut Rng) {
        let (mut own, wait) = (Rng::new(rng.next()), Duration::from_micros(rng.below(40_000)));
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| self.change(&mut own));
            sleep(wait);
            daemon.kill();
            changing.join().expect("QEMU goes on without the daemon");
        });
    }
}

fn killed(test: &str, properties: &str, kills_min: u64, seed: u64, hotplug: bool) {
    if !ready(test) {
        return;
    }
    let _turn = turn();
    let mut daemon = Daemon::with_store(1024 * MIB);
    daemon.create_disk("vm", 64);
    let socket = daemon.export("vm", false);
    let machine = Machine::new().cpus(2).program(GUEST_IO).disk(&socket, properties);
    let machine = if hotplug { machine.hotplug() } else { machine };
    let mut guest = machine.boot(daemon.folder(), "guest");
    let mut modules = hotplug.then(|| Modules { monitor: guest.monitor(), plugged: 0, pulled: 0 });
    guest
        .run("(tool stress /dev/vda 11 65536 6 /tmp/stop >/tmp/said 2>&1; echo $? >/tmp/status) &");
    let (mut rng, mut kills, mut snapshots) = (Rng::new(seed), 0, 0);
    let mut first_io = Vec::new();
    while kills < kills_min {
        sleep(Duration::from_millis(rng.between(100, 900)));
        match &mut modules {
            Some(modules) => {
                // Once while the daemon lives, once while it dies.
                modules.change(&mut rng);
                modules.die(&mut daemon, &mut rng);
                kills += 1;
            }
            None => kills += die(&mut daemon, &mut rng, &mut snapshots),
        }
        daemon.start();
        let begun = Instant::now();
        while answered(&daemon) == 0 {
            let waited = begun.elapsed();
            assert!(
                waited < FIRST_IO_TIME_MAX,
                "no I/O of the guest {waited:?} after kill {kills}"
            );
            sleep(Duration::from_millis(5));
        }
        first_io.push(begun.elapsed());
    }
    assert_eq!(guest.try_run("test -e /tmp/status").0, 1, "the stress ended before its time");
    guest.run("touch /tmp/stop; while [ ! -e /tmp/status ]; do sleep 0.2; done");
    let said = guest.run("cat /tmp/said");
    assert_eq!(guest.run("cat /tmp/status"), "0", "seed {seed}: {said}\n{}", daemon.log());
    assert!(said.ends_with("65536 sectors checked"), "{said}");
    guest.assert_no_kernel_errors();
    first_io.sort_unstable();
    let (median, longest) = (first_io[first_io.len() / 2], first_io[first_io.len() - 1]);
    if let Some(Modules { plugged, pulled, .. }) = modules {
        println!("{plugged} memory modules plugged in, {pulled} pulled out");
        assert!(plugged >= kills_min / 2 && pulled > 0, "the memory table hardly changed");
    }
    println!(
        "{properties}: {kills} kills; {said}; the guest's first I/O after a restart: median \
         {median:?}, longest {longest:?} (it tries once a second)"
    );
}

#[test]
fn killed_again_and_again_on_split_rings() {
    let test = "killed_again_and_again_on_split_rings";
    let (kills, seed) = (number("LAMINA_GUEST_KILLS", 40), number("LAMINA_SEED", 1));
    killed(test, "num-queues=2", kills / 2, seed, false);
}

#[test]
fn killed_again_and_again_on_packed_rings() {
    let test = "killed_again_and_again_on_packed_rings";
    let (kills, seed) = (number("LAMINA_GUEST_KILLS", 40), number("LAMINA_SEED", 1) + 1);
    killed(test, "num-queues=2,packed=on", kills / 2, seed, false);
}

#[test]
fn killed_while_memory_comes_and_goes() {
    let test = "killed_while_memory_comes_and_goes";
    let (kills, seed) = (number("LAMINA_GUEST_KILLS", 40), number("LAMINA_SEED", 1) + 2);
    for (properties, seed) in [("num-queues=2", seed), ("num-queues=2,packed=on", seed + 1)] {
        killed(test, properties, kills / 4, seed, true);
    }
}
