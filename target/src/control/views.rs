//! What is there, in the words of the RPC methods. Nothing here changes anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamina_bdev::{
    BLOCK_SIZE, DiskId, DiskInfo, Engine, Error, Name, SECTOR_SIZE, SnapInfo, SnapRef, Stats, Uuid,
};
use lamina_rpc::methods as rpc;

use super::coming::Coming;
use super::exports::Export;
use super::names::{Entity, snapshot_name};
use super::stores::{FailedStore, Store};
use super::{Control, unpoisoned};
use crate::events;
use crate::reactor::clock;
use crate::reactor::space_watch::used_percent;

const BLOCK: u64 = BLOCK_SIZE as u64;
const TICKS_PER_SECOND: u64 = 1_000_000_000;

/// A disk or snapshot with its place in the descent.
struct Node {
    entity: Entity,
    /// For a disk that is a clone: of what.
    origin: Option<String>,
    /// For a snapshot: names of the disks that are clones of it.
    clones: Vec<String>,
}

/// What to look for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Disks,
    One(Uuid),
}

/// Runs on a reactor: what nobody wants is not copied.
fn nodes(engine: &Engine, wanted: Wanted) -> Vec<Node> {
    if let Wanted::One(uuid) = wanted {
        return one(engine, uuid).into_iter().collect();
    }
    let disks = engine.disks();
    let mut snapshots: BTreeMap<u32, Vec<SnapInfo>> = BTreeMap::new();
    let mut nodes = Vec::new();
    for disk in &disks {
        let origin = disk.origin.map(|origin| {
            let of_origin =
                snapshots.entry(origin.disk.0).or_insert_with(|| engine.snapshots(origin.disk));
            origin_name(disks.iter().find(|parent| parent.id == origin.disk), of_origin, origin)
        });
        nodes.push(disk_node(disk.clone(), origin));
        if wanted == Wanted::Disks || disk.snapshots == 0 {
            continue;
        }
        let own = snapshots.entry(disk.id.0).or_insert_with(|| engine.snapshots(disk.id));
        nodes.extend(own.iter().map(|snap| snapshot_node(engine, disk.clone(), *snap)));
    }
    nodes
}

/// The disk or snapshot of this identity.
fn one(engine: &Engine, uuid: Uuid) -> Option<Node> {
    if let Some((id, ..)) = engine.disk_names().find(|(_, _, known)| *known == uuid) {
        let disk = engine.disk_info(id)?;
        let origin = disk.origin.map(|origin| {
            let parent = engine.disk_info(origin.disk);
            let snap: Vec<SnapInfo> = engine.snapshot_info(origin).into_iter().collect();
            origin_name(parent.as_ref(), &snap, origin)
        });
        return Some(disk_node(disk, origin));
    }
    let found = engine.snapshots_called(uuid).next()?;
    Some(snapshot_node(engine, engine.disk_info(found.disk)?, engine.snapshot_info(found)?))
}

fn disk_node(disk: DiskInfo, origin: Option<String>) -> Node {
    Node { entity: Entity::Disk(disk), origin, clones: Vec::new() }
}

fn snapshot_node(engine: &Engine, disk: DiskInfo, snap: SnapInfo) -> Node {
    let clones = clones_of(engine, &snap);
    Node { entity: Entity::Snapshot(disk, snap), origin: None, clones }
}

fn clones_of(engine: &Engine, snap: &SnapInfo) -> Vec<String> {
    match snap.clones {
        0 => Vec::new(),
        _ => engine.clone_names(snap.snap).map(|name| name.to_string()).collect(),
    }
}

/// What a clone of `origin` says it comes from; `snapshots` are those of the disk `parent`.
fn origin_name(parent: Option<&DiskInfo>, snapshots: &[SnapInfo], origin: SnapRef) -> String {
    let snap = snapshots.iter().find(|snap| snap.snap == origin);
    match (parent, snap) {
        (Some(parent), Some(snap)) => snapshot_name(parent, snap),
        (Some(parent), None) => format!("{}@{}", parent.name, origin.snap.0),
        (None, _) => format!("@{}", origin.snap.0),
    }
}

impl Control {
    /// Everything wanted, store by store, shard by shard.
    fn nodes(&self, wanted: Wanted) -> Result<Vec<(Arc<Store>, usize, Node)>, Error> {
        let mut all = Vec::new();
        for store in self.open_stores() {
            for (index, shard) in store.shards.iter().enumerate() {
                let found = shard.query(move |engine| nodes(engine, wanted))?;
                all.extend(found.into_iter().map(|node| (store.clone(), index, node)));
            }
        }
        Ok(all)
    }

    fn wanted(&self, name: Option<&str>, all: Wanted) -> Result<Wanted, Error> {
        match name {
            None => Ok(all),
            Some(name) => Ok(Wanted::One(self.find(name)?.entity.uuid())),
        }
    }

    /// `lamina_disk_info`.
    pub(super) fn disk_infos(&self, name: Option<&str>) -> Result<Vec<rpc::DiskInfo>, Error> {
        if let Some(name) = name {
            self.find_disk(name)?;
        }
        let wanted = self.wanted(name, Wanted::Disks)?;
        let info = |(store, shard, node): (Arc<Store>, usize, Node)| {
            let disk = node.entity.disk();
            let exports = self.exports_of(&store, shard, disk.id);
            let sockets = exports.iter().map(|export| export.socket.display().to_string());
            rpc::DiskInfo {
                name: disk.name.to_string(),
                uuid: disk.uuid.to_string(),
                store: store.name.to_string(),
                shard: shard as u32,
                size: disk.size,
                mapped: disk.mapped_blocks * BLOCK,
                created: disk.created,
                origin: node.origin,
                snapshots: disk.snapshots,
                attached: disk.attached,
                exports: sockets.collect(),
            }
        };
        Ok(self.nodes(wanted)?.into_iter().map(info).collect())
    }

    /// `lamina_snapshot_list`.
    pub(super) fn snapshot_infos(&self, disk: &str) -> Result<Vec<rpc::SnapshotInfo>, Error> {
        let (found, disk) = self.find_disk(disk)?;
        let snapshots =
            found.store.shards[found.shard].query(move |engine| engine.snapshots(disk.id))?;
        let info = |snap: SnapInfo| rpc::SnapshotInfo {
            disk: disk.name.to_string(),
            id: snap.snap.snap.0,
            label: snap.label.to_string(),
            uuid: snap.uuid.to_string(),
            time: snap.time,
            size: snap.size,
            mapped: snap.mapped_blocks * BLOCK,
            clones: snap.clones,
            attached: snap.attached,
        };
        Ok(snapshots.into_iter().map(info).collect())
    }

    /// `lamina_store_info`.
    pub(super) fn store_infos(&self, name: Option<&str>) -> Result<Vec<rpc::StoreInfo>, Error> {
        let mut infos: Vec<rpc::StoreInfo> = {
            let stores = unpoisoned(self.stores.read());
            let called = |known: &&FailedStore| name.is_none_or(|name| known.is_called(name));
            let failed = stores.failed.iter().filter(called).map(FailedStore::info);
            let called = |coming: &&Coming| name.is_none_or(|name| coming.is_called(name));
            let coming = stores.coming.iter().filter(called).map(Coming::info);
            failed.chain(coming).collect()
        };
        match self.stores_called(name) {
            Ok(open) => {
                for store in open {
                    infos.push(store_info(&store)?);
                }
            }
            Err(error) if infos.is_empty() => return Err(error),
            Err(_) => {}
        }
        Ok(infos)
    }

    /// `bdev_lvol_get_lvstores`.
    pub(super) fn lvstores(&self, name: Option<&str>) -> Result<Vec<rpc::Lvstore>, Error> {
        let mut lvstores = Vec::new();
        for store in self.stores_called(name)? {
            let info = store_info(&store)?;
            lvstores.push(rpc::Lvstore {
                uuid: info.uuid,
                name: info.name,
                base_bdev: info.path,
                total_data_clusters: info.size / BLOCK,
                free_clusters: info.free / BLOCK,
                block_size: SECTOR_SIZE as u64,
                cluster_size: BLOCK,
            });
        }
        Ok(lvstores)
    }

    /// `bdev_lvol_get_lvols`.
    pub(super) fn lvols(&self, store: Option<&str>) -> Result<Vec<rpc::Lvol>, Error> {
        let stores = self.stores_called(store)?;
        let listed = |store: &Arc<Store>| stores.iter().any(|listed| Arc::ptr_eq(listed, store));
        let lvol = |(store, _, node): (Arc<Store>, usize, Node)| rpc::Lvol {
            alias: format!("{}/{}", store.name, node.entity.name()),
            uuid: node.entity.uuid().to_string(),
            name: node.entity.name(),
            is_thin_provisioned: true,
            is_snapshot: matches!(node.entity, Entity::Snapshot(..)),
            is_clone: node.origin.is_some(),
            is_degraded: false,
            lvs: rpc::LvolStore { name: store.name.to_string(), uuid: store.uuid.to_string() },
        };
        let nodes = self.nodes(Wanted::All)?.into_iter();
        Ok(nodes.filter(|(store, ..)| listed(store)).map(lvol).collect())
    }

    /// `bdev_get_bdevs`.
    pub(super) fn bdevs(&self, name: Option<&str>) -> Result<Vec<rpc::Bdev>, Error> {
        let wanted = self.wanted(name, Wanted::All)?;
        let exported: Vec<Uuid> = self.exports().iter().map(|export| export.uuid).collect();
        let bdev = |(store, _, node): (Arc<Store>, usize, Node)| {
            let uuid = node.entity.uuid();
            let (size, mapped_blocks, snapshot) = match &node.entity {
                Entity::Disk(disk) => (disk.size, disk.mapped_blocks, false),
                Entity::Snapshot(_, snap) => (snap.size, snap.mapped_blocks, true),
            };
            let types = if snapshot { rpc::IoTypes::snapshot() } else { rpc::IoTypes::disk() };
            rpc::Bdev {
                name: uuid.to_string(),
                aliases: vec![format!("{}/{}", store.name, node.entity.name())],
                product_name: "Lamina disk".into(),
                block_size: SECTOR_SIZE as u64,
                num_blocks: size / SECTOR_SIZE as u64,
                uuid: uuid.to_string(),
                claimed: exported.contains(&uuid),
                supported_io_types: types,
                driver_specific: rpc::DriverSpecific {
                    lvol: rpc::LvolSpecific {
                        lvol_store_uuid: store.uuid.to_string(),
                        base_bdev: store.path.clone(),
                        thin_provision: true,
                        num_allocated_clusters: mapped_blocks,
                        snapshot,
                        clone: node.origin.is_some(),
                        base_snapshot: node.origin,
                        clones: snapshot.then_some(node.clones),
                    },
                },
            }
        };
        Ok(self.nodes(wanted)?.into_iter().map(bdev).collect())
    }

    /// `lamina_tree`.
    pub(super) fn tree(&self, store: Option<&str>) -> Result<Vec<rpc::StoreTree>, Error> {
        let mut trees = Vec::new();
        for store in self.stores_called(store)? {
            let mut disks = Vec::new();
            for shard in &store.shards {
                disks.extend(shard.query(tree_disks)?);
            }
            trees.push(rpc::StoreTree {
                store: store.name.to_string(),
                uuid: store.uuid.to_string(),
                disks,
            });
        }
        Ok(trees)
    }

    /// `vhost_get_controllers`.
    pub(super) fn controllers(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<rpc::VhostController>, Error> {
        let exports = match name {
            Some(name) => vec![self.find_export(name)?],
            None => self.exports().clone(),
        };
        Ok(exports.iter().map(|export| controller(export)).collect())
    }

    /// `lamina_stats`.
    pub(super) fn stats(&self) -> Result<rpc::Stats, Error> {
        let mut stores = Vec::new();
        for store in self.open_stores() {
            let mut shards = Vec::new();
            for shard in &store.shards {
                shards.push(counters(&shard.query(Engine::stats)?));
            }
            stores.push(rpc::StoreStats { name: store.name.to_string(), shards });
        }
        let reactors = self.reactors.iter().map(|reactor| {
            let now = reactor.counters();
            rpc::ReactorStats {
                core: reactor.core(),
                busy_ns: now.busy_ns,
                idle_ns: now.idle_ns,
                sleeps: now.sleeps,
                wakes: now.wakes,
                turns: now.turns,
            }
        });
        Ok(rpc::Stats { stores, reactors: reactors.collect() })
    }

    /// `bdev_get_iostat`: of one disk, of several, or of all.
    pub(super) fn iostat(&self, names: &[String]) -> Result<rpc::Iostat, Error> {
        let mut wanted = Vec::new();
        for name in names {
            wanted.push(self.find_disk(name)?.1.uuid);
        }
        let mut bdevs = Vec::new();
        for store in self.open_stores() {
            for shard in &store.shards {
                let counted = shard.query(traffic)?;
                let asked = |uuid: &Uuid| names.is_empty() || wanted.contains(uuid);
                bdevs.extend(counted.into_iter().filter(|(uuid, _)| asked(uuid)));
            }
        }
        Ok(rpc::Iostat {
            tick_rate: TICKS_PER_SECOND,
            ticks: clock::now_ns(),
            bdevs: bdevs.into_iter().map(|(_, bdev)| bdev).collect(),
        })
    }

    /// `framework_get_reactors`.
    pub(super) fn reactors(&self) -> rpc::Reactors {
        let reactors = self.reactors.iter().map(|reactor| {
            let now = reactor.counters();
            rpc::Reactor {
                lcore: reactor.core(),
                busy: now.busy_ns,
                idle: now.idle_ns,
                in_interrupt: now.asleep,
                lw_threads: Vec::new(),
            }
        });
        rpc::Reactors {
            tick_rate: TICKS_PER_SECOND,
            pid: std::process::id(),
            reactors: reactors.collect(),
        }
    }
}

/// `lamina_get_events`.
pub(super) fn events_since(since: u64, max: usize) -> rpc::Events {
    let page = events::since(since, max);
    let info = |event: events::Event| rpc::Event {
        seq: event.seq,
        time_ms: event.time_ms,
        severity: event.severity.as_str().into(),
        store: event.store,
        text: event.text,
    };
    rpc::Events {
        events: page.events.into_iter().map(info).collect(),
        first: page.first,
        last: page.last,
    }
}

/// Runs on a reactor.
fn traffic(engine: &Engine) -> Vec<(Uuid, rpc::BdevIostat)> {
    let counted = |(id, _, uuid): (DiskId, Name, Uuid)| {
        let traffic = engine.traffic(id)?;
        let bdev = rpc::BdevIostat {
            name: uuid.to_string(),
            bytes_read: traffic.read_bytes,
            num_read_ops: traffic.reads,
            bytes_written: traffic.write_bytes,
            num_write_ops: traffic.writes,
            bytes_unmapped: traffic.discard_bytes,
            num_unmap_ops: traffic.discards,
        };
        Some((uuid, bdev))
    };
    engine.disk_names().filter_map(counted).collect()
}

/// Runs on a reactor.
fn tree_disks(engine: &Engine) -> Vec<rpc::TreeDisk> {
    let disks = engine.disks();
    let disk_name = |id| {
        let known = disks.iter().find(|disk| disk.id == id);
        known.map_or_else(String::new, |disk| disk.name.to_string())
    };
    let snapshot = |snap: &SnapInfo| rpc::TreeSnapshot {
        id: snap.snap.snap.0,
        label: snap.label.to_string(),
        time: snap.time,
        mapped: snap.mapped_blocks * BLOCK,
        clones: clones_of(engine, snap),
    };
    let disk = |disk: &DiskInfo| rpc::TreeDisk {
        name: disk.name.to_string(),
        uuid: disk.uuid.to_string(),
        size: disk.size,
        mapped: disk.mapped_blocks * BLOCK,
        origin: disk.origin.map(|origin| rpc::TreeOrigin {
            disk: disk_name(origin.disk),
            snapshot: origin.snap.0,
        }),
        snapshots: engine.snapshots(disk.id).iter().map(snapshot).collect(),
    };
    disks.iter().map(disk).collect()
}

fn store_info(store: &Store) -> Result<rpc::StoreInfo, Error> {
    let mut info = rpc::StoreInfo {
        name: store.name.to_string(),
        uuid: store.uuid.to_string(),
        path: store.path.clone(),
        shards: store.shards.len() as u32,
        state: "online".into(),
        ..rpc::StoreInfo::default()
    };
    for (shard, watch) in store.shards.iter().zip(&store.watches) {
        let (shard, presented, snapshots, failed, usage) = shard.query(|engine| {
            let disks = engine.disks();
            let presented: u64 = disks.iter().map(|disk| disk.size).sum();
            let snapshots: u64 = disks.iter().map(|disk| disk.snapshots).sum();
            let failed = engine.failure().is_some();
            (engine.store_info(), presented, snapshots, failed, engine.space_usage())
        })?;
        // A disk lives in one shard, so the fullest is the one to worry about.
        info.used_percent = info.used_percent.max(u32::from(used_percent(usage)));
        info.warning = info.warning.max(watch.raised());
        if failed {
            info.state = "failed".into();
        }
        info.size += shard.total_blocks * BLOCK;
        info.free += shard.free_blocks * BLOCK;
        info.pending += shard.pending_blocks * BLOCK;
        info.reserved += shard.reserved_blocks * BLOCK;
        info.presented += presented;
        info.journal_size += shard.journal_blocks * BLOCK;
        info.journal_used += shard.journal_used * BLOCK;
        info.checkpoints += shard.checkpoints;
        info.disks += shard.disks;
        info.snapshots += snapshots;
    }
    Ok(info)
}

impl FailedStore {
    fn info(&self) -> rpc::StoreInfo {
        rpc::StoreInfo {
            name: self.known.name.clone(),
            uuid: self.known.uuid.clone(),
            path: self.known.path.clone(),
            state: "failed".into(),
            ..rpc::StoreInfo::default()
        }
    }
}

impl Coming {
    fn info(&self) -> rpc::StoreInfo {
        let known = self.known.clone().unwrap_or_default();
        rpc::StoreInfo {
            name: self.name.map_or(known.name, |name| name.to_string()),
            uuid: self.uuid.map_or(known.uuid, |uuid| uuid.to_string()),
            path: self.path.clone(),
            state: "opening".into(),
            ..rpc::StoreInfo::default()
        }
    }
}

fn controller(export: &Export) -> rpc::VhostController {
    let status = export.status();
    let connected = status.is_some_and(|status| status.connected);
    let queues = match status {
        Some(status) if connected => status.queues as u32,
        Some(_) | None => u32::from(export.record.num_queues),
    };
    rpc::VhostController {
        ctrlr: export.record.ctrlr.clone(),
        cpumask: format!("0x{:x}", 1u128.checked_shl(export.core()).unwrap_or(0)),
        delay_base_us: 0,
        iops_threshold: 60_000,
        socket: export.socket.display().to_string(),
        backend_specific: rpc::VhostBackend {
            block: rpc::VhostBlock {
                bdev: export.uuid.to_string(),
                readonly: export.record.readonly,
                transport: "vhost_user_blk".into(),
            },
        },
        connected,
        queues,
    }
}

/// The engine's counters by name.
fn counters(stats: &Stats) -> BTreeMap<String, u64> {
    macro_rules! by_name {
        ($($field:ident)+) => {
            [$((stringify!($field).to_string(), stats.$field)),+].into_iter().collect()
        };
    }
    by_name!(
        reads writes flushes discards read_bytes write_bytes
        writes_in_place writes_redirected writes_partial
        base_reads base_writes base_flushes
        journal_blocks journal_records
        cache_hits cache_misses cache_evictions
        cache_compactions cache_compact_hits cache_pieces cache_piece_hits cache_in_place
        cache_promotions
        checkpoints snapshots parked replayed_records dropped_records
    )
}
