//! The receive low-water mark of a socket: how many bytes have to be there before it is told of.
// UNSAFETY: SO_RCVLOWAT is an option that no safe crate among ours knows: a plain C call.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// Has a socket, or all that will be accepted from a listening one, tell of what came only when
/// there are `bytes` of it, or its end. What there is can be read all the same.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_low_water(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    let value: *const i32 = &bytes;
    // SAFETY: the option takes an int, which lives until the call returns; the descriptor is
    // borrowed, so open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            value.cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockets_take_it_and_other_files_do_not() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        set_low_water(&socket, 128).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(set_low_water(&file, 128).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
