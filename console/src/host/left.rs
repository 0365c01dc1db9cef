//! Connections that ended before the guest had read what came by them.
//!
//! In: connections whose other side has gone. Out: their bytes, oldest connection first. `MAX_LEFT` of them are
//! kept; when there are more, the oldest is closed and its unread bytes are counted.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::ioctl_fionread;

use super::{Call, Channel, peek};

/// Connections that are kept.
const MAX_LEFT: usize = 16;

/// Oldest first.
pub struct Left<F> {
    connections: VecDeque<F>,
    lost_input: u64,
}

impl<F> Default for Left<F> {
    fn default() -> Self {
        Left { connections: VecDeque::new(), lost_input: 0 }
    }
}

impl<F: AsFd> Left<F> {
    /// The other side of this one has gone.
    pub fn keep(&mut self, channel: Channel<F>) {
        if !channel.is_input_over() && has_unread(channel.as_fd()) {
            self.connections.push_back(channel.into_inner());
        }
        if self.connections.len() > MAX_LEFT
            && let Some(oldest) = self.connections.pop_front()
        {
            self.lost_input = self.lost_input.saturating_add(ioctl_fionread(oldest).unwrap_or(0));
        }
    }

    /// Reads from the oldest one that has something.
    pub fn read(&mut self, call: Call<'_>) -> Option<u32> {
        while let Some(connection) = self.connections.front() {
            match call(connection.as_fd()) {
                Ok(count) if count > 0 => return Some(count),
                _ => drop(self.connections.pop_front()),
            }
        }
        None
    }

    /// Bytes that were given up because too many left.
    pub fn lost_input(&self) -> u64 {
        self.lost_input
    }
}

fn has_unread(fd: BorrowedFd<'_>) -> bool {
    let mut byte = [0; 1];
    peek(fd, &mut byte).is_ok_and(|count| count > 0)
}
