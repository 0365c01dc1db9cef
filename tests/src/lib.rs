//! Doubles of everything that stands around a daemon: the guest, the front-end, the process it runs in.
//!
//! ```text
//!  guest::{rng, blk, console}   typed drivers            frontend   plays the VMM on a real socket
//!  guest::ring                  small verbs over a ring   daemon     starts, watches and ends the process
//!  guest::{split, packed}       the formats behind it     machine    the three joined: one call to a running device
//!  guest::{raw, raw_packed}     the same memory, lying
//!  guest::memory                RAM in memfds             event, wait, random
//!  dirty                        logs of written pages, and what was written
//!  restart                     daemons that are killed under verified I/O, and the soak
//!  oracle                      what a disk may hold, whatever crashed
//!  slow, power                 disks that answer when they are told to, fail, or lose their power (over fuse)
//!  served, echo                 a device of the test's own, in its process
//!  vmm, metal                   `outboard run` as a process, and the bare-metal guest it runs
//!  kills                        a Linux guest that checks its I/O while what serves it is killed
//!  liar                         a daemon whose answers are wrong
//!  systemd                      a real one, in namespaces of its own
//!  fuzz                         bodies of the fuzz targets
//! ```
//!
//! Unit tests, scenarios, fuzzers and benches all use these. Whatever the other side may do wrong comes back
//! as an error value with a deadline behind it; a mistake of the test itself (an address outside the guest's
//! RAM, a ring filled over its size) panics with a sentence. Nothing here sleeps: every wait is for an event.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod dirty;
pub mod echo;
pub mod event;
pub mod fio;
pub mod frontend;
pub mod fuse;
pub mod fuzz;
pub mod guest;
pub mod kills;
pub mod liar;
pub mod machine;
pub mod manager;
pub mod metal;
pub mod oracle;
pub mod power;
pub mod random;
pub mod restart;
pub mod resume;
pub mod served;
pub mod slow;
pub mod systemd;
pub mod vmm;
pub mod wait;
