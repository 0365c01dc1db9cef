//! Reads, writes, zeroes, discards and flushes on two queues of a disk, every sector known to the oracle.
//!
//! Few sectors and many requests, so that requests overlap: in flight beside each other, and one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::load::{Fault, Load, of_queue};
use crate::daemon::Launch;
use crate::guest::blk::{Answer, DISCARD, FLUSH, Framing, IOERR, OK, Request, UNMAP, WRITE_ZEROES};
use crate::guest::ring::{Completion, Ring};
use crate::oracle::{Flush, Oracle, Read, SECTOR_BYTES, Write};
use crate::random::Random;

/// Sectors of the disk.
pub const SECTORS: u64 = 512;
/// Requests in flight on each queue; each takes up to three descriptors.
const DEPTH: usize = 16;
/// What is read or written at once where all of the disk is.
const PIECE_SECTORS: u64 = 64;
const PIECE_BYTES: u32 = 64 * 512;
/// Longest request.
const MAX_SECTORS: u64 = 16;
/// Of ten requests: writes, writes of zeroes or discards, and flushes; the rest are reads.
const WRITES: u64 = 4;
const ZEROES: u64 = 1;
const FLUSHES: u64 = 1;
/// Most ranges of a write of zeroes.
const MAX_RANGES: u64 = 4;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

#[derive(Debug)]
enum Op {
    Write(Write),
    Zeroes(Vec<Write>),
    /// What stood there may stay, or be zeros.
    Discard(Vec<Write>),
    Read(Read, u32),
    Flush(Flush),
}

/// The guest.
#[derive(Debug)]
pub struct BlkLoad {
    queues: Vec<(Ring, BTreeMap<u16, Op>)>,
    oracle: Oracle,
    random: Random,
    /// Where the disk is seen from outside, if it can be.
    image: Option<PathBuf>,
    /// The device takes writes of zeroes, and what was discarded reads as before or as zeros.
    zeroes: bool,
    /// A write that completed is durable.
    through: bool,
    /// Requests that failed, where they may.
    errors: Option<u64>,
}

/// Options for a disk that [`BlkLoad`] uses.
///
/// # Panics
/// There is no room for the image.
pub fn launch(launch: Launch) -> Launch {
    let image = launch.dir().join("disk.img");
    std::fs::write(&image, Oracle::new(SECTORS).image())
        .unwrap_or_else(|e| panic!("{}: {e}", image.display()));
    launch.args(["--queues".into(), "2".into(), "--image".into(), image.display().to_string()])
}

impl BlkLoad {
    /// A guest with these rings; the daemon's directory is `dir`.
    pub fn new(rings: Vec<Ring>, random: Random, dir: &Path) -> BlkLoad {
        let queues = rings.into_iter().map(|ring| (ring, BTreeMap::new())).collect();
        let (oracle, image) = (Oracle::new(SECTORS), Some(dir.join("disk.img")));
        BlkLoad { queues, oracle, random, image, zeroes: true, through: false, errors: None }
    }

    /// The same for a disk whose images nobody else understands: the guest writes what the disk is to hold at first, and
    /// reads all of it where others would look at the image.
    ///
    /// # Panics
    /// The device does not take it.
    pub fn of_nobody_else(rings: Vec<Ring>, random: Random) -> BlkLoad {
        let mut load = BlkLoad { image: None, ..BlkLoad::new(rings, random, Path::new("")) };
        let image = load.oracle.image();
        for (nth, bytes) in (0..).zip(image.chunks(PIECE_BYTES as usize)) {
            let written = load.run(&Request::write(nth * PIECE_SECTORS, bytes));
            assert!(matches!(written, Ok(Answer { status: Some(OK), .. })), "{written:?}");
        }
        let flushed = load.run(&Request::bare(FLUSH));
        assert!(matches!(flushed, Ok(Answer { status: Some(OK), .. })), "{flushed:?}");
        load
    }

    /// Uses what the device has, which these features tell.
    pub fn with(self, features: u64) -> BlkLoad {
        BlkLoad { zeroes: features & FEATURE_WRITE_ZEROES != 0, ..self }
    }

    /// All of the disk, as the device has it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_all(&mut self) -> Result<Vec<u8>, Fault> {
        let mut found = Vec::new();
        for sector in (0..SECTORS).step_by(usize::try_from(PIECE_SECTORS).unwrap_or(1)) {
            let Answer { status, data } = self.run(&Request::read(sector, PIECE_BYTES))?;
            if status != Some(OK) {
                return Err(Fault::Answer(format!("sector {sector}: read with status {status:?}")));
            }
            found.extend(data);
        }
        Ok(found)
    }

    fn run(&mut self, request: &Request) -> Result<Answer, Fault> {
        let ring = &mut self.queues[0].0;
        let done = of_queue(0, ring.run(&request.chain(&Framing::usual(request.data_in))))?;
        Ok(Answer::new(&done, request.data_in))
    }

    /// From now on each write is durable when it completes, since the device has no cache for this driver; or not.
    /// With no cache any more nothing is left in it.
    pub fn write_through(&mut self, through: bool) {
        if through && !self.through {
            let all = self.oracle.flush();
            self.oracle.flushed(all);
        }
        self.through = through;
    }

    /// The disk is about to fail: requests may, and are counted from 0.
    pub fn expect_errors(&mut self) {
        self.errors = Some(0);
    }

    /// Requests that failed since they may.
    pub fn errors(&self) -> u64 {
        self.errors.unwrap_or(0)
    }

    /// The host has lost its power, and its guest with it: what had come back did, and the rest never will.
    ///
    /// # Errors
    /// Something is wrong with what had.
    pub fn power_off(&mut self) -> Result<(), Fault> {
        self.reap()?;
        self.queues.clear();
        Ok(())
    }

    /// The guest starts again on these rings, and reads all of its disk.
    ///
    /// # Errors
    /// What it finds must not be there.
    pub fn power_on(&mut self, rings: Vec<Ring>) -> Result<(), Fault> {
        self.queues = rings.into_iter().map(|ring| (ring, BTreeMap::new())).collect();
        self.errors = None;
        let found = self.read_all()?;
        Ok(self.oracle.power_lost(&found)?)
    }

    fn next(&mut self) -> (Request, Op) {
        let sectors = 1 + self.random.below(MAX_SECTORS);
        let first = self.random.below(SECTORS - sectors);
        let bytes = u32::try_from(sectors).unwrap_or(1) * u32::try_from(SECTOR_BYTES).unwrap_or(512);
        match self.random.below(10) {
            n if n < WRITES => {
                let (write, data) = self.oracle.write(first, sectors);
                (Request::write(first, &data), Op::Write(write))
            }
            n if n < WRITES + ZEROES && self.zeroes => {
                if self.random.below(2) == 0 {
                    self.zeroes()
                } else {
                    self.discard()
                }
            }
            n if n < WRITES + ZEROES + FLUSHES => (Request::bare(FLUSH), Op::Flush(self.oracle.flush())),
            _ => (Request::read(first, bytes), Op::Read(self.oracle.read(first), bytes)),
        }
    }

    fn zeroes(&mut self) -> (Request, Op) {
        let (ranges, writes) = self.ranges(UNMAP);
        (Request::ranges(WRITE_ZEROES, &ranges), Op::Zeroes(writes))
    }

    fn discard(&mut self) -> (Request, Op) {
        let (ranges, writes) = self.ranges(0);
        (Request::ranges(DISCARD, &ranges), Op::Discard(writes))
    }

    /// Several ranges, some of them with this flag. They may lie across each other.
    fn ranges(&mut self, flag: u32) -> (Vec<(u64, u32, u32)>, Vec<Write>) {
        let count = 1 + self.random.below(MAX_RANGES);
        let (mut ranges, mut writes) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let sectors = 1 + self.random.below(MAX_SECTORS);
            let first = self.random.below(SECTORS - sectors);
            let flags = if self.random.below(2) == 0 { flag } else { 0 };
            ranges.push((first, u32::try_from(sectors).unwrap_or(1), flags));
            writes.push(self.oracle.zeroes(first, sectors));
        }
        (ranges, writes)
    }

    /// Makes one request: a flush.
    pub fn submit_flush(&mut self) {
        let flush = self.oracle.flush();
        self.submit_one(&Request::bare(FLUSH), Op::Flush(flush));
    }

    /// Makes one request: a write of zeroes.
    pub fn submit_zeroes(&mut self) {
        let (request, op) = self.zeroes();
        self.submit_one(&request, op);
    }

    /// Makes one request: a discard.
    pub fn submit_discard(&mut self) {
        let (request, op) = self.discard();
        self.submit_one(&request, op);
    }

    fn submit_one(&mut self, request: &Request, op: Op) {
        let (ring, ops) = &mut self.queues[0];
        ops.insert(ring.add(&request.chain(&Framing::usual(0))), op);
        ring.notify();
    }

    fn settle(&mut self, queue: usize, done: &Completion) -> Result<(), Fault> {
        let op = self.queues[queue].1.remove(&done.head);
        let op =
            op.ok_or_else(|| Fault::Answer(format!("queue {queue}: no request has head {}", done.head)))?;
        let room = if let Op::Read(_, bytes) = &op { *bytes } else { 0 };
        let Answer { status, data } = Answer::new(done, room);
        if let (Some(IOERR), Some(errors)) = (status, &mut self.errors) {
            *errors += 1;
            self.failed(op);
            return Ok(());
        }
        if status != Some(OK) {
            return Err(Fault::Answer(format!("queue {queue}: {op:?} came back with status {status:?}")));
        }
        let oracle = &mut self.oracle;
        let mut written =
            |write| if self.through { oracle.written_durably(write) } else { oracle.written(write) };
        match op {
            Op::Write(write) => written(write),
            Op::Zeroes(writes) => writes.into_iter().for_each(written),
            Op::Discard(writes) => writes.into_iter().for_each(|write| self.oracle.failed(write)),
            Op::Flush(flush) => self.oracle.flushed(flush),
            Op::Read(read, _) => self.oracle.check_read(read, &data)?,
        }
        Ok(())
    }

    /// What failed may have been done or not; nothing is known of it.
    fn failed(&mut self, op: Op) {
        match op {
            Op::Write(write) => self.oracle.failed(write),
            Op::Zeroes(writes) | Op::Discard(writes) => {
                writes.into_iter().for_each(|write| self.oracle.failed(write));
            }
            Op::Read(read, _) => self.oracle.gave_up(read),
            Op::Flush(_) => {}
        }
    }
}

impl Load for BlkLoad {
    fn rings(&self) -> Vec<&Ring> {
        self.queues.iter().map(|(ring, _)| ring).collect()
    }

    fn outstanding(&self) -> usize {
        self.queues.iter().map(|(ring, _)| ring.in_flight()).sum()
    }

    fn submit(&mut self) {
        for queue in 0..self.queues.len() {
            while self.queues[queue].0.in_flight() < DEPTH {
                let (request, op) = self.next();
                let (ring, ops) = &mut self.queues[queue];
                let head = ring.add(&request.chain(&Framing::usual(request.data_in)));
                ops.insert(head, op);
            }
            self.queues[queue].0.notify();
        }
    }

    fn reap(&mut self) -> Result<usize, Fault> {
        let mut count = 0;
        for queue in 0..self.queues.len() {
            while let Some(done) = of_queue(queue, self.queues[queue].0.used())? {
                self.settle(queue, &done)?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn wait(&mut self) -> Result<usize, Fault> {
        let queue = self.queues.iter().position(|(ring, _)| ring.in_flight() > 0).unwrap_or(0);
        let done = of_queue(queue, self.queues[queue].0.wait_used())?;
        self.settle(queue, &done)?;
        Ok(1 + self.reap()?)
    }

    fn check(&mut self) -> Result<(), Fault> {
        let image = match &self.image {
            Some(path) => std::fs::read(path).map_err(|e| Fault::Answer(format!("image: {e}")))?,
            None => self.read_all()?,
        };
        Ok(self.oracle.check_image(&image)?)
    }
}
