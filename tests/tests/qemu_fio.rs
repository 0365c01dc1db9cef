//! fio in a Debian guest writes its disk by several jobs at once and verifies all it reads, under QEMU, a front-end that
//! is not ours.

use std::time::Duration;

use tests::fio;
use tests::machine::BLK;
use xtask::frontend::Guest;
use xtask::packages;

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn qemu_fio_verifies_all_it_reads() {
    packages::ensure().and_then(|()| packages::ensure_fio()).unwrap();
    let daemon = BLK.launch().serve().unwrap();
    let guest = Guest::new(&fio::MODULES, &fio::script(2)).program(fio::PROGRAM.as_ref()).cpus(2);
    let said = guest.blk(daemon.socket(), 2).run(LIMIT).unwrap();
    println!("{said}");
    fio::assert_good(&said);
}
