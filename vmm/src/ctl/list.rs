//! `outboard ctl list`: every control socket of a directory, and how things stand behind it.
//!
//! All are asked at once, so that one that is mute holds up the list no longer than its own patience. One that cannot be
//! asked has a row too, and a line below the table that says why.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::State;
use super::error::CtlError;
use super::rates::{Sample, per_second};
use super::screen::{Column, NOTHING, Table, paragraph, units};
use super::socket::{DIRECTORY, Target, find, name_of};

/// How long each may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Sockets asked at once.
const AT_ONCE: usize = 64;

/// What is known of one socket.
pub struct Entry {
    /// Where it is.
    pub socket: PathBuf,
    /// What it answered, as it came and as it is understood.
    pub answer: Result<(Value, State), CtlError>,
}

/// Asks all sockets of that directory.
///
/// # Errors
/// The directory cannot be read. The usual one need not be there.
pub fn ask(dir: &Path) -> Result<Vec<Entry>, CtlError> {
    let sockets = match find(dir) {
        Err(_) if dir == Path::new(DIRECTORY) && !dir.exists() => Vec::new(),
        found => found.map_err(|cause| CtlError::Directory { dir: dir.to_owned(), cause })?,
    };
    Ok(sockets.chunks(AT_ONCE).flat_map(ask_all).collect())
}

fn ask_all(sockets: &[PathBuf]) -> Vec<Entry> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = sockets.iter().map(|socket| (socket, scope.spawn(|| ask_one(socket)))).collect();
        // A thread that panicked has said so; its socket is left out.
        asked
            .into_iter()
            .filter_map(|(socket, thread)| {
                Some(Entry { socket: socket.clone(), answer: thread.join().ok()? })
            })
            .collect()
    })
}

fn ask_one(socket: &Path) -> Result<(Value, State), CtlError> {
    let mut target = Target::connect(socket, PATIENCE)?;
    let body = target.get("/state")?;
    Ok((target.understand(&body)?, target.understand(&body)?))
}

/// For programs: path, answer, and what kept it from coming.
pub fn json(entries: &[Entry]) -> Value {
    let entry = |entry: &Entry| {
        let socket = entry.socket.display().to_string();
        match &entry.answer {
            Ok((state, _)) => json!({"socket": socket, "state": state, "error": null}),
            Err(error) => json!({"socket": socket, "state": null, "error": reason(error)}),
        }
    };
    entries.iter().map(entry).collect()
}

/// Which socket, and why: nobody has typed the option.
fn reason(error: &CtlError) -> String {
    let text = error.to_string();
    text.strip_prefix("--socket ").map_or(text.clone(), ToOwned::to_owned)
}

/// The whole screen.
pub fn screen(
    dir: &Path,
    now: &Sample<Vec<Entry>>,
    before: Option<&Sample<Vec<Entry>>>,
    width: Option<usize>,
) -> String {
    let entries = &now.value;
    if entries.is_empty() {
        let none = "no control sockets (*.control) in";
        let cure = "start a daemon with --control-socket";
        return paragraph(&format!("{none} {0}; {cure} {0}/NAME.control", dir.display()), width);
    }
    let before = before.map(|before| (before.value.as_slice(), now.at.saturating_duration_since(before.at)));
    let mut text = table(entries, before, now.unix_s).render(width);
    let failed = entries.iter().filter_map(|entry| entry.answer.as_ref().err());
    let failed: Vec<String> = failed.map(|error| paragraph(&reason(error), width)).collect();
    if !failed.is_empty() {
        text.push('\n');
        text.extend(failed);
    }
    text
}

fn table(entries: &[Entry], before: Option<(&[Entry], Duration)>, now: f64) -> Table {
    let cell = |of: fn(&State, f64) -> String| {
        move |entry: &Entry| match &entry.answer {
            Ok((_, state)) => of(state, now),
            Err(_) => NOTHING.to_owned(),
        }
    };
    let rate = before.map(|(earlier, elapsed)| {
        Column::numbers("REQ/S", entries, move |entry| {
            let before = earlier.iter().find(|earlier| earlier.socket == entry.socket).and_then(requests);
            let rate = requests(entry)
                .zip(before)
                .and_then(|(now, before)| per_second(units::float(now), units::float(before), elapsed));
            rate.map_or(NOTHING.to_owned(), units::quantity)
        })
    });
    let columns = [
        Some(Column::words("SOCKET", entries, |entry| name_of(&entry.socket))),
        Some(Column::words("PROGRAM", entries, cell(program))),
        Some(Column::words("STATE", entries, |entry| {
            entry.answer.as_ref().map_or("no answer".to_owned(), |(_, state)| standing(state))
        })),
        Some(Column::numbers("UP", entries, cell(up))),
        Some(Column::numbers("PID", entries, cell(pid))),
        Some(Column::numbers("REQUESTS", entries, |entry| {
            requests(entry).map_or(NOTHING.to_owned(), units::count)
        })),
        rate,
    ];
    Table(columns.into_iter().flatten().collect())
}

fn program(state: &State, _: f64) -> String {
    match state {
        State::Daemon(state) => state.daemon.name.clone(),
        State::Machine(state) => state.vmm.name.clone(),
    }
}

fn standing(state: &State) -> String {
    match state {
        State::Daemon(state) if state.front_end.is_some() => "connected".to_owned(),
        State::Daemon(_) => "waiting".to_owned(),
        State::Machine(state) => state.vmm.state.clone(),
    }
}

fn up(state: &State, now: f64) -> String {
    let started = match state {
        State::Daemon(state) => state.daemon.started_unix_s,
        State::Machine(state) => state.vmm.started_unix_s,
    };
    units::duration(now - started)
}

fn pid(state: &State, _: f64) -> String {
    match state {
        State::Daemon(state) => state.daemon.keeper_pid.unwrap_or(state.daemon.worker_pid).to_string(),
        State::Machine(state) => state.vmm.pid.to_string(),
    }
}

/// All requests of a daemon.
fn requests(entry: &Entry) -> Option<u64> {
    match &entry.answer {
        Ok((_, State::Daemon(state))) => Some(state.queues.iter().map(|queue| queue.requests).sum()),
        _ => None,
    }
}
