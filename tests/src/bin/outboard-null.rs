//! `outboard-null`: a vhost-user-blk back-end that does nothing, as fast as `backends` can.
//!
//! A driver sees a disk of a gibibyte. The header of every request is read, and status OK is its answer; data is not
//! touched. So what a client measures is the library alone: ring, chain, worker, notifications. It is the counterpart
//! of qemu-storage-daemon's `null-co`.

use std::convert::Infallible;
use std::process::ExitCode;

use backends::daemon::{Failure, Program};
use backends::device::{Announcer, Device, Handler, Io, Turn};
use backends::kept::Kept;
use backends::queue::{Queue, Request};
use rustix::io::Errno;
use signal_hook::consts::SIGUSR2;
use signal_hook::iterator::Signals;
use tests::guest::blk::OK;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ};

/// The disk that is not there, in sectors of 512 bytes.
const CAPACITY_SECTORS: u64 = 1 << 21;
/// Bytes of the configuration space up to and with `num_queues`, and fields in it (virtio 1.3 §5.2.4).
const CONFIG_BYTES: usize = 36;
const CAPACITY: usize = 0;
const BLK_SIZE: usize = 20;
const NUM_QUEUES: usize = 34;
/// Bytes of a request's header (§5.2.6).
const HEADER_BYTES: usize = 16;

/// What the command line adds to the options of every daemon.
#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// Request queues
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,
}

impl Program for Options {
    type Device = Null;
    type Tool = Infallible;
    const NAME: &'static str = "outboard-null";
    const TYPE: &'static str = "block";
    const ABOUT: &'static str = "vhost-user block device that does nothing: for measuring";
    const POLICY: &'static str = include_str!("../../policy/null.policy");
    const EXAMPLES: &'static str = "Example:\n  outboard-null --socket-path /tmp/null.sock";

    fn open(self, _: &Kept) -> Result<Null, Failure> {
        Ok(Null { queues: self.queues })
    }
}

/// The device, and what serves it.
#[derive(Clone, Copy, Debug)]
struct Null {
    queues: u16,
}

impl Device for Null {
    type Handler = Null;

    fn features(&self) -> u64 {
        [VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ]
            .iter()
            .fold(0, |bits, bit| bits | 1 << bit)
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> Vec<u8> {
        let mut space = vec![0; CONFIG_BYTES];
        space[CAPACITY..][..8].copy_from_slice(&CAPACITY_SECTORS.to_le_bytes());
        space[BLK_SIZE..][..4].copy_from_slice(&512u32.to_le_bytes());
        space[NUM_QUEUES..][..2].copy_from_slice(&self.queues.to_le_bytes());
        space
    }

    /// SIGUSR2: the configuration space changed, or so it says.
    fn attach(&self, announcer: Announcer) {
        if let Ok(mut signals) = Signals::new([SIGUSR2]) {
            std::thread::spawn(move || signals.forever().for_each(|_| announcer.config_changed()));
        }
    }

    /// As `outboard-blk`, whose place it takes.
    fn in_order(&self) -> bool {
        false
    }

    fn workers(&self) -> usize {
        std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(self.queues.into()))
    }

    fn handler(&self) -> std::io::Result<Null> {
        Ok(*self)
    }
}

impl Handler for Null {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _io: &mut Io<'_, Infallible>) -> Turn {
        while let Some(request) = queue.next() {
            answer(queue, request);
        }
        Turn::Drained
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }
}

/// Says OK, and that all was written.
fn answer(queue: &mut Queue, mut request: Request) {
    let room = request.writable_bytes();
    let header = request.read_front::<HEADER_BYTES>();
    let (Some(_), Some(status)) = (header, request.take_last_byte()) else { return queue.abandon(request) };
    status.copy_from(&[OK]);
    queue.complete(request, u32::try_from(room).unwrap_or(u32::MAX));
}

fn main() -> ExitCode {
    backends::daemon::main::<Options>()
}
