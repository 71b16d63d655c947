//! What a connection does for a host that keeps to the protocol.

mod rig;

use lamina_nvmf::host::{Builder, Done, Initiator, Options, Payload};
use lamina_nvmf::pool::ShareMax;
use lamina_nvmf::transport::{DEPTH_MAX, Limits};
use lamina_nvmf::wire::opcode::nvm;
use lamina_nvmf::wire::pdu::{FLAG_LAST, FLAG_SUCCESS};
use lamina_nvmf::wire::{Command, Completion, Fuse, Sgl, Status};
use rig::{Cut, Got, Random, Reply, Rig, flush, pattern, read, write};

const NO_DIGESTS: Builder = Builder { header_digest: false, data_digest: false, cpda: 0 };

fn digests() -> impl Iterator<Item = Builder> {
    (0..4).map(|n| Builder { header_digest: n & 1 != 0, data_digest: n & 2 != 0, cpda: 0 })
}

fn response(cid: u16, sq_head: u16) -> Reply {
    Reply::Response(Completion { cid, sq_head, ..Completion::SUCCESS })
}

#[test]
fn digests_are_on_if_both_ends_want_them() {
    for (wanted, header_digest, data_digest) in
        [(3, true, true), (3, false, true), (1, true, true), (2, true, false), (0, true, true)]
    {
        let limits = Limits { header_digest, data_digest, cpda: 7, ..Limits::default() };
        let mut rig = Rig::new(limits);
        let ask = Builder { header_digest: wanted & 1 != 0, data_digest: wanted & 2 != 0, cpda: 0 };
        let mut icreq = Vec::new();
        ask.icreq(&mut icreq, 0, 0);
        rig.send(&icreq);
        let digest = wanted & (u8::from(header_digest) | u8::from(data_digest) << 1);
        let maxh2cdata = limits.maxh2cdata;
        assert_eq!(rig.replies(), [Reply::IcResp { cpda: 7, digest, maxh2cdata }]);
        assert_eq!(rig.conn.digests(), (digest & 1 != 0, digest & 2 != 0));
        rig.finish_whole();
    }
}

#[test]
fn in_capsule_data_comes_with_the_command() {
    for builder in digests() {
        let mut rig = Rig::open(Limits::default(), builder, 8);
        let data = pattern(1, 8192);
        let command = write(9, Sgl::in_capsule(8192));
        rig.command(&command, &data);
        assert_eq!(rig.got, [Got { command, data }]);
        assert_eq!(rig.replies(), [response(9, 1)]);
        rig.finish_whole();
    }
}

#[test]
fn a_part_of_the_capsules_data_can_be_the_commands() {
    for builder in digests() {
        let mut rig = Rig::open(Limits::default(), builder, 8);
        let data = pattern(1, 1000);
        let kind = lamina_nvmf::wire::SglKind::InCapsule { offset: 100 };
        let command = write(9, Sgl { kind, length: 500 });
        rig.command(&command, &data);
        assert_eq!(rig.got, [Got { command, data: data[100..600].to_vec() }]);
        rig.finish_whole();
    }
}

#[test]
fn data_is_asked_for_and_comes_in_pieces() {
    for (builder, cpda) in digests().zip([0, 1, 15, 31]) {
        let limits = Limits { maxh2cdata: 4096, cpda, ..Limits::default() };
        let mut rig = Rig::open(limits, Builder { cpda, ..builder }, 8);
        let ttag = rig.ask(3, 12288);
        let data = pattern(5, 12288);
        let mut bytes = Vec::new();
        for (n, piece) in data.chunks(4096).enumerate() {
            rig.builder.h2c_data(&mut bytes, (3, ttag), 4096 * n as u32, piece, n == 2);
        }
        rig.send(&bytes);
        assert_eq!(rig.got[0].data, data);
        assert_eq!(rig.replies(), [response(3, 1)]);
        rig.finish_whole();
    }
}

#[test]
fn answers_have_their_data_where_the_host_wants_it() {
    for (builder, hpda) in digests().zip([0, 1, 15, 31]) {
        let mut rig = Rig::new(Limits { c2h_data_max: 4096, ..Limits::default() });
        rig.hpda = hpda;
        rig.initialize(builder);
        rig.conn.set_sq(4, true);
        rig.command(&read(2, 10_000), &[]);
        let data = pattern(2, 10_000);
        let replies = rig.replies();
        let mut at = 0;
        for (reply, piece) in replies.iter().zip(data.chunks(4096)) {
            let Reply::Data { cid: 2, at: a, bytes, flags, .. } = reply else {
                panic!("{reply:?}")
            };
            assert_eq!((*a as usize, &bytes[..]), (at, piece));
            at += piece.len();
            assert_eq!(*flags, if at == 10_000 { FLAG_LAST } else { 0 });
        }
        assert_eq!(replies[3..], [response(2, 1)]);
        rig.finish_whole();
    }
}

#[test]
fn success_goes_with_the_data_when_there_is_no_flow_control() {
    for builder in digests() {
        let mut rig = Rig::new(Limits::default());
        rig.initialize(builder);
        rig.conn.set_sq(4, false);
        rig.command(&read(2, 512), &[]);
        let [Reply::Data { flags, .. }] = rig.replies()[..] else { panic!("one PDU") };
        assert_eq!(flags, FLAG_LAST | FLAG_SUCCESS);
        assert_eq!(rig.conn.in_flight(), 0);
        // A result does not fit into a flag; the queue's head is the caller's then.
        rig.hold = true;
        rig.command(&read(3, 512), &[]);
        let slot = rig.held.pop().expect("a command");
        let buffer = rig.conn.take_buffer(512, &mut rig.pool).expect("a buffer");
        rig.conn.attach(slot, buffer);
        rig.conn.respond(slot, Completion { sq_head: 0xffff, ..Completion::value(5) }, 512);
        rig.serve();
        let [Reply::Data { flags, .. }, Reply::Response(end)] = rig.replies()[..] else { panic!() };
        assert_eq!((flags, end.dw0, end.cid, end.sq_head), (FLAG_LAST, 5, 3, 0xffff));
        rig.finish_whole();
        // Nor is the flag used where it is turned off.
        let mut rig = Rig::new(Limits { success_flag: false, ..Limits::default() });
        rig.initialize(builder);
        rig.conn.set_sq(4, false);
        rig.command(&read(2, 512), &[]);
        let [Reply::Data { flags, .. }, Reply::Response(end)] = rig.replies()[..] else { panic!() };
        assert_eq!((flags, end.cid), (FLAG_LAST, 2));
        rig.finish_whole();
    }
}

#[test]
fn an_identifier_that_is_not_guarded_may_be_used_again() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 8);
    rig.hold = true;
    rig.command(&flush(5), &[]);
    let parked = rig.held.pop().expect("a command");
    rig.conn.park(parked);
    rig.command(&flush(5), &[]);
    rig.command(&flush(5), &[]);
    let [Reply::Response(refused)] = rig.replies()[..] else { panic!("one answer") };
    assert_eq!(refused.status.code(), Status::COMMAND_ID_CONFLICT.code(), "the second is guarded");
    assert_eq!(rig.held.len(), 1);
    rig.conn.forget(parked, &mut rig.pool);
    rig.serve();
    assert_eq!(rig.replies(), [], "no answer for the one that was forgotten");
    rig.answer_held();
    let [Reply::Response(end)] = rig.replies()[..] else { panic!("one answer") };
    assert_eq!((end.cid, end.status), (5, Status::SUCCESS));
    rig.finish_whole();
}

#[test]
fn an_error_sends_no_data() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 4);
    rig.hold = true;
    rig.command(&read(2, 512), &[]);
    let slot = rig.held.pop().expect("a command");
    let buffer = rig.pool.take(512).expect("a buffer of nobody");
    rig.conn.attach(slot, buffer);
    rig.conn.respond(slot, Status::LBA_OUT_OF_RANGE.dnr().into(), 512);
    rig.serve();
    let status = Status::LBA_OUT_OF_RANGE.dnr();
    let end = Completion { cid: 2, sq_head: 1, ..Completion::status(status) };
    assert_eq!(rig.replies(), [Reply::Response(end)]);
    rig.finish_whole();
}

#[test]
fn the_queue_head_follows_the_commands_that_are_over() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 3);
    rig.hold = true;
    rig.command(&flush(1), &[]);
    rig.hold = false;
    for (cid, head) in [(2, 1), (3, 2), (4, 0), (5, 1)] {
        rig.command(&flush(cid), &[]);
        assert_eq!(rig.replies(), [response(cid, head)]);
    }
    rig.answer_held();
    assert_eq!(rig.replies(), [response(1, 2)]);
    rig.finish_whole();
}

#[test]
fn a_queue_of_1024_takes_1024_commands_and_sends_them_in_few_slices() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, DEPTH_MAX);
    rig.hold = true;
    let mut bytes = Vec::new();
    for cid in 0..DEPTH_MAX {
        rig.builder.command(&mut bytes, &flush(cid ^ 0xf0ff), &[]);
    }
    rig.send(&bytes);
    assert_eq!((rig.held.len(), rig.conn.running()), (1024, 1024));
    assert_eq!(rig.conn.find(0xf0ff ^ 77), Some(rig.held[77]));
    assert_eq!(rig.conn.find(3), None);
    for slot in std::mem::take(&mut rig.held) {
        rig.conn.respond(slot, Completion::SUCCESS, 0);
    }
    let mut slices = Vec::new();
    rig.conn.transmit(&mut slices);
    assert_eq!(slices.len(), 1, "neighbouring answers are one slice");
    assert!(slices[0].len() > 100 * 24);
    drop(slices);
    rig.serve();
    assert_eq!(rig.replies().len(), 1024);
    rig.finish_whole();
}

#[test]
fn one_command_at_a_time_until_the_queue_is_connected() {
    let mut rig = Rig::new(Limits::default());
    rig.initialize(NO_DIGESTS);
    rig.hold = true;
    let mut bytes = Vec::new();
    for cid in 0..3 {
        rig.builder.command(&mut bytes, &flush(cid), &[]);
    }
    let room = rig.conn.receive_space();
    room[..bytes.len()].copy_from_slice(&bytes);
    rig.conn.received(bytes.len(), &mut rig.pool);
    rig.serve();
    assert!(rig.conn.is_paused() && rig.conn.receive_space().is_empty());
    assert_eq!((rig.got.len(), rig.conn.in_flight()), (1, 1));
    rig.conn.set_sq(16, true);
    rig.answer_held();
    assert!(rig.conn.is_quiet(), "nothing is parsed before it is resumed");
    rig.conn.leave(&mut rig.pool);
    assert_eq!(rig.pool.free(), (rig::SMALL, rig::LARGE));
    assert!(rig.conn.join(&mut rig.pool));
    rig.conn.resume(&mut rig.pool);
    rig.serve();
    assert_eq!((rig.got.len(), rig.conn.in_flight()), (3, 2));
    rig.finish_whole();
}

/// The device gets fused commands side by side, whatever comes between their data.
#[test]
fn fused_commands_come_out_side_by_side() {
    let fused = |cid, opcode, fuse, sgl| Command { opcode, cid, fuse, sgl, ..flush(cid) };
    for second_first in [false, true] {
        let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 16);
        rig.command(&fused(1, nvm::COMPARE, Fuse::First, Sgl::transport(9000)), &[]);
        rig.command(&fused(2, nvm::WRITE, Fuse::Second, Sgl::transport(9001)), &[]);
        rig.command(&flush(3), &[]);
        let replies = rig.replies();
        let [Reply::R2t { ttag: a, .. }, Reply::R2t { ttag: b, .. }, _] = replies[..] else {
            panic!("{replies:?}")
        };
        let (mut one, mut two) = (Vec::new(), Vec::new());
        rig.builder.h2c_data(&mut one, (1, a), 0, &pattern(1, 9000), true);
        rig.builder.h2c_data(&mut two, (2, b), 0, &pattern(2, 9001), true);
        let (first, second) = if second_first { (two, one) } else { (one, two) };
        rig.send(&first);
        rig.command(&flush(4), &[]);
        rig.send(&second);
        let order: Vec<u16> = rig.got.iter().map(|got| got.command.cid).collect();
        assert_eq!(order, [3, 4, 1, 2]);
        rig.finish_whole();
    }
}

#[test]
fn half_of_a_fused_pair_comes_out_alone() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 16);
    let first = Command { fuse: Fuse::First, ..flush(1) };
    rig.command(&first, &[]);
    assert!(rig.got.is_empty(), "it waits for what comes next");
    rig.command(&flush(2), &[]);
    let second = Command { fuse: Fuse::Second, ..flush(3) };
    rig.command(&second, &[]);
    rig.command(&Command { fuse: Fuse::First, ..flush(4) }, &[]);
    rig.command(&Command { fuse: Fuse::First, ..flush(5) }, &[]);
    rig.command(&Command { fuse: Fuse::Second, ..flush(6) }, &[]);
    let order: Vec<u16> = rig.got.iter().map(|got| got.command.cid).collect();
    assert_eq!(order, [1, 2, 3, 4, 5, 6]);
    // The first is refused by the transport: the second goes on, alone.
    rig.command(&Command { fuse: Fuse::First, psdt: 0, ..flush(7) }, &[]);
    rig.command(&Command { fuse: Fuse::Second, ..flush(8) }, &[]);
    let refused = Command { psdt: 0, ..flush(10) };
    rig.command(&Command { fuse: Fuse::First, ..flush(9) }, &[]);
    rig.command(&Command { fuse: Fuse::Second, ..refused }, &[]);
    let order: Vec<u16> = rig.got[6..].iter().map(|got| got.command.cid).collect();
    assert_eq!(order, [8, 9]);
    rig.finish_whole();
}

/// In-capsule data goes on when others hold all buffers; what has to be asked for waits in line.
#[test]
fn commands_wait_for_buffers_without_blocking_the_stream() {
    let limits = Limits { buffers: ShareMax { small: 3, large: 2 }, ..Limits::default() };
    let mut rig = Rig::with_pool(limits, 2, 2);
    rig.initialize(NO_DIGESTS);
    rig.conn.set_sq(16, true);
    let ttag = rig.ask(1, 9000);
    rig.command(&write(2, Sgl::transport(9000)), &[]);
    rig.command(&write(3, Sgl::transport(500)), &[]);
    assert!(rig.conn.wants_buffer() && !rig.conn.is_paused());
    assert_eq!(rig.replies(), [], "no buffer, so not asked for");
    rig.command(&write(4, Sgl::in_capsule(4096)), &pattern(4, 4096));
    assert_eq!(rig.replies(), [response(4, 1)]);
    let mut bytes = Vec::new();
    rig.builder.h2c_data(&mut bytes, (1, ttag), 0, &pattern(1, 9000), true);
    rig.send(&bytes);
    let replies = rig.replies();
    let [Reply::Response(_), Reply::R2t { cid: 2, ttag, .. }] = replies[..] else {
        panic!("the buffer goes to the next in line: {replies:?}")
    };
    let mut bytes = Vec::new();
    rig.builder.h2c_data(&mut bytes, (2, ttag), 0, &pattern(1, 9000), true);
    rig.send(&bytes);
    assert!(matches!(rig.replies()[..], [Reply::Response(_), Reply::R2t { cid: 3, .. }]));
    assert!(!rig.conn.wants_buffer());
    rig.finish();
}

#[test]
fn parsing_pauses_for_want_of_a_buffer_and_goes_on() {
    for cut in [Cut::Whole, Cut::Every(1000)] {
        let mut rig = Rig::with_pool(Limits::default(), 2, 2);
        rig.initialize(NO_DIGESTS);
        rig.conn.set_sq(16, true);
        (rig.hold, rig.cut) = (true, cut);
        for cid in 0..2 {
            rig.command(&write(cid, Sgl::in_capsule(512)), &pattern(0, 512));
        }
        let mut bytes = Vec::new();
        for cid in 2..4 {
            let data = pattern(cid.into(), 512);
            rig.builder.command(&mut bytes, &write(cid, Sgl::in_capsule(512)), &data);
        }
        rig.conn.receive_space()[..bytes.len()].copy_from_slice(&bytes);
        rig.conn.received(bytes.len(), &mut rig.pool);
        assert!(rig.conn.is_paused() && rig.conn.wants_buffer());
        assert!(rig.conn.receive_space().is_empty() && rig.conn.next_command().is_none());
        rig.conn.resume(&mut rig.pool);
        assert!(rig.conn.is_paused(), "still none");
        rig.answer_held();
        rig.hold = false;
        while rig.conn.is_paused() {
            rig.conn.resume(&mut rig.pool);
            rig.serve();
        }
        let cids: Vec<u16> = rig.got.iter().map(|got| got.command.cid).collect();
        assert_eq!(cids, [0, 1, 2, 3]);
        assert_eq!(rig.got[3].data, pattern(3, 512));
        assert_eq!(rig.pool.free(), (2, 2));
        rig.finish();
    }
}

#[test]
fn large_data_comes_straight_into_its_buffer() {
    let mut rig = Rig::open(Limits::default(), Builder { data_digest: true, ..NO_DIGESTS }, 4);
    rig.hold = true;
    let ttag = rig.ask(1, 65536);
    let mut bytes = Vec::new();
    rig.builder.h2c_data(&mut bytes, (1, ttag), 0, &pattern(1, 65536), true);
    rig.send(&bytes[..24]);
    let (straight, buffered) = rig.conn.receive_slices();
    assert_eq!(straight.len(), 65536);
    assert!(!buffered.is_empty());
    let to = straight.as_ptr();
    rig.send(&bytes[24..]);
    let slot = rig.held[0];
    assert_eq!(rig.conn.data(slot).map(|buffer| buffer.addr()), Some(to));
    assert_eq!(rig.got[0].data, pattern(1, 65536));
    rig.finish_whole();
}

#[test]
fn closing_keeps_the_buffers_of_commands_that_run() {
    let mut rig = Rig::open(Limits::default(), NO_DIGESTS, 16);
    rig.hold = true;
    rig.ask(1, 9000);
    rig.command(&write(2, Sgl::in_capsule(4096)), &pattern(4, 4096));
    let capsule = rig.pool.free();
    let slot = rig.held[0];
    let addr = rig.conn.data(slot).map(|buffer| buffer.addr());
    rig.conn.close(&mut rig.pool);
    assert_eq!(rig.pool.free(), (capsule.0, capsule.1 + 1), "only what nobody works on");
    assert_eq!((rig.conn.in_flight(), rig.conn.running()), (1, 1));
    assert_eq!(rig.conn.data(slot).map(|buffer| buffer.addr()), addr);
    assert!(rig.conn.is_closed() && !rig.conn.wants_send() && rig.conn.receive_space().is_empty());
    rig.finish_whole();
}

fn pump(host: &mut Initiator, rig: &mut Rig) {
    loop {
        let bytes = host.output().to_vec();
        host.sent(bytes.len());
        rig.send(&bytes);
        rig.conn.resume(&mut rig.pool);
        rig.serve();
        let out = std::mem::take(&mut rig.out);
        host.receive(&out).expect("the connection keeps to the protocol");
        if out.is_empty() && host.output().is_empty() {
            break;
        }
    }
}

/// Whatever the pieces, in both directions, the commands and answers are the same.
#[test]
fn a_stream_may_be_cut_anywhere() {
    for seed in 0..24u64 {
        let mut random = Random(seed);
        let options = Options {
            header_digest: seed & 1 != 0,
            data_digest: seed & 2 != 0,
            hpda: random.below(32) as u8,
            in_capsule: [0, 512, 4096, 8192][random.below(4)],
            depth: 16,
        };
        let limits = Limits {
            cpda: random.below(32) as u8,
            maxh2cdata: 4096 + 4 * random.below(20_000) as u32,
            c2h_data_max: 512 + random.below(70_000) as u32,
            ..Limits::default()
        };
        let flow_control = seed & 4 != 0;
        let mut whole = None;
        for cut in [Cut::Whole, Cut::Every(7), Cut::Random(seed), Cut::Random(seed ^ 99)] {
            let run = conversation(options, limits, flow_control, cut, seed);
            let whole = whole.get_or_insert_with(|| run.clone());
            assert!(*whole == run, "seed {seed}, {cut:?}");
        }
    }
}

/// Writes and reads of random lengths; what the device got and what the host got, by identifier of
/// their order (the order of completion depends on the pieces).
fn conversation(
    options: Options,
    limits: Limits,
    flow_control: bool,
    cut: Cut,
    seed: u64,
) -> (Vec<Got>, Vec<(u32, Done)>) {
    let mut random = Random(seed + 1000);
    let mut host = Initiator::new(options);
    let mut rig = Rig::with_pool(limits, 20, 20);
    (rig.cut, rig.hpda) = (cut, options.hpda);
    pump(&mut host, &mut rig);
    assert!(host.is_open());
    rig.conn.set_sq(17, flow_control);
    let mut numbers = [0; 16];
    let mut done = Vec::new();
    for round in 0..6 {
        for n in 0..16 {
            let number = round * 16 + n;
            let len = match random.below(4) {
                0 => 0,
                1 => 512,
                2 => 1 + random.below(9000),
                _ => 1 + random.below(limits.data_max as usize),
            };
            let (opcode, payload) = match random.below(3) {
                0 => (nvm::WRITE, Payload::Out(pattern(number, len as u32))),
                1 => (nvm::READ, Payload::In(vec![0; len])),
                _ => (nvm::FLUSH, Payload::None),
            };
            let command = Command { opcode, nsid: 1, cdw10: number, ..Command::default() };
            let cid = host.submit(command, payload).expect("one of 16");
            numbers[usize::from(cid)] = number;
        }
        pump(&mut host, &mut rig);
        assert_eq!((host.in_flight(), rig.conn.in_flight()), (0, 0));
        while let Some(mut end) = host.next_done() {
            let number = numbers[usize::from(end.cid)];
            if let Payload::In(data) = &end.payload {
                assert_eq!((data, end.received), (&pattern(number, data.len() as u32), data.len()));
            }
            assert!(end.completion.status.is_ok());
            // Which identifier and which head depends on the order of completion.
            (end.cid, end.completion) = (0, Completion::SUCCESS);
            done.push((number, end));
        }
    }
    done.sort_by_key(|(number, _)| *number);
    let mut got = std::mem::take(&mut rig.got);
    got.iter_mut().for_each(|got| got.command.cid = 0);
    got.sort_by_key(|got| got.command.cdw10);
    assert_eq!((got.len(), done.len()), (96, 96));
    assert_eq!(rig.pool.free(), (20, 20));
    rig.finish();
    (got, done)
}
