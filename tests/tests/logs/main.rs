//! Logs as their readers see them: text, JSON, the journal, a file; and what must not stop a daemon or stand in them.

mod changes;
mod classes;
mod documented;
mod files;
mod formats;
mod guest_data;
mod journal;
mod stuck;

use serde_json::Value;
use tests::guest::ring::Ring;
use tests::machine::{BLK, CONSOLE, Device, Machine, QUEUE_SIZE, RNG};
use tests::wait;

/// The daemons.
const DAEMONS: [Device; 3] = [RNG, BLK, CONSOLE];

/// Each line as the object that it must be.
fn objects(log: &str) -> Vec<Value> {
    let object = |line: &str| match serde_json::from_str(line) {
        Ok(Value::Object(object)) => Value::Object(object),
        other => panic!("{line:?} is no object: {other:?}"),
    };
    log.lines().map(object).collect()
}

/// The guest breaks the ring of its request queue.
fn break_ring(machine: &mut Machine) -> Ring {
    let ring = machine.start_queue().unwrap();
    ring.raw().set_avail_idx(QUEUE_SIZE + 1);
    ring.kick();
    assert!(ring.wait_broken());
    ring
}
