//! The keyring: names for files with keys, read when a host gets them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lamina_bdev::{Error, ErrorKind};
use lamina_nvmf::subsystem::Secret;
use lamina_rpc::methods as rpc;
use lamina_rpc::{Method, RpcError};
use serde_json::Value;

use super::Control;
use super::methods::failure;
use super::nvmf_book::{HostRecord, KeyRecord};

/// Longest key file, bytes.
const KEY_BYTES_MAX: u64 = 4096;
/// Longest name of a key, bytes.
const NAME_BYTES_MAX: usize = 256;
const KEYS_MAX: usize = 16_384;

impl Control {
    pub(super) fn add_key(&self, name: &str, path: &str) -> Result<Value, RpcError> {
        let _change = self.change().map_err(failure)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let why = format!("the name of a key has 1 to {NAME_BYTES_MAX} bytes");
            return Err(RpcError::invalid_argument(why));
        }
        let known = self.nvmf.book.read().keys;
        if known.iter().any(|key| key.name == name) {
            return Err(RpcError::exists(format!("there is a key {name:?} already")));
        }
        if known.len() >= KEYS_MAX {
            return Err(RpcError::no_space(format!("there are {KEYS_MAX} keys already")));
        }
        let record = KeyRecord { name: name.into(), path: path.into() };
        read_file(&record).map_err(failure)?;
        self.nvmf.book.change(|records| records.keys.push(record)).map_err(failure)?;
        rpc::KeyringFileAddKey::reply(true)
    }

    pub(super) fn remove_key(&self, name: &str) -> Result<Value, RpcError> {
        let _change = self.change().map_err(failure)?;
        if !self.nvmf.book.read().keys.iter().any(|key| key.name == name) {
            let why = format!("there is no key {name:?}");
            return Err(RpcError::from_errno(libc::ENOENT, why));
        }
        let kept = self.nvmf.book.change(|records| records.keys.retain(|k| k.name != name));
        kept.map_err(failure)?;
        rpc::KeyringFileRemoveKey::reply(true)
    }

    pub(super) fn keys(&self) -> Vec<rpc::KeyInfo> {
        let records = self.nvmf.book.read();
        let hosts: Vec<&HostRecord> =
            records.subsystems.iter().flat_map(|one| &one.hosts).collect();
        let uses = |name: &String| {
            let names = |host: &&&HostRecord| {
                [&host.dhchap_key, &host.dhchap_ctrlr_key, &host.psk]
                    .into_iter()
                    .any(|used| used.as_ref() == Some(name))
            };
            hosts.iter().filter(names).count() as u32
        };
        let shown = records.keys.iter().map(|key| rpc::KeyInfo {
            name: key.name.clone(),
            module: "keyring_file".into(),
            path: key.path.clone(),
            removed: read_file(key).is_err(),
            refcnt: uses(&key.name),
        });
        shown.collect()
    }

    /// A key by its name.
    ///
    /// # Errors
    /// `NotFound`: no such key. `Invalid`: what is in its file is none. `Io`.
    pub(super) fn read_key(&self, name: &str) -> Result<Secret, Error> {
        let records = self.nvmf.book.read();
        match records.keys.iter().find(|key| key.name == name) {
            Some(record) => read_file(record),
            None => {
                let why = format!("there is no key {name:?}: take it with keyring_file_add_key");
                Err(Error::new(ErrorKind::NotFound, why))
            }
        }
    }
}

fn read_file(record: &KeyRecord) -> Result<Secret, Error> {
    let path = Path::new(&record.path);
    let bad = |kind, why: &str| Err(Error::new(kind, format!("{}: {why}", record.path)));
    if !path.is_absolute() {
        return bad(ErrorKind::Invalid, "give an absolute path");
    }
    let failed = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{}: {e}", record.path))
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > KEY_BYTES_MAX {
        return bad(ErrorKind::Invalid, "this is no file with one key");
    }
    if meta.mode() & 0o077 != 0 {
        return bad(ErrorKind::Invalid, "others may read it: chmod 600");
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let text = text.trim().to_string();
    if !text.starts_with("DHHC-1:") && !text.starts_with("NVMeTLSkey-1:") {
        return bad(ErrorKind::Invalid, "it has no key: DHHC-1:... or NVMeTLSkey-1:...");
    }
    Ok(Secret { name: record.name.clone(), text })
}
