//! What the host keeps with a disk: bytes in its record that mean nothing to the engine.
//!
//! ```text
//!  SetBlob    exports             ─┐
//!  SetClaims  reservations of     ─┴─► disk ─► record, at the next consistency point ─► reply
//!             remote hosts
//! ```

use crate::commands::Outcome;
use crate::control::Reply;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind};
use crate::limits::{BLOB_LEN_MAX, CLAIMS_LEN_MAX};
use crate::types::DiskId;

impl Engine {
    pub(crate) fn set_blob(&mut self, id: DiskId, blob: &[u8]) -> Outcome {
        let disk = self.live_mut(id)?;
        if blob.len() > BLOB_LEN_MAX {
            let text = format!(
                "{} bytes of export settings for disk {}; at most {BLOB_LEN_MAX} fit: remove an export",
                blob.len(),
                disk.name
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        disk.blob = blob.to_vec();
        disk.dirty = true;
        Ok(Reply::Unit)
    }

    pub(crate) fn set_claims(&mut self, id: DiskId, claims: &[u8]) -> Outcome {
        let disk = self.live_mut(id)?;
        if claims.len() > CLAIMS_LEN_MAX {
            let text = format!(
                "{} bytes of hosts' reservations for disk {}; at most {CLAIMS_LEN_MAX} fit: unregister hosts that are gone",
                claims.len(),
                disk.name
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        disk.claims = claims.to_vec();
        disk.dirty = true;
        Ok(Reply::Unit)
    }
}
