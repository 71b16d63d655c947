//! A connected queue allocates nothing, whatever it carries, but buffers of its pool at first use.

mod rig;

use std::io::IoSlice;
use std::time::Instant;

use lamina_nvmf::SlotId;
use lamina_nvmf::host::Builder;
use lamina_nvmf::pool::Pool;
use lamina_nvmf::transport::{Connection, Limits, recycle};
use lamina_nvmf::wire::{Completion, Direction, Sgl};
use rig::{Rig, pattern, read, write};

const DEPTH: u16 = 64;
const LEN: u32 = 4096;

/// One turn: everything of `bytes` in, every command answered, everything out.
fn turn<'a>(
    conn: &mut Connection,
    pool: &mut Pool,
    bytes: &[u8],
    slices: Vec<IoSlice<'a>>,
) -> (Vec<IoSlice<'a>>, usize, usize) {
    let (mut rest, mut commands, mut sent) = (bytes, 0, 0);
    let mut spare = slices;
    while !rest.is_empty() {
        let (straight, buffered) = conn.receive_slices();
        let first = rest.len().min(straight.len());
        straight[..first].copy_from_slice(&rest[..first]);
        let second = (rest.len() - first).min(buffered.len());
        buffered[..second].copy_from_slice(&rest[first..first + second]);
        rest = &rest[first + second..];
        conn.received(first + second, pool);
        while let Some(slot) = conn.next_command() {
            commands += 1;
            answer(conn, pool, slot);
        }
        while conn.wants_send() {
            let mut slices = recycle(spare);
            conn.transmit(&mut slices);
            let count = slices.iter().map(|slice| slice.len()).sum();
            spare = recycle(slices);
            conn.transmitted(count, pool);
            sent += count;
        }
    }
    (recycle(spare), commands, sent)
}

fn answer(conn: &mut Connection, pool: &mut Pool, slot: SlotId) {
    let len = if conn.direction(slot) == Direction::ToHost { conn.data_len(slot) } else { 0 };
    if len > 0 {
        let buffer = conn.take_buffer(len, pool).expect("a buffer");
        conn.attach(slot, buffer);
    }
    conn.respond(slot, Completion::SUCCESS, len);
}

fn carries(name: &str, served: bool, builder: Builder, make: impl Fn(u16, &mut Vec<u8>)) {
    let mut rig = Rig::with_pool(Limits::default(), 300, 40);
    rig.initialize(builder);
    rig.conn.set_sq(DEPTH, true);
    let mut bytes = Vec::new();
    (0..DEPTH).for_each(|cid| make(cid, &mut bytes));
    let slices = Vec::with_capacity(512);
    let (mut slices, ..) = turn(&mut rig.conn, &mut rig.pool, &bytes, slices);
    let started = Instant::now();
    let mut total = 0;
    let info = allocation_counter::measure(|| {
        for _ in 0..500 {
            let (again, commands, sent) =
                turn(&mut rig.conn, &mut rig.pool, &bytes, std::mem::take(&mut slices));
            assert!(commands == if served { usize::from(DEPTH) } else { 0 });
            assert!(sent >= 24 * usize::from(DEPTH));
            slices = again;
            total += usize::from(DEPTH);
        }
    });
    let each = started.elapsed().as_nanos() as usize / total;
    println!("{name}: {each} ns a command");
    assert_eq!((info.count_total, info.bytes_total), (0, 0), "{name}");
    drop(slices);
    rig.finish();
}

// One test: another one's allocations beside it would be counted too.
#[test]
fn nothing_is_allocated_on_the_way_of_a_command() {
    carries_data_that_is_asked_for();
    for digest in [false, true] {
        let builder = Builder { header_digest: digest, data_digest: digest, cpda: 0 };
        let data = pattern(1, LEN);
        carries("4 KiB write in the capsule", true, builder, |cid, bytes| {
            builder.command(bytes, &write(cid, Sgl::in_capsule(LEN)), &data);
        });
        carries("4 KiB read", true, builder, |cid, bytes| {
            builder.command(bytes, &read(cid, LEN), &[]);
        });
        carries("refused write", false, builder, |cid, bytes| {
            builder.command(bytes, &write(cid, Sgl::in_capsule(LEN + 1)), &data);
        });
    }
}

/// Data that is asked for: the tag is only known when it comes, so each is a turn of its own.
fn carries_data_that_is_asked_for() {
    let mut rig = Rig::open(Limits::default(), Builder::default(), DEPTH);
    let mut slices = Vec::with_capacity(512);
    let mut bytes = Vec::with_capacity(100_000);
    let data = pattern(1, 65536);
    for round in 0..200 {
        let mut command = Vec::new();
        rig.builder.command(&mut command, &write(7, Sgl::transport(65536)), &[]);
        let started = allocation_counter::measure(|| {
            let (again, commands, sent) =
                turn(&mut rig.conn, &mut rig.pool, &command, std::mem::take(&mut slices));
            assert_eq!((commands, sent), (0, 24), "an R2T");
            slices = again;
        });
        // The slot's uses are counted in the upper bits of the tag.
        let ttag = (round % 64) << 10 | SLOT;
        bytes.clear();
        rig.builder.h2c_data(&mut bytes, (7, ttag), 0, &data, true);
        let ended = allocation_counter::measure(|| {
            let (again, commands, sent) =
                turn(&mut rig.conn, &mut rig.pool, &bytes, std::mem::take(&mut slices));
            assert_eq!((commands, sent), (1, 24), "an answer");
            slices = again;
        });
        // The pool makes a buffer when one is used for the first time.
        let made = u64::from(round == 0);
        assert_eq!((started.count_total, ended.count_total), (made, 0), "round {round}");
    }
    drop(slices);
    rig.finish_whole();
}

/// The slot that a queue of [`DEPTH`] entries uses first, and so always when there is one command.
const SLOT: u16 = 2;
