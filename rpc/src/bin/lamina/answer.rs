//! What a command prints when it went well.

use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// The same answer for people and for programs.
#[derive(Debug)]
pub struct Answer {
    /// Lines of text; the last newline may be missing.
    pub text: String,
    /// The same as JSON.
    pub json: Value,
}

impl Answer {
    /// Puts the two together.
    pub fn new(text: impl Into<String>, json: impl Serialize) -> Result<Answer, Failure> {
        let json = serde_json::to_value(json)
            .map_err(|error| Failure::other(format!("the answer has no JSON form: {error}")))?;
        Ok(Answer { text: text.into(), json })
    }

    /// The answer of a command that printed everything as it came.
    pub fn printed() -> Answer {
        Answer { text: String::new(), json: Value::Null }
    }

    /// Prints one of the two on stdout; nothing if there is no text.
    pub fn print(&self, json: bool) -> Result<(), Failure> {
        if self.text.is_empty() {
            return Ok(());
        }
        let mut out = match json {
            true => format!("{:#}", self.json),
            false => self.text.clone(),
        };
        if !out.ends_with('\n') {
            out.push('\n');
        }
        write_out(&out).map(|_| ())
    }
}

/// Writes to stdout; false when the reader has gone (`lamina ... | head`), which is no failure.
pub fn write_out(text: &str) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::other(format!("cannot write the answer: {error}"))),
    }
}
