//! The host's side of one authentication: for initiators of ours.

use super::Random;
use super::group::Group;
use super::hash::{Context, HashId, Role, same};
use super::key::AuthKey;
use super::message::{Challenge, FromHost, FromTarget, Reply};

/// What a host waits for.
enum State {
    Challenge,
    /// The proof of the target that must come, if it was asked for.
    Success(Option<Vec<u8>>),
    Ended,
}

/// One authentication of one queue, seen from the host.
pub struct HostSide {
    host: String,
    subsystem: String,
    key: AuthKey,
    /// If set, the target has to prove that it knows this.
    controller_key: Option<AuthKey>,
    transaction: u16,
    state: State,
}

impl HostSide {
    /// A host with its key; with `controller_key` the target has to prove itself too.
    pub fn new(
        host: &str,
        subsystem: &str,
        key: AuthKey,
        controller_key: Option<AuthKey>,
        transaction: u16,
    ) -> HostSide {
        let (host, subsystem) = (host.to_owned(), subsystem.to_owned());
        HostSide { host, subsystem, key, controller_key, transaction, state: State::Challenge }
    }

    /// The first message.
    pub fn negotiate(&self, hashes: &[HashId], groups: &[Group]) -> Vec<u8> {
        FromHost::Negotiate {
            transaction: self.transaction,
            secure_channel: 0,
            hashes: hashes.iter().map(|hash| *hash as u8).collect(),
            groups: groups.iter().map(|group| *group as u8).collect(),
        }
        .encode()
    }

    /// Takes a message of the target. What is to be sent next, if anything.
    ///
    /// # Errors
    /// A sentence: the target refused, broke the protocol, or is not who it should be.
    pub fn take(&mut self, data: &[u8], random: Random<'_>) -> Result<Option<Vec<u8>>, String> {
        let message = FromTarget::decode(data).ok_or("a message that does not add up")?;
        match (std::mem::replace(&mut self.state, State::Ended), message) {
            (_, FromTarget::Failure1(why)) => Err(format!("the target refused: explanation {why}")),
            (State::Challenge, FromTarget::Challenge(challenge)) => {
                self.reply(&challenge, random).map(Some)
            }
            (State::Success(None), FromTarget::Success1 { .. }) => Ok(None),
            (State::Success(Some(proof)), FromTarget::Success1 { transaction, response }) => {
                match response.is_some_and(|response| same(&proof, &response)) {
                    true => Ok(Some(FromHost::Success2 { transaction }.encode())),
                    false => Err("the target could not prove who it is".into()),
                }
            }
            _ => Err("not the message that was due".into()),
        }
    }

    fn reply(&mut self, sent: &Challenge, random: Random<'_>) -> Result<Vec<u8>, String> {
        let pair = sent.group.key_pair(random);
        let secret = match &pair {
            None => None,
            Some(pair) => Some(pair.agree(&sent.public).ok_or("a public value out of range")?),
        };
        let context = |sequence| Context {
            sequence,
            transaction: self.transaction,
            secure_channel: 0,
            host: &self.host,
            subsystem: &self.subsystem,
        };
        let hash = sent.hash;
        let response = hash.response(
            &self.key.bound_to(&self.host),
            &hash.augment(&sent.challenge, secret.as_deref()),
            Role::Host,
            &context(sent.sequence),
        );
        let challenge = self.controller_key.as_ref().map(|_| {
            let mut challenge = vec![0; hash.bytes()];
            random(&mut challenge);
            challenge
        });
        let sequence = if challenge.is_some() { sent.sequence ^ 0x5555 | 1 } else { 0 };
        let proof = challenge.as_ref().zip(self.controller_key.as_ref()).map(|(challenge, key)| {
            hash.response(
                &key.bound_to(&self.subsystem),
                &hash.augment(challenge, secret.as_deref()),
                Role::Controller,
                &context(sequence),
            )
        });
        self.state = State::Success(proof);
        let public = pair.map_or(Vec::new(), |pair| pair.public);
        let transaction = self.transaction;
        Ok(FromHost::Reply(Reply { transaction, response, challenge, sequence, public }).encode())
    }
}
