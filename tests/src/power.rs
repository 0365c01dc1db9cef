//! A disk that loses its power: what was written and not flushed may be gone afterwards, sector by sector.
//!
//! In: an image, over which this is mounted ([`crate::fuse`]), and when the power is to go. Out: the same image for
//! whoever opens it from then on; after the cut errors only, until the power is back; and then what is left.
//! It is as nasty as a disk may be. Requests are carried out in any order. A sync covers what was answered before it was
//! asked for, and nothing that came later. At the cut each sector keeps one of what it may hold, chosen by lot: what is
//! durable, any later write that was answered, any that was under way; neighbours of one write choose apart, so writes
//! are torn at 512 bytes, and none goes before another. What was synced, or written to be durable (O_DSYNC), stays.
//! A sector is never torn itself: where the kernel cuts a write within one, the first part alone is not kept.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::fuse::{Answers, Io, Mount, Request, Serve};
use crate::oracle::SECTOR_BYTES;
use crate::random::Random;

/// The disk; it goes when this is dropped.
#[derive(Debug)]
pub struct PowerDisk(Mount<Power>);

#[derive(Debug)]
struct Power(Mutex<State>);

#[derive(Debug)]
struct State {
    sectors: Vec<Sector>,
    /// Not yet carried out, each with what was answered before it came.
    waiting: Vec<(Request, u64)>,
    /// Requests that were carried out.
    clock: u64,
    random: Random,
    /// The power goes when the clock says this.
    cut_at: Option<u64>,
    off: bool,
    /// Says that it syncs, and does not.
    lying: bool,
}

#[derive(Debug)]
struct Sector {
    durable: Vec<u8>,
    /// Later writes; the last one is what is read.
    later: Vec<Later>,
}

#[derive(Debug)]
struct Later {
    /// When it was answered.
    at: u64,
    bytes: Vec<u8>,
    /// It goes to the end of the sector: nothing follows that belongs to it.
    whole: bool,
}

impl PowerDisk {
    /// Mounts a disk over the file at `path` that holds what the file does; `random` chooses all that happens to it.
    ///
    /// # Errors
    /// Why that cannot be done here.
    ///
    /// # Panics
    /// The host has no descriptor left.
    pub fn over(path: &Path, random: Random) -> Result<PowerDisk, String> {
        let content = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Mount::over(path, Power(Mutex::new(State::new(&content, random)))).map(PowerDisk)
    }

    /// From now on it says that it syncs, and does not.
    pub fn lie(&self) {
        self.state().lying = true;
    }

    /// The power goes in so many requests, before the last of them is carried out.
    pub fn cut_in(&self, requests: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.clock + requests);
    }

    /// It has no power.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// The power is back.
    pub fn power_on(&self) {
        self.state().off = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.served.state()
    }
}

impl Power {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serve for Power {
    fn bytes(&self) -> usize {
        self.state().sectors.len() * SECTOR_BYTES
    }

    fn take(&self, request: Request, answers: &Answers) {
        let mut state = self.state();
        if state.off {
            return answers.give(&request, Err(Errno::IO));
        }
        let now = state.clock;
        state.waiting.push((request, now));
    }

    fn rest(&self, answers: &Answers) -> bool {
        let mut state = self.state();
        if state.waiting.is_empty() {
            return false;
        }
        state.clock += 1;
        if state.cut_at.is_some_and(|at| at <= state.clock) {
            let waiting = state.cut();
            waiting.iter().for_each(|request| answers.give(request, Err(Errno::IO)));
            return false;
        }
        let count = state.waiting.len() as u64;
        let chosen = usize::try_from(state.random.below(count)).unwrap_or(0);
        let (request, since) = state.waiting.swap_remove(chosen);
        let answer = state.carry_out(&request.io, since);
        answers.give(&request, Ok(answer));
        true
    }
}

impl State {
    fn new(content: &[u8], random: Random) -> State {
        let sectors = content.chunks(SECTOR_BYTES);
        let sectors = sectors.map(|bytes| Sector { durable: bytes.to_vec(), later: Vec::new() }).collect();
        State { sectors, waiting: Vec::new(), clock: 0, random, cut_at: None, off: false, lying: false }
    }

    /// What is asked, now; a sync covers what was answered by `since`.
    fn carry_out(&mut self, io: &Io, since: u64) -> Vec<u8> {
        match io {
            Io::Read { at, bytes } => return self.read(*at, *bytes),
            Io::Sync if self.lying => {}
            Io::Sync => self.sectors.iter_mut().for_each(|sector| sector.sync(since)),
            Io::Write { .. } | Io::Clear { .. } => self.write(io),
        }
        Vec::new()
    }

    fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        let (first, last) = (at / SECTOR_BYTES, (at + bytes).div_ceil(SECTOR_BYTES));
        let whole: Vec<u8> = self.sectors[first..last].iter().flat_map(Sector::newest).copied().collect();
        whole[at - first * SECTOR_BYTES..][..bytes].to_vec()
    }

    fn write(&mut self, io: &Io) {
        let (at, data, durable) = match io {
            Io::Write { at, data, durable } => (*at, data.clone(), *durable && !self.lying),
            Io::Clear { at, bytes } => (*at, vec![0; *bytes], false),
            Io::Read { .. } | Io::Sync => return,
        };
        let (now, mut data, mut skip) = (self.clock, &data[..], at % SECTOR_BYTES);
        for sector in &mut self.sectors[at / SECTOR_BYTES..] {
            let (piece, rest) = data.split_at(data.len().min(SECTOR_BYTES - skip));
            if piece.is_empty() {
                return;
            }
            sector.write(skip, piece, now);
            if durable {
                sector.sync(now);
            }
            (data, skip) = (rest, 0);
        }
    }

    /// The power goes: each sector keeps what the lot says. The requests that nobody carries out any more.
    fn cut(&mut self) -> Vec<Request> {
        let waiting: Vec<_> =
            std::mem::take(&mut self.waiting).into_iter().map(|(request, _)| request).collect();
        waiting.iter().for_each(|request| self.write(&request.io));
        for sector in &mut self.sectors {
            sector.later.retain(|later| later.whole);
            let kept = self.random.below(sector.later.len() as u64 + 1).checked_sub(1);
            let kept =
                kept.and_then(|nth| usize::try_from(nth).ok()).map(|nth| sector.later.swap_remove(nth));
            sector.later.clear();
            sector.durable = kept.map_or_else(|| std::mem::take(&mut sector.durable), |later| later.bytes);
        }
        (self.off, self.cut_at) = (true, None);
        waiting
    }
}

impl Sector {
    fn newest(&self) -> &[u8] {
        self.later.last().map_or(&self.durable, |later| &later.bytes)
    }

    fn write(&mut self, from: usize, piece: &[u8], at: u64) {
        let (mut bytes, until) = (self.newest().to_vec(), from + piece.len());
        bytes[from..until].copy_from_slice(piece);
        self.later.push(Later { at, bytes, whole: until == SECTOR_BYTES });
    }

    /// What was answered by `since` is durable.
    fn sync(&mut self, since: u64) {
        let covered = self.later.iter().rposition(|later| later.at <= since && later.whole);
        if let Some(last) = covered.and_then(|last| self.later.drain(..=last).next_back()) {
            self.durable = last.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> State {
        State::new(&[0; 4 * SECTOR_BYTES], Random::new(1))
    }

    fn write(state: &mut State, at: usize, fill: u8, sectors: usize, durable: bool) {
        state.clock += 1;
        let data = vec![fill; sectors * SECTOR_BYTES];
        let since = state.clock;
        state.carry_out(&Io::Write { at: at * SECTOR_BYTES, data, durable }, since);
    }

    fn bytes(state: &State) -> Vec<u8> {
        state.sectors.iter().map(|sector| sector.newest()[0]).collect()
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_go_sector_by_sector() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut state = State { random: Random::new(seed), ..disk() };
            write(&mut state, 0, 1, 2, false);
            let now = state.clock;
            state.carry_out(&Io::Sync, now);
            write(&mut state, 0, 2, 2, false);
            write(&mut state, 3, 3, 1, true);
            assert_eq!(bytes(&state), [2, 2, 0, 3]);
            state.cut();
            seen.insert(bytes(&state));
        }
        let legal = [[1, 1, 0, 3], [1, 2, 0, 3], [2, 1, 0, 3], [2, 2, 0, 3]];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), legal);
    }

    #[test]
    fn a_sync_covers_nothing_that_was_answered_after_it_was_asked_for() {
        let mut state = disk();
        write(&mut state, 0, 1, 1, false);
        let asked = state.clock;
        write(&mut state, 0, 2, 1, false);
        write(&mut state, 1, 2, 1, false);
        state.carry_out(&Io::Sync, asked);
        assert_eq!((state.sectors[0].durable[0], state.sectors[1].durable[0]), (1, 0));
        assert_eq!(bytes(&state), [2, 2, 0, 0]);
    }

    #[test]
    fn a_sector_that_was_cut_is_kept_whole_or_not_at_all() {
        for seed in 0..50 {
            let mut state = State { random: Random::new(seed), ..disk() };
            let mut piece = |at, bytes: usize| {
                state.carry_out(&Io::Write { at, data: vec![1; bytes], durable: false }, 0);
            };
            piece(0, 700);
            piece(700, 324);
            piece(1024, 100);
            state.cut();
            let whole = |sector: &Sector| sector.durable.iter().all(|byte| *byte == sector.durable[0]);
            assert!(state.sectors.iter().all(whole) && state.sectors[2].durable[0] == 0);
        }
    }

    #[test]
    fn a_disk_that_lies_keeps_nothing_for_certain() {
        let mut state = disk();
        state.lying = true;
        write(&mut state, 0, 1, 1, true);
        let now = state.clock;
        state.carry_out(&Io::Sync, now);
        assert_eq!(state.sectors[0].durable[0], 0);
    }

    #[test]
    fn a_cleared_range_reads_as_zeros_and_is_as_lost_as_a_write() {
        let mut state = disk();
        write(&mut state, 0, 7, 4, true);
        state.carry_out(&Io::Clear { at: SECTOR_BYTES, bytes: 2 * SECTOR_BYTES }, 0);
        assert_eq!((bytes(&state), state.sectors[1].durable[0]), (vec![7, 0, 0, 7], 7));
    }
}
