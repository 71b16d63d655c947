//! Fuzz target of streams on their way in: records that lie under right checksums, in pieces of any
//! length. `cargo test` replays its inputs; `scripts/fuzz` finds new ones.

use std::time::Duration;

use super::*;

/// Most records of one input.
const RECORDS_MAX: usize = 24;

/// The input, read from its beginning; zeros after its end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number worth trying.
    fn number(&mut self) -> u64 {
        let (kind, low) = (self.byte(), u64::from(self.byte()) | u64::from(self.byte()) << 8);
        match kind % 6 {
            0 | 1 => low * 4096,
            2 => low,
            3 => u64::MAX - low,
            4 => 1 << (low % 64),
            _ => low << 20,
        }
    }
}

fn seal(bytes: &mut [u8], end: usize) {
    let sum = crc32c::crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
}

/// A stream as the input says: lawful records, some with fields changed and sealed again.
fn stream(input: &mut Bytes<'_>) -> Vec<u8> {
    let incremental = input.byte() & 1 != 0;
    let header = Header {
        disk: [1; 16],
        snapshot: [2; 16],
        base: incremental.then_some([3; 16]),
        size: 1 << 30,
        base_size: if incremental { 1 << 29 } else { 0 },
        time: 7,
        disk_name: "vm1".into(),
        label: "base".into(),
    };
    let (mut encoder, mut out) = Encoder::new(&header);
    for _ in 0..input.byte() % 4 {
        let (place, value) = (usize::from(input.byte()), input.byte());
        out[place % (HEADER_BYTES - 4)] = value;
    }
    seal(&mut out, HEADER_BYTES - 4);
    for _ in 0..RECORDS_MAX {
        if input.0.is_empty() {
            return out;
        }
        let (verb, offset) = (input.byte(), input.number());
        let begin = out.len();
        match verb % 4 {
            0 => {
                let bytes = vec![verb; 4096 * usize::from(1 + (verb >> 2) % 3)];
                out.extend(encoder.data(offset, &bytes));
                out.extend(bytes);
            }
            1 => out.extend(encoder.hole(offset, u64::from(1 + (verb >> 2)) * 4096)),
            2 => out.extend(encoder.progress(offset)),
            _ if verb & 4 != 0 => {
                out.extend(encoder.end(1 << 30));
                break;
            }
            _ => {
                out.extend(encoder.abort("no more"));
                break;
            }
        }
        if verb & 0x80 != 0 {
            let field = [4, 8, 16, 24, 32][usize::from(input.byte() % 5)];
            let value = input.number().to_le_bytes();
            let width = if matches!(field, 4 | 32) { 4 } else { 8 };
            out[begin + field..begin + field + width].copy_from_slice(&value[..width]);
            seal(&mut out[begin..], RECORD_BYTES - 4);
        }
    }
    out.extend_from_slice(input.0);
    out
}

/// All that a decoder says of `bytes` in pieces, as text, and how it ended.
fn decode(bytes: &[u8], piece: usize) -> (Vec<String>, Option<String>, StreamMark) {
    let mut decoder = Decoder::new();
    let (mut said, mut at, mut reached) = (Vec::new(), 0, 0);
    loop {
        loop {
            let event = match decoder.next() {
                Ok(None) => break,
                Ok(Some(event)) => event,
                Err(error) => {
                    // The sentence may count the bytes that have come.
                    let place = format!("record {:?}, byte {}", error.record, error.at);
                    return (said, Some(place), decoder.mark());
                }
            };
            let (from, to) = match &event {
                Event::Data { offset, bytes } => (*offset, offset + bytes.len() as u64),
                Event::Hole { offset, length } => (*offset, offset + length),
                Event::Progress(offset) => (*offset, *offset),
                Event::Header | Event::End(_) => (reached, reached),
            };
            said.push(match event {
                Event::Data { offset, bytes } => format!("{offset} {}", crc32c::crc32c(bytes)),
                other => format!("{other:?}"),
            });
            assert!(from >= reached && to >= from, "what is said ascends");
            reached = to;
            let size = decoder.header().expect("events follow the header").size;
            assert!(reached <= size, "nothing is past the size");
        }
        if at == bytes.len() {
            return (said, None, decoder.mark());
        }
        let end = at.saturating_add(piece).min(bytes.len());
        let taken = decoder.push(&bytes[at..end]);
        assert!(taken > 0, "a decoder that wants more takes more");
        at += taken;
    }
}

#[test]
fn stream_import() {
    bolero::check!(name = "stream_import")
        .with_iterations(200)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| {
            let mut input = Bytes(input);
            let piece = 1 + usize::from(input.byte()) * 7;
            let bytes = stream(&mut input);
            assert_eq!(decode(&bytes, usize::MAX), decode(&bytes, piece));
        });
}
