//! A stream each way through a console whose host side is a socket.
//!
//! Guest to host: chains are numbered frames. Host to guest: bytes that follow from their place. Each kill may make
//! one chain come again, and nothing else. A client that lost its connection with the daemon reads what the daemon had
//! said before, connects to the next one, and goes on sending after what the guest has received.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::load::{Fault, Load, of_queue};
use super::stream::{Bytes, Frames, bytes, frame};
use crate::daemon::Launch;
use crate::guest::chain::Chain;
use crate::guest::ring::{Completion, Ring};
use crate::random::Random;
use crate::wait;

/// Chains in flight to the host.
const DEPTH: usize = 8;
/// Buffers posted for the host's bytes, and their length.
const POSTED: usize = 8;
const POSTED_BYTES: u32 = 700;
/// Most bytes of a chain.
const MAX_BYTES: u64 = 1500;
/// What the client sends ahead of the guest.
const AHEAD_BYTES: u64 = 4000;
const RX: usize = 0;
const TX: usize = 1;

/// The guest, and the client on the host.
#[derive(Debug)]
pub struct ConsoleLoad {
    rx: Ring,
    tx: Ring,
    random: Random,
    port: PathBuf,
    client: Option<UnixStream>,
    /// Frames that the guest sent.
    said: u64,
    heard: Frames,
    /// Bytes that the client sent.
    sent: u64,
    received: Bytes,
}

/// Options for a console that [`ConsoleLoad`] uses.
pub fn launch(launch: Launch) -> Launch {
    let port = launch.dir().join("port.sock").display().to_string();
    launch.args(["--listen".to_owned(), port])
}

impl ConsoleLoad {
    /// A guest with these rings; the daemon's directory is `dir`.
    pub fn new(rx: Ring, tx: Ring, random: Random, dir: &Path) -> ConsoleLoad {
        let port = dir.join("port.sock");
        let (heard, received) = (Frames::default(), Bytes::default());
        ConsoleLoad { rx, tx, random, port, client: None, said: 0, heard, sent: 0, received }
    }

    /// The client, connected if it was not.
    fn client(&mut self) -> Result<&mut UnixStream, Fault> {
        if self.client.is_none() {
            let cannot = |e: std::io::Error| Fault::Answer(format!("client: {e}"));
            let stream = UnixStream::connect(&self.port).map_err(cannot)?;
            stream.set_nonblocking(true).map_err(cannot)?;
            self.client = Some(stream);
        }
        self.client.as_mut().ok_or_else(|| Fault::Answer("client: none".into()))
    }

    /// Reads all that is there; `true` at the end of the connection.
    fn listen(&mut self) -> Result<bool, Fault> {
        let mut buffer = [0; 16384];
        loop {
            match self.client()?.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => self.heard.feed(&buffer[..count]).map_err(to_host)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(true),
                Err(e) => return Err(Fault::Answer(format!("client: {e}"))),
            }
        }
    }

    /// Sends as far ahead as it may.
    fn send(&mut self) -> Result<(), Fault> {
        let most = 1 + self.random.below(AHEAD_BYTES);
        let room = (self.received.at() + most).saturating_sub(self.sent);
        let data = bytes(self.sent, usize::try_from(room).unwrap_or(0));
        match self.client()?.write(&data) {
            Ok(count) => self.sent += count as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(Fault::Answer(format!("client: {e}"))),
        }
        Ok(())
    }

    fn post(&mut self) {
        while self.rx.in_flight() < POSTED {
            self.rx.add_writable(POSTED_BYTES);
        }
        self.rx.notify();
    }

    fn receive(&mut self, done: &Completion) -> Result<(), Fault> {
        self.received.feed(&done.data).map_err(|what| Fault::Answer(format!("to the guest: {what}")))
    }
}

fn to_host(what: String) -> Fault {
    Fault::Answer(format!("to the host: {what}"))
}

impl Load for ConsoleLoad {
    fn rings(&self) -> Vec<&Ring> {
        vec![&self.rx, &self.tx]
    }

    /// Receive buffers are posted for ever: what counts is bytes on their way.
    fn outstanding(&self) -> usize {
        let (unheard, unread) = (self.said != self.heard.next, self.received.at() < self.sent);
        self.tx.in_flight().max(usize::from(unheard)) + usize::from(unread)
    }

    fn submit(&mut self) {
        // What is said before anybody listens is heard by nobody.
        let _ = self.client();
        self.post();
        while self.tx.in_flight() < DEPTH {
            let len = 13 + self.random.below(MAX_BYTES);
            self.tx.add(&Chain::new().readable(&frame(self.said, usize::try_from(len).unwrap_or(13))));
            self.said += 1;
        }
        self.tx.notify();
        // A client that cannot send now is seen when it listens.
        let _ = self.send();
    }

    fn reap(&mut self) -> Result<usize, Fault> {
        let count = self.salvage()?;
        self.post();
        if self.listen()? {
            return Err(to_host("the daemon hung up".into()));
        }
        Ok(count)
    }

    fn wait(&mut self) -> Result<usize, Fault> {
        let before = self.heard.next;
        if self.tx.in_flight() > 0 {
            of_queue(TX, self.tx.wait_used())?;
        } else if self.received.at() < self.sent {
            let done = of_queue(RX, self.rx.wait_used())?;
            self.receive(&done)?;
        } else if !wait::one_readable(self.client()?, wait::deadline()) {
            return Err(to_host(format!("of {} frames {before} came", self.said)));
        }
        Ok(1 + self.reap()?)
    }

    fn killed(&mut self, connections: bool) -> Result<(), Fault> {
        self.heard.allow_one();
        self.received.allow_one();
        if connections && self.client.is_some() {
            self.listen()?;
            self.client = None;
        }
        Ok(())
    }

    fn salvage(&mut self) -> Result<usize, Fault> {
        let mut count = 0;
        while of_queue(TX, self.tx.used())?.is_some() {
            count += 1;
        }
        while let Some(done) = of_queue(RX, self.rx.used())? {
            self.receive(&done)?;
            count += 1;
        }
        Ok(count)
    }

    /// What the guest says while nobody listens dies with the daemon: the client is there before the guest speaks.
    fn recovered(&mut self, connections: bool) -> Result<(), Fault> {
        if connections {
            self.sent = self.received.at();
        }
        self.client().map(drop)
    }

    fn check(&mut self) -> Result<(), Fault> {
        self.heard.settle().map_err(to_host)?;
        self.received.settle(self.sent).map_err(|what| Fault::Answer(format!("to the guest: {what}")))
    }

    fn repeated(&self) -> u64 {
        self.heard.repeated + self.received.repeated()
    }
}
