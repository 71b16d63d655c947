//! Keys that hosts and subsystems prove to have, in files of their own, under SPDK's names.

use serde::{Deserialize, Serialize};

use crate::schema::method;

method! { relaxed
    /// Takes a key from a file, to be named by other methods: `DHHC-1:...` (DH-HMAC-CHAP) or
    /// `NVMeTLSkey-1:...` (TLS). The file may be readable by its owner only. Kept over a restart.
    KeyringFileAddKey = "keyring_file_add_key" -> bool;
    required {
        /// The name it gets.
        name: String,
        /// Absolute path of the file.
        path: String,
    }
    optional {}
}

method! {
    /// Forgets a key. Hosts that it was given to keep it until they are changed.
    KeyringFileRemoveKey = "keyring_file_remove_key" -> bool;
    required {
        /// Its name.
        name: String,
    }
    optional {}
}

method! {
    /// The keys there are, without what they are.
    KeyringGetKeys = "keyring_get_keys" -> Vec<KeyInfo>;
    required {}
    optional {}
}

/// A key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its name.
    pub name: String,
    /// "keyring_file".
    pub module: String,
    /// The file it came from.
    pub path: String,
    /// True: its file could not be read when the daemon started.
    pub removed: bool,
    /// Hosts that it is given to.
    pub refcnt: u32,
}
