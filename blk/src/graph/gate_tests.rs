//! The gate with workers that say what a test has them say.

use backends::kept::Kept;

use super::super::plan::Plan;
use super::*;

fn live(text: &str) -> Live {
    let plan = Plan::parse(text).unwrap();
    let graph = plan.graph(&Kept::default()).unwrap();
    Live::new(plan, graph, Vec::new())
}

fn disk() -> Live {
    live("volume a\ntype storage/null\noption size 1M\nend-volume\n")
}

fn gate() -> (Arc<Gate>, [Place; 2]) {
    let gate = Arc::new(Gate::new(disk()).unwrap());
    let places = [gate.enter().unwrap().0, gate.enter().unwrap().0];
    (gate, places)
}

fn settle(gate: &Gate) -> Option<Settled> {
    gate.settle(Instant::now(), |_| Ok(()))
}

#[test]
fn the_graph_is_another_once_all_have_drained_and_not_before() {
    let (gate, mut places) = gate();
    let (old, next) = (gate.live(), Arc::new(disk()));
    assert!(gate.close(Arc::clone(&next), Instant::now()) && !gate.close(Arc::new(disk()), Instant::now()));
    for place in &mut places {
        assert!(place.is_closed() && settle(&gate).is_none());
        assert!(matches!(place.news(), Some(News::Close(to)) if Arc::ptr_eq(&to, &next)));
        assert!(place.news().is_none());
        place.waits_for(3);
        assert!(settle(&gate).is_none());
        place.waits_for(0);
    }
    let settled = settle(&gate).unwrap();
    assert!(settled.outcome.is_ok() && Arc::ptr_eq(&settled.retired, &old));
    assert!(Arc::ptr_eq(&gate.live(), &next) && gate.deadline().is_none());
    for place in &mut places {
        assert!(!place.is_closed());
        assert!(matches!(place.news(), Some(News::Open(to)) if Arc::ptr_eq(&to, &next)));
    }
}

#[test]
fn who_does_not_drain_in_time_is_told_and_the_old_graph_goes_on() {
    let (gate, [mut one, two]) = gate();
    let (old, began) = (gate.live(), Instant::now());
    assert!(gate.close(Arc::new(disk()), began));
    two.waits_for(0);
    one.waits_for(7);
    assert_eq!(gate.deadline(), Some(began + PATIENCE));
    let settled = gate.settle(began + PATIENCE, |_| panic!("nothing to commit")).unwrap();
    assert!(settled.outcome.unwrap_err().starts_with("7 requests were still under way after 1000 ms"));
    assert!(matches!(one.news(), Some(News::Open(to)) if Arc::ptr_eq(&to, &old)));
    // Late words do no harm.
    one.waits_for(0);
    assert!(settle(&gate).is_none() && gate.close(Arc::new(disk()), Instant::now()));
}

#[test]
fn a_change_that_cannot_be_committed_or_taken_is_none() {
    let (gate, places) = gate();
    let old = gate.live();
    gate.close(Arc::new(disk()), Instant::now());
    places.iter().for_each(|place| place.waits_for(0));
    let settled = gate.settle(Instant::now(), |_| Err("no".into())).unwrap();
    assert_eq!(settled.outcome, Err("no".into()));
    gate.close(Arc::new(disk()), Instant::now());
    places[0].refuse(&io::ErrorKind::OutOfMemory.into());
    assert!(settle(&gate).unwrap().outcome.unwrap_err().contains("a worker cannot take it"));
    assert!(Arc::ptr_eq(&gate.live(), &old));
}

#[test]
fn workers_that_end_or_begin_while_it_is_closed_count() {
    let (gate, [one, two]) = gate();
    gate.close(Arc::new(disk()), Instant::now());
    one.waits_for(0);
    drop(two);
    let (mut late, _) = gate.enter().unwrap();
    assert!(matches!(late.news(), Some(News::Close(_))));
    late.waits_for(0);
    assert!(settle(&gate).unwrap().outcome.is_ok());
}
