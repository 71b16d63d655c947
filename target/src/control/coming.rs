//! Stores on their way in: what they are called is taken, while nobody holds a lock.
//!
//! ```text
//!  claim_store(path, name) ─► label read: identify(name, uuid) ─► fulfil(store): written down,
//!      │ known and failed before:         │ fails                   │ then among the open ones
//!      │ out of that list                 │                         │ fails
//!      └──────────────────────────────────┴─────────────────────────┴─► dropped: all given back
//! ```
//!
//! A device that hangs holds up whoever opens a store on it, and nobody else: what others may not
//! have meanwhile is refused at once.

use std::sync::Arc;

use lamina_bdev::{Error, ErrorKind, Name, Uuid};

use super::state::KnownStore;
use super::stores::{FailedStore, Store};
use super::{Control, Stores, device, unpoisoned};

/// A store on its way in, as others see it.
pub(super) struct Coming {
    id: u64,
    /// Absolute, or what stands for RAM or for another host's device.
    pub(super) path: String,
    /// Its name, as soon as that is known.
    pub(super) name: Option<Name>,
    /// Its identity, likewise.
    pub(super) uuid: Option<Uuid>,
    /// What the state file says of it, if it has been open before.
    pub(super) known: Option<KnownStore>,
}

impl Coming {
    /// True if `text` is its name, UUID or path.
    pub(super) fn is_called(&self, text: &str) -> bool {
        self.path == text
            || self.name.is_some_and(|name| name.as_str() == text)
            || self.uuid.is_some_and(|uuid| uuid.to_string() == text.to_ascii_lowercase())
            || self.known.as_ref().is_some_and(|known| known.name == text || known.uuid == text)
    }

    /// Why what it has cannot be had.
    pub(super) fn busy(&self) -> Error {
        let name = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        let why = format!(
            "the store{name} on {} is being opened: wait until its device answers, and try again",
            self.path
        );
        Error::new(ErrorKind::Busy, why)
    }
}

/// The right to bring a store in, until dropped.
pub(super) struct Claim<'a> {
    control: &'a Control,
    id: u64,
    /// Where it is, absolute.
    pub(super) path: String,
}

impl Control {
    /// Takes a path and, if it is known already, a name.
    ///
    /// # Errors
    /// `Exists`: an open store has one of them. `Busy`: one on its way in has; or the daemon is
    /// stopping.
    pub(super) fn claim_store(&self, path: &str, name: Option<Name>) -> Result<Claim<'_>, Error> {
        let mut stores = self.stores_mut();
        // Whoever stops the daemon waits for those that are in the list by now.
        self.refuse_when_stopping()?;
        // Of what is in RAM there can be any number.
        if !device::ends_with_the_daemon(path) {
            if let Some(store) = stores.open.iter().find(|store| store.path == path) {
                let why = format!("the store {} on {path} is open already", store.name);
                return Err(Error::new(ErrorKind::Exists, why));
            }
            if let Some(coming) = stores.coming.iter().find(|coming| coming.path == path) {
                return Err(coming.busy());
            }
        }
        if let Some(name) = name {
            refuse_name(&stores, None, name)?;
        }
        let id = stores.next_claim;
        stores.next_claim += 1;
        let failed = stores.failed.iter().position(|failed| failed.known.path == path);
        let known = failed.map(|at| stores.failed.remove(at).known);
        stores.coming.push(Coming { id, path: path.to_string(), name, uuid: None, known });
        Ok(Claim { control: self, id, path: path.to_string() })
    }
}

/// Refuses a name that another store has, or is going to have.
fn refuse_name(stores: &Stores, own: Option<u64>, name: Name) -> Result<(), Error> {
    if stores.open.iter().any(|store| store.name == name) {
        let why = format!("a store named {name} is open already: choose another name, or close it");
        return Err(Error::new(ErrorKind::Exists, why));
    }
    let other = |coming: &&Coming| Some(coming.id) != own && coming.name == Some(name);
    stores.coming.iter().find(other).map_or(Ok(()), |coming| Err(coming.busy()))
}

impl Claim<'_> {
    /// Takes what the label says: no two stores of one name or identity can be open.
    ///
    /// # Errors
    /// `Exists`, `Busy`.
    pub(super) fn identify(&self, name: Name, uuid: Uuid) -> Result<(), Error> {
        let path = &self.path;
        let mut stores = self.control.stores_mut();
        refuse_name(&stores, Some(self.id), name)?;
        if let Some(open) = stores.open.iter().find(|open| open.uuid == uuid) {
            let why = format!(
                "{path} is a copy of the open store {} on {}: only one of the two can be open",
                open.name, open.path
            );
            return Err(Error::new(ErrorKind::Exists, why));
        }
        let copy = |coming: &&Coming| coming.id != self.id && coming.uuid == Some(uuid);
        if let Some(coming) = stores.coming.iter().find(copy) {
            return Err(coming.busy());
        }
        let own = stores.coming.iter_mut().find(|coming| coming.id == self.id);
        let own = own.expect("a claim is in the list while it lives");
        (own.name, own.uuid) = (Some(name), Some(uuid));
        Ok(())
    }

    /// What the state file says of the store, if it has been open before.
    pub(super) fn known(&self) -> Option<KnownStore> {
        let stores = unpoisoned(self.control.stores.read());
        let own = stores.coming.iter().find(|coming| coming.id == self.id);
        own.and_then(|coming| coming.known.clone())
    }

    /// The store is open under what was claimed, once that is written down; with
    /// [`Control::change`] only.
    ///
    /// # Errors
    /// `Io`, `NoSpace`: it cannot be written down. Nothing has changed then: all is still claimed.
    pub(super) fn fulfil(&self, store: &Arc<Store>) -> Result<(), Error> {
        self.control.remember_with(Some((self, store)))?;
        let mut stores = self.control.stores_mut();
        stores.open.push(store.clone());
        let _ = self.take_out(&mut stores);
        Ok(())
    }

    /// True if this is what others see of it.
    pub(super) fn is(&self, coming: &Coming) -> bool {
        coming.id == self.id
    }

    fn take_out(&self, stores: &mut Stores) -> Option<Coming> {
        let at = stores.coming.iter().position(|coming| coming.id == self.id)?;
        Some(stores.coming.remove(at))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut stores = unpoisoned(self.control.stores.write());
        // One that was known stays known.
        let known = self.take_out(&mut stores).and_then(|coming| coming.known);
        stores.failed.extend(known.map(|known| FailedStore { known }));
    }
}
