//! How long a guest waits for a daemon that is back: our VMM, the bare-metal guest and an entropy daemon that is
//! killed and followed by another.
//!
//! In: the VMM's binary and a number of rounds. Out: for each round the time from the moment a listening socket is
//! back in its place (by rename, so it is known) until the guest, through its serial line, says that a request is
//! served that it made while there was no daemon. That is more than the VMM's own time by the daemon's for session
//! and request, and by the line.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::machine::RNG;
use crate::vmm::Run;

/// Measures `rounds` returns.
///
/// # Panics
/// The guest is not served again in time, or loses a request.
pub fn measure(vmm: &Path, rounds: usize) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("temporary directory: {e}"));
    let socket = dir.path().join("rng.sock");
    let mut daemon = listening();
    put(&daemon, &socket);
    let mut vmm = Run::metal(vmm, "metal=hold").device("rng", &socket).start();
    vmm.wait_for("metal: hold ready\n", 1);
    let times = (1..=rounds).map(|round| {
        let next = listening();
        daemon.kill9();
        vmm.type_in("sa");
        vmm.wait_for("metal: alive\n", round);
        let back = Instant::now();
        put(&next, &socket);
        vmm.wait_for("metal: served\n", round);
        let took = back.elapsed();
        daemon = next;
        took
    });
    let times = times.collect();
    vmm.type_in("x");
    vmm.finish().ok();
    times
}

fn listening() -> Daemon {
    RNG.launch().args(["--keeper", "off"]).serve().unwrap_or_else(|e| panic!("{e}"))
}

fn put(daemon: &Daemon, at: &Path) {
    std::fs::rename(daemon.socket(), at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
}
