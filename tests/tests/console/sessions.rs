//! Rings that stop, front-ends that go, the daemon's end: what was in hand is neither lost nor doubled.

use std::time::{Duration, Instant};

use tests::daemon::Daemon;
use tests::guest::ring::Ring;
use tests::random::Random;

use crate::end::End;
use crate::traffic::{receive_all, send_all};
use crate::{Guest, WAYS, Way, account, assert_same, client, listening};

/// A guest that has filled the transmit queue for a client that reads nothing, and what it wrote.
fn held_back(way: Way) -> (Daemon, Guest, End, Vec<u8>) {
    let daemon = listening(way.engine);
    let mut guest = way.boot(daemon.socket());
    let client = client(&daemon);
    guest.hears_and_answers(&client);
    let bytes = Random::from_env().bytes(60 * 10_000);
    let tx = &mut guest.console.tx;
    bytes.chunks(10_000).for_each(|part| _ = tx.add_readable(part));
    tx.notify();
    while tx.wait_used_until(Instant::now() + Duration::from_millis(200)).is_ok() {}
    assert!(tx.in_flight() > 20, "the client's buffers take everything");
    (daemon, guest, client, bytes)
}

/// Completions that have come, without waiting.
fn count_used(ring: &mut Ring) -> usize {
    std::iter::from_fn(|| ring.used().unwrap()).count()
}

#[test]
fn a_ring_stops_at_once_though_its_chains_wait_for_a_reader() {
    for way in WAYS {
        let (daemon, mut guest, client, bytes) = held_back(way);
        let asked = Instant::now();
        let base = guest.frontend.stop(1).unwrap();
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        count_used(&mut guest.console.tx);
        let done = 60 - guest.console.tx.in_flight();
        // "world" was the first chain of all.
        let chains = u16::try_from(done + 1).unwrap();
        let expected = guest.console.tx.shape().base_after(chains);
        assert_eq!(base, expected, "chains that were taken and not given back");
        guest.frontend.start(1, &guest.console.tx, base).unwrap();
        assert_same(&client.read(bytes.len()), &bytes);
        guest.console.tx.wait_all().unwrap();
        assert_eq!(account(&daemon.terminate().stderr, "dropped"), 0);
    }
}

#[test]
fn stop_and_start_in_the_middle_lose_nothing_either_way() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        let mut random = Random::from_env();
        let (up, down) = (random.bytes(2 << 20), random.bytes(2 << 20));
        let (mut heard_up, mut heard_down) = (Vec::new(), Vec::new());
        for (up, down) in up.chunks(100_000).zip(down.chunks(100_000)) {
            std::thread::scope(|scope| {
                scope.spawn(|| client.write(down));
                let reader = scope.spawn(|| client.read(up.len()));
                send_all(&mut guest.console.tx, &up[..50_000.min(up.len())], &mut random);
                guest.restart_queue(1);
                guest.restart_queue(0);
                send_all(&mut guest.console.tx, &up[50_000.min(up.len())..], &mut random);
                guest.restart_queue(0);
                let missing = (heard_up.len() + down.len()).saturating_sub(heard_down.len());
                heard_down.extend(receive_all(&mut guest.console.rx, missing, &mut random));
                heard_up.extend(reader.join().unwrap());
            });
        }
        assert_same(&heard_up, &up);
        assert_same(&heard_down, &down);
    }
}

#[test]
fn receive_buffers_stay_in_the_ring_when_it_stops() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        guest.hears_and_answers(&client);
        guest.console.post(10, 256);
        guest.say(b"sync", 4);
        let posted = guest.console.rx.in_flight();
        guest.restart_queue(0);
        assert_eq!(count_used(&mut guest.console.rx), 0, "an empty buffer looks like the end of the stream");
        client.write(b"still here");
        guest.hears(b"still here");
        assert!(guest.console.rx.in_flight() >= posted - 10);
    }
}

#[test]
fn the_client_stays_while_front_ends_come_and_go() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let client = client(&daemon);
        for _ in 0..10 {
            let mut guest = way.boot(daemon.socket());
            guest.hears_and_answers(&client);
        }
        client.write(b"between guests");
        way.boot(daemon.socket()).hears(b"between guests");
    }
}

#[test]
fn what_the_last_guest_wrote_reaches_a_client_that_comes_after_it() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        guest.say(b"famous last words", 5);
        drop(guest);
        assert_eq!(client(&daemon).read(17), b"famous last words");
    }
}

#[test]
fn k10_sigterm_gives_the_reader_all_that_was_taken_from_the_guest() {
    for way in WAYS {
        let (daemon, mut guest, client, bytes) = held_back(way);
        let (exit, heard) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| client.read_to_end());
            (daemon.terminate(), reader.join().unwrap())
        });
        assert_eq!(exit.code, Some(0), "{exit}");
        count_used(&mut guest.console.tx);
        let taken = (60 - guest.console.tx.in_flight()) * 10_000;
        assert_same(&heard, &bytes[..taken]);
        assert_eq!(account(&exit.stderr, "never_read") + account(&exit.stderr, "dropped"), 0);
    }
}

#[test]
fn k10_sigterm_does_not_wait_for_a_reader_that_does_not_read() {
    let (daemon, _guest, _client, _) = held_back(WAYS[0]);
    let asked = Instant::now();
    let exit = daemon.terminate();
    let took = asked.elapsed();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(took < Duration::from_secs(15), "{took:?} {exit}");
    assert!(account(&exit.stderr, "never_read") > 0, "{exit}");
}
