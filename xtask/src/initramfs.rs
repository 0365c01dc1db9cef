//! Initial RAM file systems: busybox, modules, and a script that is the guest's whole user space.
//!
//! In: files, kernel modules in loading order, a script. Out: an uncompressed cpio archive in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The script runs as PID 1 under busybox's shell, after
//! a prelude that mounts /proc, /sys and /dev and loads the modules; it must end with `poweroff -f`, and the kernel
//! panics (which `panic=-1` makes a reset) when it does not. A program of this host comes with the libraries that it is
//! linked with, each under its path here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::process;

/// Where `busybox-static` puts it.
const BUSYBOX: &str = "/bin/busybox";

const PRELUDE: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
";

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const SYMLINK: u32 = 0o120_777;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("Cannot read or write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// busybox or `ldd` does not run.
    #[error(transparent)]
    Program(#[from] process::Error),
}

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    inodes: u32,
    /// Paths that are there.
    programs: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// An archive with busybox and its commands, the `modules` to load first (see [`crate::kernel::Kernel::modules`])
    /// and `script` as the guest's user space.
    pub fn new(modules: &[PathBuf], script: &str) -> Result<Self, Error> {
        let mut archive = Self::default();
        for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
            archive.append(directory, DIRECTORY, b"");
        }
        archive.busybox()?;
        archive.modules(modules)?;
        archive.append("init", EXECUTABLE, format!("{PRELUDE}{script}").as_bytes());
        Ok(archive)
    }

    /// Adds a plain file; its directory must exist in the archive.
    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        self.append(name, PLAIN, content);
        self
    }

    /// Adds a program of this host, and the libraries that `ldd` says it is linked with.
    pub fn program(mut self, program: &Path) -> Result<Self, Error> {
        let libraries = process::output(process::command("ldd").arg(program))?;
        for file in linked(&libraries).into_iter().chain([program]) {
            self.under_its_path(file)?;
        }
        Ok(self)
    }

    /// Ends the archive and writes it.
    pub fn write(mut self, path: &Path) -> Result<(), Error> {
        self.append("TRAILER!!!", 0, b"");
        fs::write(path, self.archive).map_err(io_error(path))
    }

    fn busybox(&mut self) -> Result<(), Error> {
        let program = fs::read(BUSYBOX).map_err(io_error(Path::new(BUSYBOX)))?;
        self.append("bin/busybox", EXECUTABLE, &program);
        for command in process::output(process::command(BUSYBOX).arg("--list"))?.lines() {
            if command != "busybox" {
                self.append(&format!("bin/{command}"), SYMLINK, b"busybox");
            }
        }
        Ok(())
    }

    /// A file of this host and the directories that it is in.
    fn under_its_path(&mut self, path: &Path) -> Result<(), Error> {
        let directories: Vec<_> = path.ancestors().skip(1).filter(|path| path.parent().is_some()).collect();
        for directory in directories.into_iter().rev() {
            // Those of `new` are told again, which unpacking takes.
            if self.programs.insert(directory.to_owned()) {
                self.append(&name_of(directory), DIRECTORY, b"");
            }
        }
        if self.programs.insert(path.to_owned()) {
            let content = fs::read(path).map_err(io_error(path))?;
            self.append(&name_of(path), EXECUTABLE, &content);
        }
        Ok(())
    }

    fn modules(&mut self, files: &[PathBuf]) -> Result<(), Error> {
        let mut order = String::new();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let content = fs::read(file).map_err(io_error(file))?;
            self.append(&format!("modules/{name}"), PLAIN, &content);
            order.push_str(&name);
            order.push('\n');
        }
        self.append("modules/order", PLAIN, order.as_bytes());
        Ok(())
    }

    /// One entry: a header of thirteen hexadecimal numbers, the name, the content, each padded to four bytes.
    fn append(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let (uid, gid, links, mtime, device) = (0, 0, 1, 0, 0);
        let header = format!(
            "070701{:08x}{mode:08x}{uid:08x}{gid:08x}{links:08x}{mtime:08x}{:08x}{device:08x}{device:08x}{device:08x}{device:08x}{:08x}{:08x}{name}\0",
            self.inodes,
            content.len(),
            name.len() + 1,
            0,
        );
        self.archive.extend_from_slice(header.as_bytes());
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The files that `ldd` names: `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)`, or only the path.
fn linked(said: &str) -> Vec<&Path> {
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(Path::new).collect()
}

fn name_of(path: &Path) -> String {
    path.display().to_string().trim_start_matches('/').to_owned()
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_newc_says() {
        let mut archive = Initramfs::default();
        archive.append("abc", PLAIN, b"hello");
        archive.append("d", DIRECTORY, b"");
        let text = String::from_utf8(archive.archive).unwrap();
        assert!(text.starts_with("07070100000001000081a4"), "{text}");
        // 110 bytes of header and 4 of name end at 114, the content starts at 116.
        assert_eq!(&text[110..121], "abc\0\0\0hello");
        assert_eq!(text[54..62], *"00000005");
        assert_eq!(text[94..102], *"00000004");
        assert!(text[124..].starts_with("07070100000002000041ed"));
        assert_eq!(text.len() % 4, 0);
    }

    #[test]
    fn a_program_is_followed_by_what_it_is_linked_with() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(linked(said), [Path::new("/lib/x/libm.so.6"), Path::new("/lib64/ld.so.2")]);
        let archive = Initramfs::default().program(Path::new("/bin/sh")).unwrap();
        let text = String::from_utf8_lossy(&archive.archive).into_owned();
        assert!(["bin\0", "bin/sh\0", "lib64\0", "libc.so.6\0"].iter().all(|name| text.contains(name)));
    }
}
