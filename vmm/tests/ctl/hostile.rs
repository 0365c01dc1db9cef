//! Whoever listens on a control socket may have been taken over: it must not reach the operator's terminal, nor keep
//! `ctl` waiting or growing.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Output;

use tempfile::TempDir;

use super::{assert_refused, ctl};

/// `ctl` with these arguments, asking somebody who answers each request with what `answer` writes.
fn asked(args: &[&str], answer: impl Fn(&mut UnixStream) + Send + 'static) -> Output {
    let (_dir, path) = listen(answer);
    ctl(&[&["--socket", path.to_str().unwrap()], args].concat())
}

fn listen(answer: impl Fn(&mut UnixStream) + Send + 'static) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.control");
    let listener = UnixListener::bind(&path).unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                answer(&mut stream);
            }
        }
    });
    (dir, path)
}

fn reply(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Whoever asked may have gone.
fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// What takes over a terminal that gets to see it.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\n";

/// Nothing that a terminal acts on.
#[track_caller]
fn assert_harmless(output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(text);
        assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{output:?}");
    }
}

#[test]
fn answers_do_not_play_with_the_terminal() {
    let escaped = serde_json::to_string(EVIL).unwrap();
    let state =
        format!(r#"{{"daemon":{{"name":{escaped},"type":"x\r\n"}},"device":{{"a":{escaped}}},"log":{{}}}}"#);
    let metrics = format!("# TYPE a gauge\na{{b=\"{}\"}} 1\n", EVIL.trim());
    let error = format!(r#"{{"error":{escaped}}}"#);
    for (body, command) in [(state.clone(), "state"), (metrics, "metrics"), (state, "device")] {
        let body = reply("200 OK", &body);
        for json in [&[][..], &["--json"]] {
            let answer = body.clone();
            let output = asked(&[&[command], json].concat(), move |stream| send(stream, answer.as_bytes()));
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            assert_harmless(&output);
        }
    }
    let answer = reply("500 Oh", &error);
    let output = asked(&["state"], move |stream| send(stream, answer.as_bytes()));
    assert_refused(&output, 1, &["owned"]);
    assert_harmless(&output);
}

#[test]
fn nobody_makes_ctl_wait_or_grow() {
    let endless = |head: &'static str| {
        move |stream: &mut UnixStream| {
            send(stream, head.as_bytes());
            while stream.write_all(&[b'a'; 4096]).is_ok() {}
        }
    };
    let output = asked(&["state"], endless("HTTP/1.1 200 OK\r\nx: "));
    assert_refused(&output, 1, &["no control socket"]);
    let output = asked(&["state"], endless("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"));
    assert_refused(&output, 1, &["99999999999 bytes"]);
    let output = asked(&["state"], |_| {});
    assert_refused(&output, 1, &["no answer within 5 s"]);
}

#[test]
fn nonsense_is_told_as_such() {
    let bodies = [
        ("[1,2]", 1),
        ("{\"daemon\":7}", 1),
        (
            "{\"daemon\":{\"started_unix_s\":1e300,\"workers_started\":0},\"queues\":[{\"requests\":18446744073709551615}]}",
            0,
        ),
        ("", 1),
    ];
    for (body, code) in bodies {
        let answer = reply("200 OK", body);
        let output = asked(&["state"], move |stream| send(stream, answer.as_bytes()));
        assert_eq!(output.status.code(), Some(code), "{body}: {output:?}");
    }
}
