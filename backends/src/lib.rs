//! What every Outboard daemon is made of, except its device.
//!
//! Requests go one way, and each arrow is one file that calls nothing to its left:
//!
//! ```text
//! descriptor → memory → ring → chain (cursor) → queue → <device> → engine / host → queue → notify
//! ```
//! Three verbs carry each of them: [`queue::Queue::next`], [`queue::Queue::complete`] and
//! [`queue::Queue::abandon`]. Beside the data path, [`proto`] speaks vhost-user, [`session`] decides what a
//! message means, [`server`] carries it out, [`worker`] runs the queues and, beside them, [`task`]s, and [`daemon`] is
//! the way from the command line ([`options`], and [`config`] for a file of them) to all that, by way of what it has to
//! open first ([`opened`]); [`keeper`] holds the front-end while worker processes come and go, and [`control`]
//! answers the operator. A daemon adds a [`device::Device`] and a [`device::Handler`]; `README.md` of this
//! crate builds one.
//!
//! `unsafe` lives in `memory`, `sys` and `engine` only.

#![deny(missing_docs)]

pub mod chain;
mod clock;
pub mod config;
pub mod control;
pub mod cpus;
pub mod cursor;
pub mod daemon;
pub mod descriptor;
pub mod device;
pub mod engine;
pub mod failpoint;
pub mod inflight;
pub mod keeper;
pub mod kept;
pub mod limit;
pub mod log;
pub mod memory;
pub mod notify;
pub mod opened;
pub mod options;
mod order;
mod passing;
mod pause;
pub mod proto;
pub mod queue;
pub mod ring;
pub mod sandbox;
pub mod server;
pub mod session;
pub mod stats;
pub mod sys;
pub mod task;
pub mod worker;

#[cfg(test)]
mod testing;
