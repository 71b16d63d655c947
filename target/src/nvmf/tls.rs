//! TLS 1.3 with pre-shared keys over a non-blocking socket: the secure channel of NVMe/TCP.
//!
//! ```text
//!  handshake() ── until true ──▶ read(), write(), flush()
//!       └─ which key was taken: identity()
//! ```
//!
//! Records are made and opened by s2n-tls. Keys come from [`lamina_nvmf::tls_psk`]. The handshake
//! costs milliseconds of computing and so belongs on a control thread; what comes after it may be
//! polled by a reactor.
//!
//! Source: TCP 3.6 (transport specific secure channel), RFC 8446.
// UNSAFETY: s2n-tls moves bytes through two C callbacks with a context of ours, the descriptor.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io::{self, ErrorKind, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::task::Poll;

use lamina_nvmf::tls_psk::{Hash, TlsKey};
use s2n_tls::config::Config;
use s2n_tls::connection::Connection;
use s2n_tls::enums::{Blinding, Mode, PskHmac, Version};
use s2n_tls::psk::Psk;
use s2n_tls::security::DEFAULT_TLS13;

/// Plain bytes gathered for one send: what one record can carry.
const STAGING_BYTES: usize = 16 << 10;

/// One end of a TLS connection.
pub struct TlsStream {
    connection: Connection,
    /// Open for as long as the connection, whose callbacks know its number.
    socket: TcpStream,
    /// Accepted by `write` and not yet by the connection.
    staging: Vec<u8>,
    staged: usize,
}

/// Told apart from I/O errors by its kind.
fn refused(what: &str, error: &s2n_tls::error::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what}: {}", error.message()))
}

/// Gives `io::Error`s to what s2n says.
fn settle<T>(what: &str, poll: Poll<Result<T, s2n_tls::error::Error>>) -> io::Result<T> {
    match poll {
        Poll::Ready(Ok(value)) => Ok(value),
        Poll::Ready(Err(error)) => Err(refused(what, &error)),
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

/// The context of the callbacks is no pointer: it is the descriptor itself.
fn descriptor(context: *mut c_void) -> c_int {
    context.addr() as c_int
}

/// s2n-tls reads `errno` after a callback has returned -1, so these are plain C calls.
unsafe extern "C" fn receive(context: *mut c_void, bytes: *mut u8, len: u32) -> c_int {
    // SAFETY: s2n-tls gives `len` writable bytes at `bytes`; recv writes no more than that.
    unsafe { libc::recv(descriptor(context), bytes.cast(), len as usize, 0) as c_int }
}

unsafe extern "C" fn send(context: *mut c_void, bytes: *const u8, len: u32) -> c_int {
    // SAFETY: s2n-tls gives `len` readable bytes at `bytes`.
    unsafe {
        libc::send(descriptor(context), bytes.cast(), len as usize, libc::MSG_NOSIGNAL) as c_int
    }
}

impl TlsStream {
    /// The target's end. `keys` are all that any host may use here.
    ///
    /// # Errors
    /// No memory, or a key that s2n-tls does not take.
    pub fn accept(socket: TcpStream, keys: &[TlsKey]) -> io::Result<TlsStream> {
        TlsStream::new(Mode::Server, socket, keys)
    }

    /// The initiator's end, which offers these keys.
    ///
    /// # Errors
    /// The same.
    pub fn connect(socket: TcpStream, keys: &[TlsKey]) -> io::Result<TlsStream> {
        TlsStream::new(Mode::Client, socket, keys)
    }

    fn new(mode: Mode, socket: TcpStream, keys: &[TlsKey]) -> io::Result<TlsStream> {
        socket.set_nonblocking(true)?;
        let made = || -> Result<Connection, s2n_tls::error::Error> {
            let mut config = Config::builder();
            config.set_security_policy(&DEFAULT_TLS13)?;
            let mut connection = Connection::new(mode);
            connection.set_config(config.build()?)?;
            // On a failure the connection is closed at once instead of sleeping here.
            connection.set_blinding(Blinding::SelfService)?;
            for key in keys {
                let mut psk = Psk::builder()?;
                psk.set_identity(key.identity.as_bytes())?;
                psk.set_secret(&key.secret)?;
                psk.set_hmac(match key.hash {
                    Hash::Sha256 => PskHmac::SHA256,
                    Hash::Sha384 => PskHmac::SHA384,
                })?;
                connection.append_psk(&psk.build()?)?;
            }
            let context = std::ptr::without_provenance_mut(socket.as_raw_fd() as usize);
            connection.set_receive_callback(Some(receive))?;
            connection.set_send_callback(Some(send))?;
            // SAFETY: the contexts are numbers, never dereferenced, and the socket they name is
            // kept as long as the connection.
            unsafe {
                connection.set_receive_context(context)?;
                connection.set_send_context(context)?;
            }
            Ok(connection)
        };
        let connection = made().map_err(|e| refused("no TLS connection", &e))?;
        Ok(TlsStream { connection, socket, staging: Vec::with_capacity(STAGING_BYTES), staged: 0 })
    }

    /// Goes on with the handshake. True: done; false: the other side's turn.
    ///
    /// # Errors
    /// `InvalidData`: no key in common, a wrong key, or no TLS 1.3.
    pub fn handshake(&mut self) -> io::Result<bool> {
        match self.connection.poll_negotiate().map_ok(|_| ()) {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(error)) => Err(refused("TLS handshake failed", &error)),
            Poll::Ready(Ok(())) => match self.connection.actual_protocol_version() {
                Ok(Version::TLS13) if self.identity().is_some() => Ok(true),
                _ => Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "TLS handshake failed: it was not TLS 1.3 with a pre-shared key",
                )),
            },
        }
    }

    /// Identity of the key that was taken; `None` before the end of the handshake.
    pub fn identity(&self) -> Option<String> {
        let len = self.connection.negotiated_psk_identity_length().ok()?;
        let mut bytes = vec![0; len];
        self.connection.negotiated_psk_identity(&mut bytes).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    }

    /// Reads what has come; 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`: nothing yet. `InvalidData`: a record that does not open, or an alert.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        settle("TLS connection failed", self.connection.poll_recv(buffer))
    }

    /// Takes as much as it has room for; [`TlsStream::flush`] may have to finish it.
    ///
    /// # Errors
    /// `WouldBlock`: nothing was taken. `InvalidData`: the connection has failed.
    pub fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        for part in parts {
            let room = STAGING_BYTES - self.staging.len();
            self.staging.extend_from_slice(&part[..part.len().min(room)]);
        }
        let taken = self.staging.len();
        self.flush()?;
        Ok(taken)
    }

    /// Sends what was taken. True if all of it is out.
    ///
    /// # Errors
    /// `InvalidData`: the connection has failed.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.staged < self.staging.len() {
            match self.connection.poll_send(&self.staging[self.staged..]) {
                Poll::Ready(Ok(sent)) => self.staged += sent,
                Poll::Ready(Err(error)) => return Err(refused("TLS connection failed", &error)),
                Poll::Pending => return Ok(false),
            }
        }
        self.staging.clear();
        self.staged = 0;
        Ok(true)
    }

    /// True if something was taken and is not out yet.
    pub fn wants_flush(&self) -> bool {
        self.staged < self.staging.len()
    }

    /// True if bytes can be read although the socket shows none.
    pub fn has_buffered(&self) -> bool {
        self.connection.peek_len() > 0
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }
}

impl AsFd for TlsStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_nvmf::tls_psk::ConfiguredKey;
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0042-4210-8038-b4c04f503434";
    const SUBSYSTEM: &str = "nqn.2016-06.io.lamina:cnode1";
    /// 32 bytes 0, 1, 2, ... and the same with 48.
    const KEYS: [&str; 2] = [
        "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
        "NVMeTLSkey-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
    ];

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn keys(which: usize, host: &str) -> Vec<TlsKey> {
        ConfiguredKey::parse(KEYS[which]).unwrap().keys(host, SUBSYSTEM)
    }

    /// Both handshakes, turn by turn.
    fn shake(client: &mut TlsStream, server: &mut TlsStream) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        let (mut c, mut s) = (false, false);
        while !(c && s) {
            assert!(Instant::now() < end, "the handshake hangs");
            c = c || client.handshake()?;
            s = s || server.handshake()?;
        }
        Ok(())
    }

    #[test]
    fn data_pass_both_ways_with_either_hash_and_either_version_of_the_identity() {
        for which in 0..2 {
            for version in 0..2 {
                let (client, server) = pair();
                let all = keys(which, HOST);
                let mut client = TlsStream::connect(client, &all[version..=version]).unwrap();
                let mut server = TlsStream::accept(server, &all).unwrap();
                shake(&mut client, &mut server).unwrap();
                assert_eq!(server.identity().as_deref(), Some(all[version].identity.as_str()));
                let sent: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
                transfer(&mut client, &mut server, &sent);
                transfer(&mut server, &mut client, &sent);
            }
        }
    }

    fn transfer(from: &mut TlsStream, to: &mut TlsStream, sent: &[u8]) {
        let (mut at, mut got) = (0, Vec::new());
        let mut buffer = [0; 5000];
        let end = Instant::now() + Duration::from_secs(20);
        while got.len() < sent.len() {
            assert!(Instant::now() < end);
            let rest = &sent[at..];
            let (one, two) = rest.split_at(rest.len().min(100));
            match from.write_vectored(&[IoSlice::new(one), IoSlice::new(two)]) {
                Ok(taken) => at += taken,
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            while let Ok(len) = to.read(&mut buffer) {
                assert!(len > 0);
                got.extend_from_slice(&buffer[..len]);
            }
        }
        assert!(from.flush().unwrap() && !from.wants_flush());
        assert!(got == sent);
    }

    #[test]
    fn a_wrong_key_and_an_unknown_host_are_refused() {
        let mut wrong = keys(0, HOST);
        wrong.iter_mut().for_each(|key| key.secret[0] ^= 1);
        for offered in [wrong, keys(0, "nqn.2014-08.org.nvmexpress:other")] {
            let (client, server) = pair();
            let mut client = TlsStream::connect(client, &offered).unwrap();
            let mut server = TlsStream::accept(server, &keys(0, HOST)).unwrap();
            let error = shake(&mut client, &mut server).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        }
    }

    #[test]
    fn what_is_not_tls_is_refused() {
        let (mut client, server) = pair();
        client.write_all(&[0, 0, 128, 0, 128, 0, 0, 0].repeat(64)).unwrap();
        let mut server = TlsStream::accept(server, &keys(0, HOST)).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let error = loop {
            assert!(Instant::now() < end);
            match server.handshake() {
                Ok(done) => assert!(!done),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
