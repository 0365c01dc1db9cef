//! What the units say: that systemd understands all of it, how much it finds exposed, and that they agree.

use std::path::Path;
use std::process::{Command, Output};

use tests::daemon::binary;
use xtask::packages;

use super::{KINDS, unit, units};

/// Most exposure that `systemd-analyze security` may find, of 10.
const MOST_EXPOSED: f64 = 0.5;

fn analyze(words: &[&str], unit: &Path) -> Output {
    packages::ensure().unwrap();
    Command::new("systemd-analyze").args(words).arg(unit).output().unwrap()
}

/// `→ Overall exposure level for outboard-rng@i.service: 0.3 SAFE`
fn overall(table: &str) -> Option<f64> {
    let line = table.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split_whitespace().next()?.parse().ok()
}

#[test]
fn hardly_anything_is_exposed() {
    for kind in KINDS {
        let path = units().join(format!("outboard-{kind}@.service"));
        let looked = analyze(&["security", "--offline=true", "--no-pager"], &path);
        let table = String::from_utf8_lossy(&looked.stdout);
        let overall = overall(&table).unwrap_or_else(|| panic!("{looked:?}"));
        assert!(overall <= MOST_EXPOSED, "{kind}: {overall}\n{table}");
    }
}

#[test]
fn exposure_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("open.service");
    std::fs::write(&path, "[Service]\nExecStart=/bin/true\n").unwrap();
    let looked = analyze(&["security", "--offline=true", "--no-pager"], &path);
    assert!(overall(&String::from_utf8_lossy(&looked.stdout)).unwrap() > 9.0, "{looked:?}");
}

/// The units as an instance, and with the programs where they were built.
fn instance(dir: &Path) -> Vec<std::path::PathBuf> {
    let programs = binary("outboard-rng");
    let programs = programs.parent().unwrap().display().to_string();
    std::fs::read_dir(units())
        .unwrap()
        .map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let text = unit(&name).replace("/usr/bin", &programs);
            let path = dir.join(name.replace('@', "@vm1"));
            std::fs::write(&path, text).unwrap();
            path
        })
        .collect()
}

#[test]
fn systemd_understands_all_of_it() {
    for kind in KINDS {
        binary(&format!("outboard-{kind}"));
    }
    let dir = tempfile::tempdir().unwrap();
    for path in instance(dir.path()) {
        let looked = analyze(&["verify", "--man=no", "--generators=no"], &path);
        let said = String::from_utf8_lossy(&looked.stderr);
        let of_ours: Vec<_> = said.lines().filter(|line| line.contains("outboard")).collect();
        assert!(looked.status.success() && of_ours.is_empty(), "{}: {said}", path.display());
    }
}

#[test]
fn what_systemd_does_not_understand_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outboard-odd.service");
    std::fs::write(&path, "[Service]\nExecStart=/bin/true\nPrivateColour=yes\n").unwrap();
    let looked = analyze(&["verify", "--man=no", "--generators=no"], &path);
    assert!(String::from_utf8_lossy(&looked.stderr).contains("PrivateColour"), "{looked:?}");
}

/// From the comment that says so to the end.
fn confinement(text: &str) -> &str {
    &text[text.find("# Confinement, the same in all units").unwrap()..]
}

#[test]
fn all_services_are_confined_alike() {
    let first = unit("outboard-rng@.service");
    for kind in KINDS {
        let text = unit(&format!("outboard-{kind}@.service"));
        assert_eq!(confinement(&text), confinement(&first), "{kind}");
    }
}

#[test]
fn services_and_sockets_differ_in_names_only() {
    for (suffix, what) in [("", "entropy device"), ("-control", "entropy device")] {
        let first = unit(&format!("outboard-rng{suffix}@.socket"));
        for (kind, device) in [("blk", "disk"), ("console", "console")] {
            let expected = first.replace("rng", kind).replace(what, device);
            assert_eq!(unit(&format!("outboard-{kind}{suffix}@.socket")), expected, "{kind}{suffix}");
        }
    }
}

#[test]
fn no_line_is_longer_than_people_read() {
    for entry in std::fs::read_dir(units()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = unit(&name);
        assert!(text.lines().all(|line| line.len() <= 120), "{name}");
    }
}
