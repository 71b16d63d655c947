//! `lamina stats`: counters, or what they grow by.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lamina_rpc::methods::{LaminaStats, Stats, StoreStats};
use serde_json::json;

use crate::answer::{Answer, write_out};
use crate::failure::Failure;
use crate::human::percent;
use crate::session::Session;
use crate::size::human;
use crate::table::Table;

/// Lines after which the headings are printed again.
const HEADING_LINES: u64 = 20;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lamina stats
  lamina stats --watch              (a line a second, until interrupted)
  lamina stats --watch 5 --count 3 --json")]
pub struct Arguments {
    /// Print what happens in every interval
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
    /// End after so many intervals
    #[arg(long, requires = "watch")]
    count: Option<u64>,
}

pub fn run(session: &mut Session, arguments: &Arguments) -> Result<Answer, Failure> {
    match arguments.watch {
        None => {
            let stats = session.call("reading the counters", &LaminaStats::default())?;
            Answer::new(totals_text(&stats), stats)
        }
        Some(seconds) => {
            watch(session, Duration::from_secs(seconds), arguments.count.unwrap_or(u64::MAX))?;
            Ok(Answer::printed())
        }
    }
}

/// Counters of a store, its shards added up.
fn totals(store: &StoreStats) -> BTreeMap<&str, u64> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in store.shards.iter().flatten().filter(|(name, _)| *name != "shard") {
        let sum = sums.entry(name).or_default();
        *sum = sum.saturating_add(*value);
    }
    sums
}

/// All counters since the daemon started.
fn totals_text(stats: &Stats) -> String {
    let mut out = String::new();
    for store in &stats.stores {
        out.push_str(&format!("store {}\n", crate::human::plain(&store.name)));
        for (name, value) in totals(store) {
            let value = match name.ends_with("bytes") {
                true => human(value),
                false => value.to_string(),
            };
            out.push_str(&format!("  {:<24} {value:>16}\n", crate::human::plain(name)));
        }
    }
    if stats.stores.is_empty() {
        out.push_str("No store is open.\n");
    }
    let mut table = Table::new(&[">CORE", ">BUSY", ">TURNS", ">SLEEPS", ">WAKES"]);
    for reactor in &stats.reactors {
        table.row([
            reactor.core.to_string(),
            percent(reactor.busy_ns, reactor.busy_ns.saturating_add(reactor.idle_ns)),
            reactor.turns.to_string(),
            reactor.sleeps.to_string(),
            reactor.wakes.to_string(),
        ]);
    }
    out.push('\n');
    out.push_str(&table.text_or("No reactors."));
    out
}

/// What a store did in an interval.
struct Rates {
    store: String,
    /// Per second.
    reads: u64,
    writes: u64,
    flushes: u64,
    read_bytes: u64,
    write_bytes: u64,
    /// Node lookups in the interval.
    hits: u64,
    misses: u64,
}

/// Differences between two readings; a store that was opened between them counts from zero, one
/// opened again (its counters went back) too.
fn rates(before: &Stats, after: &Stats, elapsed: Duration) -> Vec<Rates> {
    let elapsed_ns = elapsed.as_nanos().max(1);
    let earlier = |name: &str| {
        before.stores.iter().find(|store| store.name == name).map(totals).unwrap_or_default()
    };
    let rate_of = |store: &StoreStats| {
        let (old, new) = (earlier(&store.name), totals(store));
        let grown = |counter: &str| {
            let (old, new) =
                (old.get(counter).copied().unwrap_or(0), new.get(counter).copied().unwrap_or(0));
            new.checked_sub(old).unwrap_or(new)
        };
        let per_second = |counter: &str| {
            u64::try_from(u128::from(grown(counter)) * 1_000_000_000 / elapsed_ns)
                .unwrap_or(u64::MAX)
        };
        Rates {
            store: store.name.clone(),
            reads: per_second("reads"),
            writes: per_second("writes"),
            flushes: per_second("flushes"),
            read_bytes: per_second("read_bytes"),
            write_bytes: per_second("write_bytes"),
            hits: grown("cache_hits"),
            misses: grown("cache_misses"),
        }
    };
    after.stores.iter().map(rate_of).collect()
}

/// How busy the reactors were between two readings, together.
fn busy(before: &Stats, after: &Stats) -> String {
    let sum = |stats: &Stats| {
        stats.reactors.iter().fold((0u64, 0u64), |(busy, all), reactor| {
            let busy = busy.saturating_add(reactor.busy_ns);
            (busy, all.saturating_add(reactor.busy_ns).saturating_add(reactor.idle_ns))
        })
    };
    let ((busy_before, all_before), (busy_after, all_after)) = (sum(before), sum(after));
    percent(busy_after.saturating_sub(busy_before), all_after.saturating_sub(all_before))
}

fn watch(session: &mut Session, interval: Duration, count: u64) -> Result<(), Failure> {
    let json = session.json;
    let mut before = session.call("reading the counters", &LaminaStats::default())?;
    let mut before_at = Instant::now();
    for round in 0..count {
        std::thread::sleep(interval);
        let after = session.call("reading the counters", &LaminaStats::default())?;
        let after_at = Instant::now();
        let rates = rates(&before, &after, after_at - before_at);
        let busy = busy(&before, &after);
        let text = match json {
            true => rates_json(&rates, &busy),
            false => rates_text(&rates, &busy, round % HEADING_LINES == 0),
        };
        if !write_out(&text)? {
            break;
        }
        (before, before_at) = (after, after_at);
    }
    Ok(())
}

fn rates_text(rates: &[Rates], busy: &str, heading: bool) -> String {
    let mut out = String::new();
    if heading {
        out.push_str(&format!(
            "{:<16} {:>9} {:>9} {:>11} {:>11} {:>8} {:>7} {:>7}\n",
            "STORE", "READ/s", "WRITE/s", "READ B/s", "WRITE B/s", "FLUSH/s", "NODES", "BUSY"
        ));
    }
    for rate in rates {
        out.push_str(&format!(
            "{:<16} {:>9} {:>9} {:>11} {:>11} {:>8} {:>7} {:>7}\n",
            crate::human::plain(&rate.store),
            rate.reads,
            rate.writes,
            human(rate.read_bytes),
            human(rate.write_bytes),
            rate.flushes,
            percent(rate.hits, rate.hits.saturating_add(rate.misses)),
            busy
        ));
    }
    if rates.is_empty() {
        out.push_str("No store is open.\n");
    }
    out
}

/// One line of JSON an interval.
fn rates_json(rates: &[Rates], busy: &str) -> String {
    let stores: Vec<_> = rates
        .iter()
        .map(|rate| {
            json!({
                "name": rate.store,
                "reads_per_second": rate.reads,
                "writes_per_second": rate.writes,
                "flushes_per_second": rate.flushes,
                "read_bytes_per_second": rate.read_bytes,
                "write_bytes_per_second": rate.write_bytes,
                "cache_hits": rate.hits,
                "cache_misses": rate.misses,
            })
        })
        .collect();
    format!("{}\n", json!({ "stores": stores, "busy": busy }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_rpc::methods::ReactorStats;

    fn reading(reads: u64, hits: u64, busy_ns: u64) -> Stats {
        let shard = |reads| {
            BTreeMap::from([("reads".to_string(), reads), ("cache_hits".to_string(), hits)])
        };
        Stats {
            stores: vec![StoreStats { name: "pool".into(), shards: vec![shard(reads), shard(0)] }],
            reactors: vec![ReactorStats {
                busy_ns,
                idle_ns: 1000 - busy_ns,
                ..ReactorStats::default()
            }],
        }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let rates = rates(&reading(100, 1, 0), &reading(700, 2, 0), Duration::from_secs(2));
        assert_eq!((rates[0].reads, rates[0].hits, rates[0].writes), (300, 2, 0));
    }

    #[test]
    fn counters_that_went_back_start_again() {
        let after = reading(50, 0, 0);
        let rates = rates(&reading(100, 0, 0), &after, Duration::from_secs(1));
        assert_eq!(rates[0].reads, 50);
        let rates = super::rates(&Stats::default(), &after, Duration::ZERO);
        assert_eq!(rates[0].reads, 50_000_000_000);
    }

    #[test]
    fn totals_add_up_the_shards_and_say_how_busy() {
        let text = totals_text(&reading(100, 3, 250));
        assert!(text.contains("store pool"), "{text}");
        assert!(text.contains("cache_hits                              6"), "{text}");
        assert!(text.contains("25.0%"), "{text}");
        assert_eq!(busy(&reading(0, 0, 0), &reading(0, 0, 500)), "-");
    }
}
