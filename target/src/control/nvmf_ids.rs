//! Identities of namespaces and transport addresses, from text and back.

use lamina_bdev::{Error, ErrorKind, Uuid};
use lamina_nvmf::subsystem::{Address, AnaState, DeviceKey, Namespace, NamespaceSpec};
use lamina_rpc::methods::{NvmfAddress, NvmfNewNamespace};

use super::nvmf_book::NamespaceRecord;

/// Block size unless one is given: what every initiator takes.
const BLOCK_SIZE_DEFAULT: u32 = 512;

fn invalid<T>(why: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::Invalid, why))
}

/// Bytes as hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse; hyphens do not count. `None` if it is none.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|c| c[0] << 4 | c[1]).collect())
}

fn bytes_of<const N: usize>(what: &str, text: &str) -> Result<[u8; N], Error> {
    match from_hex(text).and_then(|bytes| <[u8; N]>::try_from(bytes).ok()) {
        Some(bytes) if bytes != [0; N] => Ok(bytes),
        _ => invalid(format!("{what} {text:?} is not {} hexadecimal digits, or zero", 2 * N)),
    }
}

fn uuid_of(text: &str) -> Result<Uuid, Error> {
    match text.to_ascii_lowercase().parse() {
        Ok(uuid) => Ok(uuid),
        Err(_) => invalid(format!("uuid {text:?} is no UUID")),
    }
}

/// What a call says of a new namespace; what the disk says is filled in later.
pub(super) fn spec_of_call(new: &NvmfNewNamespace) -> Result<NamespaceSpec, Error> {
    let nguid = new.nguid.as_deref().map(|text| bytes_of("nguid", text)).transpose()?;
    let eui64 = new.eui64.as_deref().map(|text| bytes_of("eui64", text)).transpose()?;
    let nsid = match new.nsid {
        // SPDK's own clients send 0 for "any".
        Some(0) | None => None,
        given => given,
    };
    Ok(NamespaceSpec {
        nsid,
        block_size: new.block_size.unwrap_or(BLOCK_SIZE_DEFAULT),
        readonly: new.readonly.unwrap_or(false),
        uuid: new.uuid.as_deref().map(uuid_of).transpose()?,
        nguid,
        eui64,
        ana_group: new.anagrpid,
        ..NamespaceSpec::new(DeviceKey::default(), "", Uuid::default(), 0)
    })
}

/// The same out of the book.
pub(super) fn spec_of(record: &NamespaceRecord) -> Result<NamespaceSpec, Error> {
    Ok(NamespaceSpec {
        nsid: Some(record.nsid),
        block_size: record.block_size,
        readonly: record.readonly,
        uuid: Some(uuid_of(&record.uuid)?),
        nguid: Some(bytes_of("nguid", &record.nguid)?),
        eui64: Some(bytes_of("eui64", &record.eui64)?),
        ana_group: Some(record.ana_group),
        ..NamespaceSpec::new(DeviceKey::default(), "", Uuid::default(), 0)
    })
}

/// A namespace for the book.
pub(super) fn record_of(
    namespace: &Namespace,
    store: Uuid,
    device: Uuid,
    alias: &str,
) -> NamespaceRecord {
    NamespaceRecord {
        nsid: namespace.nsid,
        store: store.to_string(),
        device: device.to_string(),
        alias: alias.to_string(),
        block_size: namespace.block_size(),
        readonly: namespace.readonly,
        uuid: namespace.uuid.to_string(),
        nguid: to_hex(&namespace.nguid),
        eui64: to_hex(&namespace.eui64),
        ana_group: namespace.ana_group,
    }
}

/// A transport address out of a call.
pub(super) fn address_of(address: &NvmfAddress) -> Result<Address, Error> {
    if !address.trtype.eq_ignore_ascii_case("tcp") {
        return invalid(format!("trtype {:?}: the only transport is TCP", address.trtype));
    }
    Address::parse(address.adrfam.as_deref(), &address.traddr, &address.trsvcid)
}

/// The same as clients want to read it.
pub(super) fn show_address(address: &Address) -> NvmfAddress {
    NvmfAddress {
        trtype: "TCP".into(),
        adrfam: Some(address.adrfam().into()),
        traddr: address.traddr.to_string(),
        trsvcid: address.trsvcid.to_string(),
    }
}

/// One end of a connection.
pub(super) fn show_socket(socket: std::net::SocketAddr) -> NvmfAddress {
    show_address(&Address { traddr: socket.ip(), trsvcid: socket.port() })
}

/// An ANA state out of a call.
pub(super) fn ana_state_of(text: &str) -> Result<AnaState, Error> {
    let known = AnaState::parse(text).filter(|state| *state != AnaState::Change);
    match known {
        Some(state) => Ok(state),
        None => {
            invalid(format!("ana_state {text:?}: give optimized, non_optimized or inaccessible"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_strictly_and_come_back() {
        let new = NvmfNewNamespace {
            nguid: Some("ABCDEF0123456789abcdef0123456789".into()),
            eui64: Some("0011-2233-4455-6677".into()),
            uuid: Some("0A1B2C3D-0000-1111-2222-333344445555".into()),
            nsid: Some(0),
            ..Default::default()
        };
        let spec = spec_of_call(&new).unwrap();
        assert_eq!(to_hex(&spec.nguid.unwrap()), "abcdef0123456789abcdef0123456789");
        assert_eq!(to_hex(&spec.eui64.unwrap()), "0011223344556677");
        assert_eq!((spec.nsid, spec.block_size), (None, 512));
        for (nguid, eui64, uuid) in [
            (Some("00"), None, None),
            (Some("00000000000000000000000000000000"), None, None),
            (Some("zz"), None, None),
            (None, Some("0000000000000000"), None),
            (None, Some("001122334455667"), None),
            (None, None, Some("x")),
        ] {
            let text = |text: Option<&str>| text.map(String::from);
            let (nguid, eui64, uuid) = (text(nguid), text(eui64), text(uuid));
            let bad = NvmfNewNamespace { nguid, eui64, uuid, ..Default::default() };
            assert_eq!(spec_of_call(&bad).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_echoed_in_their_usual_form() {
        let given = NvmfAddress {
            trtype: "tcp".into(),
            adrfam: None,
            traddr: "127.0.0.1".into(),
            trsvcid: "4420".into(),
        };
        let shown = show_address(&address_of(&given).unwrap());
        assert_eq!((shown.trtype.as_str(), shown.adrfam.as_deref()), ("TCP", Some("IPv4")));
        let rdma = NvmfAddress { trtype: "RDMA".into(), ..given };
        assert!(address_of(&rdma).unwrap_err().message.contains("TCP"));
        assert!(ana_state_of("change").is_err() && ana_state_of("inaccessible").is_ok());
    }
}
