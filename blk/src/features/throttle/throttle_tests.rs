use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::graph::Graph;
use crate::testing::{Disk, Ram, made, stack, values};

const BURST: Duration = Duration::from_millis(10);

fn graph(ram: &Ram, throttle: Throttle) -> Graph {
    stack(vec![ram.volume(), Box::new(throttle)])
}

fn flush(disk: &mut Disk) -> u64 {
    disk.begin(Op::Flush, &[])
}

#[test]
fn who_is_over_the_limit_waits_in_order() {
    let ram = Ram::new(1 << 20, 512);
    let graph = graph(&ram, Throttle::new(None, Some(1000), BURST));
    let mut disk = Disk::new(&graph);
    let begin = Instant::now();
    let discard = |at: u64| Op::Discard { offset: at * 512, bytes: 512 };
    let calls: Vec<u64> = (0..100).map(|at| disk.begin(discard(at), &[])).collect();
    calls.into_iter().for_each(|call| assert_eq!(disk.wait(call).outcome, Ok(())));
    // 10 ms of burst and one more are free.
    assert!(begin.elapsed() >= Duration::from_millis(89), "{:?}", begin.elapsed());
    assert!(ram.places().is_sorted());
    let waited = graph.part(1).unwrap().volume.state()["waited"].as_u64().unwrap();
    assert!((1..=89).contains(&waited), "{waited}");
}

#[test]
fn bytes_are_those_that_move() {
    let ram = Ram::new(1 << 20, 512);
    let graph = graph(&ram, Throttle::new(Some(1 << 20), None, BURST));
    let mut disk = Disk::new(&graph);
    disk.run(Op::Discard { offset: 0, bytes: 1 << 20 }).unwrap();
    disk.run(Op::Extents { offset: 0, bytes: 1 << 20 }).unwrap();
    let begin = Instant::now();
    disk.run(Op::Zeroes { offset: 0, bytes: 64 << 10, unmap: false }).unwrap();
    disk.run(Op::Flush).unwrap();
    // 64 KiB are a sixteenth of a second, less the burst.
    assert!(begin.elapsed() >= Duration::from_millis(52), "{:?}", begin.elapsed());
}

#[test]
fn volumes_of_a_group_get_together_what_one_would() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disks");
    let text = path.to_str().unwrap();
    let values = values(OPTIONS, &[("ops", "1000"), ("burst", "10ms"), ("group", text)]).unwrap();
    let ram = Ram::new(1 << 20, 512);
    let graphs = [0, 1].map(|_| graph(&ram, made(&KIND, &values, Throttle::make).unwrap()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut disks = graphs.each_ref().map(Disk::new);
    let begin = Instant::now();
    let calls: Vec<_> = (0..100).map(|at| flush(&mut disks[at % 2])).collect();
    for (at, call) in calls.into_iter().enumerate() {
        assert_eq!(disks[at % 2].wait(call).outcome, Ok(()));
    }
    assert!(begin.elapsed() >= Duration::from_millis(88), "{:?}", begin.elapsed());
}

#[test]
fn a_queue_that_stops_does_not_wait() {
    for (how, outcome) in [(Release::Go, Ok(())), (Release::Cancel, Err(Errno::CANCELED))] {
        let graph = graph(&Ram::new(1 << 20, 512), Throttle::new(Some(1), None, BURST));
        let mut disk = Disk::new(&graph);
        disk.run(Op::Zeroes { offset: 0, bytes: 512, unmap: false }).unwrap();
        let held = flush(&mut disk);
        assert!(disk.done(held).is_none());
        disk.stop(how);
        assert_eq!(disk.done(held).unwrap().outcome, outcome);
    }
}

#[test]
fn what_is_no_limit_or_no_group_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other");
    std::fs::write(&path, "something else").unwrap();
    let group = path.to_str().unwrap();
    let refused = |options: &[(&str, &str)]| {
        made(&KIND, &values(OPTIONS, options).unwrap(), Throttle::make).unwrap_err()
    };
    assert_eq!(refused(&[]), Bad::volume("it limits nothing; add option bytes or option ops"));
    let told =
        "cannot use it: it is a file of something else, of 14 bytes; give a file that this user may write";
    assert_eq!(refused(&[("ops", "1"), ("group", group)]), Bad::option("group", told).with_code(1));
    assert_eq!(std::fs::read(&path).unwrap(), b"something else");
}
