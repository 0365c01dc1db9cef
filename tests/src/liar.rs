//! A daemon that lies: a real one behind a man in the middle who spoils one kind of answer.
//!
//! In: the real daemon's socket, which request's answer to spoil, and how. Out: a socket that a VMM connects to.
//! Everything else passes unchanged, descriptors included, so that a lie may come at any point of a session.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backends::proto::wire::{HEADER_BYTES, Header};
use backends::proto::{Code, Connection, Frame, TransportError};

use crate::wait;

/// What becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It names another request.
    OtherRequest,
    /// It does not say that it is a reply.
    NoReplyFlag,
    /// It speaks another version of the protocol.
    Version,
    /// Its payload lacks the last byte.
    Short,
    /// Its payload has eight bytes more.
    Long,
    /// Its header announces a payload of 4 GiB.
    Endless,
    /// It never comes.
    Silence,
    /// It is true, but comes this late.
    Late(Duration),
    /// Its first half comes.
    Half,
    /// The connection ends instead.
    HangUp,
    /// Its first eight payload bytes are these.
    Value(u64),
    /// It carries a descriptor.
    Descriptor,
    /// It comes twice.
    Twice,
}

/// The liar; it ends with the session.
#[derive(Debug)]
pub struct Liar {
    socket: PathBuf,
    lied: Arc<Lied>,
}

impl Liar {
    /// Stands before the daemon at `real`, listening in `dir`, and spoils each answer to `code`.
    ///
    /// # Panics
    /// It cannot listen there.
    pub fn new(dir: &Path, real: &Path, code: Code, lie: Lie) -> Liar {
        let socket = dir.join("liar.sock");
        let listener = UnixListener::bind(&socket).unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let real = real.to_owned();
        let lied = Arc::new(Lied::default());
        let lies = Arc::clone(&lied);
        std::thread::spawn(move || {
            if wait::one_readable(&listener, wait::deadline()) {
                // The session's end, however it comes, is what the liar waits for.
                let _ended = Session::new(&listener, &real, code, lie, lies).and_then(Session::run);
            }
        });
        Liar { socket, lied }
    }

    /// The answer in question came by, and was spoilt.
    pub fn lied(&self) -> bool {
        *self.lied.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has lied; `false` if it does not within [`wait::PATIENCE`].
    pub fn wait_lied(&self) -> bool {
        let lied = self.lied.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.lied.1.wait_timeout_while(lied, wait::PATIENCE, |lied| !*lied);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// Whether the answer in question came by.
#[derive(Debug, Default)]
struct Lied(Mutex<bool>, Condvar);

impl Lied {
    fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }
}

struct Session {
    vmm: Connection,
    /// The same socket, for bytes that are no message.
    raw: UnixStream,
    daemon: Connection,
    code: Code,
    lie: Lie,
    lied: Arc<Lied>,
}

impl Session {
    fn new(
        listener: &UnixListener,
        real: &Path,
        code: Code,
        lie: Lie,
        lied: Arc<Lied>,
    ) -> Result<Session, TransportError> {
        let (raw, _) = listener.accept().map_err(TransportError::Socket)?;
        let vmm = Connection::new(raw.try_clone().map_err(TransportError::Socket)?)?;
        let daemon = Connection::new(UnixStream::connect(real).map_err(TransportError::Socket)?)?;
        Ok(Session { vmm, raw, daemon, code, lie, lied })
    }

    /// Passes messages on until one side ends, or for longer than any test lives.
    fn run(mut self) -> Result<(), TransportError> {
        while wait::readable(&[self.vmm.as_fd(), self.daemon.as_fd()], forever()) {
            while let Some(frame) = self.vmm.try_recv()? {
                pass(&mut self.daemon, &frame)?;
            }
            while let Some(frame) = self.daemon.try_recv()? {
                if frame.header.request == self.code as u32 {
                    self.spoil(frame)?
                } else {
                    pass(&mut self.vmm, &frame)?
                }
            }
        }
        Ok(())
    }

    fn spoil(&mut self, mut frame: Frame) -> Result<(), TransportError> {
        self.lied.set();
        let header = &mut frame.header;
        match self.lie {
            Lie::OtherRequest => header.request += 1,
            Lie::NoReplyFlag => header.flags = 1,
            Lie::Version => header.flags = 6,
            Lie::Short => drop(frame.payload.pop()),
            Lie::Long => frame.payload.extend([0; 8]),
            Lie::Value(value) => frame.payload.0 = with_value(frame.payload.0, value),
            Lie::Descriptor => {
                frame.fds.push(OwnedFd::from(self.raw.try_clone().map_err(TransportError::Socket)?))
            }
            Lie::Twice => pass(&mut self.vmm, &frame)?,
            Lie::Endless => return self.write(&Header { size: u32::MAX, ..*header }.to_bytes()),
            Lie::Half => return self.write(header.to_bytes().get(..HEADER_BYTES / 2).unwrap_or_default()),
            Lie::Silence => return Ok(()),
            Lie::Late(time) => std::thread::sleep(time),
            Lie::HangUp => return Err(TransportError::Closed),
        }
        frame.header.size = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        pass(&mut self.vmm, &frame)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.raw.write_all(bytes).map_err(TransportError::Socket)
    }
}

fn forever() -> Instant {
    wait::deadline() + 10 * wait::PATIENCE
}

fn with_value(mut payload: Vec<u8>, value: u64) -> Vec<u8> {
    payload.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, new)| *byte = new);
    payload
}

fn pass(to: &mut Connection, frame: &Frame) -> Result<(), TransportError> {
    let fds: Vec<_> = frame.fds.iter().map(AsFd::as_fd).collect();
    to.send(frame.header, &frame.payload, &fds, wait::deadline())
}
