//! A read that the base answers late, when the list of changed blocks it was for is long over and
//! the block belongs to somebody else: no damage, and no line in the log.

mod rig;

use lamina_bdev::*;
use rig::{FILE, RAM, Rig};

const LEAF_BYTES: u64 = 512 * 4096;

/// Everything but the first pending operation goes on, until a command is answered.
fn command(rig: &mut Rig, command: Command) -> Result<Reply, Error> {
    let given = rig.begin(command);
    for _ in 0..100_000 {
        while let Some((cookie, outcome)) = rig.engine.next_reply() {
            if cookie == given {
                return outcome;
            }
        }
        others(rig);
    }
    panic!("it is never answered");
}

fn others(rig: &mut Rig) {
    rig.step();
    while rig.base.pending.len() > 1 {
        rig.complete(1, Ok(()));
        rig.start_all();
    }
}

#[test]
fn a_read_that_comes_back_after_its_block_was_used_again_is_no_damage() {
    for traits in [RAM, FILE] {
        let mut rig = Rig::new(24 << 20, traits, false);
        let disk = rig.create("a", 1 << 30, None).unwrap();
        let handle = rig.attach(Target::Disk(disk));
        for leaf in 0..40 {
            assert_eq!(rig.write(handle, leaf * LEAF_BYTES, vec![1; 4096]), Status::Ok);
        }
        let snap = rig.snapshot(disk).unwrap();
        rig.settle();
        assert_eq!(rig.clear(handle, Op::Discard, 0, 1 << 30), Status::Ok);
        rig.settle();
        let view = rig.attach(Target::Snapshot(snap));
        let query = DiffQuery { base: None, view, offset: 0, extents_max: 10, reads_max: 100 };
        rig.begin(Command::Diff(query));
        rig.step();
        // Its second node, so that the first one leads there.
        rig.complete(0, Ok(()));
        rig.step();
        let read = rig.base.pending.first().expect("it reads the map");
        assert!(read.io.op == BaseOp::Read && rig.base.pending.len() == 1);
        let at = rig.label.first_region as usize + read.io.offset as usize;
        let node = rig.base.visible[at..at + 4096].to_vec();
        command(&mut rig, Command::Detach(view)).unwrap();
        command(&mut rig, Command::DeleteSnapshot(snap)).unwrap();
        for _ in 0..4 {
            command(&mut rig, Command::Checkpoint).unwrap();
        }
        let mut written = 0;
        while rig.base.visible[at..at + 4096] == node[..] {
            assert!(written < 1 << 30, "the block is never used again");
            let (op, len) = (Op::Write, 4096);
            let request = Request { cookie: 0, handle, op, offset: written, len, fua: false };
            rig.submit(request, vec![2; 4096]).expect("there are slots");
            while rig.next_done().is_none() {
                others(&mut rig);
            }
            written += 4096;
            if written.is_multiple_of(1 << 20) {
                command(&mut rig, Command::Checkpoint).unwrap();
            }
        }
        rig.events();
        rig.complete(0, Ok(()));
        rig.turn();
        let said: Vec<String> =
            rig.events().into_iter().filter(|e| e.severe).map(|e| e.text).collect();
        assert!(said.is_empty(), "{said:?}");
        // The next list is of what is there now.
        let snap = rig.snapshot(disk).unwrap();
        rig.settle();
        let view = rig.attach(Target::Snapshot(snap));
        let query = DiffQuery { base: None, view, offset: 0, extents_max: 10, reads_max: 100 };
        let Ok(Reply::Changes(page)) = rig.command(Command::Diff(query)) else {
            panic!("no changes")
        };
        let listed: u64 = page.extents.iter().map(|extent| extent.length).sum();
        assert_eq!(listed, written);
    }
}
