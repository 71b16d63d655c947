//! Writes a stream, record by record.

use super::{
    ABORT_BYTES_MAX, BLOCK_BYTES, DATA_BYTES_MAX, END_BYTES, HEADER_BYTES, Header, INCREMENTAL,
    MAGIC, NAME_BYTES_MAX, RECORD_BYTES, RECORD_MAGIC, StreamMark, Totals, VERSION, kind,
};

/// Makes the bytes of a stream. The caller writes them out in the order they are made.
#[derive(Debug, Default)]
pub struct Encoder {
    mark: StreamMark,
}

impl Encoder {
    /// A stream from its beginning: the encoder and the header.
    ///
    /// # Panics
    /// If a name is too long.
    pub fn new(header: &Header) -> (Encoder, Vec<u8>) {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((HEADER_BYTES as u32).to_le_bytes());
        let flags = if header.base.is_some() { INCREMENTAL } else { 0 };
        out.extend(flags.to_le_bytes());
        out.extend((BLOCK_BYTES as u32).to_le_bytes());
        out.extend(header.disk);
        out.extend(header.snapshot);
        out.extend(header.base.unwrap_or_default());
        for number in [header.size, header.base_size, header.time] {
            out.extend(number.to_le_bytes());
        }
        for name in [&header.disk_name, &header.label] {
            assert!(name.len() <= NAME_BYTES_MAX, "a name of a stream is too long");
            let end = out.len() + 1 + NAME_BYTES_MAX;
            out.push(name.len() as u8);
            out.extend(name.as_bytes());
            out.resize(end, 0);
        }
        out.resize(HEADER_BYTES - 4, 0);
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        let mut encoder = Encoder::default();
        encoder.said(&out);
        (encoder, out)
    }

    /// The rest of a stream that has been written up to `mark`.
    pub fn resume(mark: StreamMark) -> Encoder {
        Encoder { mark }
    }

    /// What has been said so far.
    pub fn totals(&self) -> Totals {
        self.mark.totals
    }

    /// What goes before `bytes`, which come from `offset` on.
    ///
    /// # Panics
    /// If they are none or too many.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> [u8; RECORD_BYTES] {
        assert!(!bytes.is_empty() && bytes.len() <= DATA_BYTES_MAX, "a data record has 1 MiB");
        self.mark.totals.data_records += 1;
        self.mark.totals.data_bytes += bytes.len() as u64;
        let head = self.record(kind::DATA, offset, bytes.len() as u64, bytes);
        self.said(bytes);
        head
    }

    /// `length` bytes from `offset` on read as zeros.
    pub fn hole(&mut self, offset: u64, length: u64) -> [u8; RECORD_BYTES] {
        self.mark.totals.hole_records += 1;
        self.mark.totals.hole_bytes += length;
        self.record(kind::HOLE, offset, length, &[])
    }

    /// All has been said up to `offset`.
    pub fn progress(&mut self, offset: u64) -> [u8; RECORD_BYTES] {
        self.record(kind::PROGRESS, offset, 0, &[])
    }

    /// The end of a stream of a snapshot of `size` bytes.
    pub fn end(mut self, size: u64) -> Vec<u8> {
        let totals = self.mark.totals;
        let mut payload = Vec::with_capacity(END_BYTES);
        for number in
            [totals.data_records, totals.data_bytes, totals.hole_records, totals.hole_bytes]
        {
            payload.extend(number.to_le_bytes());
        }
        payload.extend(self.mark.checksum.to_le_bytes());
        payload.extend([0; 4]);
        let mut out = self.record(kind::END, size, END_BYTES as u64, &payload).to_vec();
        out.extend(payload);
        out
    }

    /// The sender cannot go on.
    pub fn abort(mut self, why: &str) -> Vec<u8> {
        let mut end = why.len().min(ABORT_BYTES_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let why = &why.as_bytes()[..end];
        let mut out = self.record(kind::ABORT, 0, why.len() as u64, why).to_vec();
        out.extend(why);
        out
    }

    fn record(
        &mut self,
        kind: u32,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> [u8; RECORD_BYTES] {
        let mut head = [0; RECORD_BYTES];
        head[..4].copy_from_slice(&RECORD_MAGIC);
        head[4..8].copy_from_slice(&kind.to_le_bytes());
        head[8..16].copy_from_slice(&self.mark.record.to_le_bytes());
        head[16..24].copy_from_slice(&offset.to_le_bytes());
        head[24..32].copy_from_slice(&length.to_le_bytes());
        head[32..36].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&head[..36]);
        head[36..].copy_from_slice(&crc.to_le_bytes());
        self.mark.record += 1;
        self.said(&head);
        head
    }

    fn said(&mut self, bytes: &[u8]) {
        self.mark.checksum = crc32c::crc32c_append(self.mark.checksum, bytes);
        self.mark.bytes += bytes.len() as u64;
    }
}
