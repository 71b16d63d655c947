//! The error object of JSON-RPC: a code for programs, a sentence for people.
//!
//! Codes are those of JSON-RPC 2.0 for requests that cannot be understood, and `-errno` for calls
//! that were understood and failed, as SPDK has them. The message starts with the text that
//! `strerror` has for the number (clients look for "No such device"), then says what and why.

use serde::{Deserialize, Serialize};

/// Most bytes of what a caller sent that an error repeats.
const ECHO_BYTES_MAX: usize = 1000;

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// `-errno`, or one of the codes of JSON-RPC 2.0.
    pub code: i32,
    /// What failed, on what, what to do.
    pub message: String,
}

impl RpcError {
    /// Not JSON.
    pub const PARSE_ERROR: i32 = -32700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// No method of that name.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// Parameters that the method does not take.
    pub const INVALID_PARAMS: i32 = -32602;
    /// A failure inside the server itself.
    pub const INTERNAL_ERROR: i32 = -32603;

    /// An error of any code.
    pub fn new(code: i32, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into() }
    }

    /// The error for an `errno` (positive), with what failed and what to do after its usual text.
    pub fn from_errno(errno: i32, detail: impl std::fmt::Display) -> RpcError {
        RpcError::new(-errno, format!("{}: {detail}", errno_text(errno)))
    }

    /// No such disk, snapshot, store or export (ENODEV).
    pub fn not_found(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::ENODEV, detail)
    }

    /// The name is taken (EEXIST).
    pub fn exists(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EEXIST, detail)
    }

    /// In use (EBUSY).
    pub fn busy(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EBUSY, detail)
    }

    /// A parameter of the right type with a value that cannot be used (EINVAL).
    pub fn invalid_argument(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EINVAL, detail)
    }

    /// The store or a table is full (ENOSPC).
    pub fn no_space(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::ENOSPC, detail)
    }

    /// The base device failed (EIO).
    pub fn io(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EIO, detail)
    }

    /// A store of a format version that this program does not know (EOPNOTSUPP).
    pub fn unsupported(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EOPNOTSUPP, detail)
    }

    /// Not a store, or a damaged one (EILSEQ).
    pub fn corrupt(detail: impl std::fmt::Display) -> RpcError {
        RpcError::from_errno(libc::EILSEQ, detail)
    }

    /// Parameters that cannot be decoded.
    pub fn invalid_params(detail: impl std::fmt::Display) -> RpcError {
        let message = format!("Invalid parameters: {detail}");
        RpcError::new(RpcError::INVALID_PARAMS, shortened(message))
    }

    /// JSON that is not a request.
    pub fn invalid_request(detail: impl std::fmt::Display) -> RpcError {
        let message = format!("Invalid request: {detail}");
        RpcError::new(RpcError::INVALID_REQUEST, shortened(message))
    }

    /// Bytes that are not JSON.
    pub fn parse_error(detail: impl std::fmt::Display) -> RpcError {
        RpcError::new(RpcError::PARSE_ERROR, format!("Parse error: {detail}"))
    }

    /// A method that does not exist.
    pub fn method_not_found(method: &str) -> RpcError {
        RpcError::new(
            RpcError::METHOD_NOT_FOUND,
            format!(
                "Method not found: {:?}; rpc_get_methods lists those there are",
                shortened(method.to_string())
            ),
        )
    }

    /// A failure of the server that is nobody's input.
    pub fn internal(detail: impl std::fmt::Display) -> RpcError {
        RpcError::new(RpcError::INTERNAL_ERROR, format!("Internal error: {detail}"))
    }
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

impl From<std::io::Error> for RpcError {
    /// Keeps the number of an error that the operating system gave.
    fn from(error: std::io::Error) -> RpcError {
        match error.raw_os_error() {
            Some(errno) => RpcError::new(-errno, errno_text(errno)),
            None => RpcError::io(error),
        }
    }
}

/// Cuts what a caller sent to a length that a person can read in an error.
fn shortened(mut text: String) -> String {
    if text.len() > ECHO_BYTES_MAX {
        let end = (0..=ECHO_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// The text `strerror` has for `errno`, in English whatever the locale.
fn errno_text(errno: i32) -> String {
    match errno {
        libc::EPERM => "Operation not permitted".into(),
        libc::ENOENT => "No such file or directory".into(),
        libc::EIO => "Input/output error".into(),
        libc::EAGAIN => "Resource temporarily unavailable".into(),
        libc::EACCES => "Permission denied".into(),
        libc::EBUSY => "Device or resource busy".into(),
        libc::EEXIST => "File exists".into(),
        libc::ENODEV => "No such device".into(),
        libc::EINVAL => "Invalid argument".into(),
        libc::ENOSPC => "No space left on device".into(),
        libc::EILSEQ => "Illegal byte sequence".into(),
        libc::EOPNOTSUPP => "Operation not supported".into(),
        other => {
            // std adds " (os error N)", which strerror does not.
            let text = std::io::Error::from_raw_os_error(other).to_string();
            match text.rfind(" (os error") {
                Some(end) => text[..end].to_string(),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_are_those_clients_look_for() {
        let error = RpcError::not_found("no disk \"vm1\"");
        assert_eq!(error.code, -19);
        assert_eq!(error.message, "No such device: no disk \"vm1\"");
        for (error, code, start) in [
            (RpcError::exists("x"), -17, "File exists: "),
            (RpcError::invalid_argument("x"), -22, "Invalid argument: "),
            (RpcError::no_space("x"), -28, "No space left on device: "),
            (RpcError::busy("x"), -16, "Device or resource busy: "),
            (RpcError::io("x"), -5, "Input/output error: "),
            (RpcError::unsupported("x"), -95, "Operation not supported: "),
            (RpcError::corrupt("x"), -84, "Illegal byte sequence: "),
        ] {
            assert_eq!(error.code, code);
            assert!(error.message.starts_with(start), "{}", error.message);
        }
    }

    #[test]
    fn what_a_caller_sent_is_repeated_in_part_only() {
        let long = "é".repeat(1 << 20);
        for error in [
            RpcError::method_not_found(&long),
            RpcError::invalid_params(&long),
            RpcError::invalid_request(&long),
        ] {
            assert!(error.message.len() < 1100, "{}", error.message.len());
            assert!(error.message.contains("é..."));
        }
    }

    #[test]
    fn an_errno_without_own_text_has_no_rust_suffix() {
        let error = RpcError::from_errno(libc::EPIPE, "x");
        assert_eq!(error.message, "Broken pipe: x");
        let error = RpcError::from(std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!((error.code, error.message.as_str()), (-2, "No such file or directory"));
    }
}
