//! What the daemon implements: one call in, one answer out.

use crate::{Call, RpcError};

/// Carries out calls.
///
/// The server calls from several threads at once (one a connection) and blocks that connection
/// until the answer is there, so an implementation may wait, but should answer within 15 seconds:
/// known clients give up after 20. It must not panic; what it cannot do is an [`RpcError`].
pub trait Handler: Send + Sync {
    /// Carries out `call`. The answer's type is the one the method's [`crate::Method::Output`]
    /// names; [`crate::Method::reply`] checks that while compiling.
    ///
    /// # Errors
    /// What went wrong, for the caller of the method.
    fn call(&self, call: Call) -> Result<serde_json::Value, RpcError>;
}
