//! Get Log Page (Base 2.1, 5.1.12): which page, which part of it.

use std::borrow::Cow;

use super::page::Page;
use super::{Answer, ControllerKey, Service, features, log_ana, log_discovery};
use crate::wire::opcode::{admin, nvm};
use crate::wire::{Command, Status};

const SUPPORTED: u8 = 0x00;
const ERRORS: u8 = 0x01;
const HEALTH: u8 = 0x02;
const FIRMWARE: u8 = 0x03;
const CHANGED_NAMESPACES: u8 = 0x04;
const COMMANDS: u8 = 0x05;
const ANA: u8 = 0x0c;
const FEATURE_EFFECTS: u8 = 0x12;
const MANAGEMENT_COMMANDS: u8 = 0x13;
const DISCOVERY: u8 = 0x70;
const RESERVATION: u8 = 0x80;

/// Pages of a controller with namespaces; ANA only where it is reported.
const IO_PAGES: [u8; 10] = [
    SUPPORTED,
    ERRORS,
    HEALTH,
    FIRMWARE,
    CHANGED_NAMESPACES,
    COMMANDS,
    ANA,
    FEATURE_EFFECTS,
    MANAGEMENT_COMMANDS,
    RESERVATION,
];
/// Pages of a discovery controller.
const DISCOVERY_PAGES: [u8; 2] = [SUPPORTED, DISCOVERY];

/// Effects of a command: supported.
const CSUPP: u32 = 1;
/// It changes the content of blocks.
const LBCC: u32 = 1 << 1;

/// Bytes in a SMART data unit.
const DATA_UNIT_BYTES: u64 = 512 * 1000;
const HOUR_NS: u64 = 3600 * super::one::SECOND_NS;

impl Service {
    /// Get Log Page.
    pub(super) fn get_log_page(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
    ) -> Answer {
        match self.log_part(key, command, data_len) {
            Ok(data) => {
                self.log_was_read(key, command);
                super::admin::reply(command, Status::SUCCESS, 0, data)
            }
            Err(status) => super::admin::fail(command, status),
        }
    }

    /// The part of the page that the command asks for, zeros behind its end.
    fn log_part(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
    ) -> Result<Vec<u8>, Status> {
        let dwords = u64::from(command.cdw11 & 0xffff) << 16 | u64::from(command.cdw10 >> 16);
        let len = (dwords + 1) * 4;
        if len > u64::from(self.limits.data_bytes_max) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if len > u64::from(data_len) {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        // An index instead of an offset (OT) is for pages there are none of.
        let offset = u64::from(command.cdw13) << 32 | u64::from(command.cdw12);
        if offset % 4 != 0 || command.cdw14 & 1 << 23 != 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let kept = if offset > 0 { self.kept_logs.get(key) } else { None };
        let discovery = command.cdw10 as u8 == DISCOVERY;
        let page = match kept.filter(|_| discovery) {
            Some(page) => Cow::Borrowed(page),
            None => Cow::Owned(self.log_page(key, command)?),
        };
        let Some(rest) = usize::try_from(offset).ok().and_then(|at| page.get(at..)) else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        let mut data = vec![0; len as usize];
        let used = rest.len().min(data.len());
        data[..used].copy_from_slice(&rest[..used]);
        if let Cow::Owned(page) = page
            && discovery
            && offset == 0
        {
            self.kept_logs.keep(key, page, data.len());
        }
        Ok(data)
    }

    fn pages(&self, key: ControllerKey) -> impl Iterator<Item = u8> {
        let discovery = self.controllers[&key].discovery;
        let ana = self.subsystem_of(key).is_some_and(|s| s.spec().ana_reporting);
        let all = if discovery { &DISCOVERY_PAGES[..] } else { &IO_PAGES[..] };
        all.iter().copied().filter(move |page| *page != ANA || ana)
    }

    fn log_page(&self, key: ControllerKey, command: &Command) -> Result<Vec<u8>, Status> {
        let controller = &self.controllers[&key];
        let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
        let id = command.cdw10 as u8;
        if !self.pages(key).any(|page| page == id) {
            return Err(Status::INVALID_LOG_PAGE.dnr());
        }
        match id {
            SUPPORTED => Ok(self.supported_pages(key)),
            ERRORS => Ok(self.error_page(key)),
            HEALTH if !Service::is_global(command.nsid) => Err(Status::INVALID_FIELD.dnr()),
            HEALTH => Ok(self.health_page(key)),
            FIRMWARE => {
                let mut page = Page::new(512);
                page.u8(0, 1);
                page.text(8, 8, env!("CARGO_PKG_VERSION"));
                Ok(page.done())
            }
            CHANGED_NAMESPACES => {
                let mut page = Page::new(4096);
                let changed = controller.events.changed();
                changed.iter().enumerate().for_each(|(at, nsid)| page.u32(4 * at, *nsid));
                Ok(page.done())
            }
            COMMANDS => Ok(commands_page()),
            ANA => {
                let groups_only = command.cdw10 >> 8 & 1 != 0;
                Ok(log_ana::page(subsystem, subsystem.listener(controller.port), groups_only))
            }
            FEATURE_EFFECTS => Ok(feature_effects_page()),
            // There are no commands of the management interface.
            MANAGEMENT_COMMANDS => Ok(Page::new(4096).done()),
            DISCOVERY => {
                let entries = self.limits.admin_entries_max;
                Ok(log_discovery::page(&self.target, controller, entries))
            }
            RESERVATION => Ok(self.reservation_page(key)),
            _ => Err(Status::INVALID_LOG_PAGE.dnr()),
        }
    }

    /// What reading a page changes, unless the host asks to keep its event (RAE).
    fn log_was_read(&mut self, key: ControllerKey, command: &Command) {
        if command.cdw10 & 1 << 15 != 0 {
            return;
        }
        let events = &mut self.own(key).events;
        let id = command.cdw10 as u8;
        events.log_read(id);
        match id {
            CHANGED_NAMESPACES => events.forget_changed(),
            RESERVATION => events.forget_notice(),
            _ => {}
        }
        self.answer_events(key);
    }

    fn supported_pages(&self, key: ControllerKey) -> Vec<u8> {
        let mut page = Page::new(1024);
        self.pages(key).for_each(|id| page.u32(4 * usize::from(id), 1));
        page.done()
    }

    fn error_page(&self, key: ControllerKey) -> Vec<u8> {
        let mut page = Page::new(64 * super::one::ERRORS_MAX);
        for (at, entry) in self.controllers[&key].errors.iter().enumerate() {
            let at = 64 * at;
            page.u64(at, entry.count);
            page.u16(at + 8, entry.sqid);
            page.u16(at + 10, entry.cid);
            page.u16(at + 12, entry.status.0 << 1);
            // Which field was wrong is not recorded.
            page.u16(at + 14, 0xffff);
            page.u32(at + 24, entry.nsid);
            // TRTYPE: TCP.
            page.u8(at + 29, 3);
        }
        page.done()
    }

    fn health_page(&self, key: ControllerKey) -> Vec<u8> {
        let controller = &self.controllers[&key];
        let usage = self.usage.get(&controller.subsystem).copied().unwrap_or_default();
        let mut page = Page::new(512);
        page.u8(3, 100);
        page.u128(32, u128::from(usage.bytes_read.div_ceil(DATA_UNIT_BYTES)));
        page.u128(48, u128::from(usage.bytes_written.div_ceil(DATA_UNIT_BYTES)));
        page.u128(64, u128::from(usage.reads));
        page.u128(80, u128::from(usage.writes));
        // Whole minutes.
        page.u128(96, u128::from(controller.busy_ns / (60 * super::one::SECOND_NS)));
        page.u128(128, u128::from(controller.heard_ns.saturating_sub(self.started_ns) / HOUR_NS));
        page.u128(160, u128::from(usage.media_errors));
        page.u128(176, u128::from(controller.error_count));
        page.done()
    }

    fn reservation_page(&self, key: ControllerKey) -> Vec<u8> {
        let mut page = Page::new(64);
        let (notice, more) = self.controllers[&key].events.oldest_notice();
        if let Some(notice) = notice {
            page.u64(0, notice.count);
            page.u8(8, notice.kind as u8);
            page.u8(9, more as u8);
            page.u32(12, notice.nsid);
        }
        page.done()
    }
}

/// Commands Supported and Effects (05h).
fn commands_page() -> Vec<u8> {
    let mut page = Page::new(4096);
    let admin = [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ];
    admin.into_iter().for_each(|opcode| page.u32(4 * usize::from(opcode), CSUPP));
    let io = [
        (nvm::FLUSH, 0),
        (nvm::WRITE, LBCC),
        (nvm::READ, 0),
        (nvm::COMPARE, 0),
        (nvm::WRITE_ZEROES, LBCC),
        (nvm::DATASET_MANAGEMENT, LBCC),
        (nvm::VERIFY, 0),
        (nvm::RESERVATION_REGISTER, 0),
        (nvm::RESERVATION_REPORT, 0),
        (nvm::RESERVATION_ACQUIRE, 0),
        (nvm::RESERVATION_RELEASE, 0),
        (nvm::COPY, LBCC),
    ];
    for (opcode, effects) in io {
        page.u32(1024 + 4 * usize::from(opcode), CSUPP | effects);
    }
    page.done()
}

/// Feature Identifiers Supported and Effects (12h): supported, and the scope.
fn feature_effects_page() -> Vec<u8> {
    let mut page = Page::new(1024);
    for (id, scope, _, _) in features::FEATURES {
        let scope = match scope {
            features::Scope::Namespace => 1 << 20,
            features::Scope::Controller => 1 << 21,
        };
        page.u32(4 * usize::from(id), 1 | scope);
    }
    page.done()
}
