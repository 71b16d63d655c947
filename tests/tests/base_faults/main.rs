//! A base device that fails in every way short of a power cut, under the real daemon: the guest
//! gets errors, never lies; the daemon lives and answers; and when the base is well again, or the
//! store reopened, everything that was flushed is there.

mod hangs;
mod opening;
mod remote;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lamina_tests::client::{Device, Options};
use lamina_tests::disk::{Faults, Rig, Way, Which, ready};
use lamina_tests::guest::Daemon;
use lamina_tests::load::{Client, Mix, Model, Rng, check_disk, lock};
use lamina_tests::number;
use serde_json::{Value, json};

/// Longest wait for answers; far above what a noisy machine needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for an answer over RPC while the base does not move.
const RPC_TIME_MAX: Duration = Duration::from_secs(2);

/// A rig with some data that is flushed, its connection, and its client.
fn begin(seed: u64) -> (Rig, Device, Client) {
    begin_on(Way::File, seed)
}

fn begin_on(way: Way, seed: u64) -> (Rig, Device, Client) {
    let rig = Rig::new(way, Faults::default());
    let device = rig.connect(seed.is_multiple_of(2));
    let mut client = rig.client(&device, seed);
    let end = Instant::now() + Duration::from_millis(300);
    client.run(|| Instant::now() > end);
    assert!(client.flush(PATIENCE), "a flush on a good disk");
    assert_eq!(client.counts.errors, 0, "no error on a good disk");
    (rig, device, client)
}

/// Runs the client until it has seen an error.
fn run_into_error(client: &mut Client) {
    let (end, errors) = (Instant::now() + PATIENCE, client.counts.errors);
    // A client stops by time; its counts are looked at in between.
    while client.counts.errors == errors {
        assert!(Instant::now() < end, "a fault of the base never reached the guest");
        let slice = Instant::now() + Duration::from_millis(20);
        client.run(|| Instant::now() > slice);
    }
    client.drain(PATIENCE);
}

fn assert_lives(rig: &Rig, when: &str) {
    assert_daemon_lives(&rig.daemon, when);
}

fn assert_daemon_lives(daemon: &Daemon, when: &str) {
    let begun = Instant::now();
    daemon.ask("lamina_store_info", json!({}));
    daemon.ask("lamina_stats", json!({}));
    let took = begun.elapsed();
    assert!(took < RPC_TIME_MAX, "{when}: two answers over RPC took {took:?}");
}

/// Asks for what must be answered soon, since nothing of it hangs.
fn ask_soon(daemon: &Daemon, method: &str, params: Value) -> Value {
    let begun = Instant::now();
    let answer = daemon.ask(method, params.clone());
    let took = begun.elapsed();
    assert!(took < RPC_TIME_MAX, "{method} {params} took {took:?}");
    answer
}

/// The store is closed and opened again, everything is read, and goes on.
fn reopen_and_check(
    mut rig: Rig,
    device: Device,
    client: Client,
    what: &str,
    also: impl FnOnce(&Rig),
) {
    rig.tag = client.tag();
    drop((client, device));
    rig.reopen();
    also(&rig);
    go_on(rig, what);
}

fn go_on(rig: Rig, what: &str) {
    rig.settle().unwrap_or_else(|why| panic!("{what}: {why}\n{}", rig.daemon.log()));
    let device = rig.connect(false);
    let mut client = rig.client(&device, 99);
    let end = Instant::now() + Duration::from_millis(200);
    client.run(|| Instant::now() > end);
    assert!(client.flush(PATIENCE), "{what}: a flush after the store was reopened");
    assert_eq!(client.counts.errors, 0, "{what}: no error after the store was reopened");
}

#[test]
fn a_write_that_fails_is_an_error_and_nothing_more() {
    if !ready("a_write_that_fails_is_an_error_and_nothing_more") {
        return;
    }
    for seed in 0..number("LAMINA_FAULTS", 4) {
        let (mut rig, device, mut client) = begin(seed);
        let nth = Rng::new(seed).below(400);
        rig.disk.set_faults(Faults { writes: Which::Nth(nth), ..Faults::default() });
        let end = Instant::now() + Duration::from_secs(1);
        client.run(|| Instant::now() > end);
        client.drain(PATIENCE);
        assert_eq!(rig.disk.faults().writes, Which::None, "seed {seed}: the fault happened");
        assert_lives(&rig, "after a failed write");
        // A flush may fail now; if it does not, it holds.
        let flushed = client.flush(PATIENCE);
        println!("write {nth} failed: {:?}, flush after it {flushed}", client.counts);
        rig.tag = client.tag();
        drop((client, device));
        rig.cut(&mut Rng::new(seed));
        rig.daemon.start();
        go_on(rig, &format!("write {nth} failed, then a power cut"));
    }
}

#[test]
fn a_failed_flush_stays_failed_until_the_store_is_reopened() {
    if !ready("a_failed_flush_stays_failed_until_the_store_is_reopened") {
        return;
    }
    for seed in 0..number("LAMINA_FAULTS", 4) {
        let (rig, device, mut client) = begin(seed);
        let nth = Rng::new(seed).below(20);
        rig.disk.set_faults(Faults { fsyncs: Which::Nth(nth), ..Faults::default() });
        let end = Instant::now() + PATIENCE;
        while rig.disk.faults().fsyncs != Which::None {
            assert!(Instant::now() < end, "seed {seed}: fsync {nth} never came");
            let slice = Instant::now() + Duration::from_millis(20);
            client.run(|| Instant::now() > slice);
        }
        client.drain(PATIENCE);
        let before = client.counts.clone();
        for round in 0..20 {
            assert!(!client.flush(PATIENCE), "seed {seed}: flush {round} after the failed one");
            let slice = Instant::now() + Duration::from_millis(10);
            client.run(|| Instant::now() > slice);
        }
        client.drain(PATIENCE);
        assert_eq!(client.counts.flushes, before.flushes, "seed {seed}: no flush succeeded");
        assert_lives(&rig, "after a failed flush");
        println!("fsync {nth} failed: {:?}", client.counts);
        reopen_and_check(rig, device, client, &format!("fsync {nth} failed"), |_| ());
    }
}

/// The shard a disk is in.
fn shard_of(rig: &Rig, disk: &str) -> Value {
    let all = rig.daemon.ask("lamina_disk_info", json!({}));
    let found = all.as_array().and_then(|all| all.iter().find(|found| found["name"] == disk));
    found.unwrap_or_else(|| panic!("{disk} is not in {all}"))["shard"].clone()
}

#[test]
fn a_flush_that_failed_in_one_shard_fails_in_all_shards_of_the_device() {
    if !ready("a_flush_that_failed_in_one_shard_fails_in_all_shards_of_the_device") {
        return;
    }
    for seed in 0..number("LAMINA_FAULTS", 4) {
        let rig = Rig::sharded(Way::File, Faults::default(), 2);
        let device = rig.connect(false);
        let mut first = rig.client(&device, seed);
        let run = |client: &mut Client, ms| {
            let end = Instant::now() + Duration::from_millis(ms);
            client.run(|| Instant::now() > end);
            client.drain(PATIENCE);
        };
        run(&mut first, 200);
        // The other shard has more room now.
        rig.daemon.create_disk("other", 12);
        assert_ne!(shard_of(&rig, "vm"), shard_of(&rig, "other"), "both are in one shard");
        let socket = rig.daemon.export("other", false);
        let connect = || Device::connect(&socket, Options::default());
        let second_device = connect().unwrap_or_else(|why| panic!("{why}"));
        let model = Arc::new(Mutex::new(Model::new(12 << 8)));
        let mut second = Client::new(second_device.queue(0), model.clone(), seed + 50, 1 << 40);
        run(&mut second, 200);
        assert!(first.flush(PATIENCE) && second.flush(PATIENCE), "flushes on a good disk");
        rig.disk.set_faults(Faults { fsyncs: Which::Nth(0), ..Faults::default() });
        // One fsync fails, whoever asks; from then on the disk is well again.
        while rig.disk.faults().fsyncs != Which::None {
            first.flush(PATIENCE);
        }
        for round in 0..10 {
            for (name, client) in [("vm", &mut first), ("other", &mut second)] {
                run(client, 5);
                let flushed = client.flush(PATIENCE);
                assert!(!flushed, "seed {seed}, {name}: flush {round} after one failed");
            }
        }
        assert_lives(&rig, "after a failed flush");
        let tag = second.tag();
        drop((second, second_device));
        reopen_and_check(rig, device, first, "a flush failed in one of two shards", |rig| {
            let device = connect().unwrap_or_else(|why| panic!("{why}"));
            check_disk(&device.queue(0), 12 << 8, |block, found| {
                lock(&model).settle_after_cut(block, found)
            })
            .unwrap_or_else(|why| panic!("the other shard: {why}\n{}", rig.daemon.log()));
            let mut client = Client::new(device.queue(0), model.clone(), seed, tag);
            run(&mut client, 50);
            assert!(client.flush(PATIENCE), "a flush of the other shard, reopened");
        });
    }
}

#[test]
fn a_base_without_space_refuses_writes_and_keeps_what_there_was() {
    if !ready("a_base_without_space_refuses_writes_and_keeps_what_there_was") {
        return;
    }
    let (rig, device, mut client) = begin(3);
    rig.disk.set_faults(Faults { full: true, ..Faults::default() });
    run_into_error(&mut client);
    assert_lives(&rig, "with a full base");
    rig.disk.set_faults(Faults::default());
    reopen_and_check(rig, device, client, "the base was full", |_| ());
}

#[test]
fn a_base_that_vanishes_and_returns_has_everything_that_was_flushed() {
    if !ready("a_base_that_vanishes_and_returns_has_everything_that_was_flushed") {
        return;
    }
    for restart in [false, true] {
        let (mut rig, device, mut client) = begin(5);
        rig.disk.set_faults(Faults { gone: true, ..Faults::default() });
        run_into_error(&mut client);
        assert_lives(&rig, "without its base");
        assert!(!client.flush(PATIENCE), "no flush succeeds on a base that is gone");
        if restart {
            rig.tag = client.tag();
            drop((client, device));
            // A daemon that finds its base gone serves on without it.
            rig.daemon.kill();
            rig.daemon.start();
            let info = rig.daemon.ask("lamina_store_info", json!({}));
            assert_eq!(info[0]["state"], "failed", "{info}");
            rig.disk.set_faults(Faults::default());
            rig.daemon.ask("lamina_store_open", json!({"path": rig.base()}));
            go_on(rig, "the base came back to a new daemon");
        } else {
            rig.disk.set_faults(Faults::default());
            assert!(!client.flush(PATIENCE), "a failed flush stays failed");
            reopen_and_check(rig, device, client, "the base came back", |_| ());
        }
    }
}

#[test]
fn every_flush_of_the_guest_is_an_fsync_after_the_writes_it_covers() {
    if !ready("every_flush_of_the_guest_is_an_fsync_after_the_writes_it_covers") {
        return;
    }
    for seed in 10..12 {
        let (rig, _device, client) = begin(seed);
        rig.disk.start_record();
        let mix = Mix { flushes: 120, ..Mix::default() };
        let mut client = client.mix(mix);
        client.flushed.clear();
        let end = Instant::now() + Duration::from_secs(2);
        client.run(|| Instant::now() > end);
        client.drain(PATIENCE);
        let record = rig.disk.take_record();
        let mut covered = 0;
        for (index, flushed) in client.flushed.iter().enumerate() {
            covered += flushed.tags.len();
            let checked = record.check_flush(&flushed.tags, flushed.answered);
            checked.unwrap_or_else(|why| panic!("seed {seed}, flush {index}: {why}"));
        }
        let flushes = client.flushed.len();
        println!("{flushes} flushes cover {covered} writes with {} fsyncs", record.fsyncs());
        assert!(flushes > 50 && covered > 500, "{flushes} flushes cover {covered} writes");
    }
}
