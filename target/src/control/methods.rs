//! The RPC methods, a line or two each: decoded by `lamina-rpc`, done by the rest of this folder.

use lamina_bdev::{Error, ErrorKind};
use lamina_rpc::methods as rpc;
use lamina_rpc::{Call, Handler, Method, RpcError};
use serde_json::Value;

use super::exports::NewExport;
use super::views::events_since;
use super::{Control, CreateStore};
use crate::events::KEPT_MAX;

type Answer = Result<Value, RpcError>;

impl Handler for Control {
    fn call(&self, call: Call) -> Answer {
        match call {
            Call::LaminaStoreCreate(params) => self.store_create(params),
            Call::LaminaStoreOpen(params) => {
                let store = self.open(&params.path).map_err(failure)?;
                let (name, uuid) = (store.name.to_string(), store.uuid.to_string());
                rpc::LaminaStoreOpen::reply(rpc::StoreOpened { name, uuid })
            }
            Call::LaminaStoreClose(params) => {
                let force = params.force.unwrap_or(false);
                self.close_store(&params.name, force).map_err(failure)?;
                rpc::LaminaStoreClose::reply(true)
            }
            Call::LaminaStoreInfo(params) => {
                let infos = self.store_infos(params.name.as_deref()).map_err(failure)?;
                rpc::LaminaStoreInfo::reply(infos)
            }
            Call::LaminaStoreSetWarnings(params) => {
                let set = self.set_warnings(&params.name, params.percents.as_deref());
                rpc::LaminaStoreSetWarnings::reply(set.map_err(failure)?)
            }
            Call::LaminaGetEvents(params) => {
                let max = params.max.unwrap_or(rpc::EVENTS_DEFAULT).min(KEPT_MAX as u32);
                let since = params.since.unwrap_or(0);
                rpc::LaminaGetEvents::reply(events_since(since, max as usize))
            }
            Call::LaminaCheckpoint(params) => {
                self.checkpoint(params.store.as_deref()).map_err(failure)?;
                rpc::LaminaCheckpoint::reply(true)
            }
            Call::LaminaCheck(params) => {
                self.start_check(params.name.as_deref()).map_err(failure)?;
                rpc::LaminaCheck::reply(true)
            }
            Call::LaminaCheckStatus(params) => {
                let cancel = params.cancel.unwrap_or(false);
                let status = self.check_status(params.name.as_deref(), cancel);
                rpc::LaminaCheckStatus::reply(status.map_err(failure)?)
            }
            Call::LaminaStats(_) => rpc::LaminaStats::reply(self.stats().map_err(failure)?),
            Call::LaminaTree(params) => {
                rpc::LaminaTree::reply(self.tree(params.store.as_deref()).map_err(failure)?)
            }
            call => self.disk_call(call),
        }
    }
}

impl Control {
    fn store_create(&self, params: rpc::LaminaStoreCreate) -> Answer {
        let params = CreateStore {
            name: params.name,
            path: params.path,
            size: params.size,
            shards: params.shards.unwrap_or(1),
            journal_bytes: params.journal_size.unwrap_or(0),
            force: params.force.unwrap_or(false),
        };
        let uuid = self.create_store(&params).map_err(failure)?;
        rpc::LaminaStoreCreate::reply(uuid.to_string())
    }

    /// Methods about disks and snapshots.
    fn disk_call(&self, call: Call) -> Answer {
        match call {
            Call::BdevLvolGetLvstores(params) => {
                let store = one_of("lvs_name", params.lvs_name, "uuid", params.uuid)?;
                rpc::BdevLvolGetLvstores::reply(self.lvstores(store.as_deref()).map_err(failure)?)
            }
            Call::BdevLvolCreate(params) => {
                let size = params.bytes()?;
                let store = one_of("lvs_name", params.lvs_name, "uuid", params.uuid)?;
                let uuid = self.create_disk(&params.lvol_name, size, store.as_deref());
                rpc::BdevLvolCreate::reply(uuid.map_err(failure)?.to_string())
            }
            Call::BdevLvolClone(params) => {
                let uuid = self.clone_disk(&params.snapshot_name, &params.clone_name);
                rpc::BdevLvolClone::reply(uuid.map_err(failure)?.to_string())
            }
            Call::BdevLvolSnapshot(params) => {
                let uuid = self.snapshot(&params.lvol_name, params.snapshot_name.as_deref());
                rpc::BdevLvolSnapshot::reply(uuid.map_err(failure)?.to_string())
            }
            Call::BdevLvolResize(params) => {
                self.resize_disk(&params.name, params.bytes()?).map_err(failure)?;
                rpc::BdevLvolResize::reply(true)
            }
            Call::BdevLvolRename(params) => {
                self.rename(&params.old_name, &params.new_name).map_err(failure)?;
                rpc::BdevLvolRename::reply(true)
            }
            Call::BdevLvolDelete(params) => {
                self.delete(&params.name).map_err(failure)?;
                rpc::BdevLvolDelete::reply(true)
            }
            Call::BdevLvolGetLvols(params) => {
                let store = one_of("lvs_name", params.lvs_name, "lvs_uuid", params.lvs_uuid)?;
                rpc::BdevLvolGetLvols::reply(self.lvols(store.as_deref()).map_err(failure)?)
            }
            Call::LaminaDiskInfo(params) => {
                let infos = self.disk_infos(params.name.as_deref()).map_err(failure)?;
                rpc::LaminaDiskInfo::reply(infos)
            }
            Call::LaminaSnapshotList(params) => {
                let infos = self.snapshot_infos(&params.disk).map_err(failure)?;
                rpc::LaminaSnapshotList::reply(infos)
            }
            Call::LaminaSnapshotLabel(params) => {
                self.label_snapshot(&params.snapshot, &params.label).map_err(failure)?;
                rpc::LaminaSnapshotLabel::reply(true)
            }
            Call::LaminaSnapshotDiff(params) => {
                rpc::LaminaSnapshotDiff::reply(self.snapshot_diff(&params).map_err(failure)?)
            }
            Call::LaminaSnapshotExport(params) => {
                let socket = self.open_export(&params).map_err(failure)?;
                rpc::LaminaSnapshotExport::reply(rpc::StreamOpened { socket })
            }
            Call::LaminaSnapshotImport(params) => {
                let socket = self.open_import(params).map_err(failure)?;
                rpc::LaminaSnapshotImport::reply(rpc::StreamOpened { socket })
            }
            Call::BdevGetBdevs(params) => {
                rpc::BdevGetBdevs::reply(self.bdevs(params.name.as_deref()).map_err(failure)?)
            }
            Call::BdevGetIostat(params) => self.iostat_call(params),
            call => self.daemon_call(call),
        }
    }

    fn iostat_call(&self, params: rpc::BdevGetIostat) -> Answer {
        if params.per_channel.unwrap_or(false) {
            let why = "counters are kept by disk, not by channel: leave per_channel out";
            return Err(RpcError::invalid_argument(why));
        }
        if params.reset_mode.is_some_and(|mode| mode != "none") {
            let why = "counters are never reset: leave reset_mode out";
            return Err(RpcError::invalid_argument(why));
        }
        let names = match (params.name, params.names) {
            (Some(_), Some(_)) => {
                let why = "both name and names are given; give one of them";
                return Err(RpcError::invalid_argument(why));
            }
            (Some(name), None) => vec![name],
            (None, names) => names.unwrap_or_default(),
        };
        rpc::BdevGetIostat::reply(self.iostat(&names).map_err(failure)?)
    }

    /// Methods about exports to guests and the daemon itself.
    fn daemon_call(&self, call: Call) -> Answer {
        match call {
            Call::VhostCreateBlkController(params) => {
                let new = NewExport {
                    ctrlr: &params.ctrlr,
                    device: &params.dev_name,
                    readonly: params.readonly.unwrap_or(false),
                    num_queues: params.num_queues,
                };
                if params.transport.is_some_and(|transport| transport != "vhost_user_blk") {
                    let why = "the only transport is vhost_user_blk: leave it out";
                    return Err(RpcError::invalid_argument(why));
                }
                self.create_export(&new).map_err(failure)?;
                rpc::VhostCreateBlkController::reply(true)
            }
            Call::VhostGetControllers(params) => {
                let exports = self.controllers(params.name.as_deref()).map_err(failure)?;
                rpc::VhostGetControllers::reply(exports)
            }
            Call::VhostDeleteController(params) => {
                self.delete_export(&params.ctrlr).map_err(failure)?;
                rpc::VhostDeleteController::reply(true)
            }
            Call::FrameworkGetReactors(_) => rpc::FrameworkGetReactors::reply(self.reactors()),
            Call::SpdkGetVersion(params) => params.answer(),
            Call::RpcGetMethods(params) => params.answer(),
            Call::SpdkKillInstance(params) => {
                let signal = params.sig_name.trim_start_matches("SIG");
                if !["TERM", "INT"].contains(&signal) {
                    let why = format!("{:?}: give SIGTERM or SIGINT", params.sig_name);
                    return Err(RpcError::invalid_argument(why));
                }
                self.ask_to_stop(format!("a client asked for SIG{signal}"));
                rpc::SpdkKillInstance::reply(true)
            }
            other => self.nvmf_call(other),
        }
    }
}

/// A store is named or given by UUID, or neither.
fn one_of(
    name_key: &str,
    name: Option<String>,
    uuid_key: &str,
    uuid: Option<String>,
) -> Result<Option<String>, RpcError> {
    match (name, uuid) {
        (Some(_), Some(_)) => Err(RpcError::invalid_argument(format!(
            "both {name_key} and {uuid_key} are given; give one of them"
        ))),
        (name, uuid) => Ok(name.or(uuid)),
    }
}

/// The engine's error as the wire has it.
pub fn failure(error: Error) -> RpcError {
    match error.kind {
        ErrorKind::NotFound => RpcError::not_found(error),
        ErrorKind::Exists => RpcError::exists(error),
        ErrorKind::Busy => RpcError::busy(error),
        ErrorKind::Invalid => RpcError::invalid_argument(error),
        ErrorKind::NoSpace => RpcError::no_space(error),
        ErrorKind::Io => RpcError::io(error),
        ErrorKind::Corrupt => RpcError::corrupt(error),
        ErrorKind::Version => RpcError::unsupported(error),
    }
}
