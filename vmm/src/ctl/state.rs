//! `outboard ctl state`: one daemon or machine on a screen.
//!
//! In: an answer, the one before it if there is one (`--watch`), the time and the width. Out: text. Counters are of the
//! time since the daemon started; with an answer before it, columns tell what came a second since then.

use std::time::Duration;

use super::answer::{DaemonState, Device, FrontEnd, Log, MachineState, Queue, Sandbox, State};
use super::queues::Queues;
use super::rates::Sample;
use super::screen::{Column, Fields, NOTHING, Table, units};
use super::settings;

/// The whole screen. Who watches looks at the queues: they stand first then.
pub fn screen(now: &Sample<State>, before: Option<&Sample<State>>, width: Option<usize>) -> String {
    let parts = match &now.value {
        State::Machine(machine) => machine_screen(machine, now.unix_s, width),
        State::Daemon(daemon) => {
            let queues =
                Queues { now: &daemon.queues, before: before.and_then(|before| queues(before, now)) };
            let queues = queues.table().render(width);
            let (head, fields) = (head(daemon, now.unix_s), fields(daemon, now.unix_s, width));
            if before.is_some() { [head, queues, fields] } else { [head, fields, queues] }
        }
    };
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

/// The queues of an earlier look, and how long ago that was.
fn queues<'a>(before: &'a Sample<State>, now: &Sample<State>) -> Option<(&'a [Queue], Duration)> {
    match &before.value {
        State::Daemon(daemon) => Some((&daemon.queues, now.at.saturating_duration_since(before.at))),
        State::Machine(_) => None,
    }
}

fn since(unix_s: f64, now: f64) -> String {
    units::duration(now - unix_s)
}

fn head(state: &DaemonState, now: f64) -> String {
    let daemon = &state.daemon;
    format!("{} {}, up {}\n", daemon.name, daemon.version, since(daemon.started_unix_s, now))
}

fn fields(state: &DaemonState, now: f64, width: Option<usize>) -> String {
    let daemon = &state.daemon;
    let mut fields = Fields::default();
    let up = since(daemon.worker_started_unix_s, now);
    let before = match daemon.workers_started {
        0 | 1 => String::new(),
        number => format!(" ({} before it)", number - 1),
    };
    fields.add("worker", format!("process {}, up {up}{before}", daemon.worker_pid));
    fields.add("keeper", daemon.keeper_pid.map_or("off".to_owned(), |pid| format!("process {pid}")));
    fields.add("engine", daemon.engine.clone());
    if !daemon.sandbox.mode.is_empty() {
        fields.add("sandbox", sandbox(&daemon.sandbox));
    }
    fields.add("log", log(&state.log));
    match &state.front_end {
        None => drop(fields.add("front-end", "none is connected")),
        Some(front_end) => add_front_end(&mut fields, front_end, now),
    }
    fields.add("device", daemon.kind.clone());
    for (name, value) in settings::flat(&state.device) {
        fields.add(
            format!("  {name}"),
            if value.is_null() { NOTHING.to_owned() } else { settings::readable(&name, &value) },
        );
    }
    fields.render(width)
}

fn log(log: &Log) -> String {
    let file = log.file.as_deref().unwrap_or("standard error");
    format!("{} and above, as {}, to {file}", log.level, log.format)
}

fn sandbox(sandbox: &Sandbox) -> String {
    let stage = |stage: &String| match sandbox.landlock_abi {
        Some(abi) if stage == "landlock" => format!("landlock (ABI {abi})"),
        _ => stage.clone(),
    };
    let stages: Vec<String> = sandbox.stages.iter().map(stage).collect();
    if stages.is_empty() { sandbox.mode.clone() } else { format!("{}: {}", sandbox.mode, stages.join(", ")) }
}

fn add_front_end(fields: &mut Fields, front_end: &FrontEnd, now: f64) {
    fields.add("front-end", format!("connected for {}", since(front_end.connected_unix_s, now)));
    fields.add("  features", format!("{} {}", front_end.features_hex, features(&front_end.features)));
    fields.add("  protocol", features(&front_end.protocol_features));
    let regions: Vec<String> = front_end
        .regions
        .iter()
        .map(|region| format!("{} at {}", units::bytes(region.bytes), region.guest_addr))
        .collect();
    fields.add("  memory", if regions.is_empty() { "none".to_owned() } else { regions.join(", ") });
    let tracked = [(front_end.inflight, "requests in flight"), (front_end.dirty_log, "dirty pages")];
    let tracked: Vec<&str> = tracked.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    fields.add("  tracks", if tracked.is_empty() { "nothing".to_owned() } else { tracked.join(", ") });
}

/// Names without what they all begin with: VIRTIO_BLK_F_, VHOST_USER_PROTOCOL_F_.
fn features(names: &[String]) -> String {
    let short = |name: &String| name.split_once("_F_").map_or(name.clone(), |(_, short)| short.to_owned());
    names.iter().map(short).collect::<Vec<_>>().join(" ")
}

fn machine_screen(state: &MachineState, now: f64, width: Option<usize>) -> [String; 3] {
    let vmm = &state.vmm;
    let mut fields = Fields::default();
    let cpus = if vmm.cpus == 1 { "CPU" } else { "CPUs" };
    fields.add("process", vmm.pid.to_string());
    fields.add("guest", format!("{}, {} {cpus}, {}", vmm.state, vmm.cpus, units::bytes(vmm.memory_bytes)));
    if !state.log.level.is_empty() {
        fields.add("log", log(&state.log));
    }
    let head = format!("{} {}, up {}\n", vmm.name, vmm.version, since(vmm.started_unix_s, now));
    [head, fields.render(width), device_table(&state.devices, now).render(width)]
}

fn device_table(devices: &[Device], now: f64) -> Table {
    if devices.is_empty() {
        return Table::default();
    }
    Table(vec![
        Column::words("DEVICE", devices, |device| device.id.clone()),
        Column::words("TYPE", devices, |device| device.kind.clone()),
        Column::words("DAEMON", devices, |device| {
            if device.connected { "connected" } else { "away" }.to_owned()
        }),
        Column::numbers("FOR", devices, |device| since(device.since_unix_s, now)),
        Column::numbers("RETURNS", devices, |device| units::count(device.returns)),
        Column::words("SOCKET", devices, |device| device.socket.clone()),
    ])
}
