//! What every daemon answers on its control socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /state` | the daemon, its front-end, its queues, its device ([`super::state`]) |
//! | `GET /metrics` | numbers for Prometheus ([`super::numbers`]) |
//! | `GET /device`, `PUT /device` | what can be changed while it serves ([`Device::settings`], [`Device::change`]) |
//! | `PUT /log`, `POST /log/reopen` | another level, another file ([`super::logs`]) |
//! | `POST /upgrade` | 202: another worker, of what the executable's path names now, takes over |
//! | a device's own | [`Device::routes`] |
//!
//! Nothing here waits for the data path, nor it for us: it is read by atomics, and changed by the device's own means.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::change::Change;
use super::changes::Changes;
use super::{Answer, Call, Method, Route, Service, logs, metrics, numbers, state};
use crate::device::Device;
use crate::engine::EngineKind;
use crate::kept::Kept;
use crate::server::Server;
use crate::server::seen::Seen;
use crate::stats::Stats;

/// What can be asked.
pub const ROUTES: [Route; 7] = [
    Route::new(Method::Get, "/state"),
    Route::new(Method::Get, "/metrics"),
    Route::new(Method::Get, "/device"),
    Route::new(Method::Put, "/device"),
    logs::LEVEL,
    logs::REOPEN,
    Route::new(Method::Post, "/upgrade"),
];

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of the program.
    pub name: &'static str,
    /// Type in the vhost-user program conventions.
    pub kind: &'static str,
    /// How its workers wait and do I/O.
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
    routes: Vec<Route>,
}

impl<D: Device> Daemon<D> {
    /// What `server` serves.
    pub fn new(about: About, kept: Kept, server: &Server<D>, changes: Changes) -> Daemon<D> {
        let (device, stats, seen) =
            (Arc::clone(server.device()), server.stats().clone(), server.seen().clone());
        let routes = ROUTES.iter().chain(device.routes()).copied().collect();
        Daemon { about, kept, device, stats, seen, changes, routes }
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
    fn routes(&self) -> &[Route] {
        &self.routes
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.device.bell()
    }

    fn rung(&self, now: Instant) -> Option<Instant> {
        self.device.rung(now)
    }

    fn call(&self, call: Call) -> Answer {
        if self.device.routes().contains(&call.route) {
            return self.device.call(call);
        }
        let members = match call.object() {
            Ok(members) => members,
            Err(refusal) => return refusal,
        };
        match (call.route.method, call.route.path) {
            (_, "/state") => Answer::json(&state::of(self)),
            (_, "/metrics") => Answer::text(metrics::CONTENT_TYPE, numbers::of(self)),
            (Method::Get, "/device") => Answer::json(&Value::Object(self.device.settings())),
            (_, "/device") => self.change(&members),
            (_, "/log" | "/log/reopen") => logs::answer(&call),
            (_, "/upgrade") => self.upgrade(),
            (_, path) => Answer::missing(path),
        }
    }
}
