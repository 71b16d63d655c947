//! From bytes to commands: headers, digests, data.
//!
//! A header is judged in two steps, whatever pieces it comes in: type, length and digest flag as
//! soon as the common header is there (they say where the header ends), all else when the header
//! and its digest are there. So where a stream is cut changes nothing, and a damaged header is a
//! digest error wherever its length could still be told.

use zerocopy::FromBytes;

use crate::pool::{Claim, Pool};
use crate::wire::pdu::{
    self, ALIGNMENT_MAX, CapsuleCmd, CommonHeader, DIGEST_BYTES, FES_HEADER_DIGEST,
    FES_INVALID_HEADER_FIELD, FES_LIMIT_EXCEEDED, FES_OUT_OF_RANGE, FES_SEQUENCE, FES_UNSUPPORTED,
    FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FLAG_LAST, IcReq, TYPE_COMMAND, TYPE_H2C_DATA,
    TYPE_H2C_TERM, TYPE_ICREQ, TermReq, Transfer, offset,
};
use crate::wire::{Command, Completion, Direction, SglKind, Status};

use super::incoming::{Incoming, Source};
use super::slots::Stage;
use super::{Agreed, Connection, Expect, Fault, Pause, SlotId, State};

/// Least bytes of a data PDU that are worth a place of their own in a receive.
const STRAIGHT_MIN: usize = 2048;

/// A fatal error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crime {
    pub fes: u16,
    pub fei: u32,
    what: &'static str,
    /// Bytes of the header to show to the host.
    header: usize,
}

pub(super) fn crime(fes: u16, fei: u32, what: &'static str) -> Crime {
    Crime { fes, fei, what, header: 0 }
}

/// A wrong field at offset `at` of the header.
fn field(at: u32, what: &'static str) -> Crime {
    crime(FES_INVALID_HEADER_FIELD, at, what)
}

/// Whether to look at what follows, or wait for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    More,
    Wait,
}

/// Where the data of a PDU lies.
#[derive(Clone, Copy, Debug)]
struct Layout {
    pad: u32,
    data: u32,
    digest: bool,
}

/// What becomes of a new command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plan {
    /// Complete as it is; so much data is wanted.
    Go { wanted: u32 },
    /// This part of the in-capsule data is its data.
    InCapsule { at: u32, len: u32 },
    /// So much data is to be asked for.
    Ask { len: u32 },
}

/// Type, length of the header and its digest flag; that length.
pub(super) fn check_common(
    common: &CommonHeader,
    state: State,
    agreed: Agreed,
) -> Result<usize, Crime> {
    match (common.kind, state) {
        (TYPE_ICREQ, State::New) | (TYPE_COMMAND | TYPE_H2C_DATA, State::Open) => {}
        (TYPE_ICREQ, _) => return Err(crime(FES_SEQUENCE, 0, "a second ICReq")),
        (TYPE_COMMAND | TYPE_H2C_DATA, _) => {
            return Err(crime(FES_SEQUENCE, 0, "a PDU before the ICReq"));
        }
        _ => return Err(field(offset::TYPE, "a PDU type that hosts do not send")),
    }
    let hlen = pdu::header_bytes(common.kind).expect("a known type");
    if usize::from(common.hlen) != hlen {
        return Err(field(offset::HLEN, "a wrong header length"));
    }
    let digest = common.flags & FLAG_HEADER_DIGEST != 0;
    if common.kind != TYPE_ICREQ && digest != agreed.header_digest {
        return Err(field(offset::FLAGS, "header digest flag and agreement differ"));
    }
    Ok(hlen)
}

impl Connection {
    /// Where the next bytes go. Empty if none can be taken now (see [`Connection::is_paused`]):
    /// then do not receive.
    pub fn receive_space(&mut self) -> &mut [u8] {
        let (straight, buffered) = self.receive_slices();
        if straight.is_empty() { buffered } else { straight }
    }

    /// Where the next bytes go: what is still missing of the data under way, straight into its
    /// buffer, then the receive buffer. Either may be empty, also both (then do not receive).
    pub fn receive_slices(&mut self) -> (&mut [u8], &mut [u8]) {
        if self.pause.is_some() || self.is_closed() {
            return (&mut [], &mut []);
        }
        let straight = self.straight();
        let buffered = self.input.room();
        let Some((slot, room)) = straight else { return (&mut [], buffered) };
        let slot = self.slots.get_mut(slot);
        let at = slot.received as usize;
        let buffer = slot.buffer.as_mut().expect("data under way has a buffer");
        (&mut buffer.as_mut_slice()[at..at + room], buffered)
    }

    /// The command whose data can come straight into its buffer, and how much of it.
    fn straight(&self) -> Option<(SlotId, usize)> {
        match &self.expect {
            Expect::Data(incoming)
                if incoming.straight() >= STRAIGHT_MIN && self.input.pending().is_empty() =>
            {
                Some((incoming.slot, incoming.straight()))
            }
            _ => None,
        }
    }

    /// So many bytes came into [`Connection::receive_slices`], the first slice first. Parses all
    /// that can be parsed; a protocol error sets [`Connection::fatal`].
    ///
    /// # Panics
    /// More bytes than there was space for, or the connection has not joined the pool.
    pub fn received(&mut self, bytes: usize, pool: &mut Pool) {
        assert!(self.share.is_some() || self.is_over(), "the connection has joined the pool");
        let mut left = bytes;
        if let Some((slot, room)) = self.straight() {
            let taken = left.min(room);
            let slot = self.slots.get_mut(slot);
            let at = slot.received as usize;
            let buffer = slot.buffer.as_ref().expect("data under way has a buffer");
            if let Expect::Data(incoming) = &mut self.expect {
                incoming.took_straight(&buffer.as_slice()[at..at + taken]);
            }
            slot.received += taken as u32;
            left -= taken;
        }
        self.input.filled(left);
        self.parse(pool);
    }

    /// Goes on where it stopped for want of a buffer, or of an answer before. Commands may have
    /// become complete.
    pub fn resume(&mut self, pool: &mut Pool) {
        if self.is_over() {
            return;
        }
        self.feed(pool);
        if self.pause.is_some() {
            self.parse(pool);
        }
    }

    fn parse(&mut self, pool: &mut Pool) {
        self.pause = None;
        while !self.is_over() {
            let step = match self.expect {
                Expect::Header => self.header(pool),
                Expect::Data(incoming) => Ok(self.data_bytes(incoming, pool)),
                Expect::Digest(incoming) => Ok(self.digest_bytes(incoming, pool)),
            };
            match step {
                Ok(Step::More) => {}
                Ok(Step::Wait) => return,
                Err(crime) => self.fail(crime),
            }
        }
        self.input.clear();
    }

    /// The host broke the protocol.
    pub(super) fn fail(&mut self, crime: Crime) {
        let Crime { fes, fei, what, header } = crime;
        self.fault = Some(Fault::Ours { fes, fei, what });
        self.output.push_term(fes, fei, &self.input.pending()[..header]);
    }

    fn header(&mut self, pool: &mut Pool) -> Result<Step, Crime> {
        let pending = self.input.pending();
        let Ok((common, _)) = CommonHeader::read_from_prefix(pending) else {
            return Ok(Step::Wait);
        };
        if common.kind == TYPE_H2C_TERM {
            return Ok(self.terminated(&common));
        }
        let of_common = |crime| Crime { header: size_of::<CommonHeader>(), ..crime };
        let hlen = check_common(&common, self.state, self.agreed).map_err(of_common)?;
        let digest = self.agreed.header_digest;
        let end = hlen + if digest { DIGEST_BYTES } else { 0 };
        let Some(whole) = pending.get(..end) else { return Ok(Step::Wait) };
        let of_header = |crime| Crime { header: hlen, ..crime };
        if digest {
            let (header, received) = whole.split_at(hlen);
            let received = u32::from_le_bytes(received.try_into().expect("4 bytes"));
            if lamina_bdev::crc32c::crc32c(header) != received {
                let what = "the header digest does not match";
                return Err(of_header(crime(FES_HEADER_DIGEST, received, what)));
            }
        }
        match common.kind {
            TYPE_ICREQ => self.icreq(end),
            TYPE_COMMAND => self.capsule(end, pool),
            _ => self.h2c_data(end),
        }
        .map_err(of_header)
    }

    /// H2CTermReq: never answered with one.
    fn terminated(&mut self, common: &CommonHeader) -> Step {
        let size = size_of::<TermReq>();
        let lawful = size as u32..=(size + pdu::TERM_DATA_MAX) as u32;
        let (fes, fei) = if usize::from(common.hlen) != size || !lawful.contains(&common.plen.get())
        {
            (0, 0)
        } else if let Ok((term, _)) = TermReq::read_from_prefix(self.input.pending()) {
            (term.fes.get(), term.fei.get())
        } else {
            return Step::Wait;
        };
        self.fault = Some(Fault::Peers { fes, fei });
        Step::More
    }

    fn icreq(&mut self, end: usize) -> Result<Step, Crime> {
        let (request, _) = IcReq::read_from_prefix(self.input.pending()).expect("128 bytes");
        if request.ch.plen.get() as usize != size_of::<IcReq>() {
            return Err(field(offset::PLEN, "an ICReq is 128 bytes"));
        }
        if request.pfv.get() != 0 {
            return Err(crime(FES_UNSUPPORTED, offset::PFV, "only PDU format 0 is known"));
        }
        if request.hpda > ALIGNMENT_MAX {
            return Err(field(offset::PDA, "data alignment above 128 bytes"));
        }
        self.agreed = Agreed {
            header_digest: self.limits.header_digest && request.digest & pdu::DIGEST_HEADER != 0,
            data_digest: self.limits.data_digest && request.digest & pdu::DIGEST_DATA != 0,
            hpda: request.hpda,
        };
        self.state = State::Open;
        self.output.push_icresp();
        self.input.consume(end);
        Ok(Step::More)
    }

    /// Checks where the data of a PDU lies whose header and digest end at `end`.
    fn layout(&self, common: &CommonHeader, end: usize) -> Result<Layout, Crime> {
        let digest = self.agreed.data_digest;
        if (common.flags & FLAG_DATA_DIGEST != 0) != digest {
            return Err(field(offset::FLAGS, "data digest flag and agreement differ"));
        }
        let data_end =
            common.plen.get().saturating_sub(if digest { DIGEST_BYTES as u32 } else { 0 });
        if data_end <= end as u32 {
            return Err(field(offset::PLEN, "a PDU without room for its data"));
        }
        let pdo = usize::from(common.pdo);
        let aligned = pdo == pdu::data_offset(pdo, self.limits.cpda);
        if pdo < end || !aligned || pdo as u32 >= data_end {
            return Err(field(offset::PDO, "data in the wrong place"));
        }
        Ok(Layout { pad: (pdo - end) as u32, data: data_end - pdo as u32, digest })
    }

    fn capsule(&mut self, end: usize, pool: &mut Pool) -> Result<Step, Crime> {
        let (capsule, _) = CapsuleCmd::read_from_prefix(self.input.pending()).expect("72 bytes");
        let plen = capsule.ch.plen.get();
        if plen < end as u32 {
            return Err(field(offset::PLEN, "a command capsule that ends in its header"));
        }
        let layout = if plen == end as u32 {
            Layout { pad: 0, data: 0, digest: false }
        } else {
            self.layout(&capsule.ch, end)?
        };
        if layout.data > self.limits.in_capsule {
            return Err(field(offset::PLEN, "more in-capsule data than allowed"));
        }
        if self.queue.one_by_one && self.in_flight() > 0 {
            self.pause = Some(Pause::Turn);
            return Ok(Step::Wait);
        }
        if self.in_flight() >= usize::from(self.queue.size) {
            let what = "more commands than the submission queue holds";
            return Err(crime(FES_SEQUENCE, 0, what));
        }
        let command = Command::from(&capsule.command);
        let plan = self.plan(&command, layout.data);
        let mut buffer = None;
        if let Ok(Plan::InCapsule { len, .. }) = plan {
            let share = self.share.as_mut().expect("joined");
            buffer = pool.take_for(share, len as usize, Claim::Capsule);
            if buffer.is_none() {
                self.pause = Some(Pause::Buffer);
                return Ok(Step::Wait);
            }
        }
        self.input.consume(end);
        let pair = !self.queue.one_by_one;
        let slot = self.slots.begin(command, Stage::CapsuleData, pair).expect("a slot an entry");
        let entry = self.slots.get_mut(slot);
        entry.buffer = buffer;
        let (at, stored) = match plan {
            Ok(Plan::InCapsule { at, len }) => (at, len),
            Ok(Plan::Go { .. } | Plan::Ask { .. }) | Err(_) => (0, 0),
        };
        match plan {
            Ok(Plan::InCapsule { len, .. }) => entry.data_len = len,
            Ok(Plan::Go { wanted }) => entry.data_len = wanted,
            Ok(Plan::Ask { len }) => entry.data_len = len,
            Err(status) => entry.failed = Some(status),
        }
        if layout.data > 0 {
            let Layout { pad, data, digest } = layout;
            let incoming = Incoming::new(slot, Source::Capsule, pad, data, at, stored);
            self.expect = Expect::Data(incoming.with_digest(digest));
        } else {
            self.arrived(slot, pool);
        }
        Ok(Step::More)
    }

    /// What becomes of a command that came with `present` bytes of in-capsule data, or how it ends.
    fn plan(&self, command: &Command, present: u32) -> Result<Plan, Status> {
        if self.slots.cid_in_flight(command.cid) {
            return Err(Status::COMMAND_ID_CONFLICT.dnr());
        }
        if command.psdt != Command::PSDT_SGL {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let len = command.sgl.length;
        let plan = match (command.direction(), command.sgl.kind) {
            (Direction::None, _) => Plan::Go { wanted: 0 },
            (_, SglKind::Other(_)) | (Direction::ToHost, SglKind::InCapsule { .. }) => {
                return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
            }
            (_, SglKind::Transport) if len > self.limits.data_max => {
                return Err(Status::INVALID_FIELD.dnr());
            }
            (Direction::ToHost, SglKind::Transport) => Plan::Go { wanted: len },
            // Hosts do not expect to be asked for the data of fabrics commands.
            (Direction::ToController, SglKind::Transport)
                if len > 0 && command.fctype().is_some() =>
            {
                return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.dnr());
            }
            (Direction::ToController, SglKind::Transport) if len == 0 => Plan::Go { wanted: 0 },
            (Direction::ToController, SglKind::Transport) => Plan::Ask { len },
            (Direction::ToController, SglKind::InCapsule { offset }) => {
                if offset > u64::from(present) {
                    return Err(Status::SGL_OFFSET_INVALID.dnr());
                }
                let at = offset as u32;
                if len > present - at {
                    return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
                }
                if len > 0 {
                    return Ok(Plan::InCapsule { at, len });
                }
                Plan::Go { wanted: 0 }
            }
        };
        // Data that nothing points to: capsule and command do not agree.
        if present > 0 { Err(Status::DATA_SGL_LENGTH_INVALID.dnr()) } else { Ok(plan) }
    }

    fn h2c_data(&mut self, end: usize) -> Result<Step, Crime> {
        let (data, _) = Transfer::read_from_prefix(self.input.pending()).expect("24 bytes");
        let Some(slot) = self.slots.by_tag(data.ttag.get()) else {
            return Err(field(offset::TTAG, "data for a transfer that was not asked for"));
        };
        let entry = self.slots.get(slot);
        if data.cccid.get() != entry.command.cid {
            return Err(field(offset::CCCID, "data for another command than its transfer's"));
        }
        let (at, len) = (data.offset.get(), data.length.get());
        if len == 0 {
            return Err(field(offset::DATAL, "an H2CData without data"));
        }
        if len > self.limits.maxh2cdata {
            return Err(crime(FES_LIMIT_EXCEEDED, 0, "more data in a PDU than MAXH2CDATA"));
        }
        let left = entry.data_len - entry.received;
        if at != entry.received || len > left {
            return Err(crime(FES_OUT_OF_RANGE, 0, "data out of range or out of order"));
        }
        let layout = self.layout(&data.ch, end)?;
        if layout.data != len {
            return Err(field(offset::PLEN, "PDU length and data length differ"));
        }
        if (data.ch.flags & FLAG_LAST != 0) != (len == left) {
            return Err(field(offset::FLAGS, "the last-PDU flag is not where the data ends"));
        }
        self.input.consume(end);
        let Layout { pad, data, digest } = layout;
        let incoming = Incoming::new(slot, Source::Transfer, pad, data, 0, data);
        self.expect = Expect::Data(incoming.with_digest(digest));
        Ok(Step::More)
    }

    fn data_bytes(&mut self, mut incoming: Incoming, pool: &mut Pool) -> Step {
        let entry = self.slots.get_mut(incoming.slot);
        let taken = incoming.take(self.input.pending(), entry.buffer.as_mut(), &mut entry.received);
        self.input.consume(taken);
        if !incoming.is_complete() {
            self.expect = Expect::Data(incoming);
            return Step::Wait;
        }
        if incoming.digest {
            self.expect = Expect::Digest(incoming);
        } else {
            self.data_done(incoming, pool);
        }
        Step::More
    }

    fn digest_bytes(&mut self, incoming: Incoming, pool: &mut Pool) -> Step {
        let Some((digest, _)) = self.input.pending().split_first_chunk::<DIGEST_BYTES>() else {
            return Step::Wait;
        };
        if !incoming.matches(*digest) {
            // Only this command fails; the rest of its data still comes in and is not used.
            let failed = &mut self.slots.get_mut(incoming.slot).failed;
            failed.get_or_insert(Status::TRANSIENT_TRANSPORT_ERROR);
        }
        self.input.consume(DIGEST_BYTES);
        self.data_done(incoming, pool);
        Step::More
    }

    /// All of a PDU's data is in.
    fn data_done(&mut self, incoming: Incoming, pool: &mut Pool) {
        self.expect = Expect::Header;
        let slot = incoming.slot;
        match incoming.source {
            Source::Capsule => self.arrived(slot, pool),
            Source::Transfer => {
                let entry = self.slots.get(slot);
                if entry.received == entry.data_len {
                    self.complete(slot);
                }
            }
        }
    }

    /// All of a command's capsule is in.
    fn arrived(&mut self, slot: SlotId, pool: &mut Pool) {
        let entry = self.slots.get_mut(slot);
        let missing =
            entry.command.direction() == Direction::ToController && entry.received < entry.data_len;
        if entry.failed.is_none() && missing {
            entry.stage = Stage::NeedsBuffer;
            self.waiting.push_back(slot);
            self.feed(pool);
        } else {
            self.complete(slot);
        }
    }

    /// A command and its data are in.
    fn complete(&mut self, slot: SlotId) {
        let entry = self.slots.get_mut(slot);
        match entry.failed {
            None => self.slots.complete(slot),
            Some(status) => {
                entry.stage = Stage::Answering;
                entry.answer = Completion::status(status);
                self.slots.refuse(slot);
                self.output.push_answer(slot);
            }
        }
    }

    /// Gives buffers to commands that wait for one, in order, and asks for their data.
    pub(super) fn feed(&mut self, pool: &mut Pool) {
        while let Some(&slot) = self.waiting.front()
            && !self.is_over()
        {
            let entry = self.slots.get_mut(slot);
            let share = self.share.as_mut().expect("joined");
            let claim = Claim::Transfer;
            let Some(buffer) = pool.take_for(share, entry.data_len as usize, claim) else { return };
            entry.buffer = Some(buffer);
            entry.stage = Stage::Transfer;
            self.waiting.pop_front();
            self.output.push_r2t(slot);
        }
    }
}
