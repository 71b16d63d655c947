//! What is exported: subsystems with their namespaces, the hosts they let in, the ports they are
//! reached on.
//!
//! ```text
//!  Target ─┬─ ports            addresses listened on
//!          ├─ referrals        other discovery services
//!          └─ Subsystem ─┬─ namespaces     nsid ─► disk
//!                        ├─ hosts          who may connect
//!                        └─ listeners      on which port, ANA state of each group there
//! ```
//!
//! A plain value: management changes it by methods that check everything and leave it as it was on
//! an error. Every change is noted; the controllers' owner takes the notes and tells the hosts.

mod address;
mod namespace;
mod nqn;
mod one;
mod table;

use std::collections::{BTreeMap, VecDeque};

use lamina_bdev::{Error, ErrorKind};

pub use address::{Address, AnaState, Listener, PortId, Referral};
pub use namespace::{DeviceKey, Namespace, NamespaceSpec};
pub use nqn::{DISCOVERY_NQN, NQN_BYTES_MAX, Nqn};
pub use one::{Host, HostKeys, Secret, Subsystem, SubsystemSpec};
pub use table::{NsEntry, NsTable};

/// Most subsystems, the discovery subsystem not counted.
pub const SUBSYSTEMS_MAX: usize = 1024;
/// Most listening addresses.
pub const PORTS_MAX: usize = 256;
/// Most referrals.
pub const REFERRALS_MAX: usize = 256;

/// Names a subsystem for as long as the daemon runs; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SubsystemId(pub u32);

impl SubsystemId {
    /// The discovery subsystem, which always exists.
    pub const DISCOVERY: SubsystemId = SubsystemId(0);
}

/// Something hosts or reactors must hear of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A namespace was added, removed, resized or changed otherwise.
    Namespace(SubsystemId, u32),
    /// Its reservations changed: who may do what.
    Reservation(SubsystemId, u32),
    /// The reservations of a namespace whose persistence is or was on must be saved.
    Persist(SubsystemId, u32),
    /// ANA states on one listener.
    Ana(SubsystemId, PortId),
    /// What the discovery log shows.
    Discovery,
    /// The subsystem no longer listens there: connections through it end.
    ListenerGone(SubsystemId, PortId),
    /// The host may no longer use the subsystem: its connections end.
    HostGone(SubsystemId, Nqn),
    /// The subsystem is gone: all its connections end.
    SubsystemGone(SubsystemId),
}

/// Everything this daemon exports.
#[derive(Debug)]
pub struct Target {
    subsystems: BTreeMap<SubsystemId, Subsystem>,
    ports: BTreeMap<PortId, Address>,
    referrals: Vec<Referral>,
    next_subsystem: u32,
    next_port: u16,
    /// Counts changes of the discovery log (GENCTR).
    discovery_generation: u64,
    changes: VecDeque<Change>,
}

fn error<T>(kind: ErrorKind, text: String) -> Result<T, Error> {
    Err(Error::new(kind, text))
}

impl Default for Target {
    fn default() -> Target {
        Target::new()
    }
}

impl Target {
    /// A target with nothing but the discovery subsystem, which lets any host in.
    pub fn new() -> Target {
        let discovery = Subsystem::discovery();
        Target {
            subsystems: BTreeMap::from([(SubsystemId::DISCOVERY, discovery)]),
            ports: BTreeMap::new(),
            referrals: Vec::new(),
            next_subsystem: 1,
            next_port: 1,
            discovery_generation: 1,
            changes: VecDeque::new(),
        }
    }

    /// The next note of a change, oldest first.
    pub fn take_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    fn note(&mut self, change: Change) {
        if change == Change::Discovery {
            self.discovery_generation += 1;
        }
        self.changes.push_back(change);
    }

    /// GENCTR of the discovery log.
    pub fn discovery_generation(&self) -> u64 {
        self.discovery_generation
    }

    /// All subsystems, the discovery subsystem first.
    pub fn subsystems(&self) -> impl Iterator<Item = (SubsystemId, &Subsystem)> {
        self.subsystems.iter().map(|(id, s)| (*id, s))
    }

    /// The subsystem of that number.
    pub fn get(&self, id: SubsystemId) -> Option<&Subsystem> {
        self.subsystems.get(&id)
    }

    /// The subsystem of that name.
    pub fn find(&self, nqn: &str) -> Option<(SubsystemId, &Subsystem)> {
        self.subsystems().find(|(_, s)| s.nqn().as_str() == nqn)
    }

    /// As [`Target::find`], with the sentence management shows if there is none.
    pub fn expect(&self, nqn: &str) -> Result<SubsystemId, Error> {
        match self.find(nqn) {
            Some((id, _)) => Ok(id),
            None => {
                let shown = nqn.escape_debug();
                error(ErrorKind::NotFound, format!("there is no subsystem named '{shown}'"))
            }
        }
    }

    fn own(&mut self, id: SubsystemId) -> &mut Subsystem {
        self.subsystems.get_mut(&id).expect("a subsystem that was just found")
    }

    /// A subsystem management may change: found, and not the discovery subsystem.
    fn changeable(&self, nqn: &str, what: &str) -> Result<SubsystemId, Error> {
        let id = self.expect(nqn)?;
        if id == SubsystemId::DISCOVERY {
            return error(ErrorKind::Invalid, format!("the discovery subsystem {what}"));
        }
        Ok(id)
    }

    /// Adds a subsystem.
    pub fn add_subsystem(&mut self, spec: SubsystemSpec) -> Result<SubsystemId, Error> {
        if self.find(spec.nqn.as_str()).is_some() {
            return error(ErrorKind::Exists, format!("subsystem '{}' exists already", spec.nqn));
        }
        if self.subsystems.len() > SUBSYSTEMS_MAX {
            let text = format!("{SUBSYSTEMS_MAX} subsystems exist: delete some first");
            return error(ErrorKind::NoSpace, text);
        }
        let subsystem = Subsystem::new(spec)?;
        let id = SubsystemId(self.next_subsystem);
        self.next_subsystem += 1;
        self.subsystems.insert(id, subsystem);
        Ok(id)
    }

    /// Removes a subsystem; its hosts are disconnected.
    pub fn remove_subsystem(&mut self, nqn: &str) -> Result<Subsystem, Error> {
        let id = self.changeable(nqn, "cannot be deleted")?;
        let gone = self.subsystems.remove(&id).expect("just found");
        self.note(Change::SubsystemGone(id));
        self.note(Change::Discovery);
        self.drop_unused_ports();
        Ok(gone)
    }

    /// Adds a namespace; returns its number.
    pub fn add_namespace(&mut self, nqn: &str, spec: NamespaceSpec) -> Result<u32, Error> {
        let id = self.changeable(nqn, "has no namespaces")?;
        let nsid = self.own(id).add_namespace(spec)?;
        self.note(Change::Namespace(id, nsid));
        Ok(nsid)
    }

    /// Removes a namespace.
    pub fn remove_namespace(&mut self, nqn: &str, nsid: u32) -> Result<Namespace, Error> {
        let id = self.changeable(nqn, "has no namespaces")?;
        let gone = self.own(id).remove_namespace(nsid)?;
        self.note(Change::Namespace(id, nsid));
        Ok(gone)
    }

    /// The disk behind a device has a new size: every namespace of it follows.
    pub fn resize_device(&mut self, device: DeviceKey, bytes: u64) {
        let mut changed = Vec::new();
        for (id, subsystem) in &mut self.subsystems {
            for namespace in subsystem.namespaces_mut().filter(|n| n.device == device) {
                let blocks = bytes >> namespace.block_shift;
                if std::mem::replace(&mut namespace.blocks, blocks) != blocks {
                    changed.push(Change::Namespace(*id, namespace.nsid));
                }
            }
        }
        changed.into_iter().for_each(|change| self.note(change));
    }

    /// Moves a namespace to another ANA group.
    pub fn set_namespace_group(&mut self, nqn: &str, nsid: u32, group: u32) -> Result<(), Error> {
        let id = self.changeable(nqn, "has no namespaces")?;
        self.own(id).set_namespace_group(nsid, group)?;
        self.note(Change::Namespace(id, nsid));
        let ports = self.own(id).log_changed();
        ports.into_iter().for_each(|port| self.note(Change::Ana(id, port)));
        Ok(())
    }

    /// A namespace's reservations, to be changed; the caller notes it by
    /// [`Target::reservations_changed`].
    pub(crate) fn namespace_mut(&mut self, id: SubsystemId, nsid: u32) -> Option<&mut Namespace> {
        self.subsystems.get_mut(&id)?.namespace_mut(nsid)
    }

    /// Notes that a namespace's reservations have changed.
    pub(crate) fn reservations_changed(&mut self, id: SubsystemId, nsid: u32, persist: bool) {
        self.note(Change::Reservation(id, nsid));
        if persist {
            self.note(Change::Persist(id, nsid));
        }
    }

    /// Puts saved reservations back, when the daemon opens a namespace again.
    pub fn restore_reservations(
        &mut self,
        nqn: &str,
        nsid: u32,
        image: &[u8],
    ) -> Result<(), Error> {
        let id = self.expect(nqn)?;
        let Some(namespace) = self.namespace_mut(id, nsid) else {
            return error(ErrorKind::NotFound, format!("'{nqn}' has no namespace {nsid}"));
        };
        match crate::reservation::Reservations::from_bytes(image, namespace.uuid) {
            Ok(reservations) => namespace.reservations = reservations,
            Err(fault) => {
                let text = format!("'{nqn}' namespace {nsid}: {fault}");
                return error(ErrorKind::Corrupt, text);
            }
        }
        self.note(Change::Reservation(id, nsid));
        Ok(())
    }

    /// Lets a host in, with the keys it must prove to have.
    pub fn add_host(&mut self, nqn: &str, host: Host) -> Result<(), Error> {
        let id = self.expect(nqn)?;
        self.own(id).add_host(host)?;
        self.note(Change::Discovery);
        Ok(())
    }

    /// Changes the keys of a host that is let in already; connections stay.
    pub fn set_host_keys(&mut self, nqn: &str, host: &Nqn, keys: HostKeys) -> Result<(), Error> {
        let id = self.expect(nqn)?;
        self.own(id).set_host_keys(host, keys)
    }

    /// Takes a host off the list and disconnects it, unless any host may come.
    pub fn remove_host(&mut self, nqn: &str, host: &Nqn) -> Result<(), Error> {
        let id = self.expect(nqn)?;
        self.own(id).remove_host(host)?;
        if !self.own(id).allows(host) {
            self.note(Change::HostGone(id, host.clone()));
        }
        self.note(Change::Discovery);
        Ok(())
    }

    /// Whether any host may connect.
    pub fn set_allow_any_host(&mut self, nqn: &str, allow: bool) -> Result<(), Error> {
        let id = self.expect(nqn)?;
        self.own(id).allow_any_host = allow;
        self.note(Change::Discovery);
        Ok(())
    }

    /// All addresses to listen on.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &Address)> {
        self.ports.iter().map(|(id, address)| (*id, address))
    }

    /// The address of a port.
    pub fn port(&self, id: PortId) -> Option<&Address> {
        self.ports.get(&id)
    }

    /// The port with that address.
    pub fn find_port(&self, address: &Address) -> Option<PortId> {
        self.ports().find(|(_, a)| *a == address).map(|(id, _)| id)
    }

    /// Lets a subsystem listen on an address. The caller has opened the socket if the port is new.
    pub fn add_listener(
        &mut self,
        nqn: &str,
        address: &Address,
        secure: bool,
    ) -> Result<PortId, Error> {
        let id = self.expect(nqn)?;
        let known = self.find_port(address);
        if known.is_some_and(|port| self.own(id).listener(port).is_some()) {
            let text = format!("'{nqn}' listens on {address} already");
            return error(ErrorKind::Exists, text);
        }
        if known.is_none() && self.ports.len() >= PORTS_MAX {
            let text = format!("{PORTS_MAX} addresses are listened on: remove some first");
            return error(ErrorKind::NoSpace, text);
        }
        let port = known.unwrap_or_else(|| self.free_port());
        self.own(id).add_listener(Listener::new(port, secure))?;
        self.ports.insert(port, address.clone());
        self.note(Change::Discovery);
        Ok(port)
    }

    fn free_port(&mut self) -> PortId {
        while self.ports.contains_key(&PortId(self.next_port)) || self.next_port == 0 {
            self.next_port = self.next_port.wrapping_add(1);
        }
        let id = PortId(self.next_port);
        self.next_port = self.next_port.wrapping_add(1);
        id
    }

    /// Ends a listener and the connections through it. `Some` if nobody is left on that port, so
    /// that its socket can be closed.
    pub fn remove_listener(
        &mut self,
        nqn: &str,
        address: &Address,
    ) -> Result<Option<PortId>, Error> {
        let id = self.expect(nqn)?;
        let port = self.listening(id, nqn, address)?;
        self.own(id).remove_listener(port);
        self.note(Change::ListenerGone(id, port));
        self.note(Change::Discovery);
        self.drop_unused_ports();
        Ok((!self.ports.contains_key(&port)).then_some(port))
    }

    fn listening(&self, id: SubsystemId, nqn: &str, address: &Address) -> Result<PortId, Error> {
        let port = self.find_port(address);
        let found = port.filter(|p| self.subsystems[&id].listener(*p).is_some());
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("'{nqn}' does not listen on {address}"))
        })
    }

    fn drop_unused_ports(&mut self) {
        let subsystems = &self.subsystems;
        self.ports.retain(|port, _| subsystems.values().any(|s| s.listener(*port).is_some()));
    }

    /// Sets the ANA state of one group, or of all, on one listener.
    pub fn set_ana_state(
        &mut self,
        nqn: &str,
        address: &Address,
        group: Option<u32>,
        state: AnaState,
    ) -> Result<(), Error> {
        let id = self.changeable(nqn, "has no ANA states")?;
        let port = self.listening(id, nqn, address)?;
        self.own(id).set_ana_state(port, group, state)?;
        self.note(Change::Ana(id, port));
        Ok(())
    }

    /// Other discovery services shown in the log.
    pub fn referrals(&self) -> &[Referral] {
        &self.referrals
    }

    /// Adds a referral.
    pub fn add_referral(&mut self, referral: Referral) -> Result<(), Error> {
        if self.referrals.contains(&referral) {
            let text = format!("the referral to {} exists already", referral.address);
            return error(ErrorKind::Exists, text);
        }
        if self.referrals.len() >= REFERRALS_MAX {
            let text = format!("{REFERRALS_MAX} referrals exist: remove some first");
            return error(ErrorKind::NoSpace, text);
        }
        self.referrals.push(referral);
        self.note(Change::Discovery);
        Ok(())
    }

    /// Removes a referral.
    pub fn remove_referral(&mut self, address: &Address, nqn: &Nqn) -> Result<(), Error> {
        let before = self.referrals.len();
        self.referrals.retain(|r| r.address != *address || r.nqn != *nqn);
        if self.referrals.len() == before {
            return error(ErrorKind::NotFound, format!("there is no referral to {address}"));
        }
        self.note(Change::Discovery);
        Ok(())
    }
}
