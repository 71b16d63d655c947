//! The envelope of JSON-RPC 2.0: one JSON value in, at most one JSON value out.
//!
//! ```text
//!  value ─┬─ object ─► Request { method, params, id } ─► Call ─► Handler ─► reply with its id
//!         ├─ array  ─► each element so; one array of replies
//!         └─ other  ─► error -32600, id null
//! ```
//!
//! Where the standard leaves room, SPDK's server decides: `jsonrpc` may be left out; an id is
//! echoed byte for byte; a request without id (or with null) is a notification, answered only when
//! it fails; `params` absent, null and `{}` mean the same; other keys are refused.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::framing::REPLY_BYTES_MAX;
use crate::{Call, Handler, RpcError};

/// Most calls in one batch.
pub const BATCH_CALLS_MAX: usize = 1024;

/// What becomes of a value that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The reply, its newline included; empty when there is none to send.
    pub bytes: Vec<u8>,
    /// True: the value was not JSON, so what follows on the connection cannot be trusted.
    pub hang_up: bool,
}

/// A request as it is on the wire.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    jsonrpc: Option<String>,
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// The id alone, for the answer to a request that is wrong elsewhere.
#[derive(Deserialize)]
struct IdOnly<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// A reply as it is on the wire.
#[derive(Serialize)]
struct Reply<'a> {
    jsonrpc: &'static str,
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

/// Carries out what one JSON value asks for.
pub fn answer(value: &[u8], handler: &dyn Handler) -> Answer {
    let text = match std::str::from_utf8(value) {
        Ok(text) => text,
        Err(error) => return not_json(&RpcError::parse_error(error)),
    };
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        return not_json(&RpcError::parse_error(error));
    }
    let mut bytes = Vec::new();
    match text.as_bytes()[0] {
        b'[' => answer_batch(text, handler, &mut bytes),
        _ => answer_one(text, handler, &mut bytes),
    }
    if !bytes.is_empty() {
        bytes.push(b'\n');
    }
    Answer { bytes, hang_up: false }
}

/// The answer to bytes that are not JSON at all; nothing after them can be trusted.
pub fn not_json(error: &RpcError) -> Answer {
    let mut bytes = Vec::new();
    write_reply(&mut bytes, None, Err(error));
    bytes.push(b'\n');
    Answer { bytes, hang_up: true }
}

/// Carries out each element of an array, in order.
fn answer_batch(text: &str, handler: &dyn Handler, out: &mut Vec<u8>) {
    let refuse = |why: String, out: &mut Vec<u8>| {
        write_reply(out, None, Err(&RpcError::invalid_request(why)));
    };
    let elements: Vec<&RawValue> = match serde_json::from_str(text) {
        Ok(elements) => elements,
        Err(error) => return refuse(error.to_string(), out),
    };
    if elements.is_empty() {
        return refuse("an empty batch".into(), out);
    }
    if elements.len() > BATCH_CALLS_MAX {
        let count = elements.len();
        return refuse(format!("a batch of {count}; at most {BATCH_CALLS_MAX} are taken"), out);
    }
    for element in elements {
        out.push(if out.is_empty() { b'[' } else { b',' });
        let before = out.len();
        answer_one(element.get(), handler, out);
        if out.len() == before {
            out.pop();
        }
    }
    if !out.is_empty() {
        out.push(b']');
    }
}

/// Carries out one request; writes nothing for a notification that went well.
fn answer_one(text: &str, handler: &dyn Handler, out: &mut Vec<u8>) {
    let request = match decode_request(text) {
        Ok(request) => request,
        Err(error) => return write_reply(out, decode_id(text), Err(&error)),
    };
    let params = request.params.map_or("{}", RawValue::get);
    match Call::decode(&request.method, params).and_then(|call| handler.call(call)) {
        Ok(_) if request.id.is_none() => {}
        Ok(result) => write_reply(out, request.id, Ok(&result)),
        Err(error) => write_reply(out, request.id, Err(&error)),
    }
}

/// Takes a request apart.
fn decode_request(text: &str) -> Result<Request<'_>, RpcError> {
    // serde would take an array for a struct, by position.
    if !text.starts_with('{') {
        return Err(RpcError::invalid_request("not an object"));
    }
    let request: Request<'_> =
        serde_json::from_str(text).map_err(|error| RpcError::invalid_request(error.to_string()))?;
    if request.jsonrpc.as_ref().is_some_and(|version| version != "2.0") {
        return Err(RpcError::invalid_request("jsonrpc is not \"2.0\""));
    }
    if request.id.is_some_and(|id| !is_id(id)) {
        return Err(RpcError::invalid_request("id is neither a string nor a number"));
    }
    if request.params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
        return Err(RpcError::invalid_request("params is neither an object nor an array"));
    }
    Ok(request)
}

/// The id of a request that is wrong elsewhere, if one can be made out.
fn decode_id(text: &str) -> Option<&RawValue> {
    if !text.starts_with('{') {
        return None;
    }
    let found: IdOnly<'_> = serde_json::from_str(text).ok()?;
    found.id.filter(|id| is_id(id))
}

/// True for what an id may be: a string or a number.
fn is_id(id: &RawValue) -> bool {
    id.get().starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit())
}

/// Appends one reply, or an error in its place if it is larger than a client has to take.
fn write_reply(
    out: &mut Vec<u8>,
    id: Option<&RawValue>,
    outcome: Result<&serde_json::Value, &RpcError>,
) {
    let before = out.len();
    let reply = Reply { jsonrpc: "2.0", id, result: outcome.ok(), error: outcome.err() };
    serde_json::to_writer(&mut *out, &reply).expect("a reply of values has a JSON form");
    if out.len() > REPLY_BYTES_MAX && outcome.is_ok() {
        out.truncate(before);
        let error = RpcError::internal(format!(
            "the answer is larger than {REPLY_BYTES_MAX} bytes; ask for one name at a time"
        ));
        write_reply(out, id, Err(&error));
    }
}

#[cfg(test)]
mod tests;
