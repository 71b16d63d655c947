//! What each address has of the connections there may be, and which address sends garbage.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::message::ConnectionId;

/// Connections of an address that were no NVMe, in [`FORGET_NS`], before it is turned away.
const OFFENCES_MAX: u32 = 32;
/// How long an address that has gone too far is turned away, and an offence is remembered,
/// nanoseconds.
const FORGET_NS: u64 = 10_000_000_000;
/// Addresses whose offences are remembered although they have no connection.
const REMEMBERED_MAX: usize = 4096;

/// One address.
#[derive(Debug, Default)]
struct Peer {
    connections: usize,
    /// Those that have no queue yet.
    fresh: BTreeSet<ConnectionId>,
    queues: usize,
    offences: u32,
    /// When the first of them was.
    since_ns: u64,
}

/// All addresses with connections, and those with offences.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: HashMap<IpAddr, Peer>,
}

impl Peers {
    /// Connections of an address.
    pub fn connections(&self, ip: IpAddr) -> usize {
        self.peers.get(&ip).map_or(0, |peer| peer.connections)
    }

    /// The oldest connection of an address that has no queue yet, if it has `max` of them.
    pub fn oldest_fresh(&self, ip: IpAddr, max: usize) -> Option<ConnectionId> {
        let peer = self.peers.get(&ip).filter(|peer| peer.fresh.len() >= max)?;
        peer.fresh.first().copied()
    }

    /// A connection has come. A fresh one has yet to become a queue.
    pub fn came(&mut self, ip: IpAddr, id: ConnectionId, fresh: bool) {
        let peer = self.peers.entry(ip).or_default();
        peer.connections += 1;
        if fresh {
            peer.fresh.insert(id);
        }
    }

    /// A connection is a queue now: whoever has one is no scanner.
    pub fn became_queue(&mut self, ip: IpAddr, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(&ip) {
            peer.fresh.remove(&id);
            peer.queues += 1;
            peer.offences = 0;
        }
    }

    /// A connection has gone, or will not become a queue any more and is only being ended.
    pub fn not_fresh(&mut self, ip: IpAddr, id: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(&ip) {
            peer.fresh.remove(&id);
        }
    }

    /// A connection has gone.
    pub fn gone(&mut self, ip: IpAddr, id: ConnectionId, queue: bool) {
        let Some(peer) = self.peers.get_mut(&ip) else { return };
        peer.fresh.remove(&id);
        peer.connections = peer.connections.saturating_sub(1);
        peer.queues = peer.queues.saturating_sub(usize::from(queue));
        if peer.connections == 0 && peer.offences == 0 {
            self.peers.remove(&ip);
        }
    }

    /// A connection of the address was no NVMe.
    pub fn offended(&mut self, ip: IpAddr, now_ns: u64) {
        if self.peers.len() >= REMEMBERED_MAX && !self.peers.contains_key(&ip) {
            return;
        }
        let peer = self.peers.entry(ip).or_default();
        if peer.offences == 0 || now_ns.saturating_sub(peer.since_ns) > FORGET_NS {
            (peer.offences, peer.since_ns) = (0, now_ns);
        }
        peer.offences += 1;
        if peer.offences == OFFENCES_MAX {
            peer.since_ns = now_ns;
        }
    }

    /// Whether the address has sent nothing but garbage lately, and much of it.
    pub fn is_turned_away(&self, ip: IpAddr, now_ns: u64) -> bool {
        self.peers.get(&ip).is_some_and(|peer| {
            peer.queues == 0
                && peer.offences >= OFFENCES_MAX
                && now_ns.saturating_sub(peer.since_ns) <= FORGET_NS
        })
    }

    /// Forgets what is long ago.
    pub fn forget(&mut self, now_ns: u64) {
        self.peers.retain(|_, peer| {
            if peer.offences > 0 && now_ns.saturating_sub(peer.since_ns) > FORGET_NS {
                peer.offences = 0;
            }
            peer.connections > 0 || peer.offences > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SECOND: u64 = 1_000_000_000;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn an_address_of_nothing_but_garbage_is_turned_away_for_a_while() {
        let mut peers = Peers::default();
        let (bad, host) = (address(1), address(2));
        for n in 0..OFFENCES_MAX {
            assert!(!peers.is_turned_away(bad, SECOND), "after {n}");
            peers.offended(bad, SECOND);
            peers.offended(host, SECOND);
        }
        assert!(peers.is_turned_away(bad, SECOND) && !peers.is_turned_away(address(3), SECOND));
        // A host behind the same address, as behind one that translates.
        peers.came(host, ConnectionId(1), true);
        peers.became_queue(host, ConnectionId(1));
        (0..1000).for_each(|_| peers.offended(host, SECOND));
        assert!(!peers.is_turned_away(host, SECOND), "it has a queue");
        peers.forget(11 * SECOND);
        assert!(peers.is_turned_away(bad, 11 * SECOND));
        assert!(!peers.is_turned_away(bad, 12 * SECOND));
        peers.forget(12 * SECOND);
        peers.gone(host, ConnectionId(1), true);
        assert!(peers.peers.is_empty());
    }

    #[test]
    fn each_address_pays_for_its_own_silence() {
        let mut peers = Peers::default();
        (1..=8).for_each(|n| peers.came(address(1), ConnectionId(n), true));
        peers.came(address(2), ConnectionId(9), true);
        assert_eq!(peers.oldest_fresh(address(1), 8), Some(ConnectionId(1)));
        assert_eq!(peers.oldest_fresh(address(2), 8), None);
        peers.became_queue(address(1), ConnectionId(1));
        assert_eq!(peers.oldest_fresh(address(1), 8), None);
        assert_eq!(peers.connections(address(1)), 8);
    }
}
