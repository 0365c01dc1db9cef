//! The block device over storage that fails on request (K17, K18), and what reaches the storage in which order.
//!
//! The device runs in this process, behind a real socket and on real rings; between the graph and its leaf stands a
//! [`Faulty`] one, which notes every call and changes the host's answers as the test says.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use backends::engine::EngineKind;
use backends::kept::Kept;
use backends::opened::Opened;
use backends::server::{Endpoint, Server, Settings};
use outboard_blk::call::Call;
use outboard_blk::device::Blk as Device;
use outboard_blk::graph::{Graph, Host, Layer, Step, Volume};
use outboard_blk::op::{Keeps, Op};
use outboard_blk::storage::image::Image;
use rustix::io::Errno;
use tempfile::TempDir;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{Blk, FLUSH, Framing, IOERR, OK, Request};
use tests::guest::memory::Ram;

const READ: Op = Op::Read { offset: 0, bytes: 0 };
const WRITE: Op = Op::Write { offset: 0, bytes: 0, fua: false };
const FEATURE_FLUSH: u64 = 1 << 9;
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
        Ok(Keeps { fua: keeps.fua && !self.plan.lock().unwrap().without_fua, ..keeps })
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
        let (here, there) = UnixStream::pair().unwrap();
        let (asked, never) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let settings = Settings { engine, ..Settings::default() };
            let mut server = Server::new(Device::new(graph, 1, ""), settings, &Kept::default()).unwrap();
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
