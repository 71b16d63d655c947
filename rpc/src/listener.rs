//! The socket that the server listens on: one owner a path, never another program's file.
//!
//! ```text
//!  PATH.lock   flock held as long as the server lives; holds its process id
//!  PATH        the socket, mode 0600 from its first moment
//! ```
//!
//! The lock is what decides who owns the path, so a socket file found while holding it is left
//! over from a server that died, and is removed. The file names and the kind of lock are those of
//! SPDK: the two cannot take the same path from each other.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a Unix socket, bytes: 108 with the zero at its end.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// Times to start over when the lock file changes under our hands.
const LOCK_TRIES_MAX: u32 = 16;

/// Why the server cannot listen. Each says what to do.
#[derive(Debug)]
pub enum ListenError {
    /// The path does not fit a socket address.
    PathTooLong(PathBuf),
    /// Another server holds the lock; its process id if it left one.
    InUse(PathBuf, Option<u32>),
    /// Another program listens there without holding the lock.
    Foreign(PathBuf),
    /// A file is there that is not a socket.
    NotASocket(PathBuf),
    /// The operating system refused; what was tried, on what.
    Os(&'static str, PathBuf, std::io::Error),
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenError::PathTooLong(path) => write!(
                f,
                "the socket path {} has {} bytes, and a Unix socket's path at most \
                 {SOCKET_PATH_BYTES_MAX}; choose a shorter one",
                path.display(),
                path.as_os_str().len()
            ),
            ListenError::InUse(path, pid) => {
                write!(f, "the socket {} is served by another process", path.display())?;
                if let Some(pid) = pid {
                    write!(f, " (number {pid})")?;
                }
                f.write_str("; stop that one first, or choose another socket path")
            }
            ListenError::Foreign(path) => write!(
                f,
                "another program listens on {}; stop it, or choose another socket path",
                path.display()
            ),
            ListenError::NotASocket(path) => write!(
                f,
                "{} exists and is not a socket; it is left alone, choose another socket path",
                path.display()
            ),
            ListenError::Os(what, path, error) => {
                write!(f, "cannot {what} {}: {error}", path.display())?;
                match error.kind() {
                    std::io::ErrorKind::NotFound => f.write_str("; make its folder first"),
                    std::io::ErrorKind::PermissionDenied => {
                        f.write_str("; choose a socket path in a folder that you may write to")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ListenError::Os(_, _, error) => Some(error),
            _ => None,
        }
    }
}

/// The socket and the lock on its path; both files go when it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl Listener {
    /// Takes the path and listens on it.
    pub fn bind(path: &Path) -> Result<Listener, ListenError> {
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
            return Err(ListenError::PathTooLong(path.to_path_buf()));
        }
        let lock_path = lock_path(path);
        let lock = take_lock(path, &lock_path)?;
        let socket = match remove_stale(path).and_then(|()| listen(path)) {
            Ok(socket) => socket,
            Err(error) => {
                // Ours, since we hold it; what we could not use should not stay behind.
                let _ = std::fs::remove_file(&lock_path);
                return Err(error);
            }
        };
        Ok(Listener { socket, path: path.to_path_buf(), lock_path, _lock: lock })
    }

    /// Makes a thread that waits in accept return with an error, now and ever after.
    pub fn shut_down(&self) {
        // Fails only on a socket that is not listening, which accept reports as well.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Failing leaves two files that the next server removes. The lock is given back last.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// `PATH.lock`.
fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".lock");
    PathBuf::from(name)
}

/// Takes the lock on `lock_path`, and writes our process id into it.
fn take_lock(path: &Path, lock_path: &Path) -> Result<File, ListenError> {
    let os = |what, error| ListenError::Os(what, lock_path.to_path_buf(), error);
    for _ in 0..LOCK_TRIES_MAX {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(lock_path)
            .map_err(|error| os("open the lock file", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.take(32).read_to_string(&mut text);
                return Err(ListenError::InUse(path.to_path_buf(), text.trim().parse().ok()));
            }
            Err(TryLockError::Error(error)) => return Err(os("lock", error)),
        }
        // A server that ended between our open and our lock has removed the file we hold.
        let held = file.metadata().map_err(|error| os("look at", error))?;
        match std::fs::symlink_metadata(lock_path) {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                // The number is for people; a full disk is no reason not to serve.
                let _ = file.set_len(0);
                let _ = file.rewind();
                let _ = writeln!(file, "{}", std::process::id());
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(os("look at", error)),
        }
    }
    Err(ListenError::InUse(path.to_path_buf(), None))
}

/// Removes a socket that nobody serves any more.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::Os("look at", path.to_path_buf(), error)),
    };
    if !there.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_path_buf()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ListenError::Foreign(path.to_path_buf()));
    }
    std::fs::remove_file(path)
        .map_err(|error| ListenError::Os("remove the old socket", path.to_path_buf(), error))
}

/// A listening socket of mode 0600.
fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let os = |what, error: rustix::io::Errno| {
        ListenError::Os(what, path.to_path_buf(), std::io::Error::from(error))
    };
    let address = SocketAddrUnix::new(path).map_err(|error| os("make an address of", error))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| os("make a socket for", error))?;
    // Before bind: the file then has this mode from its first moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)
        .map_err(|error| os("set the mode of", error))?;
    rustix::net::bind(&socket, &address).map_err(|error| os("listen on", error))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| os("listen on", error))?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_private_and_both_files_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_server_is_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(&error, ListenError::InUse(_, Some(pid)) if *pid == std::process::id()));
        assert!(error.to_string().contains("stop that one first"), "{error}");
        // The refused one has taken nothing away.
        assert!(UnixStream::connect(&path).is_ok());
        drop(first);
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        drop(UnixListener::bind(&path).unwrap());
        std::fs::write(lock_path(&path), "99999\n").unwrap();
        let _listener = Listener::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert!(!lock_path(&path).exists());

        let path = folder.path().join("other.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::Foreign(_))));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_path_too_long_or_in_no_folder_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
        let error = Listener::bind(&long).unwrap_err();
        assert!(matches!(error, ListenError::PathTooLong(_)), "{error}");
        assert!(error.to_string().contains("at most 107"), "{error}");

        let error = Listener::bind(&folder.path().join("no/rpc.sock")).unwrap_err();
        assert!(error.to_string().contains("make its folder first"), "{error}");

        let base = folder.path().as_os_str().len() + 1;
        let longest = folder.path().join("x".repeat(SOCKET_PATH_BYTES_MAX - base));
        Listener::bind(&longest).unwrap();
    }
}
