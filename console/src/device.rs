//! The console as the library sees it: features, queues, and which queue is for which half of the port.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use backends::control::metrics::{Exposition, Kind};
use backends::device::{Device, Handler, Io, Queues, Source, Turn};
use backends::queue::Queue;
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use serde_json::{Map, Value, json};

use crate::host::HostSide;
use crate::port::{Drops, Port};
use crate::wire::{self, F_SIZE, QUEUES, RECEIVEQ, Size, TRANSMITQ};

/// Makes the host side, in the worker's thread, of what was opened at the start of the program.
type Opened = Box<dyn FnOnce() -> Box<dyn HostSide> + Send>;

/// The device. It holds what the host side is made of until its only worker takes it over.
pub struct Console {
    host: Mutex<Option<Opened>>,
    terminal: Option<OwnedFd>,
    drops: Arc<Drops>,
}

impl Console {
    /// A console whose port is what `host` makes, and whose size is that of `terminal`.
    pub fn new<H: HostSide + 'static>(
        host: impl FnOnce() -> H + Send + 'static,
        terminal: Option<OwnedFd>,
    ) -> Console {
        let opened: Opened = Box::new(|| Box::new(host()));
        Console { host: Mutex::new(Some(opened)), terminal, drops: Arc::default() }
    }

    /// The terminal's size at this moment, if it has one.
    fn size(&self) -> Option<Size> {
        let size = tcgetwinsize(self.terminal.as_ref()?).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some(Size { cols: size.ws_col, rows: size.ws_row })
    }
}

impl Device for Console {
    type Handler = Ports;

    fn features(&self) -> u64 {
        if self.size().is_some() { F_SIZE } else { 0 }
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn config(&self) -> Vec<u8> {
        wire::config(self.size())
    }

    fn feature_name(&self, bit: u32) -> Option<&'static str> {
        (1 << bit == F_SIZE).then_some("VIRTIO_CONSOLE_F_SIZE")
    }

    fn state(&self) -> Map<String, Value> {
        let size = self.size().map(|Size { cols, rows }| json!({ "cols": cols, "rows": rows }));
        Map::from_iter([("size".to_owned(), size.into())])
    }

    fn metrics(&self, text: &mut Exposition) {
        let Drops { nobody_reads, client_left } = &*self.drops;
        let help = "Bytes that were lost, by cause, since the worker began.";
        let family = text.family("outboard_console_dropped_bytes_total", Kind::Counter, help);
        for (cause, bytes) in [("nobody_reads", nobody_reads), ("client_left", client_left)] {
            family.sample(&[("cause", &cause)], bytes.load(Ordering::Relaxed));
        }
    }

    /// One: both queues of a port share its state.
    fn workers(&self) -> usize {
        1
    }

    fn handler(&self) -> io::Result<Ports> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner).take();
        let host =
            host.ok_or_else(|| io::Error::other("the host side failed before; start the daemon again"))?;
        Ok(Ports { port: Port::new(host(), Arc::clone(&self.drops)) })
    }
}

/// Serves the queues of the ports; there is one.
pub struct Ports {
    port: Port,
}

impl Handler for Ports {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        match queue.index() {
            RECEIVEQ => self.port.receive(queue),
            _ => self.port.transmit(queue),
        }
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }

    fn start(&mut self, io: &mut Io<'_, Infallible>) -> io::Result<()> {
        self.port.start(io)
    }

    fn ready(&mut self, source: Source, queues: &mut Queues, io: &mut Io<'_, Infallible>) {
        self.port.ready(source, queues, io);
    }

    fn told(&mut self, queues: &mut Queues, _: &mut Io<'_, Infallible>) {
        self.port.go_on(queues);
    }

    fn quiesce(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) {
        if queue.index() == TRANSMITQ {
            self.port.stop_transmit(queue);
        }
    }
}
