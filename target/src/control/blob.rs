//! The exports of a disk as they are kept with the disk itself, in its blob:
//!
//! ```text
//!  {"exports":[{"ctrlr":"vm1","dev":"disk","readonly":false,"num_queues":4},
//!              {"ctrlr":"old","dev":{"snapshot":3},"readonly":true,"num_queues":1}]}
//! ```

use lamina_bdev::{Error, ErrorKind, limits};
use serde::{Deserialize, Serialize};

/// What of a disk is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exported {
    /// The live disk.
    Disk,
    /// Its snapshot of this number.
    Snapshot(u64),
}

/// One export of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Its name as given: a file name, or an absolute path.
    pub ctrlr: String,
    /// What it shows.
    pub dev: Exported,
    /// The guest cannot write.
    pub readonly: bool,
    /// Queues offered.
    pub num_queues: u16,
}

#[derive(Default, Serialize, Deserialize)]
struct Blob {
    exports: Vec<ExportRecord>,
}

/// Reads a disk's blob; an empty one is an empty list.
///
/// # Errors
/// `Corrupt` if it is not what [`encode`] writes.
pub fn decode(blob: &[u8]) -> Result<Vec<ExportRecord>, Error> {
    if blob.is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_slice::<Blob>(blob) {
        Ok(blob) => Ok(blob.exports),
        Err(e) => {
            let why = format!("the exports kept with the disk cannot be read: {e}");
            Err(Error::new(ErrorKind::Corrupt, why))
        }
    }
}

/// The blob for these exports; empty for none.
///
/// # Errors
/// `NoSpace` if they do not fit.
pub fn encode(exports: &[ExportRecord]) -> Result<Vec<u8>, Error> {
    if exports.is_empty() {
        return Ok(Vec::new());
    }
    let blob = serde_json::to_vec(&Blob { exports: exports.to_vec() });
    let blob = blob.expect("plain data has a JSON form");
    if blob.len() > limits::BLOB_LEN_MAX {
        let why = format!(
            "the disk has {} exports already, and no more fit: \
             use shorter socket names, or end one",
            exports.len() - 1
        );
        return Err(Error::new(ErrorKind::NoSpace, why));
    }
    Ok(blob)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ctrlr: &str, dev: Exported) -> ExportRecord {
        ExportRecord { ctrlr: ctrlr.into(), dev, readonly: false, num_queues: 4 }
    }

    #[test]
    fn the_form_is_the_documented_one() {
        let exports = [record("vm1", Exported::Disk), record("/run/x y", Exported::Snapshot(3))];
        let blob = encode(&exports).unwrap();
        assert_eq!(
            std::str::from_utf8(&blob).unwrap(),
            concat!(
                r#"{"exports":[{"ctrlr":"vm1","dev":"disk","readonly":false,"num_queues":4},"#,
                r#"{"ctrlr":"/run/x y","dev":{"snapshot":3},"readonly":false,"num_queues":4}]}"#
            )
        );
        assert_eq!(decode(&blob).unwrap(), exports);
        assert_eq!(encode(&[]).unwrap(), b"");
        assert_eq!(decode(b"").unwrap(), []);
    }

    #[test]
    fn noise_and_overflow_are_errors() {
        for bad in [&b"x"[..], b"{}", b"{\"exports\":[{\"ctrlr\":1}]}", &[0xff; 20]] {
            assert_eq!(decode(bad).unwrap_err().kind, ErrorKind::Corrupt);
        }
        let many: Vec<_> = (0..60).map(|i| record(&format!("vm{i}"), Exported::Disk)).collect();
        let error = encode(&many).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace);
        assert!(error.message.contains("59 exports"), "{error}");
    }
}
