//! The log on a control socket, of daemons and of the VMM: what it is, what is counted of it, another level, another file.
//!
//! A daemon opens nothing, so a file comes as a descriptor; its name, `{"file": "/its/path"}`, is for those who ask where
//! the log is.

use std::os::fd::OwnedFd;

use serde_json::{Map, Value, json};

use super::change::Change;
use super::metrics::{Exposition, Kind};
use super::{Answer, Call, Method, Route};
use crate::log;

/// `{"level": "debug"}`: what is written from now on.
pub const LEVEL: Route = Route::new(Method::Put, "/log");
/// The descriptor that comes with the request is the log file from now on.
pub const REOPEN: Route = Route { method: Method::Post, path: "/log/reopen", descriptors: 1 };

/// `error` first: what is written at a level is also written at those after it.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The log as `/state` has it, and as a change of it is answered.
pub fn state() -> Value {
    json!({
        "level": log::level().to_string().to_lowercase(),
        "format": log::format().to_string(),
        "file": log::file(),
    })
}

/// Answers a request to [`LEVEL`] or [`REOPEN`].
pub fn answer(call: &Call) -> Answer {
    let members = match call.object() {
        Ok(members) => members,
        Err(refusal) => return refusal,
    };
    let changed = match call.route.path == REOPEN.path {
        true => reopen(&members, call.fds.first()),
        false => set_level(&members),
    };
    changed.err().unwrap_or_else(|| Answer::json(&state()))
}

fn set_level(members: &Map<String, Value>) -> Result<(), Answer> {
    let change = Change::new(members);
    let refused = |error| Answer::error(422, error);
    change.only(&["level"]).map_err(refused)?;
    let level = change.one_of("level", &LEVELS).map_err(refused)?;
    let level = level.and_then(|level| level.parse().ok());
    let missing = || refused(change.refused("level", &format!("one of {}", LEVELS.join(", "))));
    level.map(log::set_level).ok_or_else(missing)
}

fn reopen(members: &Map<String, Value>, file: Option<&OwnedFd>) -> Result<(), Answer> {
    let change = Change::new(members);
    let name = change.only(&["file"]).and_then(|()| change.text("file"));
    let name = name.map_err(|error| Answer::error(422, error))?;
    let line =
        "No descriptor came with the request, and nothing is opened here; use outboard ctl log --reopen";
    let file = file.ok_or_else(|| Answer::error(409, line))?;
    let code = |error: &log::ReopenError| if error.is_conflict() { 409 } else { 422 };
    log::reopen(file, name).map_err(|error| Answer::error(code(&error), error))
}

/// What is counted of lines, of this process: a keeper has none that anybody could ask.
pub fn count(text: &mut Exposition) {
    let counts: Vec<_> = log::counts().collect();
    text.family("outboard_log_lines_written_total", Kind::Counter, "Lines others caused, by what they did.");
    for (class, written, _) in &counts {
        text.sample(&[("class", class)], written);
    }
    text.family(
        "outboard_log_lines_left_out_total",
        Kind::Counter,
        "The same, of which there were too many.",
    );
    for (class, _, left_out) in &counts {
        text.sample(&[("class", class)], left_out);
    }
    let help = "Lines that could not be written because nobody took them.";
    text.single("outboard_log_lines_lost_total", Kind::Counter, help, log::lost());
}
