//! Fuzz target of the whole way of a request: a stream of bytes in pieces, values, envelopes,
//! typed calls, replies. `cargo test` replays its inputs; `scripts/fuzz` finds new ones.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::envelope;
use crate::framing::{Framer, REPLY_BYTES_MAX};
use crate::{Call, Handler, RpcError};

/// Most bytes of a value here.
const VALUE_BYTES_MAX: usize = 2048;

/// Answers with what it was asked, or refuses it.
struct Echo;

impl Handler for Echo {
    fn call(&self, call: Call) -> Result<serde_json::Value, RpcError> {
        let text = format!("{call:?}");
        match text.len() % 3 {
            0 => Err(RpcError::internal(text)),
            1 => Ok(serde_json::Value::Bool(true)),
            _ => Ok(serde_json::Value::String(text)),
        }
    }
}

/// Serves a stream that comes in pieces of `piece` bytes; all that was answered.
fn serve(stream: &[u8], piece: usize) -> Vec<u8> {
    let mut framer = Framer::new(VALUE_BYTES_MAX);
    let mut replies = Vec::new();
    for bytes in stream.chunks(piece) {
        framer.push(bytes);
        loop {
            match framer.next_value() {
                Ok(None) => break,
                Ok(Some(value)) => {
                    let answer = envelope::answer(value, &Echo);
                    replies.extend_from_slice(&answer.bytes);
                    if answer.hang_up {
                        return replies;
                    }
                }
                Err(error) => {
                    replies.extend_from_slice(error.to_string().as_bytes());
                    replies.push(b'\n');
                    return replies;
                }
            }
        }
    }
    if let Ok(Some(value)) = framer.finish() {
        replies.extend_from_slice(&envelope::answer(value, &Echo).bytes);
    }
    replies
}

#[test]
fn rpc() {
    bolero::check!(name = "rpc")
        .with_iterations(0)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(|input: &[u8]| {
            let Some((piece, stream)) = input.split_first() else { return };
            let whole = serve(stream, usize::MAX);
            let cut = serve(stream, 1 + usize::from(piece % 16));
            assert_eq!(whole, cut, "where a stream is cut does not matter");
            assert!(whole.len() < REPLY_BYTES_MAX);
            let text = String::from_utf8(whole).expect("replies are text");
            for line in text.lines().filter(|line| line.starts_with(['{', '['])) {
                // Values stay text: an id goes back as it came, be it a number that fits no type.
                let all: Vec<Box<RawValue>> = match line.starts_with('[') {
                    true => serde_json::from_str(line).expect("replies are JSON"),
                    false => vec![serde_json::from_str(line).expect("a reply is JSON")],
                };
                for one in all {
                    let one: BTreeMap<String, Box<RawValue>> =
                        serde_json::from_str(one.get()).expect("a reply is an object");
                    assert_eq!(one["jsonrpc"].get(), "\"2.0\"");
                    let outcomes = ["result", "error"].map(|key| one.contains_key(key));
                    assert_ne!(outcomes[0], outcomes[1], "either a result or an error: {line}");
                }
            }
        });
}
