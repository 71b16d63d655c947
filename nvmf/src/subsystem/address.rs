//! Where subsystems are reached: transport addresses, listeners and their ANA states.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lamina_bdev::{Error, ErrorKind};

/// Names one listening address for as long as the daemon runs; the discovery log's PORTID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PortId(pub u16);

/// A TCP address as management and discovery speak of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// IPv4 or IPv6 address, without brackets.
    pub traddr: IpAddr,
    /// TCP port.
    pub trsvcid: u16,
}

impl Address {
    /// Reads the two texts of a management call. `adrfam` must agree with the address if given.
    pub fn parse(adrfam: Option<&str>, traddr: &str, trsvcid: &str) -> Result<Address, Error> {
        let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
        let ip: IpAddr = traddr
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(|_| invalid(format!("traddr '{traddr}' is neither IPv4 nor IPv6")))?;
        let port = match trsvcid.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => return Err(invalid(format!("trsvcid '{trsvcid}' is no TCP port (1 to 65535)"))),
        };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        match adrfam {
            Some(given) if !given.eq_ignore_ascii_case(family) => {
                Err(invalid(format!("traddr '{traddr}' is {family}, adrfam says '{given}'")))
            }
            _ => Ok(Address { traddr: ip, trsvcid: port }),
        }
    }

    /// For `bind` and `connect`.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.traddr, self.trsvcid)
    }

    /// "IPv4" or "IPv6".
    pub fn adrfam(&self) -> &'static str {
        if self.traddr.is_ipv4() { "IPv4" } else { "IPv6" }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.socket())
    }
}

/// Asymmetric namespace access state (Base 2.1, 8.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum AnaState {
    /// The path to prefer.
    #[default]
    Optimized = 1,
    /// Works, others are better.
    NonOptimized = 2,
    /// No I/O on this path for now.
    Inaccessible = 3,
    /// No I/O on this path, ever again.
    PersistentLoss = 4,
    /// Between two states: come back within ANATT.
    Change = 15,
}

impl AnaState {
    /// The name management uses.
    pub fn name(self) -> &'static str {
        match self {
            AnaState::Optimized => "optimized",
            AnaState::NonOptimized => "non_optimized",
            AnaState::Inaccessible => "inaccessible",
            AnaState::PersistentLoss => "persistent_loss",
            AnaState::Change => "change",
        }
    }

    /// The state of that name.
    pub fn parse(text: &str) -> Option<AnaState> {
        let all = [
            AnaState::Optimized,
            AnaState::NonOptimized,
            AnaState::Inaccessible,
            AnaState::PersistentLoss,
            AnaState::Change,
        ];
        all.into_iter().find(|state| state.name() == text)
    }

    /// Whether I/O commands are carried out.
    pub fn serves(self) -> bool {
        matches!(self, AnaState::Optimized | AnaState::NonOptimized)
    }
}

/// A subsystem's presence on one port.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where.
    pub port: PortId,
    /// Only TLS connections are accepted.
    pub secure: bool,
    /// State of the groups not named in `groups`.
    pub default_state: AnaState,
    /// ANA groups whose state was set one by one.
    pub groups: BTreeMap<u32, AnaState>,
    /// Grows with each change of a state, so it can serve as the log's change count.
    pub changes: u64,
}

impl Listener {
    /// A listener on which every group is optimized.
    pub fn new(port: PortId, secure: bool) -> Listener {
        let (default_state, groups) = (AnaState::Optimized, BTreeMap::new());
        Listener { port, secure, default_state, groups, changes: 0 }
    }

    /// State of one group seen through this listener.
    pub fn state(&self, group: u32) -> AnaState {
        self.groups.get(&group).copied().unwrap_or(self.default_state)
    }
}

/// Another discovery service a host should ask (Base 2.1, 3.1.3.3.1.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Referral {
    /// Its address.
    pub address: Address,
    /// Its subsystem name; the well-known one if not given.
    pub nqn: super::Nqn,
    /// It wants TLS.
    pub secure: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_with_their_family() {
        let v4 = Address::parse(Some("ipv4"), "127.0.0.1", "4420").expect("v4");
        assert_eq!((v4.adrfam(), v4.to_string().as_str()), ("IPv4", "127.0.0.1:4420"));
        let v6 = Address::parse(None, "[::1]", "4420").expect("v6");
        assert_eq!((v6.adrfam(), v6.to_string().as_str()), ("IPv6", "[::1]:4420"));
        for (family, addr, port) in [
            (Some("IPv6"), "127.0.0.1", "4420"),
            (None, "localhost", "4420"),
            (None, "127.0.0.1", "0"),
            (None, "127.0.0.1", "65536"),
            (None, "127.0.0.1", ""),
        ] {
            assert!(Address::parse(family, addr, port).is_err(), "{family:?} {addr} {port}");
        }
    }

    #[test]
    fn ana_names_round_trip() {
        for name in ["optimized", "non_optimized", "inaccessible", "persistent_loss", "change"] {
            assert_eq!(AnaState::parse(name).expect("known").name(), name);
        }
        assert_eq!(AnaState::parse("fast"), None);
    }
}
