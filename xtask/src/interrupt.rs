//! Ctrl-C, asked for rather than suffered.
//!
//! [`watch`] turns SIGINT, SIGTERM and SIGHUP into a flag that every wait of [`crate::process`] looks at, so that a
//! run unwinds: children are ended and temporary directories removed by the guards that own them. A second signal ends
//! the program at once; its children then die by their parent-death signal. A program that never calls [`watch`] (a
//! test binary) keeps the default behaviour.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on the first signal sets the flag and the second one ends the program.
pub fn watch() -> io::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_default(signal, Arc::clone(asked))?;
        flag::register(signal, Arc::clone(asked))?;
    }
    Ok(())
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed))
}
