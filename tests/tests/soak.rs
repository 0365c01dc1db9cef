//! The short form of `cargo xtask soak restart`: a few kills of each daemon, in every way.

use tests::guest::format::RingKind;
use tests::random::Random;
use tests::restart::Mode;
use tests::restart::soak::{Device, Plan, run};

/// Kills of each combination: as many as a few seconds hold.
const KILLS: u32 = 12;

fn soak(device: Device, mode: Mode) {
    let mut random = Random::from_env();
    for rings in [RingKind::Split, RingKind::Packed] {
        let plan = Plan { device, rings, mode, kills: KILLS, seed: random.next_u64() };
        let tally = run(plan).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(tally.kills(), KILLS, "{tally}");
    }
}

#[test]
fn soak_blk_with_its_keeper() {
    soak(Device::Blk, Mode::Keeper);
}

#[test]
fn soak_blk_reconnected() {
    soak(Device::Blk, Mode::Reconnect);
}

#[test]
fn soak_blk_over_a_graph_with_its_keeper() {
    soak(Device::BlkGraph, Mode::Keeper);
}

#[test]
fn soak_blk_over_a_graph_reconnected() {
    soak(Device::BlkGraph, Mode::Reconnect);
}

#[test]
fn soak_rng_with_its_keeper() {
    soak(Device::Rng, Mode::Keeper);
}

#[test]
fn soak_rng_reconnected() {
    soak(Device::Rng, Mode::Reconnect);
}

#[test]
fn soak_console_with_its_keeper() {
    soak(Device::Console, Mode::Keeper);
}

#[test]
fn soak_console_reconnected() {
    soak(Device::Console, Mode::Reconnect);
}
