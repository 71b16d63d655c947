//! Guest requests: drawing them, and judging how they end.

use lamina_bdev::{Done, Handle, Op, Request, SECTOR_SIZE, Status};

use super::history::Window;
use super::memory::Buffer;
use super::model::Place;
use super::ops::NEVER;
use super::pattern::{self, OpId};
use super::world::{Attachment, World};

/// One request in flight.
pub struct Flight {
    /// As the engine got it.
    pub request: Request,
    /// Where it goes.
    pub place: Place,
    /// Key of its attachment.
    pub attachment: u32,
    /// When it was given.
    pub from: u64,
    /// Its number in the model, if it changes anything.
    pub op: Option<OpId>,
    /// The only lawful status, if it is malformed.
    pub expect: Option<Status>,
    /// Its memory.
    pub buffer: Buffer,
    /// Free blocks of the store when it was given.
    free_blocks: u64,
    /// Bytes its place presented then.
    size: u64,
    /// What it writes, for comparison afterwards.
    data: Vec<u8>,
}

/// A read that somebody wants done: place, byte offset, bytes.
pub type Errand = (Place, u64, u64);

impl World {
    /// Submits one random request, or goes on with one that was refused. False if none can be.
    pub(super) fn issue_request(&mut self) -> Result<bool, String> {
        let flight = match self.parked.take() {
            Some(flight) => Some(flight),
            None if self.flights.len() >= self.plan.depth => None,
            None => self.draw_flight(),
        };
        let Some(flight) = flight else { return Ok(false) };
        self.submit(flight)
    }

    fn submit(&mut self, mut flight: Flight) -> Result<bool, String> {
        flight.free_blocks = self.engine().store_info().free_blocks;
        let request = flight.request;
        let swift = self.try_short(&flight);
        let accepted = swift || self.engine_mut().submit(&request, flight.buffer.segs());
        if !accepted {
            if self.flights.len() < self.config.slots {
                return Err(format!(
                    "a request was refused with {} of {} slots in use",
                    self.flights.len(),
                    self.config.slots
                ));
            }
            self.parked = Some(flight);
            return Ok(false);
        }
        let (range, horizon) = (effect_range(&request), self.horizon());
        flight.from = match (flight.op, flight.place) {
            (Some(op), Place::Disk(uid)) => {
                self.model.begin(uid, op, range, horizon);
                self.model.clock
            }
            (Some(_), Place::Snap(_)) => unreachable!("snapshots are never changed"),
            (None, _) => self.model.tick(),
        };
        let now = self.now;
        self.trace.note("submit", [request.cookie, request.offset, request.len]);
        self.trace.line(now, || {
            format!(
                "event {} submit {} {:?} {:?} {:#x}+{:#x}{}{}",
                flight.from,
                request.cookie,
                flight.place,
                request.op,
                request.offset,
                request.len,
                if request.fua { " fua" } else { "" },
                flight.op.map(|op| format!(" as write {op}")).unwrap_or_default(),
            )
        });
        if let Some(attachment) = self.attachments.get_mut(&flight.attachment) {
            attachment.in_flight += 1;
        }
        self.flights.insert(request.cookie, flight);
        self.issued += 1;
        self.move_writes();
        self.start_own(false)?;
        Ok(true)
    }

    /// Submission of the oldest thing in flight that looks at data.
    fn horizon(&self) -> u64 {
        let reads = self.flights.values().map(|f| f.from);
        let commands = self.pending.values().map(|p| p.from);
        reads.chain(commands).min().unwrap_or(NEVER)
    }

    fn draw_flight(&mut self) -> Option<Flight> {
        if let Some((place, offset, len)) = self.errands.pop_front() {
            match self.errand_flight(place, offset, len) {
                Some(flight) => return Some(flight),
                // Not attached yet: later.
                None if !self.calm => self.errands.push_back((place, offset, len)),
                None => {}
            }
        }
        if self.calm {
            return None;
        }
        let attachment = self.draw_attachment()?;
        let (place, handle) = {
            let found = &self.attachments[&attachment];
            (found.place, found.handle)
        };
        let size = self.usable_size(place);
        let weights = self.plan.mix.weights;
        let op = match (self.rng.weighted(&weights), place) {
            (5, _) => return Some(self.malformed(attachment, place, handle, size)),
            (2, Place::Disk(_)) => Op::Flush,
            (0 | 2, _) | (_, Place::Snap(_)) => Op::Read,
            (1, _) => Op::Write,
            (3, _) => Op::Discard,
            (4, _) => Op::WriteZeroes,
            (other, _) => unreachable!("no request kind {other}"),
        };
        let (offset, len) = match op {
            Op::Flush => (0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                let range = self.draw_range(place, op, size);
                self.short_range(op, range, size)
            }
        };
        let fua = matches!(op, Op::Write | Op::WriteZeroes)
            && self.rng.chance(self.plan.mix.fua_permille);
        let request = Request { cookie: self.new_cookie(), handle, op, offset, len, fua };
        Some(self.prepare(request, place, attachment))
    }

    /// Submits one request of the probe.
    pub(super) fn probe_with(&mut self, key: u32, op: Op) -> Result<(), String> {
        // It may have closed since.
        let Some(&Attachment { place, handle, .. }) = self.attachments.get(&key) else {
            return Ok(());
        };
        let op = match (op, place) {
            (Op::Write, Place::Snap(_)) => Op::Read,
            _ => op,
        };
        let len = if op == Op::Flush { 0 } else { 4096 };
        let cookie = self.new_cookie();
        let request = Request { cookie, handle, op, offset: 0, len, fua: false };
        let flight = self.prepare(request, place, key);
        // Refused: all slots are taken; it goes in before the engine comes to rest.
        if self.submit(flight)? { Ok(()) } else { self.drain() }
    }

    fn errand_flight(&mut self, place: Place, offset: u64, len: u64) -> Option<Flight> {
        let (key, handle) = self
            .attachments
            .iter()
            .find(|(_, a)| a.place == place && !a.closing)
            .map(|(key, a)| (*key, a.handle))?;
        let size = self.usable_size(place);
        let offset = offset.min(size - 4096);
        let len = len.min(size - offset);
        let cookie = self.new_cookie();
        let request = Request { cookie, handle, op: Op::Read, offset, len, fua: false };
        Some(self.prepare(request, place, key))
    }

    /// Buffers and data for a lawful request.
    fn prepare(&mut self, request: Request, place: Place, attachment: u32) -> Flight {
        let has_data = matches!(request.op, Op::Read | Op::Write);
        let bytes = if has_data { request.len as usize } else { 0 };
        let buffer = self.draw_buffer(bytes);
        let mut data = Vec::new();
        let op = match request.op {
            Op::Read | Op::Flush => None,
            Op::Write => {
                let op = self.model.ops.add(NEVER, false);
                data.resize(bytes, 0);
                for (index, sector) in data.chunks_exact_mut(SECTOR_SIZE).enumerate() {
                    pattern::fill(sector, op, (request.offset >> 9) + index as u64);
                }
                buffer.store(&data);
                Some(op)
            }
            Op::Discard | Op::WriteZeroes => Some(self.model.ops.add(NEVER, true)),
        };
        Flight {
            request,
            place,
            attachment,
            from: 0,
            op,
            expect: None,
            buffer,
            free_blocks: 0,
            size: self.model.size(place),
            data,
        }
    }

    fn draw_buffer(&mut self, bytes: usize) -> Buffer {
        let unit = if self.plan.odd_segments { 1 } else { SECTOR_SIZE };
        let units = bytes / unit;
        let mut cuts = vec![0, units];
        if units > 1 {
            for _ in 0..self.rng.pick(&[0, 0, 0, 1, 1, 2, 4]) {
                cuts.push(1 + self.rng.index(units - 1));
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        let lens: Vec<usize> = cuts.windows(2).map(|pair| (pair[1] - pair[0]) * unit).collect();
        let skew = if self.rng.chance(300) { self.rng.index(512) } else { 8 };
        Buffer::new(&lens, skew)
    }

    fn draw_attachment(&mut self) -> Option<u32> {
        let open: Vec<u32> =
            self.attachments.iter().filter(|(_, a)| !a.closing).map(|(key, _)| *key).collect();
        (!open.is_empty()).then(|| self.rng.pick(&open))
    }

    /// Bytes of a place that are safe to address: a resize in flight may be about to cut it.
    pub(super) fn usable_size(&self, place: Place) -> u64 {
        let size = self.model.size(place);
        self.pending.values().filter_map(|p| p.resize_of(place)).fold(size, u64::min)
    }

    fn draw_range(&mut self, place: Place, op: Op, size: u64) -> (u64, u64) {
        let lengths = self.plan.mix.lengths;
        let sectors = size >> 9;
        let mut kind = self.rng.weighted(&lengths);
        if kind == 4 && matches!(op, Op::Read | Op::Write) {
            kind = 1;
        }
        let block = self.draw_block(place, size);
        let (mut first, mut count) = match kind {
            0 => ((block << 3) + self.rng.below(8), self.rng.between(1, 15)),
            1 => (block << 3, 8),
            2 => (block << 3, self.rng.between(2, 32) * 8),
            3 => (block << 3, self.rng.between(64, 300) * 8),
            4 => (0, sectors),
            other => unreachable!("no length {other}"),
        };
        if matches!(kind, 2 | 3) && self.rng.chance(300) {
            first += self.rng.below(8);
            count -= self.rng.below(8);
        }
        first = first.min(sectors - 1);
        count = count.min(sectors - first);
        (first << 9, count << 9)
    }

    /// A block in one of the place's hot windows (borders of leaves, of the disk), or anywhere.
    fn draw_block(&mut self, place: Place, size: u64) -> u64 {
        let blocks = size >> 12;
        if !self.rng.chance(self.plan.mix.hot_permille) {
            return self.rng.below(blocks);
        }
        let span = self.plan.window_blocks.min(blocks);
        let disk = match place {
            Place::Disk(uid) => uid,
            Place::Snap(uid) => self.model.snaps[&uid].disk,
        };
        let scattered = super::rng::mix(u64::from(disk)) % blocks;
        let starts = [
            0,
            512u64.saturating_sub(span / 2),
            blocks - span,
            262_144u64.saturating_sub(span / 2),
            scattered,
            blocks / 2,
        ];
        let used = 1 + self.plan.ops as usize % starts.len();
        let start = self.rng.pick(&starts[..used]);
        (start + self.rng.below(span)).min(blocks - 1)
    }

    /// A request with exactly one thing wrong.
    fn malformed(&mut self, attachment: u32, place: Place, handle: Handle, size: u64) -> Flight {
        let cookie = self.new_cookie();
        let mut request = Request { cookie, handle, op: Op::Read, offset: 0, len: 512, fua: false };
        let mut bytes = 512;
        let is_snap = matches!(place, Place::Snap(_));
        let kind = self.rng.below(7);
        if kind > 1 && !is_snap && self.rng.chance(400) {
            request.op = Op::Write;
        }
        let real_size = self.model.size(place);
        let resizing = self.usable_size(place) != real_size
            || self.pending.values().any(|p| p.resize_of(place).is_some());
        let expect = match kind {
            0 if !resizing => {
                request.offset = size;
                Status::OutOfRange
            }
            1 if !resizing => {
                request.offset = size - 512;
                (request.len, bytes) = (1024, 1024);
                Status::OutOfRange
            }
            2 => {
                request.offset = u64::MAX - 511;
                Status::OutOfRange
            }
            3 => {
                request.offset = 100;
                Status::Invalid
            }
            4 => {
                (request.len, bytes) = (0, 0);
                Status::Invalid
            }
            5 => {
                bytes = 1024;
                Status::Invalid
            }
            _ if is_snap => {
                request.op = self.rng.pick(&[Op::Write, Op::Discard, Op::WriteZeroes]);
                bytes = if request.op == Op::Write { 512 } else { 0 };
                Status::ReadOnly
            }
            _ => {
                request.handle = Handle(0xDEAD_FFFF);
                Status::Detached
            }
        };
        let mut flight = Flight {
            request,
            place,
            attachment,
            from: 0,
            op: None,
            expect: Some(expect),
            buffer: self.draw_buffer(bytes),
            free_blocks: 0,
            size: self.model.size(place),
            data: Vec::new(),
        };
        flight.buffer.load(&mut flight.data);
        flight
    }

    /// Takes what the engine has finished.
    pub(super) fn take_dones(&mut self) -> Result<(), String> {
        let mut swift = std::mem::take(&mut self.swift_dones).into_iter();
        while let Some(done) = swift.next().or_else(|| self.engine_mut().next_done()) {
            let Some(flight) = self.flights.remove(&done.cookie) else {
                return Err(format!(
                    "an answer to request {}, which is not in flight",
                    done.cookie
                ));
            };
            if let Some(attachment) = self.attachments.get_mut(&flight.attachment) {
                attachment.in_flight -= 1;
            }
            let now = self.now;
            self.trace.note("done", [done.cookie, done.status as u64, 0]);
            self.trace.line(now, || format!("done {} {:?}", done.cookie, done.status));
            self.judge(&flight, done).map_err(|why| {
                let r = flight.request;
                format!(
                    "request {} ({:?} of {:?}, {:#x}+{:#x}{}) ended with {:?}: {why}",
                    r.cookie,
                    r.op,
                    flight.place,
                    r.offset,
                    r.len,
                    if r.fua { ", fua" } else { "" },
                    done.status
                )
            })?;
        }
        Ok(())
    }

    fn judge(&mut self, flight: &Flight, done: Done) -> Result<(), String> {
        if !flight.buffer.canaries_intact() {
            return Err("memory around its segments was written to".to_string());
        }
        if let Some(expect) = flight.expect {
            let resized = self.model.size(flight.place) != flight.size
                || self.pending.values().any(|p| p.resize_of(flight.place).is_some());
            if expect == Status::OutOfRange && resized && flight.request.op == Op::Read {
                return Ok(());
            }
            if done.status != expect || !flight.buffer.holds(&flight.data) {
                return Err(format!("it is malformed: {expect:?} and untouched memory are due"));
            }
            return Ok(());
        }
        self.judge_status(flight, done.status)?;
        match (flight.request.op, done.status) {
            (Op::Read, Status::Ok) => self.judge_data(flight),
            (Op::Read, _) => Ok(()),
            (Op::Flush, Status::Ok) => {
                if let Place::Disk(uid) = flight.place {
                    self.model.flushed(uid, flight.from);
                }
                Ok(())
            }
            (Op::Flush, _) => Ok(()),
            (Op::Write | Op::Discard | Op::WriteZeroes, status) => {
                self.judge_change(flight, status)
            }
        }
    }

    fn judge_change(&mut self, flight: &Flight, status: Status) -> Result<(), String> {
        let (Some(op), Place::Disk(uid)) = (flight.op, flight.place) else {
            unreachable!("a change has a number and goes to a disk");
        };
        if status == Status::Ok {
            self.model.acked(uid, op, flight.request.fua);
        } else {
            self.model.failed(uid, op);
        }
        match flight.buffer.holds(&flight.data) {
            true => Ok(()),
            false => Err("its memory was changed".to_string()),
        }
    }

    fn judge_status(&mut self, flight: &Flight, status: Status) -> Result<(), String> {
        let request = &flight.request;
        let promises_durability = request.op == Op::Flush || request.fua;
        match status {
            Status::Ok if promises_durability && flight.from > self.flush_failed_at => {
                Err("a flush had failed before, so this cannot be durable".to_string())
            }
            Status::Ok => Ok(()),
            Status::IoError if self.excused(request.op) => {
                self.errors_seen += 1;
                Ok(())
            }
            Status::IoError => Err("nothing has failed that explains it".to_string()),
            Status::NoSpace if request.op == Op::Write || request.op == Op::WriteZeroes => {
                let free = flight.free_blocks.min(self.engine().store_info().free_blocks);
                let in_flight: u64 = self.flights.values().map(|f| f.request.len >> 12).sum();
                self.no_space_seen += 1;
                let full = self.base.injected.no_space();
                if free > (request.len >> 12) + in_flight + 512 && !full {
                    return Err(format!("{free} blocks were free"));
                }
                Ok(())
            }
            // A journal that cannot be trimmed for want of space fills up.
            Status::NoSpace if request.op == Op::Discard && self.base.injected.no_space() => {
                self.no_space_seen += 1;
                Ok(())
            }
            Status::Corrupt => {
                let family = self.model.disk(self.disk_of(flight.place)).family;
                self.damage.excuses(family)
            }
            // A resize that was in flight with it may have cut the disk under it.
            Status::OutOfRange if request.offset + request.len > self.smallest_size(flight) => {
                Ok(())
            }
            Status::NoSpace
            | Status::ReadOnly
            | Status::OutOfRange
            | Status::Invalid
            | Status::Detached => Err("it is lawful and nothing is wrong".to_string()),
        }
    }

    /// True if the device's errors explain that a request fails.
    fn excused(&self, op: Op) -> bool {
        let failed = self.engine().failure().is_some();
        match (self.healthy, op) {
            _ if !self.base.injected.any() => false,
            (false, _) => true,
            (true, Op::Read) => self.base.gone,
            (true, _) => failed || self.base.gone,
        }
    }

    /// The least that the place presented while the request was in flight.
    fn smallest_size(&self, flight: &Flight) -> u64 {
        let size = self.usable_size(flight.place);
        self.shrinks
            .iter()
            .filter(|(place, _, at)| *place == flight.place && *at > flight.from)
            .fold(size, |size, (_, to, _)| size.min(*to))
    }

    fn judge_data(&mut self, flight: &Flight) -> Result<(), String> {
        let mut data = std::mem::take(&mut self.scratch);
        flight.buffer.load(&mut data);
        let first = flight.request.offset >> 9;
        let mut tags = Vec::with_capacity(data.len() / SECTOR_SIZE);
        for (index, sector) in data.chunks_exact(SECTOR_SIZE).enumerate() {
            let at = first + index as u64;
            let tag = pattern::identify(sector, at)
                .map_err(|why| format!("sector {at} (block {}): {why}", at >> 3))?;
            tags.push(tag);
        }
        self.scratch = data;
        let hash = tags.iter().fold(0u64, |sum, tag| super::rng::mix(sum ^ u64::from(*tag)));
        self.trace.note("data", [hash, 0, 0]);
        let window = Window { from: flight.from, to: self.model.tick() };
        self.model.check_read(flight.place, flight.request.offset, &tags, window)
    }
}

/// Bytes that a request changes: a discard leaves parts of blocks alone.
fn effect_range(request: &Request) -> (u64, u64) {
    if request.op != Op::Discard {
        return (request.offset, request.len);
    }
    let first = request.offset.next_multiple_of(4096);
    let end = (request.offset + request.len) & !4095;
    (first, end.saturating_sub(first))
}
