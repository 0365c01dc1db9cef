//! The control socket: HTTP/1.1 and JSON over a unix socket, for the operator and for tools.
//!
//! ```text
//! client ──► server ──► connection ──► http ──► Service::call ──► state, metrics, Device::change
//!        ◄──────────────────────────── Answer ◄──┘
//! ```
//! In: a listening socket and a [`Service`], which says what can be asked ([`Route`]). Out: a thread of its own that
//! answers, until the [`Control`] is dropped. Who may connect is for the socket's mode to say (0660), and whoever may,
//! may read; changes (PUT, POST) are for root and this process's own user, by the peer's credentials.
//!
//! Promises: no client disturbs the data path, which shares nothing with this thread but counters, nor another client:
//! at most [`server::MAX_CLIENTS`] are connected and the rest wait in the backlog; nobody is waited for without a
//! deadline, which is short while others wait; what a client may send is bounded ([`http`]). Nothing is opened here:
//! what must be opened comes with a request, as a descriptor. Refuses everything else by a status and one line
//! of JSON, `{"error": "..."}`.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

pub mod change;
pub mod changes;
pub mod client;
mod connection;
pub mod daemon;
mod desk;
pub mod http;
pub mod logs;
pub mod metrics;
mod names;
mod numbers;
pub mod server;
mod socket;
mod state;

use std::fmt::Display;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use serde_json::{Map, Value, json};

pub use change::{Change, ChangeError};
pub use server::Control;
pub use socket::listen;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Sets something to a value.
    Put,
    /// Has something done.
    Post,
}

impl Method {
    /// As it stands in a request line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
        }
    }

    /// Whether it is only for root and this process's own user.
    pub fn changes(self) -> bool {
        self != Method::Get
    }
}

/// Something that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// What the request does.
    pub method: Method,
    /// To what.
    pub path: &'static str,
    /// Descriptors that may come with it.
    pub descriptors: usize,
}

impl Route {
    /// A route to which no descriptor comes.
    pub const fn new(method: Method, path: &'static str) -> Route {
        Route { method, path, descriptors: 0 }
    }
}

/// Who asks (SO_PEERCRED: who connected, as of then).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process; 0 for one of another process namespace.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A whole request, by somebody who may make it.
#[derive(Debug)]
pub struct Call {
    /// One of [`Service::routes`].
    pub route: Route,
    /// What came with it; at most [`http::MAX_BODY_BYTES`].
    pub body: Vec<u8>,
    /// The descriptors that came with it: no more than the route takes.
    pub fds: Vec<OwnedFd>,
    /// Who asks.
    pub peer: Peer,
}

impl Call {
    /// The body as a JSON object; no body is one without members.
    ///
    /// # Errors
    /// The answer that says what is wrong with it.
    pub fn object(&self) -> Result<Map<String, Value>, Answer> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Map::new());
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => Err(Answer::error(400, "The body is no JSON object; send one like {\"name\": value}")),
            Err(error) => {
                Err(Answer::error(400, format_args!("The body is no JSON: {error}; send one object")))
            }
        }
    }
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code (RFC 9110 §15).
    pub status: u16,
    /// Content-Type.
    pub kind: &'static str,
    /// The methods that the path has, for status 405.
    pub allow: Option<String>,
    /// Content.
    pub body: Vec<u8>,
}

impl Answer {
    /// 200 with this JSON.
    pub fn json(value: &Value) -> Answer {
        Answer::with(200, value)
    }

    /// 202 with this JSON: it is being done.
    pub fn accepted(value: &Value) -> Answer {
        Answer::with(202, value)
    }

    /// 200 with text of this type.
    pub fn text(kind: &'static str, text: String) -> Answer {
        Answer { status: 200, kind, allow: None, body: text.into_bytes() }
    }

    /// A refusal: one line that names the field, the value and the cure.
    pub fn error(status: u16, line: impl Display) -> Answer {
        Answer::with(status, &json!({ "error": line.to_string() }))
    }

    /// 404: no route leads there.
    pub fn missing(path: &str) -> Answer {
        Answer::error(404, format_args!("There is no {path}"))
    }

    fn with(status: u16, value: &Value) -> Answer {
        let mut body = value.to_string().into_bytes();
        body.push(b'\n');
        Answer { status, kind: "application/json", allow: None, body }
    }
}

/// What answers requests. It is called by the control thread, one request at a time, and must not wait.
pub trait Service: Send + Sync {
    /// All that can be asked.
    fn routes(&self) -> &[Route];

    /// Answers. The request is one of [`Service::routes`], and the peer may make it.
    fn call(&self, call: Call) -> Answer;

    /// What has more to do than answer: readable when it has.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Its bell is readable, or the moment has come that it named. When it wants to be called next, if nobody rings.
    fn rung(&self, now: Instant) -> Option<Instant> {
        let _ = now;
        None
    }
}

#[cfg(test)]
mod tests;
