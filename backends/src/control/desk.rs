//! Which route a request is for, and whether its client may take it.
//!
//! In: a whole request and who sent it. Out: the service's answer, or why it is not asked: 404 no such path, 405 not
//! with this method, 403 not for this user, 400 a descriptor where none belongs. Every change is told in the log with
//! who made it, since only root and the own user can; refusals, which anybody who connects can cause, one a second.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::http::Head;
use super::{Answer, Call, Peer, Route, Service};
use crate::log::{self, Class};

/// A service, and who may change something.
pub(super) struct Desk {
    service: Arc<dyn Service>,
    /// The user that this process runs as.
    own_uid: u32,
}

impl Desk {
    /// For a service of this process.
    pub(super) fn new(service: Arc<dyn Service>) -> Desk {
        Desk { service, own_uid: rustix::process::geteuid().as_raw() }
    }

    /// What has more to do than answer.
    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    /// Answers, whatever was asked.
    pub(super) fn answer(&self, head: &Head, body: Vec<u8>, fds: Vec<OwnedFd>, peer: Peer) -> Answer {
        let call = self.route(head).and_then(|route| self.admit(route, body, fds, peer));
        match call {
            Ok(call) => self.call(call),
            Err(refusal) => {
                self.tell_refused(
                    peer,
                    &format_args!("{} {}", head.method.escape_debug(), head.path.escape_debug()),
                );
                refusal
            }
        }
    }

    /// One line, at most one a second.
    pub(super) fn tell_refused(&self, peer: Peer, what: &dyn Display) {
        let Peer { pid, uid, .. } = peer;
        log::line!(warn, Class::ControlRefused, peer_pid = pid, peer_uid = uid, %what, "Control request refused");
    }

    /// The route for this method and path. A HEAD is a GET whose answer has no content (RFC 9110 §9.3.2).
    fn route(&self, head: &Head) -> Result<Route, Answer> {
        let routes = || self.service.routes().iter().filter(|route| route.path == head.path);
        let method = if head.method == "HEAD" { "GET" } else { &head.method };
        if let Some(route) = routes().find(|route| route.method.name() == method) {
            return Ok(*route);
        }
        let allow: Vec<_> = routes().map(|route| route.method.name()).collect();
        if allow.is_empty() {
            let mut paths: Vec<_> = self.service.routes().iter().map(|route| route.path).collect();
            paths.dedup();
            let paths = paths.join(", ");
            return Err(Answer::error(
                404,
                format_args!("There is no {}; ask for one of {paths}", head.path),
            ));
        }
        let allow = allow.join(", ");
        let line = format!("{} is not for {}; use {allow}", head.path, head.method);
        Err(Answer { allow: Some(allow), ..Answer::error(405, line) })
    }

    fn admit(&self, route: Route, body: Vec<u8>, fds: Vec<OwnedFd>, peer: Peer) -> Result<Call, Answer> {
        if route.method.changes() && ![0, self.own_uid].contains(&peer.uid) {
            let Peer { uid, .. } = peer;
            return Err(Answer::error(
                403,
                format_args!(
                    "Changes are for root and user {}, you are {uid}; become one of them",
                    self.own_uid
                ),
            ));
        }
        if fds.len() > route.descriptors {
            let most = match route.descriptors {
                0 => "no descriptor".to_owned(),
                1 => "one descriptor".to_owned(),
                most => format!("{most} descriptors at most"),
            };
            return Err(Answer::error(400, format_args!("{} takes {most}; pass no more", route.path)));
        }
        Ok(Call { route, body, fds, peer })
    }

    fn call(&self, call: Call) -> Answer {
        let (route, peer) = (call.route, call.peer);
        let answer = self.service.call(call);
        if route.method.changes() {
            tell_changed(route, peer, answer.status);
        }
        answer
    }
}

/// Who changed something is always told; who tried to, one a second.
fn tell_changed(Route { method, path, .. }: Route, Peer { pid, uid, .. }: Peer, status: u16) {
    let (class, method) = (Class::ControlChange, method.name());
    if status < 300 {
        log::line!(
            info,
            class.once(),
            peer_pid = pid,
            peer_uid = uid,
            method,
            path,
            "Changed over the control socket"
        );
    } else {
        log::line!(
            info,
            class,
            peer_pid = pid,
            peer_uid = uid,
            method,
            path,
            status,
            "Nothing changed over the control socket"
        );
    }
}
