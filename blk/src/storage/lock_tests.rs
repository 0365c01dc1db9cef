//! Locks of one file by several open file descriptions: within a process they exclude each other as between processes.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::*;

fn image(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(4096).unwrap();
    path
}

fn open(path: &Path, write: bool) -> OwnedFd {
    File::options().read(true).write(write).open(path).unwrap().into()
}

fn cached(path: &Path, write: bool) -> Ways {
    Ways { cached: Some(open(path, write)), direct: None }
}

fn both(path: &Path) -> Ways {
    Ways { cached: Some(open(path, true)), direct: Some(open(path, true)) }
}

/// Without patience.
fn is_free(path: &Path, from: i64, to: Option<i64>) -> bool {
    sys::lock_file(open(path, true).as_fd(), Lock::Exclusive, from, to).is_ok()
}

#[test]
fn who_holds_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk.img");
    let holder = cached(&path, true);
    holder.lock(false).unwrap();
    let refused = cached(&path, false).lock(true).unwrap_err().to_string();
    let us = format!("process {} (", std::process::id());
    assert!(refused.starts_with(&us) && refused.contains("--read-only"), "{refused}");
    assert_eq!(Holder::of(&open(&image(&dir, "other.img"), true)), Holder(None));
    let odd = Holder(Some((7, "a\nb\u{1b}".to_owned()))).to_string();
    assert_eq!(odd, "process 7 (a\\nb\\u{1b})");
}

#[test]
fn each_way_has_a_part_of_the_lock_and_together_they_have_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk.img");
    let mut ways = both(&path);
    ways.lock(false).unwrap();
    assert!(!is_free(&path, 0, Some(1)) && !is_free(&path, MIDDLE, None) && !is_free(&path, 0, None));
    // One of them has nothing in flight any more, the other one has.
    ways.cached = None;
    assert!(!is_free(&path, 0, Some(1)) && is_free(&path, MIDDLE, None));
    ways.direct = None;
    assert!(is_free(&path, 0, None));
}

#[test]
fn what_was_open_before_goes_on_without_letting_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "disk.img");
    let before = both(&path);
    before.lock(false).unwrap();
    let stays = before.both().map(|way| way.unwrap().try_clone().unwrap());
    let ways = before.go_on(both(&path));
    // It cannot be another description, which would have no lock.
    ways.lock(false).unwrap();
    assert!(!is_free(&path, 0, None));
    drop(ways);
    assert!(!is_free(&path, 0, None), "{stays:?}");
}

/// The service manager has a descriptor of what was open before, too.
#[test]
fn other_ways_to_the_same_file_are_taken_over_and_those_to_another_file_stay_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (image(&dir, "disk.img"), image(&dir, "other.img"));
    let ways: [fn(&Path) -> Ways; 3] = [both, |path| cached(path, true), |path| cached(path, false)];
    for (from, before) in ways.iter().enumerate() {
        for (to, now) in ways.iter().enumerate().filter(|(to, _)| *to != from) {
            let before = before(&path);
            before.lock(from == 2).unwrap();
            let _stored = before.both().map(|way| way.map(|fd| fd.try_clone().unwrap()));
            before.go_on(now(&path)).lock(to == 2).unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
        }
    }
    let before = both(&path);
    before.lock(false).unwrap();
    let _stored = before.both().map(|way| way.map(|fd| fd.try_clone().unwrap()));
    before.go_on(both(&other)).lock(false).unwrap();
    assert!(!is_free(&path, 0, None));
}
