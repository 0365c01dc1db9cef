//! HTTP/1.1 (RFC 9112), as much of it as a control socket needs, over bytes: no socket, no clock.
//!
//! In: what has come of a request. Out: its [`Head`], once that is whole, and the bytes of an answer. Promises: what is
//! accepted is bounded, [`MAX_HEAD_BYTES`] and [`MAX_BODY_BYTES`], before anything of it is kept; what could be read in
//! two ways is refused. Refuses ([`BadRequest`]): anything that is no HTTP, lengths that contradict each other,
//! Transfer-Encoding, a request without Host, a query.

use std::fmt::Write;

use thiserror::Error;

use super::Answer;

/// Longest request line with its header: a client sends what it likes, and it is kept until it is whole.
pub const MAX_HEAD_BYTES: usize = 8 << 10;
/// Longest content of a request.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Most header fields.
const MAX_FIELDS: usize = 64;

/// Asks for the content of a request that waits to be told so (RFC 9110 §10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request before its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// As it was sent.
    pub method: String,
    /// What is asked for.
    pub path: String,
    /// Bytes until the content.
    pub head_bytes: usize,
    /// Bytes of content.
    pub body_bytes: usize,
    /// Another request may follow.
    pub keep_alive: bool,
    /// The content comes when it is asked for.
    pub expects_continue: bool,
}

/// Why a request is refused before it is known what it asks. The connection ends: where the next request would begin is
/// not known.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadRequest {
    /// No HTTP.
    #[error("This is no HTTP/1.1 request: {0}")]
    Garbage(httparse::Error),
    /// No Host (RFC 9112 §3.2).
    #[error("The request has no Host; send one, whatever it says")]
    NoHost,
    /// A query, or something that is no path at all.
    #[error("The request's target is no plain path like /state; leave out what follows a ?")]
    Target,
    /// Not a number, or two.
    #[error("Content-Length is no number, or comes twice; send the length of the content in bytes")]
    Length,
    /// The content comes in pieces.
    #[error("The request has a Transfer-Encoding; send Content-Length instead")]
    Pieces,
    /// Too long.
    #[error("Request line and header have over {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} fields; send fewer")]
    HeadTooLong,
    /// Too long.
    #[error("The content has over {MAX_BODY_BYTES} bytes; send fewer")]
    BodyTooLong,
    /// It took too long.
    #[error("The request was not whole in time; send all of it at once")]
    Late,
}

impl BadRequest {
    /// What it is answered with.
    pub fn answer(&self) -> Answer {
        let status = match self {
            BadRequest::Late => 408,
            BadRequest::Pieces => 411,
            BadRequest::BodyTooLong => 413,
            BadRequest::HeadTooLong => 431,
            _ => 400,
        };
        Answer::error(status, self)
    }
}

impl Head {
    /// The head of the request that begins here; none yet: more has to come.
    ///
    /// # Errors
    /// [`BadRequest`]
    pub fn parse(bytes: &[u8]) -> Result<Option<Head>, BadRequest> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let seen = bytes.get(..MAX_HEAD_BYTES).unwrap_or(bytes);
        let head_bytes = match request.parse(seen) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if seen.len() < MAX_HEAD_BYTES => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(BadRequest::HeadTooLong);
            }
            Err(error) => return Err(BadRequest::Garbage(error)),
        };
        Head::read(&request, head_bytes).map(Some)
    }

    fn read(request: &httparse::Request<'_, '_>, head_bytes: usize) -> Result<Head, BadRequest> {
        let fields = Fields(request.headers);
        let path = request.path.unwrap_or_default();
        let newer = request.version == Some(1);
        if newer && fields.all("Host").next().is_none() {
            return Err(BadRequest::NoHost);
        }
        if !path.starts_with('/') || path.contains(['?', '#']) || !path.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(BadRequest::Target);
        }
        Ok(Head {
            method: request.method.unwrap_or_default().into(),
            path: path.into(),
            head_bytes,
            body_bytes: fields.body_bytes()?,
            keep_alive: newer && !fields.has("Connection", "close"),
            expects_continue: newer && fields.has("Expect", "100-continue"),
        })
    }
}

/// Header fields of a request.
struct Fields<'a>(&'a [httparse::Header<'a>]);

impl Fields<'_> {
    fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// Whether one of the field's values, which commas separate, is this.
    fn has(&self, name: &str, value: &str) -> bool {
        let mut values = self.all(name).flat_map(|list| list.split(|byte| *byte == b','));
        values.any(|one| one.trim_ascii().eq_ignore_ascii_case(value.as_bytes()))
    }

    /// How much content follows (RFC 9112 §6.3).
    fn body_bytes(&self) -> Result<usize, BadRequest> {
        if self.all("Transfer-Encoding").next().is_some() {
            return Err(BadRequest::Pieces);
        }
        let mut lengths = self.all("Content-Length");
        let (first, None) = (lengths.next(), lengths.next()) else { return Err(BadRequest::Length) };
        let Some(digits) = first else { return Ok(0) };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(BadRequest::Length);
        }
        // More digits than a number can have are too many bytes, too.
        let bytes = str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        bytes.filter(|bytes| *bytes <= MAX_BODY_BYTES).ok_or(BadRequest::BodyTooLong)
    }
}

/// The bytes of an answer; `last`: the connection ends after it; `bare`: the request was a HEAD, which gets no content.
pub fn to_bytes(answer: &Answer, last: bool, bare: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    let mut field = |name: &str, value: &str| {
        let _ = write!(head, "{name}: {value}\r\n");
    };
    field("Content-Type", answer.kind);
    field("Content-Length", &answer.body.len().to_string());
    field("Cache-Control", "no-store");
    if let Some(allow) = &answer.allow {
        field("Allow", allow);
    }
    if last {
        field("Connection", "close");
    }
    let body: &[u8] = if bare { &[] } else { &answer.body };
    [head.as_bytes(), b"\r\n", body].concat()
}

/// The phrase for people that belongs to a status (RFC 9110 §15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<Head>, BadRequest> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn a_request_is_read_wherever_it_is_cut() {
        let text =
            "PUT /device HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\nExpect: 100-continue\r\n\r\n{\"a\":1}";
        let head_bytes = text.len() - 7;
        for end in 0..head_bytes {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        let (method, path) = ("PUT".to_owned(), "/device".to_owned());
        let head = Head { method, path, head_bytes, body_bytes: 7, keep_alive: true, expects_continue: true };
        assert_eq!(parse(text), Ok(Some(head)));
    }

    #[test]
    fn a_connection_is_kept_unless_the_client_says_otherwise() {
        let keep_alive = |text: &str| parse(text).unwrap().unwrap().keep_alive;
        assert!(keep_alive("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(!keep_alive("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, Close\r\n\r\n"));
        assert!(!keep_alive("GET / HTTP/1.0\r\n\r\n"));
    }

    #[test]
    fn what_is_bad_is_told_by_its_status() {
        let long = format!("GET / HTTP/1.1\r\nHost: {}", "x".repeat(MAX_HEAD_BYTES));
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_FIELDS + 1));
        let with = |fields: &str| format!("PUT /log HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        let cases = [
            (400, "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
            (400, "GET /\r\n\r\n".into()),
            (400, "GET / HTTP/3.0\r\n\r\n".into()),
            (400, "GET /state HTTP/1.1\r\n\r\n".into()),
            (400, "GET /state?all HTTP/1.1\r\nHost: x\r\n\r\n".into()),
            (400, "GET state HTTP/1.1\r\nHost: x\r\n\r\n".into()),
            (400, "GET /\u{202e}x HTTP/1.1\r\nHost: x\r\n\r\n".into()),
            (400, with("Content-Length: 1\r\nContent-Length: 1")),
            (400, with("Content-Length: +1")),
            (400, with("Content-Length: 1, 1")),
            (400, with("Content-Length:")),
            (411, with("Transfer-Encoding: chunked")),
            (411, with("Content-Length: 1\r\nTransfer-Encoding: identity")),
            (413, with("Content-Length: 65537")),
            (413, with("Content-Length: 99999999999999999999999999")),
            (431, long),
            (431, many),
        ];
        for (status, text) in cases {
            let answer = parse(&text).expect_err(&text).answer();
            assert_eq!(answer.status, status, "{text}");
            assert!(answer.body.starts_with(b"{\"error\":\""), "{answer:?}");
            assert_ne!(reason(status), "Internal Server Error");
        }
        assert_eq!(parse(&with("Content-Length: 65536")).unwrap().unwrap().body_bytes, MAX_BODY_BYTES);
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_whether_it_is_the_last() {
        let answer = Answer { allow: Some("GET".into()), ..Answer::error(405, "no") };
        let text = |last, bare| String::from_utf8(to_bytes(&answer, last, bare)).unwrap();
        let head = "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\
                    Cache-Control: no-store\r\nAllow: GET\r\n";
        assert_eq!(text(false, false), format!("{head}\r\n{{\"error\":\"no\"}}\n"));
        assert_eq!(text(true, true), format!("{head}Connection: close\r\n\r\n"));
    }

    /// Bytes of which many are such as requests have.
    fn request_like() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "GET ",
            "/x",
            " HTTP/1.1",
            "\r\n",
            "\n",
            ": ",
            "Content-Length",
            "7",
            "Host",
            ",",
            "Connection",
            "close",
        ];
        let word = prop::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec());
        let piece = prop_oneof![6 => word, 1 => prop::collection::vec(any::<u8>(), 0..20)];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// No bytes end the program; what is found lies within them and the limits, however they arrived.
        #[test]
        fn anything_may_come(bytes in request_like(), prefix in any::<bool>()) {
            let begin: &[u8] = if prefix { b"PUT /log HTTP/1.1\r\nHost: x\r\n" } else { b"" };
            let bytes = [begin, &bytes].concat();
            if let Ok(Some(head)) = Head::parse(&bytes) {
                prop_assert!(head.head_bytes <= bytes.len() && head.body_bytes <= MAX_BODY_BYTES);
            }
            let first = (0..bytes.len()).map(|end| Head::parse(&bytes[..end])).find(|parsed| *parsed != Ok(None));
            prop_assert!(first.is_none_or(|first| first == Head::parse(&bytes)));
        }
    }
}
