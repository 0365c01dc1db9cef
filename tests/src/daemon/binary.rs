//! Where the binaries of the workspace are, and building one that is missing or older than its sources.
//!
//! `OUTBOARD_BIN_DIR` names a directory to take them from as they are. Otherwise they lie beside the test's
//! own executable (`target/<profile>/deps/<test>`, under cargo and nextest alike); cargo's dep-info file says
//! which sources a binary was made of, and cargo builds it again when one of them is newer.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Binaries that this process has looked at already.
static READY: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// The workspace's binary of this name, up to date.
///
/// # Panics
/// It cannot be found or built.
pub fn binary(name: &str) -> PathBuf {
    if let Some(dir) = env::var_os("OUTBOARD_BIN_DIR") {
        return Path::new(&dir).join(name);
    }
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    ready.entry(name.to_owned()).or_insert_with(|| up_to_date(name)).clone()
}

fn up_to_date(name: &str) -> PathBuf {
    let dir = profile_dir();
    let path = dir.join(name);
    if !is_fresh(&path) {
        build(name, &dir);
    }
    assert!(path.exists(), "{} is not there and cargo did not make it", path.display());
    path
}

/// `target/<profile>`, two above the test's executable.
fn profile_dir() -> PathBuf {
    let exe = env::current_exe().unwrap_or_else(|e| panic!("own path: {e}"));
    let in_deps = exe.ancestors().find(|dir| dir.ends_with("deps")).and_then(Path::parent);
    in_deps.or(exe.parent()).unwrap_or(Path::new(".")).to_owned()
}

/// The binary is there and no source of it is newer or gone.
fn is_fresh(path: &Path) -> bool {
    let (Some(built), Ok(info)) = (modified(path), fs::read_to_string(path.with_extension("d"))) else {
        return false;
    };
    sources(&info).iter().all(|source| modified(source).is_some_and(|time| time <= built))
}

/// The prerequisites in a dep-info file, `target: source source ...` with `\ ` for a blank.
fn sources(info: &str) -> Vec<PathBuf> {
    let line = info.lines().next().unwrap_or_default();
    let (_, list) = line.split_once(": ").unwrap_or_default();
    let list = list.replace("\\ ", "\0");
    list.split_whitespace().map(|word| PathBuf::from(word.replace('\0', " "))).collect()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

fn build(name: &str, dir: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let target = dir.parent().unwrap_or(dir);
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--bin", name, "--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(workspace)
        .output();
    let built = built.unwrap_or_else(|e| panic!("start cargo to build {name}: {e}"));
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "cargo cannot build {name}: {said}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

    #[test]
    fn a_binary_older_than_a_source_is_stale() {
        let dir = tempfile::TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let touch = |name: &str, age: u64| {
            let time = SystemTime::now() - Duration::from_secs(age);
            File::create(at(name)).unwrap().set_modified(time).unwrap();
        };
        touch("main.rs", 20);
        touch("prog", 10);
        assert!(!is_fresh(&at("prog")), "no dep-info");
        let info = format!("{}: {}\n", at("prog").display(), at("main.rs").display());
        fs::write(at("prog.d"), info).unwrap();
        assert!(is_fresh(&at("prog")));
        touch("main.rs", 0);
        assert!(!is_fresh(&at("prog")));
        fs::remove_file(at("main.rs")).unwrap();
        assert!(!is_fresh(&at("prog")), "a source that is gone");
    }

    #[test]
    fn dep_info_with_blanks_in_names() {
        assert_eq!(
            sources("/t/p: /a/b.rs /a/c\\ d.rs\n"),
            [PathBuf::from("/a/b.rs"), PathBuf::from("/a/c d.rs")]
        );
    }
}
