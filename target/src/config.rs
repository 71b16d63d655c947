//! What `laminad` can be told on its command line, and what that means on this machine.

use std::path::PathBuf;

use lamina_bdev::{Error, ErrorKind, limits};

use crate::log::Level;
use crate::reactor::space_watch::Thresholds;
use crate::reactor::{REACTORS_MAX, Settings, affinity};

/// Settings of the daemon.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "laminad",
    version,
    args_override_self = true,
    about = "Serves thin virtual disks with free snapshots to virtual machines",
    after_help = "Examples:
  laminad                                    as a service: everything under /var and /run
  laminad --rpc-socket ./l.sock --state-dir ./state --export-dir ./run
                                             to try it without being root
  laminad --reactors 2 --cores 2,3 --busy-poll
                                             two cores that never sleep

Stores are made and opened with the lamina command; those that were open are opened again."
)]
pub struct Config {
    /// Unix socket for JSON-RPC
    #[arg(long, value_name = "PATH", default_value = lamina_rpc::SOCKET_DEFAULT)]
    pub rpc_socket: PathBuf,

    /// Folder that keeps the list of open stores
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lamina")]
    pub state_dir: PathBuf,

    /// Folder for the sockets of exports that are named without a path
    #[arg(long, value_name = "DIR", default_value = "/var/run/lamina")]
    pub export_dir: PathBuf,

    /// Reactor threads, each on a core of its own [default: one, or one for each of --cores]
    #[arg(long, value_name = "N")]
    pub reactors: Option<usize>,

    /// Cores for the reactors, like 0,2-3 [default: the first ones allowed]
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    pub cores: Option<CoreList>,

    /// Microseconds without work after which a reactor sleeps; up to 16 times that while requests
    /// come again soon
    #[arg(long, value_name = "US", default_value_t = 50)]
    pub idle_us: u32,

    /// Never sleep: lowest latency, a full core each
    #[arg(long)]
    pub busy_poll: bool,

    /// Memory for the node cache of each shard, in bytes or like 64M
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    pub cache_size: u64,

    /// Requests in flight in each shard
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub slots: usize,

    /// A store to open at start (may be repeated)
    #[arg(long = "store", value_name = "PATH")]
    pub stores: Vec<String>,

    /// Percentages of a store's space whose use raises an event, or "none"
    #[arg(long, value_name = "LIST", default_value = "80,90,95,100", value_parser = parse_percents)]
    pub space_warnings: Thresholds,

    /// Loudest log lines written to standard error
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub log_level: Level,
}

/// Cores as given with `--cores`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(pub Vec<u32>);

const SLOTS_MAX: usize = 32_768;
const CACHE_BYTES_MAX: u64 = limits::CACHE_BYTES_MAX as u64;

impl Config {
    /// Sizes of each engine.
    ///
    /// # Errors
    /// `Invalid`: a value out of range.
    pub fn engine(&self) -> Result<lamina_bdev::Config, Error> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if !(1..=SLOTS_MAX).contains(&self.slots) {
            return invalid(format!("--slots is 1 to {SLOTS_MAX}, not {}", self.slots));
        }
        let least = limits::CACHE_BYTES_MIN as u64;
        if !(least..=CACHE_BYTES_MAX).contains(&self.cache_size) {
            return invalid(format!(
                "--cache-size is {least} to {CACHE_BYTES_MAX} bytes, not {}",
                self.cache_size
            ));
        }
        let (slots, cache_bytes) = (self.slots, self.cache_size as usize);
        Ok(lamina_bdev::Config { slots, cache_bytes })
    }

    /// One entry for each reactor to start.
    ///
    /// # Errors
    /// `Invalid`: more reactors than cores, a core that is not ours.
    pub fn reactors(&self) -> Result<Vec<Settings>, Error> {
        let allowed = affinity::allowed_cores().map_err(|e| {
            Error::new(ErrorKind::Io, format!("the cores we may use cannot be listed: {e}"))
        })?;
        let cores = place(self.reactors, self.cores.as_ref(), &allowed)
            .map_err(|text| Error::new(ErrorKind::Invalid, text))?;
        let settings = |core| Settings { core, idle_us: self.idle_us, busy_poll: self.busy_poll };
        Ok(cores.into_iter().map(settings).collect())
    }
}

fn place(
    count: Option<usize>,
    cores: Option<&CoreList>,
    allowed: &[u32],
) -> Result<Vec<u32>, String> {
    let from = cores.map_or(allowed, |list| &list.0);
    if let Some(core) = from.iter().find(|core| !allowed.contains(core)) {
        return Err(format!("core {core} is not one we may use: those are {allowed:?}"));
    }
    let count = count.unwrap_or(if cores.is_some() { from.len() } else { 1 });
    if count == 0 || count > from.len() || count > REACTORS_MAX {
        return Err(format!(
            "{count} reactors need as many cores, and there are {}: give 1 to {}",
            from.len(),
            from.len().min(REACTORS_MAX)
        ));
    }
    Ok(from[..count].to_vec())
}

fn parse_cores(text: &str) -> Result<CoreList, String> {
    let bad = || format!("{text:?} is not a list of cores like 0,2-3");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().map_err(|_| bad())?;
        let last: u32 = last.trim().parse().map_err(|_| bad())?;
        if last < first || last - first >= REACTORS_MAX as u32 {
            return Err(bad());
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(format!("core {core} is listed twice"));
            }
            cores.push(core);
        }
    }
    Ok(CoreList(cores))
}

fn parse_percents(text: &str) -> Result<Thresholds, String> {
    if text == "none" {
        return Thresholds::new(&[]);
    }
    let number = |part: &str| part.trim().trim_end_matches('%').parse::<u32>();
    let percents: Result<Vec<u32>, _> = text.split(',').map(number).collect();
    let bad = |_| format!("{text:?} is not a list of percentages like 80,90,100, nor \"none\"");
    Thresholds::new(&percents.map_err(bad)?)
}

/// Reads a number of bytes: `4096`, `512K`, `64M`, `10G`, `1T`, also `64MiB`.
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write bytes, or a number with K, M, G or T");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = text[digits..].trim_end_matches("iB");
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} does not fit 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("3K", 3072),
            ("64M", 64 << 20),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1X", "-1", "1.5G", "99999999999T", "1 G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_placed_or_refused() {
        let list = parse_cores("0,2-3").unwrap();
        assert_eq!(list.0, [0, 2, 3]);
        for bad in ["", "a", "3-2", "1,1", "0-", "0-4000000000"] {
            assert!(parse_cores(bad).is_err(), "{bad}");
        }
        let allowed = [0, 1, 2, 3];
        assert_eq!(place(None, None, &allowed), Ok(vec![0]));
        assert_eq!(place(Some(2), None, &allowed), Ok(vec![0, 1]));
        assert_eq!(place(None, Some(&list), &allowed), Ok(vec![0, 2, 3]));
        assert_eq!(place(Some(1), Some(&list), &allowed), Ok(vec![0]));
        for (count, cores) in [(Some(5), None), (Some(0), None), (Some(4), Some(&list))] {
            assert!(place(count, cores, &allowed).is_err(), "{count:?}");
        }
        assert!(place(None, Some(&CoreList(vec![9])), &allowed).is_err());
    }

    #[test]
    fn percentages_are_read_or_refused() {
        assert_eq!(parse_percents("90, 80%,100").unwrap().percents(), [80, 90, 100]);
        assert_eq!(parse_percents("none").unwrap().percents(), [0; 0]);
        for bad in ["", "80;90", "101", "0", "-1"] {
            assert!(parse_percents(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_value_counts_but_stores_add_up() {
        let args = ["laminad", "--slots", "5", "--store", "/a", "--slots", "6", "--store", "/b"];
        let config = Config::parse_from(args);
        assert_eq!((config.slots, config.stores), (6, vec!["/a".into(), "/b".into()]));
    }

    #[test]
    fn the_defaults_are_lawful() {
        let config = Config::parse_from(["laminad"]);
        assert_eq!(config.engine().unwrap().slots, 1024);
        assert_eq!(config.reactors().unwrap().len(), 1);
        assert_eq!((config.idle_us, config.busy_poll), (50, false));
        assert_eq!(config.space_warnings, Thresholds::default());
        let small = Config { cache_size: 1, ..config.clone() };
        assert!(small.engine().is_err());
        assert!(Config { slots: 0, ..config }.engine().is_err());
    }
}
