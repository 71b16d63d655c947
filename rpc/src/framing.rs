//! Cuts a byte stream into JSON values: there is no length and no delimiter between them.
//!
//! ```text
//!  bytes:  {"method":"a"} {"method":"b"}[{…},{…}]{"met
//!          └───value────┘ └───value────┘└─value──┘└─ kept until more comes
//! ```
//!
//! One pass, a byte is looked at once however it arrives. The scanner knows brackets, strings and
//! escapes, which is enough to find where a value ends; whether it is JSON is decided when it is
//! decoded. What cannot become JSON (a wrong bracket, a control character, too deep, too large) is
//! an error at that byte, so a stream of noise is not waited for. After an error there is no place
//! to go on from: the connection ends.

/// Deepest nesting of arrays and objects in a value.
pub const DEPTH_MAX: u32 = 64;

/// Largest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Largest reply, bytes; what SPDK's server can send.
pub const REPLY_BYTES_MAX: usize = 32 << 20;

/// Why a stream cannot be cut any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// A byte that no JSON value has at this place.
    NotJson {
        /// The byte.
        byte: u8,
        /// Its offset in the value.
        offset: usize,
    },
    /// The stream ended inside a value.
    Unfinished,
    /// More than [`DEPTH_MAX`] levels.
    TooDeep,
    /// More bytes than a value may have.
    TooLarge {
        /// How many it may have.
        bytes_max: usize,
    },
}

impl std::fmt::Display for FramingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FramingError::NotJson { byte, offset } => {
                write!(f, "byte 0x{byte:02x} at offset {offset} is not JSON")
            }
            FramingError::Unfinished => f.write_str("the stream ended inside a value"),
            FramingError::TooDeep => write!(f, "nested deeper than {DEPTH_MAX} levels"),
            FramingError::TooLarge { bytes_max } => {
                write!(f, "larger than {bytes_max} bytes")
            }
        }
    }
}

impl std::error::Error for FramingError {}

/// Where the scanner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between values.
    Between,
    /// In an array or object, outside strings.
    Nested,
    /// In a string.
    Text,
    /// In a string, after a backslash.
    Escape,
    /// In a number, true, false or null that stands alone.
    Bare,
}

/// Cuts a byte stream into JSON values.
#[derive(Debug)]
pub struct Framer {
    /// Bytes not given out yet, after `start`.
    buffer: Vec<u8>,
    /// Where the value begins that is being scanned.
    start: usize,
    /// The next byte to look at.
    scanned: usize,
    state: State,
    /// Open brackets.
    depth: u32,
    /// Bit `n`: bracket `n` is an object's. Wide enough by the assertion below.
    objects: u64,
    bytes_max: usize,
}

const _: () = assert!(DEPTH_MAX <= u64::BITS);

impl Framer {
    /// A framer of values up to `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Framer {
        Framer {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            state: State::Between,
            depth: 0,
            objects: 0,
            bytes_max,
        }
    }

    /// Takes bytes from the stream. The caller asks for values ([`Framer::next_value`]) until
    /// there is none before it gives more, which bounds what is kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// True while part of a value has come.
    pub fn in_value(&self) -> bool {
        self.state != State::Between
    }

    /// The next whole value, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The stream is not JSON, or goes beyond a bound.
    pub fn next_value(&mut self) -> Result<Option<&[u8]>, FramingError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.scanned - self.start >= self.bytes_max {
                return Err(FramingError::TooLarge { bytes_max: self.bytes_max });
            }
            match self.look_at(byte)? {
                Step::On => self.scanned += 1,
                Step::Skip => {
                    self.scanned += 1;
                    self.start = self.scanned;
                }
                Step::EndsHere => {
                    self.scanned += 1;
                    return Ok(Some(self.give()));
                }
                Step::EndedBefore => return Ok(Some(self.give())),
            }
        }
        Ok(None)
    }

    /// The value that the end of the stream completes: a number or word that stands alone.
    ///
    /// # Errors
    /// The stream ended inside a value.
    pub fn finish(&mut self) -> Result<Option<&[u8]>, FramingError> {
        match self.state {
            State::Between => Ok(None),
            State::Bare => Ok(Some(self.give())),
            State::Nested | State::Text | State::Escape => Err(FramingError::Unfinished),
        }
    }

    /// Gives out what was scanned.
    fn give(&mut self) -> &[u8] {
        assert_eq!(self.depth, 0, "a value ends with all its brackets closed");
        let value = self.start..self.scanned;
        self.start = self.scanned;
        self.state = State::Between;
        &self.buffer[value]
    }

    /// One step of the scanner.
    fn look_at(&mut self, byte: u8) -> Result<Step, FramingError> {
        let noise = FramingError::NotJson { byte, offset: self.scanned - self.start };
        match self.state {
            State::Between => match byte {
                b' ' | b'\t' | b'\r' | b'\n' => return Ok(Step::Skip),
                b'{' | b'[' => self.open(byte == b'{')?,
                b'"' => self.state = State::Text,
                _ if is_bare(byte) => self.state = State::Bare,
                _ => return Err(noise),
            },
            State::Nested => match byte {
                b'{' | b'[' => self.open(byte == b'{')?,
                b'}' | b']' => {
                    self.depth -= 1;
                    let object = self.objects >> self.depth & 1 == 1;
                    if object != (byte == b'}') {
                        return Err(noise);
                    }
                    if self.depth == 0 {
                        return Ok(Step::EndsHere);
                    }
                }
                b'"' => self.state = State::Text,
                b' ' | b'\t' | b'\r' | b'\n' | b':' | b',' => {}
                _ if is_bare(byte) => {}
                _ => return Err(noise),
            },
            State::Text => match byte {
                b'\\' => self.state = State::Escape,
                b'"' if self.depth == 0 => return Ok(Step::EndsHere),
                b'"' => self.state = State::Nested,
                0..0x20 => return Err(noise),
                _ => {}
            },
            State::Escape => match byte {
                0..0x20 => return Err(noise),
                _ => self.state = State::Text,
            },
            State::Bare => {
                if !is_bare(byte) {
                    return Ok(Step::EndedBefore);
                }
            }
        }
        Ok(Step::On)
    }

    /// Enters an array or object.
    fn open(&mut self, object: bool) -> Result<(), FramingError> {
        if self.depth == DEPTH_MAX {
            return Err(FramingError::TooDeep);
        }
        let bit = 1 << self.depth;
        self.objects = if object { self.objects | bit } else { self.objects & !bit };
        self.depth += 1;
        self.state = State::Nested;
        Ok(())
    }
}

/// What a byte meant.
enum Step {
    /// Part of the value.
    On,
    /// Space between values.
    Skip,
    /// The last byte of the value.
    EndsHere,
    /// The first byte after the value.
    EndedBefore,
}

/// True for the bytes of numbers, true, false and null.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` in pieces cut at `cuts`, and gives what came out.
    fn cut(bytes: &[u8], cuts: &[usize], bytes_max: usize) -> Result<Vec<String>, FramingError> {
        let mut framer = Framer::new(bytes_max);
        let mut values = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            framer.push(&bytes[from..to]);
            from = to;
            while let Some(value) = framer.next_value()? {
                values.push(String::from_utf8_lossy(value).into_owned());
            }
        }
        if let Some(value) = framer.finish()? {
            values.push(String::from_utf8_lossy(value).into_owned());
        }
        Ok(values)
    }

    #[test]
    fn values_are_found_wherever_the_stream_is_cut() {
        let stream = concat!(
            "  {\"a\":[1,{\"b\":\"}]\\\"\\\\\"}]}\n[{},[]]{\"c\":\"\\u00e9é\"}",
            "12 -3.5e+7{}\"x\\\"y\"null[]\t"
        );
        let expected = [
            "{\"a\":[1,{\"b\":\"}]\\\"\\\\\"}]}",
            "[{},[]]",
            "{\"c\":\"\\u00e9é\"}",
            "12",
            "-3.5e+7",
            "{}",
            "\"x\\\"y\"",
            "null",
            "[]",
        ];
        let whole = cut(stream.as_bytes(), &[], 1000).unwrap();
        assert_eq!(whole, expected);
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                assert_eq!(cut(stream.as_bytes(), &[first, second], 1000), Ok(whole.clone()));
            }
        }
        let every: Vec<usize> = (0..stream.len()).collect();
        assert_eq!(cut(stream.as_bytes(), &every, 1000), Ok(whole));
    }

    #[test]
    fn noise_is_an_error_at_its_first_byte() {
        for (noise, offset) in [
            ("\0", 0),
            ("}", 0),
            ("{]", 1),
            ("[}", 1),
            ("[\"a\nb\"]", 3),
            ("{\"a\":\0}", 5),
            ("\u{feff}{}", 0),
            ("GET / HTTP/1.1", 0),
        ] {
            let outcome = cut(noise.as_bytes(), &[], 1000);
            if noise.starts_with("GET") {
                // A word that stands alone; then "/" cannot begin a value.
                assert_eq!(outcome, Err(FramingError::NotJson { byte: b'/', offset: 0 }));
                continue;
            }
            match outcome {
                Err(FramingError::NotJson { offset: at, .. }) => assert_eq!(at, offset, "{noise}"),
                other => panic!("{noise:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let levels = DEPTH_MAX as usize;
        let deepest = "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(cut(deepest.as_bytes(), &[], 1000), Ok(vec![deepest.clone()]));
        assert_eq!(cut("{\"a\":".repeat(65).as_bytes(), &[], 1000), Err(FramingError::TooDeep));
        let largest = format!("[\"{}\"]", "x".repeat(96));
        assert_eq!(cut(largest.as_bytes(), &[], 100), Ok(vec![largest.clone()]));
        let error = Err(FramingError::TooLarge { bytes_max: 99 });
        assert_eq!(cut(largest.as_bytes(), &[], 99), error);
        // Space between values counts for nothing.
        assert_eq!(cut(" ".repeat(1000).as_bytes(), &[], 100), Ok(vec![]));
    }

    #[test]
    fn an_end_inside_a_value_is_seen() {
        for part in ["{", "[1,2", "\"abc", "\"abc\\", "{\"a\":\"b\"", "{} {"] {
            assert_eq!(cut(part.as_bytes(), &[], 1000), Err(FramingError::Unfinished), "{part}");
        }
    }

    /// Any JSON value, a few levels deep.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            "\\PC{0,12}".prop_map(serde_json::Value::from),
            "[\\x00-\\x7f]{0,12}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
                proptest::collection::vec(("[a-z\\\\\"{}]{0,5}", inner), 0..5)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_cut_back(
            values in proptest::collection::vec(json(), 0..6),
            pretty in any::<bool>(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let texts: Vec<String> = values.iter().map(|value| match pretty {
                true => serde_json::to_string_pretty(value).unwrap(),
                false => value.to_string(),
            }).collect();
            // Numbers and words that stand alone need something between them.
            let stream = texts.join(" ");
            let mut cuts: Vec<usize> =
                cuts.iter().map(|index| index.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            prop_assert_eq!(cut(stream.as_bytes(), &cuts, 1 << 20), Ok(texts));
        }

        #[test]
        fn noise_never_panics_and_cuts_do_not_matter(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in "[\\[\\]{}\",:\\\\ a0]{0,60}",
        ) {
            for stream in [bytes.as_slice(), text.as_bytes()] {
                let every: Vec<usize> = (0..stream.len()).collect();
                prop_assert_eq!(cut(stream, &[], 150), cut(stream, &every, 150));
            }
        }
    }
}
