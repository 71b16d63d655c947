//! Who descends from whom, answered in a logarithm of the number of generations, however many
//! clones of clones there are.
//!
//! ```text
//!   golden ◄─ vm ◄─ a ◄─ b ◄─ c        each knows the one before it and one further back (jump),
//!      ╚══════ jump of c               so that any ancestor is a few steps away
//! ```

/// Of one record slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// Slot of the disk it was cloned from, and of which snapshot.
    parent: Option<(u32, u64)>,
    /// Itself, or an ancestor several generations back.
    jump: u32,
    depth: u32,
    /// Depth of the nearest of itself and its ancestors before which nothing is known.
    vague: Option<u32>,
}

/// What a slot says of where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// There is no disk, or none that can be read.
    Nothing,
    /// A clone of that snapshot, or of none.
    From(Option<(u32, u64)>),
    /// The same, but snapshots between have been deleted.
    After(Option<(u32, u64)>),
}

/// How an owner of nodes is related to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Related {
    /// It is the disk itself.
    Same,
    /// An ancestor, of which it has what there was up to this snapshot.
    Ancestor(u64),
    /// Who came before is not known.
    Perhaps,
    No,
}

/// All disks of a shard.
#[derive(Default)]
pub(super) struct Lineage {
    parents: Vec<Option<(u32, u64)>>,
    /// `None` for those whose ancestors lead round in a circle.
    places: Vec<Option<Place>>,
    circular: Vec<bool>,
}

impl Lineage {
    /// From what each slot says.
    pub fn new(said: &[Said]) -> Lineage {
        let parent = |slot: usize| match said.get(slot) {
            Some(Said::From(origin) | Said::After(origin)) => *origin,
            Some(Said::Nothing) | None => None,
        };
        let circular = crate::recover::circular(said.len(), |slot| {
            parent(slot).map(|(origin, _)| origin as usize)
        });
        let parents = (0..said.len()).map(parent).collect();
        let mut lineage = Lineage { parents, places: vec![None; said.len()], circular };
        let mut chain = Vec::new();
        for slot in 0..said.len() {
            let mut at = slot;
            while at < said.len() && lineage.places[at].is_none() && !lineage.circular[at] {
                chain.push(at);
                match parent(at) {
                    Some((origin, _)) => at = origin as usize,
                    None => break,
                }
            }
            while let Some(slot) = chain.pop() {
                lineage.places[slot] = Some(lineage.placed(slot, &said[slot], parent(slot)));
            }
        }
        lineage
    }

    /// Its parent has its place already, if it can have one.
    fn placed(&self, slot: usize, said: &Said, parent: Option<(u32, u64)>) -> Place {
        let above = parent.and_then(|(origin, _)| self.place(origin));
        let (jump, depth, vague) = match (parent, above) {
            (Some((origin, _)), Some(above)) => {
                let further = self.place(above.jump).expect("ancestors have their places");
                let jump =
                    match above.depth - further.depth == further.depth - self.depth(further.jump) {
                        true => further.jump,
                        false => origin,
                    };
                (jump, above.depth + 1, above.vague)
            }
            // No slot has such a number.
            (Some(_), None) => (slot as u32, 0, Some(0)),
            (None, _) => (slot as u32, 0, None),
        };
        let own = matches!(said, Said::After(_) | Said::Nothing).then_some(depth);
        let parent = parent.filter(|_| above.is_some());
        Place { parent, jump, depth, vague: own.or(vague) }
    }

    fn place(&self, slot: u32) -> Option<&Place> {
        self.places.get(slot as usize)?.as_ref()
    }

    fn depth(&self, slot: u32) -> u32 {
        self.place(slot).map_or(0, |place| place.depth)
    }

    /// True if its ancestors lead round in a circle.
    pub fn is_circular(&self, slot: u32) -> bool {
        self.circular.get(slot as usize).copied().unwrap_or(false)
    }

    /// The ancestor of `slot` (or itself) at `depth`; its own is not less.
    fn ancestor(&self, slot: u32, depth: u32) -> u32 {
        let mut at = slot;
        while let Some(place) = self.place(at).filter(|place| place.depth > depth) {
            let parent = place.parent.expect("it is not the first").0;
            at = if self.depth(place.jump) < depth { parent } else { place.jump };
        }
        at
    }

    /// True if `slot` is `from`, or descends from it.
    pub fn descends(&self, slot: u32, from: u32) -> bool {
        if let (Some(own), Some(theirs)) = (self.place(slot), self.place(from)) {
            return own.depth >= theirs.depth && self.ancestor(slot, theirs.depth) == from;
        }
        // Round in a circle: at most once.
        let next = |at: &u32| Some(self.parents.get(*at as usize).copied()??.0);
        std::iter::successors(Some(slot), next).take(self.parents.len() + 1).any(|at| at == from)
    }

    /// How the owner of a node is related to `slot`. `its_own`: the node is not of a disk that had
    /// the owner's slot before it.
    pub fn related(&self, slot: u32, owner: u32, its_own: bool) -> Related {
        let Some(own) = self.place(slot) else { return Related::Perhaps };
        if its_own && slot == owner {
            return Related::Same;
        }
        let theirs = self.place(owner).map(|place| place.depth);
        if let Some(depth) = theirs.filter(|&depth| its_own && depth < own.depth)
            && self.ancestor(slot, depth) == owner
            && own.vague.is_none_or(|vague| vague <= depth)
        {
            let below = self.ancestor(slot, depth + 1);
            let (_, snap) = self.place(below).and_then(|p| p.parent).expect("it has an ancestor");
            return Related::Ancestor(snap);
        }
        if own.vague.is_some() { Related::Perhaps } else { Related::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `related`, by going from one to the next.
    fn walked(said: &[Said], slot: u32, owner: u32, its_own: bool) -> Related {
        let (mut at, mut snap) = (slot, None);
        for _ in 0..=said.len() {
            let (origin, vague) = match said.get(at as usize) {
                None | Some(Said::Nothing) => return Related::Perhaps,
                Some(Said::From(origin)) => (origin, false),
                Some(Said::After(origin)) => (origin, true),
            };
            if its_own && at == owner {
                return snap.map_or(Related::Same, Related::Ancestor);
            }
            match origin {
                _ if vague => return Related::Perhaps,
                None => return Related::No,
                Some((next, from)) => (at, snap) = (*next, Some(*from)),
            }
        }
        Related::Perhaps
    }

    #[test]
    fn relations_are_those_that_walking_finds() {
        let mut random = 1u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (random >> 33) % bound
        };
        for round in 0..400 {
            let count = 1 + below(24);
            let said: Vec<Said> = (0..count)
                .map(|slot| {
                    // Mostly clones of slots before; now and then of any, so that there are rings.
                    let bound = if below(8) == 0 { count + 2 } else { slot.max(1) };
                    let from = (below(bound) as u32, 1 + below(9));
                    match below(8) {
                        0 => Said::From(None),
                        1 if round % 2 == 0 => Said::Nothing,
                        2 => Said::After(Some(from)),
                        _ => Said::From(Some(from)),
                    }
                })
                .collect();
            let lineage = Lineage::new(&said);
            for slot in 0..count as u32 {
                for owner in 0..count as u32 + 1 {
                    for its_own in [false, true] {
                        // Of a disk that cannot be read nobody says that a node is its own.
                        let unread = said.get(owner as usize) == Some(&Said::Nothing);
                        if lineage.is_circular(slot) || its_own && unread {
                            continue;
                        }
                        let found = lineage.related(slot, owner, its_own);
                        let due = walked(&said, slot, owner, its_own);
                        assert_eq!(found, due, "{slot} {owner} {its_own} of {said:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn clones_of_clones_to_any_depth_are_found_in_few_steps() {
        let count = crate::limits::DISKS_MAX as u32;
        let said: Vec<Said> = (0..count)
            .map(|slot| Said::From(slot.checked_sub(1).map(|before| (before, 7))))
            .collect();
        let lineage = Lineage::new(&said);
        let start = std::time::Instant::now();
        for slot in 1..count {
            for owner in [0, slot / 2, slot - 1] {
                assert_eq!(lineage.related(slot, owner, true), Related::Ancestor(7));
                assert!(lineage.descends(slot, owner) && !lineage.descends(owner, slot));
            }
        }
        // One by one these are ten thousand million steps.
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}
