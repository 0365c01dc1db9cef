//! The ELF kernel out of a bzImage.
//!
//! The setup header of the x86 boot protocol (2.08 and later, Documentation/arch/x86/boot.rst) tells where the
//! compressed kernel lies; its first bytes tell how it is compressed. The four bytes after the compressed stream (the
//! size when unpacked) belong to the kernel's own decompressor and are cut off. Of a kernel that is used as it is only
//! the version is read.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Stdio;

use super::{Error, io_error};
use crate::process::{self, command};

const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const KERNEL_VERSION: usize = 0x20e;
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Unpacks the kernel image `vmlinuz` into the ELF file `vmlinux`.
pub fn unpack(vmlinuz: &Path, vmlinux: &Path) -> Result<(), Error> {
    let image = fs::read(vmlinuz).map_err(io_error(vmlinuz))?;
    let broken = |reason| Error::Image { path: vmlinuz.to_owned(), reason };
    let payload =
        payload(&image).ok_or_else(|| broken("it is not a bzImage of boot protocol 2.08 or later"))?;
    let tool = decompressor(payload).ok_or_else(|| broken("it is compressed with neither xz nor lz4"))?;
    decompress(tool, payload, vmlinux)?;
    let elf = fs::read(vmlinux).map_err(io_error(vmlinux))?;
    if elf.starts_with(b"\x7fELF") { Ok(()) } else { Err(broken("what it holds is not an ELF file")) }
}

/// The version of a kernel, as `uname -r` says: from a bzImage's setup header, or from an ELF file's banner.
pub fn version(image: &[u8]) -> Option<String> {
    let text = if is_bzimage(image) {
        let pointer = image.get(KERNEL_VERSION..KERNEL_VERSION + 2)?;
        image.get(usize::from(u16::from_le_bytes(pointer.try_into().ok()?)) + 0x200..)?
    } else if image.starts_with(b"\x7fELF") {
        const BANNER: &[u8] = b"Linux version ";
        let at = image.windows(BANNER.len()).position(|window| window == BANNER)?;
        image.get(at + BANNER.len()..)?
    } else {
        return None;
    };
    let word: Vec<u8> = text.iter().copied().take_while(u8::is_ascii_graphic).collect();
    String::from_utf8(word).ok().filter(|word| !word.is_empty())
}

fn is_bzimage(image: &[u8]) -> bool {
    let has = |at: usize, bytes: &[u8]| image.get(at..at + bytes.len()) == Some(bytes);
    has(BOOT_FLAG, &[0x55, 0xaa]) && has(HEADER_MAGIC, b"HdrS")
}

/// The compressed stream inside a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if !is_bzimage(image) {
        return None;
    }
    let setup_bytes = (usize::from(*image.get(SETUP_SECTS)?) + 1) * 512;
    let start = setup_bytes + usize::try_from(word(PAYLOAD_OFFSET)?).ok()?;
    let length = usize::try_from(word(PAYLOAD_LENGTH)?).ok()?.checked_sub(4)?;
    image.get(start..start + length)
}

fn decompressor(payload: &[u8]) -> Option<&'static str> {
    match payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [0x02, 0x21, 0x4c, 0x18, ..] => Some("lz4"),
        _ => None,
    }
}

fn decompress(tool: &'static str, payload: &[u8], into: &Path) -> Result<(), Error> {
    let mut input = tempfile::tempfile().map_err(io_error(into))?;
    input.write_all(payload).and_then(|()| input.rewind()).map_err(io_error(into))?;
    let output = File::create(into).map_err(io_error(into))?;
    let child = command(tool).arg("-dc").stdin(input).stdout(output).stderr(Stdio::piped()).spawn();
    let done = child
        .and_then(std::process::Child::wait_with_output)
        .map_err(|source| process::Error::Start { name: tool.to_owned(), source })?;
    if done.status.success() {
        return Ok(());
    }
    let stderr = process::last_lines(&done.stderr, 5);
    Err(process::Error::Failed { name: format!("{tool} -dc"), status: done.status, stderr }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[SETUP_SECTS] = 1;
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap() + 4;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[9; 4]);
        image
    }

    #[test]
    fn the_payload_is_where_the_setup_header_says() {
        assert_eq!(payload(&image(b"compressed")), Some(&b"compressed"[..]));
    }

    #[test]
    fn the_version_is_told_by_both_kinds_of_kernel() {
        let mut compressed = image(b"");
        compressed[KERNEL_VERSION] = 0x40;
        compressed[0x240..0x24c].copy_from_slice(b"6.1.0-9 (x)\0");
        assert_eq!(version(&compressed).as_deref(), Some("6.1.0-9"));
        assert_eq!(version(b"\x7fELF..Linux version 6.2-test (gcc)").as_deref(), Some("6.2-test"));
        assert_eq!(version(b"#!/bin/sh"), None);
    }

    #[test]
    fn a_short_or_foreign_file_has_no_payload() {
        assert_eq!(payload(b"\x7fELF"), None);
        let mut cut = image(b"compressed");
        cut.truncate(1045);
        assert_eq!(payload(&cut), None);
    }
}
