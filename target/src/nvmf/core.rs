//! What the service thread owns: the target, all controllers, the sockets that listen, and the
//! connections that are not on a reactor.
//!
//! ```text
//!  listener ─ accept ─► fresh ─ Connect ─┬─ admin queue: stays here
//!                (deadline)              └─ I/O queue: answered, then on to a reactor
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;

use lamina_bdev::{Error, ErrorKind};
use lamina_nvmf::controller::{ControllerKey, Service, Usage};
use lamina_nvmf::pool::Pool;
use lamina_nvmf::subsystem::{Address, DeviceKey, PortId, SubsystemId, Target};

use super::computing::Computing;
use super::conn::{Conn, Stage};
use super::deliver::{Deferred, ReplyTo};
use super::entrance::TurnedAway;
use super::keys::TlsKeys;
use super::listener::Listener;
use super::message::{ConnectionId, GroupMsg, QueueShared, Save, ServiceMsg};
use super::pace::Pace;
use super::peers::Peers;
use super::poller::{Edge, Poller};
use super::transport::Settings;
use super::usage::{self, QueueUsage};
use super::{Caps, pool_of_service};
use crate::log;
use crate::reactor::clock::now_ns;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::mailbox::Mailbox;

/// Poller number of the inbox.
pub(super) const INBOX: u64 = u64::MAX;
/// Poller number of the door.
pub(super) const DOOR: u64 = u64::MAX - 1;
/// Bit of the door's numbers of listeners.
pub(super) const PORT_BIT: u64 = 1 << 63;
/// After this, an address that could not be listened on is tried again, nanoseconds.
const BIND_RETRY_NS: u64 = 2_000_000_000;
/// How often queues are asked whether their hosts owe data, nanoseconds.
const STALL_CHECK_NS: u64 = 1_000_000_000;

/// An address that is listened on, or is to be.
pub(super) struct Port {
    pub(super) address: Address,
    /// `None`: it could not be bound yet.
    pub(super) listener: Option<Listener>,
    /// When to try again what failed.
    pub(super) retry_ns: Option<u64>,
    /// Nothing could be accepted when it was last tried.
    pub(super) failing: bool,
}

/// An I/O queue that is on a reactor.
pub struct Away {
    /// Its controller.
    pub controller: ControllerKey,
    /// Its number there.
    pub qid: u16,
    /// The reactor.
    pub reactor: usize,
    /// The host's end.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Its subsystem.
    pub(super) subsystem: SubsystemId,
    /// What it has moved.
    pub(super) usage: Arc<QueueUsage>,
}

/// The connections of a controller.
pub struct Association {
    /// Its admin queue's.
    pub admin: ConnectionId,
    /// Its I/O queues', by number.
    pub queues: BTreeMap<u16, ConnectionId>,
    /// What they share.
    pub shared: Arc<QueueShared>,
    /// The host's end of the admin queue.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
}

/// What is counted of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Accepted since the start.
    pub accepted: u64,
    /// Closed at once or before their time, since there were too many.
    pub refused: u64,
    /// Those that have no queue yet.
    pub handshaking: usize,
    /// Those there are.
    pub all: usize,
    /// Admin queues now.
    pub admin: usize,
    /// Admin queues since the start.
    pub admin_total: u64,
}

/// The service thread's state.
pub struct Core {
    /// Controllers and target.
    pub service: Service,
    pub(super) caps: Caps,
    pub(super) settings: Settings,
    /// Admin queues, the inbox, and the door.
    pub(super) poller: Poller,
    /// Listeners, and connections that are no queues yet: looked at when the pace allows.
    pub(super) door: Poller,
    /// The door has told that there is something.
    pub(super) knocked: bool,
    pub(super) pace: Pace,
    pub(super) door_edges: Vec<Edge>,
    pub(super) inbox: Arc<Mailbox<ServiceMsg>>,
    pub(super) reactors: Vec<Arc<ReactorHandle>>,
    pub(super) homes: HashMap<DeviceKey, usize>,
    pub(super) ports: BTreeMap<PortId, Port>,
    pub(super) conns: BTreeMap<ConnectionId, Conn>,
    /// Those of them that have no queue yet.
    pub(super) fresh: BTreeSet<ConnectionId>,
    /// Admin queues with something to do that no edge will announce.
    pub(super) active: BTreeSet<ConnectionId>,
    /// The same of connections at the door.
    pub(super) knocking: BTreeSet<ConnectionId>,
    /// Connections that are only waited for to read why they end.
    pub(super) lingering: BTreeSet<ConnectionId>,
    pub(super) turned_away: TurnedAway,
    /// Connections that wait for a buffer.
    pub(super) starved: BTreeSet<ConnectionId>,
    pub(super) away: BTreeMap<ConnectionId, Away>,
    pub(super) associations: BTreeMap<ControllerKey, Association>,
    pub(super) peers: Peers,
    pub(super) tls_keys: TlsKeys,
    pub(super) deferred: Vec<Deferred>,
    /// Tokens of the actions that are being carried out.
    pub(super) acting: Option<BTreeSet<u64>>,
    pub(super) computing: Computing,
    /// Who waits for which computation.
    pub(super) computed_for: HashMap<u64, ReplyTo>,
    /// What queues have moved that are gone.
    past_usage: BTreeMap<SubsystemId, Usage>,
    last_tick_ns: u64,
    next_stall_check_ns: u64,
    pub(super) next_id: u64,
    pub(super) next_token: u64,
    pub(super) pool: Pool,
    pub(super) pieces: Vec<IoSlice<'static>>,
    pub(super) save: Box<dyn Fn(Save) + Send>,
    pub(super) counts: ConnectionCounts,
    pub(super) stopping: bool,
}

impl Core {
    /// Nothing yet. `save` keeps reservations; see [`Save`].
    ///
    /// # Errors
    /// No epoll set.
    pub fn new(
        caps: Caps,
        settings: Settings,
        inbox: Arc<Mailbox<ServiceMsg>>,
        reactors: Vec<Arc<ReactorHandle>>,
        save: Box<dyn Fn(Save) + Send>,
    ) -> std::io::Result<Core> {
        let poller = Poller::new()?;
        poller.add_level(inbox.wake(), INBOX)?;
        let door = Poller::new()?;
        poller.add_once(&door, DOOR)?;
        let limits = settings.controller_limits();
        let mut service = Service::new(Target::new(), limits, now_ns());
        service.set_random(Box::new(crate::control::random::fill));
        Ok(Core {
            service,
            caps,
            settings,
            poller,
            door,
            knocked: false,
            pace: Pace::new(),
            door_edges: Vec::new(),
            inbox: inbox.clone(),
            reactors,
            homes: HashMap::new(),
            ports: BTreeMap::new(),
            conns: BTreeMap::new(),
            fresh: BTreeSet::new(),
            active: BTreeSet::new(),
            knocking: BTreeSet::new(),
            lingering: BTreeSet::new(),
            turned_away: TurnedAway::default(),
            starved: BTreeSet::new(),
            away: BTreeMap::new(),
            associations: BTreeMap::new(),
            peers: Peers::default(),
            tls_keys: TlsKeys::default(),
            deferred: Vec::new(),
            acting: None,
            computing: Computing::new(inbox),
            computed_for: HashMap::new(),
            past_usage: BTreeMap::new(),
            last_tick_ns: now_ns(),
            next_stall_check_ns: 0,
            next_id: 1,
            next_token: 1,
            pool: pool_of_service(),
            pieces: Vec::new(),
            save,
            counts: ConnectionCounts::default(),
            stopping: false,
        })
    }

    /// Changes what is exported, and tells everybody concerned.
    pub fn edit<R>(&mut self, change: impl FnOnce(&mut Target) -> R) -> R {
        let result = self.service.edit(change);
        self.tls_keys.clear();
        self.act();
        let target = self.service.target();
        self.past_usage.retain(|id, _| target.get(*id).is_some());
        self.drop_unused_ports();
        result
    }

    /// What is exported.
    pub fn target(&self) -> &Target {
        self.service.target()
    }

    /// A disk is driven by that reactor; queues that use it go there.
    pub fn set_home(&mut self, key: DeviceKey, reactor: usize) {
        self.homes.insert(key, reactor);
    }

    /// The disk is gone.
    pub fn forget_home(&mut self, key: DeviceKey) {
        self.homes.remove(&key);
    }

    /// The connections of a controller.
    pub fn association(&self, key: ControllerKey) -> Option<&Association> {
        self.associations.get(&key)
    }

    /// The core of a reactor.
    pub fn core_of(&self, reactor: usize) -> u32 {
        self.reactors[reactor].core()
    }

    /// An I/O queue on a reactor.
    pub fn away(&self, id: ConnectionId) -> Option<&Away> {
        self.away.get(&id)
    }

    /// What is counted of connections.
    pub fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            handshaking: self.fresh.len(),
            all: self.conns.len() + self.away.len(),
            admin: self.associations.len(),
            ..self.counts
        }
    }

    /// Lets a subsystem listen on an address. With `patient`, an address that cannot be listened on
    /// is tried again and again instead of being an error.
    ///
    /// # Errors
    /// What the target says; `Invalid`: the address is in use, or none of this machine.
    pub fn add_listener(
        &mut self,
        nqn: &str,
        address: &Address,
        secure: bool,
        patient: bool,
    ) -> Result<(), Error> {
        let mut listener = None;
        if self.target().find_port(address).is_none() {
            match Listener::bind(address.socket(), self.settings.backlog) {
                Ok(bound) => listener = Some(bound),
                Err(e) if patient => {
                    log::error(format!("{address} cannot be listened on, trying again: {e}"));
                }
                Err(e) => {
                    let why = format!("{address} cannot be listened on: {e}");
                    return Err(Error::new(ErrorKind::Invalid, why));
                }
            }
        }
        let port = self.edit(|target| target.add_listener(nqn, address, secure))?;
        if let Entry::Vacant(place) = self.ports.entry(port) {
            let retry_ns = listener.is_none().then(|| now_ns() + BIND_RETRY_NS);
            let address = address.clone();
            place.insert(Port { address, listener: None, retry_ns, failing: false });
            if let Some(listener) = listener {
                self.listen(port, listener);
            }
        }
        Ok(())
    }

    fn listen(&mut self, port: PortId, listener: Listener) {
        let watched = self.door.add_level(&listener, PORT_BIT | u64::from(port.0));
        let Some(entry) = self.ports.get_mut(&port) else { return };
        match watched {
            Ok(()) => {
                entry.listener = Some(listener);
                entry.retry_ns = None;
            }
            Err(e) => {
                log::error(format!("{} cannot be watched: {e}", entry.address));
                entry.retry_ns = Some(now_ns() + BIND_RETRY_NS);
            }
        }
    }

    /// True if connections to that address are taken now.
    pub fn is_listening(&self, address: &Address) -> bool {
        self.ports.values().any(|port| port.address == *address && port.listener.is_some())
    }

    fn drop_unused_ports(&mut self) {
        let target = self.service.target();
        self.ports.retain(|port, _| target.port(*port).is_some());
    }

    /// Tries again what failed with listeners.
    pub(super) fn retry_ports(&mut self, now: u64) {
        let due: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(_, port)| port.retry_ns.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(port) = self.ports.get_mut(&id) else { continue };
            let listener = match port.listener.take() {
                Some(listener) => Ok(listener),
                None => {
                    Listener::bind(port.address.socket(), self.settings.backlog).inspect(|_| {
                        log::info(format!("{} is listened on now", port.address));
                    })
                }
            };
            match listener {
                Ok(listener) => self.listen(id, listener),
                Err(_) => port.retry_ns = Some(now + BIND_RETRY_NS),
            }
        }
    }

    /// True if a listener waits to be tried again.
    pub(super) fn has_retries(&self) -> bool {
        self.ports.values().any(|port| port.retry_ns.is_some())
    }

    /// Ends connections whose time has run out, and controllers that were not heard of.
    pub(super) fn tick(&mut self, now: u64) {
        let late = |conn: &Conn| conn.deadline_ns.is_some_and(|deadline| deadline <= now);
        let ids: Vec<ConnectionId> =
            self.conns.iter().filter(|(_, conn)| late(conn)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(conn) = self.conns.get_mut(&id) {
                // What is unread would reset it.
                conn.is_drained();
            }
            self.end(id);
        }
        for (key, association) in &self.associations {
            self.service.heard(*key, association.shared.heard_ns());
        }
        self.count_busy(now);
        self.service.tick(now);
        self.act();
        for id in std::mem::take(&mut self.starved) {
            self.wake(id);
        }
        self.retry_ports(now);
        self.peers.forget(now);
        self.report(now);
        if now >= self.next_stall_check_ns {
            self.next_stall_check_ns = now + STALL_CHECK_NS;
            self.check_stalls(now);
        }
    }

    /// Ends connections whose hosts owe data for too long.
    fn check_stalls(&mut self, now: u64) {
        let mut failed = Vec::new();
        for (id, conn) in &mut self.conns {
            if let Some(link) = conn.link() {
                link.connection.expire(now);
                if link.connection.fatal().is_some() {
                    failed.push(*id);
                }
            }
        }
        failed.into_iter().for_each(|id| self.wake(id));
        let busy: BTreeSet<usize> = self
            .away
            .values()
            .filter(|away| away.usage.is_busy())
            .map(|away| away.reactor)
            .collect();
        busy.into_iter().for_each(|reactor| self.post(reactor, GroupMsg::Expire(now)));
    }

    /// A controller is busy while commands are outstanding on its I/O queues: a sample a tick.
    fn count_busy(&mut self, now: u64) {
        let passed = now.saturating_sub(std::mem::replace(&mut self.last_tick_ns, now));
        let busy: BTreeSet<ControllerKey> = self
            .away
            .values()
            .filter(|away| away.usage.is_busy())
            .map(|away| away.controller)
            .collect();
        busy.into_iter().for_each(|key| self.service.was_busy(key, passed));
    }

    /// Tells the controllers what was moved up to now, for their SMART logs.
    pub(super) fn refresh_usage(&mut self) {
        let mut sums = self.past_usage.clone();
        for away in self.away.values() {
            usage::add(sums.entry(away.subsystem).or_default(), &away.usage.usage());
        }
        sums.into_iter().for_each(|(subsystem, usage)| self.service.set_usage(subsystem, usage));
    }

    /// Keeps what a queue has moved that is gone now.
    pub(super) fn keep_usage(&mut self, away: &Away) {
        if self.target().get(away.subsystem).is_some() {
            usage::add(self.past_usage.entry(away.subsystem).or_default(), &away.usage.usage());
        }
    }

    /// How connections are served.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Serves connections otherwise from now on.
    ///
    /// # Errors
    /// `Busy`: hosts are connected, who go by what they were told.
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), Error> {
        if self.service.controllers().next().is_some() {
            let why = "hosts are connected: make the transport before the first listener";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        self.service.set_limits(settings.controller_limits());
        self.settings = settings;
        Ok(())
    }

    /// True if time has to be looked at.
    pub(super) fn wants_ticks(&self) -> bool {
        !self.conns.is_empty() || !self.associations.is_empty() || self.has_retries()
    }

    /// Ends everything: no listeners, no connections. Queues on reactors end one after the other.
    pub fn shut_down(&mut self) {
        self.stopping = true;
        self.ports.clear();
        let keys: Vec<ControllerKey> = self.associations.keys().copied().collect();
        for key in keys {
            self.service.disconnect(key, "laminad is stopping");
        }
        self.act();
        let fresh: Vec<ConnectionId> = self
            .conns
            .iter()
            .filter(|(_, conn)| !matches!(conn.stage, Stage::Ending))
            .map(|(id, _)| *id)
            .collect();
        fresh.into_iter().for_each(|id| self.end(id));
    }

    /// True if no connection is left.
    pub fn is_quiet(&self) -> bool {
        self.conns.is_empty() && self.away.is_empty()
    }
}
