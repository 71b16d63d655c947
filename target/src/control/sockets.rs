//! Sockets of exports: their paths, their folder, and what can be wrong with them.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lamina_bdev::{Error, ErrorKind};

/// Longest path of a Unix socket, bytes.
const CTRLR_LEN_MAX: usize = 107;

/// Where the export `ctrlr` listens.
///
/// # Errors
/// `Invalid`: an odd name, or a path too long for a socket.
pub(super) fn socket_path(folder: &Path, ctrlr: &str) -> Result<PathBuf, Error> {
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
    if ctrlr.chars().any(char::is_control) || ctrlr.is_empty() {
        return invalid(format!("{ctrlr:?} cannot name a socket: use printable characters"));
    }
    let path = if Path::new(ctrlr).is_absolute() {
        PathBuf::from(ctrlr)
    } else if ctrlr.contains('/') || ctrlr.starts_with('.') {
        return invalid(format!(
            "{ctrlr:?} cannot name a socket: give a file name, or an absolute path"
        ));
    } else {
        folder.join(ctrlr)
    };
    let length = path.as_os_str().len();
    if length > CTRLR_LEN_MAX {
        return invalid(format!(
            "the socket path {} has {length} bytes and may have {CTRLR_LEN_MAX}: \
             choose a shorter one",
            path.display()
        ));
    }
    Ok(path)
}

/// Makes the folder for sockets if it is missing.
///
/// # Errors
/// `Io`.
pub(super) fn make_folder(folder: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(|e| {
        let why = format!("{} cannot be made ({e}): give another --export-dir", folder.display());
        Error::new(ErrorKind::Io, why)
    })
}

/// What went wrong with a socket, as a control error.
pub(super) fn socket_error(socket: &Path, e: &std::io::Error) -> Error {
    use std::io::ErrorKind as Os;
    let kind = match e.kind() {
        Os::AddrInUse => ErrorKind::Busy,
        Os::AlreadyExists => ErrorKind::Exists,
        Os::NotFound => ErrorKind::NotFound,
        Os::InvalidInput | Os::PermissionDenied | Os::NotADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Io,
    };
    let text = e.to_string();
    let shown = socket.display().to_string();
    let text = if text.contains(&shown) { text } else { format!("{shown}: {text}") };
    Error::new(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_and_odd_ones_are_refused() {
        let folder = Path::new("/run/lamina");
        assert_eq!(socket_path(folder, "vm1").unwrap(), Path::new("/run/lamina/vm1"));
        assert_eq!(socket_path(folder, "/x/y.sock").unwrap(), Path::new("/x/y.sock"));
        for bad in ["", "a/b", "../x", "..", ".", "a\nb", "a\0b", &"x".repeat(96)] {
            assert_eq!(socket_path(folder, bad).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
        }
        assert!(socket_path(folder, &"x".repeat(95)).is_ok());
    }

    #[test]
    fn socket_errors_keep_their_kind_and_name_the_path() {
        let error = socket_error(Path::new("/x"), &std::io::ErrorKind::AddrInUse.into());
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.message.starts_with("/x: "), "{error}");
    }
}
