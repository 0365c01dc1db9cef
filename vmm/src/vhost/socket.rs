//! Reaching the socket of a daemon: a connection, or one sentence on what is there instead.
//!
//! `connect` of a unix socket waits for as long as the listener's backlog is full, so this one does not block,
//! and tries again until the deadline.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};

use super::spec::DeviceSpec;

/// How long to wait before a full backlog is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Connects to the daemon of `spec`.
///
/// # Errors
/// What is wrong and what to do, to be shown behind the option.
pub fn connect(spec: &DeviceSpec, deadline: Instant) -> Result<UnixStream, String> {
    reach(&spec.socket, deadline).map_err(|errno| explain(errno, spec))
}

/// Connects to the socket at `path`. Looks at nothing else.
///
/// # Errors
/// What the kernel says.
pub fn reach(path: &Path, deadline: Instant) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect_to(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn explain(errno: Errno, spec: &DeviceSpec) -> String {
    let start = spec.kind.start_hint(&spec.socket);
    match errno {
        Errno::NAMETOOLONG => {
            let bytes = spec.socket.as_os_str().len();
            format!("the path has {bytes} bytes, a socket's path has at most 107; use a shorter one")
        }
        Errno::MFILE | Errno::NFILE => {
            format!("cannot make a socket: {errno}; raise the limit of open files (ulimit -n)")
        }
        Errno::NOENT => format!("there is no such socket; {start}, or correct the path"),
        Errno::NOTDIR => "a part of the path is no directory; correct it".to_owned(),
        Errno::ACCESS | Errno::PERM => format!(
            "no permission to connect to it; let this user (uid {}) write to the socket and search its directory",
            rustix::process::geteuid().as_raw()
        ),
        Errno::CONNREFUSED if is_something_else(&spec.socket) => {
            format!("that is no socket but {}; {start}, or correct the path", what_it_is(&spec.socket))
        }
        Errno::CONNREFUSED => format!("nobody listens on this socket (any more); {start}"),
        Errno::PROTOTYPE => {
            format!("that is no stream socket, so no vhost-user daemon listens there; {start}")
        }
        Errno::AGAIN => {
            format!("the daemon there accepts nobody, as its backlog is full; restart it, or {start} anew")
        }
        other => format!("cannot connect to it: {other}; {start}"),
    }
}

fn is_something_else(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.file_type().is_socket())
}

fn what_it_is(path: &Path) -> &'static str {
    match std::fs::metadata(path).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_file() => "a regular file",
        Ok(kind) if kind.is_dir() => "a directory",
        _ => "a special file",
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
