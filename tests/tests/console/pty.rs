//! `--pty`: the link, readers that come and go, the bytes as they are.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tests::daemon::{Daemon, Launch};
use tests::random::Random;

use crate::end::End;
use crate::traffic::{both_ways, send_all};
use crate::{Guest, KEEP_BYTES, WAYS, Way, account, assert_same};

fn daemon(engine: &str) -> Daemon {
    let launch = Launch::new("outboard-console");
    let link = launch.dir().join("tty").display().to_string();
    launch.args(["--engine", engine, "--pty", link.as_str()]).serve().unwrap()
}

fn link(daemon: &Daemon) -> PathBuf {
    daemon.dir().join("tty")
}

fn terminal(daemon: &Daemon) -> End {
    End::open_terminal(&link(daemon))
}

fn sixteen_mib(way: Way) {
    let daemon = daemon(way.engine);
    let mut guest = way.boot(daemon.socket());
    let terminal = terminal(&daemon);
    guest.hears_and_answers(&terminal);
    both_ways(&mut guest.console, &terminal, &terminal);
    assert_eq!(account(&daemon.terminate().stderr, "dropped"), 0);
}

#[test]
fn sixteen_mib_each_way_with_io_uring() {
    sixteen_mib(crate::URING_PACKED);
}

#[test]
fn sixteen_mib_each_way_with_epoll() {
    sixteen_mib(crate::EPOLL);
}

#[test]
fn the_slave_is_raw_before_anybody_opens_it() {
    let daemon = daemon("auto");
    let mut guest = Guest::boot(daemon.socket());
    let terminal = terminal(&daemon);
    let modes = tcgetattr(&terminal).unwrap().local_modes;
    assert!(!modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
    terminal.write(b"\x03\x04\r\n\x00\xff");
    guest.hears(b"\x03\x04\r\n\x00\xff");
}

#[test]
fn readers_come_and_go_and_nothing_comes_back_as_echo() {
    for way in WAYS {
        let daemon = daemon(way.engine);
        let mut guest = way.boot(daemon.socket());
        for round in 0..30_u8 {
            guest.say(&[round; 3000], 1000);
            let terminal = terminal(&daemon);
            assert_eq!(terminal.read(3000), [round; 3000]);
            guest.hears_and_answers(&terminal);
        }
    }
}

#[test]
fn c06_nobody_opens_it_and_the_next_reader_gets_the_last_64_kib() {
    for way in WAYS {
        let daemon = daemon(way.engine);
        let mut guest = way.boot(daemon.socket());
        let bytes = Random::from_env().bytes(200_000);
        send_all(&mut guest.console.tx, &bytes, &mut Random::new(4));
        let terminal = terminal(&daemon);
        assert_same(&terminal.read(KEEP_BYTES), &bytes[bytes.len() - KEEP_BYTES..]);
    }
}

#[test]
fn c06_a_reader_that_closes_while_the_guest_is_held_back_sets_it_free() {
    for way in WAYS {
        let daemon = daemon(way.engine);
        let mut guest = way.boot(daemon.socket());
        let slow = terminal(&daemon);
        guest.hears_and_answers(&slow);
        let tx = &mut guest.console.tx;
        (0..60).for_each(|_| _ = tx.add_readable(&[9; 16384]));
        tx.notify();
        while tx.wait_used_until(Instant::now() + Duration::from_millis(200)).is_ok() {}
        assert!(tx.in_flight() > 20, "the terminal takes everything");
        drop(slow);
        tx.wait_all().unwrap();
    }
}

#[test]
fn a_pty_that_nobody_has_open_costs_no_cpu() {
    for way in WAYS {
        let daemon = daemon(way.engine);
        let mut guest = way.boot(daemon.socket());
        guest.hears_and_answers(&terminal(&daemon));
        guest.console.post(1, 64);
        let before = daemon.cpu_ticks();
        guest.console.rx.wait_used_until(Instant::now() + Duration::from_millis(500)).unwrap_err();
        let used = daemon.cpu_ticks() - before;
        assert!(used <= 5, "{used} ticks in half a second on {way:?}");
    }
}

#[test]
fn the_size_that_a_reader_sets_is_the_next_guests() {
    let daemon = daemon("auto");
    let terminal = terminal(&daemon);
    tcsetwinsize(&terminal, Winsize { ws_col: 132, ws_row: 43, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut guest = Guest::boot(daemon.socket());
    assert_eq!(guest.frontend.features() & 1, 1, "F_SIZE");
    assert_eq!(guest.frontend.config(0, 4).unwrap(), [132, 0, 43, 0]);
}

#[test]
fn the_link_goes_with_the_daemon_unless_it_is_another_ones() {
    let ours = daemon("auto");
    let path = link(&ours);
    let target = fs::read_link(&path).unwrap();
    assert!(target.starts_with("/dev/pts"), "{target:?}");
    let dir = tempfile::TempDir::new().unwrap();
    let shared = dir.path().join("tty");
    let other = Launch::new("outboard-console").args(["--pty".to_owned(), shared.display().to_string()]);
    let other = other.serve().unwrap();
    // The next daemon takes the link over; the first one must leave it alone.
    let next = Launch::new("outboard-console").args(["--pty".to_owned(), shared.display().to_string()]);
    let next = next.serve().unwrap();
    let target = fs::read_link(&shared).unwrap();
    assert_eq!(other.terminate().code, Some(0));
    assert_eq!(fs::read_link(&shared).unwrap(), target);
    assert_eq!(next.terminate().code, Some(0));
    assert!(fs::symlink_metadata(&shared).is_err(), "the link is still there");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
