//! Fuzz target of the PDU stream: a host that builds PDUs, right ones and ones with changed bytes,
//! in any order, cut anywhere. `cargo test` replays its inputs; `scripts/fuzz` finds new ones.
//!
//! ```text
//!  input: options | cut | alignments | depth | steps of 10 bytes:
//!         | what | identifier | length (2) | lie: how, where, value (4) | …bytes of a raw step
//! ```

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use crate::host::Builder;
use crate::pool::{Pool, ShareMax};
use crate::transport::{Fault, Limits};
use crate::wire::{Command, Fuse, Sgl, pdu as layout};
use rig::{Cut, Got, Reply, Rig, flush, pattern, read, write};

#[path = "../tests/rig/mod.rs"]
mod rig;

const STEP_BYTES: usize = 10;
/// Steps of one input.
const STEPS_MAX: usize = 48;
const DATA_MAX: u32 = 16384;
const IDENTIFIERS: u16 = 11;

/// Data that the controller has asked for.
struct Asked {
    cid: u16,
    ttag: u16,
    sent: u32,
    len: u32,
}

struct Host {
    rig: Rig,
    asked: Vec<Asked>,
    /// A PDU with changed bytes, or several at once, have been sent.
    lied: bool,
}

struct Input<'a> {
    header: [u8; 4],
    steps: &'a [u8],
}

/// How a run ended: what the device got, why the connection is over, and whether the host lied (or
/// waits for itself).
type Outcome = (Vec<Got>, Option<Fault>, bool);

impl Host {
    fn new(input: &Input, cut: Cut, pool: Pool) -> Host {
        let [options, _, alignment, depth] = input.header;
        let limits = Limits {
            data_max: DATA_MAX,
            maxh2cdata: 4096,
            c2h_data_max: 5000,
            cpda: alignment >> 4,
            receive_bytes: 4096,
            buffers: ShareMax { small: 4, large: 2 },
            ..Limits::default()
        };
        let mut rig = Rig::from_pool(limits, pool);
        // With commands held, or one at a time, a host can stand in its own way.
        (rig.cut, rig.may_stick) = (cut, true);
        rig.hpda = alignment & 15;
        let (header_digest, data_digest) = (options & 1 != 0, options & 2 != 0);
        rig.initialize(Builder { header_digest, data_digest, cpda: limits.cpda });
        if options & 4 == 0 {
            rig.conn.set_sq(2 + u16::from(depth % 15), options & 8 != 0);
        }
        rig.hold = options & 16 != 0;
        Host { rig, asked: Vec::new(), lied: false }
    }

    /// The next piece of data that was asked for, if any was.
    fn data(&mut self, which: usize, len: u32, pdu: &mut Vec<u8>) {
        let count = self.asked.len();
        if count == 0 {
            return;
        }
        let asked = &mut self.asked[which % count];
        let len = (1 + len % 4096).min(asked.len - asked.sent);
        let last = asked.sent + len == asked.len;
        let data = &pattern(asked.cid.into(), asked.len)[asked.sent as usize..][..len as usize];
        self.rig.builder.h2c_data(pdu, (asked.cid, asked.ttag), asked.sent, data, last);
        asked.sent += len;
        if last {
            self.asked.swap_remove(which % count);
        }
    }

    fn step(&mut self, step: &[u8; STEP_BYTES], raw: &[u8]) -> usize {
        let [what, id, len @ .., how, at, v0, v1, v2, v3] = *step;
        let len = u32::from(u16::from_le_bytes(len));
        let cid = u16::from(id) % IDENTIFIERS;
        let fuse = [Fuse::None, Fuse::First, Fuse::Second, Fuse::None][usize::from(what >> 6)];
        let builder = self.rig.builder;
        let mut pdu = Vec::new();
        let mut used = 0;
        match what & 7 {
            0 => {
                let len = 1 + len % 8192;
                let command = Command { fuse, ..write(cid, Sgl::in_capsule(len)) };
                builder.command(&mut pdu, &command, &pattern(cid.into(), len));
            }
            1 => {
                let sgl = Sgl::transport(len % (DATA_MAX + 2));
                builder.command(&mut pdu, &Command { fuse, ..write(cid, sgl) }, &[]);
            }
            2 => builder.command(&mut pdu, &read(cid, len % (DATA_MAX + 2)), &[]),
            3 => {
                let command = Command { opcode: (len >> 8) as u8, fuse, ..flush(cid) };
                builder.command(&mut pdu, &command, &[]);
            }
            4 => self.data(usize::from(id), len, &mut pdu),
            5 => {
                used = raw.len().min(len as usize % 64);
                pdu.extend_from_slice(&raw[..used]);
                self.lied = true;
            }
            6 => self.rig.answer_held(),
            _ if len & 1 == 0 => builder.icreq(&mut pdu, id, len),
            _ => builder.term(&mut pdu, id.into(), len, &[what; 128][..len as usize % 129]),
        }
        if how & 1 != 0 && pdu.len() > 4 && used == 0 {
            let at = usize::from(at) % pdu.len().min(160);
            let value = [v0, v1, v2, v3];
            let value = &value[..if how & 2 != 0 { 4.min(pdu.len() - at) } else { 1 }];
            self.lied |= pdu[at..at + value.len()] != *value;
            pdu[at..at + value.len()].copy_from_slice(value);
            let digested = layout::header_bytes(pdu[0]).is_some_and(|hlen| pdu.len() >= hlen + 4);
            if how & 4 != 0 && digested {
                builder.reseal(&mut pdu);
            }
        }
        self.rig.send(&pdu);
        used
    }

    /// Looks at what came back: the controller keeps to the protocol.
    fn look(&mut self) {
        for reply in self.rig.replies() {
            match reply {
                Reply::R2t { cid, ttag, at, len } => {
                    assert!(at == 0 && len > 0 && len <= DATA_MAX);
                    self.asked.push(Asked { cid, ttag, sent: 0, len });
                }
                Reply::Data { bytes, .. } => assert!(!bytes.is_empty() && bytes.len() <= 5000),
                Reply::Term { fes, .. } => {
                    assert!((1..=6).contains(&fes) && self.rig.conn.fatal().is_some());
                }
                Reply::Response(_) => {}
                Reply::IcResp { .. } => panic!("one ICResp is enough"),
            }
        }
        // A host that stands in its own way: the pieces decide where it notices.
        self.lied |= self.rig.stuck || self.rig.conn.is_paused();
        assert!(self.rig.conn.running() <= self.rig.conn.in_flight());
        assert!(self.rig.conn.in_flight() <= 16);
    }
}

/// Runs an input; all buffers come back.
fn run(input: &Input, cut: Cut, pool: Pool) -> (Outcome, Pool) {
    let mut host = Host::new(input, cut, pool);
    let mut rest = input.steps;
    for _ in 0..STEPS_MAX {
        let Some((step, later)) = rest.split_first_chunk::<STEP_BYTES>() else { break };
        let used = host.step(step, later);
        rest = &later[used..];
        host.look();
        if host.rig.conn.is_closed() || host.rig.stuck {
            break;
        }
    }
    let outcome = (std::mem::take(&mut host.rig.got), host.rig.conn.fatal().copied(), host.lied);
    let all = (POOL_SMALL, POOL_LARGE);
    let pool = host.rig.finish();
    assert_eq!(pool.free(), all, "all buffers are back");
    (outcome, pool)
}

const POOL_SMALL: usize = 4;
const POOL_LARGE: usize = 2;

#[test]
fn nvme_pdu() {
    let pool = Pool::new(POOL_SMALL, POOL_LARGE, DATA_MAX as usize);
    let pool = AssertUnwindSafe(RefCell::new(Some(pool)));
    bolero::check!(name = "nvme_pdu")
        .with_iterations(0)
        .with_test_time(Duration::MAX)
        .with_shrink_time(Duration::ZERO)
        .for_each(move |bytes: &[u8]| {
            let Some((header, steps)) = bytes.split_first_chunk::<4>() else { return };
            let input = Input { header: *header, steps };
            let pool = &pool;
            let fresh = || Pool::new(POOL_SMALL, POOL_LARGE, DATA_MAX as usize);
            let taken = pool.borrow_mut().take().unwrap_or_else(fresh);
            let (whole, taken) = run(&input, Cut::Whole, taken);
            let cut = match input.header[1] {
                n if n < 64 => Cut::Every(1 + usize::from(n)),
                n => Cut::Random(n.into()),
            };
            let (pieces, taken) = run(&input, cut, taken);
            *pool.borrow_mut() = Some(taken);
            // Several PDUs at once meet each other's answers sooner or later.
            if !whole.2 && !pieces.2 {
                assert_eq!(whole, pieces, "where a stream is cut does not matter");
            }
        });
}
