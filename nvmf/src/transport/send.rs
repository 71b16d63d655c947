//! From answers to bytes.
//!
//! ```text
//!  queue   ICResp, R2T(slot), Answer(slot), Term                     what is to be said
//!             │ encode: as much as there is room for
//!             ▼
//!  pieces  [stage 24][stage 28][data 4096][stage 24]…                what is being sent
//!             │         │         └ slice of the slot's buffer
//!  stage   ring of bytes: headers, pads, digests, capsules           neighbours go as one iovec
//! ```

use std::collections::VecDeque;
use std::io::IoSlice;

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32};

use crate::SlotId;
use crate::wire::pdu::{
    self, CapsuleResp, CommonHeader, DIGEST_BYTES, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FLAG_LAST,
    FLAG_SUCCESS, HEADER_BYTES_MAX, IcResp, TERM_DATA_MAX, TYPE_C2H_DATA, TYPE_C2H_TERM,
    TYPE_ICRESP, TYPE_R2T, TYPE_RESPONSE, TermReq, Transfer,
};
use crate::wire::{Completion, RawCompletion, Status};

use super::slots::Slots;
use super::{Agreed, Connection};

/// Pieces made ready at a time.
const PIECES_MAX: usize = 192;
/// Most pieces that one PDU makes: header with pad, data, digest.
const PIECES_A_PDU: usize = 3;
/// Most staged bytes of one PDU: the longest header padded, a digest; or a termination request.
const STAGE_A_PDU: usize = HEADER_BYTES_MAX + size_of::<TermReq>() + DIGEST_BYTES;
/// Staged bytes before the queue is connected, and after.
const STAGE_FIRST: usize = 1024;
const STAGE_BYTES: usize = 16 << 10;
const _: () = assert!(STAGE_FIRST >= 2 * STAGE_A_PDU);
const _: () = assert!(TERM_DATA_MAX <= HEADER_BYTES_MAX);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    IcResp,
    R2t(SlotId),
    Answer(SlotId),
    Term,
}

#[derive(Clone, Copy, Debug)]
enum From {
    /// Offset in the stage.
    Stage(usize),
    /// Offset in the slot's buffer.
    Data(SlotId, usize),
}

/// Bytes to be sent.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: From,
    len: usize,
    /// The command that is over when they are out.
    ends: Option<SlotId>,
}

/// A termination request to be sent.
#[derive(Clone, Copy, Debug)]
struct Term {
    fes: u16,
    fei: u32,
    header: [u8; TERM_DATA_MAX],
    header_len: usize,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) struct Output {
    queue: VecDeque<Item>,
    pieces: VecDeque<Piece>,
    /// Bytes in `pieces`.
    ready: usize,
    stage: Vec<u8>,
    /// Where the next staged bytes go.
    stage_end: usize,
    term: Option<Term>,
}

impl Output {
    pub fn new(slots: u16) -> Output {
        Output {
            queue: VecDeque::with_capacity(usize::from(slots) + 2),
            pieces: VecDeque::with_capacity(8),
            ready: 0,
            stage: vec![0; STAGE_FIRST],
            stage_end: 0,
            term: None,
        }
    }

    pub fn grow(&mut self, slots: u16) {
        self.queue.reserve_exact(usize::from(slots) + 2 - self.queue.len());
        self.pieces.reserve_exact(PIECES_MAX - self.pieces.len());
        if self.stage.len() < STAGE_BYTES {
            self.stage.resize(STAGE_BYTES, 0);
        }
    }

    pub fn push_icresp(&mut self) {
        self.queue.push_back(Item::IcResp);
    }

    pub fn push_r2t(&mut self, slot: SlotId) {
        self.queue.push_back(Item::R2t(slot));
    }

    pub fn push_answer(&mut self, slot: SlotId) {
        self.queue.push_back(Item::Answer(slot));
    }

    /// Nothing is to be said after it, and no data asked for any more.
    pub fn push_term(&mut self, fes: u16, fei: u32, header: &[u8]) {
        let mut term = Term { fes, fei, header: [0; TERM_DATA_MAX], header_len: header.len() };
        term.header[..header.len()].copy_from_slice(header);
        self.term = Some(term);
        self.queue.retain(|item| !matches!(item, Item::R2t(_)));
        self.queue.push_back(Item::Term);
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.pieces.is_empty()
    }

    pub fn clear(&mut self) {
        self.queue.clear();
        self.pieces.clear();
        self.ready = 0;
    }

    /// One more PDU fits.
    fn has_room(&self) -> bool {
        let limit = self.pieces.capacity().min(PIECES_MAX);
        self.pieces.len() + PIECES_A_PDU <= limit && self.stage_room(STAGE_A_PDU).is_some()
    }

    /// Where `len` bytes fit in a row.
    fn stage_room(&self, len: usize) -> Option<usize> {
        let first = self.pieces.iter().find_map(|piece| match piece.from {
            From::Stage(at) => Some(at),
            From::Data(..) => None,
        });
        let (start, end) = match first {
            None => return Some(0),
            Some(start) => (start, self.stage_end),
        };
        if end > start {
            let behind = self.stage.len() - end >= len;
            // Never quite full: `end == start` would mean empty as well.
            if behind { Some(end) } else { (start > len).then_some(0) }
        } else {
            (start - end > len).then_some(end)
        }
    }

    /// Stages bytes; they are a piece, or more of the piece before.
    fn stage(&mut self, parts: &[&[u8]], ends: Option<SlotId>) {
        let len = parts.iter().map(|part| part.len()).sum();
        let at = self.stage_room(len).expect("room was looked for");
        let mut end = at;
        for part in parts {
            self.stage[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        self.stage_end = end;
        self.add(Piece { from: From::Stage(at), len: end - at, ends });
    }

    fn add(&mut self, piece: Piece) {
        self.ready += piece.len;
        self.pieces.push_back(piece);
    }

    /// The pieces as iovecs.
    pub fn slices<'a>(&'a self, slots: &'a Slots, out: &mut Vec<IoSlice<'a>>) {
        let mut run: Option<(usize, usize)> = None;
        for piece in &self.pieces {
            match piece.from {
                From::Stage(at) => match &mut run {
                    Some((_, end)) if *end == at => *end += piece.len,
                    _ => {
                        self.push_run(run.replace((at, at + piece.len)), out);
                    }
                },
                From::Data(slot, at) => {
                    self.push_run(run.take(), out);
                    let buffer = slots.get(slot).buffer.as_ref().expect("data in an answer");
                    out.push(IoSlice::new(&buffer.as_slice()[at..at + piece.len]));
                }
            }
        }
        self.push_run(run, out);
    }

    fn push_run<'a>(&'a self, run: Option<(usize, usize)>, out: &mut Vec<IoSlice<'a>>) {
        if let Some((start, end)) = run {
            out.push(IoSlice::new(&self.stage[start..end]));
        }
    }

    /// Takes sent bytes off the front, up to the end of a command, which is returned.
    pub fn advance(&mut self, left: &mut usize) -> Option<SlotId> {
        while *left > 0 {
            let piece = self.pieces.front_mut()?;
            let sent = piece.len.min(*left);
            *left -= sent;
            self.ready -= sent;
            piece.len -= sent;
            match &mut piece.from {
                From::Stage(at) | From::Data(_, at) => *at += sent,
            }
            if piece.len > 0 {
                return None;
            }
            let ends = piece.ends;
            self.pieces.pop_front();
            if ends.is_some() {
                return ends;
            }
        }
        None
    }
}

impl Connection {
    /// Makes PDUs ready, in order, as many as fit.
    pub(super) fn encode(&mut self) {
        while self.output.ready < self.limits.transmit_bytes
            && self.output.has_room()
            && let Some(&item) = self.output.queue.front()
        {
            let done = match item {
                Item::IcResp => self.encode_icresp(),
                Item::R2t(slot) => self.encode_r2t(slot),
                Item::Answer(slot) => self.encode_answer(slot),
                Item::Term => self.encode_term(),
            };
            if done {
                self.output.queue.pop_front();
            }
        }
    }

    /// Stages a header, its digest and the pad behind it.
    fn stage_header(&mut self, header: &[u8], end: usize, ends: Option<SlotId>) {
        let digest = crc32c_if(self.agreed.header_digest, header).map(u32::to_le_bytes);
        let digest = digest.as_ref().map_or(&[][..], |digest| &digest[..]);
        let pad = [0; HEADER_BYTES_MAX];
        let pad = &pad[..end.saturating_sub(header.len() + digest.len())];
        self.output.stage(&[header, digest, pad], ends);
    }

    fn encode_icresp(&mut self) -> bool {
        let Agreed { header_digest, data_digest, .. } = self.agreed;
        let response = IcResp {
            ch: CommonHeader {
                kind: TYPE_ICRESP,
                flags: 0,
                hlen: size_of::<IcResp>() as u8,
                pdo: 0,
                plen: U32::new(size_of::<IcResp>() as u32),
            },
            pfv: U16::new(0),
            cpda: self.limits.cpda,
            digest: if header_digest { pdu::DIGEST_HEADER } else { 0 }
                | if data_digest { pdu::DIGEST_DATA } else { 0 },
            maxh2cdata: U32::new(self.limits.maxh2cdata),
            reserved: [0; 112],
        };
        self.output.stage(&[response.as_bytes()], None);
        true
    }

    fn encode_r2t(&mut self, slot: SlotId) -> bool {
        let ttag = self.slots.tag(slot);
        let entry = self.slots.get_mut(slot);
        entry.asked = true;
        let (cid, length) = (entry.command.cid, entry.data_len);
        let ch = self.agreed.common(TYPE_R2T, 0, size_of::<Transfer>(), 0);
        let r2t = Transfer {
            ch,
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            offset: U32::new(0),
            length: U32::new(length),
            reserved: [0; 4],
        };
        self.stage_header(r2t.as_bytes(), 0, None);
        true
    }

    /// One PDU of an answer; true if it was the last.
    fn encode_answer(&mut self, slot: SlotId) -> bool {
        let entry = self.slots.get(slot);
        if entry.answer_sent < entry.answer_len {
            return self.encode_c2h_data(slot);
        }
        let mut answer = Completion { cid: entry.command.cid, ..entry.answer };
        if self.queue.flow_control {
            // An entry is free for the host when its command is over, not when it was taken: so
            // there are never more commands in flight than entries.
            self.queue.head = (self.queue.head + 1) % self.queue.size;
            answer.sq_head = self.queue.head;
        }
        let response = CapsuleResp {
            ch: self.agreed.common(TYPE_RESPONSE, 0, size_of::<CapsuleResp>(), 0),
            completion: RawCompletion::from(&answer),
        };
        self.stage_header(response.as_bytes(), 0, Some(slot));
        true
    }

    /// One C2HData; true if it ends the command.
    fn encode_c2h_data(&mut self, slot: SlotId) -> bool {
        let entry = self.slots.get_mut(slot);
        let at = entry.answer_sent;
        let length = (entry.answer_len - at).min(self.limits.c2h_data_max);
        entry.answer_sent += length;
        let last = entry.answer_sent == entry.answer_len;
        let Completion { dw0, dw1, status, .. } = entry.answer;
        let plain = (dw0, dw1, status) == (0, 0, Status::SUCCESS);
        // Without a capsule the host would not learn the queue's head.
        let allowed = self.limits.success_flag && !self.queue.flow_control;
        let success = last && plain && allowed;
        let flags = if last { FLAG_LAST } else { 0 } | if success { FLAG_SUCCESS } else { 0 };
        let ends = success.then_some(slot);
        let cid = entry.command.cid;
        let data = &entry.buffer.as_ref().expect("data in an answer").as_slice()[at as usize..];
        let digest = crc32c_if(self.agreed.data_digest, &data[..length as usize]);
        let ch = self.agreed.common(TYPE_C2H_DATA, flags, size_of::<Transfer>(), length);
        let header = Transfer {
            ch,
            cccid: U16::new(cid),
            ttag: U16::new(0),
            offset: U32::new(at),
            length: U32::new(length),
            reserved: [0; 4],
        };
        self.stage_header(header.as_bytes(), usize::from(ch.pdo), None);
        let from = From::Data(slot, at as usize);
        let ends_here = if digest.is_some() { None } else { ends };
        self.output.add(Piece { from, len: length as usize, ends: ends_here });
        if let Some(digest) = digest {
            self.output.stage(&[&digest.to_le_bytes()], ends);
        }
        success
    }

    fn encode_term(&mut self) -> bool {
        let term = self.output.term.expect("what the termination request says");
        let shown = &term.header[..term.header_len];
        let header = term_header(term.fes, term.fei, shown.len());
        self.output.stage(&[header.as_bytes(), shown], None);
        true
    }
}

/// C2HTermReq that shows `shown` bytes of the offending header behind it.
pub(super) fn term_header(fes: u16, fei: u32, shown: usize) -> TermReq {
    let size = size_of::<TermReq>();
    let plen = U32::new((size + shown) as u32);
    TermReq {
        ch: CommonHeader { kind: TYPE_C2H_TERM, flags: 0, hlen: size as u8, pdo: 0, plen },
        fes: U16::new(fes),
        fei: U32::new(fei),
        reserved: [0; 10],
    }
}

fn crc32c_if(wanted: bool, data: &[u8]) -> Option<u32> {
    wanted.then(|| lamina_bdev::crc32c::crc32c(data))
}

impl Agreed {
    /// Common header of a PDU with `data` bytes of data.
    fn common(&self, kind: u8, flags: u8, hlen: usize, data: u32) -> CommonHeader {
        let mut flags = flags;
        let mut end = hlen;
        if self.header_digest {
            flags |= FLAG_HEADER_DIGEST;
            end += DIGEST_BYTES;
        }
        let mut pdo = 0;
        let mut plen = end as u32;
        if data > 0 {
            pdo = pdu::data_offset(end, self.hpda);
            plen = pdo as u32 + data;
            if self.data_digest {
                flags |= FLAG_DATA_DIGEST;
                plen += DIGEST_BYTES as u32;
            }
        }
        CommonHeader { kind, flags, hlen: hlen as u8, pdo: pdo as u8, plen: U32::new(plen) }
    }
}
