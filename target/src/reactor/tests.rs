//! A reactor without shards: it sleeps when it should, and no message is lost to sleep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_bdev::ErrorKind;

use super::handle::{Message, ReactorHandle, ShardHandle};
use super::shard::ShardKey;
use super::*;

/// A reactor that runs as long as a test wants it to, on the thread that the test gives it.
pub(crate) struct ByHand(Reactor);

impl ByHand {
    /// It drives a shard, and goes to sleep whenever it finds nothing.
    pub(crate) fn with(shard: Shard) -> ByHand {
        let settings = Settings { core: 0, idle_us: 0, busy_poll: false };
        let mut reactor = Reactor::new(0, &settings).unwrap();
        reactor.shards.push(Box::new(shard));
        ByHand(reactor)
    }

    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.0.shared.clone()
    }

    /// Runs until a sleep is ended by a guest who has something; whether that counted as work.
    pub(crate) fn until_served(mut self) -> bool {
        let mut now = clock::now_ns();
        loop {
            if self.0.turn(now) {
                self.0.idle.worked(now);
            } else if self.0.idle.wants_sleep(now) {
                let (woke, slept) = self.0.rest(now);
                if slept == Some(Served(true)) {
                    return !self.0.idle.in_gap();
                }
                now = woke;
            }
            self.0.shared.publish(&self.0.counted);
        }
    }
}

fn reactor(idle_us: u32, busy_poll: bool) -> (Arc<ReactorHandle>, JoinHandle<()>) {
    let core = *affinity::allowed_cores().unwrap().last().unwrap();
    start(0, Settings { core, idle_us, busy_poll }).unwrap()
}

fn stop(reactor: &ReactorHandle, thread: JoinHandle<()>) {
    reactor.post(Message::Stop).unwrap();
    thread.join().unwrap();
}

/// Asks a shard that is not there: the answer comes at once, if the reactor is awake.
fn ask(reactor: &Arc<ReactorHandle>) {
    let nobody = ShardHandle::new(reactor.clone(), ShardKey(u32::MAX));
    let error = nobody.query(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
}

#[test]
fn no_message_is_lost_whatever_the_reactor_is_just_doing() {
    let (reactor, thread) = reactor(3, false);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..5_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Around the moment when it goes to sleep, and now and then well after.
        let wait_us = if round % 50 == 0 { 400 } else { (random >> 33) % 60 };
        let until = Instant::now() + Duration::from_micros(wait_us);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let asked = Instant::now();
        ask(&reactor);
        assert!(asked.elapsed() < Duration::from_secs(5), "round {round} waited for a wake-up");
    }
    let counters = reactor.counters();
    assert!(counters.sleeps > 1000 && counters.wakes > 1000, "{counters:?}");
    stop(&reactor, thread);
}

#[test]
fn an_idle_reactor_sleeps_for_good() {
    let (reactor, thread) = reactor(50, false);
    ask(&reactor);
    let end = Instant::now() + Duration::from_secs(10);
    while !reactor.counters().asleep {
        assert!(Instant::now() < end, "never asleep");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    let before = reactor.counters();
    std::thread::sleep(Duration::from_millis(300));
    let after = reactor.counters();
    assert_eq!(
        (before.turns, before.sleeps),
        (after.turns, after.sleeps),
        "it did not stay asleep"
    );
    stop(&reactor, thread);
}

#[test]
fn busy_polling_stays_awake() {
    let (reactor, thread) = reactor(0, true);
    ask(&reactor);
    std::thread::sleep(Duration::from_millis(50));
    let counters = reactor.counters();
    assert_eq!((counters.sleeps, counters.asleep), (0, false));
    assert!(counters.turns > 1000, "{counters:?}");
    stop(&reactor, thread);
}
