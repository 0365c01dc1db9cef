//! The worked example of `docs/translators.md`: it is what stands there, and it does what is said of it.

mod keep;

use backends::memory::own::Buffer;
use backends::opened::Opened;
use outboard_blk::graph::plan::Plan;
use outboard_blk::graph::registry::Purpose;
use outboard_blk::graph::runner::Runner;
use outboard_blk::graph::volfile;
use outboard_blk::op::{Op, OpKind};
use outboard_blk::storage::mem;

const MANUAL: &str = include_str!("../../../docs/translators.md");
const EXAMPLE: &str = include_str!("keep.rs");

/// What stands in the manual between this line and the end of its block.
fn block(begin: &str) -> &'static str {
    let behind = MANUAL.split_once(begin).unwrap().1;
    behind.split_once("\n```").unwrap().0
}

#[test]
fn the_example_is_what_the_manual_has() {
    assert_eq!(block("```rust\n").trim_end(), EXAMPLE.trim_end());
}

#[test]
fn the_example_keeps_what_is_discarded() {
    let texts = volfile::parse(block("```disk.vol\n")).unwrap();
    let plan = Plan::of(texts, &[&mem::KIND, &keep::KIND]).unwrap();
    let mut opened = Opened::default();
    plan.prepare(Purpose::Serve, &mut opened).unwrap();
    let (kept, _made) = opened.into_kept();
    let graph = plan.graph(&kept).unwrap();
    assert!(graph.disk().ops().has(OpKind::Discard));

    let mut disk = Runner::new(&graph).unwrap();
    let mut buffer = Buffer::new(4096).unwrap();
    buffer.bytes_mut().fill(7);
    let data = [buffer.segment(4096)];
    disk.run(Op::Write { offset: 8192, bytes: 4096, fua: false }, &data).unwrap();
    disk.run(Op::Discard { offset: 8192, bytes: 4096 }, &[]).unwrap();
    buffer.bytes_mut().fill(0);
    disk.run(Op::Read { offset: 8192, bytes: 4096 }, &[buffer.segment(4096)]).unwrap();
    assert!(buffer.bytes_mut().iter().all(|byte| *byte == 7));
    assert_eq!(graph.part(graph.top()).unwrap().volume.state()["kept"], 1);
}
