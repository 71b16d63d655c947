//! Every value of every selector, with random other fields: each is answered, none does harm.

use lamina_nvmf::controller::{Answer, ControllerKey};
use lamina_nvmf::io::{Step, WorkOp};
use lamina_nvmf::wire::{Command, Fuse, Sgl};

use crate::rig::{ConnectWith, DISK_BYTES, Queue, Rig, SUBSYSTEM, disk};

/// A small generator; the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }

    /// A number that tends to be near a limit.
    fn number(&mut self) -> u32 {
        match self.next() % 6 {
            0 => 0,
            1 => u32::MAX,
            2 => self.next() % 4,
            3 => 1 << (self.next() % 32),
            4 => (1 << (self.next() % 32)) - 1,
            _ => self.next(),
        }
    }

    fn command(&mut self, opcode: u8) -> Command {
        Command {
            opcode,
            fuse: Fuse::None,
            cid: self.next() as u16,
            nsid: self.number(),
            sgl: Sgl::transport([0, 16, 512, 4096, 4096, 131_072][self.next() as usize % 6]),
            cdw10: self.number(),
            cdw11: self.number(),
            cdw12: self.number(),
            cdw13: self.number(),
            cdw14: self.number(),
            cdw15: self.number(),
            ..Command::default()
        }
    }
}

/// Every kind of controller: enabled, not enabled, shut down, discovery.
fn controllers(rig: &mut Rig) -> Vec<ControllerKey> {
    let shut_down = rig.host();
    rig.property_set(shut_down, 0x14, 0x0046_4001);
    vec![
        rig.host(),
        rig.connect(&ConnectWith::default()).expect("connects").controller,
        shut_down,
        rig.enabled(&ConnectWith::discovery()),
    ]
}

/// Sends it; answers are bounded and name the command.
fn check(rig: &mut Rig, key: ControllerKey, command: &Command) {
    match rig.answer(key, command) {
        Answer::Reply(reply) | Answer::ReplyAfterActions(reply) => {
            assert_eq!(reply.completion.cid, command.cid);
            assert!(reply.data.len() as u32 <= command.sgl.length, "{command:?}");
            assert!(reply.data.is_empty() || reply.completion.status.is_ok());
        }
        Answer::Hold => assert_eq!(command.opcode, 0x0c),
        Answer::Later(_) => panic!("nobody authenticates here: {command:?}"),
    }
    assert_eq!(rig.ended(), [], "no command ends a controller: {command:?}");
}

fn sweep(opcode: u8, rounds: u32) {
    let mut rig = Rig::new();
    rig.edit(|t| t.add_namespace(SUBSYSTEM, disk(2, DISK_BYTES))).expect("added");
    let mut random = Random(u64::from(opcode));
    let keys = controllers(&mut rig);
    for selector in 0..=255u32 {
        for _ in 0..rounds {
            let mut command = random.command(opcode);
            command.cdw10 = command.cdw10 & !0xff | selector;
            for key in &keys {
                check(&mut rig, *key, &command);
            }
        }
    }
}

#[test]
fn every_identify_selector_is_answered() {
    sweep(0x06, 40);
}

#[test]
fn every_log_page_is_answered() {
    sweep(0x02, 40);
}

#[test]
fn every_feature_is_answered() {
    sweep(0x0a, 40);
    sweep(0x09, 40);
}

#[test]
fn every_admin_opcode_is_answered() {
    let mut rig = Rig::new();
    let mut random = Random(1);
    let keys = controllers(&mut rig);
    for opcode in (0..=255u8).filter(|opcode| *opcode != 0x7f) {
        for _ in 0..40 {
            let command = random.command(opcode);
            keys.iter().for_each(|key| check(&mut rig, *key, &command));
        }
    }
}

#[test]
fn every_fabrics_type_is_answered() {
    let mut rig = Rig::new();
    let mut random = Random(2);
    for fctype in 0..=255u32 {
        let key = rig.host();
        for _ in 0..20 {
            let command = Command { nsid: fctype, ..random.command(0x7f) };
            check(&mut rig, key, &command);
        }
        rig.service.admin_closed(key);
        rig.take_actions();
    }
}

#[test]
fn every_io_opcode_stays_within_its_namespace() {
    let mut random = Random(3);
    let mut queue = Queue::usual();
    for opcode in 0..=255u8 {
        for _ in 0..200 {
            let mut command = random.command(opcode);
            if !random.next().is_multiple_of(4) {
                command.nsid = 1;
                command.cdw11 &= if random.next().is_multiple_of(2) { 0 } else { u32::MAX };
            }
            let data: Vec<u8> =
                (0..command.sgl.length.min(4096)).map(|_| random.number() as u8).collect();
            command.sgl.length = command.sgl.length.max(data.len() as u32);
            queue.log.clear();
            let (_, mut step) = queue.start(&command, &data);
            if step == Step::Forward {
                continue;
            }
            while let Step::Submit(work) = step {
                let end = work.offset.checked_add(work.len).expect("no overflow");
                assert!(end <= DISK_BYTES, "{command:?}: {work:?}");
                assert!(work.op == WorkOp::Flush || work.len > 0, "{work:?}");
                step = queue.run(work);
            }
            assert_eq!(queue.outcomes().len(), 1, "{command:?}");
            assert!(queue.queue.is_idle() && queue.gate.is_idle());
        }
    }
}

#[test]
fn connect_with_random_fields_never_breaks_the_service() {
    let mut rig = Rig::new();
    rig.host();
    let mut random = Random(4);
    for _ in 0..20_000 {
        let command = Command { nsid: 1, ..random.command(0x7f) };
        let mut data = vec![0; 1024];
        for at in [0, 16, 17] {
            data[at] = random.number() as u8;
        }
        data[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
        data[512..512 + crate::rig::HOST.len()].copy_from_slice(crate::rig::HOST.as_bytes());
        if random.next().is_multiple_of(4) {
            let at = random.next() as usize % 1024;
            data[at] ^= random.next() as u8;
        }
        let origin = rig.origin();
        if let Ok(connected) = rig.service.connect(&origin, &command, &data, rig.now)
            && connected.qid == 0
        {
            rig.service.admin_closed(connected.controller);
        }
        rig.take_actions();
    }
    assert_eq!(rig.service.controllers().count(), 1);
}
