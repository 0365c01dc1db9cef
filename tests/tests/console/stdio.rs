//! `--stdio` on pipes, sockets, files, /dev/null and a terminal.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fcntl_getfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;
use tests::guest::chain::Chain;
use tests::guest::memory::RAM_BASE;
use tests::random::Random;

use crate::end::End;
use crate::process::Process;
use crate::traffic::both_ways;
use crate::{Guest, KEEP_BYTES, WAYS, Way, account, assert_same};
use tests::daemon::process::{kill_and_wait, worker_of};

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

/// Reading end and writing end.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// A terminal of 80 x 25: our end, and the daemon's.
fn terminal() -> (End, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(path, flags, Mode::empty()).unwrap();
    tcsetwinsize(&master, Winsize { ws_col: 80, ws_row: 25, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (End::new(master), slave)
}

fn sixteen_mib(way: Way) {
    let ((input, writer), (reader, output)) = (pipe(), pipe());
    let process = Process::start(way.engine, input, output);
    let mut guest = way.boot(&process.socket());
    both_ways(&mut guest.console, &End::new(reader), &End::new(writer));
    let (code, said) = process.terminate();
    assert_eq!((code, account(&said, "dropped")), (Some(0), 0), "{said}");
}

#[test]
fn sixteen_mib_each_way_through_pipes_with_io_uring() {
    sixteen_mib(crate::URING_PACKED);
}

#[test]
fn sixteen_mib_each_way_through_pipes_with_epoll() {
    sixteen_mib(crate::EPOLL);
}

#[test]
fn input_that_ended_and_output_that_broke_leave_the_guest_alone() {
    for way in WAYS {
        let ((input, writer), (reader, output)) = (pipe(), pipe());
        let process = Process::start(way.engine, input, output);
        let mut guest = way.boot(&process.socket());
        let writer = End::new(writer);
        writer.write(b"the end");
        drop(writer);
        guest.hears(b"the end");
        drop(reader);
        guest.say(&[1; 300_000], 10_000);
        let (code, said) = process.terminate();
        assert_eq!((code, account(&said, "never_read")), (Some(0), KEEP_BYTES as u64), "{said}");
        // A process that another test was just starting may have had the pipe for a moment.
        let gone = account(&said, "dropped") + account(&said, "to_host");
        assert_eq!(gone, 300_000 - KEEP_BYTES as u64, "{said}");
    }
}

#[test]
fn files_are_read_and_written() {
    for way in WAYS {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("in"), b"from a file").unwrap();
        fs::write(dir.path().join("out"), b"head ").unwrap();
        let output = File::options().append(true).open(dir.path().join("out")).unwrap();
        let process = Process::start(way.engine, File::open(dir.path().join("in")).unwrap(), output);
        let mut guest = way.boot(&process.socket());
        guest.hears(b"from a file");
        guest.say(b"and tail", 3);
        assert_eq!(fs::read(dir.path().join("out")).unwrap(), b"head and tail");
    }
}

#[test]
fn a_file_that_is_always_ready_is_carried_in_many_turns() {
    for way in WAYS {
        let dir = TempDir::new().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        let bytes = Random::from_env().bytes(3 << 20);
        fs::write(&input, &bytes).unwrap();
        let process = Process::start(way.engine, File::open(input).unwrap(), File::create(&output).unwrap());
        let mut guest = way.boot(&process.socket());
        // All buffers at once: no kick of the driver brings the device back to work.
        guest.console.post(60, 60_000);
        let mut heard = Vec::new();
        while heard.len() < bytes.len() {
            heard.extend(guest.console.rx.wait_used().unwrap().data);
        }
        assert_same(&heard, &bytes);
        guest.console.tx.run(&Chain::new().at(RAM_BASE, 16 << 20, false)).unwrap();
        assert_eq!(fs::metadata(output).unwrap().len(), 16 << 20);
    }
}

#[test]
fn k16_a_full_disk_does_not_stop_the_guest() {
    for way in WAYS {
        let process =
            Process::start(way.engine, null(), File::options().write(true).open("/dev/full").unwrap());
        let mut guest = way.boot(&process.socket());
        guest.say(&[1; 200_000], 10_000);
        let (code, said) = process.terminate();
        assert_eq!((code, account(&said, "dropped")), (Some(0), 200_000 - KEEP_BYTES as u64), "{said}");
    }
}

#[test]
fn dev_null_is_silent_and_costs_no_cpu() {
    for way in WAYS {
        let process = Process::start(way.engine, null(), null());
        let mut guest = way.boot(&process.socket());
        guest.say(&[1; 1_000_000], 10_000);
        guest.console.post(1, 64);
        let before = process.cpu_ticks();
        guest.console.rx.wait_used_until(Instant::now() + Duration::from_millis(500)).unwrap_err();
        let used = process.cpu_ticks() - before;
        assert!(used <= 5, "{used} ticks in half a second on {way:?}");
    }
}

#[test]
fn a_terminal_is_raw_while_a_guest_is_served_and_then_as_it_was() {
    let (end, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    let process = Process::start("auto", slave.try_clone().unwrap(), slave.try_clone().unwrap());
    assert!(tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ISIG), "^C must work before a guest");
    let mut guest = Guest::boot(&process.socket());
    guest.hears_and_answers(&end);
    assert!(!tcgetattr(&slave).unwrap().local_modes.intersects(LocalModes::ISIG | LocalModes::ECHO));
    end.write(b"\x03\x1a\x1c");
    guest.hears(b"\x03\x1a\x1c");
    assert_eq!(process.terminate().0, Some(0));
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(
        (after.local_modes, after.input_modes, after.output_modes, after.control_modes),
        (before.local_modes, before.input_modes, before.output_modes, before.control_modes)
    );
}

#[test]
fn a_terminal_is_as_it_was_after_workers_that_died() {
    let (end, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    let process = Process::start("auto", slave.try_clone().unwrap(), slave.try_clone().unwrap());
    let mut guest = Guest::boot(&process.socket());
    guest.hears_and_answers(&end);
    for _ in 0..2 {
        kill_and_wait(worker_of(process.child.id()));
        guest.hears_and_answers(&end);
    }
    assert_eq!(process.terminate().0, Some(0));
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(
        (after.local_modes, after.input_modes, after.output_modes, after.control_modes),
        (before.local_modes, before.input_modes, before.output_modes, before.control_modes)
    );
    assert_eq!(format!("{:?}", after.special_codes), format!("{:?}", before.special_codes));
}

#[test]
fn the_terminals_size_is_the_guests() {
    let (end, slave) = terminal();
    let process = Process::start("auto", slave.try_clone().unwrap(), slave);
    let mut guest = Guest::boot(&process.socket());
    assert_eq!(guest.frontend.features() & 1, 1, "F_SIZE");
    assert_eq!(guest.frontend.config(0, 12).unwrap(), [80, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    tcsetwinsize(&end, Winsize { ws_col: 100, ws_row: 30, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    assert_eq!(guest.frontend.config(0, 4).unwrap(), [100, 0, 30, 0]);
}

#[test]
fn without_a_terminal_there_is_no_size() {
    let process = Process::start("auto", null(), null());
    let mut guest = Guest::boot(&process.socket());
    assert_eq!(guest.frontend.features() & 1, 0);
    assert_eq!(guest.frontend.config(0, 12).unwrap(), [0; 12]);
}

#[test]
fn other_programs_on_the_same_descriptors_see_no_change() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_end, slave) = terminal();
    for shared in [OwnedFd::from(theirs), slave] {
        let blocking = |fd: &OwnedFd| !fcntl_getfl(fd.as_fd()).unwrap().contains(OFlags::NONBLOCK);
        assert!(blocking(&shared));
        let process = Process::start("auto", shared.try_clone().unwrap(), shared.try_clone().unwrap());
        drop(Guest::boot(&process.socket()));
        assert_eq!(process.terminate().0, Some(0));
        assert!(blocking(&shared), "O_NONBLOCK was left behind");
    }
    drop(ours);
}

#[test]
fn sockets_as_standard_input_and_output_work() {
    for way in WAYS {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Process::start(way.engine, theirs.try_clone().unwrap(), theirs);
        let mut guest = way.boot(&process.socket());
        guest.hears_and_answers(&End::new(ours));
    }
}
