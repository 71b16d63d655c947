//! Walks over trees that no longer change, by address.
//!
//! ```text
//!  root ─► node ─► node ─► leaf     each step is a buffer that has the node, or a read to wait for
//! ```
//!
//! Walkers read past the node cache, so that a walk over a whole disk evicts nothing. There are
//! two, with a few buffers each: one for the consistency point and its reaper, one for
//! changed-block lists. A read may come back late, after its walk has ended: the block may have
//! been freed and used again by then, which is no damage.

use crate::base_io::BaseOp;
use crate::disk::Root;
use crate::engine::{Class, Engine, tag};
use crate::format::node::{self, NodeRef};
use crate::limits::{LEVEL_BITS, LINKS};
use crate::page::PageId;
use crate::status::BaseError;

/// The walker of the consistency point and the reaper.
pub(crate) const REAPER: usize = 0;
/// The walker of changed-block lists.
pub(crate) const DIFF: usize = 1;

/// Buffers: four levels of three trees, and some.
const BUFFERS: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Buffer {
    Empty,
    /// `late`: the block may have become something else since the read was asked for.
    Loading {
        node: NodeRef,
        level: u8,
        index: u64,
        page: PageId,
        late: bool,
    },
    Node {
        address: u64,
        generation: u64,
        used: u64,
    },
    Damaged {
        address: u64,
        used: u64,
    },
}

/// Reads immutable nodes by address.
pub(crate) struct Walker {
    state: [Buffer; BUFFERS],
    links: Vec<[u64; LINKS]>,
    clock: u64,
    pub reads: usize,
    errors: u32,
}

/// Where a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Walk {
    /// A node is being read.
    Wait,
    Absent,
    Damaged,
    /// Address and buffer.
    Node(u64, usize),
}

impl Walker {
    pub fn new() -> Walker {
        Walker {
            state: [Buffer::Empty; BUFFERS],
            links: vec![[0; LINKS]; BUFFERS],
            clock: 0,
            reads: 0,
            errors: 0,
        }
    }

    /// Addresses may be reused from here on. What a read under way then brings says nothing: it is
    /// thrown away, and asked for again if it is still wanted.
    pub fn forget(&mut self) {
        for state in &mut self.state {
            match state {
                Buffer::Loading { late, .. } => *late = true,
                Buffer::Empty | Buffer::Node { .. } | Buffer::Damaged { .. } => {
                    *state = Buffer::Empty;
                }
            }
        }
    }

    /// True while a node is being read.
    pub fn is_loading(&self) -> bool {
        self.state.iter().any(|state| matches!(state, Buffer::Loading { .. }))
    }

    pub fn links(&self, buffer: usize) -> &[u64; LINKS] {
        &self.links[buffer]
    }
}

impl Engine {
    /// The node that `node` leads to, which must be the one of `level` at `index`.
    pub(crate) fn walk_node(&mut self, which: usize, node: NodeRef, level: u8, index: u64) -> Walk {
        let address = node.address;
        if address == node::LOST {
            // A version does not hold what is lost of it; and if others before and after it still
            // do, it is said to have holes, and they are neighbours of each other.
            return if which == REAPER { Walk::Absent } else { Walk::Damaged };
        }
        self.walkers[which].clock += 1;
        let now = self.walkers[which].clock;
        let mut victim = None;
        let mut oldest = u64::MAX;
        for (i, state) in self.walkers[which].state.iter_mut().enumerate() {
            match state {
                Buffer::Loading { .. } => return Walk::Wait,
                Buffer::Node { address: a, generation, used } if *a == address => {
                    *used = now;
                    // Two parents that disagree: at least one is damaged.
                    return match node.stamp.fits(*generation) {
                        true => Walk::Node(address, i),
                        false => Walk::Damaged,
                    };
                }
                Buffer::Damaged { address: a, used } if *a == address => {
                    *used = now;
                    return Walk::Damaged;
                }
                Buffer::Empty => {
                    victim = Some(i);
                    oldest = 0;
                }
                Buffer::Node { used, .. } | Buffer::Damaged { used, .. } => {
                    if *used < oldest {
                        victim = Some(i);
                        oldest = *used;
                    }
                }
            }
        }
        let Some(page) = self.pages.take_above(self.page_reserve) else { return Walk::Wait };
        let at = victim.expect("there are buffers");
        self.walkers[which].state[at] = Buffer::Loading { node, level, index, page, late: false };
        self.walkers[which].reads += 1;
        let addr = self.pages.addr(page);
        self.issue(tag(Class::Walk, which as u32, at as u32), BaseOp::Read, address, addr, 4096);
        Walk::Wait
    }

    pub(crate) fn walk_read_done(&mut self, which: usize, at: u32, result: Result<(), BaseError>) {
        let at = at as usize;
        let Buffer::Loading { node, level, index, page, late } = self.walkers[which].state[at]
        else {
            panic!("a walk read completed that was never started")
        };
        let address = node.address;
        let used = self.walkers[which].clock;
        self.walkers[which].state[at] = match result {
            _ if late => Buffer::Empty,
            // Tried again when it is wanted again, but not for ever.
            Err(_) => {
                self.walkers[which].errors += 1;
                let give_up = self.walkers[which].errors.is_multiple_of(8);
                if give_up { Buffer::Damaged { address, used } } else { Buffer::Empty }
            }
            Ok(()) => {
                let links = &mut self.walkers[which].links[at];
                let bytes = self.pages.bytes(page);
                let read = node::read(bytes, links, self.store, self.shard, address);
                let lawful = read.ok().filter(|info| {
                    (info.level, info.index) == (level, index)
                        && node.stamp.fits(info.generation)
                        && node::linkable(links, &self.space.geometry)
                });
                match lawful {
                    Some(info) => Buffer::Node { address, generation: info.generation, used },
                    None => Buffer::Damaged { address, used },
                }
            }
        };
        if let Buffer::Damaged { .. } = self.walkers[which].state[at] {
            let so = match which {
                REAPER => "space below it is not reclaimed",
                _ => "what changed below it is unknown",
            };
            let text = format!(
                "map node at block {address} (level {level}, index {index}) is damaged; {so}"
            );
            self.event(true, text);
        }
        self.pages.give(page);
    }

    /// The node of `level` above (or at) leaf `leaf` in the tree of `root`.
    pub(crate) fn walk(&mut self, which: usize, root: Root, level: u8, leaf: u64) -> Walk {
        if root.address == 0
            || level > root.level
            || leaf >> (LEVEL_BITS * u32::from(root.level)) != 0
        {
            return Walk::Absent;
        }
        let mut node = root.node();
        let mut at = root.level;
        loop {
            let index = leaf >> (LEVEL_BITS * u32::from(at));
            let buffer = match self.walk_node(which, node, at, index) {
                Walk::Node(address, buffer) if at == level => return Walk::Node(address, buffer),
                Walk::Node(_, buffer) => buffer,
                stop => return stop,
            };
            at -= 1;
            let child = leaf >> (LEVEL_BITS * u32::from(at));
            node = NodeRef::of_link(self.walkers[which].links(buffer)[child as usize % LINKS]);
            if node.address == 0 {
                return Walk::Absent;
            }
        }
    }

    /// The address of the node of `level` above leaf `leaf`, without reading that node itself.
    pub(crate) fn walk_address(
        &mut self,
        which: usize,
        root: Root,
        level: u8,
        leaf: u64,
    ) -> Result<u64, Walk> {
        if root.address == 0
            || level > root.level
            || leaf >> (LEVEL_BITS * u32::from(root.level)) != 0
        {
            return Ok(0);
        }
        if level == root.level {
            return Ok(root.address);
        }
        match self.walk(which, root, level + 1, leaf) {
            Walk::Absent => Ok(0),
            Walk::Node(_, buffer) => {
                let child = leaf >> (LEVEL_BITS * u32::from(level));
                Ok(self.walkers[which].links(buffer)[child as usize % LINKS] & node::ADDRESS)
            }
            stop => Err(stop),
        }
    }
}
