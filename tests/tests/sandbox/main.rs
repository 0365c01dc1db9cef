//! The sandbox: what daemons can still do, and what the documents say of it.

mod document;
mod forbidden;
mod missing;
mod needed;
mod standing;
mod trace;
mod without;
