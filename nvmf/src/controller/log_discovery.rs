//! The discovery log page (Base 2.1, 5.1.12.3.1): where a host finds what it may use.
//!
//! A host reads a long page in parts: the header with the generation first, the entries, then the
//! header again, to see whether it has changed meanwhile. All parts are of the page as it was when
//! its beginning was read, so what is put together is never half old and half new.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::ControllerKey;
use super::one::Controller;
use super::page::Page;
use crate::subsystem::{Address, Nqn, PortId, Target};

const HEADER_BYTES: usize = 1024;
const ENTRY_BYTES: usize = 1024;
/// TRTYPE: TCP.
const TCP: u8 = 3;
/// SUBTYPE: another discovery service.
const REFERRAL: u8 = 1;
/// SUBTYPE: a subsystem with namespaces.
const NVM: u8 = 2;
/// SUBTYPE: this discovery service.
const CURRENT: u8 = 3;
/// TREQ: a secure channel is required.
const SECURE_REQUIRED: u8 = 1;
/// TREQ: a secure channel is not required.
const SECURE_NOT_REQUIRED: u8 = 2;
/// TREQ: submission queue flow control can be turned off.
const FLOW_CONTROL_OPTIONAL: u8 = 1 << 2;
/// TSAS.SECTYPE: TLS 1.3.
const TLS_1_3: u8 = 2;

/// Bytes of pages kept for all hosts together. A host whose page is not kept any more gets parts of
/// the newest one; the generation tells it.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Pages that hosts have read the beginning of.
#[derive(Debug, Default)]
pub(super) struct KeptLogs {
    pages: BTreeMap<ControllerKey, Vec<u8>>,
    bytes: usize,
}

impl KeptLogs {
    /// The page as it was when the controller's host read its beginning.
    pub fn get(&self, key: ControllerKey) -> Option<&[u8]> {
        self.pages.get(&key).map(Vec::as_slice)
    }

    /// A host has read the first `read` bytes of a page.
    pub fn keep(&mut self, key: ControllerKey, page: Vec<u8>, read: usize) {
        self.forget(key);
        if read >= page.len() || page.len() > KEPT_BYTES_MAX {
            return;
        }
        self.bytes += page.len();
        self.pages.insert(key, page);
        while self.bytes > KEPT_BYTES_MAX {
            // The oldest host's; not its own, which has just come in.
            let oldest = self.pages.keys().find(|other| **other != key).copied();
            self.forget(oldest.expect("one page fits"));
        }
    }

    /// The controller has ended.
    pub fn forget(&mut self, key: ControllerKey) {
        if let Some(page) = self.pages.remove(&key) {
            self.bytes -= page.len();
        }
    }
}

/// One entry, before it is written.
struct Entry<'a> {
    subtype: u8,
    nqn: &'a Nqn,
    port: PortId,
    traddr: IpAddr,
    trsvcid: u16,
    secure: bool,
}

/// The page as this controller's host may see it.
pub(super) fn page(target: &Target, controller: &Controller, admin_entries_max: u16) -> Vec<u8> {
    let mut entries = Vec::new();
    for (_, subsystem) in target.subsystems().filter(|(_, s)| s.allows(&controller.host)) {
        let subtype = if subsystem.is_discovery() { CURRENT } else { NVM };
        for listener in subsystem.listeners() {
            let Some(address) = target.port(listener.port) else { continue };
            entries.push(Entry {
                subtype,
                nqn: subsystem.nqn(),
                port: listener.port,
                traddr: reachable(address, controller.local),
                trsvcid: address.trsvcid,
                secure: listener.secure,
            });
        }
    }
    for referral in target.referrals() {
        entries.push(Entry {
            subtype: REFERRAL,
            nqn: &referral.nqn,
            port: PortId(0),
            traddr: referral.address.traddr,
            trsvcid: referral.address.trsvcid,
            secure: referral.secure,
        });
    }
    let mut page = Page::new(HEADER_BYTES + ENTRY_BYTES * entries.len());
    page.u64(0, target.discovery_generation());
    page.u64(8, entries.len() as u64);
    for (at, entry) in entries.iter().enumerate() {
        let start = HEADER_BYTES + ENTRY_BYTES * at;
        write(&mut page, start, entry);
        // ASQSZ.
        page.u16(start + 8, admin_entries_max);
    }
    page.done()
}

/// A port on all addresses is shown as the one the host came in by.
fn reachable(address: &Address, local: IpAddr) -> IpAddr {
    if address.traddr.is_unspecified() { local } else { address.traddr }
}

fn write(page: &mut Page, at: usize, entry: &Entry<'_>) {
    let channel = if entry.secure { SECURE_REQUIRED } else { SECURE_NOT_REQUIRED };
    page.u8(at, TCP);
    page.u8(at + 1, if entry.traddr.is_ipv4() { 1 } else { 2 });
    page.u8(at + 2, entry.subtype);
    page.u8(at + 3, channel | FLOW_CONTROL_OPTIONAL);
    page.u16(at + 4, entry.port.0);
    // CNTLID: dynamic.
    page.u16(at + 6, 0xffff);
    page.text(at + 32, 32, &entry.trsvcid.to_string());
    page.put(at + 256, entry.nqn.as_str().as_bytes());
    page.text(at + 512, 256, &entry.traddr.to_string());
    page.u8(at + 768, if entry.secure { TLS_1_3 } else { 0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_kept_are_bounded() {
        let mut kept = KeptLogs::default();
        let key = |n| ControllerKey(n);
        for n in 0..100 {
            kept.keep(key(n), vec![n as u8; 1 << 20], 16);
        }
        assert_eq!((kept.pages.len(), kept.bytes), (16, KEPT_BYTES_MAX));
        assert_eq!((kept.get(key(83)), kept.get(key(99)).map(|p| p[0])), (None, Some(99)));
        kept.keep(key(99), vec![1; 2048], 2048);
        assert_eq!(kept.get(key(99)), None, "it was read as a whole");
        kept.keep(key(0), vec![0; 1 << 20], 16);
        assert!(kept.get(key(0)).is_some(), "the newest is not the one that goes");
        (0..100).for_each(|n| kept.forget(key(n)));
        assert_eq!(kept.bytes, 0);
    }
}
