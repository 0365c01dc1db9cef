//! Deaths on the way of a request (K01 to K07): between two stores, or between the host's work and the next store.

use std::fs::File;

use tests::random::Random;
use tests::restart::blk::BlkLoad;
use tests::restart::{Load, Rig};

use crate::{Cell, Story, armed};

/// Dies once at each of these points, with requests in flight.
#[track_caller]
fn dies_at(cell: Cell, points: &[&str]) -> Story {
    let mut story = Story::begin(cell, points);
    story.dies(|story| story.load.submit());
    story
}

fn k01_killed_after_pop_before_the_mark(cell: Cell) {
    dies_at(cell, &["queue.popped"]).ends_well();
}

fn k02_killed_after_the_mark_before_host_io(cell: Cell) {
    dies_at(cell, &["queue.marked"]).ends_well();
}

/// The kernel has the request, and the daemon does not know its answer.
fn k03_killed_during_host_io(cell: Cell) {
    dies_at(cell, &["engine.submitted", "blk.submitted"]).ends_well();
}

/// Bytes went to the host, or to the guest, and no used entry says so. Of a console one chain may come again.
fn k04_killed_after_io_before_the_used_entry_disk(cell: Cell) {
    dies_at(cell, &["blk.done"]).ends_well();
}

fn k04_killed_after_io_before_the_used_entry_bytes(cell: Cell) {
    dies_at(cell, &["rng.filled"]).ends_well();
}

fn k04_killed_after_io_before_the_used_entry_streams(cell: Cell) {
    let story = dies_at(cell, &["console.written", "console.read"]);
    let (came_again, said) = (story.load.repeated(), story.rig.daemon.stderr());
    assert!((1..=2).contains(&came_again), "{cell:?}: {came_again} chains came again in two deaths");
    assert!(said.contains("served again"), "{cell:?}: it does not say so: {said}");
    story.ends_well();
}

fn k05_killed_after_the_used_entry_before_the_index(cell: Cell) {
    dies_at(cell, &["ring.element_written"]).ends_well();
}

fn k06_killed_after_the_index_before_the_clear_or_the_call(cell: Cell) {
    dies_at(cell, &["ring.published", "queue.cleared"]).ends_well();
}

/// The flush that is answered is the one that was made again.
fn k07_killed_during_a_flush(cell: Cell) {
    dies_in_one(cell, BlkLoad::submit_flush);
}

/// Of several ranges some are zeros then and some are not yet.
fn k07_killed_during_zeroes(cell: Cell) {
    dies_in_one(cell, BlkLoad::submit_zeroes);
}

fn k07_killed_during_discards(cell: Cell) {
    dies_in_one(cell, BlkLoad::submit_discard);
}

/// With nothing else under way.
fn dies_in_one(cell: Cell, submit: fn(&mut BlkLoad)) {
    let (launch, points) = armed(cell, &["blk.submitted", "blk.done"]);
    let mut rig = Rig::start(launch, cell.mode, cell.wants(), cell.device.queues());
    let rings = rig.start_rings();
    let mut load = cell.device.disk(&rig, rings, Random::from_env());
    for point in points {
        load.submit();
        load.drain().unwrap();
        let watch = rig.watch();
        File::create(&point).unwrap();
        submit(&mut load);
        assert!(watch.wait(), "{cell:?}: it did not die of it");
        rig.gone(&mut load).and_then(|()| rig.recover(&mut load)).unwrap();
        assert_eq!(load.outstanding(), 1, "it was answered before it was done");
        load.drain().and_then(|()| load.check()).unwrap_or_else(|fault| panic!("{cell:?}: {fault}"));
    }
}

crate::matrix! {
    blk Blk: [
        k01_killed_after_pop_before_the_mark, k02_killed_after_the_mark_before_host_io, k03_killed_during_host_io,
        k04_killed_after_io_before_the_used_entry_disk, k05_killed_after_the_used_entry_before_the_index,
        k06_killed_after_the_index_before_the_clear_or_the_call, k07_killed_during_a_flush,
    ],
    rng Rng: [
        k01_killed_after_pop_before_the_mark, k02_killed_after_the_mark_before_host_io,
        k04_killed_after_io_before_the_used_entry_bytes, k05_killed_after_the_used_entry_before_the_index,
        k06_killed_after_the_index_before_the_clear_or_the_call,
    ],
    console Console: [
        k01_killed_after_pop_before_the_mark, k02_killed_after_the_mark_before_host_io,
        k04_killed_after_io_before_the_used_entry_streams, k05_killed_after_the_used_entry_before_the_index,
        k06_killed_after_the_index_before_the_clear_or_the_call,
    ],
}

/// What enciphers has no zeroes to offer, and what it discarded reads as anything.
mod zeroes {
    use super::{k07_killed_during_discards, k07_killed_during_zeroes};

    crate::matrix! { blk Blk image: [k07_killed_during_zeroes, k07_killed_during_discards] }
}
