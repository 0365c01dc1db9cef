//! The control thread over a real socket, with a service that tells what it was asked.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use tempfile::TempDir;

use super::*;
use crate::passing;

/// Longer than anything takes here on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Echo;

impl Service for Echo {
    fn routes(&self) -> &'static [Route] {
        const ROUTES: [Route; 3] = [
            Route::new(Method::Get, "/state"),
            Route::new(Method::Put, "/state"),
            Route { method: Method::Post, path: "/file", descriptors: 1 },
        ];
        &ROUTES
    }

    fn call(&self, call: Call) -> Answer {
        let body = String::from_utf8_lossy(&call.body).into_owned();
        Answer::json(
            &json!({ "path": call.route.path, "body": body, "fd": !call.fds.is_empty(), "uid": call.peer.uid }),
        )
    }
}

struct Served {
    path: PathBuf,
    _control: Control,
    _dir: TempDir,
}

impl Served {
    fn new() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.control");
        let mut control = Control::new(UnixListener::bind(&path).unwrap(), Arc::new(Echo)).unwrap();
        control.start().unwrap();
        Served { path, _control: control, _dir: dir }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// One answer: its status, its header, its content.
fn answer(stream: &mut UnixStream) -> (u16, String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), head, String::from_utf8(body).unwrap())
}

fn ask(stream: &mut UnixStream, text: &str) -> (u16, String, String) {
    stream.write_all(text.as_bytes()).unwrap();
    answer(stream)
}

const GET: &str = "GET /state HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn one_connection_carries_many_requests_also_at_once() {
    let served = Served::new();
    let mut stream = served.connect();
    for _ in 0..3 {
        let (status, _, body) = ask(&mut stream, GET);
        assert_eq!((status, body.contains("\"path\":\"/state\"")), (200, true), "{body}");
    }
    let put = "PUT /state HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all([put, GET, put].concat().as_bytes()).unwrap();
    let bodies = [(); 3].map(|()| answer(&mut stream).2.contains("\"body\":\"{}\""));
    assert_eq!(bodies, [true, false, true]);
}

#[test]
fn what_is_not_served_is_refused_and_the_connection_goes_on() {
    let served = Served::new();
    let mut stream = served.connect();
    let (status, _, body) = ask(&mut stream, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status, 404, "{body}");
    let (status, head, body) = ask(&mut stream, "DELETE /state HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((status, head.contains("\r\nAllow: GET, PUT\r\n")), (405, true), "{head}{body}");
    assert_eq!(body, "{\"error\":\"/state is not for DELETE; use GET, PUT\"}\n");
    assert_eq!(ask(&mut stream, GET).0, 200);
}

#[test]
fn head_is_get_without_content() {
    let served = Served::new();
    let mut stream = served.connect();
    stream.write_all(b"HEAD /state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 ") && all.ends_with("Connection: close\r\n\r\n"), "{all}");
}

#[test]
fn a_client_that_waits_to_be_asked_for_the_content_is() {
    let served = Served::new();
    let mut stream = served.connect();
    let head = "PUT /state HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut asked = [0; http::CONTINUE.len()];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(asked, *http::CONTINUE);
    assert!(ask(&mut stream, "true").2.contains("\"body\":\"true\""));
}

#[test]
fn a_descriptor_comes_where_one_is_taken() {
    let served = Served::new();
    let mut stream = served.connect();
    let mut send = |text: &str, count: usize| {
        let fds = vec![stream.as_fd(); count];
        passing::send(&stream, text.as_bytes(), &fds, SendFlags::empty()).unwrap();
        answer(&mut stream)
    };
    let post = "POST /file HTTP/1.1\r\nHost: x\r\n\r\n";
    for (text, count, status) in
        [(post, 0, 200), (post, 1, 200), (post, 2, 400), (post, 250, 400), (GET, 1, 400)]
    {
        let (got, _, body) = send(text, count);
        assert_eq!(got, status, "{count}: {body}");
        assert_eq!(body.contains("\"fd\":true"), status == 200 && count == 1, "{count}: {body}");
    }
}

#[test]
fn a_client_that_is_refused_while_it_sends_hears_why() {
    let served = Served::new();
    let mut stream = served.connect();
    let mut writer = stream.try_clone().unwrap();
    // More than a socket holds. The end of it may find the connection closed.
    let sender = std::thread::spawn(move || writer.write_all(&vec![b'x'; 10 << 20]).is_ok());
    let (status, head, _) = answer(&mut stream);
    assert_eq!((status, head.contains("Connection: close")), (431, true), "{head}");
    drop(stream);
    sender.join().unwrap();
}

#[test]
fn sixteen_idle_clients_and_those_behind_them_hold_up_nobody_for_long() {
    let served = Served::new();
    let mut idle: Vec<_> = (0..40).map(|_| served.connect()).collect();
    let begun = Instant::now();
    assert_eq!(ask(&mut served.connect(), GET).0, 200);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The first ones have given their places up.
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_takes_no_answers_is_let_go_and_gets_no_further() {
    let served = Served::new();
    let mut stream = served.connect();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // Until nothing fits into the sockets any more.
    while stream.write_all(GET.repeat(100).as_bytes()).is_ok() {}
    let mut fds = [PollFd::new(&stream, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::try_from(PATIENCE).unwrap())).unwrap();
    assert!(fds[0].revents().contains(PollFlags::HUP));
}

#[test]
fn half_a_request_is_told_so_after_a_while() {
    let served = Served::new();
    let mut stream = served.connect();
    assert_eq!(ask(&mut stream, "GET /state HT").0, 408);
}

/// Is called when its bell rings, and a second time at the moment that it names then.
struct Rings {
    bell: OwnedFd,
    called: Mutex<Vec<Instant>>,
}

const LATER: Duration = Duration::from_millis(50);

impl Service for Rings {
    fn routes(&self) -> &[Route] {
        &[]
    }

    fn call(&self, call: Call) -> Answer {
        Answer::missing(call.route.path)
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.as_fd())
    }

    fn rung(&self, now: Instant) -> Option<Instant> {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let mut called = self.called.lock().unwrap();
        called.push(now);
        (called.len() == 1).then(|| now + LATER)
    }
}

#[test]
fn a_service_is_called_when_its_bell_rings_and_when_it_wants_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    let (bell, called) = (rustix::event::eventfd(0, flags).unwrap(), Mutex::default());
    let service = Arc::new(Rings { bell, called });
    let listener = UnixListener::bind(dir.path().join("x.control")).unwrap();
    let mut control = Control::new(listener, service.clone()).unwrap();
    control.start().unwrap();
    rustix::io::write(&service.bell, &1u64.to_ne_bytes()).unwrap();
    let until = Instant::now() + PATIENCE;
    while service.called.lock().unwrap().len() < 2 {
        assert!(Instant::now() < until, "nobody calls");
        std::thread::yield_now();
    }
    let called = service.called.lock().unwrap();
    assert!(called[1] >= called[0] + LATER, "{called:?}");
}
