//! The hashes of DH-HMAC-CHAP and what is computed with them. Source: Base 8.3.5.5.4, .7, .8.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;

/// A hash function, by its identifier in messages and keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum HashId {
    /// SHA-256.
    Sha256 = 1,
    /// SHA-384.
    Sha384 = 2,
    /// SHA-512.
    Sha512 = 3,
}

/// Who computes a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Host,
    Controller,
}

/// What a response covers beside the challenge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) sequence: u32,
    pub(super) transaction: u16,
    pub(super) secure_channel: u8,
    pub(super) host: &'a str,
    pub(super) subsystem: &'a str,
}

impl HashId {
    /// All of them, the one a target prefers first.
    pub const ALL: [HashId; 3] = [HashId::Sha256, HashId::Sha384, HashId::Sha512];

    /// By its identifier.
    pub fn from_id(id: u8) -> Option<HashId> {
        HashId::ALL.into_iter().find(|hash| *hash as u8 == id)
    }

    /// By the name that SPDK's RPCs use.
    pub fn from_name(name: &str) -> Option<HashId> {
        HashId::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// The name that SPDK's RPCs use.
    pub fn name(self) -> &'static str {
        match self {
            HashId::Sha256 => "sha256",
            HashId::Sha384 => "sha384",
            HashId::Sha512 => "sha512",
        }
    }

    /// Bytes of its output.
    pub fn bytes(self) -> usize {
        match self {
            HashId::Sha256 => 32,
            HashId::Sha384 => 48,
            HashId::Sha512 => 64,
        }
    }

    pub(super) fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            HashId::Sha256 => Sha256::digest(data).to_vec(),
            HashId::Sha384 => Sha384::digest(data).to_vec(),
            HashId::Sha512 => Sha512::digest(data).to_vec(),
        }
    }

    pub(super) fn mac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        match self {
            HashId::Sha256 => mac::<Hmac<Sha256>>(key, parts),
            HashId::Sha384 => mac::<Hmac<Sha384>>(key, parts),
            HashId::Sha512 => mac::<Hmac<Sha512>>(key, parts),
        }
    }

    /// The challenge as it enters a response: as it is, or bound to the shared DH secret.
    pub(super) fn augment(self, challenge: &[u8], secret: Option<&[u8]>) -> Vec<u8> {
        match secret {
            None => challenge.to_vec(),
            Some(secret) => self.mac(&self.digest(secret), &[challenge]),
        }
    }

    /// The response of `role` to an augmented challenge.
    pub(super) fn response(
        self,
        key: &[u8],
        challenge: &[u8],
        role: Role,
        context: &Context<'_>,
    ) -> Vec<u8> {
        let (label, first, second) = match role {
            Role::Host => ("HostHost", context.host, context.subsystem),
            Role::Controller => ("Controller", context.subsystem, context.host),
        };
        self.mac(
            key,
            &[
                challenge,
                &context.sequence.to_le_bytes(),
                &context.transaction.to_le_bytes(),
                &[context.secure_channel],
                label.as_bytes(),
                first.as_bytes(),
                &[0],
                second.as_bytes(),
            ],
        )
    }
}

/// Compares without telling by the time it takes where they differ.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}
