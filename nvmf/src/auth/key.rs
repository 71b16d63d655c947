//! Secrets as operators configure them: `DHHC-1:hh:base64 of key and crc32:`.
//!
//! Source: Base 8.3.5.5.7 (secret representation and transformation).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::hash::HashId;

/// Longest key text that is looked at.
const TEXT_MAX: usize = 256;

/// A secret of a host or of a subsystem.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey {
    bytes: Vec<u8>,
    /// How the secret is bound to an NQN before use; `None`: it is used as it is.
    transform: Option<HashId>,
}

/// Why a text is no key; says nothing of the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyError(String);

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

/// Secrets do not end up in logs.
impl std::fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthKey({} bytes)", self.bytes.len())
    }
}

impl AuthKey {
    /// Reads `DHHC-1:hh:base64:`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<AuthKey, KeyError> {
        let text = text.trim_end_matches(['\n', '\r']);
        if text.len() > TEXT_MAX {
            return Err(KeyError(format!(
                "an authentication key has at most {TEXT_MAX} characters"
            )));
        }
        let fields: Vec<&str> = text.split(':').collect();
        let ["DHHC-1", hash, coded, ""] = fields[..] else {
            return Err(KeyError("an authentication key looks like DHHC-1:01:<base64>:".into()));
        };
        let transform = match hash {
            "00" => None,
            "01" | "02" | "03" => HashId::from_id(hash.as_bytes()[1] - b'0'),
            _ => {
                let why = format!("{hash:?} is no hash of an authentication key; it is 00 to 03");
                return Err(KeyError(why));
            }
        };
        let Ok(decoded) = STANDARD.decode(coded) else {
            return Err(KeyError("the authentication key is not base64".into()));
        };
        let Some((bytes, crc)) = decoded.split_last_chunk::<4>() else {
            return Err(KeyError("the authentication key is too short".into()));
        };
        let fits = match transform {
            Some(hash) => bytes.len() == hash.bytes(),
            None => HashId::ALL.iter().any(|hash| bytes.len() == hash.bytes()),
        };
        if !fits {
            let why = "an authentication key has 32, 48 or 64 bytes, as its hash says";
            return Err(KeyError(format!("{why}, not {}", bytes.len())));
        }
        if u32::from_le_bytes(*crc) != crc32fast::hash(bytes) {
            let why = "the authentication key's checksum is wrong: it was mistyped or cut";
            return Err(KeyError(why.into()));
        }
        Ok(AuthKey { bytes: bytes.to_vec(), transform })
    }

    /// The text that [`AuthKey::parse`] reads.
    pub fn to_text(&self) -> String {
        let mut bytes = self.bytes.clone();
        bytes.extend(crc32fast::hash(&self.bytes).to_le_bytes());
        let hash = self.transform.map_or(0, |hash| hash as u8);
        format!("DHHC-1:{hash:02}:{}:", STANDARD.encode(bytes))
    }

    /// A key of random bytes for `transform`.
    pub fn generate(transform: HashId, random: super::Random<'_>) -> AuthKey {
        let mut bytes = vec![0; transform.bytes()];
        random(&mut bytes);
        AuthKey { bytes, transform: Some(transform) }
    }

    /// The key that computes responses of the host or subsystem with this NQN.
    pub(super) fn bound_to(&self, nqn: &str) -> Vec<u8> {
        match self.transform {
            None => self.bytes.clone(),
            Some(hash) => hash.mac(&self.bytes, &[nqn.as_bytes(), b"NVMe-over-Fabrics"]),
        }
    }
}
