//! The host loses its power, again and again: what a guest had flushed is there afterwards, and the rest may be.
//!
//! A guest with two queues writes, reads and flushes a disk that holds unflushed writes back ([`tests::power`]). At the
//! n-th request of the disk, whatever that is, the power goes: requests in flight fail or are never answered, daemon
//! and guest are gone. The next daemon serves what is left to a guest that reads every sector, and the oracle says
//! whether that may be there: {last flushed, every later write} (N2). A driver that does not flush has no cache, so that
//! all it saw completed is there. That a daemon without syncs would be found out is shown by a disk that only says that
//! it syncs.

use std::sync::Arc;

use tests::daemon::{Daemon, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{Blk, OK};
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::power::PowerDisk;
use tests::random::Random;
use tests::restart::blk::{self, BlkLoad};
use tests::restart::{Fault, Load};
use xtask::skip::skip;

const RAM_BYTES: u64 = 32 << 20;
const QUEUE_SIZE: u16 = 64;
const QUEUES: u8 = 2;
const CUTS: u32 = 6;
/// Most requests of the disk before a cut.
const MOST: u64 = 300;
const FEATURE_FLUSH: u64 = 1 << 9;
/// Sectors that are read at once.
const PIECE_SECTORS: u64 = 128;

/// How the disk is driven.
#[derive(Clone, Copy)]
struct Cell {
    rings: RingKind,
    /// The driver flushes.
    cache: bool,
    direct: bool,
}

impl Cell {
    fn wants(self) -> Wants {
        let features = if self.cache { u64::MAX } else { !FEATURE_FLUSH };
        Wants { features, ..Wants::on(self.rings) }
    }

    fn launch(self) -> Launch {
        let launch = blk::launch(Launch::new("outboard-blk"));
        if self.direct { launch.args(["--direct".to_owned()]) } else { launch }
    }
}

/// A guest, and the host it runs on.
struct Host {
    /// Goes before the directory that it is mounted in.
    disk: PowerDisk,
    daemon: Daemon,
    frontend: Frontend,
    load: BlkLoad,
    wants: Wants,
    random: Random,
}

impl Host {
    /// None: this machine cannot have such a disk.
    fn boot(cell: Cell) -> Option<Host> {
        let (launch, mut random) = (cell.launch(), Random::from_env());
        let disk = PowerDisk::over(&launch.dir().join("disk.img"), Random::new(random.next_u64()));
        let disk = disk.map_err(|obstacle| skip("slow-disk", &obstacle)).ok()?;
        let daemon = launch.serve().unwrap();
        let (wants, seed) = (cell.wants(), random.next_u64());
        let (frontend, rings) = session(&daemon, wants);
        let mut load = BlkLoad::new(rings, Random::new(seed), daemon.dir());
        load.write_through(!cell.cache);
        Some(Host { disk, daemon, frontend, load, wants, random })
    }

    /// Traffic until the power goes, and what is left when it is back.
    fn power_cut(&mut self) -> Result<(), Fault> {
        self.load.expect_errors();
        self.disk.cut_in(1 + self.random.below(MOST));
        while !self.disk.is_off() {
            self.load.submit();
            self.load.wait()?;
            assert!(self.load.errors() == 0 || self.disk.is_off(), "requests fail while there is power");
        }
        self.daemon.kill9();
        self.load.power_off()?;
        self.disk.power_on();
        self.daemon.start_again(Vec::new());
        self.daemon.wait_again().unwrap();
        let (frontend, mut rings) = session(&self.daemon, self.wants);
        self.frontend = frontend;
        let mut blk = Blk::new(rings.remove(0));
        let found = read_all(&mut blk);
        rings.insert(0, blk.ring);
        self.load.power_on(rings, &found)
    }
}

fn session(daemon: &Daemon, wants: Wants) -> (Frontend, Vec<Ring>) {
    let ram: Arc<Ram> = Ram::new(RAM_BYTES);
    let mut frontend = Frontend::session(daemon.socket(), &ram, wants).unwrap();
    let rings = (0..QUEUES).map(|index| frontend.start_new(index, QUEUE_SIZE).unwrap()).collect();
    (frontend, rings)
}

fn read_all(blk: &mut Blk) -> Vec<u8> {
    let pieces = (0..blk::SECTORS).step_by(usize::try_from(PIECE_SECTORS).unwrap());
    let read = |sector| blk.read(sector, u32::try_from(PIECE_SECTORS).unwrap() * 512).unwrap();
    let answers = pieces.map(read).inspect(|answer| assert_eq!(answer.status, Some(OK)));
    answers.flat_map(|answer| answer.data).collect()
}

/// The power goes [`CUTS`] times, and each time all is there that must be.
fn survives(cell: Cell) {
    let Some(mut host) = Host::boot(cell) else { return };
    for cut in 0..CUTS {
        host.power_cut().unwrap_or_else(|fault| panic!("after cut {cut}: {fault}"));
    }
    host.load.drain().unwrap();
}

/// It is found out in that many cuts that nothing is ever durable.
fn is_found_out(cell: Cell) {
    let Some(mut host) = Host::boot(cell) else { return };
    host.disk.lie();
    let fault = (0..CUTS).find_map(|_| host.power_cut().err());
    assert!(matches!(fault, Some(Fault::Disk(_))), "{fault:?}");
}

macro_rules! cells {
    ($($rings:ident $kind:ident)*) => { $(mod $rings {
        use super::{Cell, RingKind, is_found_out, survives};
        const CACHED: Cell = Cell { rings: RingKind::$kind, cache: true, direct: false };
        const THROUGH: Cell = Cell { cache: false, ..CACHED };

        #[test]
        fn what_was_flushed_is_there_after_a_power_cut() {
            survives(CACHED);
        }

        #[test]
        fn what_was_flushed_is_there_after_a_power_cut_past_the_page_cache() {
            survives(Cell { direct: true, ..CACHED });
        }

        #[test]
        fn what_was_written_is_there_after_a_power_cut_where_there_is_no_cache() {
            survives(THROUGH);
        }

        #[test]
        fn what_was_written_is_there_after_a_power_cut_past_the_page_cache_too() {
            survives(Cell { direct: true, ..THROUGH });
        }

        #[test]
        fn syncs_that_do_nothing_are_found_out_by_a_power_cut() {
            is_found_out(CACHED);
            is_found_out(THROUGH);
        }
    })* };
}

cells!(split Split packed Packed);
