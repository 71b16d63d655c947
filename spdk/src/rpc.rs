//! Lamina's methods on SPDK's server: the daemon's own schema and handlers.
//!
//! ```text
//!  request ─► its parameters as text ─► control thread ─► Call ─► before ─► Control ─► after
//!         ◄─────────────── SPDK's first thread ◄───────────── answer ◄────────────────┘
//!             before: a disk that goes is no bdev any more      after: bdevs as disks are now
//! ```
//!
//! What SPDK's server has under the same name, for its own logical volumes, gets `lamina_` before
//! it here: `lamina_bdev_lvol_create`.

use lamina_bdev::Error;
use lamina_rpc::methods::{LaminaStoreCreate, LaminaStoreOpen};
use lamina_rpc::schema::METHODS;
use lamina_rpc::{Call, Handler, RpcError};
use lamina_target::control::failure;
use lamina_target::control::host::PATH_PREFIX;
use serde_json::{Value, json};

use crate::control::spawn;
use crate::module::{Running, running};
use crate::sys::rpc::Request;
use crate::sys::thread::Thread;

const OURS: &str = "lamina_";
const VOLUMES: &str = "bdev_lvol_";

/// Names in the schema of the methods that this host has: all about stores, disks and snapshots.
fn wired() -> impl Iterator<Item = &'static str> {
    let names = METHODS.iter().map(|info| info.name);
    names.filter(|name| name.starts_with(OURS) || name.starts_with(VOLUMES))
}

/// Names to register with SPDK, by index.
pub fn names() -> Vec<String> {
    let named = |name: &str| match name.starts_with(OURS) {
        true => name.to_string(),
        false => format!("{OURS}{name}"),
    };
    wired().map(named).collect()
}

/// Method number `index` of [`names`] is called.
pub fn call(index: usize, params: String, request: Request) {
    spawn(move || {
        let name = wired().nth(index).expect("registered by index");
        let answer = running().map_err(failure).and_then(|running| handle(&running, name, &params));
        if let Some(app) = Thread::app() {
            app.send(move || request.answer(answer));
        }
    });
}

fn handle(running: &Running, name: &str, params: &str) -> Result<Value, RpcError> {
    let call = match Call::decode(name, params)? {
        Call::LaminaStoreCreate(params) => {
            let path = bdev_path(params.path);
            Call::LaminaStoreCreate(LaminaStoreCreate { path, ..params })
        }
        Call::LaminaStoreOpen(params) => {
            Call::LaminaStoreOpen(LaminaStoreOpen { path: bdev_path(params.path) })
        }
        call => call,
    };
    before(running, &call).map_err(failure)?;
    let counters = matches!(call, Call::LaminaStats(_));
    let answer = running.control.call(call);
    running.shows.refresh(&running.control, &running.threads);
    let mut answer = answer?;
    if counters {
        add_traffic(running, &mut answer);
    }
    Ok(answer)
}

/// Here stores lie on bdevs only.
fn bdev_path(path: String) -> String {
    if path.starts_with(PATH_PREFIX) { path } else { format!("{PATH_PREFIX}{path}") }
}

/// What is deleted or closed is no bdev any more.
fn before(running: &Running, call: &Call) -> Result<(), Error> {
    match call {
        Call::BdevLvolDelete(params) => match running.control.disk_uuid(&params.name)? {
            Some(uuid) => running.shows.hide_disk(uuid),
            None => Ok(()),
        },
        Call::LaminaStoreClose(params) => {
            let stores = running.control.open_stores();
            match stores.iter().find(|store| store.is_called(&params.name)) {
                Some(store) => {
                    running.shows.hide_store(Some(store.uuid), params.force.unwrap_or(false))
                }
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Adds to the counters of each shard how its I/O came.
fn add_traffic(running: &Running, answer: &mut Value) {
    for store in running.control.open_stores() {
        for (index, shard) in store.shards.iter().enumerate() {
            let counted = answer["stores"].as_array_mut().and_then(|stores| {
                let same = |known: &&mut Value| known["name"] == store.name.as_str();
                stores.iter_mut().find(same)
            });
            let Some(Value::Object(shard_counters)) =
                counted.and_then(|store| store["shards"].get_mut(index))
            else {
                continue;
            };
            let traffic = running.threads.traffic(shard);
            for (name, value) in
                [("io_local", traffic.local), ("io_sent", traffic.sent), ("moves", traffic.moves)]
            {
                shard_counters.insert(name.into(), json!(value));
            }
        }
    }
}
