//! `idle-frontend SOCKET`: a front-end with a guest that has nothing to do.
//!
//! It does the whole handshake with an `outboard-rng`, has some requests served, says `idle` on standard output, and
//! stays connected until the daemon ends, or for as long as doubles wait for anything.

use std::error::Error;
use std::path::Path;

use tests::frontend::{Frontend, Wants};
use tests::guest::memory::Ram;
use tests::guest::rng::Rng;
use tests::machine::{QUEUE_SIZE, RAM_BYTES};
use tests::wait;

/// Requests before the silence, so that everything that is set up late is there.
const REQUESTS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).ok_or("usage: idle-frontend SOCKET")?;
    let mut frontend = Frontend::session(Path::new(&socket), &Ram::new(RAM_BYTES), Wants::default())?;
    let mut rng = Rng::new(frontend.start_new(0, QUEUE_SIZE)?);
    for _ in 0..REQUESTS {
        rng.fill(64)?;
    }
    println!("idle");
    wait::closed(&frontend, wait::deadline());
    Ok(())
}
