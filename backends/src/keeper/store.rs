//! The service manager's descriptor store (sd_notify(3), FDSTORE): what this keeper has, for the keeper after it.
//!
//! In: [`Entry`]s that say all of a keeper's state. Out: the same, when the daemon is started again after a crash of
//! its keeper or by `systemctl restart`. The manager is given sockets whose other end is closed; each has one packet
//! in it, a part of the state with its descriptors, which is read without being taken out:
//!
//! ```text
//! part   version u32, number u16, of u16, generation u64, entries        a packet carries 253 descriptors at most
//! entry  kind u8, descriptors u8, length u16, bytes
//! ```
//! So a few stored descriptors stand for all (`FileDescriptorStoreMax=16` is enough), those that are the same file
//! twice included, of which the manager would keep one. A generation is stored by one datagram, whole or not at all,
//! under the name that the one before does not have; then that one is emptied, and removed: whenever the keeper dies,
//! there is the old state or the new one. The packets are emptied by the keeper itself, so that no manager which has
//! stopped listening brings back an old state. Without a manager nothing here does anything, nor after it refused.
//!
//! What cannot be had: reading a message and storing it, or answering one and storing that, are two system calls. A
//! keeper that is killed in the microseconds between them loses that answer, or gives it twice.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use crate::passing::{self, MAX_DESCRIPTORS};

/// What our stored descriptors are called, generation by generation in turn.
const NAMES: [&str; 2] = ["outboard-keeper-0", "outboard-keeper-1"];
const VERSION: u32 = 2;
/// Bytes of entries in one part, unless the last one is longer than the rest.
const PART_BYTES: usize = 32 << 10;
/// Bytes before a part's entries.
const HEAD_BYTES: usize = 16;
/// Longest part.
const MAX_PACKET_BYTES: usize = HEAD_BYTES + PART_BYTES + (8 << 10);
/// How long the manager may take for a datagram.
const PATIENCE: Duration = Duration::from_secs(1);

/// What an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What was opened, or workers had kept: its name, and its descriptor.
    Kept,
    /// The front-end's connection, and what is known of it.
    FrontEnd,
    /// A message of the record.
    Said,
    /// The message that has not been answered.
    Pending,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Kept, Kind::FrontEnd, Kind::Said, Kind::Pending];
}

/// One thing that the next keeper has to know, with its descriptors: borrowed to be stored, owned when they come back.
#[derive(Debug)]
pub(super) struct Entry<Fd> {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<Fd>,
}

impl<'a> Entry<BorrowedFd<'a>> {
    pub(super) fn new(
        kind: Kind,
        bytes: impl Into<Vec<u8>>,
        fds: impl IntoIterator<Item = &'a (impl AsFd + 'a)>,
    ) -> Self {
        Entry { kind, bytes: bytes.into(), fds: fds.into_iter().map(AsFd::as_fd).collect() }
    }
}

/// Entries as they go into one packet.
#[derive(Debug)]
struct Part<'a> {
    bytes: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

/// The store, as this keeper uses it.
#[derive(Debug)]
pub(super) struct Store {
    manager: Option<UnixDatagram>,
    generation: u64,
    /// The packets that are stored.
    packets: Vec<OwnedFd>,
    /// What is in them: bytes, and numbers of descriptors.
    known: Vec<(Vec<u8>, Vec<RawFd>)>,
}

impl Store {
    /// Nothing is stored by this keeper yet.
    ///
    /// # Errors
    /// There is a service manager, and it cannot be reached.
    pub(super) fn new() -> (Store, io::Result<()>) {
        let manager = std::env::var_os("NOTIFY_SOCKET").map(|path| {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(path).map(|()| socket)
        });
        let (manager, reached) = match manager.transpose() {
            Ok(manager) => (manager, Ok(())),
            Err(error) => (None, Err(error)),
        };
        (Store { manager, generation: 0, packets: Vec::new(), known: Vec::new() }, reached)
    }

    /// What the keeper before this one stored last; it stays stored until something else is. None: it makes no sense.
    pub(super) fn take_back(&mut self) -> Option<Vec<Entry<OwnedFd>>> {
        self.packets = passed();
        // Not what we would store, so that something is soon.
        self.known = vec![Default::default(); self.packets.len()];
        let (generation, entries) = newest(&self.packets);
        self.generation = generation;
        entries
    }

    /// Whether there is anybody to store something with.
    pub(super) fn is_there(&self) -> bool {
        self.manager.is_some()
    }

    /// Stores this in place of what was stored before.
    ///
    /// # Errors
    /// The manager does not take it; nothing is stored any more.
    pub(super) fn save(&mut self, entries: &[Entry<BorrowedFd<'_>>]) -> io::Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let parts = pack(entries);
        let numbers = |part: &Part<'_>| part.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let known: Vec<_> = parts.iter().map(|part| (part.bytes.clone(), numbers(part))).collect();
        if known == self.known {
            return Ok(());
        }
        self.generation = self.generation.wrapping_add(1);
        let stored = seal(&parts, self.generation).and_then(|packets| {
            let [even, odd] = NAMES;
            let (name, before) = if self.generation & 1 == 0 { (even, odd) } else { (odd, even) };
            store(manager, name, &packets)?;
            let outdated = std::mem::replace(&mut self.packets, packets);
            outdated.iter().for_each(empty);
            remove(manager, before)
        });
        match &stored {
            Ok(()) => self.known = known,
            Err(_) => {
                self.packets.drain(..).for_each(|packet| empty(&packet));
                self.manager = None;
            }
        }
        stored
    }
}

/// Whether a descriptor that was passed to this process is a keeper's.
pub(crate) fn is_ours(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What the service manager passed to this process of what a keeper before it had stored.
pub(crate) fn passed() -> Vec<OwnedFd> {
    let all = sd_notify::listen_fds_with_names().into_iter().flatten();
    all.filter(|(_, name)| is_ours(name)).filter_map(|(fd, _)| crate::sys::adopt_fd(fd).ok()).collect()
}

/// What a keeper before had opened, or kept for workers, by name.
pub(crate) fn kept(packets: &[OwnedFd]) -> BTreeMap<String, OwnedFd> {
    let entries = newest(packets).1.into_iter().flatten().filter(|entry| entry.kind == Kind::Kept);
    entries.filter_map(|mut entry| Some((String::from_utf8(entry.bytes).ok()?, entry.fds.pop()?))).collect()
}

/// Lets go of all that a keeper before had stored: this daemon has none.
pub(crate) fn disown(packets: &[OwnedFd]) {
    packets.iter().for_each(empty);
}

/// The generation that was stored last, and its entries. None: they make no sense.
fn newest(packets: &[OwnedFd]) -> (u64, Option<Vec<Entry<OwnedFd>>>) {
    let mut parts: Vec<_> = packets.iter().filter_map(read).collect();
    let newest = parts.iter().map(|(head, _)| head.generation).max();
    parts.retain(|(head, _)| Some(head.generation) == newest);
    parts.sort_by_key(|(head, _)| head.number);
    let whole = parts.iter().zip(1..).all(|((head, _), number)| head.number == number)
        && parts.last().map_or(packets.is_empty(), |(head, _)| head.number == head.of);
    let entries = whole.then(|| parts.into_iter().flat_map(|(_, entries)| entries).collect());
    (newest.unwrap_or(0), entries)
}

fn store(manager: &UnixDatagram, name: &str, packets: &[OwnedFd]) -> io::Result<()> {
    if packets.is_empty() {
        return remove(manager, name);
    }
    // FDPOLL: a socket whose other end is closed is what the manager would take for done with.
    let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
    let fds: Vec<_> = packets.iter().map(AsFd::as_fd).collect();
    passing::send(manager, text.as_bytes(), &fds, SendFlags::empty())?;
    Ok(())
}

fn remove(manager: &UnixDatagram, name: &str) -> io::Result<()> {
    let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
    passing::send(manager, text.as_bytes(), &[], SendFlags::empty())?;
    Ok(())
}

/// Entries in as few parts as hold them.
fn pack<'a>(entries: &[Entry<BorrowedFd<'a>>]) -> Vec<Part<'a>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for Entry { kind, bytes, fds } in entries {
        let room =
            |part: &Part<'_>| part.bytes.len() < PART_BYTES && part.fds.len() + fds.len() <= MAX_DESCRIPTORS;
        if !parts.last().is_some_and(room) {
            parts.push(Part { bytes: Vec::new(), fds: Vec::new() });
        }
        let Some(part) = parts.last_mut() else { continue };
        let count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
        part.bytes.extend([*kind as u8, count]);
        part.bytes.extend(length.iter().chain(bytes));
        part.fds.extend(fds);
    }
    parts
}

/// Each part in a socket of its own.
fn seal(parts: &[Part<'_>], generation: u64) -> io::Result<Vec<OwnedFd>> {
    let count = u16::try_from(parts.len()).map_err(io::Error::other)?;
    let seal = |(part, number): (&Part<'_>, u16)| {
        let (kept, ours) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut packet = VERSION.to_le_bytes().to_vec();
        packet.extend([number, count].iter().flat_map(|half| half.to_le_bytes()));
        packet.extend(generation.to_le_bytes());
        packet.extend(&part.bytes);
        passing::send(&ours, &packet, &part.fds, SendFlags::DONTWAIT)?;
        Ok(kept)
    };
    parts.iter().zip(1..).map(seal).collect()
}

/// Takes the packet out, wherever else the socket is held.
fn empty(packet: &OwnedFd) {
    let _ = passing::recv(packet, &mut [0; HEAD_BYTES], RecvFlags::DONTWAIT);
}

/// What comes before the entries of a part.
#[derive(Debug)]
struct Head {
    /// From 1.
    number: u16,
    of: u16,
    generation: u64,
}

fn read(packet: &OwnedFd) -> Option<(Head, Vec<Entry<OwnedFd>>)> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let received = passing::recv(packet, &mut bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK).ok()?;
    let bytes = bytes.get(..received.bytes).filter(|_| received.whole)?;
    let (version, rest) = bytes.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (of, rest) = rest.split_first_chunk()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (number, of) = (u16::from_le_bytes(*number), u16::from_le_bytes(*of));
    let head = Head { number, of, generation: u64::from_le_bytes(*generation) };
    (u32::from_le_bytes(*version) == VERSION).then_some((head, unpack(rest, received.fds)?))
}

/// None: the entries are not as long, or have not as many descriptors, as they say.
fn unpack(mut bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Vec<Entry<OwnedFd>>> {
    let (mut entries, mut fds) = (Vec::new(), fds.into_iter());
    while let Some(([kind, count, low, high], rest)) = bytes.split_first_chunk() {
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
        let (own, rest) = rest.split_at_checked(u16::from_le_bytes([*low, *high]).into())?;
        let own_fds: Vec<_> = fds.by_ref().take(usize::from(*count)).collect();
        if own_fds.len() != usize::from(*count) {
            return None;
        }
        entries.push(Entry { kind, bytes: own.to_vec(), fds: own_fds });
        bytes = rest;
    }
    (bytes.is_empty() && fds.next().is_none()).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// Five descriptors in each of 120 entries: three packets.
    #[test]
    fn entries_come_back_in_order_from_as_few_packets_as_carry_their_descriptors() {
        let fds: Vec<OwnedFd> = (0..5).map(|_| file()).collect();
        let entries: Vec<_> =
            (0..120u8).map(|nth| Entry::new(Kind::Said, vec![nth; nth.into()], &fds)).collect();
        let packets = seal(&pack(&entries), 7).unwrap();
        assert_eq!(packets.len(), 3);
        for round in 0..2 {
            let read: Vec<_> = packets.iter().map(|packet| read(packet).unwrap()).collect();
            assert!(read.iter().all(|(head, _)| head.of == 3 && head.generation == 7), "round {round}");
            let back = read.into_iter().flat_map(|(_, entries)| entries);
            assert!(back.zip(&entries).all(|(back, entry)| back.bytes == entry.bytes && back.fds.len() == 5));
        }
        packets.iter().for_each(empty);
        assert!(packets.iter().all(|packet| read(packet).is_none()));
    }

    #[test]
    fn entries_that_are_cut_anywhere_make_no_sense() {
        let fd = file();
        let parts = pack(&[Entry::new(Kind::Kept, *b"pty", [&fd]), Entry::new(Kind::Said, *b"12", [&fd])]);
        let bytes = &parts[0].bytes;
        assert_eq!(unpack(bytes, vec![file(), file()]).unwrap().len(), 2);
        for end in 0..bytes.len() {
            assert!(unpack(&bytes[..end], vec![file(), file()]).is_none(), "{end}");
        }
        assert!(
            unpack(bytes, vec![file()]).is_none() && unpack(bytes, vec![file(), file(), file()]).is_none()
        );
    }
}
