//! Debian kernels, unmodified, ready to be given to a VMM.
//!
//! In: a flavour. Out: the kernel as an ELF file with a PVH entry (several seconds faster to start under emulation than
//! the compressed image, and what `outboard run` boots), and its modules in loading order. The package is fetched
//! with `apt-get download` and unpacked with `dpkg -x`: nothing is installed, nobody needs to be root. Kept in the
//! [`cache`]; delete the entry to fetch a newer kernel.

mod vmlinux;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{cache, packages, process};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-amd64`: everything, also 9p and kvm-amd. The emulated host runs it.
    Full,
    /// `linux-image-cloud-amd64`: what Debian's cloud images run. Our guests run it.
    Cloud,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Self::Full => "linux-image-amd64",
            Self::Cloud => "linux-image-cloud-amd64",
        }
    }
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] process::Error),
    /// apt does not know the package.
    #[error("apt knows no kernel package behind {package}: add Debian 12's main archive to the apt sources")]
    NoPackage {
        /// The package asked for.
        package: &'static str,
    },
    /// A file operation failed.
    #[error("Cannot read or write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel image is not what it should be.
    #[error("Cannot use the kernel {path}: {reason}")]
    Image {
        /// The kernel.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// An unpacked kernel with its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// As `uname -r` says, for instance `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// What to boot; Debian's is an ELF file with a PVH entry.
    pub image: PathBuf,
    /// The same as its package ships it, a bzImage, where it came from a package.
    pub compressed: Option<PathBuf>,
    /// The directory that has `lib/modules/VERSION`; without one all drivers are taken to be built in.
    root: Option<PathBuf>,
}

impl Kernel {
    /// The kernel of Debian's package, from the cache or the archive.
    pub fn debian(flavour: Flavour) -> Result<Self, Error> {
        let root = cache::entry(flavour.package(), |dir| fetch(flavour.package(), dir))?;
        let version_file = root.join("version");
        let version = fs::read_to_string(&version_file).map_err(io_error(&version_file))?;
        let compressed = Some(root.join(format!("boot/vmlinuz-{version}")));
        Ok(Self { version, image: root.join("vmlinux"), compressed, root: Some(root) })
    }

    /// A kernel of the user's own, compressed or not, with the modules of its version that are installed here.
    pub fn file(path: &Path) -> Result<Self, Error> {
        let image = path.canonicalize().map_err(io_error(path))?;
        let content = fs::read(&image).map_err(io_error(&image))?;
        let version = vmlinux::version(&content).ok_or(Error::Image {
            path: image.clone(),
            reason: "it is neither a bzImage nor an ELF file that tells its version",
        })?;
        let root = Path::new("/lib/modules").join(&version).is_dir().then(|| PathBuf::from("/"));
        Ok(Self { version, image, compressed: None, root })
    }

    /// The files of the named modules and of all that they need, in loading order, each once. Built-in ones are left
    /// out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let Some(root) = &self.root else {
            return Ok(Vec::new());
        };
        let mut files = Vec::new();
        for name in names {
            let mut modprobe = process::command("modprobe");
            modprobe.arg("-d").arg(root).args(["-S", &self.version, "--show-depends", name]);
            for file in insmod_lines(&process::output(&mut modprobe)?) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The files of lines such as `insmod /lib/modules/6.1.0/kernel/fs/9p/9p.ko `; others say `builtin`.
fn insmod_lines(listing: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next().map(PathBuf::from))
    };
    listing.lines().filter_map(file).collect()
}

/// Fills `dir` with `vmlinux`, `version` and `lib/modules/VERSION`.
fn fetch(package: &'static str, dir: &Path) -> Result<(), Error> {
    eprintln!("kernel: fetching the package behind {package}");
    let deb = download(package, dir)?;
    process::output(process::command("dpkg").arg("-x").arg(&deb).arg(dir))?;
    fs::remove_file(&deb).map_err(io_error(&deb))?;
    let (vmlinuz, version) = vmlinuz(dir)?;
    vmlinux::unpack(&vmlinuz, &dir.join("vmlinux"))?;
    // Without its index `modprobe --show-depends` fails and says nothing.
    process::output(process::command("depmod").arg("-b").arg(dir).arg(&version))?;
    let version_file = dir.join("version");
    fs::write(&version_file, version).map_err(io_error(&version_file))
}

/// Downloads the real package behind a meta package; the lists are refreshed when they do not do.
fn download(package: &'static str, dir: &Path) -> Result<PathBuf, Error> {
    if let Ok(Some(real)) = real_package(package)
        && download_real(&real, dir).is_ok()
    {
        return only_deb(dir);
    }
    process::output(&mut packages::apt_get(&["update"]))?;
    let real = real_package(package)?.ok_or(Error::NoPackage { package })?;
    download_real(&real, dir)?;
    only_deb(dir)
}

fn download_real(real: &str, dir: &Path) -> Result<(), process::Error> {
    // As root apt would drop to a user of its own, who may not write to our directory.
    let mut apt = packages::apt_get(&["-o", "APT::Sandbox::User=root", "download", real]);
    process::output(apt.current_dir(dir)).map(drop)
}

/// The package that a kernel's meta package depends on.
fn real_package(package: &str) -> Result<Option<String>, process::Error> {
    let listing =
        process::output(process::command("apt-cache").args(["depends", package]).env("LC_ALL", "C"))?;
    let image = |line: &str| line.trim().strip_prefix("Depends: ").map(str::to_owned);
    Ok(listing.lines().filter_map(image).find(|name| name.starts_with("linux-image-")))
}

fn only_deb(dir: &Path) -> Result<PathBuf, Error> {
    find(dir, |name| name.ends_with(".deb")).map(|(path, _)| path)
}

/// The compressed kernel and the version in its name.
fn vmlinuz(dir: &Path) -> Result<(PathBuf, String), Error> {
    let (path, name) = find(&dir.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    Ok((path, name.trim_start_matches("vmlinuz-").to_owned()))
}

fn find(dir: &Path, matches: impl Fn(&str) -> bool) -> Result<(PathBuf, String), Error> {
    let entries = fs::read_dir(dir).map_err(io_error(dir))?;
    let named =
        entries.flatten().map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()));
    let mut found = named.into_iter().filter(|(_, name)| matches(name));
    found.next().ok_or_else(|| io_error(dir)(io::ErrorKind::NotFound.into()))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_that_are_files_are_loaded() {
        let listing = "builtin unix\ninsmod /lib/modules/6.1/a.ko \ninsmod /lib/modules/6.1/b.ko option=1\n";
        assert_eq!(
            insmod_lines(listing),
            [PathBuf::from("/lib/modules/6.1/a.ko"), "/lib/modules/6.1/b.ko".into()]
        );
    }
}
