//! Which contents of a disk are legal, whatever crashed in between.
//!
//! In: writes, reads and flushes as the driver begins them and as they come back. Out: whether a read, or the image
//! itself, holds something it may hold. What stands in a sector after a write is a function of the sector and of the
//! write's generation, and fills it, so bytes say where they come from: no checksum could say more.
//!
//! The rule, per sector. A write may take effect at any moment from its beginning to its completion, more than once
//! if it is replayed. It is *replaced* when a write that was begun after its completion completes itself.
//!
//! ```text
//! a read             may show any write begun before the read came back and not replaced before the read began
//! the image at rest  any write not replaced: nothing completed is lost with a daemon (N2), nothing old returns (N3)
//! after power loss   also those replaced since the last good flush began: {last flushed, every later write}
//! ```
//! Bytes of several legal writes may be mixed in a read that ran beside a write, since reads of a page cache are not
//! atomic; never in an image at rest.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::random::Random;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// Something that must not be on the disk.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("sector {sector} holds {found}; legal there: generations {legal:?}")]
pub struct Illegal {
    /// Where.
    pub sector: u64,
    /// What was found, as far as it can be told.
    pub found: String,
    /// Generations that would be right.
    pub legal: Vec<u64>,
}

/// A write under way.
#[derive(Debug)]
#[must_use = "say how it went: `written` or `failed`"]
pub struct Write {
    generation: u64,
    first: u64,
    sectors: u64,
}

/// A read under way.
#[derive(Debug)]
#[must_use = "say what came back: `check_read`"]
pub struct Read {
    begun: u64,
    first: u64,
}

/// A flush under way.
#[derive(Debug)]
#[must_use = "say that it came back: `flushed`"]
pub struct Flush {
    begun: u64,
}

/// A write as one of its sectors remembers it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it was begun, which names it.
    generation: u64,
    /// It made zeros.
    zeros: bool,
    done: Option<u64>,
    replaced: Option<u64>,
    /// What replaced it is durable, so that it does not come back.
    gone: bool,
}

impl Entry {
    fn begun(generation: u64, zeros: bool) -> Entry {
        Entry { generation, zeros, done: None, replaced: None, gone: false }
    }

    fn content(&self, sector: u64) -> [u8; SECTOR_BYTES] {
        if self.zeros { [0; SECTOR_BYTES] } else { content(sector, self.generation) }
    }
}

/// The disk as it may be.
#[derive(Debug)]
pub struct Oracle {
    sectors: Vec<Vec<Entry>>,
    /// One tick for everything that happens.
    clock: u64,
    /// When the reads under way began.
    reads: BTreeSet<u64>,
    /// When the last flush began that came back.
    flushed: u64,
}

impl Oracle {
    /// A disk of that many sectors, all of generation 0.
    pub fn new(sectors: u64) -> Oracle {
        let first = Entry { done: Some(0), ..Entry::begun(0, false) };
        let sectors = (0..sectors).map(|_| vec![first]).collect();
        Oracle { sectors, clock: 0, reads: BTreeSet::new(), flushed: 0 }
    }

    /// Its sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// What the image must hold before the first write.
    pub fn image(&self) -> Vec<u8> {
        (0..self.sectors()).flat_map(|sector| content(sector, 0)).collect()
    }

    /// A write begins; with what it must write.
    ///
    /// # Panics
    /// Outside the disk.
    pub fn write(&mut self, first: u64, sectors: u64) -> (Write, Vec<u8>) {
        let write = self.begin(first, sectors, false);
        let data = (first..first + sectors).flat_map(|sector| content(sector, write.generation)).collect();
        (write, data)
    }

    /// A write of zeroes begins.
    ///
    /// # Panics
    /// Outside the disk.
    pub fn zeroes(&mut self, first: u64, sectors: u64) -> Write {
        self.begin(first, sectors, true)
    }

    fn begin(&mut self, first: u64, sectors: u64, zeros: bool) -> Write {
        let generation = self.tick();
        self.range(first, sectors)
            .iter_mut()
            .for_each(|entries| entries.push(Entry::begun(generation, zeros)));
        Write { generation, first, sectors }
    }

    /// A write completed: what was complete when it began is replaced.
    ///
    /// # Panics
    /// Not from this oracle.
    pub fn written(&mut self, write: Write) {
        self.complete(write, false);
    }

    /// A write completed and is durable, as each is where there is no cache: what it replaces does not come back, not
    /// even after the host has lost its power.
    ///
    /// # Panics
    /// Not from this oracle.
    pub fn written_durably(&mut self, write: Write) {
        self.complete(write, true);
    }

    fn complete(&mut self, write: Write, durable: bool) {
        let now = self.tick();
        let Write { generation, first, sectors } = write;
        let forget = self.flushed.min(self.reads.first().copied().unwrap_or(now));
        for entries in self.range(first, sectors) {
            for entry in entries.iter_mut() {
                match entry.done {
                    _ if entry.generation == generation => entry.done = Some(now),
                    Some(done) if done < generation => {
                        entry.replaced = entry.replaced.or(Some(now));
                        entry.gone |= durable;
                    }
                    _ => {}
                }
            }
            entries.retain(|entry| entry.replaced.is_none_or(|replaced| replaced > forget));
        }
    }

    /// A write came back with an error, or zeroes were a discard: it may have taken effect or not, and replaces nothing.
    ///
    /// # Panics
    /// Not from this oracle.
    pub fn failed(&mut self, write: Write) {
        let now = self.tick();
        let own = |entry: &&mut Entry| entry.generation == write.generation;
        for entries in self.range(write.first, write.sectors) {
            entries.iter_mut().filter(own).for_each(|entry| entry.done = Some(now));
        }
    }

    /// A read begins at sector `first`.
    pub fn read(&mut self, first: u64) -> Read {
        let begun = self.tick();
        self.reads.insert(begun);
        Read { begun, first }
    }

    /// A read came back with this.
    ///
    /// # Errors
    /// The first sector with something that must not be there.
    ///
    /// # Panics
    /// Outside the disk.
    pub fn check_read(&mut self, read: Read, data: &[u8]) -> Result<(), Illegal> {
        self.reads.remove(&read.begun);
        let legal = |entry: &Entry| entry.replaced.is_none_or(|replaced| replaced > read.begun);
        let beside = |entry: &Entry| entry.done.is_none_or(|done| done > read.begun);
        (read.first..).zip(data.chunks(SECTOR_BYTES)).try_for_each(|(sector, bytes)| {
            let mixed = self.entries(sector).iter().any(beside);
            self.check(sector, bytes, legal, mixed)
        })
    }

    /// A read came back with an error.
    pub fn gave_up(&mut self, Read { begun, .. }: Read) {
        self.reads.remove(&begun);
    }

    /// A flush begins.
    pub fn flush(&mut self) -> Flush {
        Flush { begun: self.tick() }
    }

    /// A flush came back well.
    pub fn flushed(&mut self, flush: Flush) {
        self.flushed = self.flushed.max(flush.begun);
    }

    /// Checks the image; no write is being carried out.
    ///
    /// # Errors
    /// The first sector with something that must not be there.
    pub fn check_image(&self, image: &[u8]) -> Result<(), Illegal> {
        self.check_all(image, |entry| entry.replaced.is_none())
    }

    /// Checks the image after the host lost what it had not made durable.
    ///
    /// # Errors
    /// The first sector with something that must not be there.
    pub fn check_after_power_loss(&self, image: &[u8]) -> Result<(), Illegal> {
        self.check_all(image, self.survives())
    }

    /// The same; from now on the disk holds what was found, and nothing that was under way goes on.
    ///
    /// # Errors
    /// The first sector with something that must not be there.
    pub fn power_lost(&mut self, image: &[u8]) -> Result<(), Illegal> {
        self.check_after_power_loss(image)?;
        self.reads.clear();
        for (sector, (entries, bytes)) in (0..).zip(self.sectors.iter_mut().zip(image.chunks(SECTOR_BYTES))) {
            entries.retain(|entry| entry.content(sector) == bytes);
            for entry in entries {
                *entry = Entry { done: entry.done.or(Some(self.clock)), replaced: None, ..*entry };
            }
        }
        Ok(())
    }

    /// What may be there after the host lost what it had not made durable.
    fn survives(&self) -> impl Fn(&Entry) -> bool + Copy + use<> {
        let flushed = self.flushed;
        move |entry| !entry.gone && entry.replaced.is_none_or(|replaced| replaced > flushed)
    }

    fn check_all(&self, image: &[u8], legal: impl Fn(&Entry) -> bool + Copy) -> Result<(), Illegal> {
        let mut sectors = (0..).zip(image.chunks(SECTOR_BYTES));
        sectors.try_for_each(|(sector, bytes)| self.check(sector, bytes, legal, false))
    }

    fn check(
        &self,
        sector: u64,
        bytes: &[u8],
        legal: impl Fn(&Entry) -> bool,
        mixed: bool,
    ) -> Result<(), Illegal> {
        let entries: Vec<&Entry> = self.entries(sector).iter().filter(|entry| legal(entry)).collect();
        let contents: Vec<_> = entries.iter().map(|entry| entry.content(sector)).collect();
        let whole = contents.iter().any(|content| content == bytes);
        let of_some = |(at, byte): (usize, &u8)| contents.iter().any(|content| content[at] == *byte);
        if whole || mixed && bytes.iter().enumerate().all(of_some) {
            return Ok(());
        }
        let legal = entries.iter().map(|entry| entry.generation).collect();
        Err(Illegal { sector, found: describe(sector, bytes), legal })
    }

    fn entries(&self, sector: u64) -> &[Entry] {
        let at = usize::try_from(sector).unwrap_or(usize::MAX);
        self.sectors.get(at).unwrap_or_else(|| panic!("sector {sector} is outside the disk"))
    }

    fn range(&mut self, first: u64, sectors: u64) -> &mut [Vec<Entry>] {
        let at = |sector: u64| usize::try_from(sector).unwrap_or(usize::MAX);
        let range = at(first)..at(first + sectors);
        self.sectors
            .get_mut(range)
            .unwrap_or_else(|| panic!("sector {first} + {sectors} is outside the disk"))
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// What a sector holds after the write of that generation: its number, the generation, and what follows from both.
pub fn content(sector: u64, generation: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    let mut filler = Random::new(sector << 40 ^ generation);
    for (nth, word) in bytes.chunks_mut(8).enumerate() {
        let value = [sector, generation].get(nth).copied().unwrap_or_else(|| filler.next_u64());
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// What a sector seems to hold.
fn describe(sector: u64, bytes: &[u8]) -> String {
    let word =
        |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (says, generation) = (word(0), word(8));
    if bytes.iter().all(|byte| *byte == 0) {
        return "zeros".into();
    }
    if bytes == content(says, generation) {
        return if says == sector {
            format!("generation {generation}")
        } else {
            format!("generation {generation} of sector {says}")
        };
    }
    let head: Vec<_> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("neither one write nor legal ones mixed (begins {})", head.join(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a disk of one sector may hold at rest: among generations 0 to 9.
    fn legal(oracle: &Oracle) -> Vec<u64> {
        (0..20).filter(|generation| oracle.check_image(&content(0, *generation)).is_ok()).collect()
    }

    fn generation(write: &Write) -> u64 {
        write.generation
    }

    #[test]
    fn n2_a_completed_write_is_all_that_may_be_there() {
        let mut oracle = Oracle::new(1);
        let (write, data) = oracle.write(0, 1);
        let new = generation(&write);
        assert_eq!((data.as_slice(), legal(&oracle)), (&content(0, new)[..], vec![0, new]), "under way");
        oracle.written(write);
        assert_eq!(legal(&oracle), [new]);
    }

    #[test]
    fn n3_zeros_replace_and_are_replaced_as_writes_are() {
        let mut oracle = Oracle::new(1);
        let zeros = [0; SECTOR_BYTES];
        assert!(oracle.check_image(&zeros).is_err(), "nobody made them");
        let write = oracle.zeroes(0, 1);
        assert!(oracle.check_image(&zeros).is_ok() && oracle.check_image(&content(0, 0)).is_ok());
        oracle.written(write);
        assert_eq!(oracle.check_image(&content(0, 0)).unwrap_err().found, "generation 0");
        let (write, data) = oracle.write(0, 1);
        oracle.written(write);
        assert!(oracle.check_image(&data).is_ok());
        assert_eq!(oracle.check_image(&zeros).unwrap_err().found, "zeros");
    }

    #[test]
    fn n3_what_was_replaced_does_not_come_back_and_what_ran_beside_may() {
        let mut oracle = Oracle::new(1);
        let (a, b) = (oracle.write(0, 1).0, oracle.write(0, 1).0);
        let (first, second) = (generation(&a), generation(&b));
        oracle.written(b);
        assert_eq!(legal(&oracle), [first, second], "the first is still under way, and may be replayed");
        oracle.written(a);
        assert_eq!(legal(&oracle), [first, second], "neither began after the other was complete");
        let c = oracle.write(0, 1).0;
        let third = generation(&c);
        oracle.written(c);
        assert_eq!(legal(&oracle), [third]);
    }

    #[test]
    fn a_failed_write_replaces_nothing_and_is_replaced() {
        let mut oracle = Oracle::new(1);
        let write = oracle.write(0, 1).0;
        let failed = generation(&write);
        oracle.failed(write);
        assert_eq!(legal(&oracle), [0, failed]);
        let next = oracle.write(0, 1).0;
        let last = generation(&next);
        oracle.written(next);
        assert_eq!(legal(&oracle), [last]);
    }

    #[test]
    fn a_read_may_show_what_was_there_while_it_ran() {
        let mut oracle = Oracle::new(1);
        let read = oracle.read(0);
        let write = oracle.write(0, 1).0;
        let new = generation(&write);
        oracle.written(write);
        let again = Read { begun: read.begun, first: 0 };
        oracle.reads.insert(read.begun);
        assert_eq!(oracle.check_read(read, &content(0, 0)), Ok(()), "it began before the write completed");
        let torn = [&content(0, 0)[..100], &content(0, new)[100..]].concat();
        assert_eq!(oracle.check_read(again, &torn), Ok(()), "the page cache was read while it was written");
        let later = oracle.read(0);
        let error = oracle.check_read(later, &content(0, 0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("sector 0 holds generation 0; legal there: generations [{new}]")
        );
        assert!(oracle.check_image(&torn).is_err(), "at rest nothing is torn");
    }

    #[test]
    fn power_loss_goes_back_to_the_last_flush_and_no_further() {
        let mut oracle = Oracle::new(1);
        let mut write = || {
            let write = oracle.write(0, 1).0;
            let generation = generation(&write);
            oracle.written(write);
            generation
        };
        let (first, second) = (write(), write());
        let flush = oracle.flush();
        oracle.flushed(flush);
        let last = oracle.write(0, 1).0;
        let third = generation(&last);
        oracle.written(last);
        let legal = |generation| oracle.check_after_power_loss(&content(0, generation)).is_ok();
        assert_eq!([0, first, second, third].map(legal), [false, false, true, true]);
    }

    #[test]
    fn what_a_durable_write_replaced_does_not_survive_a_power_loss() {
        let mut oracle = Oracle::new(1);
        let mut write = |durable: bool| {
            let write = oracle.write(0, 1).0;
            let generation = generation(&write);
            if durable {
                oracle.written_durably(write)
            } else {
                oracle.written(write)
            }
            generation
        };
        let (first, second, third) = (write(false), write(true), write(false));
        let legal = |generation| oracle.check_after_power_loss(&content(0, generation)).is_ok();
        assert_eq!([0, first, second, third].map(legal), [false, false, true, true]);
    }

    #[test]
    fn what_a_power_loss_left_is_all_there_is_from_then_on() {
        let mut oracle = Oracle::new(1);
        let (done, lost) = (oracle.write(0, 1).0, oracle.write(0, 1).0);
        let (first, second) = (generation(&done), generation(&lost));
        oracle.written(done);
        assert!(oracle.power_lost(&content(0, second + 1)).is_err());
        assert_eq!(oracle.power_lost(&content(0, first)), Ok(()));
        assert_eq!(legal(&oracle), [first]);
        let again = oracle.check_after_power_loss(&content(0, second));
        assert!(again.is_err(), "it was not carried out, and nobody will");
    }

    #[test]
    fn a_sector_of_elsewhere_is_named() {
        let oracle = Oracle::new(3);
        let mut image = oracle.image();
        assert_eq!(oracle.check_image(&image), Ok(()));
        image[512..1024].copy_from_slice(&content(2, 0));
        let error = oracle.check_image(&image).unwrap_err();
        assert_eq!((error.sector, error.found.as_str()), (1, "generation 0 of sector 2"));
    }
}
