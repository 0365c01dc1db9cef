//! The mode of the write cache: whether a completed write is durable, or becomes so by the next flush.
//!
//! In: what the driver negotiated, and what it chooses in the configuration space. Out: for each write, whether it must be
//! durable when it completes (virtio 1.3 §5.2.6.2): a driver that may choose the mode has chosen, and one that cannot
//! flush could not make writes durable later. One value that all workers read, without a lock.
//! Promises: until the driver chooses, its cache keeps writes back if it can flush, and not if it cannot (§5.2.5.2); a
//! reset, and another front-end, begin so again. The next worker goes on in the mode of this one, whoever chose it: the
//! driver, or a daemon before this one that it was taken over from.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use backends::kept::Kept;
use backends::memory::words::Words;
use virtio_bindings::virtio_blk as spec;

const FLUSH: u64 = 1 << spec::VIRTIO_BLK_F_FLUSH;
const CONFIG_WCE: u64 = 1 << spec::VIRTIO_BLK_F_CONFIG_WCE;

/// Under which name the keeper has the mode.
const NAME: &str = "blk.cache";
/// Nothing was chosen.
const BEGUN: u8 = 0;
const BACK: u8 = 1;
const THROUGH: u8 = 2;

/// The mode, and the features that say what it means.
#[derive(Debug)]
pub struct Cache {
    /// One word.
    mode: Words,
    features: AtomicU64,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { mode: Words::own(1), features: AtomicU64::new(0) }
    }
}

impl Cache {
    /// In the mode of the worker before. Where the host has no memory for that, the next one begins anew.
    pub fn kept(kept: &Kept) -> Cache {
        let before = kept.take(NAME).and_then(|fd| Words::of(fd, 1));
        let created = || {
            let (words, fd) = Words::create(NAME, 1).ok()?;
            kept.keep(NAME, fd.as_fd());
            Some(words)
        };
        let mode = before.or_else(created).unwrap_or_else(|| Words::own(1));
        Cache { mode, ..Cache::default() }
    }

    fn mode(&self) -> u8 {
        let word = self.mode.first().map_or(0, |word| word.load(Ordering::Relaxed));
        u8::try_from(word).unwrap_or(THROUGH)
    }

    fn set(&self, mode: u8) {
        self.mode.iter().for_each(|word| word.store(mode.into(), Ordering::Relaxed));
    }

    /// The driver has acknowledged these.
    pub fn negotiated(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }

    /// The driver wants writes kept back, or through.
    pub fn choose(&self, write_back: bool) {
        self.set(if write_back { BACK } else { THROUGH });
    }

    /// As it began.
    pub fn reset(&self) {
        self.set(BEGUN);
    }

    /// What the configuration space shows. A driver may read it only when features are agreed on (§5.2.5.1); before that
    /// it is as it will be for most.
    pub fn keeps_back(&self) -> bool {
        match self.mode() {
            BEGUN => self.features.load(Ordering::Relaxed) & (FLUSH | CONFIG_WCE) != CONFIG_WCE,
            mode => mode == BACK,
        }
    }

    /// Whether a write of a driver with these features must be durable when it completes.
    pub fn writes_through(&self, features: u64) -> bool {
        match self.mode() {
            mode if features & CONFIG_WCE != 0 && mode != BEGUN => mode == THROUGH,
            _ => features & FLUSH == 0,
        }
    }

    /// For another daemon.
    pub fn save(&self) -> u8 {
        self.mode()
    }

    /// What another one saved; `false`: that makes no sense.
    pub fn load(&self, saved: u8) -> bool {
        let makes_sense = saved <= THROUGH;
        if makes_sense {
            self.set(saved);
        }
        makes_sense
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_write_is_durable_5_2_6_2() {
        for (features, begun, back, through) in [
            (0, true, true, true),
            (FLUSH, false, false, false),
            (CONFIG_WCE, true, false, true),
            (FLUSH | CONFIG_WCE, false, false, true),
        ] {
            let cache = Cache::default();
            let modes =
                [|_: &Cache| {}, |cache: &Cache| cache.choose(true), |cache: &Cache| cache.choose(false)];
            let seen = modes.map(|choose| {
                choose(&cache);
                cache.writes_through(features)
            });
            assert_eq!(seen, [begun, back, through], "{features:#x}");
            cache.reset();
            assert_eq!(cache.writes_through(features), begun, "{features:#x}");
        }
    }

    #[test]
    fn what_the_configuration_space_shows_5_2_5_2() {
        let cache = Cache::default();
        assert!(cache.keeps_back());
        for (features, back) in [(0, true), (FLUSH, true), (FLUSH | CONFIG_WCE, true), (CONFIG_WCE, false)] {
            cache.negotiated(features);
            assert_eq!(cache.keeps_back(), back, "{features:#x}");
        }
        cache.choose(true);
        assert!(cache.keeps_back());
        cache.choose(false);
        assert!(!cache.keeps_back());
    }

    #[test]
    fn another_daemon_goes_on_in_the_same_mode() {
        for choose in [None, Some(true), Some(false)] {
            let (here, there) = (Cache::default(), Cache::default());
            choose.into_iter().for_each(|back| here.choose(back));
            assert!(there.load(here.save()));
            assert_eq!(here.mode(), there.mode());
        }
        let cache = Cache::default();
        assert!(!cache.load(3) && cache.keeps_back());
    }
}
