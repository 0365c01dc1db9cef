//! `outboard-blk graph apply` and `graph show --control-socket`: the graph of a daemon that serves.
//!
//! In: a file with a graph, and the daemon's control socket. Out: the daemon serves that graph, or went on with the one it
//! had, and why. What is new is opened here, with the rights of whoever calls: volumes of the same name, type and options
//! stay open in the daemon. What is in the page cache of images that are replaced is written out before the daemon
//! stops for the change, which then has little left to write.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use backends::control::Method;
use backends::control::client::{Client, ClientError, Reply};
use backends::daemon::Failure;
use backends::opened::Opened;
use serde_json::Value;

use super::graph::read;
use super::say;
use crate::graph::change::{HOLD, Hold, Shown, Stage, Wanted};
use crate::graph::live::text_of;
use crate::graph::plan::{Plan, Planned};
use crate::graph::registry::PREFIX;
use crate::graph::volfile;

/// How long the daemon may take for an answer, and for a change: longer than it waits for requests.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often we look whether a change is done.
const LOOK: Duration = Duration::from_millis(5);
/// Where daemons have their graph.
const PATH: &str = "/graph";

/// Draws the graph that is served.
///
/// # Errors
/// The daemon does not tell.
pub fn show(socket: &Path, json: bool) -> Result<(), Failure> {
    let shown = shown(&mut connect(socket)?, socket)?;
    if json {
        return say(serde_json::to_value(shown).unwrap_or_default());
    }
    say(shown.picture.to_string().trim_end())
}

/// Has the daemon serve the graph of this file.
///
/// # Errors
/// The line that is wrong, or why the daemon goes on with what it had.
pub fn apply(file: &Path, socket: &Path) -> Result<(), Failure> {
    let bytes = read(file)?;
    let refused = |error: crate::graph::error::GraphError| error.failure(file);
    let text = volfile::text(&bytes).map_err(refused)?.to_owned();
    let plan = Plan::parse(&text).map_err(refused)?;
    let mut client = connect(socket)?;
    let before = shown(&mut client, socket)?;
    let live = Plan::parse(&before.text).map_err(refused)?;
    let mut opened = Opened::default();
    plan.prepare_beside(&live, &mut opened).map_err(refused)?;
    live.volumes().iter().filter(|old| !stays(old, &plan)).for_each(write_out);
    let number = send(&mut client, socket, &before, file, text, opened)?;
    let last = settled(&mut client, socket, number, &plan)?;
    say(format_args!(
        "{}: is served now; no request was begun for {:.1} ms",
        file.display(),
        Duration::from_micros(last).as_secs_f64() * 1e3
    ))
}

/// Has a volume hold still, and waits until it does.
///
/// # Errors
/// It is none that can, or what is below cannot be made durable.
pub fn hold(volume: &str, socket: &Path) -> Result<(), Failure> {
    let (mut client, until) = (connect(socket)?, Instant::now() + PATIENCE);
    loop {
        let state = tell(&mut client, socket, volume, true)?;
        let is = |name: &str| state.get(name).and_then(Value::as_bool).unwrap_or(false);
        let still = state.get("timeout_s").and_then(Value::as_f64).unwrap_or_default();
        if is("quiet") {
            return say(format_args!("{volume}: holds still, for {still} s at most"));
        }
        let problem = match is("flush_failed") {
            true => "what is below it cannot be made durable; look at the daemon's log",
            false if Instant::now() < until => {
                thread::sleep(LOOK);
                continue;
            }
            false => "requests are still under way; try again",
        };
        let _ = tell(&mut client, socket, volume, false);
        return Err(Failure::host(format_args!("{volume}: it does not hold still: {problem}")));
    }
}

/// Has a volume go on.
///
/// # Errors
/// It is none that was held.
pub fn release(volume: &str, socket: &Path) -> Result<(), Failure> {
    tell(&mut connect(socket)?, socket, volume, false)?;
    say(format_args!("{volume}: goes on"))
}

/// What a volume says when it is told to hold calls back, or no longer.
fn tell(client: &mut Client, socket: &Path, volume: &str, held: bool) -> Result<Value, Failure> {
    let body = serde_json::to_value(Hold { volume: volume.to_owned(), held }).unwrap_or_default();
    let reply = client.call(Method::Put, HOLD, Some(&body), None).map_err(|error| mute(socket, &error))?;
    answer(reply)
}

fn stays(old: &Planned, plan: &Plan) -> bool {
    plan.volumes().iter().any(|new| new.is_same(old))
}

/// Its files go to the disk, as far as this user may open them: the daemon sees to what is left.
fn write_out(old: &Planned) {
    let paths = old.kind.options.iter().filter_map(|setting| old.values.path(setting.name));
    for file in paths.filter_map(|path| File::open(path).ok()) {
        let _ = file.sync_data();
    }
}

/// Sends the change; its number.
fn send(
    client: &mut Client,
    socket: &Path,
    before: &Shown,
    file: &Path,
    text: String,
    opened: Opened,
) -> Result<u64, Failure> {
    let (names, fds): (Vec<_>, Vec<_>) = opened.into_fds().into_iter().unzip();
    let descriptors = names.iter().map(|name| name.strip_prefix(PREFIX).unwrap_or(name).to_owned()).collect();
    let wanted = Wanted { text, file: file.display().to_string(), after: before.change.number, descriptors };
    let body = serde_json::to_value(wanted).unwrap_or_default();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let reply =
        client.call_with(Method::Put, PATH, Some(&body), &fds).map_err(|error| mute(socket, &error))?;
    let answer = answer(reply)?;
    Ok(answer.get("change").and_then(Value::as_u64).unwrap_or_default())
}

/// Waits until a change is done; microseconds of its pause.
fn settled(client: &mut Client, socket: &Path, number: u64, plan: &Plan) -> Result<u64, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = shown(client, socket)?;
        match now.change.state {
            Stage::Done if now.change.number == number => return Ok(now.change.pause_us),
            Stage::Refused if now.change.number == number => {
                let why = now.change.error.unwrap_or_default();
                return Err(Failure::host(format_args!(
                    "{}: the graph from before goes on: {why}",
                    socket.display()
                )));
            }
            Stage::Pending if Instant::now() < until => thread::sleep(LOOK),
            // The worker that had it ended, and the one after it goes on with one or the other.
            _ if now.text == text_of(plan) => return Ok(now.change.pause_us),
            _ => {
                return Err(Failure::host(format_args!(
                    "{}: the graph from before goes on: the worker ended meanwhile; try again",
                    socket.display()
                )));
            }
        }
    }
}

fn connect(socket: &Path) -> Result<Client, Failure> {
    Client::connect(socket, PATIENCE).map_err(|error| mute(socket, &error))
}

fn shown(client: &mut Client, socket: &Path) -> Result<Shown, Failure> {
    let reply = client.call(Method::Get, PATH, None, None).map_err(|error| mute(socket, &error))?;
    serde_json::from_value(answer(reply)?).map_err(|_| {
        Failure::option(format_args!(
            "--control-socket {}: that daemon has no graph; give the socket of an outboard-blk",
            socket.display()
        ))
    })
}

/// What was answered, if that was no refusal.
fn answer(reply: Reply) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let error = value.get("error").and_then(Value::as_str).unwrap_or_default();
    match reply.status {
        200..300 => Ok(value),
        409 => Err(Failure::in_use(error)),
        _ => Err(Failure::option(error)),
    }
}

fn mute(socket: &Path, error: &ClientError) -> Failure {
    Failure::host(format_args!("--control-socket {}: {error}", socket.display()))
}
