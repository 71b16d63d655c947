//! Round trips, cuts at every byte, and damage at every byte.

use super::*;

fn header(incremental: bool) -> Header {
    Header {
        disk: [1; 16],
        snapshot: [2; 16],
        base: incremental.then_some([3; 16]),
        size: 1 << 30,
        base_size: if incremental { 1 << 29 } else { 0 },
        time: 7,
        disk_name: "vm1".into(),
        label: "base".into(),
    }
}

/// What a decoder says, owned.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Header,
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    Progress(u64),
    End(Totals),
}

fn stream() -> (Vec<u8>, Vec<Said>) {
    let (mut encoder, mut out) = Encoder::new(&header(true));
    let mut said = vec![Said::Header];
    for (offset, blocks) in [(0u64, 1usize), (8192, 2), (1 << 20, 1)] {
        let bytes: Vec<u8> = (0..blocks * 4096).map(|i| (i as u64 + offset) as u8).collect();
        out.extend(encoder.data(offset, &bytes));
        out.extend(&bytes);
        said.push(Said::Data(offset, bytes));
    }
    out.extend(encoder.hole(4 << 20, 8 << 20));
    said.push(Said::Hole(4 << 20, 8 << 20));
    out.extend(encoder.progress(64 << 20));
    said.push(Said::Progress(64 << 20));
    said.push(Said::End(encoder.totals()));
    out.extend(encoder.end(1 << 30));
    (out, said)
}

/// All events of `bytes` given in pieces, and how it ended.
fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    piece: usize,
) -> (Vec<Said>, Result<(), StreamError>) {
    let mut said = Vec::new();
    let mut rest = bytes;
    loop {
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(event)) => said.push(match event {
                    Event::Header => Said::Header,
                    Event::Data { offset, bytes } => Said::Data(offset, bytes.to_vec()),
                    Event::Hole { offset, length } => Said::Hole(offset, length),
                    Event::Progress(offset) => Said::Progress(offset),
                    Event::End(totals) => Said::End(totals),
                }),
                Err(error) => return (said, Err(error)),
            }
        }
        if rest.is_empty() {
            return (said, Ok(()));
        }
        let taken = decoder.push(&rest[..piece.min(rest.len())]);
        assert!(taken > 0, "the decoder takes nothing and says nothing");
        rest = &rest[taken..];
    }
}

#[test]
fn what_is_written_is_read_in_pieces_of_any_length() {
    let (bytes, due) = stream();
    for piece in [1, 7, 40, 256, 4096, 1 << 21] {
        let mut decoder = Decoder::new();
        let (said, outcome) = decode(&mut decoder, &bytes, piece);
        assert_eq!((said, outcome), (due.clone(), Ok(())));
        assert!(decoder.is_ended());
        assert_eq!(decoder.header(), Some(&header(true)));
        assert_eq!(decoder.mark().bytes, bytes.len() as u64);
    }
}

#[test]
fn a_stream_that_breaks_off_anywhere_goes_on_from_its_mark() {
    let (bytes, due) = stream();
    for cut in (256..bytes.len()).step_by(97) {
        let mut decoder = Decoder::new();
        let (mut said, outcome) = decode(&mut decoder, &bytes[..cut], 4096);
        assert_eq!(outcome, Ok(()));
        assert!(!decoder.is_ended());
        let mark = decoder.mark();
        assert!(mark.bytes <= cut as u64);
        decoder.rewind();
        // The same sender would say the same again.
        let (rest, outcome) = decode(&mut decoder, &bytes[mark.bytes as usize..], 1 << 20);
        said.extend(rest);
        assert_eq!((said, outcome), (due.clone(), Ok(())), "cut at {cut}");
    }
}

#[test]
fn another_sender_goes_on_from_a_mark() {
    let (bytes, _) = stream();
    let mut decoder = Decoder::new();
    decode(&mut decoder, &bytes[..256 + 40 + 4096 + 11], 1000).1.unwrap();
    let mut encoder = Encoder::resume(decoder.mark());
    decoder.rewind();
    let mut rest = encoder.hole(8192, 4096).to_vec();
    rest.extend(encoder.end(1 << 30));
    let (said, outcome) = decode(&mut decoder, &rest, 100);
    assert_eq!(outcome, Ok(()));
    assert!(matches!(said.as_slice(), [Said::Hole(8192, 4096), Said::End(_)]));
}

#[test]
fn every_changed_byte_is_an_error_that_says_where() {
    let (bytes, _) = stream();
    for at in (0..bytes.len()).filter(|at| *at < 400 || at % 61 == 0 || *at + 90 > bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let mut decoder = Decoder::new();
        let (_, outcome) = decode(&mut decoder, &bad, 1 << 20);
        let error = outcome.expect_err(&format!("byte {at}"));
        assert!(error.at <= at as u64, "{error}");
        assert_eq!(error.record.is_none(), at < 256, "{error}");
        assert_eq!(decoder.next(), Err(error), "an error stays");
    }
}

#[test]
fn lawful_checksums_do_not_make_a_record_lawful() {
    let size = 1u64 << 30;
    type Bad = fn(&mut Encoder) -> Vec<u8>;
    let cases: [(&str, Bad); 7] = [
        ("whole blocks", |e| e.hole(1, 4096).to_vec()),
        ("whole blocks", |e| e.hole(0, 5).to_vec()),
        ("past the size", |e| e.hole(1 << 30, 4096).to_vec()),
        ("past the size", |e| e.hole(u64::MAX - 4095, 4096).to_vec()),
        ("not a length", |e| e.hole(0, 0).to_vec()),
        ("not a length", |e| e.hole(0, u64::MAX - 4095).to_vec()),
        ("past the size", |e| e.progress((1 << 30) + 4096).to_vec()),
    ];
    for (why, bad) in cases {
        let (mut encoder, mut bytes) = Encoder::new(&header(false));
        bytes.extend(bad(&mut encoder));
        let error = decode(&mut Decoder::new(), &bytes, 99).1.unwrap_err();
        assert!(error.why.contains(why), "{error}");
    }
    let (mut encoder, mut bytes) = Encoder::new(&header(false));
    bytes.extend(encoder.hole(8192, 4096));
    bytes.extend(encoder.hole(4096, 4096));
    let error = decode(&mut Decoder::new(), &bytes, 99).1.unwrap_err();
    assert_eq!((error.record, error.at), (Some(1), 256 + 40));
    let (encoder, mut bytes) = Encoder::new(&header(false));
    bytes.extend(encoder.abort("the disk is gone"));
    let error = decode(&mut Decoder::new(), &bytes, 99).1.unwrap_err();
    assert!(error.why.contains("gave up: the disk is gone"), "{error}");
    let (encoder, mut bytes) = Encoder::new(&header(false));
    bytes.extend(encoder.end(size));
    bytes.push(0);
    assert!(decode(&mut Decoder::new(), &bytes, 99).1.is_err(), "something after the end");
}
