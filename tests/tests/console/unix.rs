//! Clients of `--listen`: one at a time, slow, leaving, coming back.

use std::time::{Duration, Instant};

use tests::guest::ring::RingError;
use tests::random::Random;

use crate::traffic::{both_ways, send_all};
use crate::{Guest, KEEP_BYTES, WAYS, Way, account, assert_same, client, listening};

fn sixteen_mib(way: Way) {
    let daemon = listening(way.engine);
    let mut guest = way.boot(daemon.socket());
    let client = client(&daemon);
    both_ways(&mut guest.console, &client, &client);
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    let number = |name| account(&exit.stderr, name);
    assert_eq!([number("to_host"), number("to_guest")], [16 << 20; 2]);
    assert_eq!([number("dropped"), number("never_read"), number("input_dropped")], [0; 3]);
}

#[test]
fn sixteen_mib_each_way_with_io_uring() {
    sixteen_mib(crate::URING);
}

#[test]
fn sixteen_mib_each_way_with_io_uring_on_packed_rings() {
    sixteen_mib(crate::URING_PACKED);
}

#[test]
fn sixteen_mib_each_way_with_epoll_on_packed_rings() {
    sixteen_mib(crate::EPOLL_PACKED);
}

#[test]
fn sixteen_mib_each_way_with_epoll() {
    sixteen_mib(crate::EPOLL);
}

#[test]
fn c06_k18_a_slow_reader_holds_the_guest_back_and_loses_nothing() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        guest.hears_and_answers(&client);
        let bytes = Random::from_env().bytes(60 * 16384);
        let tx = &mut guest.console.tx;
        bytes.chunks(16384).for_each(|part| _ = tx.add_readable(part));
        tx.notify();
        // The socket takes some 200 KiB of the 960: the rest must stay with the guest.
        let stuck = loop {
            match tx.wait_used_until(Instant::now() + Duration::from_millis(300)) {
                Ok(_) => {}
                Err(RingError::Deadline(stuck)) => break stuck,
                Err(error) => panic!("{error}"),
            }
        };
        assert!(stuck > 20, "only {stuck} chains wait for a reader that does not read");
        assert_same(&client.read(bytes.len()), &bytes);
        assert_eq!(tx.wait_all().unwrap().len(), stuck);
        assert_eq!(account(&daemon.terminate().stderr, "dropped"), 0);
    }
}

#[test]
fn c06_nobody_listens_and_the_next_client_gets_the_last_64_kib() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let bytes = Random::from_env().bytes(200_000);
        send_all(&mut guest.console.tx, &bytes, &mut Random::new(3));
        let client = client(&daemon);
        assert_same(&client.read(KEEP_BYTES), &bytes[bytes.len() - KEEP_BYTES..]);
        guest.say(b"and then", 3);
        assert_eq!(client.read(8), b"and then");
        let exit = daemon.terminate();
        assert_eq!(account(&exit.stderr, "dropped"), 200_000 - KEEP_BYTES as u64);
        let lines = exit.stderr.matches("oldest of it is dropped").count();
        assert!((1..=3).contains(&lines), "{lines} lines about drops");
    }
}

#[test]
fn clients_that_come_and_go_get_the_whole_stream_between_them() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let bytes = Random::from_env().bytes(50 * 3000);
        let mut heard = Vec::new();
        for part in bytes.chunks(3000) {
            guest.say(&part[..1000], 100);
            let client = client(&daemon);
            heard.extend(client.read(1000));
            guest.say(&part[1000..], 2000);
            heard.extend(client.read(2000));
        }
        assert_same(&heard, &bytes);
    }
}

#[test]
fn a_client_that_leaves_while_the_guest_is_held_back_sets_it_free() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let slow = client(&daemon);
        guest.hears_and_answers(&slow);
        let tx = &mut guest.console.tx;
        (0..60).for_each(|_| _ = tx.add_readable(&[7; 16384]));
        tx.notify();
        tx.wait_used().unwrap();
        drop(slow);
        tx.wait_all().unwrap();
        assert_eq!(client(&daemon).read(KEEP_BYTES), [7; KEEP_BYTES]);
    }
}

#[test]
fn the_second_client_waits_and_what_it_sent_comes_after_the_first() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let first = client(&daemon);
        guest.hears_and_answers(&first);
        let second = client(&daemon);
        second.write(b"second");
        first.write(b"first ");
        guest.hears(b"first ");
        guest.say(b"for the first", 13);
        assert_eq!(first.read(13), b"for the first");
        drop(first);
        guest.hears(b"second");
        guest.say(b"for the second", 14);
        assert_eq!(second.read(14), b"for the second");
    }
}

#[test]
fn what_clients_sent_before_they_left_is_heard_in_order() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        for word in ["one ", "two ", "three ", "four "] {
            client(&daemon).write(word.as_bytes());
        }
        let last = client(&daemon);
        last.write(b"five");
        // The last one is read from only when the others have gone.
        guest.say(b"go", 2);
        assert_eq!(last.read(2), b"go");
        guest.hears(b"one two three four five");
    }
}

#[test]
fn input_that_no_guest_ever_reads_does_not_keep_clients_out() {
    let daemon = listening("auto");
    let mut guest = Guest::boot(daemon.socket());
    for _ in 0..40 {
        client(&daemon).write(&[1; 5000]);
    }
    let last = client(&daemon);
    guest.say(b"hello", 5);
    assert_eq!(last.read(5), b"hello");
    let counts = daemon.counts();
    assert!(counts.fds < 60, "{counts:?}");
    let lost = account(&daemon.terminate().stderr, "input_dropped");
    assert!((20 * 5000..=24 * 5000).contains(&lost), "{lost} bytes counted as lost");
}

#[test]
fn a_client_that_only_ended_its_sending_goes_on_reading() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        client.write(b"the last word");
        client.shut_down_writing();
        guest.hears(b"the last word");
        let bytes = Random::from_env().bytes(1 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| send_all(&mut guest.console.tx, &bytes, &mut Random::new(5)));
            assert_same(&client.read(bytes.len()), &bytes);
        });
    }
}

#[test]
fn two_hundred_clients_leave_no_descriptor_behind() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let mut meet = || {
            let client = client(&daemon);
            guest.hears_and_answers(&client);
            daemon.counts()
        };
        let before = meet();
        for _ in 0..200 {
            meet();
        }
        let after = meet();
        assert_eq!((after.fds, after.threads), (before.fds, before.threads));
        assert!(after.rss_kib < before.rss_kib + 512, "{before:?} {after:?}");
    }
}

#[test]
fn a_client_before_the_first_guest_is_served_when_that_comes() {
    let daemon = listening("auto");
    let client = client(&daemon);
    client.write(b"early");
    let mut guest = Guest::boot(daemon.socket());
    guest.hears(b"early");
}

#[test]
fn an_idle_console_uses_no_cpu() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let half = client(&daemon);
        guest.hears_and_answers(&half);
        half.shut_down_writing();
        guest.console.post(1, 64);
        let before = daemon.cpu_ticks();
        guest.console.rx.wait_used_until(Instant::now() + Duration::from_millis(500)).unwrap_err();
        let used = daemon.cpu_ticks() - before;
        assert!(used <= 5, "{used} ticks in half a second on {way:?}");
    }
}
