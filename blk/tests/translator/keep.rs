//! `features/keep`: what the guest discards stays where it is, for whoever wants it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outboard_blk::call::Call;
use outboard_blk::graph::registry::Kind;
use outboard_blk::graph::{Host, Layer, Sees, Step, Volume};
use outboard_blk::op::{Keeps, OpKind, OpSet};
use serde_json::{Map, Value};

pub static KIND: Kind = Kind {
    name: "features/keep",
    about: "What is below, but nothing that is discarded goes away",
    subvolumes: 1..=1,
    options: &[],
    prepare: None,
    make: |_| Ok(Arc::new(Keep::default())),
};

/// The half that all workers share.
#[derive(Clone, Debug, Default)]
struct Keep(Arc<AtomicU64>);

impl Volume for Keep {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        below.first().copied().ok_or_else(|| "it stands on nothing; give it a subvolume".to_owned())
    }

    fn sees(&self) -> Sees {
        Sees { down: OpSet::of(&[OpKind::Discard]), up: OpSet::NONE }
    }

    fn layer(&self) -> std::io::Result<Box<dyn Layer>> {
        Ok(Box::new(self.clone()))
    }

    fn state(&self) -> Map<String, Value> {
        Map::from_iter([("kept".to_owned(), self.0.load(Ordering::Relaxed).into())])
    }
}

/// The half of one worker: it has nothing of its own to remember.
impl Layer for Keep {
    fn submit(&mut self, call: Call, _: &mut Host<'_>) -> Step {
        self.0.fetch_add(1, Ordering::Relaxed);
        Step::Up(call, Ok(()))
    }
}
