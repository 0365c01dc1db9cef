//! Translators that show what passes, or spoil it on purpose: what goes in comes out the same, later or not at all.

pub mod delay_gen;
pub mod error_gen;
pub mod io_stats;
pub mod tally;
pub mod trace;

use crate::graph::error::{Shown, nearest};
use crate::graph::options::{Bad, Preset, Setting, Type, Values};
use crate::op::{OpKind, OpSet};

/// `option ops`: which operations are meant.
pub(crate) const OPS: Setting = Setting {
    name: "ops",
    kind: Type::Text(1..=100),
    preset: Preset::Is("all"),
    about: "Operations that are meant: all, or some of read write flush discard zeroes secure-erase extents",
};

/// Which operations are meant.
pub(crate) fn ops(values: &Values) -> Result<OpSet, Bad> {
    match values.text("ops").unwrap_or("all") {
        "all" => Ok(OpSet::ALL),
        words => words.split_ascii_whitespace().try_fold(OpSet::NONE, |ops, word| Ok(ops.with(kind(word)?))),
    }
}

fn kind(word: &str) -> Result<OpKind, Bad> {
    let names = || OpKind::ALL.into_iter().map(OpKind::name);
    OpKind::ALL.into_iter().find(|kind| kind.name() == word).ok_or_else(|| {
        let meant =
            nearest(word, names()).map(|name| format!("`{name}` is meant, perhaps; ")).unwrap_or_default();
        let all = names().collect::<Vec<_>>().join(" ");
        Bad::option("ops", format!("{} is no operation; {meant}give all, or some of {all}", Shown(word)))
    })
}

/// The words of a set, as an option has them.
pub(crate) fn shown(ops: OpSet) -> String {
    if ops == OpSet::ALL {
        return "all".to_owned();
    }
    let names = OpKind::ALL.into_iter().filter(|kind| ops.has(*kind)).map(OpKind::name);
    names.collect::<Vec<_>>().join(" ")
}

/// Numbers that look random, the same for the same seed (xorshift64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A row of its own for each worker of a volume.
    pub(crate) fn new(seed: u64, worker: u64) -> Random {
        // Spread, so that small seeds begin with other numbers than their neighbours (the golden ratio, as SplitMix64).
        let mut random = Random(seed.wrapping_add(worker).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(1);
        random
    }

    /// A number less than `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper half of a product: as even as can be, without a division.
        u64::try_from((u128::from(self.0).wrapping_mul(end.into())) >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::volfile::VolumeText;

    fn parsed(words: &str) -> Result<OpSet, String> {
        static SETTINGS: &[Setting] = &[OPS];
        let mut volume = VolumeText::new("v", "debug/test");
        volume.options.push(("ops".into(), words.into(), 3));
        let values = volume.values(SETTINGS).unwrap();
        ops(&values).map_err(|bad| volume.refuse(&bad).to_string())
    }

    #[test]
    fn operations_are_read_and_shown() {
        assert_eq!(parsed("all"), Ok(OpSet::ALL));
        let some = OpSet::of(&[OpKind::Read, OpKind::SecureErase]);
        assert_eq!(parsed(" secure-erase read "), Ok(some));
        assert_eq!((shown(some).as_str(), shown(OpSet::ALL).as_str()), ("read secure-erase", "all"));
        assert_eq!(
            parsed("read,write").unwrap_err(),
            "3: volume v: option ops read,write: read,write is no operation; `read` is meant, perhaps; give all, or some of read write flush discard zeroes secure-erase extents"
        );
    }

    #[test]
    fn numbers_are_spread_evenly_and_the_same_for_a_seed() {
        let row = |seed| {
            let mut random = Random::new(seed, 0);
            std::array::from_fn::<u64, 8, _>(|_| random.below(1000))
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        let mut random = Random::new(1, 2);
        let mut counts = [0_u32; 10];
        (0..10_000).for_each(|_| counts[usize::try_from(random.below(10)).unwrap()] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        assert_eq!(random.below(0), 0);
    }
}
