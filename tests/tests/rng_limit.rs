//! `outboard-rng --limit`: a guest that asks for all there is gets what was agreed, and disturbs nobody.

use std::time::{Duration, Instant};

use tests::daemon::Launch;
use tests::guest::chain::Chain;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::machine::{Machine, RAM_BYTES, RNG};

const ENGINES: [&str; 2] = ["io-uring", "epoll"];
const REQUEST_BYTES: u32 = 4096;

fn boot(engine: &str, limit: &str) -> Machine {
    let launch = RNG.launch().args(["--engine", engine, "--limit", limit]);
    RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants())
}

fn fill_ring(ring: &mut Ring) {
    while ring.free() > 0 {
        ring.add(&Chain::new().writable(REQUEST_BYTES));
    }
    ring.notify();
}

/// Keeps the ring full for this long; the requests that were answered, and how long it took.
fn flood(ring: &mut Ring, time: Duration) -> (u32, Duration) {
    let (began, mut answered) = (Instant::now(), 0);
    while began.elapsed() < time {
        fill_ring(ring);
        if let Ok(done) = ring.wait_used_until(began + time) {
            assert_eq!(done.len, REQUEST_BYTES);
            answered += 1;
        }
    }
    (answered, began.elapsed())
}

#[test]
fn r03_a_flood_gets_no_more_bytes_than_agreed() {
    for engine in ENGINES {
        let mut machine = boot(engine, "bytes=1M,burst_ms=50");
        let mut ring = machine.start_queue().unwrap();
        let (answered, time) = flood(&mut ring, Duration::from_millis(500));
        let agreed = f64::from(1 << 20) * (time.as_secs_f64() + 0.05) + f64::from(REQUEST_BYTES);
        let got = f64::from(answered * REQUEST_BYTES);
        assert!(got <= agreed, "{engine}: {got} bytes in {time:?}");
        assert!(got >= agreed / 2.0, "{engine}: only {got} bytes in {time:?}");
    }
}

#[test]
fn r03_a_flood_gets_no_more_requests_than_agreed() {
    for engine in ENGINES {
        let mut machine = boot(engine, "bytes=1G,ops=200,burst_ms=20");
        let mut ring = machine.start_queue().unwrap();
        let (answered, time) = flood(&mut ring, Duration::from_millis(500));
        let agreed = 200.0 * (time.as_secs_f64() + 0.02) + 1.0;
        assert!(f64::from(answered) <= agreed, "{engine}: {answered} in {time:?}");
        assert!(f64::from(answered) >= agreed / 2.0, "{engine}: only {answered} in {time:?}");
    }
}

/// One request is an hour's worth: whoever waits for the bucket waits longer than this test.
const AN_HOUR: &str = "bytes=1,burst_ms=1";

/// Stops that are measured. This test may have to share its CPU: a quarter of them must have had it to themselves.
const ROUNDS: usize = 100;

#[test]
fn r03_a_throttled_ring_stops_within_a_millisecond() {
    for engine in ENGINES {
        let mut machine = boot(engine, AN_HOUR);
        let mut ring = machine.start_queue().unwrap();
        fill_ring(&mut ring);
        ring.wait_used().unwrap();
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let base = machine.frontend.stop(0).unwrap();
            times.push(began.elapsed());
            assert_eq!(base & 0x7fff, 1, "{engine}: one request was taken");
            machine.frontend.start(0, &ring, base).unwrap();
        }
        times.sort();
        println!(
            "{engine}: {:?} at best, {:?} in the middle, {:?} at worst",
            times[0],
            times[ROUNDS / 2],
            times[ROUNDS - 1]
        );
        assert!(times[ROUNDS / 4] <= Duration::from_millis(1), "{engine}: {times:?}");
    }
}

#[test]
fn r03_waiting_costs_no_cpu_and_a_new_session_gains_nothing() {
    for engine in ENGINES {
        let mut machine = boot(engine, AN_HOUR);
        let mut ring = machine.start_queue().unwrap();
        fill_ring(&mut ring);
        ring.wait_used().unwrap();
        machine.frontend.stop(0).unwrap();
        machine.reconnect().unwrap();
        let mut ring = machine.start_queue().unwrap();
        fill_ring(&mut ring);
        let before = machine.daemon.cpu_ticks();
        assert!(ring.wait_used_until(Instant::now() + Duration::from_millis(500)).is_err(), "{engine}");
        assert!(machine.daemon.cpu_ticks() - before <= 5, "{engine}: it is busy");
    }
}

#[test]
fn limits_that_make_no_sense_are_told() {
    for (limit, words) in [
        ("bytes=0", ["bytes=0", "1 or more"]),
        ("bytes=1T", ["bytes=1T", "1M"]),
        ("ops=many", ["ops=many", "1 or more"]),
        ("ops=5,burst_ms=0", ["burst_ms=0", "1 to 60000"]),
        ("fast", ["`fast`", "bytes=1M,ops=1000,burst_ms=20"]),
        ("ops=1,ops=2", ["ops=", "twice"]),
        ("burst_ms=5", ["limits nothing", "bytes=N"]),
    ] {
        let exit = Launch::new("outboard-rng").args(["--fd", "3", "--limit", limit]).run();
        assert_eq!(exit.code, Some(2), "{exit}");
        let told = |word: &&str| exit.stderr.contains(*word);
        assert!(["--limit", limit].iter().chain(&words).all(told), "{words:?} in: {exit}");
    }
}
