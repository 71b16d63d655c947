//! The discovery log page (Base 2.1, 5.1.12.3.1): where a host finds what it may use.

use std::net::IpAddr;

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
