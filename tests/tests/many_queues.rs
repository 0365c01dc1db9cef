//! A back-end with as many queues as vhost-user can name, under our VMM: each ring that a guest starts is its own, with
//! its own doorbell, and the rings that it leaves alone disturb nobody.

use std::convert::Infallible;

use backends::device::{Device, Handler, Io, Turn};
use backends::queue::Queue;
use backends::server::Settings;
use rustix::io::Errno;
use tests::daemon::binary;
use tests::served::Served;
use tests::vmm::Run;

/// Fills each request with the number of its queue.
#[derive(Clone, Copy)]
struct Numbers {
    queues: u16,
}

impl Device for Numbers {
    type Handler = Numbers;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn workers(&self) -> usize {
        3
    }

    fn handler(&self) -> std::io::Result<Numbers> {
        Ok(*self)
    }
}

impl Handler for Numbers {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        while let Some(mut request) = queue.next() {
            let number = queue.index().to_le_bytes()[0];
            let len = request.writable_bytes();
            request.write_front(&vec![number; usize::try_from(len).unwrap()]).unwrap();
            queue.complete(request, u32::try_from(len).unwrap());
        }
        Turn::Drained
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }
}

#[track_caller]
fn assert_answered(queues: u16, cmdline: &str, answered: u16) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let _served = Served::listening(Numbers { queues }, Settings::default(), &socket);
    // Type 4 by its number: an entropy device by its name has one queue.
    let device = format!("virtio-4,socket={}", socket.display());
    let ended = Run::metal(binary("outboard"), cmdline).option("--device", &device).finish();
    let said = format!("metal: queues {answered} of {queues} answered\n");
    assert!(ended.ok().serial.contains(&said), "{ended:#?}");
}

#[test]
fn each_of_256_queues_is_answered() {
    assert_answered(256, "metal=queues", 256);
}

#[test]
fn every_seventeenth_of_256_queues_is_answered() {
    assert_answered(256, "metal=queues step=17", 16);
}

#[test]
fn the_last_of_256_queues_alone_beside_the_first_is_answered() {
    assert_answered(256, "metal=queues step=255", 2);
}
