//! The messages of an authentication, as they lie in the data of Authentication Send and Receive.
//!
//! ```text
//!  all:        type u8, id u8, reserved u16, T_ID u16, ...
//!  Negotiate   ... SC_C u8, NAPD u8, then a 64-byte descriptor each: id, -, halen, dhlen,
//!              30 hash identifiers, 30 group identifiers
//!  Challenge   ... HL u8, -, HashID u8, DHgID u8, DHVLEN u16, SEQNUM u32, C1, g^x
//!  Reply       ... HL u8, -, CVALID u8, -, DHVLEN u16, SEQNUM u32, R1, C2, g^y
//!  Success1    ... HL u8, -, RVALID u8, 7 reserved, R2
//!  Success2    ... 10 reserved
//!  Failure     ... reason u8, explanation u8
//! ```
//!
//! Source: Base 8.3.5.5.1 to 8.3.5.5.6.

use super::group::Group;
use super::hash::HashId;

/// Longest message there is: a reply with SHA-512 and ffdhe8192, and room for seven descriptors.
pub const MESSAGE_BYTES_MAX: usize = 16 + 2 * 64 + 1024;

/// Message types.
const COMMON: u8 = 0;
const DHCHAP: u8 = 1;
/// Message identifiers.
const NEGOTIATE: u8 = 0;
const CHALLENGE: u8 = 1;
const REPLY: u8 = 2;
const SUCCESS1: u8 = 3;
const SUCCESS2: u8 = 4;
const FAILURE2: u8 = 0xf0;
const FAILURE1: u8 = 0xf1;
/// The only authentication protocol there is.
const PROTOCOL_DHCHAP: u8 = 1;
const DESCRIPTOR_BYTES: usize = 64;
const LIST_BYTES: usize = 30;
/// The reason of every failure.
const REASON_FAILED: u8 = 1;

/// Why an authentication failed, as told to the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Failure {
    /// A wrong response.
    Failed = 1,
    /// No protocol in common.
    ProtocolNotUsable = 2,
    /// A secure channel was asked for that is not there, or the other way round.
    SecureChannel = 3,
    /// No hash in common.
    HashNotUsable = 4,
    /// No group in common.
    GroupNotUsable = 5,
    /// A message that does not add up.
    IncorrectPayload = 6,
    /// Not the message that was due.
    IncorrectMessage = 7,
}

/// What a host may say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum FromHost {
    Negotiate { transaction: u16, secure_channel: u8, hashes: Vec<u8>, groups: Vec<u8> },
    Reply(Reply),
    Success2 { transaction: u16 },
    Failure2,
}

/// What a target says, as a host reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum FromTarget {
    Challenge(Challenge),
    Success1 { transaction: u16, response: Option<Vec<u8>> },
    Failure1(u8),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Challenge {
    pub(super) transaction: u16,
    pub(super) hash: HashId,
    pub(super) group: Group,
    pub(super) sequence: u32,
    pub(super) challenge: Vec<u8>,
    pub(super) public: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) transaction: u16,
    pub(super) response: Vec<u8>,
    /// The host's own challenge.
    pub(super) challenge: Option<Vec<u8>>,
    pub(super) sequence: u32,
    pub(super) public: Vec<u8>,
}

/// Reads through a message; everything past its end is `None`.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().expect("two bytes")))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }
}

fn head(kind: u8, id: u8, transaction: u16) -> Vec<u8> {
    let mut out = vec![kind, id, 0, 0];
    out.extend(transaction.to_le_bytes());
    out
}

impl FromHost {
    /// Reads a message; `hash` is the one agreed on.
    pub(super) fn decode(data: &[u8], hash: Option<HashId>) -> Result<FromHost, Failure> {
        let mut reader = Reader(data);
        FromHost::read(&mut reader, hash).ok_or(Failure::IncorrectPayload)?
    }

    fn read(reader: &mut Reader<'_>, hash: Option<HashId>) -> Option<Result<FromHost, Failure>> {
        let (kind, id) = (reader.u8()?, reader.u8()?);
        reader.u16()?;
        let transaction = reader.u16()?;
        Some(match (kind, id) {
            (COMMON, NEGOTIATE) => FromHost::read_negotiate(reader, transaction)?,
            (COMMON, FAILURE2) => Ok(FromHost::Failure2),
            (DHCHAP, SUCCESS2) => Ok(FromHost::Success2 { transaction }),
            (DHCHAP, REPLY) => {
                let Some(hash) = hash else { return Some(Err(Failure::IncorrectMessage)) };
                let len = reader.u8()?;
                reader.u8()?;
                let valid = reader.u8()?;
                reader.u8()?;
                let (public_len, sequence) = (reader.u16()?, reader.u32()?);
                if usize::from(len) != hash.bytes() || valid > 1 {
                    return None;
                }
                let response = reader.bytes(hash.bytes())?.to_vec();
                let challenge = reader.bytes(hash.bytes())?.to_vec();
                Ok(FromHost::Reply(Reply {
                    transaction,
                    response,
                    challenge: (valid == 1).then_some(challenge),
                    sequence,
                    public: reader.bytes(usize::from(public_len))?.to_vec(),
                }))
            }
            _ => Err(Failure::IncorrectMessage),
        })
    }

    fn read_negotiate(
        reader: &mut Reader<'_>,
        transaction: u16,
    ) -> Option<Result<FromHost, Failure>> {
        let secure_channel = reader.u8()?;
        let count = reader.u8()?;
        for _ in 0..count {
            let mut descriptor = Reader(reader.bytes(DESCRIPTOR_BYTES)?);
            let protocol = descriptor.u8()?;
            descriptor.u8()?;
            let (hashes, groups) = (usize::from(descriptor.u8()?), usize::from(descriptor.u8()?));
            if protocol != PROTOCOL_DHCHAP {
                continue;
            }
            let list = |bytes: &[u8], len: usize| bytes.get(..len).map(<[u8]>::to_vec);
            let hashes = list(descriptor.bytes(LIST_BYTES)?, hashes)?;
            let groups = list(descriptor.bytes(LIST_BYTES)?, groups)?;
            return Some(Ok(FromHost::Negotiate { transaction, secure_channel, hashes, groups }));
        }
        Some(Err(Failure::ProtocolNotUsable))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            FromHost::Negotiate { transaction, secure_channel, hashes, groups } => {
                let mut out = head(COMMON, NEGOTIATE, *transaction);
                out.extend([*secure_channel, 1, PROTOCOL_DHCHAP, 0]);
                out.extend([hashes.len() as u8, groups.len() as u8]);
                for list in [hashes, groups] {
                    let mut padded = list.clone();
                    padded.resize(LIST_BYTES, 0);
                    out.extend(padded);
                }
                out
            }
            FromHost::Reply(reply) => {
                let mut out = head(DHCHAP, REPLY, reply.transaction);
                let len = reply.response.len();
                out.extend([len as u8, 0, u8::from(reply.challenge.is_some()), 0]);
                out.extend((reply.public.len() as u16).to_le_bytes());
                out.extend(reply.sequence.to_le_bytes());
                out.extend(&reply.response);
                out.extend(reply.challenge.clone().unwrap_or(vec![0; len]));
                out.extend(&reply.public);
                out
            }
            FromHost::Success2 { transaction } => {
                let mut out = head(DHCHAP, SUCCESS2, *transaction);
                out.resize(16, 0);
                out
            }
            FromHost::Failure2 => {
                let mut out = head(COMMON, FAILURE2, 0);
                out.extend([REASON_FAILED, Failure::Failed as u8]);
                out
            }
        }
    }
}

impl FromTarget {
    /// Reads a message; `None` if it does not add up.
    pub(super) fn decode(data: &[u8]) -> Option<FromTarget> {
        let mut reader = Reader(data);
        let (kind, id) = (reader.u8()?, reader.u8()?);
        reader.u16()?;
        let transaction = reader.u16()?;
        match (kind, id) {
            (DHCHAP, CHALLENGE) => {
                let len = reader.u8()?;
                reader.u8()?;
                let hash = HashId::from_id(reader.u8()?)?;
                let group = Group::from_id(reader.u8()?)?;
                let (public_len, sequence) = (reader.u16()?, reader.u32()?);
                (usize::from(len) == hash.bytes()).then_some(())?;
                let challenge = reader.bytes(hash.bytes())?.to_vec();
                let public = reader.bytes(usize::from(public_len))?.to_vec();
                Some(FromTarget::Challenge(Challenge {
                    transaction,
                    hash,
                    group,
                    sequence,
                    challenge,
                    public,
                }))
            }
            (DHCHAP, SUCCESS1) => {
                let len = usize::from(reader.u8()?);
                reader.u8()?;
                let valid = reader.u8()?;
                reader.bytes(7)?;
                let response = if valid == 1 { Some(reader.bytes(len)?.to_vec()) } else { None };
                Some(FromTarget::Success1 { transaction, response })
            }
            (COMMON, FAILURE1) => {
                reader.u8()?;
                Some(FromTarget::Failure1(reader.u8()?))
            }
            _ => None,
        }
    }
}

impl Challenge {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = head(DHCHAP, CHALLENGE, self.transaction);
        out.extend([self.hash.bytes() as u8, 0, self.hash as u8, self.group as u8]);
        out.extend((self.public.len() as u16).to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(&self.challenge);
        out.extend(&self.public);
        out
    }
}

/// A target's last message if all went well; with `response` if the host asked for it.
pub(super) fn success1(transaction: u16, hash: HashId, response: Option<&[u8]>) -> Vec<u8> {
    let mut out = head(DHCHAP, SUCCESS1, transaction);
    out.extend([hash.bytes() as u8, 0, u8::from(response.is_some())]);
    out.resize(16, 0);
    out.extend(response.unwrap_or(&vec![0; hash.bytes()]));
    out
}

/// A target's last message if it did not.
pub(super) fn failure1(transaction: u16, failure: Failure) -> Vec<u8> {
    let mut out = head(COMMON, FAILURE1, transaction);
    out.extend([REASON_FAILED, failure as u8]);
    out
}
