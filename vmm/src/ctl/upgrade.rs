//! `outboard ctl upgrade`: another worker takes over, and this waits until it has.
//!
//! The old worker's connection tells when it is gone; what the next one answers waits in the socket until it serves.

use std::time::{Duration, Instant};

use backends::control::Method;
use backends::control::client::ClientError;
use serde_json::json;

use super::Ctl;
use super::answer::DaemonState;
use super::error::CtlError;
use super::screen::units;
use super::socket::Target;

/// A worker may take long to bring its requests to an end, on a slow disk: daemons give up after 30 s.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two questions to somebody who is on the way.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks for it, and waits.
pub fn run(ctl: &Ctl<'_>) -> Result<(), CtlError> {
    let start = Instant::now();
    let mut target = Target::connect(ctl.socket, PATIENCE)?;
    let old = ctl.daemon(&mut target, "upgrade")?.daemon.worker_pid;
    target.change(Method::Post, "/upgrade", None, None)?;
    target.wait_closed()?;
    let new = next_worker(ctl, old, start + PATIENCE)?;
    let took = units::duration(start.elapsed().as_secs_f64());
    let answer = json!({"worker_pid_before": old, "worker_pid": new});
    ctl.say(&answer, || format!("worker {new} serves in place of {old}, after {took}\n"))
}

fn worker(state: &DaemonState) -> u32 {
    state.daemon.worker_pid
}

/// The process that answers when it is not `old`.
fn next_worker(ctl: &Ctl<'_>, old: u32, until: Instant) -> Result<u32, CtlError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CtlError::NoUpgrade { socket: ctl.socket.to_owned(), seconds: PATIENCE.as_secs() });
        }
        match Target::connect(ctl.socket, left).and_then(|mut target| target.read("/state")) {
            Ok(state) if worker(&state) != old => return Ok(worker(&state)),
            // One on its way out may answer, or hang up, or leave the next one to take over.
            Ok(_) | Err(CtlError::NoAnswer { cause: ClientError::Ended | ClientError::Silent(_), .. }) => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(PAUSE);
    }
}
