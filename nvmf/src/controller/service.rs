//! All controllers and the target they serve: the service thread's state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::admin::completion;
use super::authenticate::AuthWork;
use super::events::Event;
use super::log_discovery::KeptLogs;
use super::one::Controller;
use super::quiesce::Departed;
use super::{Action, ControllerKey, Limits, Reply, Usage};
use crate::subsystem::{Change, NsTable, Subsystem, SubsystemId, Target};
use crate::wire::Status;

/// Controllers, target, and what is to be done about them.
pub struct Service {
    pub(super) target: Target,
    pub(super) limits: Limits,
    pub(super) controllers: BTreeMap<ControllerKey, Controller>,
    /// Associations that have ended, and whose queues have not all left.
    pub(super) departed: BTreeMap<ControllerKey, Departed>,
    pub(super) next_key: u64,
    pub(super) actions: VecDeque<Action>,
    /// Controllers whose queues need a new table, and whether what is in flight ends first.
    publishes: BTreeMap<ControllerKey, bool>,
    pub(super) usage: BTreeMap<SubsystemId, Usage>,
    /// When the first call with a time came, for power-on hours.
    pub(super) started_ns: u64,
    /// For authentication.
    pub(super) random: Option<super::RandomSource>,
    /// To be computed by the owner, and how many there were.
    pub(super) work: VecDeque<AuthWork>,
    pub(super) works: u64,
    tables: u64,
    pub(super) kept_logs: KeptLogs,
}

impl Service {
    /// No controllers yet.
    pub fn new(target: Target, limits: Limits, now_ns: u64) -> Service {
        limits.check();
        Service {
            target,
            limits,
            controllers: BTreeMap::new(),
            departed: BTreeMap::new(),
            next_key: 1,
            actions: VecDeque::new(),
            publishes: BTreeMap::new(),
            usage: BTreeMap::new(),
            started_ns: now_ns,
            random: None,
            work: VecDeque::new(),
            works: 0,
            tables: 0,
            kept_logs: KeptLogs::default(),
        }
    }

    /// What controllers offer.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Offers something else from now on.
    ///
    /// # Panics
    /// There are controllers: their hosts go by what they were told.
    pub fn set_limits(&mut self, limits: Limits) {
        assert!(self.controllers.is_empty(), "limits change while no host is there");
        limits.check();
        self.limits = limits;
    }

    /// What is exported.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Changes what is exported, then tells everybody concerned.
    pub fn edit<R>(&mut self, change: impl FnOnce(&mut Target) -> R) -> R {
        let result = change(&mut self.target);
        self.apply_changes(false);
        result
    }

    /// What the owner must do next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| {
            let (controller, drain) = self.publishes.pop_first()?;
            Some(Action::Publish { controller, drain })
        })
    }

    /// The controllers there are.
    pub fn controllers(&self) -> impl Iterator<Item = (ControllerKey, &Controller)> {
        self.controllers.iter().map(|(key, controller)| (*key, controller))
    }

    /// One of them.
    pub fn controller(&self, key: ControllerKey) -> Option<&Controller> {
        self.controllers.get(&key)
    }

    /// The namespaces as the controller's I/O queues may use them. Empty if it has ended.
    pub fn table(&mut self, key: ControllerKey) -> Arc<NsTable> {
        self.tables += 1;
        let Some(controller) = self.controllers.get(&key) else { return Arc::default() };
        let Some(subsystem) = self.target.get(controller.subsystem) else {
            return Arc::default();
        };
        let listener = subsystem.listener(controller.port);
        let mut table = NsTable::make(subsystem, listener, &controller.host_id, self.tables);
        table.write_through = !controller.features.write_cache();
        Arc::new(table)
    }

    /// Tells what was moved for a subsystem since the daemon started, for the SMART log.
    pub fn set_usage(&mut self, subsystem: SubsystemId, usage: Usage) {
        self.usage.insert(subsystem, usage);
    }

    /// Commands were outstanding on its I/O queues for so long, for the SMART log.
    pub fn was_busy(&mut self, key: ControllerKey, ns: u64) {
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.busy_ns += ns;
        }
    }

    /// I/O was seen on a queue of the controller: it counts as keep-alive (CTRATT.TBKAS).
    pub fn heard(&mut self, key: ControllerKey, now_ns: u64) {
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.heard_ns = controller.heard_ns.max(now_ns);
        }
    }

    /// An I/O queue has ended: its number is free. [`Service::queue_left`] follows when its
    /// commands have ended too.
    pub fn queue_closed(&mut self, key: ControllerKey, qid: u16) {
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.forget_queue(qid);
        }
    }

    /// The admin queue's connection has gone: so does the controller.
    pub fn admin_closed(&mut self, key: ControllerKey) {
        self.end(key, "the admin queue was disconnected");
    }

    /// Ends the controllers whose time has run out. Call it a few times a second.
    pub fn tick(&mut self, now_ns: u64) {
        let expired: Vec<(ControllerKey, &'static str)> = self
            .controllers
            .iter()
            .filter_map(|(key, c)| c.expired(now_ns).map(|reason| (*key, reason)))
            .collect();
        expired.into_iter().for_each(|(key, reason)| self.end(key, reason));
        self.end_untrusted(now_ns);
        self.settle_all(now_ns);
    }

    /// Ends a controller on behalf of management.
    pub fn disconnect(&mut self, key: ControllerKey, reason: &'static str) {
        self.end(key, reason);
    }

    fn end(&mut self, key: ControllerKey, reason: &'static str) {
        self.publishes.remove(&key);
        self.kept_logs.forget(key);
        if let Some(controller) = self.controllers.remove(&key) {
            let departed = Departed::of(controller).map(|departed| (key, departed));
            self.departed.extend(departed);
            self.actions.push_back(Action::CloseController { controller: key, reason });
        }
    }

    fn end_where(&mut self, doomed: impl Fn(&Controller) -> bool, reason: &'static str) {
        let keys = self.controllers.iter().filter(|(_, c)| doomed(c)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            self.end(key, reason);
        }
    }

    pub(super) fn own(&mut self, key: ControllerKey) -> &mut Controller {
        self.controllers.get_mut(&key).expect("the caller found the controller")
    }

    pub(super) fn subsystem_of(&self, key: ControllerKey) -> Option<&Subsystem> {
        self.target.get(self.controllers.get(&key)?.subsystem)
    }

    /// The controller's queues need a new table. Asked for twice, it is handed out once.
    pub(super) fn publish(&mut self, key: ControllerKey, drain: bool) {
        *self.publishes.entry(key).or_insert(false) |= drain;
    }

    fn publish_where(&mut self, drain: bool, concerned: impl Fn(&Controller) -> bool) {
        let keys = self.controllers.iter().filter(|(_, c)| concerned(c)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            self.publish(key, drain);
        }
    }

    /// Takes the target's notes of changes to hosts, reactors and the store.
    pub(super) fn apply_changes(&mut self, drain: bool) {
        while let Some(change) = self.target.take_change() {
            match change {
                Change::Namespace(id, nsid) => {
                    self.raise_where(|c| c.subsystem == id, |c| c.events.namespace_changed(nsid));
                    self.publish_where(drain, |c| c.subsystem == id);
                }
                Change::Reservation(id, _) => self.publish_where(drain, |c| c.subsystem == id),
                Change::Persist(subsystem, nsid) => self.save(subsystem, nsid),
                Change::Ana(id, port) => {
                    let here = move |c: &Controller| c.subsystem == id && c.port == port;
                    self.raise_where(here, |c| c.events.raise(Event::AnaChanged));
                    self.publish_where(drain, here);
                }
                Change::Discovery => {
                    self.raise_where(|c| c.discovery, |c| c.events.raise(Event::DiscoveryChanged));
                }
                Change::ListenerGone(id, port) => {
                    let here = move |c: &Controller| c.subsystem == id && c.port == port;
                    self.end_where(here, "the listener was removed");
                }
                Change::HostGone(id, host) => {
                    let its = |c: &Controller| c.subsystem == id && c.host == host;
                    self.end_where(its, "the host is no longer allowed");
                }
                Change::SubsystemGone(id) => {
                    self.end_where(|c| c.subsystem == id, "the subsystem was deleted");
                    self.usage.remove(&id);
                }
            }
        }
    }

    fn save(&mut self, subsystem: SubsystemId, nsid: u32) {
        let namespace = self.target.get(subsystem).and_then(|s| s.namespace(nsid));
        let Some(namespace) = namespace else { return };
        let reservations = &namespace.reservations;
        let image = reservations.persist().then(|| reservations.to_bytes(namespace.uuid));
        self.actions.push_back(Action::Save { subsystem, nsid, image });
    }

    fn raise_where(
        &mut self,
        concerned: impl Fn(&Controller) -> bool,
        raise: impl Fn(&mut Controller),
    ) {
        let keys = self.controllers.iter().filter(|(_, c)| concerned(c)).map(|(key, _)| *key);
        for key in keys.collect::<Vec<_>>() {
            raise(self.own(key));
            self.answer_events(key);
        }
    }

    /// Answers held requests with what there is to tell.
    pub(super) fn answer_events(&mut self, key: ControllerKey) {
        let Some(controller) = self.controllers.get_mut(&key) else { return };
        while let Some((request, result)) = controller.events.next_answer() {
            let completion = completion(request.cid, Status::SUCCESS, result);
            let reply = Reply { completion, data: Vec::new() };
            self.actions.push_back(Action::Respond { controller: key, slot: request.slot, reply });
        }
    }
}
