//! fio in a Debian guest writes a disk of five layers by several jobs at once, and verifies all it reads, while the graph
//! under it changes all the time; under QEMU, a front-end that is not ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::fio;
use xtask::frontend::Guest;
use xtask::packages;

/// The guest boots, works and powers off within this time, on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Changes that a run has to have seen.
const LEAST: usize = 4;

#[test]
fn qemu_fio_verifies_all_it_reads_while_the_graph_changes() {
    packages::ensure().and_then(|()| packages::ensure_fio()).unwrap();
    let daemon = fio::daemon();
    let guest = Guest::new(&fio::MODULES, &fio::script(1)).program(fio::PROGRAM.as_ref()).cpus(2);
    let (guest, stop) = (guest.blk(daemon.socket(), 2), AtomicBool::new(false));
    let (said, count) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| fio::change(&daemon, &stop));
        let said = guest.run(LIMIT);
        stop.store(true, Ordering::Relaxed);
        (said, changing.join().unwrap())
    });
    let said = said.unwrap();
    println!("{count} changes meanwhile; the guest: {said}");
    fio::assert_good(&said);
    assert!(count >= LEAST, "{count} changes");
    assert_eq!(daemon.terminate().code, Some(0));
}
