//! The control thread: accepts clients, and gives each its turn when it is ready.
//!
//! In: a listening socket and a service. Out: answers, until [`Control`] is dropped; the answer that is being given then
//! goes out before. Promises: [`MAX_CLIENTS`] at most, the others wait in the backlog, and as long as somebody waits
//! there nobody may take long or has more than one answer; one request a client and round, so that none waits for more than one of each other; a
//! thread of low priority, which takes no time that a queue could use. It calls nothing but poll, accept4, getsockopt
//! (SO_PEERCRED), recvmsg, sendmsg, shutdown, close, setpriority once, and what its service does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::setpriority_process;

use super::connection::Connection;
use super::desk::Desk;
use super::{Peer, Service};

/// Most clients at a time: each has a descriptor and up to a request and an answer in memory.
pub const MAX_CLIENTS: usize = 16;
/// How long an accept that failed for want of descriptors or memory is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Others go first.
const NICE: i32 = 10;

/// A control socket that is served, or about to be.
pub struct Control {
    stop: OwnedFd,
    server: Option<Server>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Makes what the thread needs; nobody is answered yet.
    ///
    /// # Errors
    /// The host's.
    pub fn new(listener: UnixListener, service: Arc<dyn Service>) -> io::Result<Control> {
        listener.set_nonblocking(true)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let server = Server {
            listener,
            stop: stop.try_clone()?,
            desk: Desk::new(service),
            clients: Vec::new(),
            door: Door::Open,
            wake: None,
        };
        Ok(Control { stop, server: Some(server), thread: None })
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The host's.
    pub fn start(&mut self) -> io::Result<()> {
        if let Some(server) = self.server.take() {
            let thread = std::thread::Builder::new().name("control".into());
            self.thread = Some(thread.spawn(move || server.run())?);
        }
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether clients are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    /// There is no place, and somebody waits for one.
    Full,
    /// The host could not let one in; tried again then.
    Shut(Instant),
}

struct Server {
    listener: UnixListener,
    stop: OwnedFd,
    desk: Desk,
    clients: Vec<Connection>,
    door: Door,
    /// When the service wants to be called, whoever rings.
    wake: Option<Instant>,
}

/// What a wait has found.
struct Ready {
    stop: bool,
    waiting: bool,
    clients: Vec<bool>,
}

impl Server {
    fn run(mut self) {
        // Denied where a process may not even lower its priority: then it goes without.
        let _ = setpriority_process(None, NICE);
        while let Ok(ready) = self.wait()
            && !ready.stop
        {
            self.round(&ready, Instant::now());
            self.wake = self.desk.service().rung(Instant::now());
        }
    }

    fn round(&mut self, ready: &Ready, now: Instant) {
        let desk = &self.desk;
        let mut woken = ready.clients.iter();
        self.clients.retain_mut(|client| {
            let woken = woken.next().is_some_and(|woken| *woken);
            let went = if woken { client.turn(desk, now) } else { Ok(()) };
            let late = client.deadline() <= now;
            went.and_then(|()| if late { client.expire(desk, now) } else { Ok(()) }).is_ok()
        });
        self.door = match self.door {
            Door::Shut(until) if until > now => self.door,
            Door::Full if self.clients.len() >= MAX_CLIENTS => Door::Full,
            _ if ready.waiting && self.clients.len() >= MAX_CLIENTS => Door::Full,
            _ => self.admit(now),
        };
        let pressed = self.door == Door::Full;
        self.clients.iter_mut().for_each(|client| client.press(pressed));
    }

    /// Lets in those who wait, as long as there are places.
    fn admit(&mut self, now: Instant) -> Door {
        while self.clients.len() < MAX_CLIENTS {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.clients.extend(client(socket, now)),
                Err(Errno::AGAIN) => break,
                // It went again before it was let in.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(_) => return now.checked_add(ACCEPT_PAUSE).map_or(Door::Open, Door::Shut),
            }
        }
        Door::Open
    }

    /// Waits until something can be done, or is late.
    fn wait(&self) -> Result<Ready, Errno> {
        let listening = if self.door == Door::Open { PollFlags::IN } else { PollFlags::empty() };
        let own = [
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), listening),
        ];
        let clients = self.clients.iter().map(|client| {
            let (fd, flags) = client.interest();
            PollFd::from_borrowed_fd(fd, flags)
        });
        let bell = self.desk.service().bell().map(|bell| PollFd::from_borrowed_fd(bell, PollFlags::IN));
        // Behind the clients: that it has rung is seen by whoever is called anyway.
        let mut fds: Vec<_> = own.into_iter().chain(clients).chain(bell).collect();
        loop {
            match poll(&mut fds, self.timeout().as_ref()) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        Ok(Ready { stop: next(), waiting: next(), clients: ready.collect() })
    }

    fn timeout(&self) -> Option<Timespec> {
        let retry = if let Door::Shut(until) = self.door { Some(until) } else { None };
        let late = self.clients.iter().map(Connection::deadline);
        let first = late.chain(retry).chain(self.wake).min()?;
        Timespec::try_from(first.saturating_duration_since(Instant::now())).ok()
    }
}

/// None: who it is cannot be known.
fn client(socket: OwnedFd, now: Instant) -> Option<Connection> {
    let libc::ucred { pid, uid, gid } = crate::sys::peer(socket.as_fd())?;
    Some(Connection::new(socket, Peer { pid, uid, gid }, now))
}
