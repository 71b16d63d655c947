//! Single PDUs of a host, appended to a vector of bytes.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::pdu::{
    self, CapsuleCmd, CommonHeader, DIGEST_BYTES, FLAG_DATA_DIGEST, FLAG_HEADER_DIGEST, FLAG_LAST,
    HEADER_BYTES_MAX, IcReq, TYPE_COMMAND, TYPE_H2C_DATA, TYPE_H2C_TERM, TYPE_ICREQ, TermReq,
    Transfer,
};
use crate::wire::{Command, RawCommand};

/// What the two ends have agreed on, as far as a host's PDUs show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Builder {
    /// Header digests.
    pub header_digest: bool,
    /// Data digests.
    pub data_digest: bool,
    /// Alignment of data that the controller asked for (CPDA).
    pub cpda: u8,
}

impl Builder {
    /// ICReq that asks for the digests of this builder.
    pub fn icreq(&self, out: &mut Vec<u8>, hpda: u8, maxr2t: u32) {
        let size = size_of::<IcReq>();
        let request = IcReq {
            ch: CommonHeader {
                kind: TYPE_ICREQ,
                flags: 0,
                hlen: size as u8,
                pdo: 0,
                plen: U32::new(size as u32),
            },
            pfv: U16::new(0),
            hpda,
            digest: if self.header_digest { pdu::DIGEST_HEADER } else { 0 }
                | if self.data_digest { pdu::DIGEST_DATA } else { 0 },
            maxr2t: U32::new(maxr2t),
            reserved: [0; 112],
        };
        out.extend_from_slice(request.as_bytes());
    }

    /// CapsuleCmd with in-capsule data (empty: none).
    pub fn command(&self, out: &mut Vec<u8>, command: &Command, data: &[u8]) {
        let ch = self.common(TYPE_COMMAND, 0, size_of::<CapsuleCmd>(), data.len());
        let capsule = CapsuleCmd { ch, command: RawCommand::from(command) };
        self.put(out, capsule.as_bytes(), usize::from(ch.pdo), data);
    }

    /// H2CData: bytes from `at` of the data that was asked for under `ttag`.
    pub fn h2c_data(
        &self,
        out: &mut Vec<u8>,
        (cid, ttag): (u16, u16),
        at: u32,
        data: &[u8],
        last: bool,
    ) {
        let flags = if last { FLAG_LAST } else { 0 };
        let ch = self.common(TYPE_H2C_DATA, flags, size_of::<Transfer>(), data.len());
        let header = Transfer {
            ch,
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            offset: U32::new(at),
            length: U32::new(data.len() as u32),
            reserved: [0; 4],
        };
        self.put(out, header.as_bytes(), usize::from(ch.pdo), data);
    }

    /// H2CTermReq with (part of) the header it complains about.
    pub fn term(&self, out: &mut Vec<u8>, fes: u16, fei: u32, header: &[u8]) {
        let size = size_of::<TermReq>();
        let term = TermReq {
            ch: CommonHeader {
                kind: TYPE_H2C_TERM,
                flags: 0,
                hlen: size as u8,
                pdo: 0,
                plen: U32::new((size + header.len()) as u32),
            },
            fes: U16::new(fes),
            fei: U32::new(fei),
            reserved: [0; 10],
        };
        out.extend_from_slice(term.as_bytes());
        out.extend_from_slice(header);
    }

    /// Makes the header digest of a PDU right again after the header was changed.
    pub fn reseal(&self, pdu: &mut [u8]) {
        let Some(hlen) = pdu::header_bytes(pdu[0]) else { return };
        if self.header_digest && pdu[0] != TYPE_ICREQ && pdu[0] != TYPE_H2C_TERM {
            let digest = lamina_bdev::crc32c::crc32c(&pdu[..hlen]).to_le_bytes();
            pdu[hlen..hlen + DIGEST_BYTES].copy_from_slice(&digest);
        }
    }

    fn common(&self, kind: u8, flags: u8, hlen: usize, data: usize) -> CommonHeader {
        let mut flags = flags;
        let mut end = hlen;
        if self.header_digest {
            flags |= FLAG_HEADER_DIGEST;
            end += DIGEST_BYTES;
        }
        let mut pdo = 0;
        if data > 0 {
            pdo = pdu::data_offset(end, self.cpda);
            end = pdo + data;
            if self.data_digest {
                flags |= FLAG_DATA_DIGEST;
                end += DIGEST_BYTES;
            }
        }
        let plen = U32::new(end as u32);
        CommonHeader { kind, flags, hlen: hlen as u8, pdo: pdo as u8, plen }
    }

    fn put(&self, out: &mut Vec<u8>, header: &[u8], data_at: usize, data: &[u8]) {
        let start = out.len();
        out.extend_from_slice(header);
        if self.header_digest {
            out.extend_from_slice(&lamina_bdev::crc32c::crc32c(header).to_le_bytes());
        }
        if !data.is_empty() {
            let pad = data_at - (out.len() - start);
            out.extend_from_slice(&[0; HEADER_BYTES_MAX][..pad]);
            out.extend_from_slice(data);
            if self.data_digest {
                out.extend_from_slice(&lamina_bdev::crc32c::crc32c(data).to_le_bytes());
            }
        }
    }

    /// Bytes of the PDU that `bytes` begins with, `None` if its common header is not all there.
    pub fn pdu_len(bytes: &[u8]) -> Option<usize> {
        let (common, _) = CommonHeader::read_from_prefix(bytes).ok()?;
        Some(common.plen.get() as usize)
    }
}
