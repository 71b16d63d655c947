//! The snapshots of a disk as its client knows them: which there must be, which there may be, and
//! what each block of them may hold.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::json;

use super::{Model, Seen, check_disk, check_snapshot, lock};
use crate::client::{Device, Options};
use crate::guest::{Daemon, call};
use crate::sim::rng::Rng;

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    label: String,
    seen: Seen,
    /// False: the call that makes it was not answered.
    sure: bool,
}

/// What was between the last look at the snapshots and this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// The daemon died, or nothing happened: what was answered is there.
    Kill,
    /// The power went: what was answered is there as well, since a snapshot is durable before it is
    /// answered; of one that was not answered, writes before it that were not flushed may be gone.
    PowerCut,
}

impl Snapshot {
    /// True if the daemon said that it was taken.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.sure
    }
}

/// All snapshots of one disk.
#[derive(Debug)]
pub struct Snapshots {
    disk: String,
    model: Arc<Mutex<Model>>,
    list: Vec<Snapshot>,
    made: u64,
}

impl Snapshots {
    /// None yet of the disk `disk`.
    #[must_use]
    pub fn new(disk: &str, model: Arc<Mutex<Model>>) -> Snapshots {
        Snapshots { disk: disk.into(), model, list: Vec::new(), made: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Asks for a snapshot and does not wait. Only one at a time.
    pub fn begin(&mut self, daemon: &Daemon) -> JoinHandle<Snapshot> {
        self.made += 1;
        let (label, socket) = (format!("s{}", self.made), daemon.path("rpc.sock"));
        let (disk, model) = (self.disk.clone(), self.model.clone());
        std::thread::spawn(move || {
            let begin = lock(&model).snapshot_begins();
            let params = json!({"lvol_name": disk, "snapshot_name": label});
            let sure = call(&socket, "bdev_lvol_snapshot", params).is_ok();
            let seen = lock(&model).snapshot_ends(&begin);
            Snapshot { label, seen, sure }
        })
    }

    /// Takes note of what [`Snapshots::begin`] began; true if the daemon said yes.
    ///
    /// # Panics
    /// If the thread panicked.
    pub fn end(&mut self, begun: JoinHandle<Snapshot>) -> bool {
        let snapshot = begun.join().expect("a call ends with an answer or none");
        let sure = snapshot.sure;
        self.list.push(snapshot);
        sure
    }

    /// Deletes one of them.
    pub fn delete_one(&mut self, daemon: &Daemon, rng: &mut Rng) {
        let gone = self.list.remove(rng.index(self.list.len()));
        let name = format!("{}@{}", self.disk, gone.label);
        if let Err(error) = daemon.try_ask("bdev_lvol_delete", json!({"name": name})) {
            assert!(!gone.sure, "deleting {name}: {}", error.message);
        }
    }

    /// Checks that those are there that must be and no others, and reads all of them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&mut self, daemon: &Daemon, after: After) -> Result<(), String> {
        let list = daemon.ask("lamina_snapshot_list", json!({"disk": self.disk}));
        let list = list.as_array().ok_or("no list of snapshots")?;
        let there: Vec<&str> = list.iter().filter_map(|entry| entry["label"].as_str()).collect();
        let known = |label: &str| self.list.iter().any(|snapshot| snapshot.label == label);
        if let Some(strange) = there.iter().find(|label| !known(label)) {
            return Err(format!("snapshot {strange} was deleted, or never asked for"));
        }
        let mut left = Vec::new();
        for mut snapshot in std::mem::take(&mut self.list) {
            let safe = after == After::Kill || snapshot.sure;
            if there.contains(&snapshot.label.as_str()) {
                self.check_one(daemon, &mut snapshot, safe)?;
                left.push(snapshot);
            } else if snapshot.sure {
                return Err(format!("snapshot {} is gone", snapshot.label));
            }
        }
        self.list = left;
        Ok(())
    }

    fn check_one(
        &self,
        daemon: &Daemon,
        snapshot: &mut Snapshot,
        safe: bool,
    ) -> Result<(), String> {
        let name = format!("{}@{}", self.disk, snapshot.label);
        let socket = daemon.export(&name, true);
        let device = Device::connect(&socket, Options::default())?;
        let seen = &mut snapshot.seen;
        check_disk(&device.queue(0), seen.exact.len(), |block, found| {
            check_snapshot(if safe { &seen.exact } else { &seen.loose }, block, found)?;
            // From now on it is exactly this.
            seen.exact[block] = vec![*found];
            seen.loose[block] = vec![*found];
            Ok(())
        })
        .map_err(|why| format!("{name}: {why}"))?;
        snapshot.sure = true;
        drop(device);
        daemon.unexport(&name);
        Ok(())
    }
}
