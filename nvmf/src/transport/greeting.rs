//! The first bytes of a connection, before anything is set up for it.
//!
//! Whoever does not begin with an ICReq is answered from here as [`super::Connection`] would
//! answer, without one: port scanners and floods of garbage are to cost as little as possible.

use zerocopy::{FromBytes, IntoBytes};

use super::receive::{Crime, check_common};
use super::send::term_header;
use super::{Agreed, State};
use crate::wire::pdu::{CommonHeader, IcReq, TYPE_H2C_TERM, TermReq};

/// Bytes that a host sends before it waits for an answer: an ICReq.
pub const GREETING_BYTES: usize = size_of::<IcReq>();
/// Bytes of the termination request that answers others.
const REFUSAL_BYTES: usize = size_of::<TermReq>() + size_of::<CommonHeader>();

/// What a connection begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greeting {
    /// Too few bytes to tell.
    Short,
    /// An ICReq, as far as its common header says.
    Icreq,
    /// Something else: send this, then end the connection.
    Wrong([u8; REFUSAL_BYTES]),
    /// A termination request, which is not answered.
    Terminated,
}

/// Judges the first bytes of a connection.
pub fn greeting(bytes: &[u8]) -> Greeting {
    let Ok((common, _)) = CommonHeader::read_from_prefix(bytes) else { return Greeting::Short };
    if common.kind == TYPE_H2C_TERM {
        return Greeting::Terminated;
    }
    match check_common(&common, State::New, Agreed::default()) {
        Ok(_) => Greeting::Icreq,
        Err(Crime { fes, fei, .. }) => {
            let shown = common.as_bytes();
            let mut refusal = [0; REFUSAL_BYTES];
            let (header, data) = refusal.split_at_mut(size_of::<TermReq>());
            header.copy_from_slice(term_header(fes, fei, shown.len()).as_bytes());
            data.copy_from_slice(shown);
            Greeting::Wrong(refusal)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use crate::transport::{Connection, Limits};

    /// What a connection sends when these bytes are the first.
    fn answer(bytes: &[u8]) -> Vec<u8> {
        let mut pool = Pool::new(2, 2, 128 << 10);
        let mut connection = Connection::new(Limits::default());
        assert!(connection.join(&mut pool));
        let space = connection.receive_space();
        space[..bytes.len()].copy_from_slice(bytes);
        connection.received(bytes.len(), &mut pool);
        let mut out = Vec::new();
        connection.transmit(&mut out);
        let sent: Vec<u8> = out.iter().flat_map(|piece| piece.iter().copied()).collect();
        connection.close(&mut pool);
        sent
    }

    #[test]
    fn it_answers_what_a_connection_would() {
        let mut seen = [0; 3];
        for kind in 0..=255u8 {
            for (flags, hlen) in [(0, 128), (1, 128), (0, 72), (3, 24), (0, 0), (255, 255)] {
                let mut bytes = [0x5a; 128];
                bytes[..8].copy_from_slice(&[kind, flags, hlen, 0, 128, 0, 0, 0]);
                match greeting(&bytes) {
                    Greeting::Short => unreachable!("128 bytes are enough"),
                    Greeting::Icreq => {
                        assert!(kind == 0 && hlen == 128);
                        seen[0] += 1;
                    }
                    Greeting::Wrong(refusal) => {
                        assert_eq!(answer(&bytes), refusal, "{kind:#x} {flags:#x} {hlen}");
                        seen[1] += 1;
                    }
                    Greeting::Terminated => {
                        assert_eq!((kind, answer(&bytes).len()), (TYPE_H2C_TERM, 0));
                        seen[2] += 1;
                    }
                }
            }
        }
        assert_eq!(seen, [2, 255 * 6 - 2, 6]);
        assert_eq!((greeting(&[0; 7]), greeting(&[])), (Greeting::Short, Greeting::Short));
    }
}
