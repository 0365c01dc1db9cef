//! `--connect`: a listener that is there, not yet there, lost, and back again.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::daemon::{Daemon, Launch};
use tests::random::Random;

use crate::end::End;
use crate::traffic::{both_ways, send_all};
use crate::{EPOLL, KEEP_BYTES, URING_PACKED, WAYS, Way, account, assert_same};

/// A daemon that connects to [`peer_path`].
fn connecting(engine: &str) -> Daemon {
    let launch = Launch::new("outboard-console");
    let peer = launch.dir().join("peer.sock").display().to_string();
    launch.args(["--engine", engine, "--connect", peer.as_str()]).serve().unwrap()
}

fn peer_path(daemon: &Daemon) -> PathBuf {
    daemon.dir().join("peer.sock")
}

/// Somebody listens where the daemon connects to.
fn listen(daemon: &Daemon) -> UnixListener {
    UnixListener::bind(peer_path(daemon)).unwrap()
}

fn sixteen_mib(way: Way) {
    let daemon = connecting(way.engine);
    let listener = listen(&daemon);
    let mut guest = way.boot(daemon.socket());
    let peer = End::accept(&listener);
    both_ways(&mut guest.console, &peer, &peer);
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    let number = |name| account(&exit.stderr, name);
    assert_eq!([number("to_host"), number("to_guest")], [16 << 20; 2]);
    assert_eq!([number("dropped"), number("never_read"), number("input_dropped")], [0; 3]);
}

#[test]
fn sixteen_mib_each_way_to_a_listener_with_io_uring() {
    sixteen_mib(URING_PACKED);
}

#[test]
fn sixteen_mib_each_way_to_a_listener_with_epoll() {
    sixteen_mib(EPOLL);
}

#[test]
fn nobody_listens_yet_and_whoever_comes_gets_the_last_64_kib() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let mut guest = way.boot(daemon.socket());
        let bytes = Random::from_env().bytes(200_000);
        send_all(&mut guest.console.tx, &bytes, &mut Random::new(3));
        let peer = End::accept(&listen(&daemon));
        assert_same(&peer.read(KEEP_BYTES), &bytes[bytes.len() - KEEP_BYTES..]);
        guest.hears_and_answers(&peer);
        assert_eq!(account(&daemon.terminate().stderr, "dropped"), 200_000 - KEEP_BYTES as u64);
    }
}

#[test]
fn connections_that_come_and_go_carry_the_whole_stream_between_them() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let mut guest = way.boot(daemon.socket());
        let bytes = Random::from_env().bytes(20 * 3000);
        let mut heard = Vec::new();
        for part in bytes.chunks(3000) {
            // What it waits for is one listener after the other, as of a program that is started again.
            let listener = listen(&daemon);
            guest.say(&part[..1000], 100);
            let peer = End::accept(&listener);
            heard.extend(peer.read(1000));
            guest.say(&part[1000..], 2000);
            heard.extend(peer.read(2000));
            fs::remove_file(peer_path(&daemon)).unwrap();
        }
        assert_same(&heard, &bytes);
        assert_eq!(account(&daemon.terminate().stderr, "dropped"), 0);
    }
}

#[test]
fn what_was_sent_before_it_left_is_heard_in_order() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let listener = listen(&daemon);
        let mut guest = way.boot(daemon.socket());
        for word in ["one ", "two ", "three ", "four "] {
            End::accept(&listener).write(word.as_bytes());
        }
        let last = End::accept(&listener);
        last.write(b"five");
        guest.say(b"go", 2);
        assert_eq!(last.read(2), b"go");
        guest.hears(b"one two three four five");
    }
}

#[test]
fn a_listener_that_leaves_while_the_guest_is_held_back_sets_it_free() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let listener = listen(&daemon);
        let mut guest = way.boot(daemon.socket());
        let slow = End::accept(&listener);
        guest.hears_and_answers(&slow);
        let tx = &mut guest.console.tx;
        (0..60).for_each(|_| _ = tx.add_readable(&[7; 16384]));
        tx.notify();
        tx.wait_used().unwrap();
        drop((slow, listener));
        tx.wait_all().unwrap();
        fs::remove_file(peer_path(&daemon)).unwrap();
        assert_eq!(End::accept(&listen(&daemon)).read(KEEP_BYTES), [7; KEEP_BYTES]);
    }
}

#[test]
fn a_listener_that_only_ended_its_sending_goes_on_reading() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let listener = listen(&daemon);
        let mut guest = way.boot(daemon.socket());
        let peer = End::accept(&listener);
        peer.write(b"the last word");
        peer.shut_down_writing();
        guest.hears(b"the last word");
        let bytes = Random::from_env().bytes(1 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| send_all(&mut guest.console.tx, &bytes, &mut Random::new(5)));
            assert_same(&peer.read(bytes.len()), &bytes);
        });
    }
}

#[test]
fn connections_leave_no_descriptor_behind() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let listener = listen(&daemon);
        let mut guest = way.boot(daemon.socket());
        let mut meet = || {
            let peer = End::accept(&listener);
            guest.hears_and_answers(&peer);
            daemon.counts()
        };
        let before = meet();
        for _ in 0..30 {
            meet();
        }
        let after = meet();
        assert_eq!((after.fds, after.threads), (before.fds, before.threads), "{way:?}");
    }
}

#[test]
fn waiting_for_a_listener_uses_no_cpu() {
    for way in WAYS {
        let daemon = connecting(way.engine);
        let mut guest = way.boot(daemon.socket());
        guest.say(b"hello", 5);
        let before = daemon.cpu_ticks();
        guest.console.post(1, 64);
        guest.console.rx.wait_used_until(Instant::now() + Duration::from_millis(500)).unwrap_err();
        let used = daemon.cpu_ticks() - before;
        assert!(used <= 5, "{used} ticks in half a second on {way:?}");
    }
}
