//! Recovers one state and compares what is there with what is due; then opens it once more, which
//! must change nothing.

use std::collections::BTreeMap;

use lamina_bdev::{BaseTraits, Command, DiskId, Handle, Reply, SnapInfo, StoreLabel, Target, Uuid};

use super::due::{BlockDue, DiskDue, Due, SnapDue};
use super::host::{Host, Order};
use super::image::{Image, PAGE, Page, Pool, hash_page};
use super::log::{Log, Unit};
use crate::sim::base::Base;
use crate::sim::fsck;
use crate::sim::image::Image as StoreImage;
use crate::sim::memory::{Buffer, read_segs};
use crate::sim::pattern;

/// Blocks read at once.
const READ_BLOCKS: u64 = 32;
/// Consistency points within which deleted space must be back.
const CHECKPOINTS_MAX: usize = 40;

/// Compares states with what is due.
pub struct Judge {
    /// What names the store.
    pub label: StoreLabel,
    /// The base's promises.
    pub traits: BaseTraits,
    /// Free blocks of the empty store.
    pub empty_blocks: u64,
    buffer: Buffer,
    bytes: Vec<u8>,
}

/// What recovery left, for a cut in the middle of it.
pub struct Recovered {
    /// Its writes and flushes.
    pub log: Log,
}

/// Everything found, as numbers.
type Digest = Vec<u64>;

impl Judge {
    /// A judge of states of one store.
    pub fn new(label: StoreLabel, traits: BaseTraits, empty_blocks: u64) -> Judge {
        let buffer = Buffer::new(&[READ_BLOCKS as usize * PAGE], 0);
        Judge { label, traits, empty_blocks, buffer, bytes: vec![0; READ_BLOCKS as usize * PAGE] }
    }

    /// Recovers `image`, of which the device's cache still holds `cached`; compares, opens again.
    /// With `all`, also looks at the owner of each block, before and after, and deletes everything
    /// at last: all space must be back.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(
        &mut self,
        pool: &mut Pool,
        image: Image,
        cached: &[Unit],
        due: &Due,
        all: bool,
    ) -> Result<Recovered, String> {
        if all {
            self.owners(pool, &image).map_err(|why| format!("as it was left: {why}"))?;
        }
        let mut host = self.open(pool, image, Log::carrying(0, cached))?;
        let log = std::mem::take(&mut host.log);
        let first = self.look(pool, &mut host, due)?;
        let image = host.image;
        if all {
            self.owners(pool, &image).map_err(|why| format!("recovered: {why}"))?;
        }
        let again = self.open(pool, image, Log::default());
        let mut again = again.map_err(|why| format!("opened again: {why}"))?;
        let second =
            self.look(pool, &mut again, due).map_err(|why| format!("opened again: {why}"))?;
        if first != second {
            return Err("opening the store again has changed what it holds".to_string());
        }
        if all {
            self.empty(pool, &mut again)?;
        }
        Ok(Recovered { log })
    }

    /// Reads the whole store with the simulator's own reader: each block has one owner.
    fn owners(&self, pool: &Pool, image: &Image) -> Result<(), String> {
        let mut base = Base::new(self.traits, None, 0);
        for (block, page) in image.pages() {
            base.install(self.label.first_region + block * PAGE as u64, pool.page(page));
        }
        fsck::check(&StoreImage::new(&base, &self.label, 0), false).map(|_| ())
    }

    fn open(&self, pool: &mut Pool, image: Image, log: Log) -> Result<Host, String> {
        let host = Host::open(pool, image, &self.label, self.traits, Order::Together, log)?;
        match host.said.first() {
            None => Ok(host),
            Some(said) => Err(format!("recovery says: {said}")),
        }
    }

    fn look(&mut self, pool: &mut Pool, host: &mut Host, due: &Due) -> Result<Digest, String> {
        let mut digest = Vec::new();
        let mut listed: BTreeMap<Uuid, (DiskId, u64)> =
            host.engine().disks().into_iter().map(|d| (d.uuid, (d.id, d.size))).collect();
        for (number, disk) in due.disks.iter().enumerate() {
            let found = listed.remove(&disk.uuid);
            if !disk.presence.allows(found.is_some()) {
                let found = if found.is_some() { "there" } else { "missing" };
                return Err(format!("disk {number} is {found}; due: {:?}", disk.presence));
            }
            digest.push(u64::from(found.is_some()));
            if let Some((id, size)) = found {
                digest.push(size);
                self.look_at_disk(pool, host, disk, (id, size), &mut digest)
                    .map_err(|why| format!("disk {number}: {why}"))?;
            }
        }
        match listed.keys().next() {
            Some(uuid) => Err(format!("disk {uuid} is there, which is not due")),
            None => Ok(digest),
        }
    }

    fn look_at_disk(
        &mut self,
        pool: &mut Pool,
        host: &mut Host,
        disk: &DiskDue,
        (id, size): (DiskId, u64),
        digest: &mut Digest,
    ) -> Result<(), String> {
        if !disk.sizes.contains(&size) {
            return Err(format!("it has {size} bytes; due: {:?}", disk.sizes));
        }
        self.look_at_blocks(pool, host, Target::Disk(id), (&disk.blocks, size), digest)?;
        let mut listed: BTreeMap<Uuid, SnapInfo> =
            host.engine().snapshots(id).into_iter().map(|s| (s.uuid, s)).collect();
        // Journal order: a snapshot that is lost takes all later ones with it.
        let mut lost = None;
        for (number, snap) in disk.snaps.iter().enumerate() {
            let found = listed.remove(&snap.uuid);
            if !snap.presence.allows(found.is_some()) {
                let found = if found.is_some() { "there" } else { "missing" };
                return Err(format!("snapshot {number} is {found}; due: {:?}", snap.presence));
            }
            digest.push(u64::from(found.is_some()));
            match (found, lost) {
                (None, _) if !snap.may_be_deleted => lost = Some(number),
                (Some(_), Some(lost)) => {
                    return Err(format!("snapshot {number} is there, but not {lost}, the older"));
                }
                (None, _) => {}
                (Some(info), None) => self
                    .look_at_snap(pool, host, snap, info, digest)
                    .map_err(|why| format!("snapshot {number}: {why}"))?,
            }
        }
        match listed.values().next() {
            Some(info) => Err(format!("snapshot {} is there, which is not due", info.uuid)),
            None => Ok(()),
        }
    }

    fn look_at_snap(
        &mut self,
        pool: &mut Pool,
        host: &mut Host,
        snap: &SnapDue,
        info: SnapInfo,
        digest: &mut Digest,
    ) -> Result<(), String> {
        if info.size != snap.size {
            return Err(format!("it has {} bytes; due: {}", info.size, snap.size));
        }
        let target = Target::Snapshot(info.snap);
        self.look_at_blocks(pool, host, target, (&snap.blocks, info.size), digest)
    }

    fn look_at_blocks(
        &mut self,
        pool: &mut Pool,
        host: &mut Host,
        target: Target,
        (blocks, size): (&[BlockDue], u64),
        digest: &mut Digest,
    ) -> Result<(), String> {
        let handle = match host.ask(pool, Command::Attach(target)) {
            Ok(Reply::Handle(handle)) => handle,
            other => return Err(format!("attaching: {other:?}")),
        };
        let inside = blocks.partition_point(|b| (b.block + 1) * PAGE as u64 <= size);
        let mut at = 0;
        while at < inside {
            let first = blocks[at].block;
            let next = |i: usize| blocks[i].block == first + (i - at) as u64;
            let most = (at + READ_BLOCKS as usize).min(inside);
            let end = (at + 1..most).find(|i| !next(*i)).unwrap_or(most);
            self.look_at_run(pool, host, handle, &blocks[at..end], digest)?;
            at = end;
        }
        let closed = host.ask(pool, Command::Detach(handle));
        closed.map(|_| ()).map_err(|error| format!("detaching: {error}"))
    }

    fn look_at_run(
        &mut self,
        pool: &mut Pool,
        host: &mut Host,
        handle: Handle,
        blocks: &[BlockDue],
        digest: &mut Digest,
    ) -> Result<(), String> {
        let len = blocks.len() * PAGE;
        let offset = blocks[0].block * PAGE as u64;
        host.read_into(pool, handle, offset, &self.buffer, len)?;
        read_segs(self.buffer.segs(), 0, &mut self.bytes[..len]);
        for (due, bytes) in blocks.iter().zip(self.bytes.chunks_exact(PAGE)) {
            let page: &Page = bytes.try_into().expect("a chunk is a page");
            let hash = hash_page(page);
            digest.push(hash);
            if !due.allowed.iter().any(|(_, allowed)| *allowed == hash) {
                return Err(describe(due, page));
            }
        }
        Ok(())
    }

    /// Deletes everything; then no block may be missing, or be there twice.
    fn empty(&self, pool: &mut Pool, host: &mut Host) -> Result<(), String> {
        // A disk goes after the clones of its snapshots, so newest first, and more than once.
        for _ in 0..CHECKPOINTS_MAX {
            let disks = host.engine().disks();
            for disk in disks.iter().rev() {
                // Refused while clones are left: the next round gets it.
                let _ = host.ask(pool, Command::DeleteDisk(disk.id));
            }
            let asked = host.ask(pool, Command::Checkpoint);
            asked.map_err(|error| format!("a consistency point is refused: {error}"))?;
            let info = host.engine().store_info();
            if disks.is_empty() && info.pending_blocks == 0 && info.free_blocks == self.empty_blocks
            {
                return Ok(());
            }
        }
        let info = host.engine().store_info();
        Err(format!(
            "all is deleted, but {} blocks are free and {} pending; {} were free at first",
            info.free_blocks, info.pending_blocks, self.empty_blocks
        ))
    }
}

/// What a block holds and what it may hold.
fn describe(due: &BlockDue, page: &Page) -> String {
    let found: Vec<String> = page
        .chunks_exact(512)
        .enumerate()
        .map(|(sector, bytes)| match pattern::identify(bytes, due.block * 8 + sector as u64) {
            Ok(number) => number.to_string(),
            Err(why) => format!("({why})"),
        })
        .collect();
    let allowed: Vec<_> = due.allowed.iter().map(|(value, _)| value).collect();
    format!("block {} holds [{}]; due: one of {allowed:?}", due.block, found.join(", "))
}
