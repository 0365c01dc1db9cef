//! The API of a running machine: `outboard run --api-socket PATH`.
//!
//! In: requests on a unix socket, by the protocol that daemons have ([`backends::control`]). Out: how the machine and
//! the daemons of its devices stand, counters, and a guest that pauses and goes on. What is asked is answered by a
//! thread of its own, without waking the machine's loop; what is ordered goes to the loop ([`remote`]).
//!
//! docs/openapi.json describes all of it.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

pub mod remote;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use backends::control::metrics::{CONTENT_TYPE, Exposition, Kind};
use backends::control::{self, Answer, Call, Control, Method, Route, Service, logs};
use serde_json::{Value, json};

use self::remote::{Order, Outcome, Remote, Standing};
use crate::config::Plan;
use crate::error::{Error, system};
use crate::timings::Timings;
use crate::vhost::{DeviceSpec, VhostPciDevice};

/// The option that names the socket.
pub const OPTION: &str = "--api-socket";
/// All that can be asked.
pub const ROUTES: &[Route] = &[
    Route::new(Method::Get, "/state"),
    Route::new(Method::Get, "/metrics"),
    Route::new(Method::Post, "/pause"),
    Route::new(Method::Post, "/resume"),
    logs::LEVEL,
    logs::REOPEN,
];

/// The socket; its path goes away with it.
pub struct ApiSocket {
    listener: UnixListener,
    path: Removed,
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Somebody may have removed it by hand.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl ApiSocket {
    /// Listens at that path.
    ///
    /// # Errors
    /// One line that names the option, the path and the cure.
    pub fn listen(path: &Path) -> Result<ApiSocket, Error> {
        Ok(ApiSocket { listener: control::listen(OPTION, path)?, path: Removed(path.to_owned()) })
    }

    /// Prepares for answers of `api`.
    ///
    /// # Errors
    /// The host lacks something.
    pub fn prepare(self, api: Api) -> Result<ApiServer, Error> {
        let control = Control::new(self.listener, Arc::new(api)).map_err(system("serve the API"))?;
        Ok(ApiServer { control, _path: self.path })
    }
}

/// The API, which answers until it is dropped.
pub struct ApiServer {
    control: Control,
    _path: Removed,
}

impl ApiServer {
    /// Begins to answer.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(&mut self) -> Result<(), Error> {
        self.control.start().map_err(system("serve the API"))
    }
}

/// What is known of a machine for its whole life.
struct Facts {
    cpus: u8,
    memory_bytes: u64,
    devices: Vec<(DeviceSpec, Arc<VhostPciDevice>)>,
}

/// What answers.
pub struct Api {
    facts: Facts,
    timings: Arc<Timings>,
    remote: Remote,
}

impl Api {
    /// Of a machine that was built from this plan and has these devices.
    pub fn new(plan: &Plan, devices: &[Arc<VhostPciDevice>], timings: &Arc<Timings>, remote: Remote) -> Api {
        let devices = plan.devices.iter().cloned().zip(devices.iter().cloned()).collect();
        let facts = Facts { cpus: plan.cpus, memory_bytes: plan.memory_bytes, devices };
        Api { facts, timings: Arc::clone(timings), remote }
    }

    fn state(&self) -> Value {
        let Facts { cpus, memory_bytes, devices } = &self.facts;
        let devices: Vec<Value> = devices.iter().map(|(spec, device)| device_state(spec, device)).collect();
        json!({
            "vmm": {
                "name": "outboard",
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "state": self.remote.standing().name(),
                "cpus": cpus,
                "memory_bytes": memory_bytes,
                "started_unix_s": unix_s(self.timings.start()),
            },
            "devices": devices,
            "log": logs::state(),
        })
    }

    fn metrics(&self) -> String {
        let mut text = Exposition::default();
        text.family("outboard_build_info", Kind::Gauge, "Which program this is.")
            .sample(&[("daemon", &"outboard"), ("version", &env!("CARGO_PKG_VERSION"))], 1);
        text.family("outboard_machine_state", Kind::Gauge, "1 for the state that the machine is in.");
        let now = self.remote.standing();
        for standing in Standing::ALL {
            text.sample(&[("state", &standing.name())], u8::from(standing == now));
        }
        text.family("outboard_device_connected", Kind::Gauge, "Whether the device's daemon is there.");
        for (spec, device) in &self.facts.devices {
            let labels: [(&str, &dyn std::fmt::Display); 2] = [("device", &spec.id), ("type", &spec.kind)];
            text.sample(&labels, u8::from(device.link().connected));
        }
        text.family(
            "outboard_device_returns_total",
            Kind::Counter,
            "Times that the device's daemon came back.",
        );
        for (spec, device) in &self.facts.devices {
            text.sample(&[("device", &spec.id)], device.link().returns);
        }
        let (exits, wakes) = (self.timings.kvm_exits(), self.timings.epoll_returns());
        text.single("outboard_kvm_exits_total", Kind::Counter, "Returns of KVM_RUN.", exits);
        text.single("outboard_loop_wakes_total", Kind::Counter, "Wake-ups of the main loop.", wakes);
        logs::count(&mut text);
        text.finish()
    }

    /// Waits for the machine's loop a moment, so that who reads the answer finds it done.
    fn order(&self, order: Order) -> Answer {
        let outcome = self.remote.order(order);
        let state = json!({"state": self.remote.standing().name()});
        match outcome {
            Outcome::Done => Answer::json(&state),
            Outcome::UnderWay => Answer::accepted(&state),
            Outcome::Ended => Answer::error(409, "The machine is at its end; start another one"),
        }
    }
}

impl Service for Api {
    fn routes(&self) -> &'static [Route] {
        ROUTES
    }

    fn call(&self, call: Call) -> Answer {
        match call.route.path {
            "/state" => Answer::json(&self.state()),
            "/metrics" => Answer::text(CONTENT_TYPE, self.metrics()),
            "/log" | "/log/reopen" => logs::answer(&call),
            "/pause" => self.order(Order::Pause),
            _ => self.order(Order::Resume),
        }
    }
}

fn device_state(spec: &DeviceSpec, device: &VhostPciDevice) -> Value {
    let link = device.link();
    json!({
        "id": spec.id,
        "type": spec.kind.to_string(),
        "socket": spec.socket,
        "connected": link.connected,
        "since_unix_s": unix_s(link.since),
        "returns": link.returns,
    })
}

/// A moment on the clock that people have.
fn unix_s(then: Instant) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(then.elapsed()).as_secs_f64()
}
