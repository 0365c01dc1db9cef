//! The test binaries of the workspace: built once, as cargo lists them.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cargo;

/// Test binaries whose name starts so need a KVM that runs Linux: they run on the host that `kvm-host` would choose.
/// The names of their tests start with `kvm_linux_`, by which .config/nextest.toml leaves them out elsewhere.
pub const KVM_LINUX: &str = "kvm_linux";

/// A built test binary.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    /// The name of its cargo target.
    pub name: String,
    /// The program.
    pub executable: PathBuf,
    /// Where cargo would run it: the folder of its package.
    pub directory: PathBuf,
}

impl Binary {
    /// Whether it needs a KVM that runs Linux.
    pub fn needs_kvm_linux(&self) -> bool {
        self.name.starts_with(KVM_LINUX)
    }
}

/// Builds all tests of the workspace; compiler messages go to standard error. `scratch` takes cargo's listing.
pub fn build(scratch: &Path) -> Result<Vec<Binary>, cargo::Error> {
    let listing = scratch.join("binaries.json");
    let mut build = cargo::cargo();
    build.args(["test", "--quiet", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    build.stdout(File::create(&listing)?);
    cargo::run("cargo test --no-run", &mut build)?;
    Ok(parse(&std::fs::read_to_string(&listing)?))
}

#[derive(Deserialize)]
struct Artifact {
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// From cargo's messages, one JSON object a line, most of which are about something else.
fn parse(listing: &str) -> Vec<Binary> {
    let artifacts = listing.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    let tests = artifacts.filter(|artifact| artifact.profile.test);
    let binary = |artifact: Artifact| {
        let directory = artifact.manifest_path.parent()?.to_owned();
        Some(Binary { name: artifact.target.name, executable: artifact.executable?, directory })
    };
    tests.filter_map(binary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_executables_are_taken() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{{"name":"kvm_linux_boot","kind":["test"]}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let listing =
            [line(true, "\"/t/x\""), line(false, "\"/t/y\""), line(true, "null"), "{}".into()].join("\n");
        let binaries = parse(&listing);
        assert_eq!(binaries.len(), 1);
        assert_eq!(binaries[0].directory, Path::new("/w/tests"));
        assert!(binaries[0].needs_kvm_linux());
    }
}
