//! The records of a journal, in order, as recovery and the check hold them: 32 bytes each, as on
//! disk, so that a full journal takes no more memory than it has bytes.
//!
//! ```text
//!  entry: kind 1, flags 1, len 2, disk 4, vba 8, pba 8, crc 4, journal block 4 (from the tail on)
//!          │
//!          └─ a snapshot, or what a lost block was about: vba is its place in a list beside it
//! ```

use crate::format::journal::{Record, Touched};

/// What is to be replayed, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Record(Record),
    /// The journal block that stood here is lost; it was about these disks.
    Lost(Touched),
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub lsn: u64,
    pub entry: Entry,
    /// Its data must be compared with its checksum.
    pub check: bool,
    pub dropped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Write,
    Discard,
    Snapshot,
    /// No block of this number was there.
    Missing,
    /// It had been promised.
    Lost,
}

#[derive(Clone, Copy)]
struct Packed {
    vba: u64,
    pba: u64,
    disk: u32,
    crc: u32,
    /// Journal blocks after the tail.
    block: u32,
    len: u16,
    kind: Kind,
    flags: u8,
}
const _: () = assert!(size_of::<Packed>() == 32);

const CHECK: u8 = 1;
const DROPPED: u8 = 2;

/// A journal's records.
#[derive(Default)]
pub(crate) struct Replays {
    tail: u64,
    all: Vec<Packed>,
    snapshots: Vec<Record>,
    lost: Vec<Touched>,
}

impl Replays {
    /// Those of a journal that begins at `tail`.
    pub fn new(tail: u64) -> Replays {
        Replays { tail, ..Replays::default() }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    fn packed(&self, lsn: u64, kind: Kind) -> Packed {
        let block = u32::try_from(lsn - self.tail).expect("a journal has fewer blocks");
        Packed { vba: 0, pba: 0, disk: 0, crc: 0, block, len: 0, kind, flags: 0 }
    }

    /// Adds a record of journal block `lsn`, which is none before the last one.
    pub fn push(&mut self, lsn: u64, record: &Record) {
        let packed = match *record {
            Record::Write { disk, vba, pba, len, crc } => {
                Packed { disk, vba, pba, len, crc, ..self.packed(lsn, Kind::Write) }
            }
            Record::Discard { disk, vba, len } => {
                Packed { disk, vba, len, ..self.packed(lsn, Kind::Discard) }
            }
            Record::Snapshot { .. } => {
                self.snapshots.push(*record);
                let vba = self.snapshots.len() as u64 - 1;
                Packed { vba, ..self.packed(lsn, Kind::Snapshot) }
            }
        };
        self.all.push(packed);
    }

    /// Notes that there is no journal block `lsn`.
    pub fn push_missing(&mut self, lsn: u64) {
        self.all.push(self.packed(lsn, Kind::Missing));
    }

    /// Adds a journal block that is lost, and what it was about.
    pub fn push_lost(&mut self, lsn: u64, touched: Touched) {
        self.lost.push(touched);
        let vba = self.lost.len() as u64 - 1;
        self.all.push(Packed { vba, ..self.packed(lsn, Kind::Lost) });
    }

    /// Forgets what was added after `len` others.
    pub fn truncate(&mut self, len: usize) {
        self.all.truncate(len);
    }

    /// What was added after `at` others; `None`: nothing, or a journal block that is not there.
    pub fn get(&self, at: usize) -> Option<Replay> {
        let packed = self.all.get(at)?;
        let Packed { vba, pba, disk, crc, len, .. } = *packed;
        let entry = match packed.kind {
            Kind::Write => Entry::Record(Record::Write { disk, vba, pba, len, crc }),
            Kind::Discard => Entry::Record(Record::Discard { disk, vba, len }),
            Kind::Snapshot => Entry::Record(self.snapshots[vba as usize]),
            Kind::Lost => Entry::Lost(self.lost[vba as usize]),
            Kind::Missing => return None,
        };
        let (check, dropped) = (packed.flags & CHECK != 0, packed.flags & DROPPED != 0);
        Some(Replay { lsn: self.lsn(packed), entry, check, dropped })
    }

    fn lsn(&self, packed: &Packed) -> u64 {
        self.tail + u64::from(packed.block)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Replay> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Ends the list before the first missing block that was not promised, which it answers (or
    /// `end`, if there is none), and puts a loss where one was that is `promised`. Writes are
    /// to be checked where `check` says so of their journal block.
    pub fn settle(
        &mut self,
        end: u64,
        promised: u64,
        check: impl Fn(u64) -> bool,
        about: impl Fn(u64) -> Touched,
    ) -> u64 {
        for at in 0..self.all.len() {
            let lsn = self.lsn(&self.all[at]);
            match self.all[at].kind {
                Kind::Missing if lsn < promised => {
                    self.all[at].kind = Kind::Lost;
                    self.all[at].vba = self.lost.len() as u64;
                    self.lost.push(about(lsn));
                }
                Kind::Missing => {
                    self.truncate(at);
                    return lsn;
                }
                Kind::Write if check(lsn) => self.all[at].flags |= CHECK,
                Kind::Write | Kind::Discard | Kind::Snapshot | Kind::Lost => {}
            }
        }
        end
    }

    /// A record's data are not what it says, and were never promised.
    pub fn drop_record(&mut self, at: usize) {
        self.all[at].flags |= DROPPED;
    }

    /// Records that were dropped.
    pub fn dropped(&self) -> u64 {
        self.all.iter().filter(|packed| packed.flags & DROPPED != 0).count() as u64
    }

    pub fn reverse(&mut self) {
        self.all.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Name, Uuid};

    fn snapshot(snap: u64) -> Record {
        let label = Name::new("nightly").unwrap();
        Record::Snapshot { disk: 1, snap, uuid: Uuid([3; 16]), time: 8, label }
    }

    #[test]
    fn what_went_in_comes_out() {
        let wrote = [
            (70, Record::Write { disk: 65_534, vba: 1 << 36, pba: 1 << 46, len: 512, crc: !0 }),
            (70, snapshot(1)),
            (71, Record::Discard { disk: 2, vba: 9, len: 3 }),
            (90, snapshot(2)),
        ];
        let mut all = Replays::new(70);
        wrote.iter().for_each(|(lsn, record)| all.push(*lsn, record));
        let mut touched = Touched::default();
        touched.add(4);
        all.push_lost(91, touched);
        let expected = wrote.map(|(lsn, record)| (lsn, Entry::Record(record)));
        let expected = expected.into_iter().chain([(91, Entry::Lost(touched))]);
        let found = all.iter().map(|r| (r.lsn, r.entry));
        assert!(found.eq(expected));
        all.drop_record(2);
        assert_eq!((all.dropped(), all.get(2).unwrap().dropped), (1, true));
        assert!(!all.get(1).unwrap().dropped && all.get(5).is_none());
        all.reverse();
        assert_eq!(all.get(0).unwrap().lsn, 91);
    }

    #[test]
    fn a_full_journal_takes_no_more_memory_than_its_bytes() {
        let mut all = Replays::new(5);
        let record = Record::Write { disk: 1, vba: 2, pba: 3, len: 4, crc: 5 };
        let (blocks, units) = (1024, crate::format::journal::UNITS_MAX);
        for lsn in 5..5 + blocks {
            (0..units).for_each(|_| all.push(lsn, &record));
        }
        let held = all.len() * size_of_val(&all.all[0]);
        assert!(held <= blocks as usize * 4096, "{held} bytes");
        assert_eq!(all.settle(5 + blocks, 5 + blocks, |lsn| lsn > 5, |_| Touched::ALL), 1029);
        let checked = all.iter().filter(|r| r.check).count();
        assert_eq!((all.len(), checked), (blocks as usize * units, 1023 * units));
    }
}
