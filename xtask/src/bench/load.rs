//! The load on a back-end: `blk-client` (`tests/src/bin`), and what both sides spent on it.
//!
//! In: a running back-end and what the client is to do. Out: [`Figures`]. The client has a CPU of its own where the
//! caller pins it; its requests are reads of a vhost-user-blk disk.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::backend::{Backend, pinned};
use super::row::Round;
use crate::explain::explain;
use crate::process::{command, output};

/// The CPU of whatever serves.
pub(super) const BACKEND_CPU: u32 = 0;
/// The CPU of whoever asks.
pub(super) const CLIENT_CPU: u32 = 1;

/// What the client does. Requests: as many as take half a second or more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Of each queue.
    pub requests: u32,
    pub queues: u32,
    pub options: &'static [&'static str],
}

impl Load {
    /// A load on one queue.
    pub const fn new(requests: u32, options: &'static [&'static str]) -> Self {
        Self { requests, queues: 1, options }
    }
}

/// What the client says, in a line of JSON.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Figures {
    pub iops: f64,
    pub p50_us: f64,
    pub client_cpu_us: f64,
    /// When the last request was done, on the monotonic clock.
    pub ended_us: f64,
    /// Added by us.
    #[serde(default)]
    pub backend_cpu_us: f64,
}

/// The client as a command: pinned, or where it likes.
pub(super) fn client(programs: &Path, backend: &Backend, load: Load, cpu: Option<u32>) -> Command {
    let program = programs.join("blk-client");
    let mut client = cpu.map_or_else(|| command(&program), |cpu| pinned(cpu, &program));
    client.arg("--socket").arg(backend.socket());
    client.args(["--requests", &load.requests.to_string(), "--queues", &load.queues.to_string()]);
    client.args(load.options);
    client
}

/// The client's line of JSON.
pub(super) fn parse(line: &str) -> Result<Figures, String> {
    serde_json::from_str(line).map_err(|error| format!("blk-client said {line:?}: {error}"))
}

/// Loads a back-end that was started for this; the CPU time of both sides goes to standard error too.
pub(super) fn measure(
    programs: &Path,
    backend: &Backend,
    load: Load,
    cpu: Option<u32>,
) -> Result<Figures, String> {
    let before = backend.cpu();
    let line = output(&mut client(programs, backend, load, cpu)).map_err(|error| explain(&error))?;
    let mut figures = parse(&line)?;
    let spent = backend.cpu().saturating_sub(before);
    figures.backend_cpu_us = spent.as_secs_f64() * 1e6 / f64::from(load.requests * load.queues);
    let (name, what, kiops) = (backend.name(), load.options.join(" "), figures.iops / 1e3);
    let (p50, serving, asking) = (figures.p50_us, figures.backend_cpu_us, figures.client_cpu_us);
    eprintln!(
        "bench: {name} {what}: {kiops:.0} kIOPS, p50 {p50:.2} us; CPU {serving:.3} us back-end, {asking:.3} us client"
    );
    Ok(figures)
}

/// A round of ours and a peer's that the same client loaded.
pub(super) fn compare(ours: Figures, peer: Figures, of: fn(&Figures) -> f64) -> Round {
    Round {
        ours: of(&ours),
        peer: Some(of(&peer)),
        cpu_us_ours: Some(ours.backend_cpu_us),
        cpu_us_peer: Some(peer.backend_cpu_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_figures_is_told_as_it_was_said() {
        let line = r#"{"iops":2e5,"p50_us":3.5,"p99_us":9.0,"client_cpu_us":0.2,"ended_us":1e9}"#;
        assert!((parse(line).unwrap().iops - 2e5).abs() < 1.0);
        assert!(parse("no disk").unwrap_err().contains("\"no disk\""));
    }
}
