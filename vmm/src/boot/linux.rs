//! Kernels, initramfs and command line: from the operator's files into guest RAM.
//!
//! In: an ELF with a PVH entry point, or a bzImage with a 64-bit entry. Out: an [`Entry`]. Before `linux-loader`
//! copies anything, the headers are read here and compared with the file's length and the RAM, because a file that
//! was cut short, or RAM that is too small, deserve an answer that says so. The files stay open, so that a reboot
//! loads the same kernel again even if the path has changed since.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::params::{self, BootData};
use super::{Entry, Protocol};
use crate::layout;
use crate::memory::GuestRam;

/// Why nothing can be booted with these options.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{option} {path}: {cause}", path = path.display())]
    File {
        /// `--kernel` or `--initrd`.
        option: &'static str,
        /// The operator's path.
        path: PathBuf,
        /// What the host said.
        cause: std::io::Error,
    },
    /// Neither format.
    #[error("--kernel {}: not a kernel: neither a 64-bit x86 ELF nor a bzImage", .0.display())]
    NotAKernel(PathBuf),
    /// An ELF that cannot be entered.
    #[error("--kernel {}: this ELF has no PVH entry point (a Linux needs CONFIG_PVH=y); use the bzImage", .0.display())]
    NoPvhEntry(PathBuf),
    /// A bzImage without 64-bit entry.
    #[error("--kernel {}: this bzImage has no 64-bit entry point; use an x86-64 kernel of Linux 3.8 or newer", .0.display())]
    No64BitEntry(PathBuf),
    /// The file ends before what its headers promise.
    #[error("--kernel {path}: truncated: {have} bytes, its headers promise {need}; copy the file again", path = path.display())]
    Truncated {
        /// The operator's path.
        path: PathBuf,
        /// Length of the file.
        have: u64,
        /// Length that the headers promise.
        need: u64,
    },
    /// A segment lies where the boot data has to be.
    #[error("--kernel {path}: has a segment at {address:#x}; link it to 1 MiB or above", path = path.display())]
    TooLow {
        /// The operator's path.
        path: PathBuf,
        /// Load address of the segment.
        address: u64,
    },
    /// Kernel or initramfs do not fit the RAM below 3 GiB.
    #[error("--memory {memory}: too small for {option} {path}, which needs {need} bytes", path = path.display())]
    DoesNotFit {
        /// `--kernel` or `--initrd`.
        option: &'static str,
        /// The operator's path.
        path: PathBuf,
        /// RAM there is (below 3 GiB).
        memory: u64,
        /// RAM there would have to be.
        need: u64,
    },
    /// The command line does not fit.
    #[error("--cmdline: {have} bytes long, this kernel takes at most {limit}")]
    CmdlineTooLong {
        /// Its length.
        have: usize,
        /// The longest possible.
        limit: u64,
    },
    /// The loader gave up for another reason.
    #[error("--kernel {path}: {cause}", path = path.display())]
    Loader {
        /// The operator's path.
        path: PathBuf,
        /// What the loader said.
        cause: linux_loader::loader::Error,
    },
    /// Boot data could not be written.
    #[error("--memory: guest RAM at {0:#x} cannot be written")]
    Ram(u64),
}

/// The format of a kernel file, with what its headers say.
enum Image {
    Elf,
    BzImage(Box<setup_header>),
}

/// What a kernel asks for before it can be loaded.
struct Needs {
    /// Length of the file.
    file_bytes: u64,
    /// End of the RAM that it occupies while it starts.
    ram_end: u64,
}

/// The opened files and the command line of a machine.
#[derive(Debug)]
pub struct BootFiles {
    kernel: (PathBuf, File),
    initrd: Option<(PathBuf, File)>,
    cmdline: String,
}

impl BootFiles {
    /// Opens the files; nothing is read yet.
    pub fn open(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<BootFiles, BootError> {
        Ok(BootFiles {
            kernel: open("--kernel", kernel)?,
            initrd: initrd.map(|path| open("--initrd", path)).transpose()?,
            cmdline: cmdline.to_owned(),
        })
    }

    /// Loads everything into `ram` together with the ACPI tables, and says where to start. May be repeated.
    pub fn load(&self, ram: &GuestRam, acpi: &[u8]) -> Result<Entry, BootError> {
        let (path, file) = &self.kernel;
        let image = self.identify()?;
        let needs = self.needs(&image)?;
        self.check(&needs, ram)?;
        let entry = match &image {
            Image::Elf => load_elf(path, file, ram)?,
            Image::BzImage(_) => load_bzimage(path, file, ram)?,
        };
        let (cmdline_limit, initrd_limit) = match &image {
            Image::Elf => (layout::CMDLINE_BYTES - 1, u64::from(u32::MAX)),
            Image::BzImage(header) => (u64::from(header.cmdline_size), u64::from(header.initrd_addr_max)),
        };
        let data = BootData {
            cmdline: self.checked_cmdline(cmdline_limit)?,
            initrd: self.load_initrd(ram, needs.ram_end, initrd_limit)?,
            acpi,
        };
        params::write(ram, &data, image.setup_header()).map_err(BootError::Ram)?;
        Ok(entry)
    }

    fn identify(&self) -> Result<Image, BootError> {
        let (path, file) = &self.kernel;
        let mut magic = [0; 4];
        let mut header = setup_header::default();
        if file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF" {
            return Ok(Image::Elf);
        }
        let read = file.read_exact_at(header.as_mut_slice(), SETUP_HEADER_OFFSET);
        if read.is_err() || header.header != SETUP_HEADER_MAGIC {
            return Err(BootError::NotAKernel(path.clone()));
        }
        Ok(Image::BzImage(Box::new(header)))
    }

    fn needs(&self, image: &Image) -> Result<Needs, BootError> {
        let (path, file) = &self.kernel;
        match image {
            Image::Elf => elf_needs(path, file),
            Image::BzImage(header) => bzimage_needs(path, header),
        }
    }

    fn check(&self, needs: &Needs, ram: &GuestRam) -> Result<(), BootError> {
        let (path, file) = &self.kernel;
        if length("--kernel", path, file)? < needs.file_bytes {
            return Err(truncated(path, file, needs.file_bytes));
        }
        let memory = low_ram(ram);
        if memory < needs.ram_end {
            return Err(BootError::DoesNotFit {
                option: "--kernel",
                path: path.clone(),
                memory,
                need: needs.ram_end,
            });
        }
        Ok(())
    }

    fn checked_cmdline(&self, limit: u64) -> Result<&str, BootError> {
        let limit = limit.min(layout::CMDLINE_BYTES - 1);
        let have = self.cmdline.len();
        if have as u64 > limit {
            return Err(BootError::CmdlineTooLong { have, limit });
        }
        Ok(&self.cmdline)
    }

    /// Copies the initramfs as high as it may lie; returns its address and size.
    fn load_initrd(
        &self,
        ram: &GuestRam,
        kernel_end: u64,
        limit: u64,
    ) -> Result<Option<(u64, u64)>, BootError> {
        let Some((path, file)) = &self.initrd else { return Ok(None) };
        let bytes = length("--initrd", path, file)?;
        let top = low_ram(ram).min(limit.saturating_add(1));
        let start = top.checked_sub(bytes).map(|start| start & !(layout::PAGE_BYTES - 1));
        let Some(start) = start.filter(|start| *start >= kernel_end) else {
            let need = kernel_end.saturating_add(bytes).next_multiple_of(layout::PAGE_BYTES);
            let memory = low_ram(ram);
            return Err(BootError::DoesNotFit { option: "--initrd", path: path.clone(), memory, need });
        };
        copy(file, ram, start, bytes).map_err(|cause| file_error("--initrd", path, cause))?;
        Ok(Some((start, bytes)))
    }
}

impl Image {
    /// The bzImage's own header, which the zero page has to repeat.
    fn setup_header(&self) -> Option<&setup_header> {
        match self {
            Image::Elf => None,
            Image::BzImage(header) => Some(header),
        }
    }
}

/// Offset of the setup header in a bzImage (Linux x86 boot protocol).
const SETUP_HEADER_OFFSET: u64 = 0x1F1;
/// "HdrS".
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
/// Boot protocol 2.12, the first with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x020C;
/// `xloadflags`: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry in the protected-mode kernel.
const ENTRY_64_OFFSET: u64 = 0x200;
/// `EM_X86_64` and `ELFCLASS64`.
const ELF_MACHINE_X86_64: u16 = 62;
const ELF_CLASS_64: u8 = 2;
/// More program headers than any kernel has; stops a damaged count from being believed.
const MAX_PROGRAM_HEADERS: u16 = 128;

fn elf_needs(path: &Path, file: &File) -> Result<Needs, BootError> {
    let damaged = || BootError::NotAKernel(path.to_owned());
    let mut header = Elf64_Ehdr::default();
    if file.read_exact_at(header.as_mut_slice(), 0).is_err() {
        return Err(truncated(path, file, header.as_slice().len() as u64));
    }
    let right = header.e_machine == ELF_MACHINE_X86_64 && header.e_ident.get(4) == Some(&ELF_CLASS_64);
    if !right || header.e_phnum == 0 || header.e_phnum > MAX_PROGRAM_HEADERS {
        return Err(damaged());
    }
    let mut needs = Needs { file_bytes: 0, ram_end: layout::HIGH_RAM };
    for index in 0..u64::from(header.e_phnum) {
        let segment = program_header(path, file, &header, index)?;
        needs.file_bytes = needs.file_bytes.max(segment.p_offset.saturating_add(segment.p_filesz));
        if segment.p_type != PT_LOAD || segment.p_memsz == 0 {
            continue;
        }
        if segment.p_paddr < layout::HIGH_RAM {
            return Err(BootError::TooLow { path: path.to_owned(), address: segment.p_paddr });
        }
        needs.ram_end = needs.ram_end.max(segment.p_paddr.saturating_add(segment.p_memsz));
    }
    Ok(needs)
}

fn program_header(path: &Path, file: &File, elf: &Elf64_Ehdr, index: u64) -> Result<Elf64_Phdr, BootError> {
    let mut segment = Elf64_Phdr::default();
    let bytes = segment.as_slice().len() as u64;
    let at = elf.e_phoff.saturating_add(index * bytes);
    if file.read_exact_at(segment.as_mut_slice(), at).is_err() {
        return Err(truncated(path, file, at.saturating_add(bytes)));
    }
    Ok(segment)
}

fn bzimage_needs(path: &Path, header: &setup_header) -> Result<Needs, BootError> {
    if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry(path.to_owned()));
    }
    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let setup_bytes = (setup_sectors + 1) * 512;
    let file_bytes = setup_bytes + u64::from(header.payload_offset) + u64::from(header.payload_length);
    let loaded_end = u64::from(header.code32_start) + u64::from(header.syssize) * 16;
    let unpacked_end = header.pref_address.saturating_add(u64::from(header.init_size));
    Ok(Needs { file_bytes, ram_end: loaded_end.max(unpacked_end) })
}

fn load_elf(path: &Path, mut file: &File, ram: &GuestRam) -> Result<Entry, BootError> {
    let loaded = Elf::load(ram.memory(), None, &mut file, None).map_err(|cause| loader_error(path, cause))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(Entry { protocol: Protocol::Pvh, address: entry.0 }),
        _ => Err(BootError::NoPvhEntry(path.to_owned())),
    }
}

fn load_bzimage(path: &Path, mut file: &File, ram: &GuestRam) -> Result<Entry, BootError> {
    let high_ram = Some(GuestAddress(layout::HIGH_RAM));
    let loaded =
        BzImage::load(ram.memory(), None, &mut file, high_ram).map_err(|cause| loader_error(path, cause))?;
    Ok(Entry { protocol: Protocol::Linux64, address: loaded.kernel_load.0 + ENTRY_64_OFFSET })
}

/// Reads the whole file straight into guest RAM.
fn copy(mut file: &File, ram: &GuestRam, address: u64, bytes: u64) -> std::io::Result<()> {
    let count = usize::try_from(bytes).map_err(std::io::Error::other)?;
    file.rewind()?;
    ram.memory()
        .read_exact_volatile_from(GuestAddress(address), &mut file, count)
        .map_err(std::io::Error::other)
}

/// Opens a regular file; a pipe or a directory would block or fail later with less to say.
fn open(option: &'static str, path: &Path) -> Result<(PathBuf, File), BootError> {
    let regular = std::fs::metadata(path).and_then(|found| match found.is_file() {
        true => File::open(path),
        false => Err(std::io::Error::other("not a regular file; give the path of an image")),
    });
    let file = regular.map_err(|cause| file_error(option, path, cause))?;
    Ok((path.to_owned(), file))
}

fn length(option: &'static str, path: &Path, file: &File) -> Result<u64, BootError> {
    Ok(file.metadata().map_err(|cause| file_error(option, path, cause))?.len())
}

fn file_error(option: &'static str, path: &Path, cause: std::io::Error) -> BootError {
    BootError::File { option, path: path.to_owned(), cause }
}

fn truncated(path: &Path, file: &File, need: u64) -> BootError {
    match length("--kernel", path, file) {
        Ok(have) => BootError::Truncated { path: path.to_owned(), have, need },
        Err(error) => error,
    }
}

fn loader_error(path: &Path, cause: linux_loader::loader::Error) -> BootError {
    BootError::Loader { path: path.to_owned(), cause }
}

/// Size of the RAM below 3 GiB, where everything that starts a kernel has to lie.
fn low_ram(ram: &GuestRam) -> u64 {
    ram.regions().first().map_or(0, |region| region.size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM_BYTES;

    /// A PVH kernel of one segment at 1 MiB: ELF header, PT_LOAD, PT_NOTE, the note, 16 bytes of code.
    fn pvh_elf(address: u64, memsz: u64) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        image[5] = 1;
        for (at, value) in [(18usize, 62u16), (54, 56), (56, 2)] {
            image[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut put = |at: usize, value: u64| image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(24, address);
        put(32, 64);
        for (at, kind, offset, address, filesz, memsz) in
            [(64, 1, 0xF00, address, 0x100, memsz), (120, 4, 0xE00, 0, 0x14, 0x14)]
        {
            put(at, kind);
            put(at + 8, offset);
            put(at + 24, address);
            put(at + 32, filesz);
            put(at + 40, memsz);
        }
        for (at, value) in [(0xE00usize, 4u32), (0xE04, 4), (0xE08, 18), (0xE10, 0x10_0040)] {
            image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        image[0xE0C..0xE10].copy_from_slice(b"Xen\0");
        image[0xF00..].fill(0xF4);
        image
    }

    fn files(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> (tempfile::TempDir, BootFiles) {
        let dir = tempfile::tempdir().unwrap();
        let kernel_path = dir.path().join("kernel");
        std::fs::write(&kernel_path, kernel).unwrap();
        let initrd_path = initrd.map(|bytes| {
            let path = dir.path().join("initrd");
            std::fs::write(&path, bytes).unwrap();
            path
        });
        let files = BootFiles::open(&kernel_path, initrd_path.as_deref(), cmdline).unwrap();
        (dir, files)
    }

    fn load(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<(GuestRam, Entry), BootError> {
        let (_dir, files) = files(kernel, initrd, cmdline);
        let ram = GuestRam::new(MIN_RAM_BYTES).unwrap();
        files.load(&ram, b"tables").map(|entry| (ram, entry))
    }

    #[test]
    fn a_pvh_elf_is_loaded_with_its_initramfs_and_command_line() {
        let (ram, entry) = load(&pvh_elf(0x10_0000, 0x2000), Some(b"cpio"), "quiet").unwrap();
        assert_eq!(entry, Entry { protocol: Protocol::Pvh, address: 0x10_0040 });
        let mut text = [0; 6];
        ram.memory().read_slice(&mut text, GuestAddress(layout::CMDLINE)).unwrap();
        assert_eq!(&text, b"quiet\0");
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 0xF4);
        let start: u64 = ram.memory().read_obj(GuestAddress(layout::PVH_MODULES)).unwrap();
        assert_eq!(start, MIN_RAM_BYTES - 4096);
        let mut initrd = [0; 4];
        ram.memory().read_slice(&mut initrd, GuestAddress(start)).unwrap();
        assert_eq!(&initrd, b"cpio");
    }

    #[test]
    fn files_that_are_no_kernel_are_refused() {
        let no_note = {
            let mut image = pvh_elf(0x10_0000, 0x2000);
            image[0xE08] = 17;
            image
        };
        let elf_32 = {
            let mut image = pvh_elf(0x10_0000, 0x2000);
            image[4] = 1;
            image
        };
        assert!(matches!(load(b"", None, ""), Err(BootError::NotAKernel(_))));
        assert!(matches!(load(&[0x55; 4096], None, ""), Err(BootError::NotAKernel(_))));
        assert!(matches!(load(&elf_32, None, ""), Err(BootError::NotAKernel(_))));
        assert!(matches!(load(&no_note, None, ""), Err(BootError::NoPvhEntry(_))));
    }

    #[test]
    fn a_file_cut_anywhere_is_called_truncated() {
        let image = pvh_elf(0x10_0000, 0x2000);
        for length in [4, 63, 64, 150, 0xE05, 0xFFF] {
            let result = load(&image[..length], None, "");
            assert!(matches!(result, Err(BootError::Truncated { .. })), "cut at {length}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_it_needs() {
        let Err(BootError::DoesNotFit { option, need, .. }) = load(&pvh_elf(0x10_0000, 2 << 20), None, "")
        else {
            panic!("a kernel that ends at 3 MiB fitted into 2 MiB");
        };
        assert_eq!((option, need), ("--kernel", 3 << 20));
        let initrd = vec![1; 1 << 20];
        let result = load(&pvh_elf(0x10_0000, 0x2000), Some(&initrd), "");
        assert!(matches!(result, Err(BootError::DoesNotFit { option: "--initrd", .. })));
        let low = load(&pvh_elf(0x8000, 0x2000), None, "");
        assert!(matches!(low, Err(BootError::TooLow { address: 0x8000, .. })));
        let long = "x".repeat(0x1_0000);
        assert!(matches!(
            load(&pvh_elf(0x10_0000, 0x2000), None, &long),
            Err(BootError::CmdlineTooLong { .. })
        ));
    }

    /// A bzImage of one setup sector and 512 bytes of kernel.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 1536];
        image[0x1F1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x1F4..0x1F8].copy_from_slice(&32u32.to_le_bytes());
        image[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
        image[0x236] = 1;
        image[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
        image[0x24C..0x250].copy_from_slice(&512u32.to_le_bytes());
        image[1024..].fill(0xF4);
        image
    }

    #[test]
    fn a_bzimage_is_entered_in_long_mode() {
        let (ram, entry) = load(&bzimage(), Some(b"cpio"), "quiet").unwrap();
        assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 0x10_0200 });
        let zero_page = |at: u64| ram.memory().read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + at)).unwrap();
        assert_eq!(zero_page(0x202), SETUP_HEADER_MAGIC);
        assert_eq!(zero_page(0x228), u32::try_from(layout::CMDLINE).unwrap());
        assert_eq!(u64::from(zero_page(0x218)), MIN_RAM_BYTES - 4096);
        assert_eq!(zero_page(0x21C), 4);
    }

    #[test]
    fn bzimages_that_cannot_start_are_refused() {
        let mut old = bzimage();
        old[0x236] = 0;
        assert!(matches!(load(&old, None, ""), Err(BootError::No64BitEntry(_))));
        assert!(matches!(load(&bzimage()[..1400], None, ""), Err(BootError::Truncated { need: 1536, .. })));
        let long = "x".repeat(2048);
        assert!(matches!(load(&bzimage(), None, &long), Err(BootError::CmdlineTooLong { limit: 2047, .. })));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("missing")] {
            let error = BootFiles::open(&path, None, "").unwrap_err();
            assert!(matches!(error, BootError::File { option: "--kernel", .. }));
        }
    }
}
