//! What a disk holds, sector by sector: what is durable, and what was written since.

use crate::fuse::Io;
use crate::oracle::SECTOR_BYTES;
use crate::random::Random;

/// A disk's sectors.
#[derive(Debug)]
pub struct Medium(Vec<Sector>);

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

impl Medium {
    /// One that holds this.
    pub fn new(content: &[u8]) -> Medium {
        let sectors = content.chunks(SECTOR_BYTES);
        Medium(sectors.map(|bytes| Sector { durable: bytes.to_vec(), later: Vec::new() }).collect())
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.0.len() * SECTOR_BYTES
    }

    /// What somebody reads there.
    pub fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        let (first, last) = (at / SECTOR_BYTES, (at + bytes).div_ceil(SECTOR_BYTES));
        let whole: Vec<u8> = self.0[first..last].iter().flat_map(Sector::newest).copied().collect();
        whole[at - first * SECTOR_BYTES..][..bytes].to_vec()
    }

    /// A write, or a range of zeros, that is answered now; it is durable if it asks for that and the disk is `honest`.
    pub fn write(&mut self, io: &Io, now: u64, honest: bool) {
        let (at, data, durable) = match io {
            Io::Write { at, data, durable } => (*at, data.clone(), *durable && honest),
            Io::Clear { at, bytes } => (*at, vec![0; *bytes], false),
            Io::Read { .. } | Io::Sync => return,
        };
        let (mut data, mut skip) = (&data[..], at % SECTOR_BYTES);
        for sector in &mut self.0[at / SECTOR_BYTES..] {
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

    /// What was answered by `since` is durable.
    pub fn sync(&mut self, since: u64) {
        self.0.iter_mut().for_each(|sector| sector.sync(since));
    }

    /// The power goes: each sector keeps what the lot says.
    pub fn cut(&mut self, random: &mut Random) {
        for sector in &mut self.0 {
            sector.later.retain(|later| later.whole);
            let kept = random.below(sector.later.len() as u64 + 1).checked_sub(1);
            let kept =
                kept.and_then(|nth| usize::try_from(nth).ok()).map(|nth| sector.later.swap_remove(nth));
            sector.later.clear();
            sector.durable = kept.map_or_else(|| std::mem::take(&mut sector.durable), |later| later.bytes);
        }
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

    fn medium() -> Medium {
        Medium::new(&[0; 4 * SECTOR_BYTES])
    }

    fn write(medium: &mut Medium, at: usize, fill: u8, sectors: usize, durable: bool, now: u64) {
        let data = vec![fill; sectors * SECTOR_BYTES];
        medium.write(&Io::Write { at: at * SECTOR_BYTES, data, durable }, now, true);
    }

    fn read(medium: &Medium) -> Vec<u8> {
        medium.0.iter().map(|sector| sector.newest()[0]).collect()
    }

    fn durable(medium: &Medium) -> Vec<u8> {
        medium.0.iter().map(|sector| sector.durable[0]).collect()
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_go_sector_by_sector() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut medium = medium();
            write(&mut medium, 0, 1, 2, false, 1);
            medium.sync(1);
            write(&mut medium, 0, 2, 2, false, 2);
            write(&mut medium, 3, 3, 1, true, 3);
            assert_eq!(read(&medium), [2, 2, 0, 3]);
            medium.cut(&mut Random::new(seed));
            seen.insert(read(&medium));
        }
        let legal = [[1, 1, 0, 3], [1, 2, 0, 3], [2, 1, 0, 3], [2, 2, 0, 3]];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), legal);
    }

    #[test]
    fn a_sync_covers_nothing_that_was_answered_after_it_was_asked_for() {
        let mut medium = medium();
        write(&mut medium, 0, 1, 1, false, 1);
        write(&mut medium, 0, 2, 2, false, 2);
        medium.sync(1);
        assert_eq!((durable(&medium), read(&medium)), (vec![1, 0, 0, 0], vec![2, 2, 0, 0]));
    }

    #[test]
    fn a_sector_that_was_cut_is_kept_whole_or_not_at_all() {
        for seed in 0..50 {
            let mut medium = medium();
            for (at, bytes) in [(0, 700), (700, 324), (1024, 100)] {
                medium.write(&Io::Write { at, data: vec![1; bytes], durable: false }, 1, true);
            }
            medium.cut(&mut Random::new(seed));
            let whole = |sector: &Sector| sector.durable.iter().all(|byte| *byte == sector.durable[0]);
            assert!(medium.0.iter().all(whole) && durable(&medium)[2] == 0);
        }
    }

    #[test]
    fn a_cleared_range_reads_as_zeros_and_is_as_lost_as_a_write() {
        let mut medium = medium();
        write(&mut medium, 0, 7, 4, true, 1);
        medium.write(&Io::Clear { at: SECTOR_BYTES, bytes: 2 * SECTOR_BYTES }, 2, true);
        assert_eq!((read(&medium), durable(&medium)), (vec![7, 0, 0, 7], vec![7; 4]));
    }
}
