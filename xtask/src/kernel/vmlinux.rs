//! The ELF kernel out of a bzImage.
//!
//! The setup header of the x86 boot protocol (2.08 and later, Documentation/arch/x86/boot.rst) tells where the
//! compressed kernel lies; its first bytes tell how it is compressed. The four bytes after the compressed stream (the
//! size when unpacked) belong to the kernel's own decompressor and are cut off.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Stdio;

use super::{Error, io_error};
use crate::process::{self, command};

const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
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

/// The compressed stream inside a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if image.get(BOOT_FLAG..BOOT_FLAG + 2)? != [0x55, 0xaa]
        || image.get(HEADER_MAGIC..HEADER_MAGIC + 4)? != b"HdrS"
    {
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
    fn a_short_or_foreign_file_has_no_payload() {
        assert_eq!(payload(b"\x7fELF"), None);
        let mut cut = image(b"compressed");
        cut.truncate(1045);
        assert_eq!(payload(&cut), None);
    }
}
