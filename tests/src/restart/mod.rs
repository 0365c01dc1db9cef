//! Daemons that are killed while a guest uses them, and what the guest may notice: nothing but time.
//!
//! ```text
//!  load    verified I/O that goes on for ever: what is outstanding, what came back, whether it was right
//!    blk      reads, writes and flushes of two queues, checked by the disk oracle
//!    graph    the same over a graph of five layers
//!    rng      lengths, and that no bytes come twice
//!    console  a stream each way, byte by byte; what was repeated is counted
//!  rig     the daemon with its front-end; kills the one that serves, and brings the session back
//!  soak    many kills, in phases that a seed chooses, and the account of them
//! ```
//! What is shown by all of it: every head comes back exactly once (N1), what was completed is there (N2), nothing old
//! returns (N3), no interrupt is owed (N4: loads wait for interrupts only), counts are as before (N5).

pub mod blk;
pub mod console;
pub mod graph;
pub mod load;
pub mod rig;
pub mod rng;
pub mod soak;
mod stream;

pub use load::{Fault, Load};
pub use rig::{Mode, Rig, Watch, remembered_base};
