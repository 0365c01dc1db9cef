//! The other side of a control socket: what `outboard ctl` asks with.
//!
//! In: a socket's path, requests. Out: their answers. A connection is used for many requests; one that has ended
//! before a byte of an answer came (the server lets idle clients go, and a worker may be replaced) is made anew once
//! for a request that changes nothing.
//!
//! Promises: no exchange takes longer than its patience, and no answer is larger than [`MAX_BODY_BYTES`], whatever is
//! on the socket. Refuses an answer that is no HTTP/1.1 with a length.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use thiserror::Error;

use super::Method;
use crate::passing;

/// Longest body of an answer that is taken.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Longest status line with its header.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most lines of a header.
const MAX_HEADERS: usize = 64;
/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Somebody to ask.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
    connection: Option<UnixStream>,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP's.
    pub status: u16,
    /// JSON, or text.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No such path.
    #[error("there is no such socket; `outboard ctl list` shows those that there are")]
    Missing,
    /// A path at which nobody can listen.
    #[error("too long a path for a socket; use one of at most 107 bytes")]
    TooLong,
    /// A file, or a directory.
    #[error("what is there is no socket; `outboard ctl list` shows those that there are")]
    NoSocket,
    /// Left behind by a process that is gone.
    #[error("nobody listens there; start the program that did, with this --control-socket (or --api-socket)")]
    Refused,
    /// Not for this user.
    #[error("this user may not connect there; do it as root, or as a member of the socket's group")]
    Permission,
    /// Not in time.
    #[error("no answer within {} s; see that the program there is not stopped", .0.as_secs_f64())]
    Silent(Duration),
    /// The connection ended.
    #[error("the connection ended before an answer came; look into the program's log, or try again")]
    Ended,
    /// Not what was expected there.
    #[error("what listens there is no control socket ({0}); use the path that its --control-socket named")]
    NotHttp(String),
    /// Larger than [`MAX_BODY_BYTES`].
    #[error("an answer of {0} bytes is more than is taken (at most {MAX_BODY_BYTES})")]
    TooLarge(usize),
    /// Anything else of this host.
    #[error("{0}")]
    Host(#[from] io::Error),
}

impl Client {
    /// Connects; neither this nor any request takes longer than `patience`.
    ///
    /// # Errors
    /// Nobody is there, or not for this user.
    pub fn connect(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let connection = Some(open(path, patience)?);
        Ok(Client { path: path.to_owned(), patience, connection })
    }

    /// Asks and waits for the answer. A descriptor goes with the first byte of the request.
    ///
    /// # Errors
    /// There is no answer. Whether it was understood is for [`Reply::status`] to say.
    pub fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Reply, ClientError> {
        self.call_with(method, path, body, fd.as_slice())
    }

    /// The same with any number of descriptors.
    ///
    /// # Errors
    /// As from [`Client::call`].
    pub fn call_with(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, ClientError> {
        let request = request(method, path, body);
        match self.exchange(&request, fds) {
            Err(ClientError::Ended) if !method.changes() => self.exchange(&request, fds),
            other => other,
        }
    }

    /// Returns when the server has closed the connection, or patience is at its end.
    ///
    /// # Errors
    /// [`ClientError::Silent`]: it has not.
    pub fn wait_closed(&mut self) -> Result<(), ClientError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        let until = Deadline::after(self.patience);
        let mut heard = Vec::new();
        loop {
            heard.clear();
            match read(&connection, &mut heard, &until) {
                Ok(()) => {}
                Err(ClientError::Silent(patience)) => return Err(ClientError::Silent(patience)),
                Err(_) => return Ok(()),
            }
        }
    }

    fn exchange(&mut self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        let until = Deadline::after(self.patience);
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(&self.path, self.patience)?,
        };
        // A server that refuses a request may close before it has read all of it: its answer is there then.
        let sent = send(&connection, request, fds, &until);
        let reply = receive(&connection, &until);
        if sent.is_ok() && reply.as_ref().is_ok_and(|(_, last)| !last) {
            self.connection = Some(connection);
        }
        match (sent, reply) {
            (Err(error), Err(ClientError::Ended)) | (Ok(()), Err(error)) => Err(error),
            (_, reply) => reply.map(|(reply, _)| reply),
        }
    }
}

/// When patience is at its end.
struct Deadline {
    since: Instant,
    patience: Duration,
}

impl Deadline {
    fn after(patience: Duration) -> Deadline {
        Deadline { since: Instant::now(), patience }
    }

    fn left(&self) -> Result<Duration, ClientError> {
        let left = self.patience.saturating_sub(self.since.elapsed());
        if left.is_zero() { Err(ClientError::Silent(self.patience)) } else { Ok(left) }
    }

    /// What an error of a socket with a timeout means.
    fn judge(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent(self.patience),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
            _ => ClientError::Host(error),
        }
    }
}

fn open(path: &Path, patience: Duration) -> Result<UnixStream, ClientError> {
    let address = SocketAddrUnix::new(path).map_err(|_| ClientError::TooLong)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(io::Error::from)?;
    // A full backlog is waited for as long as a send would be (unix(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(patience)).map_err(io::Error::from)?;
    connect(&socket, &address).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => ClientError::Missing,
        Errno::CONNREFUSED if !is_socket(path) => ClientError::NoSocket,
        Errno::CONNREFUSED => ClientError::Refused,
        Errno::ACCESS | Errno::PERM => ClientError::Permission,
        Errno::AGAIN => ClientError::Silent(patience),
        Errno::PROTOTYPE => ClientError::NotHttp("a socket for datagrams".to_owned()),
        errno => ClientError::Host(errno.into()),
    })?;
    Ok(socket.into())
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let json = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    let method = method.name();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{json}Content-Length: {length}\r\n\r\n{body}")
        .into()
}

fn send(
    connection: &UnixStream,
    mut bytes: &[u8],
    mut fds: &[BorrowedFd<'_>],
    until: &Deadline,
) -> Result<(), ClientError> {
    while !bytes.is_empty() {
        connection.set_write_timeout(Some(until.left()?))?;
        let sent = passing::send(connection, bytes, fds, SendFlags::empty());
        let sent = sent.map_err(|errno| until.judge(errno.into()))?;
        bytes = bytes.get(sent..).unwrap_or_default();
        fds = &[];
    }
    Ok(())
}

/// An answer, and whether it is the last one of the connection.
fn receive(connection: &UnixStream, until: &Deadline) -> Result<(Reply, bool), ClientError> {
    let mut bytes = Vec::new();
    let Head { status, head_bytes, body_bytes, last } = loop {
        read(connection, &mut bytes, until)?;
        if let Some(parsed) = parse(&bytes)? {
            break parsed;
        }
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(ClientError::NotHttp("its header has no end".to_owned()));
        }
    };
    let mut body = bytes.split_off(head_bytes);
    while body.len() < body_bytes {
        read(connection, &mut body, until)?;
    }
    body.truncate(body_bytes);
    Ok((Reply { status, body }, last))
}

/// Appends what has come, at least a byte.
fn read(mut connection: &UnixStream, bytes: &mut Vec<u8>, until: &Deadline) -> Result<(), ClientError> {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        connection.set_read_timeout(Some(until.left()?))?;
        match connection.read(&mut chunk) {
            Ok(0) => return Err(ClientError::Ended),
            Ok(count) => {
                bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(until.judge(error)),
        }
    }
}

/// An answer before its body.
struct Head {
    status: u16,
    head_bytes: usize,
    body_bytes: usize,
    /// The server closes the connection after it.
    last: bool,
}

/// `None` while the head is not whole.
fn parse(bytes: &[u8]) -> Result<Option<Head>, ClientError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| ClientError::NotHttp(error.to_string()))?;
    let httparse::Status::Complete(head_bytes) = parsed else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let field = |name: &str| {
        let field = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(field.value).ok().map(str::trim)
    };
    let last = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let length = field("content-length").and_then(|length| length.parse().ok());
    let body_bytes = length.ok_or_else(|| ClientError::NotHttp("its answer has no length".to_owned()))?;
    if body_bytes > MAX_BODY_BYTES {
        return Err(ClientError::TooLarge(body_bytes));
    }
    Ok(Some(Head { status, head_bytes, body_bytes, last }))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
