//! The block device over storage that fails on request (K17, K18), and what reaches the storage in which order.
//!
//! The device runs in this process, behind a real socket and on real rings; between the graph and its leaf stands a
//! [`Faulty`] one, which notes every call and changes the host's answers as the test says.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use backends::engine::EngineKind;
use backends::kept::Kept;
use backends::opened::Opened;
use backends::proto;
use backends::server::{Endpoint, Server, Settings};
use backends::session::Direction;
use outboard_blk::call::Call;
use outboard_blk::device::Blk as Device;
use outboard_blk::graph::live::Live;
use outboard_blk::graph::{Graph, Host, Layer, Outcome, Step, Volume};
use outboard_blk::op::{Keeps, Lifetime, Op};
use outboard_blk::storage::image::Image;
use rustix::io::Errno;
use tempfile::TempDir;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{
    Blk, DISCARD, FLUSH, Framing, GET_LIFETIME, IOERR, OK, Request, SECURE_ERASE, UNMAP, WRITE_ZEROES,
    WRITEBACK,
};
use tests::guest::memory::Ram;

const READ: Op = Op::Read { offset: 0, bytes: 0 };
const WRITE: Op = Op::Write { offset: 0, bytes: 0, fua: false };
const LIFETIME: Lifetime = Lifetime { pre_eol_info: 1, typ_a: 3, typ_b: 0x0b };
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_CONFIG_WCE: u64 = 1 << 11;
const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Epoll];

/// What a test and the leaf share.
#[derive(Debug, Default)]
struct Plan {
    /// Calls that came.
    calls: Vec<Op>,
    /// Answers to give instead of the host's to operations of this kind, in this order.
    answers: VecDeque<(Op, Result<u32, Errno>)>,
    /// The leaf says that it cannot make a write durable by itself.
    without_fua: bool,
    /// It says that it can erase, and how worn it is.
    erases: bool,
    /// How often all was made durable from outside, and why that fails.
    made_durable: u32,
    loses: Option<Errno>,
}

#[derive(Debug)]
struct Faulty {
    file: Arc<dyn Volume>,
    plan: Arc<Mutex<Plan>>,
}

struct FaultyLayer {
    file: Box<dyn Layer>,
    plan: Arc<Mutex<Plan>>,
}

impl Volume for Faulty {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let keeps = self.file.keeps(below)?;
        let plan = self.plan.lock().unwrap();
        let secure_erase = keeps.discard.filter(|_| plan.erases);
        let lifetime = Some(LIFETIME).filter(|_| plan.erases);
        Ok(Keeps { fua: keeps.fua && !plan.without_fua, secure_erase, lifetime, ..keeps })
    }

    fn make_durable(&self) -> Outcome {
        let mut plan = self.plan.lock().unwrap();
        plan.made_durable += 1;
        plan.loses.map_or_else(|| self.file.make_durable(), Err)
    }

    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Ok(Box::new(FaultyLayer { file: self.file.layer()?, plan: Arc::clone(&self.plan) }))
    }
}

impl Layer for FaultyLayer {
    fn submit(&mut self, call: Call, host: &mut Host<'_>) -> Step {
        self.plan.lock().unwrap().calls.push(call.op());
        self.file.submit(call, host)
    }

    fn answered(&mut self, call: Call, mut answer: Result<u32, Errno>, host: &mut Host<'_>) -> Step {
        let mut plan = self.plan.lock().unwrap();
        let due = plan.answers.front().is_some_and(|(op, _)| op.kind() == call.kind());
        if due && let Some((_, instead)) = plan.answers.pop_front() {
            answer = instead;
        }
        drop(plan);
        self.file.answered(call, answer, host)
    }
}

/// A guest, its device, and the plan.
struct Setup {
    blk: Blk,
    plan: Arc<Mutex<Plan>>,
    dir: TempDir,
    frontend: Option<Frontend>,
    server: Option<JoinHandle<()>>,
}

impl Setup {
    fn new(engine: EngineKind, features: u64) -> Setup {
        Setup::planned(engine, features, Plan::default())
    }

    fn planned(engine: EngineKind, features: u64, plan: Plan) -> Setup {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, vec![0x11; 1 << 20]).unwrap();
        let image = Image { path, read_only: false, direct: false, block_bytes: 512 };
        let plan = Arc::new(Mutex::new(plan));
        let leaf = Arc::new(Faulty { file: opened(&image), plan: Arc::clone(&plan) });
        let graph = Graph::of_leaf("disk", "debug/faulty", leaf).unwrap();
        let device = Device::new(Live::unwritten(graph), &Kept::default(), 1, "").unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let (asked, never) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let settings = Settings { engine, ..Settings::default() };
            let mut server = Server::new(device, settings, &Kept::default()).unwrap();
            server.serve(Endpoint::Connected(there), asked.as_fd()).unwrap();
            drop(never);
        });
        let mut frontend = Frontend::on(here, &Ram::new(16 << 20)).unwrap();
        frontend.handshake(Wants { features, ..Wants::default() }).unwrap();
        let blk = Blk::new(frontend.start_new(0, 64).unwrap());
        Setup { blk, plan, dir, frontend: Some(frontend), server: Some(server) }
    }

    fn answer(&self, op: Op, result: Result<u32, Errno>) {
        self.plan.lock().unwrap().answers.push_back((op, result));
    }

    fn calls(&self) -> Vec<Op> {
        std::mem::take(&mut self.plan.lock().unwrap().calls)
    }

    fn frontend(&mut self) -> &mut Frontend {
        self.frontend.as_mut().unwrap()
    }

    /// The driver chooses the mode of the cache.
    fn choose(&mut self, write_back: u8) -> bool {
        self.frontend().set_config(WRITEBACK, &[write_back]).is_ok()
    }

    fn write_back(&mut self) -> u8 {
        self.frontend().config(WRITEBACK, 1).unwrap()[0]
    }

    fn made_durable(&self) -> u32 {
        std::mem::take(&mut self.plan.lock().unwrap().made_durable)
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("disk.img")).unwrap()
    }

    #[track_caller]
    fn all_answers_were_used(&self) {
        assert_eq!(self.plan.lock().unwrap().answers, []);
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        drop(self.frontend.take());
        let ended = self.server.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server ended by a panic");
    }
}

#[test]
fn a_driver_that_flushes_gets_its_writes_from_the_cache_5_2_6_2() {
    let mut setup = Setup::new(EngineKind::Auto, u64::MAX);
    assert_eq!(setup.blk.write(8, &[1; 512]).unwrap().status, Some(OK));
    assert_eq!(setup.blk.flush().unwrap().status, Some(OK));
    assert_eq!(setup.calls(), [Op::Write { offset: 4096, bytes: 512, fua: false }, Op::Flush]);
}

#[test]
fn every_write_is_durable_for_a_driver_that_does_not_flush_5_2_6_2() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, !FEATURE_FLUSH);
        assert_eq!(setup.blk.write(8, &[1; 512]).unwrap().status, Some(OK));
        assert_eq!(setup.blk.read(8, 512).unwrap().data, [1; 512]);
        let write = Op::Write { offset: 4096, bytes: 512, fua: true };
        assert_eq!(setup.calls(), [write, Op::Read { offset: 4096, bytes: 512 }]);
        setup.answer(write, Err(Errno::IO));
        assert_eq!(setup.blk.write(8, &[2; 512]).unwrap().status, Some(IOERR));
        setup.all_answers_were_used();
    }
}

#[test]
fn what_cannot_write_durably_is_flushed_after_each_write_5_2_6_2() {
    for engine in ENGINES {
        let plan = Plan { without_fua: true, ..Plan::default() };
        let mut setup = Setup::planned(engine, !FEATURE_FLUSH, plan);
        assert_eq!(setup.blk.write(8, &[1; 512]).unwrap().status, Some(OK));
        assert_eq!(setup.calls(), [Op::Write { offset: 4096, bytes: 512, fua: false }, Op::Flush]);
        // A write whose flush fails was not done.
        setup.answer(Op::Flush, Err(Errno::IO));
        assert_eq!(setup.blk.write(8, &[2; 512]).unwrap().status, Some(IOERR));
        setup.all_answers_were_used();
    }
}

const DURABLE: Op = Op::Write { offset: 0, bytes: 512, fua: true };
const CACHED: Op = Op::Write { offset: 0, bytes: 512, fua: false };

#[test]
fn a_driver_switches_the_cache_off_and_on_5_2_6_2() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        assert_eq!((setup.write_back(), setup.made_durable()), (1, 0));
        assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
        assert!(setup.choose(0));
        assert_eq!((setup.write_back(), setup.made_durable()), (0, 1), "what was written before is durable");
        assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
        assert_eq!(setup.blk.ranges(WRITE_ZEROES, &[(2, 1, 0), (4, 1, UNMAP)]).unwrap().status, Some(OK));
        assert_eq!(setup.blk.ranges(DISCARD, &[(2, 1, 0), (4, 1, 0)]).unwrap().status, Some(OK));
        assert!(setup.choose(1));
        assert_eq!((setup.write_back(), setup.made_durable()), (1, 0));
        assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
        let zeroes = |offset, unmap| Op::Zeroes { offset, bytes: 512, unmap };
        let discard = |offset| Op::Discard { offset, bytes: 512 };
        let through = [DURABLE, zeroes(1024, false), zeroes(2048, true), Op::Flush];
        let expected = [&[CACHED][..], &through, &[discard(1024), discard(2048)], &[CACHED]].concat();
        assert_eq!(setup.calls(), expected);
    }
}

#[test]
fn only_the_mode_of_the_cache_is_written_by_a_driver() {
    let mut setup = Setup::new(EngineKind::Auto, u64::MAX);
    for (offset, data) in [(WRITEBACK, &[2][..]), (WRITEBACK, &[0, 0]), (33, &[0]), (0, &[0; 8]), (24, &[0])]
    {
        let refused = setup.frontend().set_config(offset, data);
        assert!(refused.is_err_and(|error| error.is_refusal()), "{offset} {data:?}");
    }
    assert_eq!((setup.write_back(), setup.made_durable()), (1, 0));
}

#[test]
fn k17_a_cache_that_cannot_be_emptied_is_not_switched_off() {
    let mut setup = Setup::new(EngineKind::Auto, u64::MAX);
    setup.plan.lock().unwrap().loses = Some(Errno::IO);
    assert!(!setup.choose(0));
    assert_eq!(setup.write_back(), 1);
    assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
    assert_eq!(setup.calls(), [CACHED]);
}

#[test]
fn a_reset_and_features_say_how_the_cache_begins_5_2_5_2() {
    let mut setup = Setup::new(EngineKind::Auto, u64::MAX);
    assert!(setup.choose(0));
    setup.frontend().tell(proto::Request::ResetDevice, &[]).unwrap();
    assert_eq!(setup.write_back(), 1);
    // One that could never flush what the cache keeps.
    let mut setup = Setup::new(EngineKind::Auto, !FEATURE_FLUSH);
    assert_eq!(setup.write_back(), 0);
    assert!(setup.choose(1));
    assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
    assert_eq!(setup.calls(), [CACHED], "it has chosen");
    // One that may not choose.
    let mut setup = Setup::new(EngineKind::Auto, !FEATURE_CONFIG_WCE);
    setup.choose(0);
    assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
    assert_eq!(setup.calls(), [CACHED]);
}

#[test]
fn another_daemon_goes_on_in_the_mode_of_the_cache() {
    let (mut from, mut to) = (Setup::new(EngineKind::Auto, u64::MAX), Setup::new(EngineKind::Auto, u64::MAX));
    assert!(from.choose(0));
    for setup in [&mut from, &mut to] {
        setup.frontend().stop(0).unwrap();
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    from.frontend().carry_state(Direction::Save, writer.as_fd()).unwrap();
    drop(writer);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    for (state, good) in [(&state[..], true), (b"\x07", false), (b"many", false), (b"", true)] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        to.frontend().carry_state(Direction::Load, reader.as_fd()).unwrap();
        writer.write_all(state).unwrap();
        drop(writer);
        assert_eq!(to.frontend().state_is_good().unwrap(), good, "{state:?}");
        assert_eq!(to.write_back(), 0, "{state:?}");
    }
}

#[test]
fn the_first_range_that_fails_ends_a_request() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        let zeroes = |sector: u64| Op::Zeroes { offset: sector * 512, bytes: 512, unmap: false };
        setup.answer(zeroes(0), Ok(0));
        setup.answer(zeroes(0), Err(Errno::IO));
        let ranges = [(0, 1, 0), (3, 0, 0), (2, 1, 0), (4, 1, 0)];
        assert_eq!(setup.blk.ranges(WRITE_ZEROES, &ranges).unwrap().status, Some(IOERR));
        assert_eq!(setup.calls(), [zeroes(0), zeroes(2)]);
        setup.all_answers_were_used();
    }
}

/// A file system that can do neither (FAT, or a network's).
#[test]
fn zeroes_are_written_where_the_host_makes_none() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        for flags in [0, UNMAP] {
            assert_eq!(setup.blk.write(0, &[7; 4096]).unwrap().status, Some(OK));
            let answer = Op::Zeroes { offset: 0, bytes: 512, unmap: false };
            setup.answer(answer, Err(Errno::OPNOTSUPP));
            assert_eq!(setup.blk.ranges(WRITE_ZEROES, &[(1, 3, flags)]).unwrap().status, Some(OK));
            let expected = [&[7; 512][..], &[0; 1536], &[7; 2048]].concat();
            assert!(setup.image()[..4096] == expected, "{engine:?} {flags}");
            setup.all_answers_were_used();
        }
    }
}

#[test]
fn what_a_disk_can_erase_is_gone_and_how_worn_it_is_is_told_5_2_6() {
    for engine in ENGINES {
        let plan = Plan { erases: true, ..Plan::default() };
        let mut setup = Setup::planned(engine, u64::MAX, plan);
        assert_eq!(setup.frontend().features() >> 15 & 3, 3, "LIFETIME and SECURE_ERASE");
        let words = setup.frontend().config(60, 12).unwrap();
        assert_ne!(words[..4], [0; 4], "max_secure_erase_sectors");
        assert_eq!(setup.blk.ranges(SECURE_ERASE, &[(0, 8, 0), (16, 8, 0)]).unwrap().status, Some(OK));
        let image = setup.image();
        assert!(image[..4096].iter().chain(&image[8192..12_288]).all(|byte| *byte == 0), "{engine:?}");
        assert!(image[4096..8192].iter().all(|byte| *byte == 0x11), "{engine:?}");
        let request = Request { data_in: 6, ..Request::bare(GET_LIFETIME) };
        let told = setup.blk.run(&request, &Framing::usual(6)).unwrap();
        assert_eq!((told.status, told.data), (Some(OK), vec![1, 0, 3, 0, 0x0b, 0]), "{engine:?}");
    }
}

#[test]
fn k17_after_a_failed_flush_all_flushes_fail_and_data_still_flows() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        setup.answer(Op::Flush, Err(Errno::IO));
        assert_eq!(setup.blk.flush().unwrap().status, Some(IOERR));
        setup.all_answers_were_used();
        for _ in 0..3 {
            assert_eq!(setup.blk.flush().unwrap().status, Some(IOERR));
        }
        assert_eq!(setup.blk.write(0, &[1; 512]).unwrap().status, Some(OK));
        assert_eq!(setup.blk.read(0, 512).unwrap().data, [1; 512]);
    }
}

#[test]
fn k17_a_host_error_is_told_and_the_next_request_served() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        for errno in [Errno::IO, Errno::NOSPC, Errno::INVAL, Errno::NODEV] {
            setup.answer(READ, Err(errno));
            setup.answer(WRITE, Err(errno));
            let read = setup.blk.read(0, 1024).unwrap();
            assert_eq!(read.status, Some(IOERR), "{errno}");
            assert_eq!(setup.blk.write(0, &[0x11; 512]).unwrap().status, Some(IOERR), "{errno}");
            assert_eq!(setup.blk.read(0, 1024).unwrap().data, [0x11; 1024], "{errno}");
        }
        setup.all_answers_were_used();
    }
}

#[test]
fn k18_short_and_interrupted_transfers_are_finished() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        let data: Vec<u8> = (0..=255).cycle().take(8192).collect();
        for framing in [Framing::joined(), Framing::usual(8192), Framing::pieces(700, 9)] {
            for op in [WRITE, READ] {
                for answer in [Ok(1), Err(Errno::INTR), Ok(511), Ok(4096), Err(Errno::AGAIN), Ok(3000)] {
                    setup.answer(op, answer);
                }
            }
            assert_eq!(setup.blk.run(&Request::write(16, &data), &framing).unwrap().status, Some(OK));
            assert_eq!(setup.image()[8192..16_384], data);
            let read = setup.blk.run(&Request::read(16, 8192), &framing).unwrap();
            assert_eq!((read.status, read.data.as_slice()), (Some(OK), &data[..]));
            setup.all_answers_were_used();
        }
        assert!(setup.image()[16_384..].iter().all(|byte| *byte == 0x11), "nothing beside it was written");
    }
}

#[test]
fn k18_a_transfer_that_fails_half_way_is_not_reported_as_done() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        for op in [WRITE, READ] {
            setup.answer(op, Ok(512));
            setup.answer(op, Err(Errno::IO));
        }
        assert_eq!(setup.blk.write(0, &[5; 1024]).unwrap().status, Some(IOERR));
        assert_eq!(setup.blk.read(8, 1024).unwrap().status, Some(IOERR));
        setup.all_answers_were_used();
    }
}

#[test]
fn k18_a_host_that_says_again_for_ever_fails_one_request_only() {
    for engine in ENGINES {
        let mut setup = Setup::new(engine, u64::MAX);
        (0..1000).for_each(|_| setup.answer(READ, Err(Errno::AGAIN)));
        assert_eq!(setup.blk.read(0, 512).unwrap().status, Some(IOERR));
        setup.plan.lock().unwrap().answers.clear();
        assert_eq!(setup.blk.read(0, 512).unwrap().status, Some(OK));
    }
}

#[test]
fn a_flush_that_comes_with_data_syncs_once() {
    let mut setup = Setup::new(EngineKind::Auto, !FEATURE_FLUSH);
    let flush = Request { data_out: vec![1; 512], data_in: 512, ..Request::bare(FLUSH) };
    let answer = setup.blk.run(&flush, &Framing::joined()).unwrap();
    assert_eq!((answer.status, answer.data), (Some(OK), vec![0; 512]));
    assert_eq!(setup.calls(), [Op::Flush]);
}

/// An image as a process has it that is its own keeper.
fn opened(image: &Image) -> Arc<dyn Volume> {
    let mut opened = Opened::default();
    image.prepare("disk", &mut opened).unwrap();
    image.volume(image.find("disk", &opened.into_kept().0).unwrap())
}
