//! Which socket: from `--socket` and the directory of sockets to a path, and from a path to answers.
//!
//! Only sockets whose names end in [`SUFFIX`] are ever connected to by looking around: a vhost-user socket may stand
//! beside them, and serves one front-end at a time.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::control::Method;
use backends::control::client::{Client, ClientError, Reply};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::CtlError;
use super::screen::one_line;

/// Where control sockets are, unless something else is said.
pub const DIRECTORY: &str = "/run/outboard";
/// How the name of a control socket ends, behind a dot.
const SUFFIX: &str = "control";
/// How long anybody may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Control sockets of `dir` and of the directories in it, in order.
///
/// # Errors
/// It cannot be read.
pub fn find(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        match entry.file_type() {
            // Somebody else's directory hides its sockets, and no others.
            Ok(kind) if kind.is_dir() => found
                .extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path())),
            _ => found.push(path),
        }
    }
    found.retain(|path| path.extension() == Some(OsStr::new(SUFFIX)) && is_socket(path));
    found.sort();
    Ok(found)
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// The path that `--socket` means: itself, or the name of a socket in [`DIRECTORY`].
///
/// # Errors
/// [`CtlError::NoSocket`], with what there is.
pub fn resolve(socket: Option<&Path>) -> Result<PathBuf, CtlError> {
    let Some(socket) = socket else { return Err(CtlError::NoSocket(what_there_is(Path::new(DIRECTORY)))) };
    let named = PathBuf::from(format!("{DIRECTORY}/{}.{SUFFIX}", socket.display()));
    Ok(if !is_socket(socket) && is_socket(&named) { named } else { socket.to_owned() })
}

/// What a socket is called by `list`: its name in [`DIRECTORY`], or its path.
pub fn name_of(socket: &Path) -> String {
    let inside = socket.strip_prefix(DIRECTORY).map(|path| path.with_extension(""));
    inside.as_deref().unwrap_or(socket).display().to_string()
}

fn what_there_is(dir: &Path) -> String {
    let names: Vec<String> = find(dir).unwrap_or_default().iter().map(|socket| name_of(socket)).collect();
    match names.as_slice() {
        [] => format!("none is in {}: start daemons with --control-socket PATH", dir.display()),
        names => format!("these are in {}: {}", dir.display(), names.join(", ")),
    }
}

/// A program that can be asked.
pub struct Target {
    socket: PathBuf,
    client: Client,
}

/// The body of an answer that says no.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Target {
    /// Connects; no answer may take longer than `patience`.
    ///
    /// # Errors
    /// [`CtlError::NoAnswer`]
    pub fn connect(socket: &Path, patience: Duration) -> Result<Target, CtlError> {
        let socket = socket.to_owned();
        match Client::connect(&socket, patience) {
            Ok(client) => Ok(Target { socket, client }),
            Err(cause) => Err(CtlError::NoAnswer { socket, cause }),
        }
    }

    /// The body of the answer to `GET path`.
    ///
    /// # Errors
    /// There is none, or it says no.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>, CtlError> {
        let reply = self.client.call(Method::Get, path, None, None);
        self.judge(reply)
    }

    /// The same, understood.
    ///
    /// # Errors
    /// There is none, it says no, or makes no sense.
    pub fn read<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CtlError> {
        let body = self.get(path)?;
        self.understand(&body)
    }

    /// The body of the answer to a change. A descriptor goes with it.
    ///
    /// # Errors
    /// There is none, or it says no.
    pub fn change(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<u8>, CtlError> {
        let reply = self.client.call(method, path, body, fd);
        self.judge(reply)
    }

    /// What a body says.
    ///
    /// # Errors
    /// [`CtlError::BadAnswer`]
    pub fn understand<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, CtlError> {
        let socket = || self.socket.clone();
        serde_json::from_slice(body)
            .map_err(|cause| CtlError::BadAnswer { socket: socket(), cause: one_line(&cause.to_string()) })
    }

    /// Returns when the connection is closed from the other side.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_closed(&mut self) -> Result<(), CtlError> {
        let socket = self.socket.clone();
        self.client.wait_closed().map_err(|cause| CtlError::NoAnswer { socket, cause })
    }

    fn judge(&self, reply: Result<Reply, ClientError>) -> Result<Vec<u8>, CtlError> {
        let socket = self.socket.clone();
        match reply {
            Err(cause) => Err(CtlError::NoAnswer { socket, cause }),
            Ok(Reply { status: 200..=299, body }) => Ok(body),
            Ok(Reply { status, body }) => {
                let said = serde_json::from_slice(&body).map(|refusal: Refusal| one_line(&refusal.error));
                Err(CtlError::Refused {
                    socket,
                    status,
                    text: said.unwrap_or(format!("refused (status {status})")),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_control_sockets_are_found_and_those_one_directory_down() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("vm1/deep")).unwrap();
        let _bound = ["b.control", "vhost.sock", "vm1/a.control", "vm1/deep/x.control"]
            .map(|name| UnixListener::bind(dir.path().join(name)).unwrap());
        std::fs::write(dir.path().join("file.control"), "").unwrap();
        assert_eq!(
            find(dir.path()).unwrap(),
            ["b.control", "vm1/a.control"].map(|name| dir.path().join(name))
        );
        assert!(find(&dir.path().join("none")).is_err());
        let there = what_there_is(dir.path());
        assert!(there.contains("/b.control, /") && there.ends_with("vm1/a.control"), "{there}");
        assert!(what_there_is(&dir.path().join("none")).starts_with("none is in "));
    }

    #[test]
    fn a_socket_of_the_usual_directory_goes_by_its_name() {
        assert_eq!(name_of(Path::new("/run/outboard/vm1/blk.control")), "vm1/blk");
        assert_eq!(name_of(Path::new("/tmp/blk.control")), "/tmp/blk.control");
        assert_eq!(resolve(Some(Path::new("no-such"))).unwrap(), Path::new("no-such"));
        assert!(matches!(resolve(None), Err(CtlError::NoSocket(_))));
    }
}
