//! What a disk with a volatile cache holds: what is safe, and every version written since.
//!
//! ```text
//!  sector 7:  safe "a"    since the last flush: "b" (write 12), "c" (write 15)
//!  power cut: each write is kept, lost or torn, in no order ─► the sector is "a", "b" or "c"
//! ```

use std::collections::BTreeMap;

use crate::sim::rng::Rng;

/// Bytes in what is written as one.
pub const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// A sector's contents by the write that brought them.
#[derive(Clone, Debug)]
struct Version {
    write: u64,
    bytes: Box<Sector>,
}

/// What became of the writes since the last flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// Writes that were not flushed.
    pub writes: u64,
    /// Sectors that they wrote, each counted once.
    pub sectors: u64,
    /// Sectors that hold the last thing written to them.
    pub newest: u64,
    /// Sectors that hold something older, but written since the flush.
    pub between: u64,
}

/// Contents of the disk.
#[derive(Debug)]
pub struct Cache {
    safe: Vec<u8>,
    volatile: BTreeMap<u64, Vec<Version>>,
    /// Writes so far.
    writes: u64,
    /// `writes` at the last flush.
    flushed: u64,
}

/// What happens to one write when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

impl Cache {
    /// A disk of `bytes` zeros.
    #[must_use]
    pub fn new(bytes: usize) -> Cache {
        assert!(bytes.is_multiple_of(SECTOR), "whole sectors");
        Cache { safe: vec![0; bytes], volatile: BTreeMap::new(), writes: 0, flushed: 0 }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.safe.len()
    }

    /// True for a disk without sectors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.safe.is_empty()
    }

    /// True if `len` bytes at `offset` are whole sectors of this disk.
    #[must_use]
    pub fn holds(&self, offset: u64, len: usize) -> bool {
        let aligned = offset.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR);
        aligned && offset.checked_add(len as u64).is_some_and(|end| end <= self.len() as u64)
    }

    /// Writes whole sectors; panics outside the disk.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert!(self.holds(offset, data.len()), "a write outside the disk");
        let first = offset / SECTOR as u64;
        for (sector, bytes) in (first..).zip(data.as_chunks::<SECTOR>().0) {
            let version = Version { write: self.writes, bytes: Box::new(*bytes) };
            self.volatile.entry(sector).or_default().push(version);
        }
        self.writes += 1;
    }

    /// Reads whole sectors as they are while there is power; panics outside the disk.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        assert!(self.holds(offset, len), "a read outside the disk");
        let mut bytes = self.safe[offset as usize..offset as usize + len].to_vec();
        let first = offset / SECTOR as u64;
        for (sector, versions) in self.volatile.range(first..first + (len / SECTOR) as u64) {
            let at = (sector - first) as usize * SECTOR;
            let last = versions.last().expect("a sector in the cache has a version");
            bytes[at..at + SECTOR].copy_from_slice(&*last.bytes);
        }
        bytes
    }

    /// Makes everything safe.
    pub fn flush(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.volatile) {
            let last = versions.last().expect("a sector in the cache has a version");
            self.keep(sector, &last.bytes);
        }
        self.flushed = self.writes;
    }

    fn keep(&mut self, sector: u64, bytes: &Sector) {
        let at = sector as usize * SECTOR;
        self.safe[at..at + SECTOR].copy_from_slice(bytes);
    }

    /// Takes the power away: what was not flushed survives as chance has it.
    pub fn cut(&mut self, rng: &mut Rng) -> Cut {
        let fates = Cache::fates(self.writes - self.flushed, rng);
        let mut cut = Cut { writes: self.writes - self.flushed, ..Cut::default() };
        for (sector, versions) in std::mem::take(&mut self.volatile) {
            let survives = |version: &Version, rng: &mut Rng| match fates
                [(version.write - self.flushed) as usize]
            {
                Fate::Kept => true,
                Fate::Lost => false,
                Fate::Torn => rng.below(2) == 0,
            };
            let left = versions.iter().rposition(|version| survives(version, rng));
            cut.sectors += 1;
            if let Some(index) = left {
                let newest = index + 1 == versions.len();
                cut.newest += u64::from(newest);
                cut.between += u64::from(!newest);
                self.keep(sector, &versions[index].bytes);
            }
        }
        self.flushed = self.writes;
        cut
    }

    /// A fate for each of `count` writes. How likely each fate is differs from cut to cut, and
    /// sometimes it is the newer writes that are kept and the older ones that are lost.
    fn fates(count: u64, rng: &mut Rng) -> Vec<Fate> {
        let (kept, torn) =
            [(0, 0), (1000, 0), (500, 0), (900, 50), (100, 100), (300, 400)][rng.index(6)];
        let turned = (rng.below(4) == 0).then(|| rng.below(count + 1));
        let draw = |write: u64, rng: &mut Rng| {
            let chance = rng.below(1000);
            match turned {
                Some(first) if chance < 900 => {
                    if write >= first {
                        Fate::Kept
                    } else {
                        Fate::Lost
                    }
                }
                _ if chance < kept => Fate::Kept,
                _ if chance < kept + torn => Fate::Torn,
                _ => Fate::Lost,
            }
        };
        (0..count).map(|write| draw(write, rng)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(byte: u8, sectors: usize) -> Vec<u8> {
        vec![byte; sectors * SECTOR]
    }

    #[test]
    fn a_flush_is_what_survives_every_cut() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = Cache::new(64 * SECTOR);
            disk.write(0, &filled(1, 8));
            assert_eq!(disk.read(512, 512), filled(1, 1));
            disk.flush();
            disk.write(SECTOR as u64, &filled(2, 2));
            disk.write(2 * SECTOR as u64, &filled(3, 2));
            assert_eq!(disk.read(0, 2048), [1, 2, 3, 3].map(|b| filled(b, 1)).concat());
            let cut = disk.cut(&mut rng);
            assert_eq!((cut.writes, cut.sectors), (2, 3));
            let after = disk.read(0, 8 * SECTOR);
            let sector = |index: usize| after[index * SECTOR];
            assert_eq!((sector(0), sector(7)), (1, 1));
            assert!([1, 2].contains(&sector(1)) && [1, 2, 3].contains(&sector(2)));
            assert!([1, 3].contains(&sector(3)));
            assert_eq!(disk.cut(&mut rng), Cut::default());
            assert_eq!(disk.read(0, 8 * SECTOR), after);
        }
    }

    #[test]
    fn cuts_lose_keep_tear_and_reorder() {
        let (mut all, mut none, mut torn, mut reordered, mut between) = (0, 0, 0, 0, 0);
        for seed in 0..400 {
            let mut disk = Cache::new(16 * SECTOR);
            disk.write(0, &filled(1, 4));
            disk.write(4 * SECTOR as u64, &filled(2, 4));
            disk.write(4 * SECTOR as u64, &filled(3, 4));
            let cut = disk.cut(&mut Rng::new(seed));
            let bytes = disk.read(0, 8 * SECTOR);
            let at: Vec<u8> = bytes.iter().step_by(SECTOR).copied().collect();
            all += u32::from(at == [1, 1, 1, 1, 3, 3, 3, 3]);
            none += u32::from(at == [0; 8]);
            torn += u32::from(at[..4].contains(&0) && at[..4].contains(&1));
            reordered += u32::from(at == [0, 0, 0, 0, 3, 3, 3, 3]);
            between += u32::from(cut.between > 0);
        }
        for count in [all, none, torn, reordered, between] {
            assert!(count > 4, "{all} {none} {torn} {reordered} {between}");
        }
    }
}
