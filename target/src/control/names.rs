//! From what a person calls a disk or snapshot to the thing itself.
//!
//! ```text
//!  6f1c...-uuid        disk or snapshot        golden@base       snapshot by label
//!  golden              disk (or, if there is   golden@3          snapshot by number
//!  store/golden          none, a label)        store/golden@base
//! ```
//!
//! The search runs on the reactors, so that only what was found is copied.

use std::sync::Arc;

use lamina_bdev::{DiskInfo, Engine, Error, ErrorKind, SnapInfo, SnapRef, Uuid};

use super::stores::Store;

/// A name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Query {
    Uuid(Uuid),
    /// Name of a disk, or the label of a snapshot.
    Plain(String),
    /// Disk and label or number.
    Snapshot(String, String),
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Entity {
    /// A disk.
    Disk(DiskInfo),
    /// A snapshot, and the disk it was taken of.
    Snapshot(DiskInfo, SnapInfo),
}

impl Entity {
    /// Its UUID, which is its name as a block device.
    pub fn uuid(&self) -> Uuid {
        match self {
            Entity::Disk(disk) => disk.uuid,
            Entity::Snapshot(_, snap) => snap.uuid,
        }
    }

    /// The disk, or the disk it was taken of.
    pub fn disk(&self) -> &DiskInfo {
        match self {
            Entity::Disk(disk) | Entity::Snapshot(disk, _) => disk,
        }
    }

    /// How a person calls it inside its store: "disk", "disk@label" or "disk@number".
    pub fn name(&self) -> String {
        match self {
            Entity::Disk(disk) => disk.name.to_string(),
            Entity::Snapshot(disk, snap) => snapshot_name(disk, snap),
        }
    }
}

/// "disk@label", without a label "disk@number".
pub fn snapshot_name(disk: &DiskInfo, snap: &SnapInfo) -> String {
    if snap.label.is_empty() {
        format!("{}@{}", disk.name, snap.snap.snap.0)
    } else {
        format!("{}@{}", disk.name, snap.label)
    }
}

/// A thing that was found, and where.
#[derive(Clone)]
pub struct Found {
    /// Its store.
    pub store: Arc<Store>,
    /// Index of its shard.
    pub shard: usize,
    /// The thing.
    pub entity: Entity,
}

impl Found {
    /// "store/disk", "store/disk@label" or "store/disk@number".
    pub fn alias(&self) -> String {
        format!("{}/{}", self.store.name, self.entity.name())
    }
}

/// Finds the one disk or snapshot that `text` names among `stores`.
///
/// # Errors
/// `NotFound`; `Invalid` if it names several.
pub fn find(stores: &[Arc<Store>], text: &str) -> Result<Found, Error> {
    let (store_name, query) = parse(text);
    let mut found = Vec::new();
    for store in stores {
        if store_name.as_deref().is_some_and(|name| name != store.name.as_str()) {
            continue;
        }
        for (shard, handle) in store.shards.iter().enumerate() {
            let query = query.clone();
            let entities = handle.query(move |engine| search(engine, &query))?;
            found.extend(entities.into_iter().map(|entity| Found {
                store: store.clone(),
                shard,
                entity,
            }));
        }
    }
    // A disk of that name hides labels that are the same.
    if found.iter().any(|found| matches!(found.entity, Entity::Disk(_))) {
        found.retain(|found| matches!(found.entity, Entity::Disk(_)));
    }
    if found.len() > 1 {
        let names: Vec<String> = found.iter().take(4).map(Found::alias).collect();
        let why =
            format!("{text:?} could be {}: use the full name or the UUID", names.join(" or "));
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    found.pop().ok_or_else(|| {
        let why = match (stores.is_empty(), &store_name) {
            (true, _) => format!("there is no {text:?}: no store is open"),
            (false, Some(name)) if stores.iter().all(|s| s.name.as_str() != name) => {
                format!("there is no {text:?}: no store {name:?} is open")
            }
            (false, _) => format!(
                "there is no disk or snapshot {text:?}: \
                 lamina disk list and lamina tree show what there is"
            ),
        };
        Error::new(ErrorKind::NotFound, why)
    })
}

fn parse(text: &str) -> (Option<String>, Query) {
    if let Ok(uuid) = text.to_ascii_lowercase().parse() {
        return (None, Query::Uuid(uuid));
    }
    let (store, rest) = match text.split_once('/') {
        Some((store, rest)) => (Some(store.to_string()), rest),
        None => (None, text),
    };
    let query = match rest.split_once('@') {
        Some((disk, snapshot)) => Query::Snapshot(disk.into(), snapshot.into()),
        None => Query::Plain(rest.into()),
    };
    (store, query)
}

/// Runs on a reactor.
fn search(engine: &Engine, query: &Query) -> Vec<Entity> {
    let disk_named = |name: &str| engine.disk_names().find(|(_, n, _)| n.as_str() == name);
    match query {
        Query::Uuid(uuid) => match engine.disk_names().find(|(_, _, known)| known == uuid) {
            Some((id, ..)) => engine.disk_info(id).map(Entity::Disk).into_iter().collect(),
            None => {
                let called = engine.snapshots_called(*uuid);
                called.filter_map(|snap| snapshot(engine, snap)).collect()
            }
        },
        Query::Plain(name) => match disk_named(name) {
            Some((id, ..)) => engine.disk_info(id).map(Entity::Disk).into_iter().collect(),
            None if name.is_empty() => Vec::new(),
            None => snapshots_where(engine, |snap| snap.label.as_str() == name),
        },
        Query::Snapshot(disk, key) => {
            let Some((id, ..)) = disk_named(disk) else { return Vec::new() };
            let snap = pick(&engine.snapshots(id), key);
            let found = snap.and_then(|snap| Some(Entity::Snapshot(engine.disk_info(id)?, snap)));
            found.into_iter().collect()
        }
    }
}

fn snapshot(engine: &Engine, snap: SnapRef) -> Option<Entity> {
    Some(Entity::Snapshot(engine.disk_info(snap.disk)?, engine.snapshot_info(snap)?))
}

/// The snapshot with this label, or else with this number.
fn pick(snaps: &[SnapInfo], key: &str) -> Option<SnapInfo> {
    let by_label = snaps.iter().find(|snap| !key.is_empty() && snap.label.as_str() == key);
    let number = || {
        let number: u64 = key.parse().ok()?;
        snaps.iter().find(|snap| snap.snap.snap.0 == number)
    };
    by_label.or_else(number).copied()
}

fn snapshots_where(engine: &Engine, wanted: impl Fn(&SnapInfo) -> bool) -> Vec<Entity> {
    let mut found = Vec::new();
    for (id, ..) in engine.disk_names() {
        for snap in engine.snapshots(id).iter().filter(|snap| wanted(snap)) {
            found.extend(engine.disk_info(id).map(|disk| Entity::Snapshot(disk, *snap)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_bdev::{DiskId, Name, SnapId, SnapRef};

    #[test]
    fn names_are_taken_apart() {
        let snapshot = |d: &str, s: &str| Query::Snapshot(d.into(), s.into());
        for (text, store, query) in [
            ("golden", None, Query::Plain("golden".into())),
            ("s/golden", Some("s"), Query::Plain("golden".into())),
            ("golden@base", None, snapshot("golden", "base")),
            ("s/golden@3", Some("s"), snapshot("golden", "3")),
            ("", None, Query::Plain(String::new())),
            ("@", None, snapshot("", "")),
            ("a/b/c@d@e", Some("a"), snapshot("b/c", "d@e")),
        ] {
            assert_eq!(parse(text), (store.map(str::to_string), query), "{text}");
        }
        let text = "00112233-4455-6677-8899-AABBCCDDEEFF";
        assert_eq!(parse(text), (None, Query::Uuid(text.to_lowercase().parse().unwrap())));
    }

    #[test]
    fn a_label_goes_before_a_number() {
        let snap = |id, label: &str| SnapInfo {
            snap: SnapRef { disk: DiskId(1), snap: SnapId(id) },
            uuid: Uuid::default(),
            label: if label.is_empty() { Name::EMPTY } else { Name::new(label).unwrap() },
            time: 0,
            size: 0,
            mapped_blocks: 0,
            clones: 0,
            attached: 0,
        };
        let snaps = [snap(1, "2"), snap(2, ""), snap(3, "c")];
        let picked = |key| pick(&snaps, key).map(|snap| snap.snap.snap.0);
        assert_eq!(picked("2"), Some(1));
        assert_eq!(picked("1"), Some(1));
        assert_eq!(picked("3"), Some(3));
        assert_eq!(picked("c"), Some(3));
        assert_eq!((picked(""), picked("4"), picked("-1")), (None, None, None));
    }
}
