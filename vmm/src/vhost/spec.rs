//! `--device TYPE,socket=PATH[,id=NAME][,queues=N][,queue-size=N]`: from text to a [`DeviceSpec`].
//!
//! Only what can be seen in the text itself is checked here; what the socket has behind it is
//! [`super::connect`]'s business.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use super::kind::DeviceKind;
use crate::pci::virtio::MAX_QUEUES;

/// Largest virtqueue there is (virtio 1.3 §2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// Longest name of a device.
const MAX_ID_BYTES: usize = 64;

/// A device as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its type.
    pub kind: DeviceKind,
    /// Where its daemon listens.
    pub socket: PathBuf,
    /// Its name in messages; empty if none was given, until [`give_names`] has found one.
    pub id: String,
    /// Virtqueues, if not as many as the daemon has.
    pub queues: Option<u16>,
    /// Largest size of each virtqueue, if not the default.
    pub queue_size: Option<u16>,
}

/// What is wrong with a device. The text is to be shown behind `--device TEXT: `.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Unknown type.
    #[error("there is no device type {name:?}; {cure}")]
    Type {
        /// As given.
        name: String,
        /// What can be given.
        cure: String,
    },
    /// No socket.
    #[error("no socket is named; add socket=PATH, where the device's daemon listens")]
    NoSocket,
    /// Not an option of a device.
    #[error(
        "{0:?} is not understood; a device is TYPE,socket=PATH[,id=NAME][,queues=N][,queue-size=N], and a path cannot hold a comma"
    )]
    Unknown(String),
    /// The same option again.
    #[error("{0}= stands there twice; leave one out")]
    Twice(String),
    /// A name that cannot be used.
    #[error("id={0:?} is no name; use 1 to {MAX_ID_BYTES} letters, digits, dots, dashes and underscores")]
    Id(String),
    /// A number of queues that no device has.
    #[error(
        "queues={0} is no number of virtqueues; use 1 to {MAX_QUEUES}, or leave queues out to take what the daemon has"
    )]
    Queues(String),
    /// A size that no virtqueue has.
    #[error(
        "queue-size={0} is no size of a virtqueue; use a power of two up to {MAX_QUEUE_SIZE}, or leave queue-size out"
    )]
    QueueSize(String),
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<DeviceSpec, SpecError> {
        let (name, options) = text.split_once(',').unwrap_or((text, ""));
        let kind = DeviceKind::parse(name).map_err(|cure| SpecError::Type { name: name.to_owned(), cure })?;
        let mut options = Options::split(options)?;
        let socket = options.take("socket").filter(|path| !path.is_empty()).ok_or(SpecError::NoSocket)?;
        let socket = PathBuf::from(socket);
        let id = options.take("id").map_or(Ok(String::new()), check_id)?;
        let queues = options.take("queues").map(parse_queues).transpose()?;
        let queue_size = options.take("queue-size").map(parse_queue_size).transpose()?;
        options.finish()?;
        Ok(DeviceSpec { kind, socket, id, queues, queue_size })
    }
}

/// `KEY=VALUE` pairs that nobody has taken yet.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn split(text: &'a str) -> Result<Options<'a>, SpecError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for option in text.split(',').filter(|_| !text.is_empty()) {
            let pair = option.split_once('=').ok_or_else(|| SpecError::Unknown(option.to_owned()))?;
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return Err(SpecError::Twice(pair.0.to_owned()));
            }
            pairs.push(pair);
        }
        Ok(Options(pairs))
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(name, _)| *name == key)?;
        Some(self.0.remove(at).1)
    }

    fn finish(self) -> Result<(), SpecError> {
        self.0.first().map_or(Ok(()), |(key, value)| Err(SpecError::Unknown(format!("{key}={value}"))))
    }
}

fn is_id_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_')
}

fn check_id(id: &str) -> Result<String, SpecError> {
    let good = (1..=MAX_ID_BYTES).contains(&id.len()) && id.chars().all(is_id_char);
    if good { Ok(id.to_owned()) } else { Err(SpecError::Id(id.to_owned())) }
}

/// Names the devices that have no name after their type, numbered from the second on: blk, blk1, blk2.
pub fn give_names(devices: &mut [DeviceSpec]) {
    let mut taken: BTreeSet<String> = devices.iter().map(|device| device.id.clone()).collect();
    for device in devices.iter_mut().filter(|device| device.id.is_empty()) {
        let plain = device.kind.to_string();
        let numbered = (1..).map(|number: usize| format!("{plain}{number}"));
        let mut names = std::iter::once(plain.clone()).chain(numbered);
        if let Some(name) = names.find(|name| !taken.contains(name)) {
            taken.insert(name.clone());
            device.id = name;
        }
    }
}

fn parse_queues(text: &str) -> Result<u16, SpecError> {
    let number = text.parse().ok().filter(|number| (1..=MAX_QUEUES).contains(number));
    number.ok_or_else(|| SpecError::Queues(text.to_owned()))
}

fn parse_queue_size(text: &str) -> Result<u16, SpecError> {
    let size = text.parse().ok().filter(|size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE);
    size.ok_or_else(|| SpecError::QueueSize(text.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DeviceSpec, SpecError> {
        text.parse()
    }

    #[test]
    fn a_device_with_everything() {
        let spec = parse("blk,socket=/run/vm/disk.sock,id=root,queues=4,queue-size=1024").unwrap();
        assert_eq!(spec.kind, DeviceKind::parse("blk").unwrap());
        assert_eq!(spec.socket, PathBuf::from("/run/vm/disk.sock"));
        assert_eq!((spec.id.as_str(), spec.queues, spec.queue_size), ("root", Some(4), Some(1024)));
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let spec = parse("virtio-42,socket=/run/x y/net0.sock").unwrap();
        assert_eq!((spec.kind.id(), spec.id.as_str()), (42, ""));
        assert_eq!((spec.queues, spec.queue_size), (None, None));
    }

    #[test]
    fn devices_without_a_name_are_numbered_around_those_that_have_one() {
        let texts = [
            "blk,socket=/a",
            "rng,socket=/b,id=blk1",
            "blk,socket=/c",
            "blk,socket=/d",
            "virtio-9,socket=/e",
        ];
        let mut devices: Vec<_> = texts.iter().map(|text| parse(text).unwrap()).collect();
        give_names(&mut devices);
        let names: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(names, ["blk", "blk1", "blk2", "blk3", "virtio-9"]);
    }

    #[test]
    fn each_mistake_is_named() {
        let texts = [
            (
                "disk,socket=/x",
                "there is no device type \"disk\"; use one of net, blk, console, rng, balloon",
            ),
            ("virtio-0,socket=/x", "there is no device type \"virtio-0\"; ID is a number from 1 to 63"),
            ("virtio-64,socket=/x", "ID is a number"),
            ("blk", "no socket is named"),
            ("blk,socket=", "no socket is named"),
            ("blk,socket=/a,b", "\"b\" is not understood"),
            ("blk,socket=/a,", "\"\" is not understood"),
            ("blk,socket=/a,readonly=on", "\"readonly=on\" is not understood"),
            ("blk,socket=/a,socket=/b", "socket= stands there twice"),
            ("blk,socket=/a,id=", "id=\"\" is no name"),
            ("blk,socket=/a,id=a/b", "id=\"a/b\" is no name"),
            ("blk,socket=/a,queues=0", "queues=0 is no number of virtqueues; use 1 to 256"),
            ("blk,socket=/a,queues=257", "queues=257"),
            ("blk,socket=/a,queues=two", "queues=two"),
            ("blk,socket=/a,queue-size=0", "queue-size=0 is no size"),
            ("blk,socket=/a,queue-size=100", "a power of two up to 32768"),
            ("blk,socket=/a,queue-size=65536", "queue-size=65536"),
            ("", "there is no device type \"\""),
        ];
        for (text, want) in texts {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(want), "{text:?}: {message}");
            assert!(!message.contains('\n'));
        }
    }
}
