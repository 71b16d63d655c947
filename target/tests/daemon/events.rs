//! Warnings of a store that fills up, through the whole daemon.

use std::path::Path;
use std::time::{Duration, Instant};

use lamina_rpc::methods::*;
use serde_json::json;

use crate::data::{Guest, SLOT_BYTES};
use crate::harness::{Daemon, Dir};
use crate::life::{attach, create_disk, create_store};

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Events of the store after number `since`, as soon as `enough` says so.
fn events_until(daemon: &mut Daemon, since: u64, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let end = Instant::now() + TIMEOUT;
    loop {
        let page = daemon.call(LaminaGetEvents { since: Some(since), max: Some(1000) });
        let events = page.events;
        assert!(events.iter().all(|event| event.seq > since && event.time_ms > 1_600_000_000_000));
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
        if enough(&events) {
            return events;
        }
        assert!(Instant::now() < end, "still only {events:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn info(daemon: &mut Daemon) -> StoreInfo {
    daemon.call(LaminaStoreInfo::default()).remove(0)
}

/// Writes fresh blocks from `at` on until `percent` of the store is used, or nothing fits; returns
/// where to go on.
fn fill(daemon: &mut Daemon, guest: &mut Guest, mut at: u64, percent: u32) -> u64 {
    while info(daemon).used_percent < percent {
        guest.write(0, 0, at, &[at as u8; SLOT_BYTES]);
        if guest.results(1)[0] != 0 {
            return at;
        }
        at += SLOT_BYTES as u64;
    }
    at
}

fn raised(events: &[Event], text: &str) -> bool {
    events.iter().any(|event| event.text.contains(text))
}

fn thin_disk(daemon: &mut Daemon, socket: &Path) -> Guest {
    create_disk(daemon, "vm", 512 * MIB);
    attach(daemon, "vm", "vm");
    Guest::connect(socket)
}

#[test]
fn a_store_that_fills_up_warns_and_one_that_empties_ends_the_warning() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &["--space-warnings", "50,80,100"]);
    daemon.call(LaminaStoreCreate {
        name: "scratch".into(),
        path: "ram:48M".into(),
        ..LaminaStoreCreate::default()
    });
    let mut guest = thin_disk(&mut daemon, &dir.path("d.run/vm"));
    assert_eq!((info(&mut daemon).used_percent, info(&mut daemon).warning), (0, None));
    let at = fill(&mut daemon, &mut guest, 0, 55);
    let events = events_until(&mut daemon, 0, |events| raised(events, "warning at 50 %"));
    let event = events.last().unwrap();
    assert_eq!((event.severity.as_str(), event.store.as_str()), ("warning", "scratch"));
    assert_eq!(info(&mut daemon).warning, Some(50));

    let at = fill(&mut daemon, &mut guest, at, 101);
    let events = events_until(&mut daemon, event.seq, |events| raised(events, "is full"));
    assert!(raised(&events, "warning at 80 %"), "{events:?}");
    let full = events.last().unwrap();
    assert_eq!(full.severity, "error");
    assert_eq!((info(&mut daemon).used_percent, info(&mut daemon).warning), (100, Some(100)));

    // Half of it is given back: one event for all that ends, with the threshold that still holds.
    guest.queues[0].discard(0, at / 3 / MIB * MIB, 0).unwrap();
    guest.finish(1);
    daemon.call(LaminaCheckpoint::default());
    let over = |events: &[Event]| raised(events, "below the warning");
    let events = events_until(&mut daemon, full.seq, over);
    assert_eq!(events.last().unwrap().severity, "info");
    let now = info(&mut daemon);
    assert!((60..75).contains(&now.used_percent), "{}", now.used_percent);
    assert_eq!(now.warning, Some(50));
    // New thresholds count at once.
    let params = json!({ "name": "scratch", "percents": [101] });
    assert!(daemon.refused("lamina_store_set_warnings", &params).message.contains("101"));
    let percents = Some(vec![60, 40]);
    let set = daemon.call(LaminaStoreSetWarnings { name: "scratch".into(), percents });
    assert_eq!((set, info(&mut daemon).warning), (vec![40, 60], Some(60)));
    guest.queues[0].discard(0, 512 * MIB, 0).unwrap();
    guest.finish(1);
    daemon.call(LaminaCheckpoint::default());
    events_until(&mut daemon, events.last().unwrap().seq, |events| {
        raised(events, "below the warning at 60 %")
    });
    assert_eq!(info(&mut daemon).warning, None);
    daemon.stop();
}

#[test]
fn thresholds_are_kept_over_a_restart_and_what_holds_is_told_again() {
    let dir = Dir::new();
    let mut daemon = Daemon::start(&dir, &[]);
    create_store(&mut daemon, &dir, "pool", 2);
    let mut guest = thin_disk(&mut daemon, &dir.path("d.run/vm"));
    let own = LaminaStoreSetWarnings { name: "pool".into(), percents: Some(vec![10]) };
    assert_eq!(daemon.call(own), [10]);
    fill(&mut daemon, &mut guest, 0, 15);
    let events = events_until(&mut daemon, 0, |events| raised(events, "warning at 10 %"));
    assert!(raised(&events, "shard "), "{events:?}");
    drop(guest);
    daemon.stop();
    let mut daemon = Daemon::start(&dir, &[]);
    events_until(&mut daemon, 0, |events| raised(events, "warning at 10 %"));
    assert_eq!(info(&mut daemon).warning, Some(10));
    let default = LaminaStoreSetWarnings { name: "pool".into(), percents: None };
    assert_eq!(daemon.call(default), [80, 90, 95, 100]);
    assert_eq!(info(&mut daemon).warning, None);
    daemon.stop();
}
