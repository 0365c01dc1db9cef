//! A service manager, as far as its descriptor store goes (sd_notify(3)).
//!
//! In: datagrams on the socket that NOTIFY_SOCKET names. Out: what a daemon has stored, to be passed to the next one.
//! It does as systemd does: keeps one descriptor of each open file, keeps at most so many, watches those that were not
//! given with FDPOLL=0 and drops them once their other end is closed, and refuses nothing aloud.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, socketpair,
};
use tempfile::TempDir;

use crate::daemon::Launch;
use crate::wait;

/// Most descriptors of a message.
const MAX_DESCRIPTORS: usize = 253;
/// Longest packet that a daemon stores.
const PACKET_BYTES: usize = 64 << 10;
/// Where a stored packet's entries begin, and what kind of entry is a message without an answer.
const HEAD_BYTES: usize = 16;
const PENDING: u8 = 3;

/// What a manager sends to itself.
const BARRIER: &str = "BARRIER=1";

/// The manager of one daemon, which takes datagrams in a thread of its own.
#[derive(Debug)]
pub struct Manager {
    dir: TempDir,
    taker: Option<JoinHandle<()>>,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug)]
struct State {
    most: usize,
    stored: Vec<(String, OwnedFd)>,
    /// Barriers that were reached.
    barriers: usize,
}

/// A packet in a stored socket: its bytes, and its descriptors.
pub type Packet = (Vec<u8>, Vec<OwnedFd>);

impl Manager {
    /// One that stores so many descriptors at most.
    ///
    /// # Panics
    /// There is no room for its socket.
    pub fn new(most: usize) -> Manager {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("temporary directory: {e}"));
        let socket = UnixDatagram::bind(dir.path().join("notify"));
        let socket = socket.unwrap_or_else(|e| panic!("notify socket: {e}"));
        let shared = Arc::new((Mutex::new(State { most, stored: Vec::new(), barriers: 0 }), Condvar::new()));
        let own = Arc::clone(&shared);
        let taker = std::thread::spawn(move || {
            // An empty one is our own, at the end.
            while let (bytes, fds) = recv(&socket, RecvFlags::empty())
                && !bytes.is_empty()
            {
                own.0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take(&String::from_utf8_lossy(&bytes), fds);
                own.1.notify_all();
            }
        });
        Manager { dir, taker: Some(taker), shared }
    }

    /// The daemon about to be started is this manager's.
    pub fn of(&self, launch: Launch) -> Launch {
        launch.env("NOTIFY_SOCKET", &self.path().display().to_string())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("notify")
    }

    /// Waits until the daemon has stored what comes after the last answer it gave.
    ///
    /// # Panics
    /// It has not within the deadline.
    pub fn settle(&self) {
        self.wait_for("an answered message", |packets| {
            !packets.is_empty() && !packets.iter().any(|(bytes, _)| is_pending(bytes))
        });
    }

    /// Waits until a message that has not been answered is stored.
    ///
    /// # Panics
    /// It is not within the deadline.
    pub fn await_pending(&self) {
        self.wait_for("a pending message", |packets| packets.iter().any(|(bytes, _)| is_pending(bytes)));
    }

    /// Waits until as many descriptors are stored, in whatever packets.
    ///
    /// # Panics
    /// They are not within the deadline.
    pub fn await_descriptors(&self, count: usize) {
        let all = |packets: &[Packet]| packets.iter().map(|(_, fds)| fds.len()).sum::<usize>();
        self.wait_for("as many descriptors", |packets| all(packets) == count);
    }

    fn wait_for(&self, what: &str, is_stored: impl Fn(&[Packet]) -> bool) {
        let (until, mut state) = (wait::deadline(), self.state());
        while !is_stored(&state.packets()) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} is not stored");
            let woken = self.shared.1.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is stored now, with its names.
    ///
    /// # Panics
    /// The host has no descriptor left.
    pub fn stored(&self) -> Vec<(String, OwnedFd)> {
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap_or_else(|e| panic!("descriptor: {e}"));
        self.caught_up().stored.iter().map(|(name, fd)| (name.clone(), copy(fd))).collect()
    }

    /// Stores something of the test's own in place of all of it.
    pub fn replace(&self, by: Vec<(String, OwnedFd)>) {
        self.state().stored = by;
    }

    /// What the stored sockets hold; those that were emptied hold nothing.
    pub fn packets(&self) -> Vec<Packet> {
        self.caught_up().packets()
    }

    /// All that was sent before this is taken: as systemd does it before it notices that a process has ended.
    fn caught_up(&self) -> MutexGuard<'_, State> {
        let before = self.state().barriers;
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(BARRIER.as_bytes(), self.path()));
        sent.unwrap_or_else(|e| panic!("barrier: {e}"));
        let passed = self.shared.1.wait_while(self.state(), |state| state.barriers == before);
        passed.unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(&[], self.path()));
        self.taker.take().map(JoinHandle::join);
    }
}

impl State {
    fn packets(&self) -> Vec<Packet> {
        let packet = |(_, fd): &(String, OwnedFd)| recv(fd, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        self.stored.iter().map(packet).filter(|(bytes, _)| !bytes.is_empty()).collect()
    }

    fn take(&mut self, text: &str, fds: Vec<OwnedFd>) {
        self.barriers += usize::from(text == BARRIER);
        let says = |line: &str| text.lines().any(|said| said == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        if says("FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| stored != name);
        }
        if says("FDSTORE=1") {
            let stays = |fd: &OwnedFd| says("FDPOLL=0") || !wait::closed(fd, Instant::now());
            let room = self.most.saturating_sub(self.stored.len());
            let fds = fds.into_iter().filter(stays).take(room);
            self.stored.extend(fds.map(|fd| (name.to_owned(), fd)));
        }
    }
}

/// A socket that can be stored with this packet in it.
///
/// # Panics
/// The host has no descriptor left.
pub fn sealed((bytes, fds): &Packet) -> OwnedFd {
    let pair = socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    );
    let (kept, ours) = pair.unwrap_or_else(|e| panic!("socket pair: {e}"));
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(&ours, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::empty());
    sent.unwrap_or_else(|e| panic!("send: {e}"));
    kept
}

/// One datagram; without bytes if there is none.
fn recv(socket: &impl AsFd, flags: RecvFlags) -> Packet {
    let mut bytes = vec![0; PACKET_BYTES];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
    bytes.truncate(received.map_or(0, |received| received.bytes));
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    (bytes, fds)
}

/// An entry is kind, descriptors, length (2 bytes), and that many bytes.
fn is_pending(packet: &[u8]) -> bool {
    let mut rest = packet.get(HEAD_BYTES..).unwrap_or_default();
    while let Some(([kind, _, low, high], entry)) = rest.split_first_chunk() {
        if *kind == PENDING {
            return true;
        }
        rest = entry.get(usize::from(u16::from_le_bytes([*low, *high]))..).unwrap_or_default();
    }
    false
}
