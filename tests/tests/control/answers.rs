//! What a daemon tells of itself is what is so.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::time::SystemTime;

use backends::control::Method::{Get, Post};
use serde_json::{Value, json};
use tests::daemon::Launch;
use tests::machine::{BLK, Machine, RNG};

use super::{DEVICES, ask, boot, connect, python, socket, state, state_after};

/// The text of `/metrics` by Prometheus' own parser: samples by name and labels, and the types of the families.
const PARSER: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families as parse
samples, types = {}, {}
for family in parse(sys.stdin.read()):
    types[family.name] = family.type
    for sample in family.samples:
        labels = ','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))
        assert (sample.name, labels) not in samples
        samples[sample.name + '{' + labels + '}'] = repr(sample.value)
json.dump({'samples': samples, 'types': types}, sys.stdout)
";

fn metrics(machine: &Machine) -> (BTreeMap<String, f64>, Value) {
    let reply = connect(machine.daemon.dir()).call(Get, "/metrics", None, None).unwrap();
    assert_eq!(reply.status, 200);
    let parsed = python(PARSER, &[], &reply.body);
    let value = |text: &Value| text.as_str().unwrap().parse::<f64>().unwrap();
    let samples = parsed["samples"].as_object().unwrap().iter();
    (samples.map(|(name, text)| (name.clone(), value(text))).collect(), parsed["types"].clone())
}

fn seconds_ago(unix_s: &Value) -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_secs_f64() - unix_s.as_f64().unwrap()
}

#[test]
fn state_tells_processes_front_end_queues_and_device() {
    for device in DEVICES {
        let mut machine = boot(device, &["--engine", "epoll"]);
        let mut ring = machine.start_queue().unwrap();
        (0..7).for_each(|_| machine.assert_serves(&mut ring));
        let state = state_after(&machine, 7);
        let (daemon, front_end) = (&state["daemon"], &state["front_end"]);
        let queue = &state["queues"][usize::from(device.queue)];
        assert_eq!(daemon["name"], device.binary);
        assert_eq!(daemon["keeper_pid"], machine.daemon.pid());
        assert_eq!(daemon["worker_pid"], machine.daemon.worker_pid());
        assert_eq!([&daemon["workers_started"], &daemon["engine"]], [&json!(1), &json!("epoll")]);
        assert_eq!(daemon["sandbox"]["mode"], "on");
        assert!(daemon["sandbox"]["stages"].as_array().unwrap().contains(&"seccomp".into()), "{daemon}");
        for time in ["started_unix_s", "worker_started_unix_s"] {
            assert!((-1.0..600.0).contains(&seconds_ago(&daemon[time])), "{daemon}");
        }
        assert!((-1.0..600.0).contains(&seconds_ago(&front_end["connected_unix_s"])), "{front_end}");
        let features = u64::from_str_radix(&front_end["features_hex"].as_str().unwrap()[2..], 16).unwrap();
        assert_eq!(features, machine.frontend.features());
        let names = front_end["features"].as_array().unwrap();
        assert_eq!(names.len(), features.count_ones() as usize);
        assert!(names.contains(&"VIRTIO_F_VERSION_1".into()) && !front_end.to_string().contains("bit "));
        assert_eq!(front_end["regions"][0]["bytes"], tests::machine::RAM_BYTES);
        assert_eq!([&front_end["inflight"], &front_end["dirty_log"]], [&json!(true), &json!(false)]);
        assert_eq!(state["queues"].as_array().unwrap().len(), usize::from(device.queues));
        assert_eq!([&queue["state"], &queue["size"]], [&json!("running"), &json!(64)]);
        let layout = if device.rings == tests::guest::format::RingKind::Packed { "packed" } else { "split" };
        assert_eq!([&queue["layout"], &queue["requests"]], [&json!(layout), &json!(7)]);
        let latency = ["p50", "p99", "max"].map(|name| queue["latency_us"][name].as_f64().unwrap());
        assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    }
}

#[test]
fn a_disk_tells_its_size_and_a_daemon_without_a_front_end_that_there_is_none() {
    let mut machine = boot(BLK, &["--serial", "disk-7"]);
    let expected = json!({
        "size_bytes": 1 << 20, "block_bytes": 512, "read_only": false, "write_back": true, "serial": "disk-7"
    });
    assert_eq!(state(&machine)["device"], expected);
    machine.hang_up();
    let until = tests::wait::deadline();
    while !state(&machine)["front_end"].is_null() {
        assert!(std::time::Instant::now() < until);
    }
}

#[test]
fn what_is_told_goes_on_over_the_lives_of_workers() {
    for device in DEVICES {
        let mut machine = boot(device, &[]);
        let mut ring = machine.start_queue().unwrap();
        (0..5).for_each(|_| machine.assert_serves(&mut ring));
        let before = state_after(&machine, 5);
        machine.daemon.kill_worker();
        machine.assert_serves(&mut ring);
        let after = state_after(&machine, 6);
        assert_eq!(after["daemon"]["workers_started"], 2);
        assert_eq!(after["daemon"]["worker_pid"], machine.daemon.worker_pid());
        for same in ["/daemon/keeper_pid", "/daemon/started_unix_s", "/front_end/connected_unix_s"] {
            assert_eq!(before.pointer(same).unwrap(), after.pointer(same).unwrap(), "{same}");
        }
        assert_eq!(metrics(&machine).0["outboard_front_ends_total{}"], 1.0);
    }
}

#[test]
fn metrics_are_read_by_prometheus_and_agree_with_state() {
    for device in DEVICES {
        let mut machine = boot(device, &[]);
        let mut ring = machine.start_queue().unwrap();
        (0..9).for_each(|_| machine.assert_serves(&mut ring));
        let (state, (samples, types)) = (state_after(&machine, 9), metrics(&machine));
        for (index, queue) in state["queues"].as_array().unwrap().iter().enumerate() {
            for (name, member) in [
                ("requests_total", "requests"),
                ("bytes_total", "bytes"),
                ("malformed_total", "malformed"),
                ("replayed_total", "replayed"),
                ("interrupts_total", "interrupts"),
                ("broken_total", "broken_times"),
                ("in_flight", "in_flight"),
            ] {
                let sample = samples[&format!("outboard_queue_{name}{{queue={index}}}")];
                assert_eq!(Some(sample), queue[member].as_f64(), "{name} of {index}");
            }
            let is = queue["state"].as_str().unwrap();
            assert_eq!(samples[&format!("outboard_queue_state{{queue={index},state={is}}}")], 1.0);
            let duration = |part: &str| samples[&format!("outboard_request_duration_seconds_{part}")];
            let count = duration(&format!("count{{queue={index}}}"));
            assert_eq!(Some(count), queue["requests"].as_f64());
            assert_eq!(duration(&format!("bucket{{le=+Inf,queue={index}}}")), count);
        }
        assert_eq!(samples["outboard_front_end_connected{}"], 1.0);
        assert_eq!(samples["outboard_log_lines_written_total{class=front-end-connected}"], 1.0);
        assert_eq!(types["outboard_request_duration_seconds"], "histogram");
        let version = env!("CARGO_PKG_VERSION");
        let build = format!("outboard_build_info{{daemon={},version={version}}}", device.binary);
        assert_eq!(samples[&build], 1.0);
    }
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_the_daemon() {
    for options in [&[][..], &["--keeper", "off"]] {
        let mut machine = boot(RNG, options);
        let path = socket(machine.daemon.dir());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let mut client = connect(machine.daemon.dir());
        assert_eq!(client.call(Get, "/state", None, None).unwrap().status, 200);
        assert_eq!(machine.daemon.stop().code, Some(0));
        client.wait_closed().unwrap();
        assert!(!path.exists());
    }
}

#[test]
fn a_second_daemon_does_not_take_the_socket() {
    let machine = boot(RNG, &[]);
    let path = socket(machine.daemon.dir()).display().to_string();
    let exit = Launch::new("outboard-rng").args(["--fd", "3", "--control-socket", &path]).run();
    let told = ["--control-socket", &path, "another process listens there"];
    assert!(exit.code == Some(4) && told.iter().all(|word| exit.stderr.contains(word)), "{exit}");
    assert_eq!(state(&machine)["daemon"]["keeper_pid"], machine.daemon.pid());
}

#[test]
fn one_path_for_two_sockets_is_refused() {
    for check in [&[][..], &["--check"]] {
        let launch = Launch::new("outboard-rng").args(["--socket-path", "./x", "--control-socket", "./x"]);
        let exit = launch.args(check.iter().copied()).run();
        let told = ["--control-socket ./x", "--socket-path is the same", "another path"];
        assert!(exit.code == Some(2) && told.iter().all(|word| exit.stderr.contains(word)), "{exit}");
    }
}

#[test]
fn a_socket_called_control_comes_from_systemd_beside_that_of_front_ends() {
    let launch = Launch::new("outboard-rng");
    let [front, own] = [launch.socket(), socket(launch.dir())].map(|path| UnixListener::bind(path).unwrap());
    // In either order, and a lone one is not taken for the front-ends'.
    let daemon =
        launch.activate_all(vec![("control".into(), own.into()), ("any".into(), front.into())]).start();
    let mut client = connect(daemon.dir());
    let reply = client.call(Get, "/state", None, None).unwrap();
    let state: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(state["daemon"]["keeper_pid"], daemon.pid());
    assert!(
        tests::frontend::Frontend::connect(daemon.socket(), &tests::guest::memory::Ram::new(1 << 20)).is_ok()
    );
    let launch = Launch::new("outboard-rng");
    let own = UnixListener::bind(socket(launch.dir())).unwrap();
    let exit = launch.activate(own, "control").run();
    assert!(exit.code == Some(2) && exit.stderr.contains("--socket-path"), "{exit}");
}

#[test]
fn without_a_keeper_there_is_no_upgrade_and_the_rest_is_the_same() {
    let mut machine = boot(RNG, &["--keeper", "off"]);
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let state = state_after(&machine, 1);
    assert_eq!(state["daemon"]["keeper_pid"], Value::Null);
    assert_eq!(state["daemon"]["worker_pid"], machine.daemon.pid());
    let (status, refused) = ask(&machine, Post, "/upgrade", None);
    assert_eq!(
        (status, refused["error"].as_str().unwrap().contains("--keeper off")),
        (409, true),
        "{refused}"
    );
}
