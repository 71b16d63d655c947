//! Get and Set Features (Base 2.1, 5.1.12 and 5.1.25; NVM 1.1, 4.1.3).

use std::collections::BTreeMap;

use super::events::{CONFIG_DISCOVERY, CONFIG_IO};
use super::{Answer, ControllerKey, Service};
use crate::io::NSID_ALL;
use crate::wire::{Command, Status};

/// Keep-alive granularity, milliseconds (KAS is in units of 100 ms).
pub(super) const KEEP_ALIVE_GRANULARITY_MS: u32 = 1000;

const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const VOLATILE_WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const WRITE_ATOMICITY: u8 = 0x0a;
const ASYNC_EVENTS: u8 = 0x0b;
const KEEP_ALIVE: u8 = 0x0f;
const COMMAND_SET_PROFILE: u8 = 0x19;
const HOST_IDENTIFIER: u8 = 0x81;
const RESERVATION_MASK: u8 = 0x82;
const RESERVATION_PERSISTENCE: u8 = 0x83;

/// Reservation Notification Mask: bits 1 to 3.
const RESERVATION_MASK_BITS: u32 = 0b1110;
/// Capability bits of SEL = 3.
const CHANGEABLE: u32 = 1 << 2;
const PER_NAMESPACE: u32 = 1 << 1;

/// How far a feature reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Controller,
    Namespace,
}

/// Every feature there is: identifier, scope, whether Set Features may change it, whether a
/// discovery controller has it.
pub(super) const FEATURES: [(u8, Scope, bool, bool); 13] = [
    (ARBITRATION, Scope::Controller, true, false),
    (POWER_MANAGEMENT, Scope::Controller, true, false),
    (TEMPERATURE_THRESHOLD, Scope::Controller, true, false),
    (ERROR_RECOVERY, Scope::Namespace, true, false),
    (VOLATILE_WRITE_CACHE, Scope::Controller, true, false),
    (NUMBER_OF_QUEUES, Scope::Controller, true, false),
    (WRITE_ATOMICITY, Scope::Controller, true, false),
    (ASYNC_EVENTS, Scope::Controller, true, true),
    (KEEP_ALIVE, Scope::Controller, true, true),
    (COMMAND_SET_PROFILE, Scope::Controller, true, false),
    (HOST_IDENTIFIER, Scope::Controller, false, false),
    (RESERVATION_MASK, Scope::Namespace, true, false),
    (RESERVATION_PERSISTENCE, Scope::Namespace, true, false),
];

/// A keep-alive timeout rounded up to the granularity; 0 stays 0, which is off.
pub(super) fn round_kato(ms: u32) -> u32 {
    let unit = u64::from(KEEP_ALIVE_GRANULARITY_MS);
    let rounded = u64::from(ms).div_ceil(unit) * unit;
    u32::try_from(rounded)
        .unwrap_or(u32::MAX / KEEP_ALIVE_GRANULARITY_MS * KEEP_ALIVE_GRANULARITY_MS)
}

/// Values a host can set on its controller.
#[derive(Clone, Debug)]
pub(super) struct Features {
    arbitration: u32,
    /// By threshold selector: over or under, sensor.
    temperatures: BTreeMap<u32, u32>,
    /// By namespace.
    error_recovery: BTreeMap<u32, u32>,
    write_cache: bool,
    io_queues: u16,
    write_atomicity: u32,
    /// By namespace.
    reservation_masks: BTreeMap<u32, u32>,
}

impl Features {
    pub fn new(io_queues: u16) -> Features {
        Features {
            arbitration: 0,
            temperatures: BTreeMap::new(),
            error_recovery: BTreeMap::new(),
            write_cache: true,
            io_queues,
            write_atomicity: 0,
            reservation_masks: BTreeMap::new(),
        }
    }

    /// I/O queues the host may connect.
    pub fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// False: every write is durable before it is answered.
    pub fn write_cache(&self) -> bool {
        self.write_cache
    }

    /// Whether a reservation notice of that kind is masked.
    pub fn notice_masked(&self, nsid: u32, kind: crate::reservation::NoticeKind) -> bool {
        self.reservation_masks.get(&nsid).is_some_and(|mask| mask & 1 << kind as u32 != 0)
    }

    fn temperature(&self, selector: u32) -> u32 {
        let default = if selector >> 4 & 3 == 0 { 0xffff } else { 0 };
        self.temperatures.get(&selector).copied().unwrap_or(default)
    }
}

/// The row of a feature, if this kind of controller has it.
fn row(fid: u8, discovery: bool) -> Result<(Scope, bool), Status> {
    let found = FEATURES.iter().find(|f| f.0 == fid && (f.3 || !discovery));
    found.map(|f| (f.1, f.2)).ok_or(Status::INVALID_FIELD.dnr())
}

impl Service {
    /// Get Features.
    pub(super) fn get_features(
        &mut self,
        key: ControllerKey,
        command: &Command,
        data_len: u32,
    ) -> Answer {
        match self.feature(key, command) {
            Ok((_, data)) if data.len() > data_len as usize => {
                super::admin::fail(command, Status::DATA_SGL_LENGTH_INVALID.dnr())
            }
            Ok((value, data)) => super::admin::reply(command, Status::SUCCESS, value, data),
            Err(status) => super::admin::fail(command, status),
        }
    }

    fn feature(&self, key: ControllerKey, command: &Command) -> Result<(u32, Vec<u8>), Status> {
        let controller = &self.controllers[&key];
        let fid = command.cdw10 as u8;
        let (scope, changeable) = row(fid, controller.discovery)?;
        let default = match command.cdw10 >> 8 & 7 {
            0 => false,
            // Nothing is saved over a reset, so the saved value is the default.
            1 | 2 => true,
            3 => {
                let per_namespace = if scope == Scope::Namespace { PER_NAMESPACE } else { 0 };
                return Ok((per_namespace | if changeable { CHANGEABLE } else { 0 }, Vec::new()));
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        let fresh = Features::new(self.limits.io_queues_max);
        let features = if default { &fresh } else { &controller.features };
        let value = match fid {
            ARBITRATION => features.arbitration,
            POWER_MANAGEMENT | COMMAND_SET_PROFILE => 0,
            TEMPERATURE_THRESHOLD => {
                let selector = command.cdw11 >> 16 & 0x3f;
                if selector & 0xf != 0 || selector >> 4 > 1 {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                features.temperature(selector)
            }
            ERROR_RECOVERY => {
                self.feature_namespace(key, command.nsid)?;
                features.error_recovery.get(&command.nsid).copied().unwrap_or(0)
            }
            VOLATILE_WRITE_CACHE => u32::from(features.write_cache),
            NUMBER_OF_QUEUES => {
                let zero_based = u32::from(features.io_queues) - 1;
                zero_based << 16 | zero_based
            }
            WRITE_ATOMICITY => features.write_atomicity,
            ASYNC_EVENTS if default => controller.events.config_default(),
            ASYNC_EVENTS => controller.events.config,
            KEEP_ALIVE if default => 0,
            KEEP_ALIVE => controller.kato_ms,
            HOST_IDENTIFIER => {
                // Over fabrics it is always the long form (EXHID).
                if command.cdw11 & 1 == 0 {
                    return Err(Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT.dnr());
                }
                return Ok((0, controller.host_id.to_vec()));
            }
            RESERVATION_MASK => {
                self.feature_namespace(key, command.nsid)?;
                features.reservation_masks.get(&command.nsid).copied().unwrap_or(0)
            }
            RESERVATION_PERSISTENCE => {
                let namespace = self.feature_namespace(key, command.nsid)?;
                u32::from(!default && namespace.reservations.persist())
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        Ok((value, Vec::new()))
    }

    /// The namespace a feature is asked for.
    fn feature_namespace(
        &self,
        key: ControllerKey,
        nsid: u32,
    ) -> Result<&crate::subsystem::Namespace, Status> {
        let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
        subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.dnr())
    }

    /// Set Features.
    pub(super) fn set_features(&mut self, key: ControllerKey, command: &Command) -> Answer {
        match self.change_feature(key, command) {
            Ok((result, false)) => super::admin::reply(command, Status::SUCCESS, result, vec![]),
            Ok((result, true)) => {
                Answer::ReplyAfterActions(super::admin::plain(command, Status::SUCCESS, result))
            }
            Err(status) => super::admin::fail(command, status),
        }
    }

    /// Dword 0 of the answer, and whether it must wait for the actions.
    fn change_feature(
        &mut self,
        key: ControllerKey,
        command: &Command,
    ) -> Result<(u32, bool), Status> {
        let fid = command.cdw10 as u8;
        let controller = &self.controllers[&key];
        let (scope, changeable) = row(fid, controller.discovery)?;
        if command.cdw10 & 1 << 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        if !changeable {
            return Err(match fid {
                // Set by Connect; too late now (Base 2.1, 5.1.25.1.22).
                HOST_IDENTIFIER => Status::COMMAND_SEQUENCE_ERROR.dnr(),
                _ => Status::FEATURE_NOT_CHANGEABLE.dnr(),
            });
        }
        if scope == Scope::Controller && !matches!(command.nsid, 0 | NSID_ALL) {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
        }
        match fid {
            ERROR_RECOVERY | RESERVATION_MASK | RESERVATION_PERSISTENCE => {
                self.change_namespace_feature(key, fid, command)
            }
            VOLATILE_WRITE_CACHE => {
                let controller = self.own(key);
                let cached = command.cdw11 & 1 != 0;
                let changed = std::mem::replace(&mut controller.features.write_cache, cached);
                if changed != cached {
                    self.publish(key, false);
                }
                Ok((0, changed != cached))
            }
            _ => self.change_controller_feature(key, fid, command).map(|result| (result, false)),
        }
    }

    fn change_controller_feature(
        &mut self,
        key: ControllerKey,
        fid: u8,
        command: &Command,
    ) -> Result<u32, Status> {
        let io_queues_max = self.limits.io_queues_max;
        let controller = self.own(key);
        let value = command.cdw11;
        match fid {
            ARBITRATION => controller.features.arbitration = value,
            // One power state, number 0; workload hints are free.
            POWER_MANAGEMENT if value & 0x1f == 0 => {}
            // One command set, so one combination of them.
            COMMAND_SET_PROFILE if value & 0x1ff == 0 => {}
            TEMPERATURE_THRESHOLD => {
                let selector = value >> 16 & 0x3f;
                let all = selector & 0xf == 0xf;
                if (selector & 0xf != 0 && !all) || selector >> 4 > 1 {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                controller.features.temperatures.insert(selector & !0xf, value & 0xffff);
            }
            NUMBER_OF_QUEUES => {
                if !controller.queues.is_empty() {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
                }
                let (submission, completion) = (value as u16, (value >> 16) as u16);
                if submission == u16::MAX || completion == u16::MAX {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                // A queue here is always a pair.
                let granted = submission.min(completion).min(io_queues_max - 1);
                controller.features.io_queues = granted + 1;
                return Ok(u32::from(granted) << 16 | u32::from(granted));
            }
            WRITE_ATOMICITY => controller.features.write_atomicity = value & 1,
            ASYNC_EVENTS => {
                // Critical-warning bits (0 to 7) are accepted: nothing here ever warns.
                let known = if controller.discovery { CONFIG_DISCOVERY } else { CONFIG_IO };
                controller.events.config = value & (known | 0xff);
            }
            KEEP_ALIVE => {
                // TCP needs the timer, so it cannot be turned off afterwards.
                if value == 0 {
                    return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr());
                }
                controller.kato_ms = round_kato(value);
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(0)
    }

    fn change_namespace_feature(
        &mut self,
        key: ControllerKey,
        fid: u8,
        command: &Command,
    ) -> Result<(u32, bool), Status> {
        let nsids: Vec<u32> = match command.nsid {
            NSID_ALL if fid != RESERVATION_PERSISTENCE => {
                let subsystem = self.subsystem_of(key).ok_or(Status::INTERNAL_ERROR)?;
                subsystem.namespaces().map(|n| n.nsid).collect()
            }
            nsid => vec![self.feature_namespace(key, nsid)?.nsid],
        };
        match fid {
            ERROR_RECOVERY => {
                // Reads of deallocated blocks succeed (DULBE is not offered).
                if command.cdw11 & 1 << 16 != 0 {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                let set = &mut self.own(key).features.error_recovery;
                set.extend(nsids.into_iter().map(|nsid| (nsid, command.cdw11 & 0xffff)));
                Ok((0, false))
            }
            RESERVATION_MASK => {
                let mask = command.cdw11 & RESERVATION_MASK_BITS;
                let set = &mut self.own(key).features.reservation_masks;
                set.extend(nsids.into_iter().map(|nsid| (nsid, mask)));
                Ok((0, false))
            }
            _ => {
                let id = self.controllers[&key].subsystem;
                let namespace = self.target.namespace_mut(id, nsids[0]).expect("just found");
                let persist = command.cdw11 & 1 != 0;
                let reservations = &mut namespace.reservations;
                // Persistence belongs to a registrant's reservation (Base 2.1, 5.1.25.1.24).
                let changed = reservations.persist() != persist;
                reservations.set_persist(persist);
                if changed {
                    self.target.reservations_changed(id, nsids[0], true);
                    self.apply_changes(false);
                }
                Ok((0, changed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_is_rounded_up_to_the_granularity() {
        let rounded = [0, 1, 999, 1000, 1001, 120_000, u32::MAX].map(round_kato);
        assert_eq!(rounded, [0, 1000, 1000, 1000, 2000, 120_000, 4_294_967_000]);
    }
}
