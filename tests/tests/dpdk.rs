//! DPDK's user-space virtio driver (`net_virtio_user`) as front-end: it does the handshake by its own code, starts both
//! queues of a network device, and sends. `testpmd` makes the frames; the device of this test counts them.

use std::convert::Infallible;
use std::io::{PipeWriter, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use backends::device::{Device, Handler, Io, Turn};
use backends::queue::{Queue, Request};
use backends::server::Settings;
use rustix::io::Errno;
use tests::daemon::{Daemon, Launch};
use tests::frontend::{F_IN_ORDER, F_RING_PACKED, F_VERSION_1};
use tests::served::Served;
use tests::wait;
use xtask::packages;

/// The second queue of a pair: the driver sends by it (virtio 1.3 §5.1.2).
const TRANSMIT: u16 = 1;
const RING: u16 = 1024;
/// Frames to wait for: many times round the ring.
const FRAMES: u64 = 50_000;
/// `struct virtio_net_hdr_v1` (§5.1.6) and a frame.
const FRAME_BYTES: usize = 12 + 64;

/// A network device whose wire ends here.
#[derive(Clone, Default)]
struct Sink(Arc<(Mutex<Seen>, Condvar)>);

/// What the driver did.
#[derive(Debug, Default)]
struct Seen {
    features: u64,
    ring_size: u16,
    frames: u64,
    odd_frames: u64,
}

impl Device for Sink {
    type Handler = Sink;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn handler(&self) -> std::io::Result<Sink> {
        Ok(self.clone())
    }
}

impl Handler for Sink {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        if queue.index() != TRANSMIT {
            return Turn::Blocked;
        }
        let mut seen = self.0.0.lock().unwrap();
        (seen.features, seen.ring_size) = (queue.features(), queue.size());
        while let Some(request) = queue.next() {
            seen.frames += 1;
            seen.odd_frames += u64::from(readable_bytes(&request) != FRAME_BYTES);
            queue.complete(request, 0);
        }
        self.0.1.notify_all();
        Turn::Drained
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }
}

fn readable_bytes(request: &Request) -> usize {
    request.readable().iter().map(|segment| segment.len()).sum()
}

/// `testpmd` at its prompt, and the pipe to it.
fn testpmd(socket: &Path, options: &str) -> (Daemon, PipeWriter) {
    let port = format!("net_virtio_user0,path={},queues=1,queue_size={RING},{options}", socket.display());
    let (prompt, keyboard) = std::io::pipe().unwrap();
    // One processor for both threads, no huge pages, and a place of its own for what instances share.
    let eal = "--lcores 0@0,1@0 --no-pci --no-huge --no-shconf --no-telemetry -m 256 --vdev";
    let launch = Launch::of("dpdk-testpmd").stdin(prompt);
    let place = launch.dir().display().to_string();
    let launch = launch.env("RUNTIME_DIRECTORY", &place).args(eal.split(' ')).args([port.as_str()]);
    let ours = "-- -i --forward-mode=txonly --total-num-mbufs=4096";
    (launch.args(ours.split(' ')).start(), keyboard)
}

/// The driver takes these ring features (and VERSION_1), sends, and stops its port when told to.
#[track_caller]
fn assert_sends(options: &str, ring_features: u64) {
    packages::ensure_dpdk().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let sink = Sink::default();
    let _served = Served::listening(sink.clone(), Settings::default(), &socket);
    let (testpmd, mut keyboard) = testpmd(&socket, options);
    keyboard.write_all(b"start\n").unwrap();

    let (seen, changed) = &*sink.0;
    let few = |seen: &mut Seen| seen.frames < FRAMES;
    let (seen, waited) = changed.wait_timeout_while(seen.lock().unwrap(), wait::PATIENCE, few).unwrap();
    assert!(!waited.timed_out(), "{seen:?}: {} {}", testpmd.stdout(), testpmd.stderr());
    assert_eq!((seen.odd_frames, seen.ring_size), (0, RING));
    assert_eq!(seen.features & (F_VERSION_1 | F_RING_PACKED | F_IN_ORDER), F_VERSION_1 | ring_features);
    drop(seen);

    keyboard.write_all(b"stop\nquit\n").unwrap();
    let exit = testpmd.wait_exit();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    // What was in the ring when the port stopped may have gone no further.
    let (sent, taken) = (sent(&exit.stdout), sink.0.0.lock().unwrap().frames);
    assert!(taken <= sent && sent - taken <= RING.into(), "{taken} of {sent}: {exit:?}");
}

/// What testpmd says it sent: `  TX-packets: 50688          TX-dropped: ...`.
fn sent(said: &str) -> u64 {
    let number = said.split_once("TX-packets: ").and_then(|(_, rest)| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no statistics: {said}"))
}

#[test]
fn dpdk_sends_by_split_rings() {
    assert_sends("packed_vq=0,in_order=0", 0);
}

#[test]
fn dpdk_sends_by_split_rings_in_order() {
    assert_sends("packed_vq=0,in_order=1", F_IN_ORDER);
}

#[test]
fn dpdk_sends_by_packed_rings() {
    assert_sends("packed_vq=1,in_order=0", F_RING_PACKED);
}

#[test]
fn dpdk_sends_by_packed_rings_in_order() {
    assert_sends("packed_vq=1,in_order=1", F_RING_PACKED | F_IN_ORDER);
}
