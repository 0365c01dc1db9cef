//! What `GET /state` answers, as far as a screen shows it (docs/openapi.json has all of it).
//!
//! A field that is missing has its default: `outboard ctl` speaks to daemons that are older, and newer, than itself.

use serde::Deserialize;
use serde_json::Value;

/// The answer of a daemon or of a VMM.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum State {
    /// Of a daemon.
    Daemon(Box<DaemonState>),
    /// Of `outboard run`.
    Machine(MachineState),
}

/// A daemon.
#[derive(Clone, Debug, Deserialize)]
pub struct DaemonState {
    /// The program.
    pub daemon: Daemon,
    /// Who is connected.
    #[serde(default)]
    pub front_end: Option<FrontEnd>,
    /// Its queues that were ever started.
    #[serde(default)]
    pub queues: Vec<Queue>,
    /// What only this kind of device has.
    #[serde(default)]
    pub device: Value,
    /// Where it writes its log.
    #[serde(default)]
    pub log: Log,
}

/// A program and its processes. Times are seconds since 1970.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// `outboard-rng`.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// `rng`.
    #[serde(rename = "type")]
    pub kind: String,
    /// None with `--keeper off`.
    pub keeper_pid: Option<u32>,
    /// Who answered.
    pub worker_pid: u32,
    /// Workers that there were, this one too.
    pub workers_started: u64,
    /// When the first process started.
    pub started_unix_s: f64,
    /// When the one that answered did.
    pub worker_started_unix_s: f64,
    /// How it waits.
    pub engine: String,
    /// How it is confined.
    pub sandbox: Sandbox,
}

/// How a daemon is confined.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// `on`, `log` or `off`.
    pub mode: String,
    /// Of the kernel, if it has Landlock.
    pub landlock_abi: Option<u32>,
    /// Stages in effect.
    pub stages: Vec<String>,
}

/// A connected front-end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FrontEnd {
    /// Since when.
    pub connected_unix_s: f64,
    /// Names of the virtio features in use.
    pub features: Vec<String>,
    /// All of them as a number.
    pub features_hex: String,
    /// Names of the vhost-user protocol features in use.
    pub protocol_features: Vec<String>,
    /// Guest memory.
    pub regions: Vec<Region>,
    /// What is in flight is written down.
    pub inflight: bool,
    /// What is written is logged, for a migration.
    pub dirty_log: bool,
}

/// A region of guest memory.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Region {
    /// Where it begins.
    pub guest_addr: String,
    /// Its size.
    pub bytes: u64,
}

/// A virtqueue, with what it counted since the daemon started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Its number.
    pub index: u64,
    /// `running`, `stopped` or `broken`.
    pub state: String,
    /// `split` or `packed`.
    pub layout: Option<String>,
    /// Its descriptors.
    pub size: u64,
    /// Requests that have not come back.
    pub in_flight: u64,
    /// Requests that have.
    pub requests: u64,
    /// To and from the guest.
    pub bytes: u64,
    /// Chains that made no sense.
    pub malformed: u64,
    /// Requests that an earlier worker had taken.
    pub replayed: u64,
    /// Of the driver.
    pub interrupts: u64,
    /// How often the driver broke it.
    pub broken_times: u64,
    /// How long requests took.
    pub latency_us: Option<Latency>,
}

/// Of the requests of a queue, in microseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// None took longer.
    pub max: f64,
}

/// A log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Log {
    /// The least severe lines that are written.
    pub level: String,
    /// `text`, `json` or `journal`.
    pub format: String,
    /// Its file; none is standard error.
    pub file: Option<String>,
}

/// A VMM.
#[derive(Clone, Debug, Deserialize)]
pub struct MachineState {
    /// The program and the machine.
    pub vmm: Vmm,
    /// Its devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Where it writes its log.
    #[serde(default)]
    pub log: Log,
}

/// A VMM and its machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Vmm {
    /// `outboard`.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// `running`, `paused` or `rebooting`.
    pub state: String,
    /// Virtual ones.
    pub cpus: u64,
    /// Guest RAM.
    pub memory_bytes: u64,
    /// When it started, in seconds since 1970.
    pub started_unix_s: f64,
}

/// A device of a machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where its daemon listens.
    pub socket: String,
    /// Its daemon is there.
    pub connected: bool,
    /// Since when it is there, or away.
    pub since_unix_s: f64,
    /// How often it came back.
    pub returns: u64,
}

#[cfg(test)]
pub mod recorded {
    //! Answers of real programs, shortened.

    use super::*;

    /// A daemon under load, with all there is.
    pub const DAEMON: &str = include_str!("recorded/daemon.json");
    /// A VMM with two devices.
    pub const MACHINE: &str = include_str!("recorded/machine.json");

    /// One of them.
    pub fn state(text: &str) -> State {
        serde_json::from_str(text).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_and_a_machine_are_told_apart_and_what_is_missing_has_defaults() {
        assert!(matches!(recorded::state(recorded::DAEMON), State::Daemon(state) if state.queues.len() == 2));
        assert!(matches!(recorded::state(recorded::MACHINE), State::Machine(state) if state.vmm.cpus == 2));
        assert!(
            matches!(recorded::state(r#"{"daemon":{}}"#), State::Daemon(state) if state.front_end.is_none())
        );
        assert!(serde_json::from_str::<State>(r#"{"error":"no"}"#).is_err());
    }
}
