//! The keeper: a worker may die at any moment, and its front-end notices nothing but time.
//!
//! `messages`: at each message of a session. `sessions`: what a new worker is told. `processes`: who lives when, and
//! how both end. `console`: what it has open on the host. Restarts under load of many kinds are `cargo xtask soak restart`'s.

mod console;
mod fence;
mod messages;
mod processes;
mod sessions;
mod store;

use backends::proto::ProtocolFeatures;
use tests::frontend::Wants;
use tests::guest::format::RingKind;

/// All but tracking: the keeper does that for such a front-end.
fn untracked(rings: RingKind) -> Wants {
    let protocol = ProtocolFeatures::all().difference(ProtocolFeatures::INFLIGHT_SHMFD);
    Wants { protocol: Some(protocol), ..Wants::on(rings) }
}
