//! An initiator's queue: commands in, PDUs out; PDUs in, completions out.

use std::collections::VecDeque;

use zerocopy::FromBytes;

use crate::wire::pdu::{
    self, CapsuleResp, CommonHeader, DIGEST_BYTES, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FLAG_LAST,
    FLAG_SUCCESS, HEADER_BYTES_MAX, IcResp, TYPE_C2H_DATA, TYPE_C2H_TERM, TYPE_ICRESP, TYPE_R2T,
    TYPE_RESPONSE, TermReq, Transfer,
};
use crate::wire::{Command, Completion, Sgl};

use super::Builder;

/// What an initiator asks for and how it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// Alignment asked of the controller's data: dwords, one less.
    pub hpda: u8,
    /// Data up to this length goes in the capsule, bytes.
    pub in_capsule: usize,
    /// Most commands in flight.
    pub depth: u16,
}

impl Default for Options {
    fn default() -> Options {
        Options { header_digest: false, data_digest: false, hpda: 0, in_capsule: 8192, depth: 128 }
    }
}

/// Data that goes with a command. The vector comes back in [`Done`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Payload {
    /// None.
    #[default]
    None,
    /// To the controller.
    Out(Vec<u8>),
    /// From the controller: the vector's length is what is wanted.
    In(Vec<u8>),
}

impl Payload {
    /// Bytes.
    pub fn len(&self) -> usize {
        match self {
            Payload::None => 0,
            Payload::Out(data) | Payload::In(data) => data.len(),
        }
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A command that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// Its identifier.
    pub cid: u16,
    /// What the controller says; made up by the rules where the success flag stands for it.
    pub completion: Completion,
    /// Its data.
    pub payload: Payload,
    /// Bytes that came from the controller.
    pub received: usize,
}

/// Why the connection is no good any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The controller broke the protocol.
    Protocol(&'static str),
    /// A header digest does not match.
    HeaderDigest,
    /// A data digest does not match.
    DataDigest,
    /// The controller says that this end broke the protocol.
    Terminated {
        /// Fatal error status.
        fes: u16,
        /// Fatal error information.
        fei: u32,
        /// The header that it complains about.
        header: Vec<u8>,
    },
}

#[derive(Debug, Default)]
struct Request {
    busy: bool,
    payload: Payload,
    /// Bytes received, or sent by R2T.
    moved: usize,
}

/// C2HData under way.
#[derive(Clone, Copy, Debug)]
struct Arriving {
    cid: u16,
    pad: usize,
    left: usize,
    crc: u32,
    flags: u8,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Header,
    Term { left: usize },
    Data(Arriving),
    Digest(Arriving),
}

/// An initiator's queue.
#[derive(Debug)]
pub struct Initiator {
    options: Options,
    builder: Builder,
    maxh2cdata: usize,
    open: bool,
    requests: Vec<Request>,
    free: Vec<u16>,
    out: Vec<u8>,
    sent: usize,
    expect: Expect,
    header: [u8; HEADER_BYTES_MAX + DIGEST_BYTES],
    header_len: usize,
    term: Vec<u8>,
    done: VecDeque<Done>,
}

impl Initiator {
    /// A queue whose ICReq is ready to be sent.
    pub fn new(options: Options) -> Initiator {
        let mut out = Vec::new();
        let Options { header_digest, data_digest, hpda, depth, .. } = options;
        Builder { header_digest, data_digest, cpda: 0 }.icreq(&mut out, hpda, 0);
        Initiator {
            options,
            builder: Builder::default(),
            maxh2cdata: 0,
            open: false,
            requests: (0..depth).map(|_| Request::default()).collect(),
            free: (0..depth).rev().collect(),
            out,
            sent: 0,
            expect: Expect::Header,
            header: [0; HEADER_BYTES_MAX + DIGEST_BYTES],
            header_len: 0,
            term: Vec::new(),
            done: VecDeque::new(),
        }
    }

    /// The ICResp has come: commands may be submitted.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// What was agreed on; makes PDUs that go with it.
    pub fn builder(&self) -> Builder {
        self.builder
    }

    /// MAXH2CDATA of the controller, bytes.
    pub fn maxh2cdata(&self) -> usize {
        self.maxh2cdata
    }

    /// Data up to this length goes in the capsule from now on, bytes.
    pub fn set_in_capsule(&mut self, bytes: usize) {
        self.options.in_capsule = bytes;
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    /// Sends a command. Identifier, PSDT and SGL are filled in; the identifier is returned, `None`
    /// if as many commands are in flight as there may be.
    ///
    /// # Panics
    /// The ICResp has not come yet.
    pub fn submit(&mut self, command: Command, payload: Payload) -> Option<u16> {
        assert!(self.open, "commands come after the ICResp");
        let cid = self.free.pop()?;
        let len = payload.len() as u32;
        let in_capsule = match &payload {
            Payload::Out(data) if data.len() <= self.options.in_capsule => data.as_slice(),
            Payload::None | Payload::In(_) | Payload::Out(_) => &[],
        };
        let sgl = if in_capsule.is_empty() { Sgl::transport(len) } else { Sgl::in_capsule(len) };
        let command = Command { cid, psdt: Command::PSDT_SGL, sgl, ..command };
        self.builder.command(&mut self.out, &command, in_capsule);
        self.requests[usize::from(cid)] = Request { busy: true, payload, moved: 0 };
        Some(cid)
    }

    /// Bytes to be sent.
    pub fn output(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// So many bytes of [`Initiator::output`] have been sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        assert!(self.sent <= self.out.len(), "no more bytes are sent than there were");
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    /// More bytes to be sent, whatever they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The next command that is over.
    pub fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Takes what has come in.
    ///
    /// # Errors
    /// The connection is over; what came before has been taken.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.expect {
                Expect::Header => self.receive_header(&mut rest)?,
                Expect::Term { left } => {
                    let taken = split(&mut rest, left);
                    self.term.extend_from_slice(taken);
                    self.expect = Expect::Term { left: left - taken.len() };
                    self.check_term()?;
                }
                Expect::Data(arriving) => self.receive_data(arriving, &mut rest)?,
                Expect::Digest(arriving) => {
                    if self.fill(&mut rest, DIGEST_BYTES) {
                        if self.header[..DIGEST_BYTES] != arriving.crc.to_le_bytes() {
                            return Err(Failure::DataDigest);
                        }
                        self.header_len = 0;
                        self.data_done(arriving)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Collects the first `wanted` bytes of a PDU; true when they are all there.
    fn fill(&mut self, rest: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.header_len);
        let taken = split(rest, missing);
        self.header[self.header_len..self.header_len + taken.len()].copy_from_slice(taken);
        self.header_len += taken.len();
        self.header_len >= wanted
    }

    fn receive_header(&mut self, rest: &mut &[u8]) -> Result<(), Failure> {
        if !self.fill(rest, size_of::<CommonHeader>()) {
            return Ok(());
        }
        let (common, _) = CommonHeader::read_from_prefix(&self.header).expect("8 bytes");
        let allowed = match common.kind {
            TYPE_ICRESP => !self.open,
            TYPE_C2H_TERM => true,
            TYPE_RESPONSE | TYPE_C2H_DATA | TYPE_R2T => self.open,
            _ => false,
        };
        let hlen = pdu::header_bytes(common.kind).unwrap_or(0);
        if !allowed || usize::from(common.hlen) != hlen {
            return Err(Failure::Protocol("a PDU that may not come now, or of a wrong length"));
        }
        let digest = self.open && common.kind != TYPE_C2H_TERM && self.builder.header_digest;
        if (common.flags & FLAG_HEADER_DIGEST != 0) != digest {
            return Err(Failure::Protocol("header digest flag and agreement differ"));
        }
        let end = if digest { hlen + DIGEST_BYTES } else { hlen };
        if !self.fill(rest, end) {
            return Ok(());
        }
        let crc = lamina_bdev::crc32c::crc32c(&self.header[..hlen]).to_le_bytes();
        if digest && self.header[hlen..end] != crc {
            return Err(Failure::HeaderDigest);
        }
        let plen = common.plen.get() as usize;
        if common.kind == TYPE_C2H_DATA || common.kind == TYPE_C2H_TERM {
            if plen < end || plen > end + (1 << 30) {
                return Err(Failure::Protocol("a wrong PDU length"));
            }
        } else if plen != end {
            return Err(Failure::Protocol("a wrong PDU length"));
        }
        self.header_len = 0;
        match common.kind {
            TYPE_ICRESP => self.icresp(),
            TYPE_C2H_TERM => {
                if plen > hlen + pdu::TERM_DATA_MAX {
                    return Err(Failure::Protocol("a termination request that is too long"));
                }
                self.expect = Expect::Term { left: plen - hlen };
                self.check_term()
            }
            TYPE_RESPONSE => {
                let (response, _) = CapsuleResp::read_from_prefix(&self.header).expect("24 bytes");
                let completion = Completion::from(&response.completion);
                self.end(completion.cid, completion)
            }
            TYPE_R2T => self.r2t(),
            _ => self.c2h_data(end),
        }
    }

    fn check_term(&self) -> Result<(), Failure> {
        let Expect::Term { left: 0 } = self.expect else { return Ok(()) };
        let (term, _) = TermReq::read_from_prefix(&self.header).expect("24 bytes");
        let (fes, fei) = (term.fes.get(), term.fei.get());
        Err(Failure::Terminated { fes, fei, header: self.term.clone() })
    }

    fn icresp(&mut self) -> Result<(), Failure> {
        let (response, _) = IcResp::read_from_prefix(&self.header).expect("128 bytes");
        let header_digest = response.digest & pdu::DIGEST_HEADER != 0;
        let data_digest = response.digest & pdu::DIGEST_DATA != 0;
        let asked = self.options;
        let more = (header_digest && !asked.header_digest) || (data_digest && !asked.data_digest);
        let maxh2cdata = response.maxh2cdata.get();
        let lawful = response.pfv.get() == 0
            && response.cpda <= pdu::ALIGNMENT_MAX
            && maxh2cdata >= pdu::MAXH2CDATA_MIN
            && maxh2cdata.is_multiple_of(4);
        if more || !lawful {
            return Err(Failure::Protocol("an ICResp with wrong values"));
        }
        self.builder = Builder { header_digest, data_digest, cpda: response.cpda };
        self.maxh2cdata = maxh2cdata as usize;
        self.open = true;
        Ok(())
    }

    fn request(&mut self, cid: u16) -> Result<&mut Request, Failure> {
        match self.requests.get_mut(usize::from(cid)) {
            Some(request) if request.busy => Ok(request),
            _ => Err(Failure::Protocol("an answer to a command that is not in flight")),
        }
    }

    fn r2t(&mut self) -> Result<(), Failure> {
        let (r2t, _) = Transfer::read_from_prefix(&self.header).expect("24 bytes");
        let (cid, ttag) = (r2t.cccid.get(), r2t.ttag.get());
        let (at, len) = (r2t.offset.get() as usize, r2t.length.get() as usize);
        let (builder, piece) = (self.builder, self.maxh2cdata);
        let request = self.request(cid)?;
        let Payload::Out(data) = &request.payload else {
            return Err(Failure::Protocol("an R2T for a command without data to send"));
        };
        if len == 0 || at != request.moved || len > data.len() - at {
            return Err(Failure::Protocol("an R2T out of range or out of order"));
        }
        let data = std::mem::take(&mut request.payload);
        request.moved += len;
        if let Payload::Out(bytes) = &data {
            let mut from = at;
            for chunk in bytes[at..at + len].chunks(piece) {
                let last = from + chunk.len() == at + len;
                builder.h2c_data(&mut self.out, (cid, ttag), from as u32, chunk, last);
                from += chunk.len();
            }
        }
        self.requests[usize::from(cid)].payload = data;
        Ok(())
    }

    fn c2h_data(&mut self, end: usize) -> Result<(), Failure> {
        let (data, _) = Transfer::read_from_prefix(&self.header).expect("24 bytes");
        let (at, len) = (data.offset.get() as usize, data.length.get() as usize);
        let (builder, hpda) = (self.builder, self.options.hpda);
        let flags = data.ch.flags;
        let cid = data.cccid.get();
        let request = self.request(cid)?;
        let Payload::In(room) = &request.payload else {
            return Err(Failure::Protocol("data for a command that wants none"));
        };
        if len == 0 || at != request.moved || len > room.len() - at {
            return Err(Failure::Protocol("data out of range or out of order"));
        }
        let pdo = usize::from(data.ch.pdo);
        let digest = if builder.data_digest { DIGEST_BYTES } else { 0 };
        if pdo < end || pdo != pdu::data_offset(pdo, hpda) {
            return Err(Failure::Protocol("data in the wrong place"));
        }
        if data.ch.plen.get() as usize != pdo + len + digest {
            return Err(Failure::Protocol("PDU length and data length differ"));
        }
        if (flags & FLAG_DATA_DIGEST != 0) != builder.data_digest {
            return Err(Failure::Protocol("data digest flag and agreement differ"));
        }
        if flags & FLAG_SUCCESS != 0 && flags & FLAG_LAST == 0 {
            return Err(Failure::Protocol("success before the last data"));
        }
        self.expect = Expect::Data(Arriving { cid, pad: pdo - end, left: len, crc: 0, flags });
        Ok(())
    }

    fn receive_data(&mut self, mut arriving: Arriving, rest: &mut &[u8]) -> Result<(), Failure> {
        arriving.pad -= split(rest, arriving.pad).len();
        let bytes = split(rest, arriving.left);
        arriving.left -= bytes.len();
        if self.builder.data_digest {
            arriving.crc = lamina_bdev::crc32c::crc32c_append(arriving.crc, bytes);
        }
        let request = &mut self.requests[usize::from(arriving.cid)];
        if let Payload::In(room) = &mut request.payload {
            room[request.moved..request.moved + bytes.len()].copy_from_slice(bytes);
        }
        request.moved += bytes.len();
        if arriving.left > 0 {
            self.expect = Expect::Data(arriving);
            Ok(())
        } else if self.builder.data_digest {
            self.expect = Expect::Digest(arriving);
            Ok(())
        } else {
            self.data_done(arriving)
        }
    }

    fn data_done(&mut self, arriving: Arriving) -> Result<(), Failure> {
        self.expect = Expect::Header;
        if arriving.flags & FLAG_SUCCESS == 0 {
            return Ok(());
        }
        let completion = Completion { cid: arriving.cid, ..Completion::SUCCESS };
        self.end(arriving.cid, completion)
    }

    fn end(&mut self, cid: u16, completion: Completion) -> Result<(), Failure> {
        let request = self.request(cid)?;
        let Request { payload, moved, .. } = std::mem::take(request);
        let received = if matches!(payload, Payload::In(_)) { moved } else { 0 };
        self.free.push(cid);
        self.done.push_back(Done { cid, completion, payload, received });
        Ok(())
    }
}

/// Takes up to `count` bytes off the front.
fn split<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(rest.len().min(count));
    *rest = left;
    taken
}
