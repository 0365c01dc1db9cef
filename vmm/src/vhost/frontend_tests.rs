#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
use proptest::prelude::*;

use super::*;
use crate::vhost::testing::{Daemon, Fake, PATIENCE, Twist};

const SHORT: Duration = Duration::from_millis(100);

fn kind(name: &str) -> DeviceKind {
    DeviceKind::parse(name).unwrap()
}

fn pair(fake: Fake, script: impl FnMut(&Request) -> Twist + Send + 'static) -> (Frontend, Daemon) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Frontend::new(ours).unwrap(), Daemon::serve(theirs, fake, script))
}

/// A conversation in which the daemon does `twist` instead of answering `code`.
fn greet_with(code: Code, time: Duration, twist: impl Fn() -> Twist + Send + 'static) -> FrontendError {
    let script = move |request: &Request| if request.code() == code { twist() } else { Twist::Regular };
    let (mut frontend, daemon) = pair(Fake::blk(), script);
    let start = Instant::now();
    let error = frontend.greet(kind("blk"), within(time)).unwrap_err();
    assert!(start.elapsed() < PATIENCE / 2, "it comes to an end by itself");
    drop(frontend);
    daemon.join();
    error
}

#[test]
fn a_daemon_with_everything_is_asked_in_order() {
    let (mut frontend, daemon) = pair(Fake::blk(), |_| Twist::Regular);
    let offer = frontend.greet(kind("blk"), within(PATIENCE)).unwrap();
    assert_eq!(offer.features, Fake::blk().features);
    assert_eq!((offer.queues, offer.config), (Some(2), Some(Fake::blk().config)));
    let codes: Vec<_> = daemon.requests().iter().map(Request::code).collect();
    use Code::*;
    let first = [GetFeatures, GetProtocolFeatures, SetProtocolFeatures, SetOwner, GetQueueNum];
    assert_eq!(codes[..5], first);
    assert!(codes[5..].iter().all(|code| *code == GetConfig), "{codes:?}");
}

#[test]
fn only_what_is_used_is_negotiated() {
    let everything = Fake { protocol: ProtocolFeatures::all(), ..Fake::blk() };
    let (mut frontend, daemon) = pair(everything, |_| Twist::Regular);
    frontend.greet(kind("blk"), within(PATIENCE)).unwrap();
    let taken = daemon.requests().into_iter().find(|request| request.code() == Code::SetProtocolFeatures);
    assert_eq!(taken, Some(Request::SetProtocolFeatures(WANTED.bits())));
}

#[test]
fn a_daemon_without_protocol_features_is_spoken_to_plainly() {
    let fake = Fake { features: 1 << 32, ..Fake::rng() };
    let (mut frontend, daemon) = pair(fake, |_| Twist::Regular);
    let offer = frontend.greet(kind("rng"), within(PATIENCE)).unwrap();
    assert_eq!((offer.queues, offer.config), (None, None));
    frontend.fence(within(PATIENCE)).unwrap();
    let codes: Vec<_> = daemon.requests().iter().map(Request::code).collect();
    assert_eq!(codes, [Code::GetFeatures, Code::SetOwner, Code::GetFeatures]);
}

#[test]
fn without_acks_a_fence_finds_the_mute() {
    let mut asked = 0;
    let script = move |request: &Request| {
        asked += usize::from(request.code() == Code::GetFeatures);
        if asked == 2 { Twist::Mute } else { Twist::Regular }
    };
    let fake = Fake { protocol: ProtocolFeatures::CONFIG, ..Fake::blk() };
    let (mut frontend, _daemon) = pair(fake, script);
    frontend.greet(kind("blk"), within(PATIENCE)).unwrap();
    let error = frontend.fence(within(SHORT)).unwrap_err();
    assert_eq!(error.to_string(), "GET_FEATURES failed: Peer did not go on within the deadline");
}

#[test]
fn a_short_configuration_space_is_found_to_its_last_byte() {
    let fake = Fake { config: (0..41).collect(), ..Fake::blk() };
    let (mut frontend, _daemon) = pair(fake.clone(), |_| Twist::Regular);
    assert_eq!(frontend.greet(kind("blk"), within(PATIENCE)).unwrap().config, Some(fake.config));
    let fake = Fake { config: vec![1; 12], ..Fake::blk() };
    let (mut frontend, _daemon) = pair(fake, |_| Twist::Regular);
    assert_eq!(frontend.greet(kind("blk"), within(PATIENCE)).unwrap().config, Some(Vec::new()));
}

#[test]
fn a_mute_daemon_costs_the_deadline_and_no_more() {
    for code in
        [Code::GetFeatures, Code::GetProtocolFeatures, Code::SetOwner, Code::GetQueueNum, Code::GetConfig]
    {
        let error = greet_with(code, SHORT, || Twist::Mute);
        assert!(error.to_string().ends_with("Peer did not go on within the deadline"), "{error}");
    }
}

#[test]
fn a_daemon_that_hangs_up_is_named_by_the_request() {
    let error = greet_with(Code::GetQueueNum, PATIENCE, || Twist::HangUp);
    assert_eq!(error.to_string(), "GET_QUEUE_NUM failed: Peer closed the connection");
}

#[test]
fn half_an_answer_is_none() {
    let error =
        greet_with(Code::GetFeatures, SHORT, || Twist::Bytes(vec![1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 2]));
    assert!(matches!(error, FrontendError::Transport { cause: TransportError::Deadline, .. }), "{error}");
}

#[test]
fn another_protocol_is_recognised() {
    for text in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\0\0\0\0\0\0\0\0\0\0\0\0"] {
        let error = greet_with(Code::GetFeatures, PATIENCE, move || Twist::Bytes(text.into()));
        assert!(matches!(error, FrontendError::Garbage { code: Code::GetFeatures, .. }), "{text}: {error}");
    }
}

#[test]
fn an_answer_to_another_request_is_garbage() {
    let error = greet_with(Code::GetQueueNum, PATIENCE, || Twist::Reply(Code::GetFeatures, Reply::U64(4)));
    assert!(error.to_string().contains("its header is that of message 1"), "{error}");
    let four = vec![17, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0];
    let error = greet_with(Code::GetQueueNum, PATIENCE, move || Twist::Bytes(four.clone()));
    assert_eq!(error.to_string(), "The answer to GET_QUEUE_NUM is not vhost-user: its payload has 4 bytes");
    let config = Reply::Config { offset: 0, data: vec![0; 3] };
    let error = greet_with(Code::GetConfig, PATIENCE, move || Twist::Reply(Code::GetConfig, config.clone()));
    assert!(matches!(error, FrontendError::Garbage { code: Code::GetConfig, .. }), "{error}");
    let error = greet_with(Code::GetConfig, PATIENCE, || Twist::Reply(Code::GetConfig, Reply::U64(0)));
    assert!(matches!(error, FrontendError::Garbage { code: Code::GetConfig, .. }), "{error}");
}

#[test]
fn a_refusal_is_told_from_a_failure() {
    let error = greet_with(Code::SetOwner, PATIENCE, || Twist::Reply(Code::SetOwner, Reply::U64(1)));
    assert!(error.is_refusal());
    assert_eq!(error.to_string(), "SET_OWNER was refused");
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let script = |request: &Request| match request.code() {
        Code::GetFeatures => Twist::WithDescriptors(30),
        _ => Twist::Regular,
    };
    let (mut frontend, daemon) = pair(Fake::blk(), script);
    frontend.greet(kind("blk"), within(PATIENCE)).unwrap();
    let before = open();
    for _ in 0..20 {
        frontend.ask(&Request::GetFeatures, within(PATIENCE)).unwrap();
    }
    // Other tests open files too, but 600 descriptors would show.
    assert!(open() < before + 300);
    drop(daemon);
}

#[test]
fn a_wrong_queue_in_the_answer_to_get_vring_base_is_garbage() {
    let script = |request: &Request| match request.code() {
        Code::GetVringBase => Twist::Reply(Code::GetVringBase, Reply::VringState { index: 9, base: 0 }),
        _ => Twist::Regular,
    };
    let (mut frontend, _daemon) = pair(Fake::blk(), script);
    frontend.greet(kind("blk"), within(PATIENCE)).unwrap();
    assert!(matches!(frontend.stop_ring(1, within(PATIENCE)), Err(FrontendError::Garbage { .. })));
}

#[test]
fn looking_finds_the_end_and_the_unasked() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut frontend = Frontend::new(ours).unwrap();
    frontend.look().unwrap();
    rustix::net::send(&theirs, &[1], rustix::net::SendFlags::empty()).unwrap();
    assert!(matches!(frontend.look(), Err(FrontendError::Unasked)));
    drop(theirs);
    assert!(matches!(frontend.look(), Err(FrontendError::Lost(TransportError::Closed))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_of_a_daemon_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), step in 0usize..6) {
        let mut count = 0;
        let script = move |_: &Request| {
            count += 1;
            if count == step + 1 { Twist::Bytes(bytes.clone()) } else { Twist::Regular }
        };
        let (mut frontend, daemon) = pair(Fake::blk(), script);
        // What it comes to depends on the bytes; that it comes to an end is the point.
        let _ = frontend.greet(kind("blk"), within(Duration::from_millis(20)));
        drop(frontend);
        daemon.join();
    }
}
