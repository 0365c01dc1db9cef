//! What no daemon of today shows: a configuration space that changes (BACKEND_REQ) and is written (SET_CONFIG),
//! state that has contents (DEVICE_STATE), NET_SET_MTU and SEND_RARP. The device is one of a few lines in this
//! process, behind a real socket.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use backends::device::{Announcer, Device, Handler, Io, Turn};
use backends::proto::wire::BackendCode;
use backends::proto::{Connection, ProtocolFeatures, Request, TransportError};
use backends::queue::Queue;
use backends::server::Settings;
use backends::session::Direction;
use rustix::io::Errno;
use tests::frontend::{Frontend, Wants};
use tests::guest::chain::Chain;
use tests::guest::memory::Ram;
use tests::served::Served;
use tests::wait;

/// What the test and the device share.
#[derive(Default)]
struct State {
    announcer: Option<Announcer>,
    config: Vec<u8>,
    kept: Vec<u8>,
    mtu_bytes: u16,
    macs: Vec<[u8; 6]>,
    resets: usize,
}

/// Takes any request and writes nothing.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<State>>);

impl Sink {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl Device for Sink {
    type Handler = SinkHandler;

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> u16 {
        1
    }

    fn config(&self) -> Vec<u8> {
        self.state().config.clone()
    }

    fn set_config(&self, offset: usize, data: &[u8]) -> bool {
        // The first half may be written.
        let mut state = self.state();
        let writable = offset + data.len() <= state.config.len() / 2;
        if writable {
            state.config[offset..offset + data.len()].copy_from_slice(data);
        }
        writable
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::MTU | ProtocolFeatures::RARP
    }

    fn attach(&self, announcer: Announcer) {
        self.state().announcer = Some(announcer);
    }

    fn reset(&self) {
        self.state().resets += 1;
    }

    fn save(&self) -> Vec<u8> {
        self.state().kept.clone()
    }

    fn load(&self, kept: &[u8]) -> bool {
        let good = kept.first() == Some(&7);
        if good {
            self.state().kept = kept.to_vec();
        }
        good
    }

    fn set_mtu(&self, mtu_bytes: u16) -> bool {
        let good = mtu_bytes >= 68;
        if good {
            self.state().mtu_bytes = mtu_bytes;
        }
        good
    }

    fn send_rarp(&self, mac: [u8; 6]) -> bool {
        self.state().macs.push(mac);
        true
    }

    fn handler(&self) -> std::io::Result<SinkHandler> {
        Ok(SinkHandler)
    }
}

struct SinkHandler;

impl Handler for SinkHandler {
    type Op = Infallible;

    fn process(&mut self, queue: &mut Queue, _: &mut Io<'_, Infallible>) -> Turn {
        while let Some(request) = queue.next() {
            queue.complete(request, 0);
        }
        Turn::Drained
    }

    fn complete(&mut self, _: &mut Queue, op: Infallible, _: Result<u32, Errno>, _: &mut Io<'_, Infallible>) {
        match op {}
    }
}

/// The device, its server and a front-end.
struct Setup {
    sink: Sink,
    frontend: Frontend,
    // Dropped after its front-end.
    _server: Served,
}

impl Setup {
    fn new(config: &[u8]) -> Setup {
        let sink = Sink::default();
        sink.state().config = config.to_vec();
        let (server, here) = Served::new(sink.clone(), Settings::default());
        let mut frontend = Frontend::on(here, &Ram::new(1 << 20)).unwrap();
        frontend.handshake(Wants::default()).unwrap();
        Setup { sink, frontend, _server: server }
    }

    fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The device has another configuration space from now on, and says so.
    fn change(&self, config: &[u8]) {
        let mut state = self.sink.state();
        state.config = config.to_vec();
        state.announcer.as_ref().unwrap().config_changed();
    }

    /// A queue takes and gives back a request.
    #[track_caller]
    fn assert_serves(&mut self) {
        let frontend = self.frontend();
        let mut ring = frontend.start_new(0, 16).unwrap();
        for _ in 0..3 {
            assert_eq!(ring.run(&Chain::new().readable(b"x")).unwrap().len, 0);
        }
        frontend.stop(0).unwrap();
    }
}

/// The back-end says that the configuration space changed, and asks for no ack.
#[track_caller]
fn assert_hears(channel: &mut Connection) {
    let frame = channel.recv(wait::deadline()).unwrap();
    assert_eq!(frame.header.request, BackendCode::ConfigChange as u32);
    assert!(!frame.header.is_reply() && !frame.header.needs_reply());
    assert_eq!((frame.payload.len(), frame.fds.len()), (0, 0));
}

#[test]
fn a_front_end_hears_that_the_configuration_changed() {
    let mut setup = Setup::new(b"old!");
    let mut channel = setup.frontend().open_channel().unwrap();
    for config in [&b"new!"[..], b"newer", b""] {
        setup.change(config);
        assert_hears(&mut channel);
        let read = setup.frontend().config(0, u32::try_from(config.len().max(1)).unwrap()).unwrap();
        assert!(read.starts_with(config), "{read:?}");
        setup.assert_serves();
    }
}

#[test]
fn many_changes_may_be_told_as_one_and_the_last_is_never_lost() {
    let mut setup = Setup::new(&[0; 4]);
    let mut channel = setup.frontend().open_channel().unwrap();
    for number in 1..=10_000_u32 {
        setup.change(&number.to_le_bytes());
    }
    // What is heard last comes after the last change.
    let mut seen = [0; 4];
    while seen != 10_000_u32.to_le_bytes() {
        assert_hears(&mut channel);
        seen = setup.frontend().config(0, 4).unwrap().try_into().unwrap();
    }
    setup.assert_serves();
}

#[test]
fn f24_a_front_end_that_never_reads_its_channel_loses_it_and_is_served() {
    let mut setup = Setup::new(&[0; 4]);
    let mut channel = setup.frontend().open_channel().unwrap();
    let until = wait::deadline();
    while !wait::closed(&channel, Instant::now()) {
        assert!(Instant::now() < until, "the channel is kept for ever");
        setup.change(&[1; 4]);
        setup.frontend().sync().unwrap();
    }
    setup.assert_serves();
    let last = loop {
        match channel.recv(wait::deadline()) {
            Ok(frame) => assert_eq!(frame.header.request, BackendCode::ConfigChange as u32),
            Err(over) => break over,
        }
    };
    assert!(matches!(last, TransportError::Closed), "{last}");
    // It may open another one.
    let mut channel = setup.frontend().open_channel().unwrap();
    setup.change(&[2; 4]);
    assert_hears(&mut channel);
}

#[test]
fn without_a_channel_changes_are_only_seen() {
    let mut setup = Setup::new(b"ab");
    setup.change(b"cd");
    assert_eq!(setup.frontend().config(0, 2).unwrap(), b"cd");
    drop(setup.frontend().open_channel().unwrap());
    setup.change(b"ef");
    setup.assert_serves();
    assert_eq!(setup.frontend().config(0, 2).unwrap(), b"ef");
    // A channel that is no socket.
    let (reader, _writer) = std::io::pipe().unwrap();
    let _ = setup.frontend().tell(Request::SetBackendReqFd, &[reader.as_fd()]);
    setup.change(b"gh");
    setup.assert_serves();
}

#[test]
fn f16_only_what_the_device_lets_be_written_is_written() {
    let mut setup = Setup::new(b"abcdefgh");
    setup.frontend().set_config(1, b"XY").unwrap();
    assert_eq!(setup.frontend().config(0, 8).unwrap(), b"aXYdefgh");
    for (offset, data) in [(3, &b"no"[..]), (4, b"n"), (8, b"n"), (7, b"no"), (u32::MAX, b"n")] {
        let refused = setup.frontend().set_config(offset, data);
        assert!(refused.as_ref().is_err_and(|e| e.is_refusal()), "{offset}: {refused:?}");
    }
    assert_eq!(setup.frontend().config(0, 8).unwrap(), b"aXYdefgh");
}

#[test]
fn state_goes_from_device_to_device_whole() {
    let mut from = Setup::new(b"");
    let mut to = Setup::new(b"");
    for len in [1, 4096, 3_000_000] {
        let kept: Vec<u8> = [7].into_iter().cycle().take(len).collect();
        from.sink.state().kept.clone_from(&kept);
        let (mut reader, writer) = std::io::pipe().unwrap();
        from.frontend().carry_state(Direction::Save, writer.as_fd()).unwrap();
        drop(writer);
        let mut state = Vec::new();
        reader.read_to_end(&mut state).unwrap();
        assert!(from.frontend().state_is_good().unwrap() && state == kept);
        let (reader, mut writer) = std::io::pipe().unwrap();
        to.frontend().carry_state(Direction::Load, reader.as_fd()).unwrap();
        writer.write_all(&state).unwrap();
        drop(writer);
        assert!(to.frontend().state_is_good().unwrap());
        assert!(to.sink.state().kept == kept);
    }
}

#[test]
fn state_that_makes_no_sense_changes_nothing() {
    let mut setup = Setup::new(b"");
    setup.sink.state().kept = b"mine".to_vec();
    let (reader, mut writer) = std::io::pipe().unwrap();
    setup.frontend().carry_state(Direction::Load, reader.as_fd()).unwrap();
    writer.write_all(b"theirs").unwrap();
    drop(writer);
    assert!(!setup.frontend().state_is_good().unwrap());
    assert_eq!(setup.sink.state().kept, b"mine");
    // Nobody reads: given up after a while, and said so.
    setup.sink.state().kept = vec![7; 1 << 20];
    let (_reader, writer) = std::io::pipe().unwrap();
    setup.frontend().carry_state(Direction::Save, writer.as_fd()).unwrap();
    assert!(!setup.frontend().state_is_good().unwrap());
    for (direction, phase) in [(2, 0), (0, 1), (1, u32::MAX)] {
        let request = Request::SetDeviceStateFd { direction, phase };
        setup.frontend().send(&request, &[writer.as_fd()], false).unwrap();
        let answer = setup.frontend().receive_number(request.code() as u32).unwrap();
        assert!(answer & 0xff != 0 && answer & 0x100 != 0, "{answer:#x}");
    }
    setup.assert_serves();
}

#[test]
fn mtu_and_rarp_reach_the_device() {
    let mut setup = Setup::new(b"");
    setup.frontend().tell(Request::NetSetMtu { mtu_bytes: 9000 }, &[]).unwrap();
    for mtu_bytes in [67, 65_536, u64::MAX] {
        let refused = setup.frontend().tell(Request::NetSetMtu { mtu_bytes }, &[]);
        assert!(refused.is_err_and(|e| e.is_refusal()), "{mtu_bytes}");
    }
    let mac = [2, 0, 0, 1, 2, 3];
    setup.frontend().tell(Request::SendRarp { mac }, &[]).unwrap();
    let state = setup.sink.state();
    assert_eq!((state.mtu_bytes, &state.macs[..]), (9000, &[mac][..]));
}

#[test]
fn the_device_hears_of_its_reset() {
    let mut setup = Setup::new(b"");
    setup.assert_serves();
    assert_eq!(setup.sink.state().resets, 1, "there is a front-end");
    setup.frontend().tell(Request::ResetDevice, &[]).unwrap();
    assert_eq!(setup.sink.state().resets, 2);
    let features = setup.frontend().features();
    setup.frontend().tell(Request::SetFeatures(features), &[]).unwrap();
    setup.assert_serves();
}
