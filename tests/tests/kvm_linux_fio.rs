//! The same as `qemu_fio` under our VMM. Run as `kvm_linux_boot` is.

mod linux;

use std::sync::atomic::{AtomicBool, Ordering};

use linux::{can_run, guest, powered_off};
use tests::fio;
use xtask::packages;

/// Changes that a run has to have seen.
const LEAST: usize = 4;

#[test]
fn kvm_linux_fio_verifies_all_it_reads_while_the_graph_changes() {
    if !can_run() {
        return;
    }
    packages::ensure_fio().unwrap();
    let (daemon, stop) = (fio::daemon(), AtomicBool::new(false));
    let script = format!("{}\npoweroff -f", fio::script(1));
    let run = guest(&fio::MODULES, &[fio::PROGRAM], &script).option("--cpus", "2");
    let vmm = run.device("blk", daemon.socket()).start();
    let (ended, count) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| fio::change(&daemon, &stop));
        let ended = powered_off(vmm);
        stop.store(true, Ordering::Relaxed);
        (ended, changing.join().unwrap())
    });
    let said: Vec<&str> = ended.serial.lines().map(str::trim_end).collect();
    println!("{count} changes meanwhile; the guest: {}", said.join(" | "));
    fio::assert_good(&said.join("\n"));
    assert!(count >= LEAST, "{count} changes");
}
