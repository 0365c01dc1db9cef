//! Block devices that change by themselves: the kernel tells everybody who listens (uevents, netlink(7)).
//!
//! In: nothing; the socket is opened in the first process, since a worker opens none, and kept like an image. Out:
//! whether something was said about block devices. Which one and how large it is now is not believed but looked at, so
//! that a message that was lost, or is of somebody else, does no harm.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// Name of the socket among what is opened: one is enough for all block devices of a daemon.
pub const NAME: &str = "blk.uevents";
/// Where the kernel itself speaks; group 2 is udev.
const KERNEL_GROUP: u32 = 1;
/// Longest message of the kernel (UEVENT_BUFFER_SIZE), with its head.
const MESSAGE_BYTES: usize = 4096;

/// A socket that hears uevents.
///
/// # Errors
/// The host has none to give.
pub fn listen() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// Takes all messages that are there. `true`: a block device has changed, or one may have.
pub fn heard(socket: impl AsFd) -> bool {
    let (mut changed, mut message) = (false, [0; MESSAGE_BYTES]);
    loop {
        match rustix::io::read(&socket, &mut message) {
            Ok(bytes) => changed |= is_change(message.get(..bytes).unwrap_or_default()),
            // More came than the socket keeps.
            Err(Errno::NOBUFS) => changed = true,
            Err(Errno::INTR) => {}
            Err(_) => return changed,
        }
    }
}

/// Words that end with a zero each, `KEY=VALUE` but for the first.
fn is_change(message: &[u8]) -> bool {
    let has = |word: &[u8]| message.split(|byte| *byte == 0).any(|other| other == word);
    has(b"ACTION=change") && has(b"SUBSYSTEM=block")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_block_devices_are_told_from_all_else() {
        let resized =
            b"change@/devices/virtual/block/loop0\0ACTION=change\0DEVPATH=/devices/virtual/block/loop0\0\
            SUBSYSTEM=block\0RESIZE=1\0MAJOR=7\0MINOR=0\0DEVNAME=loop0\0SEQNUM=4398\0";
        assert!(is_change(resized));
        for other in [
            &b"add@/devices/virtual/block/loop0\0ACTION=add\0SUBSYSTEM=block\0"[..],
            b"change@/devices/virtual/net/eth0\0ACTION=change\0SUBSYSTEM=net\0",
            b"ACTION=change",
            b"SUBSYSTEM=blocks\0ACTION=change\0",
            b"",
        ] {
            assert!(!is_change(other), "{}", other.escape_ascii());
        }
    }
}
