//! Compare-and-Write from many queues at once: each success counts one up, so a lost or doubled one
//! shows in the sum. Work is done in random order; plain writes to the block beside go on
//! meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamina_bdev::Status as EngineStatus;
use lamina_nvmf::SlotId;
use lamina_nvmf::io::{Entry, GateUse, IoQueue, Memory, Pass, RangeGate, Step, Work, WorkOp};
use lamina_nvmf::subsystem::NsTable;
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::{Command, Fuse, Status};

use crate::rig::{Rig, io};

const ACTORS: usize = 6;
/// The block whose first bytes count.
const COUNTER: usize = 8;

struct Actor {
    queue: IoQueue<Vec<u8>>,
    /// Data of its two slots.
    data: [Vec<u8>; 2],
    hold: Option<Pass>,
    busy: bool,
}

struct World {
    actors: Vec<Actor>,
    disk: Vec<u8>,
    gate: RangeGate,
    table: Arc<NsTable>,
    /// Work that may be done.
    ready: Vec<(usize, Work, Option<Pass>)>,
    /// Work that waits at the gate, by ticket.
    waiting: BTreeMap<u64, (usize, Work)>,
    next_ticket: u64,
    seed: u64,
    successes: u64,
    failures: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rig = Rig::new();
        let key = rig.host();
        let actor = || Actor {
            queue: IoQueue::new(2, 128 << 10),
            data: [Vec::new(), Vec::new()],
            hold: None,
            busy: false,
        };
        World {
            actors: (0..ACTORS).map(|_| actor()).collect(),
            disk: vec![0; 64 * 512],
            gate: RangeGate::new(),
            table: rig.service.table(key),
            ready: Vec::new(),
            waiting: BTreeMap::new(),
            next_ticket: 0,
            seed,
            successes: 0,
            failures: 0,
        }
    }

    fn random(&mut self, n: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) as usize % n
    }

    fn counter(&self) -> u64 {
        let at = COUNTER * 512;
        u64::from_le_bytes(self.disk[at..at + 8].try_into().expect("8 bytes"))
    }

    /// An actor that is idle begins a pair on what it believes the counter to be, or a plain write
    /// that overlaps the counter's neighbour and the counter's own block but not its bytes' value.
    fn begin(&mut self, who: usize) {
        let belief = self.counter();
        let plain = self.random(3) == 0;
        let table = self.table.clone();
        let actor = &mut self.actors[who];
        actor.busy = true;
        let step = if plain {
            actor.data[0] = vec![who as u8; 512];
            let write = io(nvm::WRITE, COUNTER as u64 + 1, 1);
            actor.queue.start(SlotId(0), &write, 512, &actor.data[0], &table)
        } else {
            let block = |value: u64| {
                let mut block = vec![0; 512];
                block[..8].copy_from_slice(&value.to_le_bytes());
                block
            };
            actor.data = [block(belief), block(belief + 1)];
            let one = Command { fuse: Fuse::First, ..io(nvm::COMPARE, COUNTER as u64, 1) };
            let two = Command { fuse: Fuse::Second, ..io(nvm::WRITE, COUNTER as u64, 1) };
            let step = actor.queue.start(SlotId(0), &one, 512, &actor.data[0], &table);
            assert_eq!(step, Step::Wait);
            actor.queue.start(SlotId(1), &two, 512, &actor.data[1], &table)
        };
        self.follow(who, step);
    }

    fn follow(&mut self, who: usize, step: Step) {
        let Step::Submit(work) = step else { return self.finish(who) };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let pass = match work.gate {
            GateUse::Open => None,
            GateUse::Unhold => self.actors[who].hold.take(),
            GateUse::Write | GateUse::Hold => {
                let entry = if work.gate == GateUse::Hold { Entry::Hold } else { Entry::Write };
                match self.gate.enter(entry, work.offset, work.len, ticket) {
                    Some(pass) => Some(pass),
                    None => {
                        self.waiting.insert(ticket, (who, work));
                        return;
                    }
                }
            }
        };
        self.ready.push((who, work, pass));
    }

    /// Does one piece of work that may be done, any.
    fn step(&mut self) {
        let at = self.random(self.ready.len());
        let (who, work, pass) = self.ready.swap_remove(at);
        let (from, len) = (work.offset as usize, work.len as usize);
        let actor = &mut self.actors[who];
        match (work.op, work.memory) {
            (WorkOp::Read, Memory::Scratch) => {
                actor.queue.lend(work.slot, self.disk[from..from + len].to_vec());
            }
            (WorkOp::Write, Memory::Data(slot)) => {
                self.disk[from..from + len].copy_from_slice(&actor.data[slot.index()]);
            }
            (WorkOp::Release, Memory::None) => {}
            other => panic!("no such work: {other:?}"),
        }
        match work.gate {
            GateUse::Hold => actor.hold = pass,
            _ => pass.into_iter().for_each(|pass| self.gate.leave(pass)),
        }
        let (data, table) = (actor.data[work.slot.index()].clone(), self.table.clone());
        let step = actor.queue.done(work.slot, EngineStatus::Ok, &data, &table);
        self.follow(who, step);
        while let Some((ticket, pass)) = self.gate.next_ready() {
            let (who, work) = self.waiting.remove(&ticket).expect("it waits");
            self.ready.push((who, work, Some(pass)));
        }
    }

    fn finish(&mut self, who: usize) {
        let actor = &mut self.actors[who];
        let mut statuses = Vec::new();
        while let Some(response) = actor.queue.next_response() {
            drop(actor.queue.take_scratch(response.slot));
            statuses.push(response.completion.status);
        }
        actor.busy = false;
        match statuses[..] {
            [Status::SUCCESS, Status::SUCCESS] => self.successes += 1,
            [first, Status::ABORTED_FAILED_FUSED] => {
                assert_eq!(first, Status::COMPARE_FAILURE.dnr());
                self.failures += 1;
            }
            [Status::SUCCESS] => {}
            _ => panic!("{statuses:?}"),
        }
    }
}

#[test]
fn every_success_counts_exactly_once() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        for _ in 0..5_000 {
            let who = world.random(ACTORS);
            if !world.actors[who].busy {
                world.begin(who);
            } else if !world.ready.is_empty() {
                world.step();
            }
        }
        while !world.ready.is_empty() {
            world.step();
        }
        assert!(world.waiting.is_empty() && world.gate.is_idle(), "nobody is left waiting");
        assert_eq!(world.counter(), world.successes, "seed {seed}");
        assert!(world.successes > 100 && world.failures > 100, "both happen");
    }
}
