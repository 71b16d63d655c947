//! NVMe qualified names: what may be one (Base 2.1, 4.7).

use lamina_bdev::{Error, ErrorKind};

/// Longest NQN, bytes, without the terminating zero (Base 2.1, 4.7).
pub const NQN_BYTES_MAX: usize = 223;
/// The well-known name of the discovery subsystem (Base 2.1, 3.1.3.3).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// What precedes the UUID in a name of the second form.
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// A checked NVMe qualified name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Nqn(String);

impl Nqn {
    /// Checks the text: `nqn.yyyy-mm.reverse.domain:anything` or the UUID form.
    pub fn new(text: &str) -> Result<Nqn, Error> {
        match fault(text) {
            None => Ok(Nqn(text.to_string())),
            Some(why) => Err(Error::new(
                ErrorKind::Invalid,
                format!("'{}' is no NVMe qualified name: {why}", text.escape_debug()),
            )),
        }
    }

    /// The name in a 256-byte field as hosts send it: zero-terminated, zeros after it.
    pub fn from_field(field: &[u8]) -> Option<Nqn> {
        let end = field.iter().position(|b| *b == 0)?;
        let text = std::str::from_utf8(&field[..end]).ok()?;
        Nqn::new(text).ok()
    }

    /// The same for a host, which may go without a name (SPDK's tools do by default). The name is
    /// empty then: in no list of hosts, so it may only where any host may.
    pub fn of_host(field: &[u8]) -> Option<Nqn> {
        match field.iter().all(|byte| *byte == 0) {
            true => Some(Nqn(String::new())),
            false => Nqn::from_field(field),
        }
    }

    /// The name of the discovery subsystem.
    pub fn discovery() -> Nqn {
        Nqn(DISCOVERY_NQN.to_string())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery name.
    pub fn is_discovery(&self) -> bool {
        self.0 == DISCOVERY_NQN
    }

    /// Writes it into a field of zeros.
    pub fn write_to(&self, field: &mut [u8]) {
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
    }
}

impl std::fmt::Display for Nqn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with the text, if anything.
fn fault(text: &str) -> Option<&'static str> {
    if text.len() > NQN_BYTES_MAX {
        return Some("it is longer than 223 bytes");
    }
    if text.chars().any(char::is_control) {
        return Some("it holds control characters");
    }
    if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
        let good = uuid.parse::<lamina_bdev::Uuid>().is_ok();
        return if good { None } else { Some("what follows ':uuid:' is no UUID") };
    }
    if text == DISCOVERY_NQN {
        return None;
    }
    let Some(rest) = text.strip_prefix("nqn.") else {
        return Some("it does not begin with 'nqn.'");
    };
    let Some((domain, user)) = rest.split_once(':') else {
        return Some("there is no ':' after the domain");
    };
    if user.is_empty() {
        return Some("nothing follows the ':'");
    }
    let Some((date, domain)) = domain.split_once('.') else {
        return Some("there is no domain after the date");
    };
    if !is_date(date) {
        return Some("the date is not of the form yyyy-mm");
    }
    let label = |l: &str| {
        let bytes = l.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= 63
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    if !domain.split('.').all(label) {
        return Some("the domain is not made of letters, digits and inner hyphens");
    }
    None
}

fn is_date(date: &str) -> bool {
    let bytes = date.as_bytes();
    bytes.len() == 7
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && matches!((bytes[5], bytes[6]), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_accepted() {
        for good in [
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2014-08.org.nvmexpress:uuid:0a1b2c3d-0000-1111-2222-333344445555",
            "nqn.2014-08.com.example:nvme:nvm-subsystem-sn-d78432",
            "nqn.2024-12.example:ä",
        ] {
            assert!(Nqn::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        let long = format!("nqn.2016-06.io.spdk:{}", "x".repeat(204));
        for bad in [
            "",
            "cnode1",
            "nqn.2016-06.io.spdk",
            "nqn.2016-06.io.spdk:",
            "nqn.2016-13.io.spdk:a",
            "nqn.201606.io.spdk:a",
            "nqn.2016-06.-io.spdk:a",
            "nqn.2016-06.io..spdk:a",
            "nqn.2016-06.io.spdk:a\n",
            "nqn.2014-08.org.nvmexpress:uuid:1234",
            &long,
        ] {
            let error = Nqn::new(bad).expect_err(bad);
            assert!(error.message.contains("NVMe qualified name"), "{}", error.message);
        }
    }

    #[test]
    fn a_field_must_be_terminated() {
        assert_eq!(Nqn::from_field(&[b'n'; 256]), None);
        let mut field = [0u8; 256];
        Nqn::discovery().write_to(&mut field);
        assert_eq!(Nqn::from_field(&field), Some(Nqn::discovery()));
    }
}
