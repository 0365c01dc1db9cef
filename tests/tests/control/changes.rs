//! What an operator changes while a guest is served, and what becomes of it when a worker dies.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use backends::control::Method::{Get, Post, Put};
use serde_json::{Value, json};
use tests::guest::chain::Chain;
use tests::guest::ring::Ring;
use tests::machine::{BLK, Machine, RNG};

use super::{DEVICES, PATIENCE, ask, boot, connect, state};

const ENGINES: [&str; 2] = ["io-uring", "epoll"];
/// One request is an hour's worth.
const AN_HOUR: &str = "bytes=1,burst_ms=1";
const REQUEST_BYTES: u32 = 4096;

#[track_caller]
fn set_limit(machine: &Machine, limit: Value) {
    let (status, settings) = ask(machine, Put, "/device", Some(&json!({ "limit": limit })));
    assert_eq!(status, 200, "{settings}");
}

/// Keeps the ring full for a while; the requests that were answered.
fn flood(ring: &mut Ring, time: Duration) -> u32 {
    let (until, mut answered) = (Instant::now() + time, 0);
    while Instant::now() < until {
        while ring.free() > 0 {
            ring.add(&Chain::new().writable(REQUEST_BYTES));
        }
        ring.notify();
        answered += u32::from(ring.wait_used_until(until).is_ok());
    }
    answered
}

#[test]
fn r03_a_ring_that_waits_for_its_limit_goes_on_by_the_next_one() {
    for engine in ENGINES {
        let mut machine = boot(RNG, &["--engine", engine, "--limit", AN_HOUR]);
        let mut ring = machine.start_queue().unwrap();
        let one = Chain::new().writable(REQUEST_BYTES);
        ring.run(&one).unwrap();
        ring.add(&one);
        ring.notify();
        assert!(ring.wait_used_until(Instant::now() + Duration::from_millis(200)).is_err(), "{engine}");
        set_limit(&machine, Value::Null);
        assert_eq!(ring.wait_used().unwrap().len, REQUEST_BYTES, "{engine}");
        set_limit(&machine, json!({ "ops": 100, "burst_ms": 10 }));
        let begun = Instant::now();
        let answered = flood(&mut ring, Duration::from_millis(500));
        // At most the rate x (time + burst) and one request.
        let agreed = 100.0 * (begun.elapsed().as_secs_f64() + 0.01) + 1.0;
        assert!((10.0..=agreed).contains(&f64::from(answered)), "{engine}: {answered} of {agreed}");
    }
}

#[test]
fn a_limit_outlives_the_worker_and_not_the_daemon() {
    let mut machine = boot(RNG, &["--limit", "bytes=5"]);
    let mut ring = machine.start_queue().unwrap();
    let options = json!({ "limit": { "bytes": 5, "ops": null, "burst_ms": 100 } });
    assert_eq!(ask(&machine, Get, "/device", None), (200, options.clone()));
    for limit in [json!({ "bytes": null, "ops": 9_000_000, "burst_ms": 7 }), json!(null)] {
        set_limit(&machine, limit.clone());
        for _ in 0..2 {
            machine.daemon.kill_worker();
            machine.assert_serves(&mut ring);
            assert_eq!(ask(&machine, Get, "/device", None), (200, json!({ "limit": limit })));
        }
    }
    machine.daemon.restart().unwrap();
    assert_eq!(ask(&machine, Get, "/device", None), (200, options));
}

#[test]
fn a_change_that_makes_no_sense_changes_nothing_and_is_told() {
    let machine = boot(RNG, &["--limit", "bytes=5"]);
    for (status, body, words) in [
        (422, json!({ "limit": { "bytes": 0 } }), ["limit.bytes", "0", "1 or more"]),
        (422, json!({ "limit": { "bytes": "1M" } }), ["limit.bytes", "\"1M\"", "a number"]),
        (
            422,
            json!({ "limit": { "byte": 1 } }),
            ["limit.byte:", "no such setting", "limit.bytes, limit.ops"],
        ),
        (422, json!({ "limit": {} }), ["limit", "{}", "bytes or ops"]),
        (422, json!({ "limits": null }), ["limits", "no such setting", "limit"]),
        (400, json!([1]), ["body", "object", "{"]),
    ] {
        let (got, refused) = ask(&machine, Put, "/device", Some(&body));
        let line = refused["error"].as_str().unwrap();
        assert!(got == status && words.iter().all(|word| line.contains(word)), "{got} {line}");
    }
    assert_eq!(ask(&machine, Get, "/device", None).1["limit"]["bytes"], 5);
    let (status, refused) = ask(&boot(BLK, &[]), Put, "/device", Some(&json!({ "size": 1 })));
    assert_eq!((status, refused["error"].as_str().unwrap().contains("size_bytes")), (422, true), "{refused}");
}

#[test]
fn an_upgrade_is_answered_before_the_worker_goes_and_the_guest_notices_nothing() {
    for device in DEVICES {
        let mut machine = boot(device, &[]);
        let mut ring = machine.start_queue().unwrap();
        machine.assert_serves(&mut ring);
        let before = machine.daemon.worker_pid();
        let mut client = connect(machine.daemon.dir());
        let reply = client.call(Post, "/upgrade", None, None).unwrap();
        let accepted: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, &accepted["worker_pid"]), (202, &json!(before)));
        client.wait_closed().unwrap();
        machine.assert_serves(&mut ring);
        let state = state(&machine);
        assert_eq!(state["daemon"]["workers_started"], 2);
        assert_ne!(state["daemon"]["worker_pid"], before);
    }
}

#[test]
fn the_log_goes_where_a_descriptor_says_and_every_change_is_in_it_with_who_made_it() {
    let machine = boot(RNG, &[]);
    let path = machine.daemon.dir().join("moved.log");
    let file = File::options().create(true).append(true).open(&path).unwrap();
    let mut client = connect(machine.daemon.dir());
    let refused = client.call(Post, "/log/reopen", None, None).unwrap();
    assert_eq!(refused.status, 409);
    let reply = client.call(Post, "/log/reopen", None, Some(file.as_fd())).unwrap();
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    for limit in [json!({ "ops": 1 }), json!({ "ops": 2 }), json!(null)] {
        set_limit(&machine, limit);
    }
    let own = format!("peer_pid={} peer_uid=0", std::process::id());
    let told = |text: String| {
        text.lines()
            .filter(|line| line.contains(&own) && line.contains("PUT") && line.contains("/device"))
            .count()
    };
    let until = Instant::now() + PATIENCE;
    while told(fs::read_to_string(&path).unwrap()) < 3 {
        assert!(Instant::now() < until, "{}", fs::read_to_string(&path).unwrap());
    }
    // Of the worker after this one, too, which has it from the keeper.
    machine.daemon.kill_worker();
    set_limit(&machine, Value::Null);
    while told(fs::read_to_string(&path).unwrap()) < 4 {
        assert!(Instant::now() < until, "{}", fs::read_to_string(&path).unwrap());
    }
}
