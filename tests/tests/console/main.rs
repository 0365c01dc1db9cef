//! `outboard-console` between a guest double and real readers and writers on the host: unix sockets,
//! pseudo-terminals, pipes, terminals and files.

mod connect;
mod end;
mod hostile;
mod options;
mod process;
mod pty;
mod sessions;
mod stdio;
mod traffic;
mod unix;

use std::path::Path;

use backends::control::Method;
use backends::control::client::Client;
use tests::daemon::{Daemon, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::console::Console;
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;

use end::End;

/// A way of serving the guest, and of being driven by it. All must do the same.
#[derive(Clone, Copy, Debug)]
struct Way {
    engine: &'static str,
    rings: RingKind,
    in_order: bool,
}

const URING: Way = Way { engine: "io-uring", rings: RingKind::Split, in_order: false };
const URING_PACKED: Way = Way { engine: "io-uring", rings: RingKind::Packed, in_order: true };
const EPOLL: Way = Way { engine: "epoll", rings: RingKind::Split, in_order: true };
const EPOLL_PACKED: Way = Way { engine: "epoll", rings: RingKind::Packed, in_order: false };
/// Every pair of engine, kind of ring and order.
const WAYS: [Way; 4] = [URING, URING_PACKED, EPOLL, EPOLL_PACKED];
/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 64;
/// RAM of the guest.
const RAM_BYTES: u64 = 32 << 20;
/// What the daemon keeps for the next reader.
const KEEP_BYTES: usize = 64 * 1024;

/// A guest with a console, and the daemon that serves it.
struct Guest {
    frontend: Frontend,
    console: Console,
}

impl Guest {
    /// Connects a guest to the daemon that listens there, and starts both queues.
    fn boot(socket: &Path) -> Guest {
        URING.boot(socket)
    }

    /// Stops and starts a queue where it stood.
    fn restart_queue(&mut self, index: u8) {
        let base = self.frontend.stop(index).unwrap();
        let ring = if index == 0 { &self.console.rx } else { &self.console.tx };
        self.frontend.start(index, ring, base).unwrap();
    }

    /// Sends `bytes` in buffers of `size`, and waits for all of them to come back.
    #[track_caller]
    fn say(&mut self, bytes: &[u8], size: usize) {
        for part in bytes.chunks(size) {
            self.console.send(part).unwrap();
        }
    }

    /// Receives exactly these bytes.
    #[track_caller]
    fn hears(&mut self, bytes: &[u8]) {
        let heard = self.console.receive(bytes.len(), 256).unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), String::from_utf8_lossy(bytes));
    }
}

impl Way {
    /// A guest that drives its console this way.
    fn boot(self, socket: &Path) -> Guest {
        let ram = Ram::new(RAM_BYTES);
        let wants = Wants { in_order: self.in_order, ..Wants::on(self.rings) };
        let mut frontend = Frontend::session(socket, &ram, wants).unwrap();
        assert_eq!(frontend.shape(QUEUE_SIZE).kind, self.rings);
        let rx = frontend.start_new(0, QUEUE_SIZE).unwrap();
        let tx = frontend.start_new(1, QUEUE_SIZE).unwrap();
        Guest { frontend, console: Console::new(rx, tx) }
    }
}

/// A daemon that listens for clients, with its engine.
fn listening(engine: &str) -> Daemon {
    let launch = Launch::new("outboard-console");
    let port = launch.dir().join("port.sock").display().to_string();
    let control = launch.dir().join("own.control").display().to_string();
    let options = ["--engine", engine, "--listen", port.as_str(), "--control-socket", control.as_str()];
    launch.args(options).serve().unwrap()
}

/// Bytes that were lost for this reason, as `/metrics` of a daemon of [`listening`] has it.
#[track_caller]
fn dropped_for(daemon: &Daemon, cause: &str) -> u64 {
    let mut client = Client::connect(&daemon.dir().join("own.control"), tests::wait::PATIENCE).unwrap();
    let text = String::from_utf8(client.call(Method::Get, "/metrics", None, None).unwrap().body).unwrap();
    let sample = format!("outboard_console_dropped_bytes_total{{cause=\"{cause}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&sample));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {sample}in {text}"))
}

/// A client of [`listening`].
fn client(daemon: &Daemon) -> End {
    End::connect(&daemon.dir().join("port.sock"))
}

/// A number in the daemon's account of its port.
#[track_caller]
fn account(stderr: &str, name: &str) -> u64 {
    let (_, numbers) = stderr.rsplit_once("port to_host").unwrap_or_else(|| panic!("no account: {stderr}"));
    let all = format!("to_host{numbers}");
    let word = all.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {all}"))
}

/// The same bytes; says where they begin to differ instead of showing megabytes.
#[track_caller]
fn assert_same(got: &[u8], wanted: &[u8]) {
    if got != wanted {
        let at = got.iter().zip(wanted).position(|(a, b)| a != b);
        panic!("{} bytes instead of {}, first difference at {at:?}", got.len(), wanted.len());
    }
}

impl Guest {
    /// A word each way, after which this end is known to be the one that is served.
    #[track_caller]
    fn hears_and_answers(&mut self, end: &End) {
        end.write(b"hello");
        self.hears(b"hello");
        self.say(b"world", 5);
        assert_eq!(end.read(5), b"world");
    }
}
