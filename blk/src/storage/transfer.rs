//! From the host's answer to what it means: go on, again, or over.
//!
//! In: a call that an engine operation was begun for, and the answer. Out: what comes next. The host may move less than it
//! was asked for, or be interrupted; whoever sent the call sees all or an error. Promises: `Ok` means all of it.
//! Refuses: bytes past the end of what is stored (an image that was cut short under us), by `EIO`; a host that says
//! "again" for ever must not hold the call for ever.

use rustix::io::Errno;

use crate::call::Call;
use crate::graph::Outcome;

/// Answers without progress after which a call fails.
const MAX_REPEATS: u8 = 100;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do, from [`crate::call::Transfer::done`] on.
    Again,
    /// It went like this.
    Over(Outcome),
}

/// What the answer to an operation that moves data means, for a call of `bytes`.
pub fn after(call: &mut Call, bytes: u64, answer: Result<u32, Errno>) -> Next {
    let transfer = call.transfer();
    match answer {
        Err(Errno::INTR | Errno::AGAIN) if transfer.repeats < MAX_REPEATS => {
            transfer.repeats = transfer.repeats.saturating_add(1);
            Next::Again
        }
        Err(errno) => Next::Over(Err(errno)),
        Ok(moved) => {
            transfer.done = transfer.done.saturating_add(moved.into());
            transfer.repeats = 0;
            if transfer.done >= bytes {
                return Next::Over(Ok(()));
            }
            // No error and no progress: the end of what is stored.
            if moved == 0 {
                return Next::Over(Err(Errno::IO));
            }
            call.advance(moved as usize);
            Next::Again
        }
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
