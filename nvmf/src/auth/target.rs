//! The target's side of one authentication.
//!
//! ```text
//!  send ─► message checked ─┬─────────────────────────────────► receive
//!                           └─ Work ─► run (anywhere) ─► resume ─┘
//! ```
//!
//! Exponentiation takes milliseconds, up to some tens in the largest group, and any host may ask
//! for it before it has proved anything. So it is handed out, to be done where nobody waits.

use super::Random;
use super::group::{Exponent, Group, KeyPair};
use super::hash::{Context, HashId, Role, same};
use super::key::AuthKey;
use super::message::{Challenge, Failure, FromHost, Reply, failure1, success1};

/// What a target knows of a host that has to authenticate, and what it accepts.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The host's key.
    pub host_key: AuthKey,
    /// The subsystem's own key, if hosts may ask for its proof.
    pub controller_key: Option<AuthKey>,
    /// Hashes, the preferred first.
    pub hashes: Vec<HashId>,
    /// Groups, the preferred first.
    pub groups: Vec<Group>,
}

/// Where an authentication stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The next message is the host's.
    Host,
    /// The next message is the target's: an Authentication Receive is due.
    Target,
    /// The result of [`Work`] is waited for.
    Busy,
    /// The host is who it says.
    Done,
    /// It is not, or broke the protocol: the queue has to end.
    Failed,
}

/// What was sent in a challenge.
struct Sent {
    hash: HashId,
    sequence: u32,
    challenge: Vec<u8>,
    pair: Option<KeyPair>,
}

/// What takes long.
enum Task {
    Pair(Exponent),
    Agree(KeyPair, Vec<u8>),
}

/// A computation of an authentication: to be run anywhere, then given to
/// [`Authentication::resume`].
pub struct Work(Task);

/// What has come of a [`Work`].
pub struct Worked(Product);

enum Product {
    Pair(KeyPair),
    /// `None`: the host's value is out of range.
    Secret(Option<Vec<u8>>),
}

impl Work {
    /// Computes, for milliseconds.
    pub fn run(self) -> Worked {
        Worked(match self.0 {
            Task::Pair(exponent) => Product::Pair(exponent.key_pair()),
            Task::Agree(pair, public) => Product::Secret(pair.agree(&public)),
        })
    }
}

/// What follows a message.
enum Next {
    State(State),
    Work(State, Work),
}

enum State {
    Begin,
    /// A challenge without its public value.
    Pairing(Group, Sent),
    /// An answer whose proof cannot be checked yet.
    Agreeing(Sent, Box<Reply>),
    /// Bytes to hand out, and what comes after.
    Say(Vec<u8>, Box<State>),
    Challenged(Sent),
    /// The host has yet to accept our proof.
    Proven,
    Done,
    Failed,
}

/// One authentication of one queue.
pub struct Authentication {
    host: String,
    subsystem: String,
    credentials: Credentials,
    transaction: u16,
    secure_channel: u8,
    state: State,
}

impl Authentication {
    /// Begins: the host has to negotiate.
    pub fn new(host: &str, subsystem: &str, credentials: Credentials) -> Authentication {
        let (host, subsystem) = (host.to_owned(), subsystem.to_owned());
        let state = State::Begin;
        Authentication { host, subsystem, credentials, transaction: 0, secure_channel: 0, state }
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Begin | State::Challenged(_) | State::Proven => Stage::Host,
            State::Pairing(..) | State::Agreeing(..) => Stage::Busy,
            State::Say(..) => Stage::Target,
            State::Done => Stage::Done,
            State::Failed => Stage::Failed,
        }
    }

    /// Takes the data of an Authentication Send. Where there is work, the message counts as taken
    /// when that is done.
    #[must_use]
    pub fn send(&mut self, data: &[u8], random: Random<'_>) -> Option<Work> {
        let (state, due) = match std::mem::replace(&mut self.state, State::Failed) {
            State::Challenged(sent) => {
                let hash = sent.hash;
                (State::Challenged(sent), Some(hash))
            }
            state => (state, None),
        };
        let next =
            FromHost::decode(data, due).and_then(|message| self.step(state, message, random));
        let (state, work) = match next {
            Ok(Next::State(state)) => (state, None),
            Ok(Next::Work(state, work)) => (state, Some(work)),
            Err(failure) => (self.refusal(failure), None),
        };
        self.state = state;
        work
    }

    /// Goes on with what has been computed.
    pub fn resume(&mut self, worked: Worked) {
        let state = match (std::mem::replace(&mut self.state, State::Failed), worked.0) {
            (State::Pairing(group, sent), Product::Pair(pair)) => {
                Ok(self.say_challenge(group, Sent { pair: Some(pair), ..sent }))
            }
            (State::Agreeing(sent, reply), Product::Secret(Some(secret))) => {
                self.judge(&sent, &reply, Some(&secret))
            }
            (State::Agreeing(..), Product::Secret(None)) => Err(Failure::IncorrectPayload),
            // It was of another one.
            (state, _) => Ok(state),
        };
        self.state = state.unwrap_or_else(|failure| self.refusal(failure));
    }

    /// The work that [`Authentication::send`] gave out cannot be done: the queue has had its
    /// chance.
    pub fn give_up(&mut self) {
        self.state = State::Failed;
    }

    fn refusal(&self, failure: Failure) -> State {
        State::Say(failure1(self.transaction, failure), Box::new(State::Failed))
    }

    /// Bytes of the message that an Authentication Receive is due for; `None` if none is.
    pub fn due(&self) -> Option<usize> {
        match &self.state {
            State::Say(bytes, _) => Some(bytes.len()),
            _ => None,
        }
    }

    /// The message for an Authentication Receive; `None` if none is due.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Say(bytes, next) => {
                self.state = *next;
                Some(bytes)
            }
            state => {
                self.state = state;
                None
            }
        }
    }

    fn step(
        &mut self,
        state: State,
        message: FromHost,
        random: Random<'_>,
    ) -> Result<Next, Failure> {
        match (state, message) {
            (State::Begin, FromHost::Negotiate { transaction, secure_channel, hashes, groups }) => {
                self.transaction = transaction;
                self.secure_channel = secure_channel;
                if secure_channel != 0 {
                    return Err(Failure::SecureChannel);
                }
                self.challenge(&hashes, &groups, random)
            }
            (State::Challenged(sent), FromHost::Reply(reply)) => self.check(sent, reply),
            (State::Proven, FromHost::Success2 { transaction })
                if transaction == self.transaction =>
            {
                Ok(Next::State(State::Done))
            }
            (_, FromHost::Failure2) => Ok(Next::State(State::Failed)),
            _ => Err(Failure::IncorrectMessage),
        }
    }

    fn challenge(&self, hashes: &[u8], groups: &[u8], random: Random<'_>) -> Result<Next, Failure> {
        let hash = self.credentials.hashes.iter().find(|hash| hashes.contains(&(**hash as u8)));
        let hash = *hash.ok_or(Failure::HashNotUsable)?;
        let group = self.credentials.groups.iter().find(|group| groups.contains(&(**group as u8)));
        let group = *group.ok_or(Failure::GroupNotUsable)?;
        let mut challenge = vec![0; hash.bytes()];
        random(&mut challenge);
        let mut sequence = [0; 4];
        random(&mut sequence);
        // 0 would mean that no proof is asked for.
        let sequence = u32::from_le_bytes(sequence).max(1);
        let sent = Sent { hash, sequence, challenge, pair: None };
        Ok(match group.exponent(random) {
            Some(exponent) => Next::Work(State::Pairing(group, sent), Work(Task::Pair(exponent))),
            None => Next::State(self.say_challenge(group, sent)),
        })
    }

    fn say_challenge(&self, group: Group, sent: Sent) -> State {
        let message = Challenge {
            transaction: self.transaction,
            hash: sent.hash,
            group,
            sequence: sent.sequence,
            challenge: sent.challenge.clone(),
            public: sent.pair.as_ref().map_or(Vec::new(), |pair| pair.public.clone()),
        };
        State::Say(message.encode(), Box::new(State::Challenged(sent)))
    }

    fn check(&self, mut sent: Sent, mut reply: Reply) -> Result<Next, Failure> {
        if reply.transaction != self.transaction {
            return Err(Failure::IncorrectPayload);
        }
        let public = std::mem::take(&mut reply.public);
        match sent.pair.take() {
            None if public.is_empty() => self.judge(&sent, &reply, None).map(Next::State),
            None => Err(Failure::IncorrectPayload),
            Some(pair) => {
                let work = Work(Task::Agree(pair, public));
                Ok(Next::Work(State::Agreeing(sent, Box::new(reply)), work))
            }
        }
    }

    fn judge(&self, sent: &Sent, reply: &Reply, secret: Option<&[u8]>) -> Result<State, Failure> {
        let context = |sequence| Context {
            sequence,
            transaction: self.transaction,
            secure_channel: self.secure_channel,
            host: &self.host,
            subsystem: &self.subsystem,
        };
        let hash = sent.hash;
        let expected = hash.response(
            &self.credentials.host_key.bound_to(&self.host),
            &hash.augment(&sent.challenge, secret),
            Role::Host,
            &context(sent.sequence),
        );
        if !same(&expected, &reply.response) {
            return Err(Failure::Failed);
        }
        let Some(challenge) = &reply.challenge else {
            return Ok(State::Say(success1(self.transaction, hash, None), Box::new(State::Done)));
        };
        // A host that echoes our own challenge wants us to compute its response.
        if same(challenge, &sent.challenge) {
            return Err(Failure::Failed);
        }
        let key = self.credentials.controller_key.as_ref().ok_or(Failure::Failed)?;
        let proof = hash.response(
            &key.bound_to(&self.subsystem),
            &hash.augment(challenge, secret),
            Role::Controller,
            &context(reply.sequence),
        );
        let message = success1(self.transaction, hash, Some(&proof));
        Ok(State::Say(message, Box::new(State::Proven)))
    }
}
