//! The client against a server that does what the test says, byte by byte.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use rustix::net::RecvFlags;
use serde_json::json;
use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A server in a thread; what it returns.
fn serve<T: Send + 'static>(
    act: impl FnOnce(&UnixListener) -> T + Send + 'static,
) -> (TempDir, PathBuf, JoinHandle<T>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.control");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, path, std::thread::spawn(move || act(&listener)))
}

/// Takes a connection and a request on it.
fn accept(listener: &UnixListener) -> (UnixStream, String) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = hear(&stream);
    (stream, request)
}

fn hear(mut stream: &UnixStream) -> String {
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).unwrap();
    String::from_utf8(request[..length].to_vec()).unwrap()
}

/// One request to a server that answers with these bytes, piece by piece, and closes.
fn answer_to(method: Method, pieces: &[&'static [u8]], patience: Duration) -> Result<Reply, ClientError> {
    let pieces = pieces.to_vec();
    let (_dir, path, server) = serve(move |listener| {
        let (mut stream, _) = accept(listener);
        pieces.into_iter().for_each(|piece| stream.write_all(piece).unwrap());
    });
    let reply = Client::connect(&path, patience)?.call(method, "/state", None, None);
    server.join().unwrap();
    reply
}

#[test]
fn requests_are_http_with_a_length_and_share_a_connection() {
    let (_dir, path, server) = serve(|listener| {
        let (mut stream, first) = accept(listener);
        stream.write_all(FINE).unwrap();
        let second = hear(&stream);
        stream.write_all(FINE).unwrap();
        (first, second)
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    assert_eq!(client.call(Method::Get, "/state", None, None).unwrap().status, 200);
    client.call(Method::Put, "/log", Some(&json!({"level": "debug"})), None).unwrap();
    client.wait_closed().unwrap();
    let (first, second) = server.join().unwrap();
    assert_eq!(first, "GET /state HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert!(second.starts_with("PUT /log HTTP/1.1\r\n"), "{second}");
    assert!(second.ends_with("Content-Length: 17\r\n\r\n{\"level\":\"debug\"}"), "{second}");
}

#[test]
fn answers_may_come_in_pieces() {
    let pieces: [&[u8]; 4] = [b"HTTP/1.1 4", b"09 Conflict\r\nContent-", b"Length:  3\r\n\r\na", b"bc"];
    let reply = answer_to(Method::Post, &pieces, PATIENCE).unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (409, &b"abc"[..]));
}

#[test]
fn a_descriptor_goes_with_the_request() {
    let (_dir, path, server) = serve(|listener| {
        let (mut stream, _) = listener.accept().unwrap();
        let received = passing::recv(&stream, &mut [0; 4096], RecvFlags::empty()).unwrap();
        stream.write_all(FINE).unwrap();
        received.fds.len()
    });
    let file = tempfile::tempfile().unwrap();
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    client.call(Method::Post, "/log/reopen", None, Some(file.as_fd())).unwrap();
    assert_eq!(server.join().unwrap(), 1);
}

#[test]
fn only_what_changes_nothing_is_asked_twice() {
    let (_dir, path, server) = serve(|listener| {
        let (first, _) = accept(listener);
        drop(first);
        let (mut stream, again) = accept(listener);
        stream.write_all(FINE).unwrap();
        drop((stream, accept(listener)));
        again
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    client.call(Method::Get, "/state", None, None).unwrap();
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let error = client.call(Method::Post, "/upgrade", None, None).unwrap_err();
    assert!(matches!(error, ClientError::Ended), "{error}");
    assert!(server.join().unwrap().starts_with("GET /state "));
}

#[test]
fn what_is_no_control_socket_is_told() {
    let garbage: [(&[u8], &str); 3] = [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no control socket"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "99999999999 bytes"),
    ];
    for (bytes, text) in garbage {
        let error = answer_to(Method::Post, &[bytes], PATIENCE).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let endless = vec![b'a'; 2 * MAX_HEAD_BYTES].leak();
    let error = answer_to(Method::Post, &[b"HTTP/1.1 200 OK\r\nx: ", endless], PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::NotHttp(_)), "{error}");
}

#[test]
fn nobody_is_waited_for_longer_than_patience() {
    let (_dir, path, server) = serve(|listener| {
        let (mut stream, _) = accept(listener);
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").unwrap();
        // A byte now and then, until the client hangs up, does not buy more time.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        while stream.read(&mut [0]).is_err() && stream.write_all(b"a").is_ok() {}
    });
    let patience = Duration::from_millis(100);
    let start = Instant::now();
    let error =
        Client::connect(&path, patience).unwrap().call(Method::Get, "/state", None, None).unwrap_err();
    assert!(matches!(error, ClientError::Silent(_)), "{error}");
    assert!(start.elapsed() < PATIENCE);
    server.join().unwrap();
}

#[test]
fn each_way_not_to_get_there_has_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let connect = |path: &Path| Client::connect(path, PATIENCE).unwrap_err();
    assert!(matches!(connect(&dir.path().join("none")), ClientError::Missing));
    assert!(matches!(connect(Path::new(&"x".repeat(200))), ClientError::TooLong));
    let left = dir.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    assert!(matches!(connect(&left), ClientError::Refused));
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    assert!(matches!(connect(&plain), ClientError::NoSocket));
    assert!(matches!(connect(dir.path()), ClientError::NoSocket));
}

/// A change cannot be repeated, so it must not go to a connection that is at its end.
#[test]
fn after_the_last_answer_of_a_connection_the_next_request_has_a_new_one() {
    let (_dir, path, server) = serve(|listener| {
        let (mut first, _) = accept(listener);
        first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let (mut second, request) = accept(listener);
        second.write_all(FINE).unwrap();
        request
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    client.call(Method::Get, "/state", None, None).unwrap();
    client.call(Method::Post, "/upgrade", None, None).unwrap();
    assert!(server.join().unwrap().starts_with("POST /upgrade "));
}
