//! Whole screens, from answers of real programs: what they look like, and that they fit.

use std::path::Path;
use std::time::Duration;

use backends::control::client::ClientError;
use serde_json::json;

use super::answer::State;
use super::answer::recorded::{DAEMON, MACHINE, state};
use super::error::CtlError;
use super::exposition::parse;
use super::list::Entry;
use super::rates::Sample;
use super::{list, metrics, state as one};

const METRICS: &str = include_str!("recorded/metrics.txt");
/// When the answers were recorded, in seconds since 1970.
const RECORDED: f64 = 1_795_200_999.0;

/// A look at a value, and one at another, two seconds before.
fn looks<T>(now: T, before: T) -> (Sample<T>, Sample<T>) {
    let now = Sample { unix_s: RECORDED, ..Sample::now(now) };
    let before = Sample { at: now.at - Duration::from_secs(2), unix_s: RECORDED - 2.0, value: before };
    (now, before)
}

/// The daemon as it was before 50,000 requests of 4 KiB with 500 interrupts.
fn earlier() -> State {
    let text = DAEMON.replace("123456789", "123406789").replace("505678901234", "505474101234");
    state(&text.replace("1234567,", "1234067,"))
}

fn entries() -> Vec<Entry> {
    let answer = |text: &str| Ok((json!({}), state(text)));
    let socket = "/run/outboard/vm1/rng.control".into();
    let gone = CtlError::NoAnswer { socket, cause: ClientError::Refused };
    let answers = [("blk", answer(DAEMON)), ("vm1/rng", Err(gone)), ("vm1/vmm", answer(MACHINE))];
    let entry = |(name, answer)| Entry { socket: format!("/run/outboard/{name}.control").into(), answer };
    answers.map(entry).into()
}

#[test]
fn a_daemon_on_80_columns() {
    let (now, _) = looks(state(DAEMON), earlier());
    let expected = "\
outboard-blk 0.1.0, up 3 h 3 min

worker            process 4790, up 48 s (2 before it)
keeper            process 4711
engine            io-uring
sandbox           on: privileges, limits, landlock (ABI 6), seccomp
log               info and above, as text, to /var/log/outboard/blk.log
front-end         connected for 3 h 3 min
  features        0x530000204 SEG_MAX FLUSH INDIRECT_DESC EVENT_IDX VERSION_1
                  RING_PACKED
  protocol        MQ REPLY_ACK CONFIG INFLIGHT_SHMFD CONFIGURE_MEM_SLOTS
  memory          3 GiB at 0x0, 1 GiB at 0x100000000
  tracks          requests in flight
device            block
  capacity_bytes  10737418240 (10 GiB)
  image           /var/lib/vm/disk.raw
  read_only       false

QUEUE  STATE    IN FLIGHT    P50     P99      MAX  REQUESTS    BYTES  INTERRUPTS
    0  running        128  96 µs  1.5 ms  16.4 ms     123 M  471 GiB       1.2 M
    1  stopped          0      -       -        -         0      0 B           0

QUEUE  RING    SIZE  REPLAYED
    0  packed   256        17
    1  -          0         0
";
    assert_eq!(one::screen(&now, None, Some(80)), expected);
}

#[test]
fn a_daemon_that_is_watched_shows_its_queues_first_and_what_they_do_a_second() {
    let (now, before) = looks(state(DAEMON), earlier());
    let screen = one::screen(&now, Some(&before), Some(80));
    let expected = "\
outboard-blk 0.1.0, up 3 h 3 min

QUEUE  STATE    IN FLIGHT  REQ/S   BYTES/S    P50     P99      MAX  REQUESTS
    0  running        128   25 k  97.7 MiB  96 µs  1.5 ms  16.4 ms     123 M
    1  stopped          0      0       0 B      -       -        -         0

QUEUE    BYTES  INTERRUPTS  INT/S  RING    SIZE  REPLAYED
";
    assert!(screen.starts_with(expected), "{screen}");
    let first = one::screen(&now, Some(&now), Some(80));
    assert!(first.contains("\n    0  running        128      -        -  96 µs"), "{first}");
}

#[test]
fn a_machine_and_its_devices() {
    let (now, _) = looks(state(MACHINE), state(MACHINE));
    let expected = "\
outboard 0.1.0, up 2 min 2 s

process  5120
guest    paused, 2 CPUs, 1 GiB

DEVICE  TYPE  DAEMON           FOR  RETURNS  SOCKET
root    blk   connected  2 min 2 s        0  /run/vm/blk.sock
rng     rng   away             2 s        2  /run/vm/rng.sock
";
    assert_eq!(one::screen(&now, None, Some(80)), expected);
}

#[test]
fn all_counters() {
    let (now, before) =
        looks(parse(METRICS), parse(&METRICS.replace("21000", "20600").replace("0.25", "0.244")));
    let screen = metrics::screen(&now, Some(&before), Some(80));
    for line in [
        "METRIC                                                    VALUE  A SECOND\n",
        "outboard_queue_requests_total{queue=0}                     21 k       200\n",
        "outboard_queue_in_flight{queue=0}                             3         -\n",
        "HISTOGRAM                                   A SECOND   MEAN    P50    P99\n",
        "outboard_request_duration_seconds{queue=0}       200  15 µs  64 µs  64 µs\n",
    ] {
        assert!(screen.contains(line), "{screen}");
    }
    let once = metrics::screen(&now, None, Some(80));
    assert!(
        once.contains("outboard_request_duration_seconds{queue=0}   21 k  11.9 µs  16 µs  64 µs\n"),
        "{once}"
    );
    assert_eq!(metrics::screen(&looks(parse(""), parse("")).0, None, None), "");
}

#[test]
fn the_list_has_a_row_for_each_socket_and_says_why_one_is_mute() {
    let dir = Path::new("/run/outboard");
    let (now, before) = looks(entries(), entries());
    let expected = "\
SOCKET   PROGRAM       STATE             UP   PID  REQUESTS
blk      outboard-blk  connected  3 h 3 min  4711     123 M
vm1/rng  -             no answer          -     -         -
vm1/vmm  outboard      paused     2 min 2 s  5120         -

/run/outboard/vm1/rng.control: nobody listens there; start the program that did,
with this --control-socket (or --api-socket)
";
    assert_eq!(list::screen(dir, &now, None, Some(80)), expected);
    let watched = list::screen(dir, &now, Some(&before), Some(80));
    assert!(watched.contains("  123 M      0\n"), "{watched}");
    let none = list::screen(dir, &Sample::now(Vec::new()), None, Some(80));
    assert!(none.starts_with("no control sockets (*.control) in /run/outboard; start"), "{none}");
    let json = list::json(&entries());
    assert!(json[1]["error"].is_string() && json[1]["state"].is_null() && json[0]["state"].is_object());
}

#[test]
fn every_screen_fits_where_its_words_do() {
    for width in [60, 80, 100, 120] {
        let (now, before) = looks(state(DAEMON), earlier());
        let (counters, _) = looks(parse(METRICS), parse(METRICS));
        let (sockets, _) = looks(entries(), entries());
        let screens = [
            one::screen(&now, None, Some(width)),
            one::screen(&now, Some(&before), Some(width)),
            metrics::screen(&counters, Some(&counters), Some(width.max(80))),
            list::screen(Path::new("/"), &sockets, Some(&sockets), Some(width)),
        ];
        for screen in screens {
            let widest = screen.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width.max(80), "{widest} of {width}:\n{screen}");
            assert!(screen.lines().all(|line| line.trim_end() == line), "{screen}");
        }
    }
}
