//! One connection on the service thread: its socket, and what it is by now.
//!
//! ```text
//!  Silent ─ first bytes ─┬────────────────► Link (protocol state) ─┐
//!                        ├─ TLS ► Shaking ──►                      ├─► Mute: nothing is said
//!                        └─ no NVMe: told so ──────────────────────┘
//! ```

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use lamina_nvmf::SlotId;
use lamina_nvmf::controller::{Connected, ControllerKey, TlsIdentity};
use lamina_nvmf::pool::Pool;
use lamina_nvmf::subsystem::PortId;
use lamina_nvmf::tls_psk::TlsKey;
use lamina_nvmf::transport::{Connection, GREETING_BYTES, Greeting, greeting};
use lamina_nvmf::wire::{Completion, Status};

use super::keys::PortKeys;
use super::link::Link;
use super::poller::Edge;
use super::stream::{Moved, Stream};
use super::tls::TlsStream;
use super::transport::Settings;

/// First byte of a TLS handshake; of an ICReq it is 0.
const TLS_HANDSHAKE: u8 = 0x16;

/// Bytes that a host may still send when it has been told why its connection ends.
const LINGERING_BYTES_MAX: usize = 1 << 20;

/// What a connection is.
pub(super) enum Stage {
    /// Nothing has come yet.
    Silent,
    /// The protocol speaks, no queue yet.
    Fresh,
    /// An admin queue.
    Admin(ControllerKey),
    /// An I/O queue that has to authenticate first.
    Proving(Box<Connected>),
    /// An I/O queue whose Connect, or last authentication command, is being answered.
    Moving(Box<Connected>),
    /// To be ended when the last answer is sent.
    Ending,
    /// Everything was said: closed when the host has closed its half.
    Lingering,
}

/// What the first bytes of a connection say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Begun {
    /// There are too few.
    No,
    /// Its protocol begins.
    Yes,
    /// It is no NVMe, and has been told so.
    Refused,
    /// It is over.
    Over,
}

/// A connection.
pub(super) struct Conn {
    pub(super) channel: Channel,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) port: PortId,
    pub(super) stage: Stage,
    /// When it is closed whatever it does.
    pub(super) deadline_ns: Option<u64>,
    /// Commands taken and not answered.
    pub(super) running: Vec<SlotId>,
    /// Whom the TLS key belongs to.
    pub(super) tls: Option<TlsIdentity>,
    /// The host has ended its half: the protocol's state must know when it is made.
    pub(super) ended: bool,
    /// It is, or was, a queue.
    pub(super) queue: bool,
}

/// Protocol state is made at the first byte: those who say nothing cost a socket and no more.
pub(super) enum Channel {
    Silent(Stream),
    Shaking(Box<TlsStream>),
    Link(Box<Link>),
    /// Nothing is said any more; so many bytes are still waited for.
    Mute(Box<Stream>, usize),
    /// Between two of the others, or failed.
    Gone,
}

impl Conn {
    /// One just accepted.
    pub(super) fn new(stream: Stream, port: PortId, deadline_ns: u64) -> Conn {
        let (peer, local) = (stream.peer(), stream.local());
        Conn {
            channel: Channel::Silent(stream),
            peer,
            local,
            port,
            stage: Stage::Silent,
            deadline_ns: Some(deadline_ns),
            running: Vec::new(),
            tls: None,
            ended: false,
            queue: false,
        }
    }

    /// One that has ended, and whose host is still to read why.
    pub(super) fn farewell(stream: Stream) -> Conn {
        let mut conn = Conn::new(stream, PortId(0), 0);
        let Channel::Silent(stream) = std::mem::replace(&mut conn.channel, Channel::Gone) else {
            unreachable!("just made so");
        };
        conn.mute(stream);
        conn
    }

    /// Closes our half; what still comes will be dropped.
    fn mute(&mut self, stream: Stream) {
        // If that fails, so does the next look at it.
        let _ = stream.end_sending();
        self.channel = Channel::Mute(Box::new(stream), LINGERING_BYTES_MAX);
        self.stage = Stage::Lingering;
    }

    /// Says no more, and waits for the host to close its half; buffers go back. True if there is
    /// nobody to wait for.
    pub(super) fn stop_talking(&mut self, pool: &mut Pool) -> bool {
        for slot in self.running.clone() {
            self.respond(slot, Status::ABORTED_SQ_DELETION.into(), 0);
        }
        match std::mem::replace(&mut self.channel, Channel::Gone) {
            Channel::Link(mut link) if !link.broken => {
                link.connection.close(pool);
                self.mute(link.stream);
                false
            }
            other => {
                self.channel = other;
                true
            }
        }
    }

    /// Drops what has come. True if no more is to come, or waited for.
    pub(super) fn is_drained(&mut self) -> bool {
        let Channel::Mute(stream, left) = &mut self.channel else { return true };
        while *left > 0 {
            match stream.discard(*left) {
                Ok(Moved::Bytes(bytes)) => *left -= bytes,
                Ok(Moved::Later) => return false,
                Ok(Moved::End) | Err(_) => return true,
            }
        }
        true
    }

    /// Looks at the first bytes; whoever is no NVMe host is told so.
    pub(super) fn look(&mut self) -> Begun {
        let Channel::Silent(stream) = &mut self.channel else { return Begun::Yes };
        let mut first = [0; GREETING_BYTES];
        let refusal = match stream.peek(&mut first) {
            Ok(None) => return Begun::No,
            Ok(Some(_)) if first[0] == TLS_HANDSHAKE => return Begun::Yes,
            Ok(Some(bytes)) => match greeting(&first[..bytes]) {
                Greeting::Short => return Begun::No,
                Greeting::Icreq if bytes < GREETING_BYTES => {
                    // The rest, all at once.
                    let waits = stream.wait_for(GREETING_BYTES);
                    return if waits.is_ok() { Begun::No } else { Begun::Over };
                }
                Greeting::Icreq => return Begun::Yes,
                Greeting::Terminated => return Begun::Over,
                Greeting::Wrong(refusal) => refusal,
            },
            Err(_) => return Begun::Over,
        };
        if stream.send(&[IoSlice::new(&refusal)]).is_err() {
            return Begun::Over;
        }
        let Channel::Silent(stream) = std::mem::replace(&mut self.channel, Channel::Gone) else {
            unreachable!("looked at above");
        };
        self.mute(stream);
        Begun::Refused
    }

    /// The host's end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The socket and the protocol's state, once something has come.
    pub(super) fn link(&mut self) -> Option<&mut Link> {
        match &mut self.channel {
            Channel::Link(link) => Some(link),
            Channel::Silent(_) | Channel::Shaking(_) | Channel::Mute(..) | Channel::Gone => None,
        }
    }

    /// Ends a command.
    pub(super) fn respond(&mut self, slot: SlotId, completion: Completion, data_len: u32) {
        self.running.retain(|running| *running != slot);
        if let Some(link) = self.link() {
            link.connection.respond(slot, completion, data_len);
        }
    }

    /// Ends a command that its host has forgotten.
    pub(super) fn forget(&mut self, slot: SlotId, pool: &mut Pool) {
        self.running.retain(|running| *running != slot);
        if let Some(link) = self.link() {
            link.connection.forget(slot, pool);
        }
    }

    /// Notes an edge.
    pub(super) fn edge(&mut self, edge: Edge) {
        self.ended |= edge.ended;
        if let Channel::Link(link) = &mut self.channel {
            link.edge(edge);
        }
    }

    /// Makes the TLS handshake, if it begins with one, and the protocol's state. False: the
    /// connection is to be closed.
    pub(super) fn begin(
        &mut self,
        settings: &Settings,
        keys: impl FnOnce() -> Arc<PortKeys>,
    ) -> bool {
        match std::mem::replace(&mut self.channel, Channel::Gone) {
            Channel::Silent(mut stream) => {
                let mut first = [0];
                let Ok(Some(_)) = stream.peek(&mut first) else { return false };
                if stream.settle_in().is_err() {
                    return false;
                }
                self.local = stream.local();
                if first != [TLS_HANDSHAKE] {
                    self.link_up(settings, stream);
                    return true;
                }
                let known = keys();
                let keys: Vec<TlsKey> = known.keys.iter().map(|k| k.key.clone()).collect();
                let plain = stream.into_plain();
                let accepted = plain.map(|socket| TlsStream::accept(socket, &keys));
                let Some(Ok(tls)) = accepted else { return false };
                self.channel = Channel::Shaking(Box::new(tls));
                self.shake(settings, &known)
            }
            Channel::Shaking(tls) => {
                self.channel = Channel::Shaking(tls);
                self.shake(settings, &keys())
            }
            other => {
                self.channel = other;
                true
            }
        }
    }

    fn shake(&mut self, settings: &Settings, keys: &PortKeys) -> bool {
        let Channel::Shaking(tls) = &mut self.channel else { return false };
        match tls.handshake() {
            Ok(false) => true,
            Err(_) => false,
            Ok(true) => {
                let identity = tls.identity();
                let key = keys.keys.iter().find(|k| Some(&k.key.identity) == identity.as_ref());
                let Some(key) = key else { return false };
                self.tls = Some(key.whose.clone());
                let Channel::Shaking(tls) = std::mem::replace(&mut self.channel, Channel::Gone)
                else {
                    unreachable!("looked at above");
                };
                self.link_up(settings, Stream::secured(self.peer, self.local, tls));
                true
            }
        }
    }

    fn link_up(&mut self, settings: &Settings, stream: Stream) {
        let connection = Connection::new(settings.connection_limits());
        let mut link = Link::new(stream, connection);
        link.ended = self.ended;
        self.channel = Channel::Link(Box::new(link));
        self.stage = Stage::Fresh;
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.channel {
            Channel::Silent(stream) => stream.as_fd(),
            Channel::Shaking(tls) => tls.as_fd(),
            Channel::Link(link) => link.stream.as_fd(),
            Channel::Mute(stream, _) => stream.as_fd(),
            Channel::Gone => unreachable!("it is ended by whoever made it so"),
        }
    }
}
