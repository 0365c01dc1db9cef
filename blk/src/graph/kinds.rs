//! The kinds of volumes there are: a line for each, which stands in its own file.
//!
//! Apart from what a kind is ([`super::registry`]), so that a translator knows nothing of the others.

use super::registry::Kind;
use crate::{debug, features, storage};

/// All of them, leaves first, then as they are called.
pub static KINDS: &[&Kind] = &[
    &storage::file::KIND,
    &storage::mem::KIND,
    &storage::null::KIND,
    &debug::delay_gen::KIND,
    &debug::error_gen::KIND,
    &debug::io_stats::KIND,
    &debug::trace::KIND,
    &features::crypt::KIND,
    &features::map::KIND,
    &features::offset::KIND,
    &features::quiesce::KIND,
    &features::read_only::KIND,
    &features::throttle::KIND,
];
