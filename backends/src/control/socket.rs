//! The control socket's place in the file system.
//!
//! Promises: the socket has mode 0660 from its first moment, less what the umask takes away, and after it just that:
//! there is no time in which somebody could connect who may not.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::options::{SocketError, listen_by};

/// The owner and the group may connect.
const MODE: u32 = 0o660;
/// Clients that wait to be accepted; more wait in connect(2).
const BACKLOG: i32 = 128;

/// Listens at the path that `option` named. A socket that nobody listens on is replaced.
///
/// # Errors
/// [`SocketError::Path`]
pub fn listen(option: &'static str, path: &Path) -> Result<UnixListener, SocketError> {
    listen_by(option, path, bind)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // bind(2) gives the file the mode of the socket.
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn owner_and_group_may_connect_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.control");
        let listener = listen("--control-socket", &path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        let error = listen("--control-socket", &path).unwrap_err().to_string();
        assert!(error.starts_with("--control-socket ") && error.contains("listens there"), "{error}");
        drop(listener);
        listen("--control-socket", &path).unwrap();
    }
}
