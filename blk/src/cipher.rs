//! AES-256-XTS (IEEE 1619): what the bytes of a disk are turned into for whoever has the medium and not the key.
//!
//! ```text
//! key:  data key, 32 bytes │ tweak key, 32 bytes          unit n of the disk, 512 or 4096 bytes, is one data unit of XTS
//! unit n  ── XTS, tweak n as 128-bit little-endian ──►  unit n on the medium: same place, same length
//! ```
//! In: a [`Key`], and whole units with the number of the first. Out: the same bytes, enciphered or deciphered in place.
//! The format is that of dm-crypt's `aes-xts-plain64` (for units of 4096 bytes with `iv_large_sectors`), so that a disk
//! can be opened without this program.
//!
//! Promises: a key is wiped from memory when it is dropped, also what the cipher has made of it; nothing is allocated per
//! unit; a failure leaves no unit half done that is then used: it is an error of the whole.
//! Keeps secret the contents, and nothing else: which units are written, and when one goes back to what it was, is seen;
//! and nothing is authenticated (a unit that somebody changed deciphers to noise).
//! Refuses: a key whose halves are equal (IEEE 1619-2018 §5.1: XTS then has no tweak to speak of), keys of other lengths,
//! other than whole units.
//!
//! The only file of this crate with unsafe code: AWS-LC has the fastest AES of all libraries, and is C and assembly.

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

use std::ffi::c_int;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null, null_mut};

use aws_lc_sys as lc;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use thiserror::Error;

/// Bytes of a key: one for the data, one for the tweak.
pub const KEY_BYTES: usize = 64;
const HEX_BYTES: usize = KEY_BYTES * 2;
/// The longest text that can be a key, and one byte more, to know a longer one.
const TEXT_BYTES: usize = HEX_BYTES + 3;

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Neither of the two forms.
    #[error(
        "it is no key: give {KEY_BYTES} raw bytes (head -c {KEY_BYTES} /dev/random) or {HEX_BYTES} hexadecimal digits"
    )]
    Form,
    /// As many digits as an AES-128-XTS key has.
    #[error(
        "it is a key of 32 bytes in hexadecimal, and AES-256-XTS takes 64 bytes: give {HEX_BYTES} digits"
    )]
    Half,
    /// The tweak key is the data key.
    #[error("its two halves are equal, which makes XTS unsafe: give {KEY_BYTES} bytes of a random source")]
    Equal,
    /// The file cannot be read.
    #[error("cannot read it: {0}; let the user of this daemon read it")]
    Read(Errno),
}

/// The cipher refused, which it does for no input that can come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("AES-256-XTS failed")]
pub struct CipherError;

/// Bytes that are wiped when they are dropped. In a box: moving one leaves no copy behind.
#[derive(PartialEq, Eq)]
struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    fn new() -> Secret<N> {
        Secret(Box::new([0; N]))
    }
}

impl<const N: usize> Deref for Secret<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> DerefMut for Secret<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        // SAFETY: our own `N` bytes, of which every bit may be anything.
        unsafe { lc::OPENSSL_cleanse(self.0.as_mut_ptr().cast(), N) };
    }
}

/// A key whose halves differ.
#[derive(PartialEq, Eq)]
pub struct Key(Secret<KEY_BYTES>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl Key {
    /// The key in a file: as many raw bytes, or twice as many hexadecimal digits with or without the end of a line. The
    /// position of the descriptor is left where it is, so that many may read it.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn read(fd: impl std::os::fd::AsFd) -> Result<Key, KeyError> {
        let mut text = Secret::<TEXT_BYTES>::new();
        let mut len = 0;
        loop {
            let room = text.get_mut(len..).unwrap_or_default();
            match rustix::io::pread(&fd, room, len as u64) {
                Ok(0) => break,
                Ok(count) => len = len.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(KeyError::Read(errno)),
            }
        }
        Key::parse(text.get(..len).unwrap_or_default())
    }

    /// A file of memory with the key, which nobody can change.
    ///
    /// # Errors
    /// The host has no descriptor or memory left.
    pub fn in_memory(&self) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("key", flags)?);
        file.write_all(&*self.0)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// The key that these bytes are.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &[u8]) -> Result<Key, KeyError> {
        let mut key = Secret::<KEY_BYTES>::new();
        let digits = text.strip_suffix(b"\n").unwrap_or(text);
        let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
        match (text.len(), digits.len()) {
            // A random key of digits alone is not to be expected in the life of the universe.
            (_, KEY_BYTES) if digits.iter().all(u8::is_ascii_hexdigit) => return Err(KeyError::Half),
            (KEY_BYTES, _) => key.copy_from_slice(text),
            (_, HEX_BYTES) => from_hex(digits, &mut *key).ok_or(KeyError::Form)?,
            _ => return Err(KeyError::Form),
        }
        let (data, tweak) = key.split_at(KEY_BYTES / 2);
        if data == tweak { Err(KeyError::Equal) } else { Ok(Key(key)) }
    }
}

fn from_hex(digits: &[u8], key: &mut [u8]) -> Option<()> {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let &[high, low] = pair else { return None };
        *byte = value(high)? << 4 | value(low)?;
    }
    Some(())
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Encipher = 1,
    Decipher = 0,
}

/// A cipher with its key, for one thread.
#[derive(Debug)]
pub struct Xts {
    encipher: Context,
    decipher: Context,
    unit_bytes: usize,
}

impl Xts {
    /// A cipher for units of this many bytes.
    ///
    /// # Errors
    /// No memory is left.
    pub fn new(key: &Key, unit_bytes: u32) -> Result<Xts, CipherError> {
        let unit_bytes = usize::try_from(unit_bytes).ok().filter(|bytes| *bytes >= 512).ok_or(CipherError)?;
        let context = |way| Context::new(key, way);
        Ok(Xts { encipher: context(Way::Encipher)?, decipher: context(Way::Decipher)?, unit_bytes })
    }

    /// Enciphers whole units, the first of which has this number.
    ///
    /// # Errors
    /// What is there is not to be used.
    pub fn encipher(&mut self, first: u64, units: &mut [u8]) -> Result<(), CipherError> {
        self.encipher.all(first, units, self.unit_bytes)
    }

    /// Deciphers whole units, the first of which has this number.
    ///
    /// # Errors
    /// What is there is not to be used.
    pub fn decipher(&mut self, first: u64, units: &mut [u8]) -> Result<(), CipherError> {
        self.decipher.all(first, units, self.unit_bytes)
    }
}

/// The key schedule of one way, which AWS-LC allocates, aligns and wipes.
#[derive(Debug)]
struct Context {
    raw: NonNull<lc::EVP_CIPHER_CTX>,
    way: Way,
}

// SAFETY: nothing in it belongs to a thread; one thread at a time has it, since it is used by `&mut` only.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &Key, way: Way) -> Result<Context, CipherError> {
        // SAFETY: no arguments; null is refused, anything else is ours to free.
        let raw = NonNull::new(unsafe { lc::EVP_CIPHER_CTX_new() }).ok_or(CipherError)?;
        let context = Context { raw, way };
        // SAFETY: the context is alive, the cipher is a constant of the library, and the key has the 64 bytes that
        // AES-256-XTS reads.
        let done = unsafe {
            let cipher = lc::EVP_aes_256_xts();
            lc::EVP_CipherInit_ex(raw.as_ptr(), cipher, null_mut(), key.0.as_ptr(), null(), way as c_int)
        };
        (done == 1).then_some(context).ok_or(CipherError)
    }

    fn all(&mut self, first: u64, units: &mut [u8], unit_bytes: usize) -> Result<(), CipherError> {
        if !units.len().is_multiple_of(unit_bytes) {
            return Err(CipherError);
        }
        let mut units = units.chunks_exact_mut(unit_bytes).zip(first..);
        units.try_for_each(|(unit, number)| self.one(number, unit))
    }

    /// One data unit of at least 16 bytes, which `Xts::new` sees to.
    fn one(&mut self, number: u64, unit: &mut [u8]) -> Result<(), CipherError> {
        let tweak = u128::from(number).to_le_bytes();
        let (raw, bytes) = (self.raw.as_ptr(), unit.as_mut_ptr());
        // SAFETY: the context is alive and has its key; the tweak has the 16 bytes that are read, and `unit` its length,
        // read and written at the same place, which the cipher is made for.
        let done = unsafe {
            lc::EVP_CipherInit_ex(raw, null(), null_mut(), null(), tweak.as_ptr(), self.way as c_int) == 1
                && lc::EVP_Cipher(raw, bytes, bytes, unit.len()) == 1
        };
        done.then_some(()).ok_or(CipherError)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again; the key schedule in it is wiped.
        unsafe { lc::EVP_CIPHER_CTX_free(self.raw.as_ptr()) };
    }
}

#[cfg(test)]
#[path = "cipher_tests.rs"]
mod tests;
