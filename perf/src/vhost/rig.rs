//! Disks of another process as a [`Store`].

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::client::{Connection, open_soon};
use crate::clock;
use crate::memory::Memory;
use crate::store::{BUFFER_BYTES, DEPTH_MAX, Disk, Store, Took, Verb};

/// A target and how it is told what to do.
pub trait Peer {
    /// For the title.
    fn name(&self) -> String;

    /// Makes disk `number` and exports it: the socket.
    ///
    /// # Errors
    /// Why there is none.
    fn create(&mut self, number: usize, bytes: u64) -> Result<PathBuf>;

    /// Ends a disk that nobody is connected to.
    ///
    /// # Errors
    /// Why it is still there.
    fn delete(&mut self, number: usize) -> Result<()>;

    /// Deletes all snapshots of a disk.
    ///
    /// # Errors
    /// Why they are still there.
    fn delete_snapshots(&mut self, number: usize) -> Result<()>;

    /// Process that serves a disk.
    fn pid(&self, number: usize) -> u32;

    /// Waits until nothing of the past goes on in the background.
    ///
    /// # Errors
    /// It does not end.
    fn settle(&mut self) -> Result<()>;

    /// True if it takes snapshots.
    fn has_snapshots(&self) -> bool;

    /// See [`Store::ask_snapshot`].
    ///
    /// # Errors
    /// Nobody is there to ask.
    fn ask_snapshot(&mut self, number: usize) -> Result<()>;

    /// See [`Store::snapshot_answer`].
    ///
    /// # Errors
    /// It was refused.
    fn snapshot_answer(&mut self) -> Result<Option<Took>>;
}

/// A target with the client's connections to its disks.
pub struct Rig {
    // Connections end before the target does.
    connections: Vec<Option<Connection>>,
    chosen: usize,
    buffers: Memory,
    peer: Box<dyn Peer>,
}

impl Rig {
    /// A rig without disks.
    ///
    /// # Errors
    /// No memory for the buffers.
    pub fn new(peer: Box<dyn Peer>) -> Result<Rig> {
        let buffers = Memory::shared(DEPTH_MAX * BUFFER_BYTES)?;
        Ok(Rig { connections: Vec::new(), chosen: 0, buffers, peer })
    }

    /// Process that serves the chosen disk.
    pub fn pid(&self) -> u32 {
        self.peer.pid(self.chosen)
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        self.connections[self.chosen].as_mut().context("that disk is deleted")
    }
}

impl Store for Rig {
    fn submit(&mut self, verb: Verb, slot: u32, offset: u64, len: u32) -> Result<()> {
        let buffer = self.buffers.piece(slot as usize * BUFFER_BYTES, len as usize);
        let connection = self.connections[self.chosen].as_mut().context("that disk is deleted")?;
        connection.submit(verb, slot, offset, buffer)
    }

    fn turn(&mut self, done: &mut Vec<u32>) -> Result<()> {
        self.connection()?.turn(done)
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.buffers.piece(slot as usize * BUFFER_BYTES, BUFFER_BYTES)
    }

    fn cpu_ns(&self) -> Result<u64> {
        clock::process_cpu_ns(self.peer.pid(self.chosen)).context("the target has ended")
    }

    fn pace_ns(&self) -> u64 {
        clock::wall_ns()
    }

    fn create(&mut self, bytes: u64) -> Result<Disk> {
        let number = self.connections.len();
        let socket = self.peer.create(number, bytes)?;
        let connection = open_soon(&socket, &self.buffers)?;
        let offered = connection.disk_bytes()?;
        ensure!(offered == bytes, "the disk has {offered} bytes, not {bytes}");
        self.connections.push(Some(connection));
        self.chosen = number;
        Ok(Disk(number))
    }

    fn choose(&mut self, disk: Disk) {
        self.chosen = disk.0;
    }

    fn delete(&mut self, disk: Disk) -> Result<()> {
        self.connections[disk.0] = None;
        self.peer.delete(disk.0)?;
        self.peer.settle()
    }

    fn delete_snapshots(&mut self) -> Result<()> {
        self.peer.delete_snapshots(self.chosen)?;
        self.peer.settle()
    }

    fn settle(&mut self) -> Result<()> {
        self.peer.settle()
    }

    fn choose_raw(&mut self) -> bool {
        false
    }

    fn has_snapshots(&self) -> bool {
        self.peer.has_snapshots()
    }

    fn ask_snapshot(&mut self) -> Result<()> {
        self.peer.ask_snapshot(self.chosen)
    }

    fn snapshot_answer(&mut self) -> Result<Option<Took>> {
        self.peer.snapshot_answer()
    }
}
