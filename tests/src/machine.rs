//! A daemon, a front-end and a guest joined: one call to a device that serves.
//!
//! [`Device`] says what a scenario must know of a daemon to be the same for all of them: how to start it,
//! which queue takes requests, a request that must succeed, and how its success looks.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::daemon::{Daemon, Launch};
use crate::frontend::{Frontend, FrontendError, Wants};
use crate::guest::blk::{Answer, Framing, OK, Request, SECTOR_BYTES};
use crate::guest::chain::Chain;
use crate::guest::format::RingKind;
use crate::guest::memory::Ram;
use crate::guest::ring::{Completion, Ring};

/// RAM of a machine.
pub const RAM_BYTES: u64 = 16 << 20;
/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 64;
/// Sectors of the disk behind [`BLK`].
pub const DISK_SECTORS: u64 = 2048;

/// A daemon as scenarios see it, and the rings it is to be driven by.
#[derive(Clone, Copy)]
pub struct Device {
    /// Name of the binary.
    pub binary: &'static str,
    /// A queue that takes requests.
    pub queue: u8,
    /// Virtqueues it has.
    pub queues: u8,
    /// Kind of its rings.
    pub rings: RingKind,
    options: fn(Launch) -> Launch,
    request: fn() -> Chain,
    accepts: fn(&Completion) -> bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {:?} rings", self.binary, self.rings)
    }
}

/// `outboard-rng`.
pub const RNG: Device = Device {
    binary: "outboard-rng",
    queue: 0,
    queues: 1,
    rings: RingKind::Split,
    options: |launch| launch,
    request: || Chain::new().writable(64),
    accepts: |done| done.len == 64,
};

/// `outboard-blk` on a disk of [`DISK_SECTORS`] with two queues.
pub const BLK: Device = Device {
    binary: "outboard-blk",
    queue: 0,
    queues: 2,
    rings: RingKind::Split,
    options: blk_options,
    request: || Request::read(1, SECTOR_BYTES).chain(&Framing::usual(SECTOR_BYTES)),
    accepts: |done| Answer::new(done, SECTOR_BYTES).status == Some(OK),
};

/// `outboard-console` with a socket as its host side; requests go to the transmit queue.
pub const CONSOLE: Device = Device {
    binary: "outboard-console",
    queue: 1,
    queues: 2,
    rings: RingKind::Split,
    options: |launch| {
        let path = launch.dir().join("port.sock").display().to_string();
        launch.args(["--listen".to_owned(), path])
    },
    request: || Chain::new().readable(b"hello"),
    accepts: |done| done.len == 0,
};

fn blk_options(launch: Launch) -> Launch {
    let image = launch.dir().join("disk.img");
    let bytes = DISK_SECTORS * u64::from(SECTOR_BYTES);
    let made = std::fs::File::create(&image).and_then(|file| file.set_len(bytes));
    made.unwrap_or_else(|e| panic!("create {}: {e}", image.display()));
    launch.args(["--image".to_owned(), image.display().to_string(), "--queues".to_owned(), "2".to_owned()])
}

impl Device {
    /// The same device on rings of this kind.
    pub const fn on(self, rings: RingKind) -> Device {
        Device { rings, ..self }
    }

    /// All features on its kind of rings.
    pub fn wants(&self) -> Wants {
        Wants::on(self.rings)
    }

    /// The daemon about to be started with the options it needs.
    pub fn launch(&self) -> Launch {
        (self.options)(Launch::new(self.binary))
    }

    /// A request that must succeed.
    pub fn request(&self) -> Chain {
        (self.request)()
    }

    /// The answer to [`Device::request`] is right.
    pub fn accepts(&self, done: &Completion) -> bool {
        (self.accepts)(done)
    }

    /// Starts the daemon and connects a guest with all features and one region of RAM.
    ///
    /// # Panics
    /// It does not serve.
    pub fn boot(&self) -> Machine {
        self.boot_with(self.launch(), &Ram::new(RAM_BYTES), self.wants())
    }

    /// The same with other options, other RAM and other wishes.
    ///
    /// # Panics
    /// It does not serve.
    pub fn boot_with(&self, launch: Launch, ram: &Arc<Ram>, wants: Wants) -> Machine {
        let daemon = launch.serve().unwrap_or_else(|e| panic!("{}: {e}", self.binary));
        let frontend = Frontend::session(daemon.socket(), ram, wants);
        let frontend =
            frontend.unwrap_or_else(|e| panic!("{}: {e}; it said: {}", self.binary, daemon.stderr()));
        Machine { device: *self, daemon, frontend, wants }
    }
}

/// A guest with one device.
#[derive(Debug)]
pub struct Machine {
    /// What the device is.
    pub device: Device,
    /// Its process.
    pub daemon: Daemon,
    /// The VMM's end of its socket.
    pub frontend: Frontend,
    wants: Wants,
}

impl Machine {
    /// The guest's RAM.
    pub fn ram(&self) -> Arc<Ram> {
        Arc::clone(self.frontend.ram())
    }

    /// Starts the request queue with a new ring.
    ///
    /// # Errors
    /// As [`Frontend::start_new`].
    pub fn start_queue(&mut self) -> Result<Ring, FrontendError> {
        self.frontend.start_new(self.device.queue, QUEUE_SIZE)
    }

    /// Hangs up and connects again with a new guest.
    ///
    /// # Errors
    /// As [`Frontend::session`].
    pub fn reconnect(&mut self) -> Result<(), FrontendError> {
        self.hang_up();
        self.connect(&Ram::new(RAM_BYTES), self.wants)
    }

    /// Connects with this guest and these wishes, after [`Machine::hang_up`].
    ///
    /// # Errors
    /// As [`Frontend::session`].
    pub fn connect(&mut self, ram: &Arc<Ram>, wants: Wants) -> Result<(), FrontendError> {
        self.frontend = Frontend::session(self.daemon.socket(), ram, wants)?;
        Ok(())
    }

    /// Closes the connection, so that the daemon has time for another front-end.
    ///
    /// # Panics
    /// The host has no sockets left.
    pub fn hang_up(&mut self) {
        let (nobody, _) = UnixStream::pair().unwrap_or_else(|e| panic!("socket pair: {e}"));
        let hung_up = Frontend::on(nobody, self.frontend.ram());
        self.frontend = hung_up.unwrap_or_else(|e| panic!("socket pair: {e}"));
    }

    /// A good request on this ring is answered right.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn assert_serves(&self, ring: &mut Ring) {
        let done = ring.run(&self.device.request());
        let right = done.as_ref().is_ok_and(|done| self.device.accepts(done));
        assert!(right, "{}: {done:?}; it said: {}", self.device.binary, self.daemon.stderr());
    }

    /// The queue stops, and serves again on a new ring.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn assert_restarts(&mut self) {
        let ring = self.frontend.stop(self.device.queue).and_then(|_| self.start_queue());
        let mut ring = ring.unwrap_or_else(|e| panic!("{}: {e}", self.device.binary));
        self.assert_serves(&mut ring);
    }

    /// A fresh front-end is served, by the process that was started.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn assert_serves_anew(&mut self) {
        assert!(self.daemon.is_running(), "{} has ended: {}", self.device.binary, self.daemon.stderr());
        let ring = self.reconnect().and_then(|()| self.start_queue());
        let mut ring = ring.unwrap_or_else(|e| panic!("{}: {e}", self.device.binary));
        self.assert_serves(&mut ring);
    }
}

/// Makes a test of each function `fn case(device: Device)`: for each daemon and each kind of ring, in modules of
/// their names. Cases that make sense on one kind only stand apart.
#[macro_export]
macro_rules! against_every_daemon {
    (
        both: [$($both:ident),* $(,)?]
        $(, split: [$($split:ident),* $(,)?], packed: [$($packed:ident),* $(,)?])? $(,)?
    ) => {
        $crate::against_every_daemon!(@ rng RNG [$($both)* $($($split)*)?] [$($both)* $($($packed)*)?]);
        $crate::against_every_daemon!(@ blk BLK [$($both)* $($($split)*)?] [$($both)* $($($packed)*)?]);
        $crate::against_every_daemon!(@ console CONSOLE [$($both)* $($($split)*)?] [$($both)* $($($packed)*)?]);
    };
    (@ $daemon:ident $device:ident [$($split:ident)*] [$($packed:ident)*]) => {
        mod $daemon {
            mod split {
                $(#[test] fn $split() { super::super::$split($crate::machine::$device) })*
            }
            mod packed {
                use $crate::guest::format::RingKind;
                $(#[test] fn $packed() { super::super::$packed($crate::machine::$device.on(RingKind::Packed)) })*
            }
        }
    };
}
