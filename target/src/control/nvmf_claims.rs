//! Reservations that persist through power loss go into the store, with the disk they are of.
//!
//! ```text
//!  service thread ─ Save ─► saver thread ─ SetClaims ─► engine: consistency point ─► durable
//!        ▲                                                                            │
//!        └──────────────── Saved: the host's command is answered ◄────────────────────┘
//! ```
//!
//! A thread of its own, since the service thread does not wait for disks. Nobody else writes a
//! disk's claims, so reading and writing them back is safe.

use std::sync::{Arc, Mutex, OnceLock};

use lamina_bdev::limits::CLAIMS_LEN_MAX;
use lamina_bdev::{Command, Error, ErrorKind};
use lamina_nvmf::reservation::Kept;

use super::nvmf::Device;
use super::nvmf_book::Book;
use super::unpoisoned;
use crate::log;
use crate::nvmf::message::{Save, ServiceMsg};
use crate::nvmf::service::ServiceHandle;

/// The thread's inbox.
pub(super) struct Saver {
    saves: std::sync::mpsc::Sender<Save>,
    /// Whom to tell; filled in once it runs.
    pub(super) service: Arc<OnceLock<ServiceHandle>>,
}

impl Saver {
    /// Starts the thread; it ends with the last `Saver`.
    ///
    /// # Errors
    /// `Io`: no thread.
    pub(super) fn start(devices: Arc<Mutex<Vec<Device>>>, book: Arc<Book>) -> Result<Saver, Error> {
        let (saves, queue) = std::sync::mpsc::channel::<Save>();
        let service: Arc<OnceLock<ServiceHandle>> = Arc::default();
        let told = service.clone();
        let thread = std::thread::Builder::new().name("nvmf-saver".into());
        let started = thread.spawn(move || {
            for save in queue {
                let (token, nqn, nsid) = (save.token, save.nqn.clone(), save.nsid);
                let kept = keep(&devices, &book, save);
                if let Err(error) = &kept {
                    log::error(format!(
                        "reservations of namespace {nsid} of {nqn} are not kept, its host is told: {error}"
                    ));
                }
                if let Some(service) = told.get() {
                    let _ = service.post(ServiceMsg::Saved(token, kept.is_ok()));
                }
            }
        });
        started.map_err(|e| {
            Error::new(ErrorKind::Io, format!("the NVMe service cannot start: {e}"))
        })?;
        Ok(Saver { saves, service })
    }

    /// Takes an order.
    pub(super) fn post(&self, save: Save) {
        // It ends only with the sender.
        let _ = self.saves.send(save);
    }
}

/// Writes reservations to their disk's record; they are durable then.
fn keep(devices: &Mutex<Vec<Device>>, book: &Book, save: Save) -> Result<(), Error> {
    let device = unpoisoned(devices.lock()).iter().find(|d| d.key == save.device).cloned();
    let gone = || Error::new(ErrorKind::NotFound, "the disk is not exported any more");
    let device = device.ok_or_else(gone)?;
    let (shard, disk) = (&device.store.shards[device.shard], device.disk);
    let claims = shard.query(move |engine| engine.disk_info(disk).map(|known| known.claims))?;
    let claims = claims.ok_or_else(gone)?;
    let mut kept = Kept::from_bytes(&claims)
        .map_err(|fault| Error::new(ErrorKind::Corrupt, fault.to_string()))?;
    kept.set_image(&save.nqn, save.uuid, save.image);
    let known: Vec<String> = book.read().subsystems.into_iter().map(|one| one.nqn).collect();
    let dropped = kept.shrink(CLAIMS_LEN_MAX, &known);
    if dropped > 0 {
        let alias = &device.alias;
        log::info(format!("{dropped} subsystems that are gone have no claims on {alias} any more"));
    }
    let bytes = kept.to_bytes();
    if !(bytes.is_empty() && claims.is_empty()) {
        shard.command(Command::SetClaims(disk, bytes))?;
    }
    Ok(())
}
