//! A daemon over maps in memory: names, sizes and descent, no data.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use lamina_rpc::methods::*;
use lamina_rpc::{Call, Handler, Method, RpcError};
use serde_json::Value;

/// Seconds since 1970 at which everything happens here.
pub const NOW: u64 = 1_700_000_000;

#[derive(Default)]
pub struct Model {
    state: Mutex<State>,
    /// What was called, in order.
    pub calls: Mutex<Vec<Call>>,
    /// Calls of `lamina_checkpoint` wait while this is true.
    held: Mutex<bool>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    stores: Vec<StoreInfo>,
    disks: Vec<Disk>,
    exports: Vec<VhostController>,
    events: Vec<Event>,
    uuids: u64,
}

struct Disk {
    info: DiskInfo,
    origin: Option<TreeOrigin>,
    snapshots: Vec<SnapshotInfo>,
    taken: u64,
}

/// Index of a disk, or of a disk and its snapshot.
#[derive(Clone, Copy)]
enum Found {
    Disk(usize),
    Snapshot(usize, usize),
}

impl Model {
    /// Lets calls of `lamina_checkpoint` wait, or go on.
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }

    fn checkpoint(&self) -> Result<Value, RpcError> {
        let held = self.held.lock().unwrap();
        let wait = Duration::from_secs(20);
        let (held, _) = self.released.wait_timeout_while(held, wait, |held| *held).unwrap();
        if *held { Err(RpcError::io("held for too long")) } else { LaminaCheckpoint::reply(true) }
    }
}

impl Handler for Model {
    fn call(&self, call: Call) -> Result<Value, RpcError> {
        self.calls.lock().unwrap().push(call.clone());
        if let Call::LaminaCheckpoint(_) = call {
            return self.checkpoint();
        }
        self.state.lock().unwrap().call(call)
    }
}

impl State {
    fn call(&mut self, call: Call) -> Result<Value, RpcError> {
        match call {
            Call::LaminaStoreCreate(params) => self.create_store(params),
            Call::LaminaStoreOpen(params) => {
                Err(RpcError::corrupt(format!("{} is not a Lamina store", params.path)))
            }
            Call::LaminaStoreClose(params) => {
                let index = self.store(Some(&params.name))?;
                if !self.exports.is_empty() && params.force != Some(true) {
                    return Err(RpcError::busy("its disks are exported"));
                }
                self.stores.remove(index);
                LaminaStoreClose::reply(true)
            }
            Call::LaminaStoreInfo(params) => LaminaStoreInfo::reply(match params.name {
                Some(name) => vec![self.stores[self.store(Some(&name))?].clone()],
                None => self.stores.clone(),
            }),
            Call::LaminaCheckpoint(_) => unreachable!("answered without the lock"),
            Call::LaminaGetEvents(params) => {
                let (since, max) = (params.since.unwrap_or(0), params.max.unwrap_or(100));
                let later = self.events.iter().filter(|event| event.seq > since);
                let events = later.take(max as usize).cloned().collect();
                let last = self.events.len() as u64;
                LaminaGetEvents::reply(Events { events, first: 1, last })
            }
            Call::LaminaStoreSetWarnings(params) => self.set_warnings(params),
            Call::LaminaStats(_) => self.stats(),
            Call::LaminaTree(_) => self.tree(),
            Call::BdevGetBdevs(params) => self.bdevs(params.name.as_deref()),
            Call::BdevGetIostat(_) => BdevGetIostat::reply(Iostat::default()),
            Call::VhostCreateBlkController(params) => self.attach(params),
            Call::VhostGetControllers(params) => {
                let mut exports = self.exports.clone();
                exports.retain(|export| params.name.as_ref().is_none_or(|n| *n == export.ctrlr));
                VhostGetControllers::reply(exports)
            }
            Call::VhostDeleteController(params) => {
                self.exports.retain(|export| export.ctrlr != params.ctrlr);
                VhostDeleteController::reply(true)
            }
            Call::FrameworkGetReactors(_) => FrameworkGetReactors::reply(Reactors::default()),
            Call::SpdkGetVersion(params) => params.answer(),
            Call::RpcGetMethods(params) => params.answer(),
            Call::SpdkKillInstance(_) => SpdkKillInstance::reply(true),
            disks => self.call_disks(disks),
        }
    }

    /// The calls about disks and snapshots.
    fn call_disks(&mut self, call: Call) -> Result<Value, RpcError> {
        match call {
            Call::BdevLvolGetLvstores(_) => BdevLvolGetLvstores::reply(vec![]),
            Call::BdevLvolCreate(params) => {
                let size = params.bytes()?;
                let store = self.store(params.lvs_name.as_deref().or(params.uuid.as_deref()))?;
                let store = self.stores[store].name.clone();
                BdevLvolCreate::reply(self.add_disk(params.lvol_name, store, size, None)?)
            }
            Call::BdevLvolClone(params) => self.clone_snapshot(params),
            Call::BdevLvolSnapshot(params) => self.snapshot(params),
            Call::BdevLvolResize(params) => {
                let size = params.bytes()?;
                let index = self.disk(&params.name)?;
                self.disks[index].info.size = size;
                BdevLvolResize::reply(true)
            }
            Call::BdevLvolRename(params) => {
                let index = self.disk(&params.old_name)?;
                self.disks[index].info.name = params.new_name;
                BdevLvolRename::reply(true)
            }
            Call::BdevLvolDelete(params) => self.delete(&params.name),
            Call::BdevLvolGetLvols(_) => BdevLvolGetLvols::reply(vec![]),
            Call::LaminaDiskInfo(params) => LaminaDiskInfo::reply(match params.name {
                Some(name) => vec![self.disks[self.disk(&name)?].info.clone()],
                None => self.disks.iter().map(|disk| disk.info.clone()).collect(),
            }),
            Call::LaminaSnapshotList(params) => {
                LaminaSnapshotList::reply(self.disks[self.disk(&params.disk)?].snapshots.clone())
            }
            Call::LaminaSnapshotDiff(params) => self.diff(params),
            Call::LaminaSnapshotExport(_) | Call::LaminaSnapshotImport(_) => {
                let socket = "/run/streams/0.sock".into();
                LaminaSnapshotExport::reply(StreamOpened { socket })
            }
            Call::LaminaSnapshotLabel(params) => match self.find(&params.snapshot)? {
                Found::Snapshot(disk, snapshot) => {
                    self.disks[disk].snapshots[snapshot].label = params.label;
                    LaminaSnapshotLabel::reply(true)
                }
                Found::Disk(_) => Err(RpcError::invalid_argument("that is a disk")),
            },
            other => unreachable!("{other:?} is not about disks"),
        }
    }

    /// Everywhere the same two extents, on two pages.
    fn diff(&self, params: LaminaSnapshotDiff) -> Result<Value, RpcError> {
        let kind = if params.offset.is_none() { "data" } else { "hole" };
        let offset = params.offset.unwrap_or(0);
        LaminaSnapshotDiff::reply(SnapshotDiff {
            snapshot: params.snapshot.unwrap_or_else(|| "now".into()),
            size: 1 << 30,
            since: params.since,
            extents: vec![DiffExtent { offset, length: 8192, kind: kind.into() }],
            next: params.offset.is_none().then_some(1 << 20),
        })
    }

    fn uuid(&mut self) -> String {
        self.uuids += 1;
        format!("00000000-0000-4000-8000-{:012}", self.uuids)
    }

    fn create_store(&mut self, params: LaminaStoreCreate) -> Result<Value, RpcError> {
        if self.stores.iter().any(|store| store.name == params.name) {
            return Err(RpcError::exists(format!("there is a store {:?}", params.name)));
        }
        let size =
            params.size.ok_or_else(|| RpcError::invalid_argument("a new file needs size"))?;
        let uuid = self.uuid();
        self.stores.push(StoreInfo {
            name: params.name,
            uuid: uuid.clone(),
            path: params.path,
            shards: params.shards.unwrap_or(1),
            size,
            free: size / 2,
            state: "online".into(),
            ..StoreInfo::default()
        });
        LaminaStoreCreate::reply(uuid)
    }

    /// Every store here is 84 % full.
    fn set_warnings(&mut self, params: LaminaStoreSetWarnings) -> Result<Value, RpcError> {
        let index = self.store(Some(&params.name))?;
        let percents = params.percents.unwrap_or_else(|| vec![80, 90]);
        if percents.iter().any(|percent| !(1..=100).contains(percent)) {
            return Err(RpcError::invalid_argument("a threshold is 1 to 100 percent"));
        }
        let store = &mut self.stores[index];
        store.used_percent = 84;
        store.warning = percents.iter().copied().filter(|percent| *percent <= 84).max();
        if let Some(at) = store.warning {
            self.events.push(Event {
                seq: self.events.len() as u64 + 1,
                time_ms: NOW * 1000,
                severity: "warning".into(),
                store: params.name,
                text: format!("84 % of the usable space is used (warning at {at} %)"),
            });
        }
        LaminaStoreSetWarnings::reply(percents)
    }

    fn store(&self, name: Option<&str>) -> Result<usize, RpcError> {
        match name {
            None if self.stores.len() == 1 => Ok(0),
            None => Err(RpcError::invalid_argument("say which store")),
            Some(name) => self
                .stores
                .iter()
                .position(|store| store.name == name || store.uuid == name)
                .ok_or_else(|| RpcError::not_found(format!("no store {name:?}"))),
        }
    }

    fn find(&self, name: &str) -> Result<Found, RpcError> {
        for (d, disk) in self.disks.iter().enumerate() {
            let info = &disk.info;
            if [&info.name, &info.uuid].contains(&&name.to_string())
                || name == format!("{}/{}", info.store, info.name)
            {
                return Ok(Found::Disk(d));
            }
            for (s, snapshot) in disk.snapshots.iter().enumerate() {
                let by = |tail: &str| name == format!("{}@{tail}", info.name);
                if name == snapshot.uuid || by(&snapshot.label) || by(&snapshot.id.to_string()) {
                    return Ok(Found::Snapshot(d, s));
                }
            }
        }
        Err(RpcError::not_found(format!("no disk or snapshot {name:?}")))
    }

    fn disk(&self, name: &str) -> Result<usize, RpcError> {
        match self.find(name)? {
            Found::Disk(index) => Ok(index),
            Found::Snapshot(..) => {
                Err(RpcError::invalid_argument(format!("{name:?} is a snapshot")))
            }
        }
    }

    fn add_disk(
        &mut self,
        name: String,
        store: String,
        size: u64,
        origin: Option<TreeOrigin>,
    ) -> Result<String, RpcError> {
        if self.find(&name).is_ok() {
            return Err(RpcError::exists(format!("there is a disk {name:?}")));
        }
        let uuid = self.uuid();
        let info = DiskInfo {
            name,
            uuid: uuid.clone(),
            store,
            size,
            created: NOW,
            origin: origin.as_ref().map(|origin| format!("{}@{}", origin.disk, origin.snapshot)),
            ..DiskInfo::default()
        };
        self.disks.push(Disk { info, origin, snapshots: vec![], taken: 0 });
        Ok(uuid)
    }

    fn clone_snapshot(&mut self, params: BdevLvolClone) -> Result<Value, RpcError> {
        let Found::Snapshot(d, s) = self.find(&params.snapshot_name)? else {
            return Err(RpcError::invalid_argument("only a snapshot can be cloned"));
        };
        let (info, snapshot) = (&self.disks[d].info, &self.disks[d].snapshots[s]);
        let origin = TreeOrigin { disk: info.name.clone(), snapshot: snapshot.id };
        let (store, size) = (info.store.clone(), snapshot.size);
        let uuid = self.add_disk(params.clone_name, store, size, Some(origin))?;
        self.disks[d].snapshots[s].clones += 1;
        BdevLvolClone::reply(uuid)
    }

    fn snapshot(&mut self, params: BdevLvolSnapshot) -> Result<Value, RpcError> {
        let index = self.disk(&params.lvol_name)?;
        let uuid = self.uuid();
        let disk = &mut self.disks[index];
        disk.taken += 1;
        disk.snapshots.push(SnapshotInfo {
            disk: disk.info.name.clone(),
            id: disk.taken,
            label: params.snapshot_name.unwrap_or_default(),
            uuid: uuid.clone(),
            time: NOW,
            size: disk.info.size,
            ..SnapshotInfo::default()
        });
        disk.info.snapshots = disk.snapshots.len() as u64;
        BdevLvolSnapshot::reply(uuid)
    }

    fn delete(&mut self, name: &str) -> Result<Value, RpcError> {
        let found = self.find(name)?;
        if !self.exports.is_empty() {
            return Err(RpcError::busy("it is exported"));
        }
        match found {
            Found::Disk(d) => {
                let origin = self.disks.remove(d).origin.unwrap_or_default();
                let of_origin =
                    |s: &&mut SnapshotInfo| (&s.disk, s.id) == (&origin.disk, origin.snapshot);
                let mut snapshots = self.disks.iter_mut().flat_map(|disk| &mut disk.snapshots);
                if let Some(snapshot) = snapshots.find(of_origin) {
                    snapshot.clones -= 1;
                }
            }
            Found::Snapshot(d, s) => {
                self.disks[d].snapshots.remove(s);
                self.disks[d].info.snapshots -= 1;
            }
        }
        BdevLvolDelete::reply(true)
    }

    fn bdevs(&self, name: Option<&str>) -> Result<Value, RpcError> {
        let bdev = |uuid: &str, alias: String, snapshot: bool| Bdev {
            name: uuid.into(),
            uuid: uuid.into(),
            aliases: vec![alias],
            driver_specific: DriverSpecific {
                lvol: LvolSpecific { snapshot, ..LvolSpecific::default() },
            },
            ..Bdev::default()
        };
        let of = |found: Found| match found {
            Found::Disk(d) => {
                let info = &self.disks[d].info;
                bdev(&info.uuid, format!("{}/{}", info.store, info.name), false)
            }
            Found::Snapshot(d, s) => {
                let snapshot = &self.disks[d].snapshots[s];
                let store = &self.disks[d].info.store;
                bdev(&snapshot.uuid, format!("{store}/{}@{}", snapshot.disk, snapshot.id), true)
            }
        };
        BdevGetBdevs::reply(match name {
            Some(name) => vec![of(self.find(name)?)],
            None => (0..self.disks.len()).map(|d| of(Found::Disk(d))).collect(),
        })
    }

    fn attach(&mut self, params: VhostCreateBlkController) -> Result<Value, RpcError> {
        let (uuid, snapshot) = match self.find(&params.dev_name)? {
            Found::Disk(d) => (self.disks[d].info.uuid.clone(), false),
            Found::Snapshot(d, s) => (self.disks[d].snapshots[s].uuid.clone(), true),
        };
        if self.exports.iter().any(|export| export.ctrlr == params.ctrlr) {
            return Err(RpcError::exists(format!("there is an export {:?}", params.ctrlr)));
        }
        self.exports.push(VhostController {
            socket: match params.ctrlr.starts_with('/') {
                true => params.ctrlr.clone(),
                false => format!("/run/lamina/{}", params.ctrlr),
            },
            ctrlr: params.ctrlr,
            queues: u32::from(params.num_queues.unwrap_or(4)),
            backend_specific: VhostBackend {
                block: VhostBlock {
                    bdev: uuid,
                    readonly: snapshot || params.readonly == Some(true),
                    transport: "vhost_user_blk".into(),
                },
            },
            ..VhostController::default()
        });
        VhostCreateBlkController::reply(true)
    }

    fn stats(&self) -> Result<Value, RpcError> {
        let shard = BTreeMap::from([("reads".to_string(), 7), ("read_bytes".to_string(), 4096)]);
        let stores = self
            .stores
            .iter()
            .map(|store| StoreStats { name: store.name.clone(), shards: vec![shard.clone()] });
        LaminaStats::reply(Stats { stores: stores.collect(), reactors: vec![] })
    }

    fn tree(&self) -> Result<Value, RpcError> {
        let tree_disk = |disk: &Disk| TreeDisk {
            name: disk.info.name.clone(),
            uuid: disk.info.uuid.clone(),
            size: disk.info.size,
            mapped: disk.info.mapped,
            origin: disk.origin.clone(),
            snapshots: disk
                .snapshots
                .iter()
                .map(|snapshot| TreeSnapshot {
                    id: snapshot.id,
                    label: snapshot.label.clone(),
                    time: snapshot.time,
                    mapped: snapshot.mapped,
                    clones: vec![],
                })
                .collect(),
        };
        let of = |store: &StoreInfo| StoreTree {
            store: store.name.clone(),
            uuid: store.uuid.clone(),
            disks: self
                .disks
                .iter()
                .filter(|disk| disk.info.store == store.name)
                .map(tree_disk)
                .collect(),
        };
        LaminaTree::reply(self.stores.iter().map(of).collect())
    }
}
