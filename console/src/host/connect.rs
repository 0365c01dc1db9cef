//! A unix socket that somebody else listens on as the host side; connected to again whenever it is lost.
//!
//! The story is told by a task of the worker: connect, serve, lose, wait, again. The pause between attempts doubles
//! from `FIRST_PAUSE` to `LONGEST_PAUSE`, and begins again after each connection. Nobody listening, now
//! or yet, is no error: nobody reads then, as the port understands it. What the other side sent before it went
//! still reaches the guest, before anything of the next connection. A connection outlives the worker: the next one
//! has it from the keeper.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use backends::device::Source;
use backends::engine::Interest;
use backends::kept::Kept;
use backends::log::{self, Class};
use backends::opened::Opened;
use backends::options::{SocketError, check_peer};
use backends::task::TaskIo;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::left::Left;
use super::{Call, Channel, HostIo, HostSide, Moved};

/// After the first loss or refusal.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// However long nobody listens.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Name under which the connection is kept.
const KEPT_PEER: &str = "console.peer";

/// The way to whoever listens there.
pub struct Connect(Rc<Line>);

/// What the task and the port share: both run in the same thread, one after the other.
struct Line {
    path: PathBuf,
    kept: Kept,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    peer: Option<Channel<Rc<OwnedFd>>>,
    left: Left<Rc<OwnedFd>>,
}

impl Connect {
    /// A path that can be connected to, some day.
    ///
    /// # Errors
    /// [`SocketError::Path`], which names `--connect`.
    pub fn check(path: &Path) -> Result<(), SocketError> {
        check_peer("--connect", path)
    }

    /// A path that can be connected to; if a keeper before was connected there, that stays.
    ///
    /// # Errors
    /// As from [`Connect::check`].
    pub fn prepare(path: &Path, opened: &mut Opened) -> Result<(), SocketError> {
        Connect::check(path)?;
        if let Some(peer) = opened.before(KEPT_PEER).map(UnixStream::from)
            && peer.peer_addr().is_ok_and(|its| its.as_pathname() == Some(path))
        {
            opened.hand_on(KEPT_PEER, peer);
        }
        Ok(())
    }

    /// Connects to `path` as soon as its worker runs, unless the worker before was connected.
    pub fn new(path: PathBuf, kept: Kept) -> Connect {
        Connect(Rc::new(Line { path, kept, state: RefCell::default() }))
    }
}

impl Line {
    async fn stay_connected(&self, io: &TaskIo<Infallible>) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.kept.take(KEPT_PEER).map_or_else(|| open(&self.path), Ok) {
                Ok(socket) => {
                    self.serve(io, Rc::new(socket)).await;
                    pause = FIRST_PAUSE;
                }
                Err(errno) => self.tell(&errno),
            }
            io.sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until the other side has gone.
    async fn serve(&self, io: &TaskIo<Infallible>, socket: Rc<OwnedFd>) {
        let watch = io.watch(&socket, Interest::Both);
        self.kept.keep(KEPT_PEER, socket.as_fd());
        self.state.borrow_mut().peer = Some(Channel::new(socket, Source(0)));
        self.tell(&"connected");
        // The first time at once: a new connection is writable.
        while watch.ready().await.is_ok() && self.refresh() {
            io.tell();
        }
        self.kept.drop(KEPT_PEER);
        let mut state = self.state.borrow_mut();
        if let Some(gone) = state.peer.take() {
            state.left.keep(gone);
        }
        io.tell();
    }

    /// The connection may be ready again; `false`: it is over.
    fn refresh(&self) -> bool {
        self.state.borrow_mut().peer.as_mut().is_some_and(|peer| {
            peer.refresh();
            !peer.is_hung_up()
        })
    }

    fn tell(&self, how: &dyn std::fmt::Display) {
        log::line!(info, Class::ConsolePeer, connect = %self.path.display(), %how, "Host side");
    }
}

/// Connects without waiting: a unix socket answers at once, and a full backlog is as good as nobody.
fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

impl HostSide for Connect {
    fn start(&mut self, io: &mut HostIo<'_>) -> io::Result<()> {
        let task_io = io.tasks().io();
        let spawner = io.tasks().pool(1, move |line: Rc<Line>| {
            let io = task_io.clone();
            async move { line.stay_connected(&io).await }
        });
        let begun = spawner.spawn(Rc::clone(&self.0));
        begun.map_err(|_| io::Error::other("--connect: its task did not begin"))
    }

    /// Its task watches.
    fn ready(&mut self, _: Source, _: &mut HostIo<'_>) {}

    fn can_look(&self) -> bool {
        true
    }

    fn read(&mut self, call: Call<'_>) -> Moved {
        let State { peer, left, .. } = &mut *self.0.state.borrow_mut();
        match left.read(call) {
            Some(count) => Moved::Bytes(count),
            None => peer.as_mut().map_or(Moved::Nobody, |peer| peer.read(call)),
        }
    }

    fn write(&mut self, call: Call<'_>) -> Moved {
        self.0.state.borrow_mut().peer.as_mut().map_or(Moved::Nobody, |peer| peer.write(call))
    }

    fn writer(&self) -> Option<OwnedFd> {
        let state = self.0.state.borrow();
        let peer = state.peer.as_ref().filter(|peer| peer.takes_output())?;
        peer.as_fd().try_clone_to_owned().ok()
    }

    fn lost_input(&self) -> u64 {
        self.0.state.borrow().left.lost_input()
    }
}
