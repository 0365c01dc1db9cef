//! Deaths while the front-end says something (K08): before the message does anything, and after it did, unanswered.
//!
//! With a keeper nobody notices. Where the connection goes with the daemon, a new session from zero serves; no ring is
//! ever half started: one that was not started does not touch what the guest put there.

use std::fs::File;

use tests::restart::{Mode, Rig};

use crate::{Cell, Story, armed, disarm};

/// All that a front-end says until its rings are served.
const HANDSHAKE: [&str; 15] = [
    "GetFeatures",
    "GetProtocolFeatures",
    "SetProtocolFeatures",
    "SetOwner",
    "SetFeatures",
    "SetMemTable",
    "GetInflightFd",
    "SetInflightFd",
    "SetVringNum",
    "SetVringBase",
    "SetVringAddr",
    "SetVringErr",
    "SetVringCall",
    "SetVringKick",
    "SetVringEnable",
];

fn k08_killed_during_the_handshake(cell: Cell) {
    for message in HANDSHAKE {
        for moment in ["before", "after"] {
            let (launch, points) = armed(cell, &[&format!("session.message.{message}.{moment}")]);
            File::create(&points[0]).unwrap();
            let rig = match cell.mode {
                Mode::Keeper => Rig::start(launch, cell.mode, cell.wants(), cell.device.queues()),
                Mode::Reconnect => from_zero(launch, cell),
            };
            Story::of(cell, rig, points).ends_well();
        }
    }
}

/// The first daemon dies of its front-end's first words; the second serves another session.
fn from_zero(launch: tests::daemon::Launch, cell: Cell) -> Rig {
    let mut daemon = launch.args(["--keeper", "off"]).serve().unwrap();
    let first = Rig::try_on(&daemon, cell.wants(), cell.device.queues());
    assert!(first.is_err(), "{cell:?}: it did not die");
    daemon.restart().unwrap();
    Rig::on(daemon, cell.mode, cell.wants(), cell.device.queues())
}

/// Rings are running, and requests in flight.
fn k08_killed_while_rings_stop_and_memory_changes(cell: Cell) {
    for message in ["SetMemTable", "GetVringBase", "SetVringEnable", "GetConfig"] {
        for moment in ["before", "after"] {
            let mut story = Story::begin(cell, &[&format!("session.message.{message}.{moment}")]);
            let watch = story.rig.watch();
            File::create(&story.points[0]).unwrap();
            story.load.submit();
            let said = say(&mut story, message);
            assert!(watch.wait(), "{cell:?}: {message} did not reach it");
            if cell.mode == Mode::Reconnect {
                assert!(said.is_err(), "{cell:?}: {message} was answered by the dead");
            } else {
                said.unwrap_or_else(|error| panic!("{cell:?}: {message}: {error}"));
            }
            // A console may have been about to take what it had shown.
            story.comes_back();
            disarm(&story.points[0]);
            story.ends_well();
        }
    }
}

fn say(story: &mut Story, message: &str) -> Result<(), tests::frontend::FrontendError> {
    let frontend = &mut story.rig.frontend;
    match message {
        "SetMemTable" => frontend.set_mem_table(),
        "SetVringEnable" => frontend.enable(0, true),
        "GetConfig" => frontend.config(0, 8).map(drop),
        _ => {
            let base = frontend.stop(0)?;
            let rings = story.load.rings();
            frontend.start(0, rings[0], base)
        }
    }
}

crate::matrix! {
    blk Blk: [k08_killed_during_the_handshake, k08_killed_while_rings_stop_and_memory_changes],
    rng Rng: [k08_killed_during_the_handshake, k08_killed_while_rings_stop_and_memory_changes],
    console Console: [k08_killed_during_the_handshake, k08_killed_while_rings_stop_and_memory_changes],
}
