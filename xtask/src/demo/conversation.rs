//! The host's side of the talk with the demo's guest (guest.sh), over the socket of `outboard-console`.
//!
//! In: a stream, and a deadline. Out: what was proven, or the first step that went wrong. A guest that ends early ends
//! the talk at once: the caller's `alive` says so.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::disk;
use crate::interrupt;

/// How many lines the guest says in one go, 109 KB: more than the queue and the buffers on their way hold.
pub const LINES_TO_SAY: usize = 20_000;
/// How many bytes the guest takes from its entropy device.
pub const RANDOM_BYTES: usize = 1024;

/// One end of the guest's console.
pub struct Conversation<'a> {
    stream: UnixStream,
    heard: Vec<u8>,
    deadline: Instant,
    alive: Box<dyn FnMut() -> Result<(), String> + 'a>,
}

impl<'a> Conversation<'a> {
    /// Over `stream`, until `deadline`; `alive` fails once nobody can answer any more.
    pub fn new(
        stream: UnixStream,
        deadline: Instant,
        alive: impl FnMut() -> Result<(), String> + 'a,
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, heard: Vec::new(), deadline, alive: Box::new(alive) })
    }

    /// Waits for the guest's init.
    pub fn init(&mut self) -> Result<(), String> {
        self.expect("init").map(drop)
    }

    /// Says a word, and wants to hear it back; then hears many lines, and wants each of them, in order.
    pub fn console(&mut self) -> Result<(), String> {
        let nonce = disk::nonce().map_err(|error| error.to_string())?;
        self.say(&nonce)?;
        let heard = self.expect("pong")?;
        if heard != nonce {
            return Err(format!("the guest answered {heard:?} to {nonce:?} over hvc0"));
        }
        for number in 1..=LINES_TO_SAY {
            let line = self.line()?;
            if line != number.to_string() {
                return Err(format!("hvc0 lost or mixed output: line {number} is {line:?}"));
            }
        }
        Ok(())
    }

    /// Hears which device feeds /dev/hwrng, and bytes of it.
    pub fn random(&mut self) -> Result<(), String> {
        check_random(&self.expect("random")?)
    }

    /// Hears the size and the SHA-256 of the disk as the guest reads it.
    pub fn disk(&mut self, content: &[u8]) -> Result<(), String> {
        let heard = self.expect("disk")?;
        let wanted = format!("{} {}", content.len(), disk::sha256(content));
        if heard == wanted {
            Ok(())
        } else {
            Err(format!("the guest's disk is {heard:?}, the image {wanted:?}"))
        }
    }

    /// Has the guest write `nonce` over the pattern's range.
    pub fn write(&mut self, nonce: &str) -> Result<(), String> {
        self.say(nonce)?;
        match self.expect("written")?.as_str() {
            "0" => Ok(()),
            code => Err(format!("writing to the disk failed in the guest (exit code {code})")),
        }
    }

    fn say(&mut self, line: &str) -> Result<(), String> {
        let sent = self.stream.write_all(format!("{line}\n").as_bytes());
        sent.map_err(|error| format!("cannot write to hvc0: {error}"))
    }

    /// The rest of the next line, which must start with `word`.
    fn expect(&mut self, word: &str) -> Result<String, String> {
        let line = self.line()?;
        let rest = line.strip_prefix(word).map(|rest| rest.trim_start().to_owned());
        rest.ok_or_else(|| format!("the guest said {line:?} where it should say {word:?}"))
    }

    fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.listen()?;
        }
    }

    /// Takes in what comes within one tick.
    fn listen(&mut self) -> Result<(), String> {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => Err("outboard-console closed its connection".to_owned()),
            Ok(count) => {
                self.heard.extend(piece.iter().take(count));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.nothing_heard(),
            Err(error) => Err(format!("cannot read from hvc0: {error}")),
        }
    }

    fn nothing_heard(&mut self) -> Result<(), String> {
        (self.alive)()?;
        if interrupt::asked() {
            return Err("interrupted".to_owned());
        }
        if Instant::now() > self.deadline {
            let half = String::from_utf8_lossy(&self.heard).into_owned();
            return Err(format!("the guest fell silent (last heard, without its end: {half:?})"));
        }
        Ok(())
    }
}

/// `virtio_rng.0 HEX`: from our device, all of it, and not the same byte again and again.
fn check_random(heard: &str) -> Result<(), String> {
    let (source, digits) = heard.split_once(' ').unwrap_or((heard, ""));
    if !source.starts_with("virtio_rng") {
        return Err(format!("/dev/hwrng is fed by {source:?}, not by virtio_rng"));
    }
    if digits.len() != 2 * RANDOM_BYTES {
        return Err(format!("/dev/hwrng gave {} bytes instead of {RANDOM_BYTES}", digits.len() / 2));
    }
    let first = digits.get(..2).unwrap_or_default();
    if digits.as_bytes().chunks(2).all(|pair| pair == first.as_bytes()) {
        return Err(format!("/dev/hwrng gave {first} {RANDOM_BYTES} times"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn talk(guest: impl FnOnce(UnixStream) + Send + 'static) -> Conversation<'static> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || guest(theirs));
        Conversation::new(ours, Instant::now() + Duration::from_millis(300), || Ok(())).unwrap()
    }

    #[test]
    fn a_guest_that_says_the_wrong_thing_is_quoted() {
        let mut talk = talk(|mut guest| guest.write_all(b"Kernel panic\r\n").unwrap());
        assert_eq!(talk.init().unwrap_err(), "the guest said \"Kernel panic\" where it should say \"init\"");
    }

    #[test]
    fn a_silent_guest_is_not_waited_for_longer_than_the_deadline() {
        let mut talk = talk(|mut guest| {
            guest.write_all(b"ini").unwrap();
            thread::sleep(Duration::from_secs(5));
        });
        assert!(talk.init().unwrap_err().contains("\"ini\""));
    }

    #[test]
    fn a_lost_line_is_noticed() {
        let mut talk = talk(|mut guest| {
            let mut nonce = [0; 33];
            guest.read_exact(&mut nonce).unwrap();
            guest.write_all(b"pong ").unwrap();
            guest.write_all(&nonce).unwrap();
            guest.write_all(b"1\n2\n4\n").unwrap();
        });
        assert_eq!(talk.console().unwrap_err(), "hvc0 lost or mixed output: line 3 is \"4\"");
    }

    #[test]
    fn random_bytes_must_come_from_our_device_and_be_random() {
        let good = "0f".repeat(RANDOM_BYTES - 1) + "aa";
        assert_eq!(check_random(&format!("virtio_rng.0 {good}")), Ok(()));
        assert!(check_random(&format!("tpm-rng-0 {good}")).is_err());
        assert!(check_random("virtio_rng.0 0faa").is_err());
        assert!(check_random(&format!("virtio_rng.0 {}", "00".repeat(RANDOM_BYTES))).is_err());
    }
}
