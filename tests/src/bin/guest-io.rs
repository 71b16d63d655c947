//! Runs inside the test guest, on a raw disk, and knows what every sector must hold.
//!
//! ```text
//!  guest-io fill   DISK SEED FIRST COUNT             write COUNT sectors from FIRST, then sync
//!  guest-io check  DISK SEED FIRST COUNT             fail unless they hold what fill wrote
//!  guest-io zeroes DISK FIRST COUNT                  fail unless they read as zeroes
//!  guest-io stress DISK SEED SECTORS THREADS STOP    random writes, reads and syncs until the file
//!                                                    STOP exists, then check the whole area
//! ```
//!
//! A sector's contents follow from its number, the seed and the generation that wrote it, so a
//! sector that is stale, torn or misplaced is told apart. `stress` keeps the generations in the
//! memory of the guest, which outlives the daemon that serves the disk. All I/O is direct.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes in a sector, the smallest unit a guest may read or write.
const SECTOR: usize = 512;
/// Longest single transfer, sectors.
const TRANSFER_SECTORS_MAX: usize = 256;
/// Where a buffer for direct I/O must start.
const ALIGNMENT: usize = 4096;
/// Linux's O_DIRECT on x86-64.
const O_DIRECT: i32 = 0o40000;

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("guest-io: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String> {
    match *words {
        ["fill", disk, seed, first, count] => {
            let (first, count) = (number(first)?, number(count)?);
            fill(&open(disk)?, number(seed)?, first, count)?;
            Ok(format!("filled {count} sectors"))
        }
        ["check", disk, seed, first, count] => {
            let (first, count) = (number(first)?, number(count)?);
            let seed = number(seed)?;
            check(&open_read(disk)?, first, count, |sector| pattern(sector, seed, 1))?;
            Ok(format!("checked {count} sectors"))
        }
        ["zeroes", disk, first, count] => {
            let (first, count) = (number(first)?, number(count)?);
            check(&open_read(disk)?, first, count, |_| [0; SECTOR])?;
            Ok(format!("checked {count} sectors"))
        }
        ["stress", disk, seed, sectors, threads, stop] => {
            stress(disk, number(seed)?, number(sectors)?, number(threads)?, Path::new(stop))
        }
        _ => Err("unknown command; see the head of guest-io.rs".into()),
    }
}

fn number(word: &str) -> Result<u64> {
    word.parse().map_err(|_| format!("'{word}' is not a number"))
}

fn open(disk: &str) -> Result<File> {
    let options = &mut OpenOptions::new();
    options.read(true).write(true).custom_flags(O_DIRECT);
    options.open(disk).map_err(|error| format!("cannot open {disk}: {error}"))
}

fn open_read(disk: &str) -> Result<File> {
    let options = &mut OpenOptions::new();
    options.read(true).custom_flags(O_DIRECT);
    options.open(disk).map_err(|error| format!("cannot open {disk} to read: {error}"))
}

/// Scrambles a word: SplitMix64's output step.
fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// What sector `sector` holds after its `generation`-th write; zeroes before the first.
fn pattern(sector: u64, seed: u64, generation: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if generation == 0 {
        return bytes;
    }
    let key = scramble(seed ^ scramble(sector ^ scramble(generation)));
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&scramble(key.wrapping_add(index as u64)).to_le_bytes());
    }
    // Readable in a dump.
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes
}

/// Memory that direct I/O accepts.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Buffer {
        let bytes = vec![0; TRANSFER_SECTORS_MAX * SECTOR + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT);
        Buffer { bytes, start }
    }

    fn sectors(&mut self, count: usize) -> &mut [u8] {
        assert!((1..=TRANSFER_SECTORS_MAX).contains(&count));
        &mut self.bytes[self.start..self.start + count * SECTOR]
    }
}

/// Splits `count` sectors from `first` into transfers, in order.
fn transfers(first: u64, count: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = TRANSFER_SECTORS_MAX as u64;
    (0..count.div_ceil(step)).map(move |index| {
        let at = index * step;
        (first + at, (count - at).min(step) as usize)
    })
}

fn failed(what: &str, sector: u64, error: io::Error) -> String {
    format!("{what} at sector {sector}: {error}")
}

fn fill(disk: &File, seed: u64, first: u64, count: u64) -> Result<()> {
    let mut buffer = Buffer::new();
    for (at, length) in transfers(first, count) {
        let bytes = buffer.sectors(length);
        for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            sector.copy_from_slice(&pattern(at + index as u64, seed, 1));
        }
        disk.write_all_at(bytes, at * SECTOR as u64).map_err(|e| failed("write", at, e))?;
    }
    disk.sync_all().map_err(|e| failed("sync", first, e))
}

fn check(disk: &File, first: u64, count: u64, want: impl Fn(u64) -> [u8; SECTOR]) -> Result<()> {
    let mut buffer = Buffer::new();
    for (at, length) in transfers(first, count) {
        let bytes = buffer.sectors(length);
        disk.read_exact_at(bytes, at * SECTOR as u64).map_err(|e| failed("read", at, e))?;
        for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            compare(at + index as u64, sector, &want(at + index as u64))?;
        }
    }
    Ok(())
}

fn compare(number: u64, found: &[u8], wanted: &[u8; SECTOR]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let word = |bytes: &[u8], at: usize| {
        bytes[at..at + 8].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let byte = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(SECTOR);
    Err(format!(
        "sector {number} differs from byte {byte} on: holds the mark of sector {} generation {}, \
         should be sector {} generation {}",
        word(found, 0),
        word(found, 8),
        word(wanted, 0),
        word(wanted, 8)
    ))
}

/// One thread's part of a stress run: an area nobody else touches, and what it must hold.
struct Worker {
    disk: File,
    buffer: Buffer,
    seed: u64,
    random: u64,
    first: u64,
    generations: Vec<u32>,
    writes: u64,
    reads: u64,
    syncs: u64,
}

impl Worker {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.random) % below
    }

    /// A random stretch of the area: mostly short, sometimes a whole transfer, any alignment.
    fn stretch(&mut self) -> (usize, usize) {
        let longest = [8, 8, 64, TRANSFER_SECTORS_MAX as u64][self.random(4) as usize];
        let length = 1 + self.random(longest) as usize;
        let length = length.min(self.generations.len());
        let start = self.random((self.generations.len() - length + 1) as u64) as usize;
        (start, length)
    }

    fn step(&mut self) -> Result<()> {
        match self.random(10) {
            0..=5 => self.write(),
            6..=8 => self.read(),
            _ => {
                self.syncs += 1;
                self.disk.sync_all().map_err(|e| failed("sync", self.first, e))
            }
        }
    }

    fn write(&mut self) -> Result<()> {
        let (start, length) = self.stretch();
        let at = self.first + start as u64;
        let bytes = self.buffer.sectors(length);
        for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            let generation = &mut self.generations[start + index];
            *generation += 1;
            let contents = pattern(at + index as u64, self.seed, u64::from(*generation));
            sector.copy_from_slice(&contents);
        }
        self.disk.write_all_at(bytes, at * SECTOR as u64).map_err(|e| failed("write", at, e))?;
        self.writes += 1;
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let (start, length) = self.stretch();
        self.verify(start, length)?;
        self.reads += 1;
        Ok(())
    }

    fn verify(&mut self, start: usize, length: usize) -> Result<()> {
        let (first, seed, generations) = (self.first, self.seed, &self.generations);
        check(&self.disk, first + start as u64, length as u64, |sector| {
            pattern(sector, seed, u64::from(generations[(sector - first) as usize]))
        })
    }

    fn run(mut self, stop: &Path, failure: &AtomicBool) -> Result<[u64; 3]> {
        while !stop.exists() && !failure.load(Ordering::Relaxed) {
            self.step()?;
        }
        self.verify(0, self.generations.len())?;
        Ok([self.writes, self.reads, self.syncs])
    }
}

/// The area must read as zeroes before: generation 0 is checked as such.
fn stress(disk: &str, seed: u64, sectors: u64, threads: u64, stop: &Path) -> Result<String> {
    if threads == 0 || sectors < threads {
        return Err("stress needs a thread, and a sector for each".into());
    }
    let failure = AtomicBool::new(false);
    let share = sectors / threads;
    let mut workers = Vec::new();
    for thread in 0..threads {
        workers.push(Worker {
            disk: open(disk)?,
            buffer: Buffer::new(),
            seed,
            random: seed ^ scramble(thread + 1),
            first: thread * share,
            generations: vec![0; share as usize],
            writes: 0,
            reads: 0,
            syncs: 0,
        });
    }
    let mut sums = [0; 3];
    thread::scope(|scope| {
        let failure = &failure;
        let start = |worker: Worker| {
            scope.spawn(move || {
                let result = worker.run(stop, failure);
                failure.fetch_or(result.is_err(), Ordering::Relaxed);
                result
            })
        };
        let running: Vec<_> = workers.into_iter().map(start).collect();
        for thread in running {
            let counts = thread.join().map_err(|_| "a thread panicked".to_string())??;
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        Ok::<(), String>(())
    })?;
    let [writes, reads, syncs] = sums;
    Ok(format!("stress: {writes} writes, {reads} reads, {syncs} syncs, {sectors} sectors checked"))
}
