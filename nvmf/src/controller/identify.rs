//! Identify (Base 2.1, 5.1.13): the controller, and lists.

use super::events::{CONFIG_DISCOVERY, CONFIG_IO, REQUESTS_MAX};
use super::features::KEEP_ALIVE_GRANULARITY_MS;
use super::one::ERRORS_MAX;
use super::page::Page;
use super::property::VERSION;
use super::{Answer, ControllerKey, Service};
use crate::subsystem::Subsystem;
use crate::wire::{Command, Status};

/// Bytes of every Identify data structure.
pub(super) const IDENTIFY_BYTES: usize = 4096;
/// Entries of a list of namespaces.
const NSID_LIST_MAX: usize = 1024;
/// Entries of a list of controllers.
const CNTLID_LIST_MAX: usize = 2047;
/// Command Set Identifier of the NVM command set.
pub(super) const CSI_NVM: u32 = 0;
/// Worst time an ANA group stays in the state Change, seconds (ANATT).
const ANA_TRANSITION_S: u8 = 10;

/// ONCS: Compare, Dataset Management, Write Zeroes, select in features, reservations, Verify, Copy.
const ONCS: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8;
/// LPA: commands and effects, extended offsets, list of log pages and features' effects.
const LPA: u8 = 1 << 1 | 1 << 2 | 1 << 5;
/// SGLS: supported without alignment, offsets in capsules, transport data blocks.
const SGLS: u32 = 1 | 1 << 20 | 1 << 21;
/// CTRATT: 128-bit host identifiers, traffic counts as keep-alive.
const CTRATT: u32 = 1 << 0 | 1 << 6;
/// VWC: there is a volatile cache, and Flush takes "all namespaces".
const VWC: u8 = 1 | 0b11 << 1;
/// ANACAP: all five states.
const ANACAP: u8 = 0x1f;

impl Service {
    /// Identify.
    pub(super) fn identify(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
    ) -> Answer {
        if (data_len as usize) < IDENTIFY_BYTES {
            return super::admin::fail(command, Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        match self.identify_data(key, command) {
            Ok(data) => {
                assert!(data.len() == IDENTIFY_BYTES, "every structure has this size");
                super::admin::reply(command, Status::SUCCESS, 0, data)
            }
            Err(status) => super::admin::fail(command, status),
        }
    }

    fn identify_data(&self, key: ControllerKey, command: &Command) -> Result<Vec<u8>, Status> {
        let controller = &self.controllers[&key];
        let cns = command.cdw10 as u8;
        let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
        if cns == 0x01 {
            return Ok(self.identify_controller(key, subsystem));
        }
        if controller.discovery {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let nsid = command.nsid;
        let csi = command.cdw11 >> 24;
        let from = (command.cdw10 >> 16) as u16;
        let listener = subsystem.listener(controller.port);
        let nvm_only = if csi == CSI_NVM { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) };
        match cns {
            0x00 | 0x11 => super::identify_ns::namespace(subsystem, listener, nsid),
            0x02 | 0x10 => nsid_list(subsystem, nsid),
            0x03 => super::identify_ns::descriptors(subsystem, nsid),
            0x05 => nvm_only.and_then(|()| super::identify_ns::nvm(subsystem, nsid)),
            0x06 => nvm_only.map(|()| Page::new(IDENTIFY_BYTES).done()),
            0x07 | 0x1a => nvm_only.and_then(|()| nsid_list(subsystem, nsid)),
            0x08 => super::identify_ns::independent(subsystem, nsid),
            0x12 => match subsystem.namespace(nsid) {
                Some(_) => Ok(self.cntlid_list(key, from)),
                None => Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr()),
            },
            0x13 => Ok(self.cntlid_list(key, from)),
            0x1c => {
                if from != 0xffff && from != controller.cntlid {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                // One combination of command sets: just NVM.
                let mut page = Page::new(IDENTIFY_BYTES);
                page.u64(0, 1 << CSI_NVM);
                Ok(page.done())
            }
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    /// Identify Controller.
    fn identify_controller(&self, key: ControllerKey, subsystem: &Subsystem) -> Vec<u8> {
        let controller = &self.controllers[&key];
        let spec = subsystem.spec();
        let discovery = controller.discovery;
        let mut page = Page::new(IDENTIFY_BYTES);
        page.text(4, 20, &spec.serial);
        page.text(24, 40, &spec.model);
        page.text(64, 8, env!("CARGO_PKG_VERSION"));
        page.u8(72, 6);
        page.u8(77, self.mdts());
        page.u16(78, controller.cntlid);
        page.u32(80, VERSION);
        page.u32(92, if discovery { CONFIG_DISCOVERY } else { oaes(spec.ana_reporting) });
        page.u32(96, CTRATT);
        page.u8(111, if discovery { 2 } else { 1 });
        page.u8(259, REQUESTS_MAX as u8 - 1);
        page.u8(261, if discovery { 1 << 2 } else { LPA });
        page.u8(262, ERRORS_MAX as u8 - 1);
        page.u16(320, (KEEP_ALIVE_GRANULARITY_MS / 100) as u16);
        page.u16(514, self.limits.queue_entries_max);
        page.u32(536, SGLS);
        page.put(768, subsystem.nqn().as_str().as_bytes());
        if discovery {
            return page.done();
        }
        // CMIC: several ports, several controllers, ANA.
        page.u8(76, 0b011 | u8::from(spec.ana_reporting) << 3);
        page.u8(258, 3);
        // FRMW: one slot, read-only.
        page.u8(260, 1 << 1 | 1);
        if spec.ana_reporting {
            page.u8(342, ANA_TRANSITION_S);
            page.u8(343, ANACAP);
            page.u32(344, spec.ana_groups());
            page.u32(348, spec.ana_groups());
        }
        page.u8(512, 0x66);
        page.u8(513, 0x44);
        page.u32(516, spec.max_namespaces);
        page.u16(520, ONCS);
        page.u16(522, 1);
        page.u8(525, VWC);
        // AWUN, AWUPF, ACWU hold for every namespace, 512-byte blocks too, so they are one block;
        // Identify Namespace has the true ones. CDFS: Copy format 0.
        page.u16(534, 1);
        page.u32(540, spec.max_namespaces);
        page.u32(1792, (64 + self.limits.in_capsule_bytes) / 16);
        page.u32(1796, 1);
        page.u8(1803, 1);
        // OFCS: Disconnect.
        page.u16(1804, 1);
        page.done()
    }

    /// MDTS: a power of two of 4 KiB.
    fn mdts(&self) -> u8 {
        (self.limits.data_bytes_max / 4096).trailing_zeros() as u8
    }

    /// Controllers of the subsystem from a number on.
    fn cntlid_list(&self, key: ControllerKey, from: u16) -> Vec<u8> {
        let id = self.controllers[&key].subsystem;
        let of = self.controllers.values().filter(|c| c.subsystem == id && c.cntlid >= from);
        let mut ids: Vec<u16> = of.map(|c| c.cntlid).collect();
        ids.sort_unstable();
        ids.truncate(CNTLID_LIST_MAX);
        let mut page = Page::new(IDENTIFY_BYTES);
        page.u16(0, ids.len() as u16);
        ids.iter().enumerate().for_each(|(at, id)| page.u16(2 + 2 * at, *id));
        page.done()
    }
}

/// OAES of a controller with namespaces.
fn oaes(ana_reporting: bool) -> u32 {
    if ana_reporting { CONFIG_IO } else { 1 << 8 }
}

/// Active namespaces after `nsid`.
fn nsid_list(subsystem: &Subsystem, nsid: u32) -> Result<Vec<u8>, Status> {
    if nsid >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.dnr());
    }
    let mut page = Page::new(IDENTIFY_BYTES);
    let after = subsystem.namespaces().filter(|n| n.nsid > nsid).take(NSID_LIST_MAX);
    after.enumerate().for_each(|(at, n)| page.u32(4 * at, n.nsid));
    Ok(page.done())
}
