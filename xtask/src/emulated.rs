//! The emulated host: a machine whose KVM runs Linux, wherever we are.
//!
//! QEMU emulates an AMD processor with SVM; Debian's full kernel boots on it in some three seconds, loads kvm-amd, and
//! has a working `/dev/kvm`. The file tree of this host is shared with it (9p), so a command finds the programs just
//! built, under the same paths, and what it writes is here afterwards.
//!
//! In: a command, the current directory, the environment. Out: the command's standard output and standard error, byte
//! for byte on ours, and its exit code. Standard input is empty. `TMPDIR` and `/run` are memory of the emulated host:
//! unix sockets cannot live on a shared tree.
//!
//! ```text
//! this host   scratch/{where,command.sh} ──9p──► emulated host: init.sh ─ chroot ─► COMMAND
//!             scratch/{stdout,stderr,exit} ◄─9p──┘
//! ```

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::kernel::{self, Flavour, Kernel};
use crate::qemu::Machine;
use crate::{initramfs, initramfs::Initramfs, process, workspace};

const INIT: &str = include_str!("emulated/init.sh");

/// What its kernel loads: the hypervisor, and the way to this host's tree.
const MODULES: [&str; 4] = ["kvm_amd", "virtio_pci", "9pnet_virtio", "9p"];

/// How often the command's output is looked at.
const OUTPUT_TICK: Duration = Duration::from_millis(20);

/// Why the command has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// No initial RAM file system.
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    /// QEMU could not be run to its end.
    #[error("{error}; the emulated host said last:\n{last_words}")]
    Qemu {
        /// Why.
        error: process::Error,
        /// The ends of what QEMU and the emulated host's kernel wrote.
        last_words: String,
    },
    /// A file of the run's directory failed.
    #[error("Cannot pass the command to the emulated host")]
    Io(#[from] io::Error),
    /// The emulated host ended before the command did.
    #[error("The emulated host ended without an exit code of the command. Its last words:\n{0}")]
    Lost(String),
}

/// What the emulated host is given.
#[derive(Debug, Clone)]
pub struct EmulatedHost {
    /// From its start to its end.
    pub limit: Duration,
    /// Its memory.
    pub memory_mib: u32,
}

impl Default for EmulatedHost {
    fn default() -> Self {
        Self { limit: Duration::from_secs(600), memory_mib: 2048 }
    }
}

impl EmulatedHost {
    /// Runs `command` in the current directory with the current environment; gives its exit code.
    pub fn run(&self, command: &[OsString]) -> Result<u8, Error> {
        self.run_to(command, &mut io::stdout(), &mut io::stderr())
    }

    /// The same, with its output going elsewhere.
    pub fn run_to(
        &self,
        command: &[OsString],
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<u8, Error> {
        let scratch = workspace::scratch()?;
        let dir = scratch.path();
        let machine = self.machine(dir)?;
        fs::create_dir(dir.join("tmp"))?;
        fs::write(dir.join("where"), dir.as_os_str().as_bytes())?;
        fs::write(
            dir.join("command.sh"),
            script(command, &env::current_dir()?, env::vars_os(), &dir.join("tmp")),
        )?;
        let mut output = [Tail::new(dir, "stdout", stdout)?, Tail::new(dir, "stderr", stderr)?];
        let start = |error| Error::Qemu { error, last_words: String::new() };
        let mut qemu = machine.start().map_err(start)?;
        let ended = qemu.wait(self.limit, || {
            output.iter_mut().for_each(Tail::copy);
            thread::sleep(OUTPUT_TICK);
        });
        output.iter_mut().for_each(Tail::copy);
        let code = fs::read_to_string(dir.join("exit")).ok().and_then(|code| code.trim().parse().ok());
        match (code, ended) {
            (Some(code), _) => Ok(code),
            (None, Err(error)) => Err(Error::Qemu { error, last_words: machine.last_words() }),
            (None, Ok(_)) => Err(Error::Lost(machine.last_words())),
        }
    }

    fn machine(&self, dir: &Path) -> Result<Machine, Error> {
        let kernel = Kernel::debian(Flavour::Full)?;
        let initrd = dir.join("initrd");
        Initramfs::new(&kernel.modules(&MODULES)?, INIT)?.write(&initrd)?;
        let share = |machine: Machine, tag: &str, path: &Path| {
            let filesystem =
                format!("local,id={tag},path={},security_model=none,multidevs=remap", path.display());
            machine.arguments(&[
                "-fsdev",
                &filesystem,
                "-device",
                &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
            ])
        };
        let machine = Machine::new(&kernel.image, &initrd, self.memory_mib, 2, dir);
        Ok(share(share(machine, "host", Path::new("/")), "run", dir))
    }
}

/// The shell script that runs `command` in `directory` with exactly `variables`, and `TMPDIR` of its own.
fn script(
    command: &[OsString],
    directory: &Path,
    variables: impl Iterator<Item = (OsString, OsString)>,
    temporary: &Path,
) -> Vec<u8> {
    let mut script = b"cd ".to_vec();
    script.extend(quoted(directory.as_os_str()));
    script.extend(b" && exec env -i ");
    let own = (OsString::from("TMPDIR"), temporary.as_os_str().to_owned());
    for (name, value) in variables.filter(|(name, _)| name != "TMPDIR").chain([own]) {
        let mut word = name;
        word.push("=");
        word.push(value);
        script.extend(quoted(&word));
        script.push(b' ');
    }
    script.extend(command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&b' '));
    script.push(b'\n');
    script
}

/// A word that the shell takes as it is.
fn quoted(word: &OsStr) -> Vec<u8> {
    let escape = |byte: &u8| if *byte == b'\'' { b"'\\''".to_vec() } else { vec![*byte] };
    let escaped: Vec<u8> = word.as_bytes().iter().flat_map(escape).collect();
    [b"'".as_slice(), &escaped, b"'"].concat()
}

/// Copies a growing file to a stream.
struct Tail<'a> {
    file: File,
    to: &'a mut dyn Write,
}

impl<'a> Tail<'a> {
    fn new(dir: &Path, name: &str, to: &'a mut dyn Write) -> io::Result<Self> {
        let path: PathBuf = dir.join(name);
        File::create(&path)?;
        Ok(Self { file: File::open(&path)?, to })
    }

    /// Copies what is new. A reader of ours that is gone is no reason to stop the command.
    fn copy(&mut self) {
        let mut new = Vec::new();
        if self.file.read_to_end(&mut new).is_ok() {
            let _ = self.to.write_all(&new).and_then(|()| self.to.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use super::*;

    fn run(words: &[&str], directory: &Path) -> String {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let variables =
            [("ODD-name.1", "x 'y' $z"), ("TMPDIR", "/elsewhere")].map(|(a, b)| (a.into(), b.into()));
        let text = script(&words, directory, variables.into_iter(), Path::new("/t"));
        let output = Command::new("sh").arg("-c").arg(OsString::from_vec(text)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_command_gets_its_words_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let said = run(&["printf", "%s|%s|%s|", "it's", "a b\n$HOME", "\\"], directory.path());
        assert_eq!(said, "it's|a b\n$HOME|\\|");
    }

    #[test]
    fn the_command_gets_its_directory_and_exactly_our_variables() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(run(&["env"], directory.path()), "ODD-name.1=x 'y' $z\nTMPDIR=/t\n");
        assert_eq!(run(&["pwd"], directory.path()).trim_end(), directory.path().to_str().unwrap());
    }
}
