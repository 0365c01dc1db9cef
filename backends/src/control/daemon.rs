//! What every daemon answers on its control socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /state` | the daemon, its front-end, its queues, its device ([`super::state`]) |
//! | `GET /metrics` | numbers for Prometheus ([`super::numbers`]) |
//! | `GET /device`, `PUT /device` | what can be changed while it serves ([`Device::settings`], [`Device::change`]) |
//! | `PUT /log` | `{"level": "debug"}` |
//! | `POST /log/reopen` | `{"file": "/its/path"}` or nothing; the descriptor that comes with the request is the log file from now on |
//! | `POST /upgrade` | 202: another worker, of what the executable's path names now, takes over |
//!
//! Nothing here waits for the data path, nor it for us: it is read by atomics, and changed by the device's own means.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::change::Change;
use super::changes::Changes;
use super::{Answer, Call, Method, Route, Service, metrics, numbers, state};
use crate::device::Device;
use crate::engine::EngineKind;
use crate::kept::Kept;
use crate::log;
use crate::server::Server;
use crate::server::seen::Seen;
use crate::stats::Stats;

/// What can be asked.
pub const ROUTES: [Route; 7] = [
    Route::new(Method::Get, "/state"),
    Route::new(Method::Get, "/metrics"),
    Route::new(Method::Get, "/device"),
    Route::new(Method::Put, "/device"),
    Route::new(Method::Put, "/log"),
    Route { method: Method::Post, path: "/log/reopen", descriptor: true },
    Route::new(Method::Post, "/upgrade"),
];

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of the program.
    pub name: &'static str,
    /// Type in the vhost-user program conventions.
    pub kind: &'static str,
    /// How its workers wait and do I/O, as the options say.
    pub engine: EngineKind,
    /// When the process began, in milliseconds of Unix time.
    pub began_ms: u64,
}

/// One daemon, as its control thread sees it.
pub struct Daemon<D: Device> {
    pub(super) about: About,
    pub(super) kept: Kept,
    pub(super) device: Arc<D>,
    pub(super) stats: Stats,
    pub(super) seen: Seen,
    changes: Changes,
}

impl<D: Device> Daemon<D> {
    /// What `server` serves.
    pub fn new(about: About, kept: Kept, server: &Server<D>, changes: Changes) -> Daemon<D> {
        let (device, stats, seen) =
            (Arc::clone(server.device()), server.stats().clone(), server.seen().clone());
        Daemon { about, kept, device, stats, seen, changes }
    }

    fn change(&self, members: &Map<String, Value>) -> Answer {
        match self.device.change(&Change::new(members)) {
            Ok(()) => {
                let settings = self.device.settings();
                self.changes.keep(&settings);
                Answer::json(&Value::Object(settings))
            }
            Err(error) => Answer::error(422, error),
        }
    }

    fn upgrade(&self) -> Answer {
        if self.kept.upgrade() {
            return Answer::accepted(&json!({ "worker_pid": std::process::id() }));
        }
        Answer::error(
            409,
            "There is no keeper that could start another worker; start the daemon without --keeper off",
        )
    }
}

impl<D: Device> Service for Daemon<D> {
    fn routes(&self) -> &'static [Route] {
        &ROUTES
    }

    fn call(&self, call: Call) -> Answer {
        let members = match call.object() {
            Ok(members) => members,
            Err(refusal) => return refusal,
        };
        match (call.route.method, call.route.path) {
            (_, "/state") => Answer::json(&state::of(self)),
            (_, "/metrics") => Answer::text(metrics::CONTENT_TYPE, numbers::of(self)),
            (Method::Get, "/device") => Answer::json(&Value::Object(self.device.settings())),
            (_, "/device") => self.change(&members),
            (_, "/log") => set_log(&members),
            (_, "/log/reopen") => reopen_log(&members, call.fd.as_ref()),
            (_, "/upgrade") => self.upgrade(),
            (_, path) => Answer::error(404, format_args!("There is no {path}")),
        }
    }
}

/// `error` first: what is written at a level is also written at those after it.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn set_log(members: &Map<String, Value>) -> Answer {
    let change = Change::new(members);
    let level = change.only(&["level"]).and_then(|()| change.one_of("level", &LEVELS));
    match level.map(|level| level.and_then(|level| level.parse().ok())) {
        Ok(Some(level)) => {
            log::set_level(level);
            Answer::json(&state::log())
        }
        Ok(None) => Answer::error(422, change.refused("level", &format!("one of {}", LEVELS.join(", ")))),
        Err(error) => Answer::error(422, error),
    }
}

fn reopen_log(members: &Map<String, Value>, file: Option<&OwnedFd>) -> Answer {
    let change = Change::new(members);
    let name = match change.only(&["file"]).and_then(|()| change.text("file")) {
        Ok(name) => name,
        Err(error) => return Answer::error(422, error),
    };
    let Some(file) = file else {
        let line = "No descriptor came with the request, and a daemon opens nothing by itself; use outboard ctl log --reopen";
        return Answer::error(409, line);
    };
    match log::reopen(file, name) {
        Ok(()) => Answer::json(&state::log()),
        Err(error) => Answer::error(if error.is_conflict() { 409 } else { 422 }, error),
    }
}
