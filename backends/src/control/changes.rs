//! What the operator has changed, kept for the worker after this one.
//!
//! In: a device's settings, after each change. Out: the same, to the next worker of the same keeper. They stand as a
//! line of JSON in a memfd that the keeper keeps. A daemon that is started again begins with its options: settings of
//! another keeper are not taken. Promises: a write is one page of one call, and a worker that is killed in it leaves a
//! line that is whole or makes no sense, never one of another meaning.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value, json};

use crate::device::Device;
use crate::kept::Kept;
use crate::kept::channel::Standing;
use crate::log::{self, Class};

use super::change::Change;

/// Under which name the keeper keeps the file.
const NAME: &str = "changes";
/// Longest line.
const MAX_BYTES: usize = 4096;

/// Where changes are kept.
#[derive(Debug)]
pub struct Changes(Option<(OwnedFd, Standing)>);

impl Changes {
    /// Goes on with those that a worker before this one left, and makes them on the device. Without a keeper there is
    /// nothing to go on with, and nothing is kept.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn go_on(kept: &Kept, device: &impl Device) -> io::Result<Changes> {
        let Some(standing) = kept.standing() else { return Ok(Changes(None)) };
        let before = kept.take(NAME);
        let settings = before.as_ref().and_then(|file| read(file, standing));
        if let Some(settings) = &settings
            && let Err(error) = device.change(&Change::new(settings))
        {
            log::line!(warn, Class::ControlChange.once(), %error, "What was changed on the control socket is not taken up");
        }
        let file = match before {
            Some(file) if settings.is_some() => file,
            _ => {
                let file = memfd_create(NAME, MemfdFlags::CLOEXEC)?;
                kept.keep(NAME, file.as_fd());
                file
            }
        };
        Ok(Changes(Some((file, standing))))
    }

    /// The device's settings are these now.
    pub(super) fn keep(&self, settings: &Map<String, Value>) {
        let Changes(Some((file, standing))) = self else { return };
        let mut line = json!({ "keeper": stamp(*standing), "settings": settings }).to_string();
        line.push('\n');
        if line.len() > MAX_BYTES || rustix::io::pwrite(file, line.as_bytes(), 0) != Ok(line.len()) {
            log::line!(
                warn,
                Class::ControlChange,
                "A change holds for this worker only: it cannot be kept for the next one"
            );
        }
    }
}

/// Which daemon they are of.
fn stamp(standing: Standing) -> Value {
    json!([standing.keeper_pid, standing.began_ms])
}

fn read(file: &OwnedFd, standing: Standing) -> Option<Map<String, Value>> {
    let mut bytes = vec![0; MAX_BYTES];
    let count = rustix::io::pread(file, &mut bytes, 0).ok()?;
    let line = bytes.get(..count)?.split(|byte| *byte == b'\n').next()?;
    let Value::Object(mut line) = serde_json::from_slice(line).ok()? else { return None };
    let ours = line.get("keeper") == Some(&stamp(standing));
    match line.remove("settings") {
        Some(Value::Object(settings)) if ours => Some(settings),
        _ => None,
    }
}
