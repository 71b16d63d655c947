//! Keys for TLS 1.3: from what an operator configured to what the handshake uses.
//!
//! ```text
//!  "NVMeTLSkey-1:01:<base64 of key, crc32>:"     configured key, as tools print it
//!        │ HKDF "HostNQN" (hash 01, 02; 00: none)
//!        ▼
//!  retained key                                  of one host
//!        │ HKDF "nvme-tls-psk", identity
//!        ▼
//!  TLS key + identity "NVMe0R01 <host> <subsystem>"
//! ```
//!
//! Source: TCP 3.6.1.2 (interchange format), 3.6.1.3 (derivation, identities).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384};

/// Longest configured key text that is looked at.
const TEXT_MAX: usize = 256;

/// A hash of the derivation, and with it the cipher suite it goes with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// SHA-256, TLS_AES_128_GCM_SHA256.
    Sha256,
    /// SHA-384, TLS_AES_256_GCM_SHA384.
    Sha384,
}

impl Hash {
    /// Both.
    pub const ALL: [Hash; 2] = [Hash::Sha256, Hash::Sha384];

    /// Bytes of its output.
    pub fn bytes(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
        }
    }

    /// Its number in identities and in the interchange format.
    fn number(self) -> u8 {
        match self {
            Hash::Sha256 => 1,
            Hash::Sha384 => 2,
        }
    }
}

/// A key as an operator configured it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfiguredKey {
    bytes: Vec<u8>,
    /// How the retained key is made of it; `None`: it is the retained key.
    retain: Option<Hash>,
}

/// Secrets do not end up in logs.
impl std::fmt::Debug for ConfiguredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConfiguredKey({} bytes)", self.bytes.len())
    }
}

/// What one side of a handshake offers or accepts.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsKey {
    /// Sent in the clear.
    pub identity: String,
    /// The secret: 32 or 48 bytes.
    pub secret: Vec<u8>,
    /// What it goes with.
    pub hash: Hash,
}

impl std::fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsKey({:?})", self.identity)
    }
}

impl ConfiguredKey {
    /// Reads the interchange format `NVMeTLSkey-1:hh:base64:`.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without the key.
    pub fn parse(text: &str) -> Result<ConfiguredKey, String> {
        let text = text.trim_end_matches(['\n', '\r']);
        if text.len() > TEXT_MAX {
            return Err(format!("a TLS key has at most {TEXT_MAX} characters"));
        }
        let fields: Vec<&str> = text.split(':').collect();
        let ["NVMeTLSkey-1", hash, coded, ""] = fields[..] else {
            return Err("a TLS key looks like NVMeTLSkey-1:01:<base64>:".into());
        };
        let retain = match hash {
            "00" => None,
            "01" => Some(Hash::Sha256),
            "02" => Some(Hash::Sha384),
            _ => return Err(format!("{hash:?} is no hash of a TLS key; it is 00, 01 or 02")),
        };
        let decoded =
            STANDARD.decode(coded).map_err(|_| "the TLS key is not base64".to_string())?;
        let Some((bytes, crc)) = decoded.split_last_chunk::<4>() else {
            return Err("the TLS key is too short".into());
        };
        let fits = match retain {
            Some(hash) => bytes.len() == hash.bytes(),
            None => Hash::ALL.iter().any(|hash| bytes.len() == hash.bytes()),
        };
        if !fits {
            return Err(format!(
                "a TLS key has 32 or 48 bytes as its hash says, not {}",
                bytes.len()
            ));
        }
        if u32::from_le_bytes(*crc) != crc32fast::hash(bytes) {
            return Err("the TLS key's checksum is wrong: it was mistyped or cut".into());
        }
        Ok(ConfiguredKey { bytes: bytes.to_vec(), retain })
    }

    /// The text that [`ConfiguredKey::parse`] reads.
    pub fn to_text(&self) -> String {
        let mut bytes = self.bytes.clone();
        bytes.extend(crc32fast::hash(&self.bytes).to_le_bytes());
        let hash = self.retain.map_or(0, Hash::number);
        format!("NVMeTLSkey-1:{hash:02}:{}:", STANDARD.encode(bytes))
    }

    /// The hash that goes with the key's length.
    fn own_hash(&self) -> Hash {
        if self.bytes.len() == 48 { Hash::Sha384 } else { Hash::Sha256 }
    }

    fn retained(&self, host: &str) -> Vec<u8> {
        match self.retain {
            None => self.bytes.clone(),
            Some(hash) => expand(hash, &self.bytes, "HostNQN", host, self.bytes.len()),
        }
    }

    /// The keys a target accepts from `host` for `subsystem`: with identities of version 0 and 1
    /// (which names the key by a digest). Hosts and subsystems are valid NQNs.
    pub fn keys(&self, host: &str, subsystem: &str) -> Vec<TlsKey> {
        let hash = self.own_hash();
        let retained = self.retained(host);
        let (number, len) = (hash.number(), hash.bytes());
        let plain = format!("NVMe0R{number:02} {host} {subsystem}");
        let digest = digest(hash, &retained, host, subsystem);
        let named = format!("NVMe1R{number:02} {host} {subsystem} {digest}");
        let context = format!("{number:02} {digest}");
        let key = |identity: String, context: &str| TlsKey {
            secret: expand(hash, &retained, "nvme-tls-psk", context, len),
            identity,
            hash,
        };
        let mut keys = vec![key(named, &context)];
        // A label's context has one byte for its length; longer names have no key of version 0.
        if plain.len() <= usize::from(u8::MAX) {
            keys.push(key(plain.clone(), &plain));
        }
        keys
    }
}

/// The digest that version 1 of the identity names the key by.
fn digest(hash: Hash, retained: &[u8], host: &str, subsystem: &str) -> String {
    let text = format!("{host} {subsystem} NVMe-over-Fabrics");
    STANDARD.encode(match hash {
        Hash::Sha256 => mac::<Hmac<Sha256>>(retained, text.as_bytes()),
        Hash::Sha384 => mac::<Hmac<Sha384>>(retained, text.as_bytes()),
    })
}

fn mac<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes any key");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// HKDF-Extract without salt, then HKDF-Expand-Label of TLS 1.3 (RFC 8446, 7.1).
fn expand(hash: Hash, key: &[u8], label: &str, context: &str, len: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let mut info = (len as u16).to_be_bytes().to_vec();
    for part in [label.as_str(), context] {
        info.push(
            u8::try_from(part.len()).expect("NQNs have 223 bytes at most; others are checked"),
        );
        info.extend_from_slice(part.as_bytes());
    }
    let mut out = vec![0; len];
    let done = match hash {
        Hash::Sha256 => Hkdf::<Sha256>::new(None, key).expand(&info, &mut out),
        Hash::Sha384 => Hkdf::<Sha384>::new(None, key).expand(&info, &mut out),
    };
    done.expect("48 bytes are far below what HKDF can make");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0042-4210-8038-b4c04f503434";
    const SUBSYSTEM: &str = "nqn.2016-06.io.lamina:cnode1";

    fn key(retain: Option<Hash>, len: usize) -> ConfiguredKey {
        ConfiguredKey { bytes: (0..len as u8).collect(), retain }
    }

    #[test]
    fn the_interchange_format_round_trips_and_a_typing_error_is_noticed() {
        for key in
            [key(None, 32), key(None, 48), key(Some(Hash::Sha256), 32), key(Some(Hash::Sha384), 48)]
        {
            let text = key.to_text();
            assert_eq!(ConfiguredKey::parse(&text).as_ref(), Ok(&key));
            for at in 0..text.len() {
                let mut wrong = text.clone().into_bytes();
                wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
                let wrong = String::from_utf8(wrong).unwrap();
                assert!(ConfiguredKey::parse(&wrong).is_err(), "{wrong}");
                assert!(ConfiguredKey::parse(&text[..at]).is_err());
            }
        }
        assert!(ConfiguredKey::parse(&"x".repeat(TEXT_MAX + 1)).is_err());
        assert!(!format!("{:?}", key(None, 32)).contains("000102"));
    }

    #[test]
    fn a_length_that_does_not_go_with_the_hash_is_refused() {
        assert!(ConfiguredKey::parse(&key(Some(Hash::Sha256), 48).to_text()).is_err());
        assert!(ConfiguredKey::parse(&key(Some(Hash::Sha384), 32).to_text()).is_err());
        assert!(ConfiguredKey::parse(&key(None, 33).to_text()).is_err());
    }

    #[test]
    fn keys_differ_by_host_subsystem_and_version_and_carry_their_identity() {
        let keys = key(Some(Hash::Sha256), 32).keys(HOST, SUBSYSTEM);
        assert_eq!(keys[1].identity, format!("NVMe0R01 {HOST} {SUBSYSTEM}"));
        assert!(keys[0].identity.starts_with(&format!("NVMe1R01 {HOST} {SUBSYSTEM} ")));
        let mut secrets: Vec<_> = keys.iter().map(|key| key.secret.clone()).collect();
        for (host, subsystem) in [("nqn.2014-08.org.other:h", SUBSYSTEM), (HOST, "nqn.x:y")] {
            secrets.extend(
                key(Some(Hash::Sha256), 32).keys(host, subsystem).into_iter().map(|key| key.secret),
            );
        }
        assert!(secrets.iter().all(|secret| secret.len() == 32));
        let all = secrets.len();
        secrets.sort();
        secrets.dedup();
        assert_eq!(secrets.len(), all);
        assert_eq!(key(None, 48).keys(HOST, SUBSYSTEM)[0].secret.len(), 48);
    }

    /// RFC 5869, test case 3: HKDF with SHA-256, zero-length salt and info.
    #[test]
    fn the_derivation_is_hkdf() {
        let hkdf = Hkdf::<Sha256>::new(None, &[0x0b; 22]);
        let mut out = [0; 42];
        hkdf.expand(&[], &mut out).unwrap();
        assert_eq!(out[..8], [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f]);
    }
}
