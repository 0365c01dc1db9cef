//! The bare-metal test guest (`tests/metal`): where its image is, and building it.
//!
//! `OUTBOARD_METAL` names an image to take as it is. Otherwise cargo builds it into `target/metal`, for another
//! target and with flags of its own, so nothing of the surrounding build (flags, target directory) may leak in.
//! One build at a time: a lock file keeps test processes that start together from reading half an image.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use thiserror::Error;

const TARGET: &str = "x86_64-unknown-none";
/// Settings of the surrounding build that would override those of `tests/metal/.cargo/config.toml`.
const FOREIGN: [&str; 6] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
    "RUSTFLAGS",
];

/// Why there is no image.
#[derive(Clone, Debug, Error)]
pub enum MetalError {
    /// The variable names nothing.
    #[error("OUTBOARD_METAL={0}: not a file; name an image of the test guest, or unset it to have it built")]
    NotThere(PathBuf),
    /// The target directory cannot be used.
    #[error("{path}: {cause}", path = path.display())]
    Directory {
        /// The lock file or its directory.
        path: PathBuf,
        /// What the host said.
        cause: String,
    },
    /// Cargo cannot be started.
    #[error("cannot start cargo to build the test guest: {0}")]
    Cargo(String),
    /// Cargo failed.
    #[error("cargo cannot build the test guest (is the target installed? rustup target add {TARGET}): {0}")]
    Build(String),
}

/// Path of the guest's image, built if it is missing or older than its sources. Asks cargo once a process.
///
/// # Errors
/// It is not there and cannot be built.
pub fn image() -> Result<PathBuf, MetalError> {
    static IMAGE: OnceLock<Result<PathBuf, MetalError>> = OnceLock::new();
    IMAGE.get_or_init(|| env::var_os("OUTBOARD_METAL").map_or_else(build, |path| given(&path))).clone()
}

fn given(path: &OsStr) -> Result<PathBuf, MetalError> {
    let path = PathBuf::from(path);
    if path.is_file() { Ok(path) } else { Err(MetalError::NotThere(path)) }
}

fn build() -> Result<PathBuf, MetalError> {
    let dir = target_dir().join("metal");
    let _lock = lock(&dir)?;
    let output = cargo(&dir).output().map_err(|e| MetalError::Cargo(e.to_string()))?;
    if output.status.success() {
        Ok(dir.join(TARGET).join("release").join("metal"))
    } else {
        Err(MetalError::Build(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn cargo(dir: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--target-dir"]).arg(dir);
    // Cargo takes the configuration of the directory that it runs in.
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("metal"));
    FOREIGN.iter().fold(&mut cargo, |cargo, name| cargo.env_remove(name));
    cargo
}

/// The workspace's target directory.
fn target_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Waits until nobody else builds; the lock ends with the file.
fn lock(dir: &Path) -> Result<File, MetalError> {
    let path = dir.join("lock");
    let failed =
        |cause: std::io::Error| MetalError::Directory { path: path.clone(), cause: cause.to_string() };
    fs::create_dir_all(dir).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_an_elf_with_a_pvh_note() {
        let bytes = fs::read(build().unwrap()).unwrap();
        assert!(bytes.starts_with(b"\x7FELF"));
        let note = [4u32, 8, 18].map(u32::to_le_bytes).concat();
        let at = bytes.windows(note.len()).position(|window| window == note).unwrap();
        assert_eq!(&bytes[at + 12..at + 16], b"Xen\0");
    }

    #[test]
    fn an_image_that_is_not_there_is_named() {
        let error = given(OsStr::new("/nowhere/metal")).unwrap_err();
        assert!(error.to_string().contains("OUTBOARD_METAL=/nowhere/metal"));
    }
}
