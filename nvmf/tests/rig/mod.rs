//! A connection with a pool and a simple device behind it, driven byte by byte if need be.
//!
//! ```text
//!  bytes in pieces ─► Connection ─► commands ─► device: keeps writes, fills reads, answers
//!  replies, parsed ◄─            ◄─ answers ◄─┘
//! ```

#![allow(dead_code)]

use std::io::IoSlice;

use lamina_nvmf::SlotId;
use lamina_nvmf::host::Builder;
use lamina_nvmf::pool::Pool;
use lamina_nvmf::transport::{Connection, Limits};
use lamina_nvmf::wire::opcode::{fabrics, nvm};
use lamina_nvmf::wire::pdu::{self, CapsuleResp, CommonHeader, IcResp, TermReq, Transfer};
use lamina_nvmf::wire::{Command, Completion, Direction, Sgl};
use zerocopy::FromBytes;

/// Buffers of the rig's pool.
pub const SMALL: usize = 8;
pub const LARGE: usize = 4;

/// How a stream is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    Whole,
    Every(usize),
    /// Pieces of random length, from this seed.
    Random(u64),
}

/// A small generator of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// What the connection said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    IcResp { cpda: u8, digest: u8, maxh2cdata: u32 },
    Response(Completion),
    R2t { cid: u16, ttag: u16, at: u32, len: u32 },
    Data { cid: u16, at: u32, bytes: Vec<u8>, flags: u8, pdo: u8 },
    Term { fes: u16, fei: u32, header: Vec<u8> },
}

/// A command that the device got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Got {
    pub command: Command,
    /// Its data, if it goes to the controller.
    pub data: Vec<u8>,
}

pub struct Rig {
    pub conn: Connection,
    pub pool: Pool,
    pub builder: Builder,
    pub hpda: u8,
    pub cut: Cut,
    /// Commands are left running.
    pub hold: bool,
    pub held: Vec<SlotId>,
    pub got: Vec<Got>,
    /// Everything that was sent.
    pub out: Vec<u8>,
    /// A host may wait for itself: then sending gives up and says so.
    pub may_stick: bool,
    pub stuck: bool,
    random: Random,
}

impl Rig {
    pub fn new(limits: Limits) -> Rig {
        Rig::with_pool(limits, SMALL, LARGE)
    }

    pub fn with_pool(limits: Limits, small: usize, large: usize) -> Rig {
        Rig::from_pool(limits, Pool::new(small, large, limits.data_max as usize))
    }

    pub fn from_pool(limits: Limits, mut pool: Pool) -> Rig {
        let mut conn = Connection::new(limits);
        assert!(conn.join(&mut pool));
        Rig {
            conn,
            pool,
            builder: Builder::default(),
            hpda: 0,
            cut: Cut::Whole,
            hold: false,
            held: Vec::new(),
            got: Vec::new(),
            out: Vec::new(),
            may_stick: false,
            stuck: false,
            random: Random(1),
        }
    }

    /// ICReq and ICResp exchanged, the queue `depth` entries long.
    pub fn open(limits: Limits, builder: Builder, depth: u16) -> Rig {
        let mut rig = Rig::new(limits);
        rig.initialize(builder);
        rig.conn.set_sq(depth, true);
        rig
    }

    pub fn initialize(&mut self, builder: Builder) {
        let mut icreq = Vec::new();
        builder.icreq(&mut icreq, self.hpda, 0);
        self.send(&icreq);
        let reply = self.replies();
        let digest =
            if builder.header_digest { 1 } else { 0 } | if builder.data_digest { 2 } else { 0 };
        assert!(
            matches!(reply[..], [Reply::IcResp { digest: d, .. }] if d == digest),
            "{builder:?}: {reply:?}"
        );
        self.builder = builder;
    }

    /// Sends bytes, cut as `self.cut` says; serves what comes of them.
    pub fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Cut::Random(seed) = self.cut {
            self.random = Random(seed ^ self.random.0);
        }
        while !rest.is_empty() && !self.conn.is_closed() {
            let piece = match self.cut {
                Cut::Whole => rest.len(),
                Cut::Every(n) => n,
                Cut::Random(_) => match self.random.below(3) {
                    0 => 1 + self.random.below(8),
                    1 => 1 + self.random.below(200),
                    _ => 1 + self.random.below(20_000),
                },
            };
            let (straight, buffered) = self.conn.receive_slices();
            let room = straight.len() + buffered.len();
            if room == 0 {
                assert!(self.conn.is_paused(), "no room and no reason");
                let before = (self.got.len(), self.conn.in_flight());
                self.conn.resume(&mut self.pool);
                self.serve();
                let after = (self.got.len(), self.conn.in_flight());
                if self.conn.is_paused() && before == after {
                    assert!(self.may_stick, "stuck");
                    self.stuck = true;
                    return;
                }
                continue;
            }
            let (now, later) = rest.split_at(piece.min(rest.len()).min(room));
            let first = now.len().min(straight.len());
            straight[..first].copy_from_slice(&now[..first]);
            buffered[..now.len() - first].copy_from_slice(&now[first..]);
            rest = later;
            self.conn.received(now.len(), &mut self.pool);
            self.serve();
        }
    }

    /// Serves commands and sends answers until nothing happens.
    pub fn serve(&mut self) {
        loop {
            let mut busy = false;
            while let Some(slot) = self.conn.next_command() {
                busy = true;
                let command = *self.conn.command(slot);
                let len = self.conn.data_len(slot) as usize;
                let mut data = Vec::new();
                if command.direction() == Direction::ToController && len > 0 {
                    let buffer = self.conn.data(slot).expect("data to the controller");
                    data.extend_from_slice(&buffer.as_slice()[..len]);
                }
                self.got.push(Got { command, data });
                if self.hold {
                    self.held.push(slot);
                } else {
                    self.answer(slot);
                }
            }
            busy |= self.transmit();
            if !busy {
                break;
            }
        }
    }

    /// Answers with success; a read with a pattern that follows from its first block. Without a
    /// buffer it is held.
    pub fn answer(&mut self, slot: SlotId) {
        let command = *self.conn.command(slot);
        let len = self.conn.data_len(slot);
        if command.direction() == Direction::ToHost && len > 0 {
            let Some(mut buffer) = self.conn.take_buffer(len, &mut self.pool) else {
                self.held.push(slot);
                return;
            };
            buffer.as_mut_slice()[..len as usize].copy_from_slice(&pattern(command.cdw10, len));
            self.conn.attach(slot, buffer);
            self.conn.respond(slot, Completion::SUCCESS, len);
        } else {
            self.conn.respond(slot, Completion::SUCCESS, 0);
        }
    }

    pub fn answer_held(&mut self) {
        for slot in std::mem::take(&mut self.held) {
            self.answer(slot);
        }
        self.serve();
    }

    /// Sends all there is, in random pieces if the stream is cut so; whether there was anything.
    pub fn transmit(&mut self) -> bool {
        let mut any = false;
        while self.conn.wants_send() {
            let mut slices: Vec<IoSlice> = Vec::new();
            self.conn.transmit(&mut slices);
            assert!(slices.len() < 256, "{} slices", slices.len());
            let total = slices.iter().map(|s| s.len()).sum::<usize>();
            assert!(total > 0, "it wants to send and has nothing");
            let count = match self.cut {
                Cut::Whole => total,
                Cut::Every(n) => total.min(n * 16),
                Cut::Random(_) => 1 + self.random.below(total),
            };
            let mut left = count;
            for slice in slices {
                let taken = left.min(slice.len());
                self.out.extend_from_slice(&slice[..taken]);
                left -= taken;
            }
            self.conn.transmitted(count, &mut self.pool);
            any = true;
        }
        any
    }

    /// Takes the replies so far.
    pub fn replies(&mut self) -> Vec<Reply> {
        parse(&std::mem::take(&mut self.out), self.builder, self.hpda)
    }

    pub fn command(&mut self, command: &Command, data: &[u8]) {
        let mut bytes = Vec::new();
        self.builder.command(&mut bytes, command, data);
        self.send(&bytes);
    }

    /// Sends a write whose data has to be asked for; its transfer tag.
    pub fn ask(&mut self, cid: u16, len: u32) -> u16 {
        self.command(&write(cid, Sgl::transport(len)), &[]);
        match self.replies()[..] {
            [Reply::R2t { cid: of, ttag, at: 0, len: l }] if of == cid && l == len => ttag,
            ref other => panic!("{other:?}"),
        }
    }

    /// Ends the connection; everything it had goes back.
    pub fn finish(mut self) -> Pool {
        self.conn.close(&mut self.pool);
        for slot in std::mem::take(&mut self.held) {
            self.conn.respond(slot, Completion::SUCCESS, 0);
        }
        self.conn.close(&mut self.pool);
        assert_eq!(self.conn.in_flight(), 0);
        assert!(self.conn.is_closed() && self.conn.next_command().is_none());
        let mut pool = self.pool;
        let (small, large) = pool.free();
        for (len, count) in [(1, small), (8193, large)] {
            let all: Vec<_> = std::iter::from_fn(|| pool.take(len)).collect();
            assert_eq!(all.len(), count, "nothing is kept for anybody");
            all.into_iter().for_each(|buffer| pool.give(buffer));
        }
        pool
    }

    /// As [`Rig::finish`], for the usual pool: all of its buffers are there.
    pub fn finish_whole(mut self) {
        self.conn.close(&mut self.pool);
        for slot in std::mem::take(&mut self.held) {
            self.conn.respond(slot, Completion::SUCCESS, 0);
        }
        self.conn.close(&mut self.pool);
        assert_eq!(self.pool.free(), (SMALL, LARGE));
        self.finish();
    }
}

pub fn pattern(seed: u32, len: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31).wrapping_add(seed.wrapping_mul(7)) >> 3) as u8).collect()
}

pub fn write(cid: u16, sgl: Sgl) -> Command {
    Command { opcode: nvm::WRITE, cid, nsid: 1, sgl, ..Command::default() }
}

pub fn read(cid: u16, len: u32) -> Command {
    let sgl = Sgl::transport(len);
    Command { opcode: nvm::READ, cid, nsid: 1, sgl, cdw10: cid.into(), ..Command::default() }
}

pub fn flush(cid: u16) -> Command {
    Command { opcode: nvm::FLUSH, cid, nsid: 1, ..Command::default() }
}

pub fn connect(cid: u16, sgl: Sgl) -> Command {
    let nsid = fabrics::CONNECT.into();
    Command { opcode: fabrics::OPCODE, cid, nsid, sgl, ..Command::default() }
}

fn parse(bytes: &[u8], builder: Builder, hpda: u8) -> Vec<Reply> {
    let mut replies = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (common, _) = CommonHeader::read_from_prefix(rest).expect("a common header");
        let plen = common.plen.get() as usize;
        let (pdu, later) = rest.split_at(plen);
        rest = later;
        let hlen = usize::from(common.hlen);
        assert_eq!(pdu::header_bytes(common.kind), Some(hlen));
        let bare = common.kind == pdu::TYPE_ICRESP || common.kind == pdu::TYPE_C2H_TERM;
        let digest = builder.header_digest && !bare;
        assert_eq!(common.flags & pdu::FLAG_HEADER_DIGEST != 0, digest);
        let mut end = hlen;
        if digest {
            assert_eq!(pdu[hlen..hlen + 4], crc32c::crc32c(&pdu[..hlen]).to_le_bytes());
            end += 4;
        }
        replies.push(match common.kind {
            pdu::TYPE_ICRESP => {
                let r = IcResp::read_from_bytes(pdu).expect("128 bytes");
                assert_eq!((r.pfv.get(), r.reserved), (0, [0; 112]));
                Reply::IcResp { cpda: r.cpda, digest: r.digest, maxh2cdata: r.maxh2cdata.get() }
            }
            pdu::TYPE_RESPONSE => {
                assert_eq!(plen, end);
                let (r, _) = CapsuleResp::read_from_prefix(pdu).expect("24 bytes");
                Reply::Response(Completion::from(&r.completion))
            }
            pdu::TYPE_R2T => {
                assert_eq!(plen, end);
                let (r, _) = Transfer::read_from_prefix(pdu).expect("24 bytes");
                let (at, len) = (r.offset.get(), r.length.get());
                Reply::R2t { cid: r.cccid.get(), ttag: r.ttag.get(), at, len }
            }
            pdu::TYPE_C2H_TERM => {
                let (r, shown) = TermReq::read_from_prefix(pdu).expect("24 bytes");
                assert!(shown.len() <= 128 && r.reserved == [0; 10]);
                Reply::Term { fes: r.fes.get(), fei: r.fei.get(), header: shown.to_vec() }
            }
            pdu::TYPE_C2H_DATA => {
                let (r, _) = Transfer::read_from_prefix(pdu).expect("24 bytes");
                let pdo = usize::from(common.pdo);
                assert_eq!(pdo, pdu::data_offset(end, hpda));
                assert!(pdu[end..pdo].iter().all(|b| *b == 0), "pads are zero");
                let mut data = &pdu[pdo..];
                assert_eq!(common.flags & pdu::FLAG_DATA_DIGEST != 0, builder.data_digest);
                if builder.data_digest {
                    let (body, crc) = data.split_last_chunk::<4>().expect("a digest");
                    assert_eq!(crc32c::crc32c(body).to_le_bytes(), *crc);
                    data = body;
                }
                assert_eq!(data.len(), r.length.get() as usize);
                let (cid, at, flags) = (r.cccid.get(), r.offset.get(), common.flags & 0b1100);
                Reply::Data { cid, at, bytes: data.to_vec(), flags, pdo: common.pdo }
            }
            other => panic!("a controller does not send PDUs of type {other:#x}"),
        });
    }
    replies
}
