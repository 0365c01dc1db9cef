//! Disks that lose their power: what was written and not flushed may be gone afterwards, sector by sector.
//!
//! In: images, over which these are mounted ([`crate::fuse`]), and when the power is to go. Out: the same images for
//! whoever opens them from then on; after the cut errors only, until the power is back; and then what is left.
//! They are as nasty as disks may be. Requests are carried out in any order. A sync covers what was answered before it
//! was asked for, of its own disk, and nothing that came later. At the cut each sector keeps one of what it may hold,
//! chosen by lot: what is durable, any later write that was answered, any that was under way; neighbours of one write
//! choose apart, so writes are torn at 512 bytes, and none goes before another. What was synced, or written to be durable
//! (O_DSYNC), stays. A sector is never torn itself: where the kernel cuts a write within one, the first part alone is not
//! kept.

mod medium;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::fuse::{Answers, Io, Mount, Request, Serve};
use crate::random::Random;
use medium::Medium;

/// The disks; they go when this is dropped.
#[derive(Debug)]
pub struct PowerDisks {
    supply: Arc<Mutex<Supply>>,
    _mounts: Vec<Mount<Power>>,
}

/// One of the disks, as those see it who use it.
#[derive(Debug)]
struct Power {
    supply: Arc<Mutex<Supply>>,
    disk: usize,
}

/// What the disks have in common.
#[derive(Debug)]
struct Supply {
    disks: Vec<Disk>,
    /// Requests that were carried out.
    clock: u64,
    random: Random,
    /// The power goes when the clock says this.
    cut_at: Option<u64>,
    off: bool,
    /// They say that they sync, and do not.
    lying: bool,
}

#[derive(Debug)]
struct Disk {
    medium: Medium,
    /// Not yet carried out, each with what was answered before it came.
    waiting: Vec<(Request, u64)>,
    /// Those that the cut met.
    cut: Vec<Request>,
}

impl PowerDisks {
    /// Mounts a disk over each of the files, which holds what the file does; `random` chooses all that happens to them.
    ///
    /// # Errors
    /// Why that cannot be done here.
    ///
    /// # Panics
    /// The host has no descriptor left.
    pub fn over(paths: &[&Path], random: Random) -> Result<PowerDisks, String> {
        let disk = |path: &&Path| {
            let content = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Disk { medium: Medium::new(&content), waiting: Vec::new(), cut: Vec::new() })
        };
        let disks = paths.iter().map(disk).collect::<Result<_, String>>()?;
        let supply = Supply { disks, clock: 0, random, cut_at: None, off: false, lying: false };
        let supply = Arc::new(Mutex::new(supply));
        let mount =
            |(disk, path): (usize, &&Path)| Mount::over(path, Power { supply: Arc::clone(&supply), disk });
        let mounts = paths.iter().enumerate().map(mount).collect::<Result<_, _>>()?;
        Ok(PowerDisks { supply, _mounts: mounts })
    }

    /// From now on they say that they sync, and do not.
    pub fn lie(&self) {
        lock(&self.supply).lying = true;
    }

    /// The power goes in so many requests, before the last of them is carried out.
    pub fn cut_in(&self, requests: u64) {
        let mut supply = lock(&self.supply);
        supply.cut_at = Some(supply.clock + requests);
    }

    /// They have no power.
    pub fn is_off(&self) -> bool {
        lock(&self.supply).off
    }

    /// The power is back.
    pub fn power_on(&self) {
        lock(&self.supply).off = false;
    }
}

fn lock(supply: &Mutex<Supply>) -> MutexGuard<'_, Supply> {
    supply.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serve for Power {
    fn bytes(&self) -> usize {
        lock(&self.supply).disks[self.disk].medium.bytes()
    }

    fn take(&self, request: Request, answers: &Answers) {
        let mut supply = lock(&self.supply);
        if supply.off {
            return answers.give(&request, Err(Errno::IO));
        }
        let now = supply.clock;
        supply.disks[self.disk].waiting.push((request, now));
    }

    fn rest(&self, answers: &Answers) -> bool {
        let mut supply = lock(&self.supply);
        for request in std::mem::take(&mut supply.disks[self.disk].cut) {
            answers.give(&request, Err(Errno::IO));
        }
        let Some((request, since)) = supply.next(self.disk) else {
            return !supply.disks[self.disk].cut.is_empty();
        };
        let answer = supply.carry_out(self.disk, &request.io, since);
        answers.give(&request, Ok(answer));
        true
    }
}

impl Supply {
    /// A request of this disk's to be carried out, unless that is where the power goes.
    fn next(&mut self, disk: usize) -> Option<(Request, u64)> {
        let waiting = self.disks[disk].waiting.len() as u64;
        if waiting == 0 {
            return None;
        }
        self.clock += 1;
        if self.cut_at.is_some_and(|at| at <= self.clock) {
            self.cut();
            return None;
        }
        let chosen = usize::try_from(self.random.below(waiting)).unwrap_or(0);
        Some(self.disks[disk].waiting.swap_remove(chosen))
    }

    /// What is asked, now; a sync covers what was answered by `since`.
    fn carry_out(&mut self, disk: usize, io: &Io, since: u64) -> Vec<u8> {
        let medium = &mut self.disks[disk].medium;
        match io {
            Io::Read { at, bytes } => return medium.read(*at, *bytes),
            Io::Sync if self.lying => {}
            Io::Sync => medium.sync(since),
            Io::Write { .. } | Io::Clear { .. } => medium.write(io, self.clock, !self.lying),
        }
        Vec::new()
    }

    fn cut(&mut self) {
        for disk in &mut self.disks {
            let waiting = std::mem::take(&mut disk.waiting).into_iter().map(|(request, _)| request);
            disk.cut.extend(waiting.inspect(|request| disk.medium.write(&request.io, self.clock, false)));
            disk.medium.cut(&mut self.random);
        }
        (self.off, self.cut_at) = (true, None);
    }
}
