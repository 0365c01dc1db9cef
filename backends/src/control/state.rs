//! `GET /state`: all that there is to know of a daemon at this moment, as JSON. What each member means is told by
//! `docs/openapi.json`, which a test compares with answers of every daemon.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::daemon::{About, Daemon};
use super::{logs, names};
use crate::device::Device;
use crate::kept::channel::Standing;
use crate::sandbox;
use crate::server::seen::View;
use crate::stats::{Count, QueueStats, RingStats, State};

pub(super) fn of<D: Device>(daemon: &Daemon<D>) -> Value {
    json!({
        "daemon": about(&daemon.about, daemon.kept.standing()),
        "front_end": daemon.seen.now().map(|view| front_end(&view, |bit| daemon.device.feature_name(bit))),
        "queues": daemon.stats.queues().enumerate().map(queue).collect::<Vec<_>>(),
        "device": daemon.device.state(),
        "log": logs::state(),
    })
}

fn about(about: &About, standing: Option<Standing>) -> Value {
    let (engine, sandbox) = (about.engine.to_possible_value(), sandbox::Standing::current());
    let mode = sandbox.mode.to_possible_value();
    json!({
        "name": about.name,
        "version": env!("CARGO_PKG_VERSION"),
        "type": about.kind,
        "keeper_pid": standing.map(|standing| standing.keeper_pid),
        "worker_pid": std::process::id(),
        "workers_started": workers_started(standing),
        "started_unix_s": seconds(standing.map_or(about.began_ms, |standing| standing.began_ms)),
        "worker_started_unix_s": seconds(about.began_ms),
        "engine": engine.as_ref().map(|engine| engine.get_name()),
        "sandbox": {
            "mode": mode.as_ref().map(|mode| mode.get_name()),
            "landlock_abi": sandbox.landlock_abi,
            "stages": sandbox.stages,
        },
    })
}

/// This one among them.
pub(super) fn workers_started(standing: Option<Standing>) -> u32 {
    standing.map_or(1, |standing| standing.workers)
}

fn front_end(view: &View, own: impl Fn(u32) -> Option<&'static str>) -> Value {
    let region = |(addr, bytes): &(u64, u64)| json!({ "guest_addr": format!("{addr:#x}"), "bytes": bytes });
    json!({
        "connected_unix_s": seconds(view.connected_ms),
        "features": names::features(view.features, own),
        "features_hex": format!("{:#x}", view.features),
        "protocol_features": names::protocol(view.protocol),
        "regions": view.regions.iter().map(region).collect::<Vec<_>>(),
        "inflight": view.inflight,
        "dirty_log": view.dirty_log,
    })
}

fn queue((index, stats): (usize, QueueStats)) -> Value {
    let RingStats { state, packed, size } = stats.ring();
    json!({
        "index": index,
        "state": state_name(state),
        "layout": (size > 0).then_some(if packed { "packed" } else { "split" }),
        "size": size,
        "in_flight": stats.in_flight(),
        "requests": stats.get(Count::Requests),
        "bytes": stats.get(Count::Bytes),
        "malformed": stats.get(Count::Malformed),
        "replayed": stats.get(Count::Replayed),
        "interrupts": stats.get(Count::Interrupts),
        "broken_times": stats.get(Count::Broken),
        "latency_us": latency(&stats),
    })
}

/// What half of the requests, and 99 of 100, took no longer than, and the longest; null before the first one.
fn latency(stats: &QueueStats) -> Value {
    let latency = stats.latency();
    let Some((half, most)) = latency.percentile_ns(50).zip(latency.percentile_ns(99)) else {
        return Value::Null;
    };
    let us = |ns: u64| micros(ns);
    json!({ "p50": us(half), "p99": us(most), "max": us(latency.max_ns()) })
}

pub(super) fn state_name(state: State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Running => "running",
        State::Broken => "broken",
    }
}

#[allow(clippy::cast_precision_loss, reason = "a time for people, far below 2^53 ms")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

#[allow(clippy::cast_precision_loss, reason = "a time for people, to the nanosecond below 104 days")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}
