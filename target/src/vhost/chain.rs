//! A descriptor chain as an owned list: the ring's descriptors, then an indirect table's.

use super::vring::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, Desc, Fault, QUEUE_SIZE_MAX};
use crate::mem::guest::GuestMemory;

/// Most descriptors of an indirect table: what the largest ring could chain. Drivers use tables
/// longer than their own ring, so the ring's size is not the bound.
const TABLE_MAX: usize = QUEUE_SIZE_MAX as usize;

/// How a ring format reads indirect tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TableRules {
    /// Indirect descriptors were negotiated.
    pub(super) allowed: bool,
    /// Entries are taken in order (packed), not along their links (split).
    pub(super) in_order: bool,
}

/// A chain read from guest memory, each descriptor once. Allocated once a queue.
#[derive(Debug)]
pub(super) struct Chain {
    /// The first `len` of them are the chain's.
    descs: Box<[Desc]>,
    len: usize,
    /// One of them is, or was, a table.
    indirect: bool,
}

impl Chain {
    /// Room for the longest chain there can be: a full ring, the last entry of which is a table.
    pub(super) fn new() -> Chain {
        let descs = vec![Desc::default(); usize::from(QUEUE_SIZE_MAX) + TABLE_MAX];
        Chain { descs: descs.into_boxed_slice(), len: 0, indirect: false }
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.indirect = false;
    }

    /// Adds a descriptor; the callers bound how many.
    #[inline]
    pub(super) fn push(&mut self, desc: Desc) {
        self.descs[self.len] = desc;
        self.len += 1;
        self.indirect |= desc.has(DESC_INDIRECT);
    }

    #[inline]
    pub(super) fn descs(&self) -> &[Desc] {
        &self.descs[..self.len]
    }

    /// Replaces an indirect descriptor, which must be the last, by its table's descriptors.
    #[inline]
    pub(super) fn expand(
        &mut self,
        memory: &GuestMemory,
        hint: &mut usize,
        rules: TableRules,
    ) -> Result<(), Fault> {
        if !self.indirect {
            return Ok(());
        }
        self.expand_table(memory, hint, rules)
    }

    fn expand_table(
        &mut self,
        memory: &GuestMemory,
        hint: &mut usize,
        rules: TableRules,
    ) -> Result<(), Fault> {
        let Some(position) = self.descs().iter().position(|desc| desc.has(DESC_INDIRECT)) else {
            return Ok(());
        };
        let table = self.descs[position];
        if !rules.allowed || table.has(DESC_NEXT) || position + 1 != self.len {
            return Err(Fault::IndirectNotAllowed);
        }
        let bytes = table.len as usize;
        let entries = bytes / DESC_BYTES;
        if entries == 0 || !bytes.is_multiple_of(DESC_BYTES) || entries > TABLE_MAX {
            return Err(Fault::IndirectLength);
        }
        self.len -= 1;
        self.read_table(memory, hint, table.addr, entries, rules)
    }

    fn read_table(
        &mut self,
        memory: &GuestMemory,
        hint: &mut usize,
        addr: u64,
        entries: usize,
        rules: TableRules,
    ) -> Result<(), Fault> {
        let mut index = 0;
        for _ in 0..entries {
            let at = addr.checked_add((index * DESC_BYTES) as u64);
            let words = at.and_then(|at| read_words(memory, hint, at));
            let (addr, rest) = words.ok_or(Fault::IndirectAddress)?;
            let desc =
                if rules.in_order { Desc::packed(addr, rest) } else { Desc::split(addr, rest) };
            if desc.has(DESC_INDIRECT) {
                return Err(Fault::IndirectNested);
            }
            self.push(desc);
            if rules.in_order {
                index += 1;
                if index == entries {
                    return Ok(());
                }
                continue;
            }
            if !desc.has(DESC_NEXT) {
                return Ok(());
            }
            index = usize::from(desc.link);
            if index >= entries {
                return Err(Fault::NextOutOfRange);
            }
        }
        Err(Fault::ChainTooLong)
    }
}

/// A table's entry, wherever in the regions it lies.
#[inline]
fn read_words(memory: &GuestMemory, hint: &mut usize, at: u64) -> Option<(u64, u64)> {
    if let Some(words) = memory.window(hint, at)?.words(at) {
        return Some(words);
    }
    let mut raw = [0; DESC_BYTES];
    let there = memory.read(hint, at, &mut raw);
    let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| raw[from + i]));
    there.then(|| (word(0), word(8)))
}
