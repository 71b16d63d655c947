//! What of the NVMe/TCP target is kept over a restart: a file in the state folder.
//!
//! ```text
//!  <state-dir>/nvmf.json    {"version":1,"transport":{..},"subsystems":[..],"referrals":[..],
//!                           "keys":[..]}
//! ```
//!
//! Replaced whole by every change, like the list of stores. A namespace is kept by the UUIDs of its
//! store and its disk, so it comes back whenever that store is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use lamina_bdev::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

use super::state::{read_whole, replace};
use super::unpoisoned;

const VERSION: u32 = 1;
const FILE: &str = "nvmf.json";

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Records {
    version: u32,
    /// The transport, if it was made and not taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transport: Option<TransportRecord>,
    /// The subsystems; among them the discovery subsystem, for its hosts and listeners.
    pub(super) subsystems: Vec<SubsystemRecord>,
    /// Other discovery services.
    #[serde(default)]
    pub(super) referrals: Vec<ReferralRecord>,
    /// Where keys are read from.
    #[serde(default)]
    pub(super) keys: Vec<KeyRecord>,
}

/// The transport's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransportRecord {
    pub(super) max_queue_depth: u16,
    pub(super) max_aq_depth: u16,
    pub(super) max_io_qpairs_per_ctrlr: u16,
    pub(super) in_capsule_data_size: u32,
    pub(super) max_io_size: u32,
    pub(super) io_unit_size: u32,
    pub(super) c2h_success: bool,
    pub(super) acceptor_backlog: u16,
}

/// A subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SubsystemRecord {
    pub(super) nqn: String,
    pub(super) serial: String,
    pub(super) model: String,
    pub(super) allow_any_host: bool,
    pub(super) min_cntlid: u16,
    pub(super) max_cntlid: u16,
    pub(super) max_namespaces: u32,
    pub(super) ana_reporting: bool,
    #[serde(default)]
    pub(super) hosts: Vec<HostRecord>,
    #[serde(default)]
    pub(super) listeners: Vec<ListenerRecord>,
    #[serde(default)]
    pub(super) namespaces: Vec<NamespaceRecord>,
}

/// A host that may connect, with the names of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostRecord {
    pub(super) nqn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dhchap_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dhchap_ctrlr_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) psk: Option<String>,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListenerRecord {
    pub(super) traddr: String,
    pub(super) trsvcid: String,
    pub(super) secure: bool,
    /// State of the groups that have none of their own.
    pub(super) ana_state: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) ana_groups: BTreeMap<u32, String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceRecord {
    pub(super) nsid: u32,
    /// UUID of the store.
    pub(super) store: String,
    /// UUID of the disk or snapshot.
    pub(super) device: String,
    /// "store/disk", for people.
    pub(super) alias: String,
    pub(super) block_size: u32,
    pub(super) readonly: bool,
    pub(super) uuid: String,
    pub(super) nguid: String,
    pub(super) eui64: String,
    pub(super) ana_group: u32,
}

/// A referral.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReferralRecord {
    pub(super) traddr: String,
    pub(super) trsvcid: String,
    pub(super) nqn: String,
    pub(super) secure: bool,
}

/// A key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    pub(super) name: String,
    pub(super) path: String,
}

impl Records {
    /// The subsystem of that name.
    pub(super) fn subsystem(&mut self, nqn: &str) -> Option<&mut SubsystemRecord> {
        self.subsystems.iter_mut().find(|one| one.nqn == nqn)
    }

    /// All namespaces, each with its subsystem's name.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = (&str, &NamespaceRecord)> {
        self.subsystems
            .iter()
            .flat_map(|one| one.namespaces.iter().map(move |ns| (one.nqn.as_str(), ns)))
    }
}

/// The file and what is in it.
#[derive(Debug)]
pub(super) struct Book {
    dir: PathBuf,
    records: Mutex<Records>,
}

impl Book {
    /// Reads the file in `dir`. A missing one is empty.
    ///
    /// # Errors
    /// `Corrupt`: it is damaged. `Version`: it is of a later version. `Io`.
    pub(super) fn open(dir: PathBuf) -> Result<Book, Error> {
        let bad = |kind, why: String| {
            let path = dir.join(FILE);
            Error::new(kind, format!("{}: {why}; mend it or move it away", path.display()))
        };
        let records = match read_whole(&dir, FILE)? {
            None => Records { version: VERSION, ..Records::default() },
            Some(text) => match serde_json::from_slice::<Records>(&text) {
                Ok(records) if records.version == VERSION => records,
                Ok(records) => {
                    let why = format!("version {} is not known", records.version);
                    return Err(bad(ErrorKind::Version, why));
                }
                Err(e) => return Err(bad(ErrorKind::Corrupt, e.to_string())),
            },
        };
        Ok(Book { dir, records: Mutex::new(records) })
    }

    /// What is kept now.
    pub(super) fn read(&self) -> Records {
        unpoisoned(self.records.lock()).clone()
    }

    /// Changes what is kept, durably.
    ///
    /// # Errors
    /// `Io`, `NoSpace`; nothing has changed then.
    pub(super) fn change<T>(&self, edit: impl FnOnce(&mut Records) -> T) -> Result<T, Error> {
        let mut records = unpoisoned(self.records.lock());
        let mut edited = records.clone();
        let result = edit(&mut edited);
        if edited != *records {
            let mut text = serde_json::to_vec(&edited).expect("plain data has a JSON form");
            text.push(b'\n');
            replace(&self.dir, FILE, &text)?;
            *records = edited;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn what_is_changed_is_there_for_the_next_daemon() {
        let dir = TempDir::new("nvmf-book");
        let book = Book::open(dir.path().into()).unwrap();
        assert_eq!(book.read().subsystems, []);
        let one = SubsystemRecord { nqn: "nqn.2016-06.io.spdk:a".into(), ..Default::default() };
        book.change(|records| records.subsystems.push(one.clone())).unwrap();
        book.change(|records| {
            let namespace = NamespaceRecord { nsid: 3, ..Default::default() };
            records.subsystem(&one.nqn).unwrap().namespaces.push(namespace);
            assert!(records.subsystem("nqn.2016-06.io.spdk:b").is_none());
        })
        .unwrap();
        let again = Book::open(dir.path().into()).unwrap();
        assert_eq!(again.read(), book.read());
        let found: Vec<u32> = again.read().namespaces().map(|(_, ns)| ns.nsid).collect();
        assert_eq!(found, [3]);
    }

    #[test]
    fn a_damaged_or_later_file_is_an_error() {
        let dir = TempDir::new("nvmf-book-bad");
        for (text, kind) in [
            ("{\"version\":1,\"sub", ErrorKind::Corrupt),
            ("{\"version\":9,\"subsystems\":[]}", ErrorKind::Version),
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let error = Book::open(dir.path().into()).unwrap_err();
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.message.contains(FILE), "{error}");
        }
    }
}
