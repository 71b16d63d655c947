//! The service thread: one a daemon, asleep unless a connection, a message or the time wants it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use lamina_bdev::{Error, ErrorKind};

use super::Caps;
use super::core::{Core, DOOR, INBOX};
use super::message::{ConnectionId, GroupMsg, Peers, Save, ServiceMsg};
use super::poller::Edge;
use super::transport::Settings;
use crate::log;
use crate::reactor::clock::now_ns;
use crate::reactor::handle::{Message, ReactorHandle};
use crate::reactor::mailbox::Mailbox;

/// Messages in its inbox.
const INBOX_CAPACITY: usize = 1024;
/// Messages taken in one turn.
const MESSAGES_MAX: usize = 128;
/// How often time is looked at, milliseconds.
const TICK_MS: u64 = 100;
/// How long a control thread waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The service thread, seen from outside.
#[derive(Clone)]
pub struct ServiceHandle {
    inbox: Arc<Mailbox<ServiceMsg>>,
}

impl ServiceHandle {
    /// Starts the thread, and a group on each reactor.
    ///
    /// # Errors
    /// `Io`: no epoll set, no eventfd, no thread.
    pub fn start(
        reactors: Vec<Arc<ReactorHandle>>,
        save: Box<dyn Fn(Save) + Send>,
    ) -> Result<(ServiceHandle, JoinHandle<()>), Error> {
        let failed =
            |e: io::Error| Error::new(ErrorKind::Io, format!("the NVMe service cannot start: {e}"));
        let inbox = Arc::new(Mailbox::new(INBOX_CAPACITY).map_err(failed)?);
        for reactor in &reactors {
            let peers = Peers { reactors: reactors.clone(), service: inbox.clone() };
            reactor.post(Message::Nvmf(GroupMsg::Start(Box::new(peers))))?;
        }
        let caps = Caps::default();
        let settings = Settings::default();
        let core = Core::new(caps, settings, inbox.clone(), reactors, save).map_err(failed)?;
        let thread = std::thread::Builder::new().name("nvmf".into());
        let thread = thread.spawn(move || run(core)).map_err(failed)?;
        Ok((ServiceHandle { inbox }, thread))
    }

    /// Runs `what` on the service thread, between two turns, and waits for its result.
    ///
    /// # Errors
    /// `Io`: no answer in time.
    pub fn run<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = sync_channel(1);
        self.post(ServiceMsg::Run(Box::new(move |core| {
            let _ = reply.try_send(what(core));
        })))?;
        answer.recv_timeout(ANSWER_TIMEOUT).map_err(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            let why = format!("the NVMe service has not answered for {seconds} s; try again");
            Error::new(ErrorKind::Io, why)
        })
    }

    /// Tells the service thread something.
    ///
    /// # Errors
    /// `Io` if it takes no messages.
    pub fn post(&self, message: ServiceMsg) -> Result<(), Error> {
        self.inbox.post(message).map_err(|_| {
            let why = "the NVMe service takes no messages; restart laminad";
            Error::new(ErrorKind::Io, why)
        })
    }
}

fn run(mut core: Core) {
    let mut edges: Vec<Edge> = Vec::new();
    let mut next_tick = now_ns();
    while !core.stopping || !core.is_quiet() {
        let now = now_ns();
        let timeout_ns = timeout(&mut core, now, next_tick);
        edges.clear();
        match core.poller.wait_ns(timeout_ns) {
            Ok(found) => edges.extend(found),
            Err(e) => {
                // Its own set is whole, so this passes; better slow than dead.
                log::error(format!("the NVMe service cannot wait: {e}"));
                std::thread::sleep(Duration::from_millis(TICK_MS));
            }
        }
        turn(&mut core, &edges);
        let now = now_ns();
        if now >= next_tick {
            core.tick(now);
            next_tick = now + TICK_MS * 1_000_000;
        }
    }
}

/// How long the thread may sleep, nanoseconds; `None`: until something is there.
fn timeout(core: &mut Core, now: u64, next_tick: u64) -> Option<u64> {
    if !core.active.is_empty() || !core.inbox.is_empty() {
        return Some(0);
    }
    let door =
        (core.knocked || !core.knocking.is_empty()).then(|| core.pace.wait_ns(now).unwrap_or(0));
    let tick = core.wants_ticks().then(|| next_tick.saturating_sub(now));
    door.into_iter().chain(tick).min()
}

/// One turn over everything that wants one.
fn turn(core: &mut Core, edges: &[Edge]) {
    let now = now_ns();
    for edge in edges {
        match edge.id {
            INBOX => core.inbox.drain_wake(),
            DOOR => core.knocked = true,
            id => {
                let id = ConnectionId(id);
                if let Some(conn) = core.conns.get_mut(&id) {
                    conn.edge(*edge);
                    core.wake(id);
                }
            }
        }
    }
    for _ in 0..MESSAGES_MAX {
        let Some(message) = core.inbox.take() else { break };
        core.message(message);
    }
    for id in std::mem::take(&mut core.active) {
        core.turn(id, now);
    }
    core.look_at_door(now);
}
