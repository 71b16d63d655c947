//! Persistent reservations of one namespace (Base 2.1, 8.1.22): who has registered, who holds what,
//! and what that allows.
//!
//! ```text
//!   register ─► registrant ─ acquire ─► holder ─ release ─► registrant ─ unregister ─►
//!                   ▲                     │
//!                   └──── preempted by ───┘   (or unregistered, if the key was named)
//! ```
//!
//! A plain value: the service thread changes it, `image` turns it into bytes that survive a
//! restart, I/O queues see only [`Access`] in their table of namespaces.

mod image;
mod kept;
#[cfg(test)]
mod model;

pub use image::{IMAGE_BYTES_MAX, ImageFault};
pub use kept::Kept;

/// Most hosts registered with one namespace.
pub const REGISTRANTS_MAX: usize = 64;

/// A host identifier (Base 2.1, Connect data); all zero means none.
pub type HostId = [u8; 16];

/// Reservation type (Base 2.1, figure "Reservation Acquire - RTYPE").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Registrants write, one holds.
    WriteExclusiveRegistrants = 3,
    /// Registrants read and write, one holds.
    ExclusiveAccessRegistrants = 4,
    /// Registrants write, all hold.
    WriteExclusiveAll = 5,
    /// Registrants read and write, all hold.
    ExclusiveAccessAll = 6,
}

impl Kind {
    /// From the command's RTYPE.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::WriteExclusive,
            2 => Kind::ExclusiveAccess,
            3 => Kind::WriteExclusiveRegistrants,
            4 => Kind::ExclusiveAccessRegistrants,
            5 => Kind::WriteExclusiveAll,
            6 => Kind::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Every registrant is a holder.
    pub fn all_registrants(self) -> bool {
        matches!(self, Kind::WriteExclusiveAll | Kind::ExclusiveAccessAll)
    }

    /// Hosts that are not registered may read.
    fn read_by_all(self) -> bool {
        use Kind::*;
        matches!(self, WriteExclusive | WriteExclusiveRegistrants | WriteExclusiveAll)
    }

    /// Only a single holder has the access.
    fn holder_only(self) -> bool {
        matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }
}

/// What one host may do with the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Read, Compare, Verify, Copy's source.
    pub read: bool,
    /// Write, Write Zeroes, Dataset Management, Flush, Copy's destination.
    pub write: bool,
}

/// A host that has registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registrant {
    /// Which.
    pub host: HostId,
    /// Its key, not 0.
    pub key: u64,
}

/// A reservation in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Type.
    pub kind: Kind,
    /// The holder; `None` if all registrants are.
    pub holder: Option<HostId>,
}

/// Why a command was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Reservation Conflict.
    Conflict,
    /// Invalid Field in Command.
    Invalid,
    /// [`REGISTRANTS_MAX`] hosts are registered.
    Full,
}

/// What a host is told that did not send the command (log page 80h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NoticeKind {
    /// Its registration was preempted.
    RegistrationPreempted = 1,
    /// The reservation it relied on was released.
    ReservationReleased = 2,
    /// The reservation and all registrations were cleared.
    ReservationPreempted = 3,
}

/// One notice to one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// To whom.
    pub host: HostId,
    /// What.
    pub kind: NoticeKind,
}

/// RREGA of Reservation Register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterAction {
    /// 0
    Register,
    /// 1
    Unregister,
    /// 2
    Replace,
}

/// A Reservation Register command.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// RREGA.
    pub action: RegisterAction,
    /// IEKEY.
    pub ignore_key: bool,
    /// CPTPL: the new state, if it is to change.
    pub persist: Option<bool>,
    /// CRKEY.
    pub current: u64,
    /// NRKEY.
    pub new: u64,
}

/// All registrations with, and the reservation of, one namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reservations {
    registrants: Vec<Registrant>,
    held: Option<Held>,
    generation: u32,
    persist: bool,
}

impl Reservations {
    /// Registered hosts, in the order they came.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The reservation in force.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// Counts changes as GEN of the report does.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Persist through power loss.
    pub fn persist(&self) -> bool {
        self.persist
    }

    /// Sets persistence as Set Features 83h does.
    pub fn set_persist(&mut self, persist: bool) {
        self.persist = persist;
    }

    fn find(&self, host: &HostId) -> Option<&Registrant> {
        self.registrants.iter().find(|r| r.host == *host)
    }

    /// Whether the host is registered.
    pub fn is_registered(&self, host: &HostId) -> bool {
        self.find(host).is_some()
    }

    /// Whether the host holds the reservation.
    pub fn is_holder(&self, host: &HostId) -> bool {
        self.held.is_some_and(|held| match held.holder {
            Some(holder) => holder == *host,
            None => self.is_registered(host),
        })
    }

    /// What the host may do (Base 2.1, figure "Command Behavior in the Presence of a
    /// Reservation").
    pub fn access(&self, host: &HostId) -> Access {
        let Some(held) = self.held else { return Access { read: true, write: true } };
        let full = if held.kind.holder_only() {
            held.holder == Some(*host)
        } else {
            self.is_registered(host)
        };
        Access { read: full || held.kind.read_by_all(), write: full }
    }

    /// The registrant if its key is `key`, as Acquire and Release demand.
    fn with_key(&self, host: &HostId, key: u64) -> Result<(), Refusal> {
        match self.find(host) {
            Some(registrant) if registrant.key == key => Ok(()),
            _ => Err(Refusal::Conflict),
        }
    }

    /// Reservation Register (8.1.22.3 and 8.1.22.5).
    pub fn register(&mut self, host: HostId, what: Register) -> Result<Vec<Notice>, Refusal> {
        let position = self.registrants.iter().position(|r| r.host == host);
        let key_fits =
            position.is_some_and(|at| what.ignore_key || self.registrants[at].key == what.current);
        let mut notices = Vec::new();
        match (what.action, position) {
            (RegisterAction::Register, Some(at)) => {
                if self.registrants[at].key != what.new {
                    return Err(Refusal::Conflict);
                }
            }
            (RegisterAction::Register, None) => self.add(host, what.new)?,
            (RegisterAction::Replace, _) if what.new == 0 => return Err(Refusal::Invalid),
            (RegisterAction::Replace, None) if what.ignore_key => self.add(host, what.new)?,
            (RegisterAction::Replace, Some(at)) if key_fits => self.registrants[at].key = what.new,
            (RegisterAction::Unregister, Some(_)) if key_fits => {
                self.unregister(&host, &mut notices);
            }
            (RegisterAction::Replace | RegisterAction::Unregister, _) => {
                return Err(Refusal::Conflict);
            }
        }
        if let Some(persist) = what.persist {
            self.persist = persist;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(notices)
    }

    fn add(&mut self, host: HostId, key: u64) -> Result<(), Refusal> {
        if key == 0 {
            return Err(Refusal::Invalid);
        }
        if self.registrants.len() >= REGISTRANTS_MAX {
            return Err(Refusal::Full);
        }
        self.registrants.push(Registrant { host, key });
        Ok(())
    }

    /// Takes the host off the list; a reservation that loses its (last) holder by that ends.
    fn unregister(&mut self, host: &HostId, notices: &mut Vec<Notice>) {
        let held_alone = self.held.is_some_and(|h| h.holder == Some(*host));
        self.registrants.retain(|r| r.host != *host);
        let Some(held) = self.held else { return };
        if held_alone || self.registrants.is_empty() {
            self.held = None;
            if !held.kind.holder_only() {
                self.tell_all(NoticeKind::ReservationReleased, host, notices);
            }
        }
    }

    fn tell_all(&self, kind: NoticeKind, except: &HostId, notices: &mut Vec<Notice>) {
        let others = self.registrants.iter().filter(|r| r.host != *except);
        notices.extend(others.map(|r| Notice { host: r.host, kind }));
    }

    fn hold(&mut self, host: HostId, kind: Kind) {
        let holder = (!kind.all_registrants()).then_some(host);
        self.held = Some(Held { kind, holder });
    }

    /// Reservation Acquire, action Acquire (8.1.22.6).
    pub fn acquire(&mut self, host: HostId, key: u64, kind: Kind) -> Result<(), Refusal> {
        self.with_key(&host, key)?;
        match self.held {
            None => self.hold(host, kind),
            Some(held) if held.kind == kind && self.is_holder(&host) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(())
    }

    /// Reservation Acquire, action Preempt or Preempt and Abort (8.1.22.7): takes the reservation
    /// or the registration of others away. Which commands of theirs die is the caller's part.
    pub fn preempt(
        &mut self,
        host: HostId,
        key: u64,
        victims_key: u64,
        kind: Kind,
    ) -> Result<Vec<Notice>, Refusal> {
        self.with_key(&host, key)?;
        let mut notices = Vec::new();
        let Some(held) = self.held else {
            // Nothing to take over: only registrations go.
            self.expel(&host, |r| r.key == victims_key, &mut notices)?;
            self.generation = self.generation.wrapping_add(1);
            return Ok(notices);
        };
        let holders_key = held.holder.and_then(|h| self.find(&h)).map(|r| r.key);
        let takes_over = match held.holder {
            None => victims_key == 0,
            Some(_) if victims_key == 0 => return Err(Refusal::Invalid),
            Some(_) => holders_key == Some(victims_key),
        };
        if takes_over {
            self.take_over(host, held, victims_key, kind, &mut notices);
        } else {
            self.expel(&host, |r| r.key == victims_key, &mut notices)?;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(notices)
    }

    /// The holder (or all registrants) lose both; the reservation is the host's, of its type.
    fn take_over(
        &mut self,
        host: HostId,
        held: Held,
        victims_key: u64,
        kind: Kind,
        notices: &mut Vec<Notice>,
    ) {
        let was = |r: &Registrant| match held.holder {
            None => true,
            Some(_) => r.key == victims_key,
        };
        for victim in self.registrants.iter().filter(|r| r.host != host && was(r)) {
            let kind = NoticeKind::RegistrationPreempted;
            notices.push(Notice { host: victim.host, kind });
        }
        self.registrants.retain(|r| r.host == host || !was(r));
        self.hold(host, kind);
        if held.kind != kind {
            self.tell_all(NoticeKind::ReservationReleased, &host, notices);
        }
    }

    /// Unregisters all others for whom `doomed` holds; a conflict if there is none.
    fn expel(
        &mut self,
        host: &HostId,
        doomed: impl Fn(&Registrant) -> bool,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Refusal> {
        let before = notices.len();
        let goes = |r: &Registrant| r.host != *host && doomed(r);
        for victim in self.registrants.iter().filter(|r| goes(r)) {
            let kind = NoticeKind::RegistrationPreempted;
            notices.push(Notice { host: victim.host, kind });
        }
        if notices.len() == before {
            return Err(Refusal::Conflict);
        }
        self.registrants.retain(|r| !goes(r));
        Ok(())
    }

    /// Reservation Release, action Release (8.1.22.8). A host that holds nothing succeeds without
    /// effect.
    pub fn release(&mut self, host: HostId, key: u64, kind: Kind) -> Result<Vec<Notice>, Refusal> {
        self.with_key(&host, key)?;
        let mut notices = Vec::new();
        let Some(held) = self.held.filter(|_| self.is_holder(&host)) else { return Ok(notices) };
        if held.kind != kind {
            return Err(Refusal::Invalid);
        }
        self.held = None;
        if !kind.holder_only() {
            self.tell_all(NoticeKind::ReservationReleased, &host, &mut notices);
        }
        Ok(notices)
    }

    /// Reservation Release, action Clear (8.1.22.9): nothing is left.
    pub fn clear(&mut self, host: HostId, key: u64) -> Result<Vec<Notice>, Refusal> {
        self.with_key(&host, key)?;
        let mut notices = Vec::new();
        self.tell_all(NoticeKind::ReservationPreempted, &host, &mut notices);
        self.registrants.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(notices)
    }

    /// The extended data structure of Reservation Report (Base 2.1, 7.8), whole.
    pub fn report(&self) -> Vec<u8> {
        let mut out = vec![0u8; 64 * (1 + self.registrants.len())];
        out[0..4].copy_from_slice(&self.generation.to_le_bytes());
        out[4] = self.held.map_or(0, |h| h.kind as u8);
        let count = self.registrants.len() as u16;
        out[5..7].copy_from_slice(&count.to_le_bytes());
        out[9] = u8::from(self.persist);
        for (at, registrant) in self.registrants.iter().enumerate() {
            let entry = &mut out[64 * (at + 1)..][..64];
            // Controllers are made dynamically, so no one of them stands for the host.
            entry[0..2].copy_from_slice(&0xffffu16.to_le_bytes());
            entry[2] = u8::from(self.is_holder(&registrant.host));
            entry[8..16].copy_from_slice(&registrant.key.to_le_bytes());
            entry[16..32].copy_from_slice(&registrant.host);
        }
        out
    }
}
