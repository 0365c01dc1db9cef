//! Daemons that go and come back, or something else in their place: the guest waits, and loses nothing.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backends::proto::Code;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use tests::daemon::{Daemon, Launch};
use tests::liar::{Liar, Lie};
use tests::machine::BLK;
use tests::resume;
use tests::vmm::{Run, Vmm};

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");
/// A guest that waited for a daemon to be given up would have waited for longer, and this machine may be busy.
const MOMENT: Duration = Duration::from_millis(900);

/// Without a keeper, which would be the one who notices.
fn rng() -> Daemon {
    Launch::new("outboard-rng").args(["--keeper", "off"]).serve().unwrap()
}

/// The guest of `metal=hold`, and what it was asked so far.
struct Guest {
    vmm: Vmm,
    alive: usize,
    served: usize,
}

impl Guest {
    fn start(options: &str, socket: &Path) -> Guest {
        let vmm = Run::metal(OUTBOARD, &format!("metal=hold {options}")).device("rng", socket).start();
        vmm.wait_for("metal: hold ready\n", 1);
        Guest { vmm, alive: 0, served: 0 }
    }

    /// The guest runs, whatever its device does; how long it took to say so.
    fn assert_alive(&mut self) -> Duration {
        self.alive += 1;
        let start = Instant::now();
        self.vmm.type_in("a");
        self.vmm.wait_for("metal: alive\n", self.alive);
        let took = start.elapsed();
        assert!(took < MOMENT, "{took:?}");
        took
    }

    /// Makes a request that may have to wait.
    fn ask(&mut self) {
        self.served += 1;
        self.vmm.type_in("s");
    }

    fn wait_served(&self) {
        self.vmm.wait_for("metal: served\n", self.served);
    }

    fn has_been_served(&self) -> bool {
        self.vmm.serial().matches("metal: served\n").count() >= self.served
    }

    fn assert_serves(&mut self) {
        self.ask();
        self.wait_served();
    }

    /// All requests come back, and the driver never had to reset anything.
    fn finish(mut self) {
        self.vmm.type_in("x");
        let ended = self.vmm.finish();
        assert!(ended.ok().serial.contains("DRIVER_OK"), "{ended:#?}");
        assert!(!ended.serial.contains("NEEDS_RESET"), "{ended:#?}");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.vmm.pid().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.vmm.pid())).unwrap().count()
    }
}

#[test]
fn a_daemon_killed_while_idle_is_waited_for() {
    let mut daemon = rng();
    let mut guest = Guest::start("", daemon.socket());
    guest.assert_serves();
    daemon.kill9();
    guest.vmm.wait_for_stderr("waits for its daemon");
    guest.ask();
    guest.assert_alive();
    daemon.restart().unwrap();
    guest.wait_served();
    guest.vmm.wait_for_stderr("its daemon is back");
    guest.assert_serves();
    guest.finish();
}

#[test]
fn m03_requests_in_flight_come_back_exactly_once_over_many_kills() {
    let mut daemon = rng();
    let mut guest = Guest::start("inflight=4", daemon.socket());
    guest.assert_serves();
    let before = guest.descriptors();
    for _ in 0..20 {
        daemon.restart().unwrap();
        guest.assert_serves();
    }
    assert_eq!(guest.descriptors(), before, "N5");
    guest.finish();
}

#[test]
fn the_vmm_does_not_notice_what_the_keeper_of_a_daemon_sees_to() {
    let daemon = Launch::new("outboard-rng").serve().unwrap();
    let mut guest = Guest::start("inflight=4", daemon.socket());
    for _ in 0..20 {
        guest.assert_serves();
        daemon.kill_worker();
    }
    guest.assert_serves();
    assert_eq!(guest.vmm.stderr(), "");
    guest.finish();
}

#[test]
fn a_daemon_whose_keeper_is_killed_is_waited_for() {
    let mut daemon = Launch::new("outboard-rng").serve().unwrap();
    let mut guest = Guest::start("inflight=4", daemon.socket());
    for _ in 0..5 {
        guest.assert_serves();
        daemon.restart().unwrap();
    }
    guest.assert_serves();
    guest.finish();
}

#[test]
fn the_interrupt_of_a_request_made_while_the_daemon_is_away_comes() {
    let mut daemon = rng();
    let mut guest = Guest::start("irq", daemon.socket());
    for _ in 0..3 {
        guest.assert_serves();
        daemon.kill9();
        guest.ask();
        daemon.restart().unwrap();
        guest.wait_served();
    }
    guest.finish();
}

/// The guest stands still, its VMM does not: the daemon is back before the guest goes on.
#[test]
fn a_guest_that_is_paused_while_the_daemon_is_away_goes_on_with_the_next_one() {
    for options in ["irq", "inflight=4"] {
        let mut daemon = rng();
        let mut guest = Guest::start(options, daemon.socket());
        guest.assert_serves();
        daemon.kill9();
        guest.vmm.wait_for_stderr("waits for its daemon");
        guest.ask();
        guest.signal(Signal::USR1);
        guest.vmm.wait_for_stderr("the guest is paused");
        daemon.restart().unwrap();
        guest.vmm.wait_for_stderr("its daemon is back");
        assert!(!guest.has_been_served(), "a paused guest says nothing");
        guest.signal(Signal::USR2);
        guest.wait_served();
        guest.assert_serves();
        guest.finish();
    }
}

#[test]
fn a_paused_machine_ends_when_it_is_asked_to_while_the_daemon_is_away() {
    let mut daemon = rng();
    let guest = Guest::start("", daemon.socket());
    daemon.kill9();
    guest.signal(Signal::USR1);
    guest.vmm.wait_for_stderr("the guest is paused");
    guest.signal(Signal::TERM);
    guest.vmm.finish().code(0);
}

/// The VMM stands still as a whole, as job control and freezers make it; the daemon is back before it goes on, or after.
#[test]
fn a_vmm_that_is_paused_while_the_daemon_is_away_goes_on_with_the_next_one() {
    for options in ["irq", "inflight=4"] {
        let mut daemon = rng();
        let mut guest = Guest::start(options, daemon.socket());
        for back_while_paused in [true, false] {
            guest.assert_serves();
            daemon.kill9();
            guest.ask();
            guest.signal(Signal::STOP);
            if back_while_paused {
                daemon.restart().unwrap();
            }
            guest.signal(Signal::CONT);
            if !back_while_paused {
                daemon.restart().unwrap();
            }
            guest.wait_served();
        }
        guest.finish();
    }
}

#[test]
fn a_guest_resets_its_device_while_the_daemon_is_away() {
    let mut daemon = rng();
    let mut guest = Guest::start("inflight=4", daemon.socket());
    daemon.kill9();
    guest.vmm.type_in("d");
    guest.vmm.wait_for("metal: reset\n", 1);
    guest.assert_alive();
    daemon.restart().unwrap();
    guest.assert_serves();
    guest.vmm.type_in("d");
    guest.vmm.wait_for("metal: reset\n", 2);
    guest.assert_serves();
    daemon.restart().unwrap();
    guest.assert_serves();
    guest.finish();
}

#[test]
fn a_machine_is_reset_while_the_daemon_is_away() {
    let mut daemon = rng();
    let mut guest = Guest::start("inflight=4 then-reset", daemon.socket());
    guest.assert_serves();
    daemon.kill9();
    guest.vmm.type_in("q");
    guest.vmm.wait_for("metal: hold ready\n", 2);
    guest.assert_alive();
    daemon.restart().unwrap();
    guest.assert_serves();
}

#[test]
fn a_machine_ends_while_the_daemon_is_away() {
    for by_signal in [true, false] {
        let mut daemon = rng();
        let mut guest = Guest::start("inflight=4", daemon.socket());
        daemon.kill9();
        guest.assert_alive();
        let start = Instant::now();
        let ended = if by_signal {
            guest.vmm.terminate()
        } else {
            guest.vmm.type_in("q");
            guest.vmm.finish()
        };
        ended.code(0);
        assert!(start.elapsed() < MOMENT * 2, "{:?}", start.elapsed());
    }
}

#[test]
fn m03_a_daemon_that_goes_during_the_handshake_is_waited_for() {
    for code in
        [Code::SetFeatures, Code::SetMemTable, Code::SetVringAddr, Code::SetVringKick, Code::SetVringEnable]
    {
        let lies = if code == Code::SetVringKick { &[Lie::HangUp, Lie::Half][..] } else { &[Lie::HangUp] };
        for &lie in lies {
            let (daemon, next, dir) = (rng(), rng(), tempfile::tempdir().unwrap());
            let liar = Liar::new(dir.path(), daemon.socket(), code, lie);
            let mut guest = Guest::start("inflight=4", liar.socket());
            assert!(liar.wait_lied(), "{code:?} is never answered");
            guest.assert_alive();
            std::fs::rename(next.socket(), liar.socket()).unwrap();
            guest.assert_serves();
            guest.finish();
        }
    }
}

#[test]
fn m02_a_daemon_of_another_type_is_not_taken() {
    let mut daemon = rng();
    let mut guest = Guest::start("inflight=4", daemon.socket());
    guest.assert_serves();
    daemon.kill9();
    let mut blk = BLK.launch().serve().unwrap();
    std::fs::rename(blk.socket(), daemon.socket()).unwrap();
    guest.vmm.wait_for_stderr("not that of this device");
    guest.ask();
    guest.assert_alive();
    blk.kill9();
    daemon.restart().unwrap();
    guest.wait_served();
    guest.finish();
}

/// What stands in for the daemon.
#[derive(Clone, Copy, Debug)]
enum Evil {
    /// Takes connections, and nothing else.
    Mute,
    /// Answers everything with the same bytes.
    Garbage,
    /// Sends bytes of a message one by one, for ever.
    Dribble,
    /// Sends as fast as it can.
    Flood,
    /// Hangs up on everybody.
    HangUp,
}

impl Evil {
    fn serve(self, mut stream: UnixStream, stop: &AtomicBool) {
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
        let chunk: &[u8] = match self {
            Evil::Mute | Evil::HangUp => &[],
            Evil::Garbage => b"HTTP/1.1 200 OK\r\n",
            // The header of an answer to GET_FEATURES, and the lengths of a payload that never ends.
            Evil::Dribble => &[1, 0, 0, 0, 5, 0, 0, 0, 0, 8, 0, 0],
            Evil::Flood => &[0x5a; 4096],
        };
        let mut at = chunk.iter().cycle();
        while !stop.load(Ordering::Relaxed) && !matches!(self, Evil::HangUp) {
            if matches!(stream.read(&mut [0; 4096]), Ok(0)) {
                return;
            }
            let sent = match self {
                Evil::Mute | Evil::HangUp => Ok(()),
                Evil::Dribble => stream.write_all(&[*at.next().unwrap_or(&0)]),
                Evil::Garbage | Evil::Flood => stream.write_all(chunk),
            };
            if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return;
            }
        }
    }
}

#[test]
fn m01_m05_nothing_in_the_daemons_place_keeps_the_guest_waiting() {
    for evil in [Evil::Mute, Evil::Garbage, Evil::Dribble, Evil::Flood, Evil::HangUp] {
        let mut daemon = rng();
        let mut guest = Guest::start("inflight=4", daemon.socket());
        guest.assert_serves();
        daemon.kill9();
        std::fs::remove_file(daemon.socket()).unwrap_or_default();
        let listener = UnixListener::bind(daemon.socket()).unwrap();
        let stop = AtomicBool::new(false);
        let worst = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let brief = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                    if poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&brief)) == Ok(1) {
                        evil.serve(listener.accept().unwrap().0, &stop);
                    }
                }
            });
            let until = Instant::now() + Duration::from_secs(2);
            let mut worst = guest.assert_alive();
            while Instant::now() < until {
                worst = worst.max(guest.assert_alive());
            }
            // The driver has time to reset its device, too.
            guest.vmm.type_in("d");
            guest.vmm.wait_for("metal: reset\n", 1);
            worst = worst.max(guest.assert_alive());
            stop.store(true, Ordering::Relaxed);
            worst
        });
        drop(listener);
        println!("{evil:?}: the guest answered within {} ms", worst.as_millis());
        daemon.restart().unwrap();
        guest.assert_serves();
        guest.finish();
    }
}

#[test]
fn io_resumes_soon_after_the_socket_is_back() {
    let mut times = resume::measure(Path::new(OUTBOARD), 20);
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("resumed after {median:?} (median of {}), {worst:?} at worst", times.len());
    // What `cargo xtask bench restart` holds to 20 ms, on a machine that does nothing else.
    assert!(median < Duration::from_millis(100), "{times:?}");
}
