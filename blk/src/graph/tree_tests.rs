use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::graph::build::Part;
use crate::graph::runner::Runner;
use crate::graph::{Sees, Volume};
use crate::op::{Keeps, OpSet};

/// Says what passes it; a leaf answers at once.
#[derive(Clone, Debug)]
struct Witness {
    name: &'static str,
    sees: Sees,
    said: Arc<Mutex<Vec<String>>>,
    hold: bool,
    last: Arc<AtomicU64>,
}

impl Volume for Witness {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        Ok(below.first().copied().unwrap_or(Keeps::plain(1 << 20, 512)))
    }
    fn sees(&self) -> Sees {
        self.sees
    }
    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(WitnessLayer { volume: self.clone(), held: Vec::new() }))
    }
}

struct WitnessLayer {
    volume: Witness,
    held: Vec<Call>,
}

impl WitnessLayer {
    fn say(&self, what: &str) {
        self.volume.said.lock().unwrap().push(format!("{} {what}", self.volume.name));
    }
}

impl Layer for WitnessLayer {
    fn submit(&mut self, mut call: Call, host: &mut Host<'_>) -> Step {
        self.say("down");
        if self.volume.name == "leaf" {
            return Step::Up(call, Ok(()));
        }
        if self.volume.hold && !host.is_stopping(call.queue()) {
            self.held.push(call);
            return Step::Held;
        }
        call.push(self.volume.last.fetch_add(1, Ordering::Relaxed));
        Step::Down(call)
    }
    fn complete(&mut self, mut call: Call, outcome: Outcome, _: &mut Host<'_>) -> Step {
        self.say(&format!("up {}", call.pop()));
        Step::Up(call, outcome)
    }
    fn release(&mut self, queue: u16, how: Release, host: &mut Host<'_>) {
        for call in self.held.extract_if(.., |call| call.queue() == queue) {
            host.go(match how {
                Release::Go => Step::Down(call),
                Release::Cancel => Step::Up(call, Err(Errno::CANCELED)),
            });
        }
    }
}

fn witness(name: &'static str, sees: Sees, said: &Arc<Mutex<Vec<String>>>) -> Witness {
    Witness { name, sees, said: Arc::clone(said), hold: false, last: Arc::default() }
}

fn line(witnesses: Vec<Witness>) -> Graph {
    let count = u16::try_from(witnesses.len()).unwrap();
    let parts = (0..count).zip(witnesses).map(|(number, witness)| Part {
        name: witness.name.into(),
        kind: "debug/witness",
        volume: Arc::new(witness),
        subvolumes: number.checked_sub(1).into_iter().collect(),
    });
    Graph::new(parts.collect()).unwrap()
}

const READ: Op = Op::Read { offset: 0, bytes: 512 };

#[test]
fn a_call_passes_each_volume_both_ways_in_order() {
    let said = Arc::default();
    let volumes = ["leaf", "middle", "top"].map(|name| witness(name, Sees::BOTH, &said));
    let mut runner = Runner::new(&line(volumes.into())).unwrap();
    assert_eq!(runner.run(READ, &[]), Ok(()));
    assert_eq!(*said.lock().unwrap(), ["top down", "middle down", "leaf down", "middle up 0", "top up 0"]);
}

#[test]
fn who_sees_nothing_of_an_operation_is_not_asked() {
    let said = Arc::default();
    let writes = Sees { down: OpSet::of(&[OpKind::Write]), up: OpSet::NONE };
    let volumes = vec![
        witness("leaf", Sees::BOTH, &said),
        witness("nothing", Sees::NOTHING, &said),
        witness("writes", writes, &said),
    ];
    let mut runner = Runner::new(&line(volumes)).unwrap();
    assert_eq!(runner.run(READ, &[]), Ok(()));
    assert_eq!(runner.run(Op::Write { offset: 0, bytes: 512, fua: false }, &[]), Ok(()));
    assert_eq!(*said.lock().unwrap(), ["leaf down", "writes down", "leaf down"]);
}

#[test]
fn what_is_held_goes_on_or_comes_up_when_its_queue_stops() {
    for (how, outcome) in [(Release::Go, Ok(())), (Release::Cancel, Err(Errno::CANCELED))] {
        let said = Arc::default();
        let hold = Witness { hold: true, ..witness("hold", Sees::DOWN, &said) };
        let mut runner = Runner::new(&line(vec![witness("leaf", Sees::BOTH, &said), hold])).unwrap();
        runner.begin(READ, &[]);
        assert!(runner.finished().is_none());
        runner.stop(how);
        assert_eq!(runner.finished().unwrap().0, outcome, "{how:?}");
        // It begins again.
        runner.begin(READ, &[]);
        assert!(runner.finished().is_none());
        runner.stop(how);
        assert!(runner.finished().is_some());
    }
}

#[test]
fn parts_that_are_no_tree_are_refused_by_name() {
    let said = Arc::default();
    let part = |name, subvolumes: &[u16]| Part {
        name,
        kind: "debug/witness",
        volume: Arc::new(witness("x", Sees::BOTH, &said)),
        subvolumes: subvolumes.to_vec(),
    };
    let refused = |parts: Vec<(&str, &[u16])>| {
        let parts = parts.into_iter().map(|(name, below)| part(name.to_owned(), below));
        Graph::new(parts.collect()).unwrap_err().to_string()
    };
    assert!(refused(vec![("a", &[0])]).starts_with("volume a: its subvolume a comes after it"));
    assert!(
        refused(vec![("a", &[]), ("b", &[0]), ("c", &[0, 1])]).contains("subvolume a is used by b already")
    );
    assert!(refused(vec![("a", &[]), ("b", &[])]).starts_with("volume a: nothing uses it"));
    assert!(refused(vec![]).contains("no volume at all"));
}
