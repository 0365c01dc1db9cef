//! Where the key of a volume comes from: a file, or a credential of systemd.
//!
//! In: options, in the first process. Out: a copy of the key in memory, which the keeper has and each worker reads: a
//! worker opens no file, the key is in no option, environment or log, and whoever writes to the file later changes no disk
//! that is in use. Refuses: both or neither, a file that others can read, what is no key (looked at here already, so that
//! the daemon does not start without it), and another key than that of the keeper before, whose guest goes on.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::cipher::Key;
use crate::graph::options::{Bad, Values};
use crate::graph::registry::{Made, Openings};

const FILE: &str = "key-file";
const CREDENTIAL: &str = "key-credential";
/// Name of the descriptor.
const KEY: &str = "key";
/// Where systemd puts the credentials of a service.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Exit code of what the host does not let us do.
const HOST: u8 = 1;

/// Opens the key.
pub fn prepare(values: &Values, openings: &mut Openings<'_>) -> Result<(), Bad> {
    let directory = std::env::var_os(DIRECTORY).map(PathBuf::from);
    let (option, key) = open(values.path(FILE), values.text(CREDENTIAL), directory.as_deref())?;
    let before = openings.before(KEY).and_then(|before| Key::read(before).ok());
    if before.is_some_and(|before| before != key) {
        let problem = "it is another key than the one that the disk is in use with; put that one back, or stop and start the daemon";
        return Err(Bad::option(option, problem));
    }
    let failed = |error| {
        Bad::option(option, format!("cannot keep it: {error}; give this host more memory")).with_code(HOST)
    };
    openings.insert(KEY, key.in_memory().map_err(failed)?);
    Ok(())
}

/// The key that was opened.
pub fn take(made: &Made<'_>) -> Result<Key, Bad> {
    let fd = made.take(KEY).ok_or_else(|| Bad::volume("its key is not open; stop and start the daemon"))?;
    Key::read(fd).map_err(Bad::volume)
}

/// The key, and the option that named it.
fn open(
    file: Option<&Path>,
    credential: Option<&str>,
    directory: Option<&Path>,
) -> Result<(&'static str, Key), Bad> {
    let (option, file) = match (file, credential) {
        (Some(path), None) => (FILE, open_file(path)?),
        (None, Some(name)) => (CREDENTIAL, open_credential(name, directory)?),
        (None, None) => {
            return Err(Bad::volume(
                "it has no key; add `option key-file PATH` or `option key-credential NAME`",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Bad::option(CREDENTIAL, "there is option key-file as well; leave one of them out"));
        }
    };
    let key = Key::read(&file).map_err(|error| Bad::option(option, error))?;
    Ok((option, key))
}

fn open_file(path: &Path) -> Result<File, Bad> {
    let file = read_only(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Bad::option(FILE, "there is no such file; make one by (umask 077; head -c 64 /dev/random >FILE)")
        }
        _ => Bad::option(FILE, format!("cannot open it: {error}; let this user read it")).with_code(HOST),
    })?;
    let failed =
        |error| Bad::option(FILE, format!("cannot look at it: {error}; give another")).with_code(HOST);
    let about = file.metadata().map_err(failed)?;
    let mode = about.permissions().mode() & 0o777;
    match about.is_file() {
        false => Err(Bad::option(FILE, "it is no regular file; give one with the key")),
        true if mode & 0o077 != 0 => Err(Bad::option(
            FILE,
            format!("others than its owner may use it (mode {mode:03o}); chmod 600 it"),
        )),
        true => Ok(file),
    }
}

/// Who may read a credential is systemd's business: it lies in a directory that only the service gets to see.
fn open_credential(name: &str, directory: Option<&Path>) -> Result<File, Bad> {
    let bad = |problem: String| Bad::option(CREDENTIAL, problem);
    if name.contains('/') || name.starts_with('.') {
        return Err(bad("it is no name of a credential; give NAME of LoadCredential=NAME:PATH".to_owned()));
    }
    let directory = directory.ok_or_else(|| {
        bad(format!("there is no ${DIRECTORY}; start this as a systemd service with LoadCredential={name}:PATH, or give option key-file"))
    })?;
    read_only(&directory.join(name))
        .map_err(|error| bad(format!("cannot open it: {error}; add LoadCredential={name}:PATH to the unit")))
}

/// Without waiting for somebody to write to it, should it be a pipe.
fn read_only(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(directory: &tempfile::TempDir, content: &[u8], mode: u32) -> PathBuf {
        let path = directory.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn key() -> Vec<u8> {
        (0..64).collect()
    }

    #[test]
    fn a_key_is_opened_from_a_file_or_a_credential() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(&directory, &key(), 0o400);
        assert!(open(Some(&path), None, None).is_ok());
        // What systemd gives a service of another user can be read by its group.
        let path = file(&directory, &key(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        assert!(open(None, Some("key"), Some(directory.path())).is_ok());
    }

    #[test]
    fn what_is_no_secret_key_is_refused_with_the_cure() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |file: Option<&Path>, name| open(file, name, Some(directory.path())).unwrap_err();
        let told = |option, problem: &str| Bad::option(option, problem);
        let path = file(&directory, &key(), 0o640);
        assert_eq!(
            refused(Some(&path), None),
            told(FILE, "others than its owner may use it (mode 640); chmod 600 it")
        );
        let path = file(&directory, &key()[1..], 0o600);
        assert_eq!(
            refused(Some(&path), None),
            told(FILE, "it is no key: give 64 raw bytes (head -c 64 /dev/random) or 128 hexadecimal digits")
        );
        assert_eq!(
            refused(Some(&path), Some("key")),
            told(CREDENTIAL, "there is option key-file as well; leave one of them out")
        );
        assert_eq!(
            refused(None, None),
            Bad::volume("it has no key; add `option key-file PATH` or `option key-credential NAME`")
        );
        assert_eq!(
            refused(Some(directory.path()), None),
            told(FILE, "it is no regular file; give one with the key")
        );
        assert_eq!(
            refused(Some(&directory.path().join("none")), None),
            told(FILE, "there is no such file; make one by (umask 077; head -c 64 /dev/random >FILE)")
        );
        for name in ["../key", ".", "a/b"] {
            assert_eq!(
                refused(None, Some(name)),
                told(CREDENTIAL, "it is no name of a credential; give NAME of LoadCredential=NAME:PATH")
            );
        }
        assert_eq!(
            open(None, Some("disk"), None).unwrap_err(),
            told(
                CREDENTIAL,
                "there is no $CREDENTIALS_DIRECTORY; start this as a systemd service with LoadCredential=disk:PATH, or give option key-file"
            )
        );
        assert!(
            format!("{:?}", refused(None, Some("none"))).contains("add LoadCredential=none:PATH to the unit")
        );
    }
}
