//! Clients that are no good, each while a guest does its I/O and another client asks: nobody else notices.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backends::control::Method::Get;
use backends::control::client::Client;
use tests::guest::ring::Ring;
use tests::machine::{Machine, RNG};
use tests::wait;

use super::{PATIENCE, boot, python, socket, state};

/// What an answer to a good client may take while there are bad ones. They give way within 250 ms; the rest is for a
/// busy machine.
const IN_TIME: Duration = Duration::from_secs(8);
const GET: &str = "GET /state HTTP/1.1\r\nHost: x\r\n\r\n";

struct Scene {
    machine: Machine,
    ring: Ring,
}

impl Scene {
    fn new() -> Scene {
        let mut machine = boot(RNG, &[]);
        let ring = machine.start_queue().unwrap();
        Scene { machine, ring }
    }

    /// Runs `client` beside good I/O and a good client, and once more afterwards, with what it left.
    fn undisturbed_by<T: Send>(&mut self, client: impl FnOnce(&Path) -> T + Send) -> T {
        let path = socket(self.machine.daemon.dir());
        let worker = self.machine.daemon.worker_pid();
        let result = std::thread::scope(|scope| {
            let bad = scope.spawn(|| client(&path));
            while !bad.is_finished() {
                self.good_round();
            }
            let left = bad.join().unwrap();
            self.good_round();
            left
        });
        assert_eq!(self.machine.daemon.worker_pid(), worker, "{}", self.machine.daemon.stderr());
        result
    }

    fn good_round(&mut self) {
        (0..20).for_each(|_| self.machine.assert_serves(&mut self.ring));
        let begun = Instant::now();
        assert_eq!(state(&self.machine)["queues"][0]["state"], "running");
        assert!(begun.elapsed() < IN_TIME, "a good client waited for {:?}", begun.elapsed());
    }
}

/// Memory of the worker that is not the guest's, in KiB.
fn own_kib(machine: &Machine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.daemon.worker_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn open(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends this, as much of it as is taken, and reads until the end.
fn exchange(path: &Path, text: &[u8]) -> String {
    let mut stream = open(path);
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(text));
        let mut answer = Vec::new();
        // A connection that is reset has been answered before.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    })
}

#[track_caller]
fn assert_refused(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "not {status}: {answer}");
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let error: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(error["error"].as_str().unwrap().len() > 20, "{error}");
}

#[test]
fn garbage_is_told_so() {
    let mut scene = Scene::new();
    let bytes = tests::random::Random::new(7).bytes(5000);
    for garbage in [&bytes[..], b"\0\0\0\0", b"\r\n\r\nSSH-2.0-x\r\n\r\n", b"GET /state HTTP/9.9\r\n\r\n"] {
        let answer = scene.undisturbed_by(|path| exchange(path, garbage));
        assert_refused(&answer, 400);
    }
}

#[test]
fn half_a_request_is_given_up_after_five_seconds() {
    let mut scene = Scene::new();
    for half in ["GET /state HTTP/1.1\r\nHos", "PUT /log HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"] {
        let begun = Instant::now();
        let answer = scene.undisturbed_by(|path| exchange(path, half.as_bytes()));
        assert_refused(&answer, 408);
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_byte_now_and_then_does_not_make_it_longer() {
    let mut scene = Scene::new();
    let begun = Instant::now();
    let answer = scene.undisturbed_by(|path| {
        let mut stream = open(path);
        let mut slow = stream.try_clone().unwrap();
        slow.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        while slow.write_all(b"x").is_ok() && slow.read(&mut [0]).is_err() {}
        let mut answer = String::from("H");
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_refused(&answer, 408);
    assert!(begun.elapsed() < Duration::from_secs(5) + PATIENCE);
}

#[test]
fn ten_megabytes_of_header_are_not_kept() {
    let mut scene = Scene::new();
    let before = own_kib(&scene.machine);
    let header = [&b"GET /state HTTP/1.1\r\nHost: "[..], &vec![b'x'; 10 << 20]].concat();
    let fields = [&b"GET /state HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat((10 << 20) / 6)].concat();
    for endless in [header, fields] {
        let answer = scene.undisturbed_by(|path| exchange(path, &endless));
        assert_refused(&answer, 431);
    }
    let grown = own_kib(&scene.machine).saturating_sub(before);
    assert!(grown < 2048, "the worker grew by {grown} KiB");
}

#[test]
fn a_body_that_is_too_big_is_refused_before_it_comes() {
    let mut scene = Scene::new();
    let head = |bytes: usize| format!("PUT /device HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n");
    let answer = scene.undisturbed_by(|path| exchange(path, head(65_537).as_bytes()));
    assert_refused(&answer, 413);
    let whole = [head(10 << 20).as_bytes(), &vec![b' '; 10 << 20]].concat();
    let answer = scene.undisturbed_by(|path| exchange(path, &whole));
    assert_refused(&answer, 413);
    // What just fits is taken, and is no JSON.
    let whole =
        [head(65_536).replace("Host", "Connection: close\r\nHost").as_bytes(), &vec![b'['; 65_536]].concat();
    let answer = scene.undisturbed_by(|path| exchange(path, &whole));
    assert_refused(&answer, 400);
}

#[test]
fn a_hundred_idle_connections_are_sixteen_at_most_and_hold_up_nobody() {
    let mut scene = Scene::new();
    let before = scene.machine.daemon.counts().fds;
    let idle = scene.undisturbed_by(|path| (0..100).map(|_| open(path)).collect::<Vec<_>>());
    assert!(scene.machine.daemon.counts().fds <= before + 16);
    scene.good_round();
    drop(idle);
    let until = wait::deadline();
    while scene.machine.daemon.counts().fds > before {
        assert!(Instant::now() < until, "{} descriptors before, {:?}", before, scene.machine.daemon.counts());
    }
}

#[test]
fn a_hundred_halves_of_requests_hold_up_nobody() {
    let mut scene = Scene::new();
    let halves = scene.undisturbed_by(|path| {
        let half = |_| {
            let mut stream = open(path);
            stream.write_all(b"GET /sta").unwrap();
            stream
        };
        (0..100).map(half).collect::<Vec<_>>()
    });
    scene.good_round();
    drop(halves);
}

#[test]
fn a_client_that_never_reads_gets_no_further_and_is_let_go() {
    let mut scene = Scene::new();
    let before = own_kib(&scene.machine);
    let deaf = scene.undisturbed_by(|path| {
        let mut stream = open(path);
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let requests = GET.replace("/state", "/metrics").repeat(100);
        while stream.write_all(requests.as_bytes()).is_ok() {}
        stream
    });
    let until = wait::deadline();
    while !wait::closed(&deaf, Instant::now()) {
        scene.good_round();
        assert!(Instant::now() < until, "it is still connected");
    }
    let grown = own_kib(&scene.machine).saturating_sub(before);
    assert!(grown < 2048, "the worker grew by {grown} KiB");
}

#[test]
fn clients_that_ask_without_end_take_nothing_from_each_other() {
    let mut scene = Scene::new();
    let answered = scene.undisturbed_by(|path| {
        let until = Instant::now() + Duration::from_secs(2);
        let ask = || {
            let (mut client, mut answered) = (Client::connect(path, PATIENCE).unwrap(), 0);
            while Instant::now() < until {
                assert_eq!(client.call(Get, "/metrics", None, None).unwrap().status, 200);
                answered += 1;
            }
            answered
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
            all.into_iter().map(|client| client.join().unwrap()).collect::<Vec<u32>>()
        })
    });
    let (least, most) = (answered.iter().min().unwrap(), answered.iter().max().unwrap());
    assert!(*least > 0 && *most <= least * 4 + 20, "{answered:?}");
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let mut scene = Scene::new();
    for (request, allow) in [("DELETE /state", "GET"), ("POST /device", "GET, PUT"), ("GET /upgrade", "POST")]
    {
        let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = scene.undisturbed_by(|path| exchange(path, text.as_bytes()));
        assert_refused(&answer, 405);
        assert!(answer.contains(&format!("\r\nAllow: {allow}\r\n")), "{answer}");
    }
    let answer = scene.undisturbed_by(|path| {
        exchange(
            path,
            GET.replace("/state", "/../etc").replace("Host", "Connection: close\r\nHost").as_bytes(),
        )
    });
    assert_refused(&answer, 404);
}

/// Connects as somebody else and tells the answer.
const SOMEBODY: &str = "
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.settimeout(30)
client.connect(sys.argv[1])
client.sendall(sys.stdin.buffer.read())
answer = b''
while part := client.recv(65536):
    answer += part
json.dump(answer.decode(), sys.stdout)
";

#[test]
fn whoever_may_connect_may_read_and_only_root_and_the_own_user_may_change() {
    let mut scene = Scene::new();
    let path: PathBuf = socket(scene.machine.daemon.dir());
    let ask = |text: &str| {
        let text = text.replace("Host: x", "Host: x\r\nConnection: close");
        let answer = python(SOMEBODY, &[path.to_str().unwrap()], text.as_bytes());
        answer.as_str().unwrap().to_owned()
    };
    for (mode, file) in [(0o755, path.parent().unwrap()), (0o666, path.as_path())] {
        std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
    }
    assert!(scene.undisturbed_by(|_| ask(GET)).starts_with("HTTP/1.1 200 "));
    for request in ["PUT /device", "PUT /log", "POST /log/reopen", "POST /upgrade"] {
        let answer = scene.undisturbed_by(|_| ask(&format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n")));
        assert_refused(&answer, 403);
        assert!(answer.contains("you are 65534"), "{answer}");
    }
    let refused = scene.machine.daemon.stderr();
    assert!(refused.contains("peer_uid=65534"), "{refused}");
}

/// A terminal that shows the log, or the answer, is not to be fooled.
#[test]
fn a_path_with_control_characters_reaches_neither_log_nor_answer_as_it_is() {
    let mut scene = Scene::new();
    let request = "GET /\u{202e}\u{9b}x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = scene.undisturbed_by(|path| exchange(path, request.as_bytes()));
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(
        !scene.machine.daemon.stderr().contains(['\u{202e}', '\u{9b}']),
        "{}",
        scene.machine.daemon.stderr()
    );
}
