//! A JSON-RPC client written apart from the project's own, so that both ends of the wire are not
//! tested against themselves: one call a connection, whole values parsed as they come.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longest wait for an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// The error object of an answer, or a failure to get one (then `code` is 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    /// JSON-RPC's number: a negated errno for the daemon's own refusals.
    pub code: i64,
    /// The sentence for a person.
    pub message: String,
}

/// Calls `method` on the daemon at `socket` and waits for its result.
///
/// # Errors
/// The daemon's refusal, or code 0 if no daemon answered.
pub fn call(socket: &Path, method: &str, params: Value) -> Result<Value, RpcError> {
    let lost = |what: String| RpcError { code: 0, message: what };
    let stream = UnixStream::connect(socket)
        .map_err(|error| lost(format!("cannot connect to {}: {error}", socket.display())))?;
    let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
    if !params.is_null() {
        request["params"] = params;
    }
    stream
        .set_read_timeout(Some(ANSWER_TIME_MAX))
        .and_then(|()| (&stream).write_all(request.to_string().as_bytes()))
        .map_err(|error| lost(format!("cannot send {method}: {error}")))?;
    let answer = serde_json::Deserializer::from_reader(&stream).into_iter::<Value>().next();
    let mut answer = match answer {
        Some(Ok(answer)) => answer,
        Some(Err(error)) => return Err(lost(format!("bad answer to {method}: {error}"))),
        None => return Err(lost(format!("no answer to {method}"))),
    };
    if let Some(error) = answer.get("error") {
        let message = error["message"].as_str().unwrap_or_default().to_string();
        return Err(RpcError { code: error["code"].as_i64().unwrap_or_default(), message });
    }
    assert_eq!(answer["id"], 1, "the answer to {method} carries another call's id");
    Ok(answer["result"].take())
}
