//! Replays the committed fuzz corpora on the stable compiler: each input must keep every promise of its target.
//!
//! `OUTBOARD_WRITE_SEEDS=1` writes the seeds into the corpus first. See docs/fuzzing.md.

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use tests::fuzz::TARGETS;
use tests::fuzz::seeds::seeds;

const MAX_FILES: usize = 400;
const MAX_BYTES: usize = 1 << 20;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder(target)).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn write_seeds(target: &str) {
    fs::create_dir_all(folder(target)).unwrap();
    for (name, bytes) in seeds(target) {
        fs::write(folder(target).join(name), bytes).unwrap();
    }
}

fn replay(target: &str) {
    if std::env::var_os("OUTBOARD_WRITE_SEEDS").is_some() {
        write_seeds(target);
    }
    let (_, body) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let broken = |bytes: &Vec<u8>| catch_unwind(|| body(bytes)).is_err();
    let failed: Vec<_> = corpus(target).into_iter().filter(|(_, bytes)| broken(bytes)).collect();
    let names: Vec<_> = failed.iter().map(|(name, _)| name).collect();
    assert!(names.is_empty(), "{target}: inputs that break a promise, told of above: {names:?}");
}

#[test]
fn session() {
    replay("session");
}

#[test]
fn memory() {
    replay("memory");
}

#[test]
fn split() {
    replay("split");
}

#[test]
fn packed() {
    replay("packed");
}

#[test]
fn inflight() {
    replay("inflight");
}

#[test]
fn volfile() {
    replay("volfile");
}

#[test]
fn the_corpora_have_every_seed_and_stay_small() {
    let (mut files, mut bytes) = (0, 0);
    for (target, _) in TARGETS {
        let corpus = corpus(target);
        (files, bytes) = (files + corpus.len(), bytes + corpus.values().map(Vec::len).sum::<usize>());
        for (name, seed) in seeds(target) {
            assert_eq!(
                corpus.get(&name),
                Some(&seed),
                "{target}/{name}; write it with OUTBOARD_WRITE_SEEDS=1"
            );
        }
    }
    assert!(files < MAX_FILES && bytes < MAX_BYTES, "{files} files, {bytes} bytes");
}
