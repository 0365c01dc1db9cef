//! A daemon's side of the socket, scripted: it answers as a daemon with its [`Fake`] offer would, except where
//! its script says another thing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use backends::proto::wire::F_PROTOCOL_FEATURES;
use backends::proto::{Code, Connection, Header, Inflight, ProtocolFeatures, Reply, Request, TransportError};
use backends::sandbox::Filter;

use super::frontend::within;
use super::{DeviceThread, Error, VhostPciDevice};
use crate::pci::common::F_VERSION_1;

/// No test waits longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Size of the regions that the daemon gives out.
pub const INFLIGHT_BYTES: u64 = 8192;

/// What the daemon offers.
#[derive(Clone, Debug)]
pub struct Fake {
    pub features: u64,
    pub protocol: ProtocolFeatures,
    pub queues: u64,
    pub config: Vec<u8>,
    /// Reads beyond the end of `config` give zeros, as those of our own daemons do.
    pub pads: bool,
}

impl Fake {
    /// A block device of two queues with everything.
    pub fn blk() -> Fake {
        let mut config: Vec<u8> = (0..60).collect();
        config[34..36].copy_from_slice(&2u16.to_le_bytes());
        Fake {
            features: F_PROTOCOL_FEATURES | F_VERSION_1 | 1 << 9 | 1 << 26 | 1 << 33 | 1 << 38,
            protocol: ProtocolFeatures::MQ
                | ProtocolFeatures::REPLY_ACK
                | ProtocolFeatures::CONFIG
                | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
            queues: 2,
            config,
            pads: false,
        }
    }

    pub fn rng() -> Fake {
        Fake { features: F_PROTOCOL_FEATURES | F_VERSION_1, queues: 1, config: Vec::new(), ..Fake::blk() }
    }

    /// The regular answer; `None` for a request that has none.
    fn reply(&self, request: &Request, needs_ack: bool) -> Option<Reply> {
        match request {
            Request::GetFeatures => Some(Reply::U64(self.features)),
            Request::GetProtocolFeatures => Some(Reply::U64(self.protocol.bits())),
            Request::GetQueueNum => Some(Reply::U64(self.queues)),
            Request::GetVringBase { index } => Some(Reply::VringState { index: *index, base: 7 }),
            Request::GetInflightFd(wanted) => {
                Some(Reply::Inflight(Inflight { size_bytes: INFLIGHT_BYTES, ..*wanted }))
            }
            Request::GetConfig { offset, size } => {
                let (from, size) = (*offset as usize, *size as usize);
                let mut data = self.config.get(from..).unwrap_or_default().to_vec();
                if data.len() >= size || self.pads && from <= self.config.len() {
                    data.resize(size, 0);
                } else {
                    data.clear();
                }
                Some(Reply::Config { offset: *offset, data })
            }
            _ => needs_ack.then_some(Reply::U64(0)),
        }
    }
}

/// What to do with a request instead of answering it.
pub enum Twist {
    /// Nothing else: the regular answer.
    Regular,
    /// Take it and say nothing.
    Mute,
    /// Close the connection.
    HangUp,
    /// Send these bytes and nothing else.
    Bytes(Vec<u8>),
    /// Send this reply under the name of that request.
    Reply(Code, Reply),
    /// Send the regular answer with this many descriptors.
    WithDescriptors(usize),
    /// Send this reply with these descriptors.
    Descriptors(Reply, Vec<OwnedFd>),
}

/// A running script and what it heard.
pub struct Daemon {
    pub heard: Receiver<(Request, Vec<OwnedFd>)>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Serves `socket` until it is closed.
    pub fn serve(
        socket: UnixStream,
        fake: Fake,
        script: impl FnMut(&Request) -> Twist + Send + 'static,
    ) -> Daemon {
        let (said, heard) = channel();
        let thread = std::thread::spawn(move || talk(socket, &fake, script, &said));
        Daemon { heard, thread: Some(thread) }
    }

    /// Everything heard so far, without descriptors.
    pub fn requests(&self) -> Vec<Request> {
        self.heard.try_iter().map(|(request, _)| request).collect()
    }

    /// Waits for its end.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn talk(
    socket: UnixStream,
    fake: &Fake,
    mut script: impl FnMut(&Request) -> Twist,
    said: &Sender<(Request, Vec<OwnedFd>)>,
) {
    let mut connection = Connection::new(socket).unwrap();
    loop {
        let frame = match connection.recv(within(PATIENCE)) {
            Ok(frame) => frame,
            Err(TransportError::Closed) => return,
            Err(error) => panic!("front-end: {error}"),
        };
        let request = Request::decode(frame.header, &frame.payload, frame.fds.len()).unwrap();
        let (number, ack) = (frame.header.request, frame.header.needs_reply());
        let twist = script(&request);
        let regular = fake.reply(&request, ack);
        // Nobody may listen any more; the test has seen what it wanted.
        let _ = said.send((request, frame.fds));
        let sent = match (twist, regular) {
            (Twist::Regular, Some(Reply::Inflight(what))) => {
                send_with(&mut connection, number, &Reply::Inflight(what), &[memfd(what.size_bytes)])
            }
            (Twist::Descriptors(reply, fds), _) => send_with(&mut connection, number, &reply, &fds),
            (Twist::Regular, Some(reply)) => send(&mut connection, number, &reply, 0),
            (Twist::Regular, None) | (Twist::Mute, _) => Ok(()),
            (Twist::HangUp, _) => return,
            (Twist::Bytes(bytes), _) => raw(&connection, &bytes),
            (Twist::Reply(code, reply), _) => send(&mut connection, code as u32, &reply, 0),
            (Twist::WithDescriptors(count), reply) => send(&mut connection, number, &reply.unwrap(), count),
        };
        if matches!(sent, Err(TransportError::Closed)) {
            return;
        }
        sent.unwrap();
    }
}

fn send(connection: &mut Connection, request: u32, reply: &Reply, fds: usize) -> Result<(), TransportError> {
    let fds: Vec<_> = (0..fds).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
    send_with(connection, request, reply, &fds)
}

/// A file of that many bytes, none of them 0.
pub fn memfd(bytes: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("inflight", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let bytes = vec![0xff; usize::try_from(bytes).unwrap()];
    assert_eq!(rustix::io::write(&file, &bytes), Ok(bytes.len()));
    file
}

fn send_with(
    connection: &mut Connection,
    request: u32,
    reply: &Reply,
    fds: &[OwnedFd],
) -> Result<(), TransportError> {
    let payload = reply.payload();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    connection.send(Header::reply(request, payload.len()), &payload, &fds, within(PATIENCE))
}

fn raw(connection: &Connection, bytes: &[u8]) -> Result<(), TransportError> {
    rustix::net::send(connection, bytes, rustix::net::SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Starts the thread of a device.
pub fn start((device, thread): (Arc<VhostPciDevice>, DeviceThread)) -> Result<Arc<VhostPciDevice>, Error> {
    thread.start(Filter::default()).map(|()| device)
}
