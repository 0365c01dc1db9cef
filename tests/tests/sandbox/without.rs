//! The filters are those of the policies: with a rule less, what needed it ends the process.

use std::time::Instant;

use tests::daemon::Launch;
use tests::frontend::Frontend;
use tests::guest::memory::Ram;
use tests::machine::{BLK, CONSOLE, Device, RAM_BYTES, RNG};
use tests::wait;

const SIGSYS: i32 = 31;

fn without(device: Device, rule: &str, options: &[&str]) -> Launch {
    device.launch().env("OUTBOARD_POLICY_WITHOUT", rule).args(options.iter().copied())
}

/// Its keeper ends, or what is there in place of one.
fn ends(device: Device, rule: &str, options: &[&str]) {
    let exit = match without(device, rule, options).args(["--socket-path", "s"]).start() {
        // Asked to end at once, which it does when it has begun.
        daemon if options.contains(&"off") => {
            let until = wait::deadline();
            while !daemon.stderr().contains("Listening") {
                assert!(Instant::now() < until, "{rule}: {}", daemon.stderr());
                std::thread::yield_now();
            }
            daemon.terminate()
        }
        daemon => daemon.wait_exit(),
    };
    assert_eq!(exit.signal, Some(SIGSYS), "without `{rule}`: {exit}");
}

/// Its worker ends when a guest comes, at the latest when that has a request.
fn worker_ends(device: Device, rule: &str, options: &[&str]) {
    let daemon = without(device, rule, options).serve().unwrap();
    let (socket, dir) = (daemon.socket().to_owned(), daemon.dir().to_owned());
    let said = || std::fs::read_to_string(dir.join("stderr")).unwrap();
    // It waits for an answer until the daemon is gone.
    let guest = std::thread::spawn(move || {
        let mut frontend = Frontend::session(&socket, &Ram::new(RAM_BYTES), device.wants()).ok()?;
        let mut ring = frontend.start_new(device.queue, 64).ok()?;
        ring.add(&device.request());
        ring.notify();
        Some((frontend, ring))
    });
    let until = wait::deadline();
    while !said().contains("(signal: 31 (SIGSYS))") {
        assert!(Instant::now() < until, "without `{rule}`: {}", said());
        std::thread::yield_now();
    }
    drop(daemon);
    drop(guest.join().unwrap());
}

#[test]
fn a_keeper_ends_where_a_rule_is_missing() {
    for rule in ["keeper:execve ", "keeper:clone if", "keeper:socketpair ", "keeper:landlock_create_ruleset"]
    {
        if rule == "keeper:landlock_create_ruleset" {
            worker_ends(RNG, rule, &[]);
        } else {
            ends(RNG, rule, &[]);
        }
    }
}

#[test]
fn a_worker_ends_where_a_rule_is_missing() {
    worker_ends(RNG, "worker:fstatfs ", &[]);
    worker_ends(CONSOLE, "worker:clone if", &[]);
}

#[test]
fn who_serves_queues_ends_where_a_rule_is_missing() {
    worker_ends(RNG, "data path:getrandom ", &[]);
    worker_ends(BLK, "data path:preadv ", &["--engine", "epoll"]);
}

#[test]
fn a_daemon_without_a_keeper_ends_where_a_rule_is_missing() {
    ends(RNG, "alone:unlink ", &["--keeper", "off"]);
}
