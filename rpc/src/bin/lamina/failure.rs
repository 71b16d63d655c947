//! What a command prints when it did not go well: what, what to do next, and an exit code.

use std::process::ExitCode;

use lamina_rpc::ClientError;
use serde_json::json;

/// The daemon refused, or anything else that is nobody's arguments.
const EXIT_REFUSED: u8 = 1;
/// Wrong arguments; clap's own code.
const EXIT_USAGE: u8 = 2;
/// The daemon cannot be reached, or broke off.
const EXIT_UNREACHABLE: u8 = 3;

/// A command that did not go well.
#[derive(Debug)]
pub struct Failure {
    message: String,
    /// What to do next, when that is known.
    hint: Option<String>,
    /// The daemon's code.
    code: Option<i32>,
    exit: u8,
}

impl Failure {
    /// Anything without a kind of its own.
    pub fn other(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, code: None, exit: EXIT_REFUSED }
    }

    /// Arguments that cannot be what was meant.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: EXIT_USAGE, ..Failure::other(message) }
    }

    /// All has been said: only the exit code is left.
    pub fn said(exit: u8) -> Failure {
        Failure { exit, ..Failure::other("") }
    }

    /// With another exit code.
    #[must_use]
    pub fn exiting(self, exit: u8) -> Failure {
        Failure { exit, ..self }
    }

    /// Adds what to do next, unless something is said already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The daemon's code, if it was the daemon that refused.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// True if the daemon cannot be reached at all.
    pub fn is_unreachable(&self) -> bool {
        self.exit == EXIT_UNREACHABLE
    }

    /// Prints it on stderr, and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        if self.message.is_empty() {
            return ExitCode::from(self.exit);
        }
        if json {
            let mut error = json!({ "message": self.message });
            if let Some(code) = self.code {
                error["code"] = code.into();
            }
            if let Some(hint) = &self.hint {
                error["hint"] = hint.as_str().into();
            }
            eprintln!("{}", json!({ "error": error }));
        } else {
            eprintln!("error: {}", self.message);
            if let Some(hint) = &self.hint {
                eprintln!("hint: {hint}");
            }
        }
        ExitCode::from(self.exit)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let failure = Failure::other(error.to_string());
        match error {
            ClientError::Rpc(error) => Failure { code: Some(error.code), ..failure },
            ClientError::Connect(..) => Failure { exit: EXIT_UNREACHABLE, ..failure }.hint(
                "start it with `laminad`, or say where it listens: LAMINA_SOCKET=PATH, or \
                 `lamina --socket PATH ...`",
            ),
            ClientError::Timeout(_) => Failure { exit: EXIT_UNREACHABLE, ..failure }
                .hint("look whether it was done after all, or wait longer with --timeout SECONDS"),
            ClientError::Closed | ClientError::Io(_) | ClientError::Protocol(_) => {
                Failure { exit: EXIT_UNREACHABLE, ..failure }
            }
        }
    }
}
