//! laminad on a temporary folder with a store in RAM, told what to do over JSON-RPC.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lamina_rpc::Client;
use serde_json::json;

use super::Options;
use super::rig::Peer;
use crate::clock;
use crate::daemon::{Daemon, Settings};
use crate::store::Took;

/// A running daemon.
pub struct Laminad {
    daemon: Daemon,
    /// Names of disks to take snapshots of, for the thread that asks.
    asks: Sender<String>,
    answers: Receiver<Result<Took>>,
}

impl Laminad {
    /// Starts it with its reactor on the target's core and makes a store of `bytes` of RAM.
    ///
    /// # Errors
    /// It does not start, or refuses the store.
    pub fn start(options: &Options, bytes: u64) -> Result<Laminad> {
        let settings = Settings {
            program: options.daemon.clone(),
            cores: options.target_core.to_string(),
            busy_poll: options.busy_poll,
            cache_bytes: None,
        };
        let mut daemon = Daemon::start(&settings)?;
        let (asks, waiting) = channel();
        let (answer, answers) = channel();
        let (pid, asking) = (daemon.pid(), daemon.another_client()?);
        std::thread::spawn(move || ask_for_snapshots(asking, pid, &waiting, &answer));
        let store = json!({"name": "perf", "path": format!("ram:{bytes}")});
        daemon.call("lamina_store_create", &store)?;
        Ok(Laminad { daemon, asks, answers })
    }

    /// Bytes that wait for a consistency point, and how many of those there were.
    fn progress(&mut self) -> Result<(u64, u64)> {
        let info = self.daemon.call("lamina_store_info", &json!({}))?;
        let field = |name: &str| {
            info[0][name].as_u64().with_context(|| format!("no '{name}' in the store's info"))
        };
        Ok((field("pending")?, field("checkpoints")?))
    }
}

/// Takes snapshots one after the other and says how long each took, on a thread of its own, so
/// that requests go on meanwhile.
fn ask_for_snapshots(
    mut client: Client,
    daemon: u32,
    asks: &Receiver<String>,
    answers: &Sender<Result<Took>>,
) {
    while let Ok(disk) = asks.recv() {
        let answer = ask_for_snapshot(&mut client, daemon, &disk);
        if answers.send(answer).is_err() {
            return;
        }
    }
}

fn ask_for_snapshot(client: &mut Client, daemon: u32, disk: &str) -> Result<Took> {
    let waited =
        || -> Result<u64> { Ok(clock::process_wait_ns(daemon)? + clock::thread_wait_ns()?) };
    // What is waited between the two clocks is in both windows.
    let outer = clock::wall_ns();
    let before = waited()?;
    let begun = clock::wall_ns();
    let outcome = client.call_raw("bdev_lvol_snapshot", &json!({ "lvol_name": disk }));
    let wall_ns = clock::wall_ns() - begun;
    outcome.context("taking a snapshot")?;
    let waited_ns = waited()?.saturating_sub(before);
    let on_core_ns = Some((clock::wall_ns() - outer).saturating_sub(waited_ns));
    Ok(Took { wall_ns, on_core_ns })
}

fn disk_name(number: usize) -> String {
    format!("disk{number}")
}

impl Peer for Laminad {
    fn name(&self) -> String {
        "laminad, store in RAM,".into()
    }

    fn create(&mut self, number: usize, bytes: u64) -> Result<PathBuf> {
        let name = disk_name(number);
        let socket = self.daemon.path(&name);
        self.daemon.call("bdev_lvol_create", &json!({ "lvol_name": name, "size": bytes }))?;
        let export = json!({ "ctrlr": socket.to_str().context("no text")?, "dev_name": name });
        self.daemon.call("vhost_create_blk_controller", &export)?;
        Ok(socket)
    }

    fn delete(&mut self, number: usize) -> Result<()> {
        let name = disk_name(number);
        let socket = self.daemon.path(&name);
        let export = json!({ "ctrlr": socket.to_str().context("no text")? });
        self.daemon.call("vhost_delete_controller", &export)?;
        self.daemon.call("bdev_lvol_delete", &json!({ "name": name }))?;
        Ok(())
    }

    fn delete_snapshots(&mut self, number: usize) -> Result<()> {
        let list =
            self.daemon.call("lamina_snapshot_list", &json!({ "disk": disk_name(number) }))?;
        for snapshot in list.as_array().context("no list of snapshots")? {
            self.daemon.call("bdev_lvol_delete", &json!({ "name": snapshot["uuid"] }))?;
        }
        Ok(())
    }

    fn pid(&self, _number: usize) -> u32 {
        self.daemon.pid()
    }

    fn settle(&mut self) -> Result<()> {
        let end = clock::wall_ns() + 300_000_000_000;
        loop {
            self.daemon.call("lamina_checkpoint", &json!({}))?;
            let before = self.progress()?;
            std::thread::sleep(Duration::from_millis(50));
            let after = self.progress()?;
            // What is deleted comes back in one consistency point after the other.
            if before == after && after.0 == 0 {
                return Ok(());
            }
            ensure!(clock::wall_ns() < end, "{} bytes are still pending after 300 s", after.0);
        }
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn ask_snapshot(&mut self, number: usize) -> Result<()> {
        self.asks.send(disk_name(number)).context("the asking thread has ended")
    }

    fn snapshot_answer(&mut self) -> Result<Option<Took>> {
        match self.answers.try_recv() {
            Ok(answer) => answer.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the asking thread has ended"),
        }
    }
}
