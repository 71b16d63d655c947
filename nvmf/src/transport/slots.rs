//! Commands in flight: one slot each, from the capsule to the last byte of the answer.
//!
//! ```text
//!  Free ─► CapsuleData ─────────────┐
//!      ├─► NeedsBuffer ─► Transfer ─┼─► Ready ─► Running ─► Answering ─► Free
//!      └────────────────────────────┘   └─ next_command  └─ respond
//!          a command that the transport itself refuses goes to Answering at once
//! ```

use std::collections::VecDeque;

use crate::SlotId;
use crate::pool::Buffer;
use crate::wire::{Command, Completion, Fuse, Status};

use super::limits::DEPTH_MAX;
use super::stall::Progress;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Free,
    /// In-capsule data is coming in.
    CapsuleData,
    /// Waits for a buffer before the data is asked for.
    NeedsBuffer,
    /// R2T queued or sent; data is coming in.
    Transfer,
    /// Complete.
    Ready,
    /// Handed out.
    Running,
    /// Its answer is queued or being sent.
    Answering,
}

/// Bits of a transfer tag that are the slot; the others count its uses.
const TAG_SLOT_BITS: u32 = 10;
const _: () = assert!(DEPTH_MAX as u32 == 1 << TAG_SLOT_BITS);

#[derive(Debug)]
pub(super) struct Slot {
    pub stage: Stage,
    pub command: Command,
    pub buffer: Option<Buffer>,
    /// Bytes of data that the command has or wants.
    pub data_len: u32,
    /// Bytes of data that have come in.
    pub received: u32,
    /// The R2T is on its way.
    pub asked: bool,
    /// When data last moved.
    pub progress: Progress,
    /// The transport's own verdict.
    pub failed: Option<Status>,
    /// Not another command's identifier.
    pub owns_cid: bool,
    /// First of two fused commands that waits for the second, or the second for the first.
    held: bool,
    partner: Option<SlotId>,
    pub answer: Completion,
    /// Bytes of data in the answer, and those of them that are in PDUs already.
    pub answer_len: u32,
    pub answer_sent: u32,
    generation: u8,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            stage: Stage::Free,
            command: Command::default(),
            buffer: None,
            data_len: 0,
            received: 0,
            asked: false,
            progress: Progress::default(),
            failed: None,
            owns_cid: false,
            held: false,
            partner: None,
            answer: Completion::SUCCESS,
            answer_len: 0,
            answer_sent: 0,
            generation: 0,
        }
    }
}

/// The slots of a connection.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    ready: VecDeque<SlotId>,
    /// One bit an identifier in flight.
    cids: Vec<u64>,
    /// The newest command, if it is the first of two fused ones.
    fused_first: Option<SlotId>,
    running: usize,
}

impl Slots {
    pub fn new(count: u16) -> Slots {
        let mut slots = Slots {
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            cids: Vec::new(),
            fused_first: None,
            running: 0,
        };
        slots.grow(count);
        slots
    }

    /// Makes room for `count` commands; those in flight stay.
    pub fn grow(&mut self, count: u16) {
        assert!(count <= DEPTH_MAX);
        let old = self.slots.len();
        let count = usize::from(count).max(old);
        self.slots.resize_with(count, Slot::new);
        self.free.reserve_exact(count - self.free.len());
        self.free.extend((old as u16..count as u16).rev());
        self.ready.reserve_exact(count - self.ready.len());
    }

    /// From now on identifiers in flight are known. Before, there is one command at a time.
    pub fn track_cids(&mut self) {
        if self.cids.is_empty() {
            self.cids = vec![0; (1 << 16) / 64];
            for at in 0..self.slots.len() {
                if self.slots[at].stage != Stage::Free && self.slots[at].owns_cid {
                    self.mark_cid(self.slots[at].command.cid);
                }
            }
        }
    }

    fn mark_cid(&mut self, cid: u16) {
        if let Some(word) = self.cids.get_mut(usize::from(cid) / 64) {
            *word |= 1 << (cid % 64);
        }
    }

    pub fn cid_in_flight(&self, cid: u16) -> bool {
        self.cids.get(usize::from(cid) / 64).is_some_and(|word| word & 1 << (cid % 64) != 0)
    }

    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn running(&self) -> usize {
        self.running
    }

    pub fn get(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }

    pub fn get_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[id.index()]
    }

    pub fn ids(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.slots.len() as u16).map(SlotId)
    }

    /// A slot for a command that has just come in, `None` if all are in use. Fused commands are
    /// paired here, in the order they come in, if `pair`.
    pub fn begin(&mut self, command: Command, stage: Stage, pair: bool) -> Option<SlotId> {
        let id = SlotId(self.free.pop()?);
        let owns_cid = !self.cid_in_flight(command.cid);
        if owns_cid {
            self.mark_cid(command.cid);
        }
        let generation = self.slots[id.index()].generation;
        self.slots[id.index()] = Slot { stage, command, owns_cid, generation, ..Slot::new() };
        match self.fused_first.take() {
            Some(first) if command.fuse == Fuse::Second => {
                self.get_mut(first).partner = Some(id);
                let second = self.get_mut(id);
                (second.partner, second.held) = (Some(first), true);
            }
            Some(first) => self.release(first),
            None => {}
        }
        if pair && command.fuse == Fuse::First {
            self.fused_first = Some(id);
            self.get_mut(id).held = true;
        }
        Some(id)
    }

    /// The command and its data are complete.
    pub fn complete(&mut self, id: SlotId) {
        let slot = self.get_mut(id);
        slot.stage = Stage::Ready;
        if !slot.held {
            self.ready.push_back(id);
            return;
        }
        let Some(partner) = slot.partner else { return };
        if self.get(partner).stage == Stage::Ready {
            let second = if self.get(id).command.fuse == Fuse::First { partner } else { id };
            let first = if second == id { partner } else { id };
            self.release(first);
            self.release(second);
        }
    }

    /// The command is refused: the other of two fused ones goes on alone.
    pub fn refuse(&mut self, id: SlotId) {
        if self.fused_first == Some(id) {
            self.fused_first = None;
        }
        let partner = self.get(id).partner;
        self.release(id);
        if let Some(partner) = partner {
            self.release(partner);
        }
    }

    /// Does not wait for another any more.
    fn release(&mut self, id: SlotId) {
        let slot = self.get_mut(id);
        slot.partner = None;
        if std::mem::take(&mut slot.held) && slot.stage == Stage::Ready {
            self.ready.push_back(id);
        }
    }

    pub fn next_ready(&mut self) -> Option<SlotId> {
        let id = self.ready.pop_front()?;
        let slot = self.get_mut(id);
        assert!(slot.stage == Stage::Ready, "{slot:?}");
        slot.stage = Stage::Running;
        self.running += 1;
        Some(id)
    }

    /// From running to answering.
    pub fn answered(&mut self, id: SlotId) {
        let slot = self.get_mut(id);
        assert!(slot.stage == Stage::Running, "a command is answered once: {slot:?}");
        slot.stage = Stage::Answering;
        self.running -= 1;
    }

    /// The command's identifier may be used by another one from now on.
    pub fn disown_cid(&mut self, id: SlotId) {
        let slot = self.get_mut(id);
        let (owned, cid) = (std::mem::take(&mut slot.owns_cid), slot.command.cid);
        if owned && let Some(word) = self.cids.get_mut(usize::from(cid) / 64) {
            *word &= !(1 << (cid % 64));
        }
    }

    /// The end of a command; its buffer, to be given back.
    pub fn end(&mut self, id: SlotId) -> Option<Buffer> {
        let slot = self.get_mut(id);
        assert!(slot.stage != Stage::Free && slot.stage != Stage::Running, "{slot:?}");
        slot.stage = Stage::Free;
        slot.generation = slot.generation.wrapping_add(1);
        let buffer = slot.buffer.take();
        self.disown_cid(id);
        self.free.push(id.0);
        buffer
    }

    /// Forgets who is ready and who waits for whom; for a connection that is over.
    pub fn forget_order(&mut self) {
        self.ready.clear();
        self.fused_first = None;
    }

    /// Transfer tag of a command: differs between uses of a slot.
    pub fn tag(&self, id: SlotId) -> u16 {
        id.0 | u16::from(self.get(id).generation) << TAG_SLOT_BITS
    }

    /// The command that is waiting for data under this tag.
    pub fn by_tag(&self, tag: u16) -> Option<SlotId> {
        let id = SlotId(tag & ((1 << TAG_SLOT_BITS) - 1));
        let slot = self.slots.get(id.index())?;
        (slot.stage == Stage::Transfer && slot.asked && self.tag(id) == tag).then_some(id)
    }

    /// The command in flight with this identifier.
    pub fn by_cid(&self, cid: u16) -> Option<SlotId> {
        let here = |s: &Slot| s.stage != Stage::Free && s.owns_cid && s.command.cid == cid;
        self.slots.iter().position(here).map(|at| SlotId(at as u16))
    }
}

impl Drop for Slots {
    /// The memory of commands that somebody still works on is not freed under them.
    fn drop(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.stage == Stage::Running) {
            std::mem::forget(slot.buffer.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(cid: u16, fuse: Fuse) -> Command {
        Command { cid, fuse, ..Command::default() }
    }

    fn begin(slots: &mut Slots, cid: u16, fuse: Fuse) -> SlotId {
        slots.begin(command(cid, fuse), Stage::Transfer, true).expect("a slot")
    }

    #[test]
    fn a_tag_is_good_for_one_use_of_a_slot_while_data_is_awaited() {
        let mut slots = Slots::new(2);
        let first = begin(&mut slots, 5, Fuse::None);
        let tag = slots.tag(first);
        assert_eq!(slots.by_tag(tag), None, "not asked for yet");
        slots.get_mut(first).asked = true;
        assert_eq!(slots.by_tag(tag), Some(first));
        slots.complete(first);
        assert_eq!(slots.by_tag(tag), None, "complete");
        slots.next_ready();
        slots.answered(first);
        slots.end(first);
        let again = begin(&mut slots, 5, Fuse::None);
        slots.get_mut(again).asked = true;
        assert_eq!((again, slots.by_tag(tag)), (first, None));
        assert_ne!(slots.tag(again), tag);
    }

    #[test]
    fn identifiers_in_flight_are_known_from_when_they_are_tracked() {
        let mut slots = Slots::new(2);
        let early = begin(&mut slots, 0xffff, Fuse::None);
        slots.grow(8);
        slots.track_cids();
        assert!(slots.cid_in_flight(0xffff) && !slots.cid_in_flight(0));
        let twin = begin(&mut slots, 0xffff, Fuse::None);
        assert!(!slots.get(twin).owns_cid);
        slots.get_mut(twin).stage = Stage::Answering;
        slots.end(twin);
        assert!(slots.cid_in_flight(0xffff), "its owner is still there");
        assert_eq!(slots.by_cid(0xffff), Some(early));
        slots.get_mut(early).stage = Stage::Answering;
        slots.end(early);
        assert!(!slots.cid_in_flight(0xffff) && slots.in_flight() == 0);
        assert!(
            (0..8).all(|cid| slots.begin(command(cid, Fuse::None), Stage::Ready, true).is_some())
        );
        assert!(slots.begin(command(9, Fuse::None), Stage::Ready, true).is_none());
    }

    #[test]
    fn a_refused_half_of_a_fused_pair_sets_the_other_free() {
        for refused in [Fuse::First, Fuse::Second] {
            let mut slots = Slots::new(4);
            let first = begin(&mut slots, 1, Fuse::First);
            let second = begin(&mut slots, 2, Fuse::Second);
            let (bad, good) =
                if refused == Fuse::First { (first, second) } else { (second, first) };
            slots.complete(good);
            assert_eq!(slots.next_ready(), None, "it waits for the other");
            slots.get_mut(bad).stage = Stage::Answering;
            slots.refuse(bad);
            assert_eq!((slots.next_ready(), slots.next_ready()), (Some(good), None));
        }
    }

    #[test]
    #[should_panic(expected = "answered once")]
    fn a_command_cannot_be_answered_twice() {
        let mut slots = Slots::new(2);
        let slot = begin(&mut slots, 1, Fuse::None);
        slots.complete(slot);
        slots.next_ready();
        slots.answered(slot);
        slots.answered(slot);
    }
}
