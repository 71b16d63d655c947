//! Properties: the registers of a controller, and what writing to CC does (Base 2.1, 3.1.4).

use super::admin::completion;
use super::one::{CSTS_SHUTDOWN_MASK, SECOND_NS};
use super::quiesce::Goal;
use super::{Action, ControllerKey, Limits, Service};
use crate::wire::{Command, Completion, Status};

/// Offsets of properties.
const CAP: u32 = 0x00;
const VS: u32 = 0x08;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const NSSR: u32 = 0x20;
const CRTO: u32 = 0x68;
/// NVMe 2.1.
pub(super) const VERSION: u32 = 0x0002_0100;
/// Worst time to become ready, or not ready, in units of 500 ms: the change itself is immediate,
/// but commands in flight end first.
const READY_TIMEOUT: u64 = 30;
pub(super) const READY_TIMEOUT_NS: u64 = READY_TIMEOUT * SECOND_NS / 2;

pub(super) const CC_ENABLE: u32 = 1;
pub(super) const CC_SHUTDOWN_MASK: u32 = 3 << 14;
/// CC.CSS: the NVM command set.
const CSS_NVM: u32 = 0;
/// CC.CSS: all I/O command sets (here the same).
const CSS_ALL: u32 = 6;
/// CC.CSS: admin commands only.
const CSS_ADMIN: u32 = 7;

/// Controller Capabilities.
fn capabilities(limits: &Limits) -> u64 {
    let entries = u64::from(limits.queue_entries_max) - 1;
    let contiguous = 1 << 16;
    let command_sets = 1 << 37 | 1 << 43;
    let ready_with_media = 1 << 59;
    entries | contiguous | READY_TIMEOUT << 24 | command_sets | ready_with_media
}

impl Service {
    /// Property Get: dword 2 holds the offset, dword 0 bit 0 asks for 8 bytes.
    pub(super) fn property_get(&self, key: ControllerKey, command: &Command) -> Completion {
        let controller = &self.controllers[&key];
        let (value, size) = match command.cdw11 {
            CAP => (capabilities(&self.limits), 8),
            VS => (u64::from(VERSION), 4),
            CC => (u64::from(controller.cc), 4),
            CSTS => (u64::from(controller.csts), 4),
            NSSR => (0, 4),
            CRTO => (READY_TIMEOUT, 4),
            _ => (0, 0),
        };
        let asked = match command.cdw10 & 7 {
            0 => 4,
            1 => 8,
            _ => 0,
        };
        if asked == 0 || asked != size {
            return completion(command.cid, Status::INVALID_FIELD.dnr(), 0);
        }
        Completion { cid: command.cid, ..Completion::value64(value) }
    }

    /// Property Set: only CC (and NSSR, without effect: there is no subsystem reset) can be.
    pub(super) fn property_set(
        &mut self,
        key: ControllerKey,
        command: &Command,
        now_ns: u64,
    ) -> Completion {
        let four_bytes = command.cdw10 & 7 == 0;
        let status = match command.cdw11 {
            CC if four_bytes => self.set_cc(key, command.cdw12, now_ns),
            _ => Err(Status::INVALID_FIELD.dnr()),
        };
        completion(command.cid, status.err().unwrap_or(Status::SUCCESS), 0)
    }

    fn set_cc(&mut self, key: ControllerKey, cc: u32, now_ns: u64) -> Result<(), Status> {
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        let was = controller.cc;
        let enable = cc & CC_ENABLE != 0;
        if enable {
            check_enable(cc, controller.discovery)?;
        }
        let shut_down = controller.csts & CSTS_SHUTDOWN_MASK != 0;
        let disabling = controller.wait.is_some_and(|wait| wait.goal == Goal::Disabled);
        controller.cc = cc;
        if enable && was & CC_ENABLE == 0 && !disabling {
            self.head_for(key, Goal::Ready, now_ns);
        }
        if !enable && was & CC_ENABLE != 0 {
            let controller = self.own(key);
            controller.csts &= !CSTS_SHUTDOWN_MASK;
            controller.disabled_ns = now_ns;
            self.reset(key);
            self.head_for(key, Goal::Disabled, now_ns);
        }
        if cc & CC_SHUTDOWN_MASK != 0 && !shut_down {
            self.begin_shutdown(key, now_ns);
        }
        Ok(())
    }

    /// CC.EN went to 0: I/O queues end, held commands come back, settings are as after Connect.
    fn reset(&mut self, key: ControllerKey) {
        self.close_queues(key);
        let io_queues_max = self.limits.io_queues_max;
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        let cached = controller.features.write_cache();
        controller.features = super::features::Features::new(io_queues_max);
        for request in controller.events.reset() {
            let completion = completion(request.cid, Status::ABORTED_SQ_DELETION, 0);
            let reply = super::Reply { completion, data: Vec::new() };
            self.actions.push_back(Action::Respond { controller: key, slot: request.slot, reply });
        }
        if !cached {
            self.publish(key, false);
        }
    }

    pub(super) fn close_queues(&mut self, key: ControllerKey) {
        let controller = self.controllers.get_mut(&key).expect("the caller found it");
        for qid in std::mem::take(&mut controller.queues).into_keys() {
            controller.authentications.remove(&qid);
            self.actions.push_back(Action::CloseQueue { controller: key, qid });
        }
    }
}

/// What CC must say when EN is set: 4 KiB pages, round robin, 64- and 16-byte entries, a command
/// set there is.
fn check_enable(cc: u32, discovery: bool) -> Result<(), Status> {
    let css = cc >> 4 & 7;
    let page_size = cc >> 7 & 0xf;
    let arbitration = cc >> 11 & 7;
    let entry_sizes = (cc >> 16 & 0xf, cc >> 20 & 0xf);
    let sizes_good = entry_sizes == (6, 4) || discovery && entry_sizes == (0, 0);
    let set_known = matches!(css, CSS_NVM | CSS_ALL | CSS_ADMIN);
    if !set_known || page_size != 0 || arbitration != 0 || !sizes_good {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(())
}
