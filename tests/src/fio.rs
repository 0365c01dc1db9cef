//! fio in a Linux guest: its disk written and verified, while the graph under it is changed.
//!
//! In: how often. Out: a script for the guest, and whether what it said is good. Two jobs at once, each on its half of
//! the disk: random writes of 4 KiB and of 64 KiB, sixteen in flight, past the guest's cache, a checksum in each block;
//! every block is read back while the job goes on ([`BACKLOG`] blocks behind) and once more at its end.
//! Meanwhile [`change`] is the operator, who changes the graph of five layers ([`crate::restart::graph`]) without a pause.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::daemon::{Daemon, Launch};
use crate::restart::graph::{self, Changes};

/// Where Debian's package has it.
pub const PROGRAM: &str = "/usr/bin/fio";
/// What the guest loads.
pub const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Blocks that are written before they are verified.
const BACKLOG: u32 = 32;
/// Of the disk.
const SECTORS: u64 = 16 << 11;

/// What the guest runs: so many rounds over the whole disk.
pub fn script(rounds: u32) -> String {
    let job = |name: &str, block: &str, offset: &str| {
        format!("--name={name} --bs={block} --offset={offset} --size=50% --rw=randwrite")
    };
    format!(
        "dmesg -c >/dev/null
        {PROGRAM} --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --fsync=64 --randseed=1 --loops={rounds} \
            --verify=crc32c --verify_fatal=1 --verify_backlog={BACKLOG} --do_verify=1 --output-format=terse \
            --output=/tmp/fio {} {} >/tmp/said 2>&1
        echo fio $?
        cat /tmp/said; tr ';' ' ' </tmp/fio | cut -d ' ' -f 3,5,6,8,47,49 | sed 's/^/fio job, error, KiB and IOPS read, written: /'
        dmesg -r | grep '^<[0-4]>' | grep -v 'hrtimer: interrupt took' | sed 's/^/BAD kernel: /'",
        job("small", "4k", "0"),
        job("large", "64k", "50%"),
    )
}

/// Both jobs ended well.
///
/// # Panics
/// They did not.
pub fn assert_good(said: &str) {
    let well = said.lines().any(|line| line == "fio 0");
    assert!(well && !said.contains("BAD") && !said.contains("verify:"), "{said}");
}

/// A daemon that serves 16 MiB over a graph of five layers, which can be changed.
///
/// # Panics
/// It does not serve.
pub fn daemon() -> Daemon {
    let served = graph::launch(Launch::new("outboard-blk"), SECTORS).serve();
    served.unwrap_or_else(|e| panic!("outboard-blk: {e}"))
}

/// Changes the graph of [`daemon`], one change after the other, until `stop`; how often since the guest began to write.
///
/// # Panics
/// A change is refused.
pub fn change(daemon: &Daemon, stop: &AtomicBool) -> usize {
    let changes = Changes::new(daemon.dir(), SECTORS);
    let image = daemon.dir().join(graph::IMAGES[0]);
    let written = || std::fs::metadata(&image).and_then(|data| data.modified()).ok();
    let (before, mut count) = (written(), 0);
    for nth in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        changes.make(nth).unwrap_or_else(|refused| panic!("{refused}"));
        count += usize::from(written() != before);
    }
    count
}
