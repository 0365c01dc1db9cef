//! `GET /metrics`: what a daemon counts, for Prometheus. Counters begin with the daemon, not with its worker.

use super::daemon::Daemon;
use super::logs;
use super::metrics::{Exposition, Kind};
use super::state::{state_name, workers_started};
use crate::device::Device;
use crate::stats::{Count, QueueStats, State};

/// Counters of a queue.
const COUNTERS: [(&str, Count, &str); 6] = [
    ("outboard_queue_requests_total", Count::Requests, "Requests completed."),
    (
        "outboard_queue_bytes_total",
        Count::Bytes,
        "Bytes that the device says were written to the guest or read from it.",
    ),
    ("outboard_queue_malformed_total", Count::Malformed, "Chains given back because they were malformed."),
    (
        "outboard_queue_replayed_total",
        Count::Replayed,
        "Requests served again that an earlier worker had in flight.",
    ),
    ("outboard_queue_interrupts_total", Count::Interrupts, "Times the driver was interrupted."),
    ("outboard_queue_broken_total", Count::Broken, "Times the ring was broken by its driver."),
];
const STATES: [State; 3] = [State::Stopped, State::Running, State::Broken];

pub(super) fn of<D: Device>(daemon: &Daemon<D>) -> String {
    let mut text = Exposition::default();
    about(daemon, &mut text);
    queues(&daemon.stats.queues().collect::<Vec<_>>(), &mut text);
    logs::count(&mut text);
    daemon.device.metrics(&mut text);
    text.finish()
}

fn about<D: Device>(daemon: &Daemon<D>, text: &mut Exposition) {
    let labels: [(&str, &dyn std::fmt::Display); 2] =
        [("daemon", &daemon.about.name), ("version", &env!("CARGO_PKG_VERSION"))];
    text.family("outboard_build_info", Kind::Gauge, "1; which daemon this is.").sample(&labels, 1);
    let workers = workers_started(daemon.kept.standing());
    text.single("outboard_workers_started_total", Kind::Counter, "Workers that were started.", workers);
    let connected = u8::from(daemon.seen.now().is_some());
    text.single("outboard_front_end_connected", Kind::Gauge, "1 if there is a front-end.", connected);
    let front_ends = daemon.stats.sessions();
    text.single("outboard_front_ends_total", Kind::Counter, "Front-ends that were served.", front_ends);
}

fn queues(queues: &[QueueStats], text: &mut Exposition) {
    for (name, count, help) in COUNTERS {
        text.family(name, Kind::Counter, help);
        for (index, queue) in queues.iter().enumerate() {
            text.sample(&[("queue", &index)], queue.get(count));
        }
    }
    text.family("outboard_queue_in_flight", Kind::Gauge, "Requests taken and not completed.");
    for (index, queue) in queues.iter().enumerate() {
        text.sample(&[("queue", &index)], queue.in_flight());
    }
    text.family("outboard_queue_state", Kind::Gauge, "1 for the state that the queue is in.");
    for (index, queue) in queues.iter().enumerate() {
        let is = queue.ring().state;
        for state in STATES {
            text.sample(&[("queue", &index), ("state", &state_name(state))], u8::from(state == is));
        }
    }
    let help = "From the look at the ring that found a request until it was given back.";
    text.family("outboard_request_duration_seconds", Kind::Histogram, help);
    for (index, queue) in queues.iter().enumerate() {
        let latency = queue.latency();
        let buckets = latency.octaves().map(|(ns, below)| (seconds(ns), below));
        text.histogram(&[("queue", &index)], buckets, seconds(latency.sum_ns()), latency.count());
    }
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
