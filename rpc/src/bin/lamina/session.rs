//! The connection to the daemon, made at the first call and kept for the rest.

use std::path::PathBuf;
use std::time::Duration;

use lamina_rpc::methods::{BdevGetBdevs, DiskInfo, LaminaDiskInfo};
use lamina_rpc::{Client, Method};
use serde_json::Value;

use crate::failure::Failure;
use crate::progress::Progress;

/// The connection, and what all commands share.
pub struct Session {
    socket: PathBuf,
    timeout: Duration,
    /// True: the answer is printed as JSON.
    pub json: bool,
    client: Option<Client>,
}

/// What a name stands for.
pub struct Named {
    /// Its UUID, which keeps its meaning whatever is renamed meanwhile.
    pub uuid: String,
    /// True for a snapshot, false for a disk.
    pub snapshot: bool,
}

impl Session {
    /// A session that is not connected yet.
    pub fn new(socket: PathBuf, timeout: Duration, json: bool) -> Session {
        Session { socket, timeout, json, client: None }
    }

    fn client(&mut self) -> Result<&mut Client, Failure> {
        if self.client.is_none() {
            self.client = Some(Client::connect_within(&self.socket, self.timeout)?);
        }
        self.client.as_mut().ok_or_else(|| Failure::other("not connected"))
    }

    /// Calls a method of the table; `doing` is shown if it takes long.
    pub fn call<M: Method>(
        &mut self,
        doing: impl Into<String>,
        params: &M,
    ) -> Result<M::Output, Failure> {
        let _progress = Progress::new(doing.into());
        Ok(self.client()?.call(params)?)
    }

    /// Calls a method by name.
    pub fn call_raw(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        let _progress = Progress::new(format!("calling {method}"));
        Ok(self.client()?.call_raw(method, params)?)
    }

    /// What `name` stands for.
    pub fn resolve(&mut self, name: &str) -> Result<Named, Failure> {
        let params = BdevGetBdevs { name: Some(name.to_string()), timeout: None };
        let found = self
            .call(format!("looking up {name}"), &params)
            .map_err(|failure| failure.hint(SEE_TREE))?;
        match found.as_slice() {
            [one] => {
                Ok(Named { uuid: one.uuid.clone(), snapshot: one.driver_specific.lvol.snapshot })
            }
            _ => Err(Failure::other(format!(
                "{name:?} stands for {} disks or snapshots, not one",
                found.len()
            ))
            .hint(SEE_TREE)),
        }
    }

    /// The one disk called `name`.
    pub fn disk(&mut self, name: &str) -> Result<DiskInfo, Failure> {
        let params = LaminaDiskInfo { name: Some(name.to_string()) };
        let mut found = self
            .call(format!("looking up {name}"), &params)
            .map_err(|failure| failure.hint(SEE_DISKS))?;
        match (found.pop(), found.len()) {
            (Some(disk), 0) => Ok(disk),
            _ => {
                Err(Failure::other(format!("{name:?} is not the name of one disk")).hint(SEE_DISKS))
            }
        }
    }
}

/// What to do when a disk or snapshot is not found.
pub const SEE_TREE: &str = "`lamina tree` shows the disks and snapshots there are";
/// What to do when a disk is not found.
pub const SEE_DISKS: &str = "`lamina disk list` shows the disks there are";
/// What to do when a store is not found.
pub const SEE_STORES: &str = "`lamina store list` shows the open stores";
