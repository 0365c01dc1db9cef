//! Ten thousand random requests on four queues of both kinds, many in flight, against an oracle in memory.
//!
//! The disk is cut into extents. A request claims the extents it touches until it is back, so that no two
//! requests of which one writes overlap in time and the oracle always knows what must be read.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;

use tests::daemon::Launch;
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{Answer, FLUSH, Framing, OK, Request};
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::guest::ring::{Completion, Ring};
use tests::random::Random;

const QUEUES: u8 = 4;
const QUEUE_SIZE: u16 = 256;
const REQUESTS: usize = 10_000;
const EXTENT_SECTORS: usize = 4;
const EXTENT_BYTES: usize = EXTENT_SECTORS * 512;
const EXTENTS: usize = 1024;
/// Most extents of one request.
const MOST: u64 = 16;
/// Most requests in flight on one queue: each takes 10 descriptors at most.
const IN_FLIGHT: usize = 24;

/// What the disk must hold.
struct Oracle {
    content: Vec<u8>,
    busy: Vec<bool>,
    random: Random,
}

impl Oracle {
    /// Extents that nobody uses.
    fn claim(&mut self) -> Option<Range<usize>> {
        let count = 1 + self.random.below(MOST);
        let start = self.random.below(EXTENTS as u64 - count);
        let range = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        let free = !self.busy[range.clone()].contains(&true);
        free.then(|| {
            self.busy[range.clone()].fill(true);
            range
        })
    }

    fn bytes(&self, extents: &Range<usize>) -> &[u8] {
        &self.content[extents.start * EXTENT_BYTES..extents.end * EXTENT_BYTES]
    }

    /// A request on some extents, and the data its answer must have. A write is in the oracle from now on.
    fn request(&mut self) -> (Request, Range<usize>, Vec<u8>) {
        if self.random.below(20) == 0 {
            return (Request::bare(FLUSH), 0..0, Vec::new());
        }
        let extents = std::iter::repeat_with(|| self.claim()).flatten().next().unwrap();
        let sector = (extents.start * EXTENT_SECTORS) as u64;
        if self.random.below(2) == 0 {
            let data = self.bytes(&extents).to_vec();
            return (Request::read(sector, u32::try_from(data.len()).unwrap()), extents, data);
        }
        let data = self.random.bytes(extents.len() * EXTENT_BYTES);
        self.content[extents.start * EXTENT_BYTES..extents.end * EXTENT_BYTES].copy_from_slice(&data);
        (Request::write(sector, &data), extents, Vec::new())
    }

    fn framing(&mut self, data_in: u32) -> Framing {
        match self.random.below(4) {
            0 => Framing::usual(data_in),
            1 => Framing::joined(),
            2 => Framing { indirect: true, ..Framing::pieces(700, 8) },
            _ => Framing::pieces(1 + u32::try_from(self.random.below(2000)).unwrap(), 4),
        }
    }
}

/// One queue and what is in flight on it.
struct Lane {
    ring: Ring,
    flying: HashMap<u16, (u32, Range<usize>, Vec<u8>)>,
}

impl Lane {
    fn fill(&mut self, oracle: &mut Oracle, left: &mut usize) {
        while *left > 0 && self.flying.len() < IN_FLIGHT {
            let (request, extents, expected) = oracle.request();
            let framing = oracle.framing(request.data_in);
            let head = self.ring.add(&request.chain(&framing));
            self.flying.insert(head, (request.data_in, extents, expected));
            *left -= 1;
        }
        self.ring.notify();
    }

    fn check(&mut self, oracle: &mut Oracle, completion: &Completion) {
        let (data_in, extents, expected) = self.flying.remove(&completion.head).unwrap();
        let answer = Answer::new(completion, data_in);
        assert_eq!(answer.status, Some(OK));
        assert!(answer.data == expected, "extents {extents:?} hold something else");
        oracle.busy[extents].fill(false);
    }
}

fn ten_thousand_requests(engine: &str, rings: RingKind) {
    let mut random = Random::from_env();
    let content = random.bytes(EXTENTS * EXTENT_BYTES);
    let launch = Launch::new("outboard-blk").args(["--queues", "4", "--engine", engine]);
    let image = launch.dir().join("disk.img");
    fs::write(&image, &content).unwrap();
    let daemon = launch.args(["--image".to_owned(), image.display().to_string()]).serve().unwrap();
    let ram = Ram::new(256 << 20);
    let mut frontend = Frontend::session(daemon.socket(), &ram, Wants::on(rings)).unwrap();
    let mut oracle = Oracle { content, busy: vec![false; EXTENTS], random };
    let start = |index| Lane { ring: frontend.start_new(index, QUEUE_SIZE).unwrap(), flying: HashMap::new() };
    let mut lanes: Vec<Lane> = (0..QUEUES).map(start).collect();
    let mut left = REQUESTS;
    while left > 0 || lanes.iter().any(|lane| !lane.flying.is_empty()) {
        for lane in &mut lanes {
            lane.fill(&mut oracle, &mut left);
        }
        for lane in lanes.iter_mut().filter(|lane| !lane.flying.is_empty()) {
            let mut next = Some(lane.ring.wait_used().unwrap());
            while let Some(completion) = next {
                lane.check(&mut oracle, &completion);
                next = lane.ring.used().unwrap();
            }
        }
    }
    assert!(fs::read(&image).unwrap() == oracle.content, "the image is not what was written");
    let exit = daemon.terminate();
    assert!(exit.code == Some(0) && exit.stderr.contains("requests=10000"), "{exit}");
}

#[test]
fn ten_thousand_random_requests_on_io_uring() {
    ten_thousand_requests("io-uring", RingKind::Split);
}

#[test]
fn ten_thousand_random_requests_on_io_uring_and_packed_rings() {
    ten_thousand_requests("io-uring", RingKind::Packed);
}

#[test]
fn ten_thousand_random_requests_on_epoll() {
    ten_thousand_requests("epoll", RingKind::Split);
}

#[test]
fn ten_thousand_random_requests_on_epoll_and_packed_rings() {
    ten_thousand_requests("epoll", RingKind::Packed);
}
