//! The three forms of a line, from every process of a daemon, and the level.

use std::time::Instant;

use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

#[test]
fn every_line_of_every_daemon_is_an_object_with_json() {
    for device in DAEMONS {
        let launch = device.launch().args(["--log-format", "json", "--log-level", "trace"]);
        let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
        drop(break_ring(&mut machine));
        let first = machine.daemon.kill_worker();
        machine.assert_serves_anew();
        let keeper = machine.daemon.pid();
        let second = machine.daemon.worker_pid();
        let exit = machine.daemon.terminate();
        let lines = objects(&exit.stderr);
        for line in &lines {
            let pid = line["pid"].as_u64().unwrap();
            assert!([keeper, first, second].map(u64::from).contains(&pid), "{line}");
            assert_eq!(line["program"], device.binary, "{line}");
            let time = line["time"].as_str().unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 27, "{line}");
            assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].iter().any(|level| line["level"] == *level));
        }
        let said = |message: &str, by: u32| {
            lines
                .iter()
                .find(|line| line["message"].as_str().unwrap().starts_with(message) && line["pid"] == by)
        };
        let broken = said("Ring broken", first).unwrap();
        assert_eq!((&broken["class"], &broken["level"]), (&"ring-broken".into(), &"WARN".into()));
        assert_eq!(broken["queue"], device.queue, "a number is a number");
        assert!(broken["error"].as_str().is_some_and(|error| !error.is_empty()));
        assert_eq!(said(&format!("Worker {first} ended"), keeper).unwrap()["class"], "worker-ended");
        assert!(said("Listening", keeper).is_some());
        assert!(said("served", second).unwrap()["requests"].is_u64());
    }
}

#[test]
fn text_says_when_how_much_it_matters_and_who_speaks() {
    let mut machine = RNG.boot();
    drop(break_ring(&mut machine));
    let (keeper, worker) = (machine.daemon.pid(), machine.daemon.worker_pid());
    let log = machine.daemon.terminate().stderr;
    for (message, level, pid) in
        [("Listening", "INFO", keeper), ("Ring broken by its driver", "WARN", worker)]
    {
        let line = log.lines().find(|line| line.contains(message)).unwrap();
        assert!(line.contains(&format!(" {level} outboard-rng[{pid}]: {message}")), "{line}");
    }
    assert!(log.contains("queue=0 error=\"") && !log.contains('\x1b'), "{log}");
}

#[test]
fn the_level_decides_what_is_written_by_worker_and_keeper() {
    let log = |level: &str| {
        let launch = RNG.launch().args(["--log-level", level]);
        let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
        drop(break_ring(&mut machine));
        machine.daemon.kill_worker();
        machine.assert_serves_anew();
        machine.daemon.terminate().stderr
    };
    assert_eq!(log("error"), "");
    let warnings = log("warn");
    assert!(warnings.contains("Ring broken") && warnings.contains("another one goes on"), "{warnings}");
    assert!(!warnings.contains("INFO"), "{warnings}");
    assert!(log("info").contains("Listening"));
}

#[test]
fn a_flood_is_one_line_a_second_with_the_number_of_those_left_out() {
    let launch = RNG.launch().args(["--log-format", "json"]);
    let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
    let begun = Instant::now();
    let refuse = |machine: &mut Machine| {
        // A feature that was not offered (vhost-user SET_FEATURES).
        let asked = backends::proto::Request::SetFeatures(1 << 63);
        assert!(machine.frontend.tell(asked, &[]).is_err());
    };
    let lines = |machine: &Machine| {
        let lines = objects(&machine.daemon.stderr()).into_iter();
        lines.filter(|line| line["class"] == "message-refused").collect::<Vec<_>>()
    };
    (0..100).for_each(|_| refuse(&mut machine));
    // The next line comes with the first one that is refused after a second.
    wait::until(|| {
        refuse(&mut machine);
        lines(&machine).len() > 1
    });
    let lines = lines(&machine);
    // The gate counts in milliseconds.
    let most = 1 + begun.elapsed().as_millis().div_ceil(999);
    assert!(lines.len() as u128 <= most, "{lines:?}");
    assert_eq!(lines[0].get("left_out"), None);
    assert!(lines[1]["left_out"].as_u64().unwrap() >= 99, "{lines:?}");
}
