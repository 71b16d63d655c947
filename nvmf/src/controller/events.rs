//! Asynchronous events (Base 2.1, 5.2.2): what a controller has to tell, and the requests it may
//! answer with.
//!
//! ```text
//!  raise(event) ─ enabled? ─► pending ─ a request is held ─► answered, masked
//!                                           Get Log Page (RAE = 0) ──► unmasked
//! ```

use std::collections::{BTreeSet, VecDeque};

use crate::SlotId;
use crate::reservation::NoticeKind;

/// Requests held at the same time (AERL is one less).
pub(super) const REQUESTS_MAX: usize = 4;
/// Changed namespaces listed one by one; more are "many" (log page 04h).
pub(super) const CHANGED_MAX: usize = 1024;
/// Reservation notices kept.
pub(super) const NOTICES_MAX: usize = 64;

/// Asynchronous Event Configuration bits a namespaces' controller can set.
pub(super) const CONFIG_IO: u32 = 1 << 8 | 1 << 11;
/// Those of a discovery controller.
pub(super) const CONFIG_DISCOVERY: u32 = 1 << 31;

/// An event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Log page 04h has something.
    NamespaceChanged,
    /// Log page 0Ch is different.
    AnaChanged,
    /// Log page 80h has something.
    ReservationNotice,
    /// Log page 70h is different.
    DiscoveryChanged,
}

const ALL: [Event; 4] =
    [Event::NamespaceChanged, Event::AnaChanged, Event::ReservationNotice, Event::DiscoveryChanged];

impl Event {
    /// Dword 0 of the answer: type, information, log page.
    fn result(self) -> u32 {
        match self {
            Event::NamespaceChanged => 0x04_00_02,
            Event::AnaChanged => 0x0c_03_02,
            Event::ReservationNotice => 0x80_00_06,
            Event::DiscoveryChanged => 0x70_f0_02,
        }
    }

    /// The log page that explains it.
    fn log_page(self) -> u8 {
        (self.result() >> 16) as u8
    }

    /// The configuration bit that enables it; 0: always enabled.
    fn config_bit(self) -> u32 {
        match self {
            Event::NamespaceChanged => 1 << 8,
            Event::AnaChanged => 1 << 11,
            Event::ReservationNotice => 0,
            Event::DiscoveryChanged => 1 << 31,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A held Asynchronous Event Request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub slot: SlotId,
    pub cid: u16,
}

/// A notice of log page 80h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReservationNotice {
    pub count: u64,
    pub kind: NoticeKind,
    pub nsid: u32,
}

/// The events of one controller.
#[derive(Debug)]
pub(super) struct Events {
    requests: VecDeque<Request>,
    /// To be told.
    pending: u8,
    /// Told, and the log page not read since.
    masked: u8,
    /// Asynchronous Event Configuration.
    pub config: u32,
    config_default: u32,
    /// For log page 04h.
    changed: BTreeSet<u32>,
    changed_many: bool,
    notices: VecDeque<ReservationNotice>,
    notice_count: u64,
}

impl Events {
    pub fn new(discovery: bool, ana_reporting: bool) -> Events {
        let config = match (discovery, ana_reporting) {
            (true, _) => CONFIG_DISCOVERY,
            (false, true) => CONFIG_IO,
            (false, false) => 1 << 8,
        };
        Events {
            requests: VecDeque::with_capacity(REQUESTS_MAX),
            pending: 0,
            masked: 0,
            config,
            config_default: config,
            changed: BTreeSet::new(),
            changed_many: false,
            notices: VecDeque::new(),
            notice_count: 0,
        }
    }

    pub fn config_default(&self) -> u32 {
        self.config_default
    }

    /// Holds a request; false if there are too many.
    pub fn hold(&mut self, request: Request) -> bool {
        if self.requests.len() >= REQUESTS_MAX {
            return false;
        }
        self.requests.push_back(request);
        true
    }

    /// Takes a held request back, for Abort.
    pub fn take_request(&mut self, cid: u16) -> Option<Request> {
        let at = self.requests.iter().position(|r| r.cid == cid)?;
        self.requests.remove(at)
    }

    /// A reset: all requests end, everything is as after Connect.
    pub fn reset(&mut self) -> Vec<Request> {
        let requests = self.requests.drain(..).collect();
        self.pending = 0;
        self.masked = 0;
        self.config = self.config_default;
        self.changed.clear();
        self.changed_many = false;
        self.notices.clear();
        requests
    }

    /// Something happened.
    pub fn raise(&mut self, event: Event) {
        let bit = event.config_bit();
        let enabled = bit == 0 || self.config & bit != 0;
        if enabled && self.masked & event.bit() == 0 {
            self.pending |= event.bit();
        }
    }

    /// The next answer: a request and its dword 0.
    pub fn next_answer(&mut self) -> Option<(Request, u32)> {
        let event = ALL.into_iter().find(|e| self.pending & e.bit() != 0)?;
        let request = self.requests.pop_front()?;
        self.pending &= !event.bit();
        self.masked |= event.bit();
        Some((request, event.result()))
    }

    /// A log page was read with RAE cleared: its event may be told again.
    pub fn log_read(&mut self, log_page: u8) {
        for event in ALL.into_iter().filter(|e| e.log_page() == log_page) {
            self.masked &= !event.bit();
            self.pending &= !event.bit();
        }
    }

    /// A namespace changed.
    pub fn namespace_changed(&mut self, nsid: u32) {
        if self.changed.len() >= CHANGED_MAX && !self.changed.contains(&nsid) {
            self.changed_many = true;
        } else {
            self.changed.insert(nsid);
        }
        self.raise(Event::NamespaceChanged);
    }

    /// Log page 04h: the numbers, or one ffffffffh for too many.
    pub fn changed(&self) -> Vec<u32> {
        match self.changed_many {
            true => vec![u32::MAX],
            false => self.changed.iter().copied().collect(),
        }
    }

    /// Log page 04h has been read.
    pub fn forget_changed(&mut self) {
        self.changed.clear();
        self.changed_many = false;
    }

    /// A reservation notice for this host.
    pub fn reservation_notice(&mut self, kind: NoticeKind, nsid: u32) {
        if self.notices.len() == NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notice_count += 1;
        self.notices.push_back(ReservationNotice { count: self.notice_count, kind, nsid });
        self.raise(Event::ReservationNotice);
    }

    /// Log page 80h: the oldest notice, and how many come after it.
    pub fn oldest_notice(&self) -> (Option<ReservationNotice>, usize) {
        (self.notices.front().copied(), self.notices.len().saturating_sub(1))
    }

    /// The oldest notice has been read; if more are left they are told of again.
    pub fn forget_notice(&mut self) {
        self.notices.pop_front();
        if !self.notices.is_empty() {
            self.raise(Event::ReservationNotice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cid: u16) -> Request {
        Request { slot: SlotId(cid), cid }
    }

    #[test]
    fn an_event_is_told_once_until_its_log_is_read() {
        let mut events = Events::new(false, true);
        events.namespace_changed(3);
        assert_eq!(events.next_answer(), None, "no request is held");
        assert!(events.hold(request(1)) && events.hold(request(2)));
        assert_eq!(events.next_answer(), Some((request(1), 0x040002)));
        events.namespace_changed(4);
        assert_eq!(events.next_answer(), None, "masked");
        assert_eq!(events.changed(), [3, 4]);
        events.log_read(0x04);
        events.forget_changed();
        events.namespace_changed(5);
        assert_eq!(events.next_answer(), Some((request(2), 0x040002)));
    }

    #[test]
    fn events_that_are_not_configured_are_not_told() {
        let mut events = Events::new(false, true);
        events.config = 0;
        assert!(events.hold(request(1)));
        events.raise(Event::AnaChanged);
        events.raise(Event::DiscoveryChanged);
        events.namespace_changed(1);
        assert_eq!(events.next_answer(), None);
        assert_eq!(events.changed(), [1], "the log is kept all the same");
    }

    #[test]
    fn requests_are_bounded_and_come_back_at_a_reset() {
        let mut events = Events::new(true, false);
        assert!((0..4).all(|cid| events.hold(request(cid))));
        assert!(!events.hold(request(4)));
        assert_eq!(events.take_request(2), Some(request(2)));
        assert_eq!(events.reset().len(), 3);
    }

    #[test]
    fn too_many_changed_namespaces_become_one_entry() {
        let mut events = Events::new(false, false);
        (1..=1024).for_each(|nsid| events.namespace_changed(nsid));
        assert_eq!(events.changed().len(), 1024);
        events.namespace_changed(1024);
        assert_eq!(events.changed().len(), 1024);
        events.namespace_changed(1025);
        assert_eq!(events.changed(), [u32::MAX]);
    }
}
