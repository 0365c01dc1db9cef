//! The host loses its power, again and again: what a guest had flushed is there afterwards, and the rest may be.
//!
//! A guest with two queues writes, zeroes, reads and flushes a disk that holds unflushed writes back ([`tests::power`]). At the
//! n-th request of the disk, whatever that is, the power goes: requests in flight fail or are never answered, daemon
//! and guest are gone. The next daemon serves what is left to a guest that reads every sector, and the oracle says
//! whether that may be there: {last flushed, every later write} (N2). A driver that does not flush has no cache, so that
//! all it saw completed is there. That a daemon without syncs would be found out is shown by a disk that only says that
//! it syncs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tests::daemon::{Daemon, DaemonError, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::WRITEBACK;
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::power::PowerDisks;
use tests::random::Random;
use tests::restart::blk::{self, BlkLoad};
use tests::restart::graph;
use tests::restart::{Fault, Load};
use tests::wait;
use xtask::skip::skip;

const RAM_BYTES: u64 = 32 << 20;
const QUEUE_SIZE: u16 = 64;
const QUEUES: u8 = 2;
const CUTS: u32 = 6;
/// Exit code of a daemon whose image somebody else has.
const IN_USE: i32 = 4;
/// Most requests of the disk before a cut.
const MOST: u64 = 300;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_CONFIG_WCE: u64 = 1 << 11;

/// How the disk is driven.
#[derive(Clone, Copy)]
struct Cell {
    rings: RingKind,
    /// The driver flushes.
    cache: bool,
    /// It chooses another mode of the cache now and then.
    switching: bool,
    direct: bool,
    /// Over five layers and two images.
    graph: bool,
}

impl Cell {
    fn wants(self) -> Wants {
        let features = if self.cache { u64::MAX } else { !(FEATURE_FLUSH | FEATURE_CONFIG_WCE) };
        Wants { features, ..Wants::on(self.rings) }
    }

    fn launch(self) -> Launch {
        let launch = Launch::new("outboard-blk");
        if self.graph {
            return graph::launch(launch, blk::SECTORS);
        }
        let launch = blk::launch(launch);
        if self.direct { launch.args(["--direct".to_owned()]) } else { launch }
    }

    fn images(self) -> &'static [&'static str] {
        if self.graph { &graph::IMAGES } else { &["disk.img"] }
    }
}

/// A guest, and the host it runs on.
struct Host {
    /// They go before the directory that they are mounted in.
    disks: PowerDisks,
    daemon: Daemon,
    frontend: Frontend,
    load: BlkLoad,
    cell: Cell,
    random: Random,
}

impl Host {
    /// None: this machine cannot have such a disk.
    fn boot(cell: Cell) -> Option<Host> {
        let (launch, mut random) = (cell.launch(), Random::from_env());
        let images: Vec<_> = cell.images().iter().map(|name| launch.dir().join(name)).collect();
        let images: Vec<_> = images.iter().map(PathBuf::as_path).collect();
        let disks = PowerDisks::over(&images, Random::new(random.next_u64()));
        let disks = disks.map_err(|obstacle| skip("slow-disk", &obstacle)).ok()?;
        let daemon = launch.serve().unwrap();
        let seed = random.next_u64();
        let (frontend, rings) = session(&daemon, cell.wants());
        let mut load = if cell.graph {
            BlkLoad::of_nobody_else(rings, Random::new(seed))
        } else {
            BlkLoad::new(rings, Random::new(seed), daemon.dir())
        };
        load = load.with(frontend.features());
        load.write_through(!cell.cache);
        Some(Host { disks, daemon, frontend, load, cell, random })
    }

    /// Traffic until the power goes, and what is left when it is back.
    fn power_cut(&mut self) -> Result<(), Fault> {
        self.load.expect_errors();
        self.disks.cut_in(1 + self.random.below(MOST));
        while !self.disks.is_off() {
            self.load.submit();
            self.load.wait()?;
            if self.cell.switching && self.random.below(8) == 0 {
                self.switch()?;
            }
            assert!(self.load.errors() == 0 || self.disks.is_off(), "requests fail while there is power");
        }
        self.daemon.kill9();
        self.load.power_off()?;
        self.disks.power_on();
        self.start_again();
        let (frontend, rings) = session(&self.daemon, self.cell.wants());
        self.frontend = frontend;
        self.load.write_through(!self.cell.cache);
        self.load.power_on(rings)
    }

    /// The image is locked until the host has ended the last I/O of the daemon before, which a busy host may not have done
    /// when the next one gives up.
    fn start_again(&mut self) {
        let until = wait::deadline();
        loop {
            self.daemon.start_again(Vec::new());
            match self.daemon.wait_again() {
                Ok(()) => return,
                Err(DaemonError::Ended(exit)) if exit.code == Some(IN_USE) && Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The driver chooses the mode of the cache anew (§5.2.6.2): what it saw completed before is durable if it takes none.
    /// The mode is the device's, and not that of the worker that was told.
    fn switch(&mut self) -> Result<(), Fault> {
        self.load.drain()?;
        let through = self.random.below(2) == 0;
        let said = self.frontend.set_config(WRITEBACK, &[u8::from(!through)]);
        // A device that has lost its disk takes any mode, or none.
        if self.disks.is_off() {
            return Ok(());
        }
        said?;
        self.load.write_through(through);
        if self.random.below(8) == 0 {
            self.load.submit();
            self.daemon.kill_worker();
        }
        Ok(())
    }
}

fn session(daemon: &Daemon, wants: Wants) -> (Frontend, Vec<Ring>) {
    let ram: Arc<Ram> = Ram::new(RAM_BYTES);
    let mut frontend = Frontend::session(daemon.socket(), &ram, wants).unwrap();
    let rings = (0..QUEUES).map(|index| frontend.start_new(index, QUEUE_SIZE).unwrap()).collect();
    (frontend, rings)
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
    host.disks.lie();
    let fault = (0..CUTS).find_map(|_| host.power_cut().err());
    assert!(matches!(fault, Some(Fault::Disk(_))), "{fault:?}");
}

macro_rules! cells {
    ($($rings:ident $kind:ident)*) => { $(mod $rings {
        use super::{Cell, RingKind, is_found_out, survives};
        const CACHED: Cell = Cell { rings: RingKind::$kind, cache: true, switching: false, direct: false, graph: false };
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
        fn each_mode_of_the_cache_keeps_what_it_must_over_a_power_cut() {
            survives(Cell { switching: true, ..CACHED });
            survives(Cell { switching: true, direct: true, ..CACHED });
        }

        #[test]
        fn what_was_flushed_is_there_after_a_power_cut_under_a_graph() {
            survives(Cell { graph: true, ..CACHED });
            survives(Cell { graph: true, switching: true, ..CACHED });
        }

        #[test]
        fn what_was_written_is_there_after_a_power_cut_under_a_graph_where_there_is_no_cache() {
            survives(Cell { graph: true, ..THROUGH });
        }

        #[test]
        fn syncs_that_do_nothing_are_found_out_by_a_power_cut() {
            is_found_out(CACHED);
            is_found_out(THROUGH);
        }
    })* };
}

cells!(split Split packed Packed);
