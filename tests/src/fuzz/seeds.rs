//! Inputs to begin from: one for each message, and the hostile cases that a target can express, by name.
//!
//! Fuzzers find their way from these; the stable replay has them even before any fuzzer ran. They are written into
//! the corpus by the replay test (see docs/fuzzing.md).

use backends::proto::{Code, MemoryRegion, ProtocolFeatures, Request, VringAddr, VringFd};

/// An input and what it is about.
pub type Seed = (String, Vec<u8>);

/// The seeds of a target.
pub fn seeds(target: &str) -> Vec<Seed> {
    match target {
        "session" => session(),
        "memory" => named(&MEMORY),
        "split" => named(&SPLIT),
        "packed" => named(&PACKED),
        "inflight" => super::inflight_seeds::seeds(),
        "volfile" => named(&super::volfile::SEEDS.map(|(name, text)| (name, text.as_bytes()))),
        _ => Vec::new(),
    }
}

fn named(seeds: &[(&str, &[u8])]) -> Vec<Seed> {
    seeds.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
}

/// A message as the session target reads it; `mood` is what the host refuses meanwhile.
fn message(request: &Request, mood: u8) -> Vec<u8> {
    let payload = request.payload();
    let fds = match request {
        Request::SetMemTable(regions) => regions.len(),
        Request::SetVringKick(vring) | Request::SetVringCall(vring) | Request::SetVringErr(vring) => {
            usize::from(vring.has_fd)
        }
        _ => *request.code().rule().descriptors.start(),
    };
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_le_bytes();
    let number = (request.code() as u32).to_le_bytes()[0];
    let mut bytes = vec![number, mood | u8::try_from(fds).unwrap_or(0)];
    bytes.extend(length);
    bytes.extend(payload);
    bytes
}

fn story(name: &str, messages: &[(Request, u8)]) -> Seed {
    (name.to_owned(), messages.iter().flat_map(|(request, mood)| message(request, *mood)).collect())
}

const REGION: MemoryRegion =
    MemoryRegion { guest_addr: 0, size_bytes: 4096, user_addr: 0x1_0000, mmap_offset: 0 };
const OTHER: MemoryRegion = MemoryRegion { guest_addr: 0x1_0000, user_addr: 0x9_0000, ..REGION };
const ALL: u64 = 1 << 32 | 1 << 30;
const LOG: u64 = ALL | 1 << 26;

fn addr(index: u32) -> VringAddr {
    let user = REGION.user_addr;
    VringAddr { index, flags: 0, descriptor: user, used: user + 0x800, available: user + 0x400, log: 0 }
}

fn vring(index: u8, has_fd: bool) -> VringFd {
    VringFd { index, has_fd }
}

/// A running ring, by the book.
fn running(index: u8, features: u64) -> Vec<(Request, u8)> {
    let at = u32::from(index);
    [
        Request::SetOwner,
        Request::SetProtocolFeatures(ProtocolFeatures::all().bits()),
        Request::SetFeatures(features),
        Request::SetMemTable(vec![REGION]),
        Request::SetVringNum { index: at, num: 16 },
        Request::SetVringAddr(addr(at)),
        Request::SetVringCall(vring(index, true)),
        Request::SetVringErr(vring(index, true)),
        Request::SetVringKick(vring(index, true)),
        Request::SetVringEnable { index: at, enable: 1 },
    ]
    .map(|request| (request, 0))
    .into()
}

/// One message of each kind, with values that make sense.
fn each() -> Vec<Request> {
    vec![
        Request::GetFeatures,
        Request::SetFeatures(LOG),
        Request::SetOwner,
        Request::ResetOwner,
        Request::SetMemTable(vec![REGION, OTHER]),
        Request::SetLogBase { size_bytes: 4096, mmap_offset: 0 },
        Request::SetLogFd,
        Request::SetVringNum { index: 1, num: 8 },
        Request::SetVringAddr(VringAddr { flags: 1, log: 0x800, ..addr(0) }),
        Request::SetVringBase { index: 1, base: 7 },
        Request::GetVringBase { index: 0 },
        Request::SetVringKick(vring(0, true)),
        Request::SetVringCall(vring(0, false)),
        Request::SetVringErr(vring(1, true)),
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures(0x28),
        Request::GetQueueNum,
        Request::SetVringEnable { index: 0, enable: 0 },
        Request::SendRarp { mac: [2; 6] },
        Request::NetSetMtu { mtu_bytes: 1500 },
        Request::SetBackendReqFd,
        Request::GetConfig { offset: 1, size: 8 },
        Request::SetConfig { offset: 2, data: vec![9, 9].into() },
        Request::ResetDevice,
        Request::GetMaxMemSlots,
        Request::AddMemReg(OTHER),
        Request::RemMemReg(REGION),
        Request::SetStatus(15),
        Request::GetStatus,
        Request::SetDeviceStateFd { direction: 0, phase: 0 },
        Request::CheckDeviceState,
    ]
}

/// Messages that are to be refused, or undone, while a ring runs.
fn hostile() -> Vec<(&'static str, Request)> {
    vec![
        ("f06-queue-256", Request::SetVringNum { index: 256, num: 8 }),
        ("f06-queue-max", Request::GetVringBase { index: u32::MAX }),
        ("f06-kick", Request::SetVringKick(vring(200, true))),
        ("f07-size-0", Request::SetVringNum { index: 1, num: 0 }),
        ("f07-size-3", Request::SetVringNum { index: 1, num: 3 }),
        ("f07-running", Request::SetVringNum { index: 0, num: 8 }),
        ("f07-base", Request::SetVringBase { index: 1, base: 65536 }),
        ("f08-unaligned", Request::SetVringAddr(VringAddr { descriptor: 1, ..addr(1) })),
        ("f12-removed", Request::RemMemReg(REGION)),
        ("f13-kick-none", Request::SetVringKick(vring(0, false))),
        ("f14-unoffered", Request::SetFeatures(1 << 33)),
        ("f14-running", Request::SetFeatures(1 << 32)),
        ("f14-moved", Request::SetVringAddr(VringAddr { used: REGION.user_addr + 0x900, ..addr(0) })),
        ("f14-same", Request::SetVringAddr(addr(0))),
        ("f16-read", Request::GetConfig { offset: u32::MAX, size: 4 }),
        ("f16-write", Request::SetConfig { offset: 3, data: vec![0; 2].into() }),
        ("protocol", Request::SetProtocolFeatures(1 << 63)),
        ("status-0", Request::SetStatus(0)),
        ("status-256", Request::SetStatus(256)),
        ("mtu", Request::NetSetMtu { mtu_bytes: 67 }),
        ("rarp", Request::SendRarp { mac: [1; 6] }),
        ("state-load", Request::SetDeviceStateFd { direction: 1, phase: 0 }),
        ("state-other", Request::SetDeviceStateFd { direction: 2, phase: 0 }),
    ]
}

/// What else a host can do while a message is handled.
fn moods() -> Vec<Seed> {
    let with = |name: &str, features, then: &[(Request, u8)]| {
        story(name, &[running(0, features), then.to_vec()].concat())
    };
    let packed = ALL | 1 << 34;
    let complete = running(1, packed);
    let (enable, rest) =
        complete.split_last().map_or((Vec::new(), &[][..]), |(e, rest)| (vec![e.clone()], rest));
    let base = (Request::SetVringBase { index: 1, base: 0x7fff_7fff }, 0);
    let refused: Vec<_> = enable.iter().map(|(request, _)| (request.clone(), 0x40)).collect();
    let kick = (Request::SetVringKick(vring(1, true)), 0x20);
    let mut all = vec![
        with("drain-disable", ALL, &[(Request::SetVringEnable { index: 0, enable: 0 }, 0x80)]),
        with("drain-memory", ALL, &[(Request::SetMemTable(vec![OTHER]), 0x80)]),
        with("drain-kick", ALL, &[(Request::SetVringKick(vring(0, true)), 0x80)]),
        with("drain-base", ALL, &[(Request::GetVringBase { index: 0 }, 0x80)]),
        with("drain-reset", ALL, &[(Request::ResetDevice, 0x80)]),
        with("drain-status", ALL, &[(Request::SetStatus(0), 0x80)]),
        with("drain-log", ALL, &[(Request::SetFeatures(LOG), 0x80)]),
        with("f09-refused", ALL, &[(Request::SetMemTable(vec![OTHER]), 0x10)]),
        with("f12-left-out", ALL, &[(Request::SetMemTable(vec![OTHER]), 0x20)]),
        with("f21-log", ALL, &[(Request::SetLogBase { size_bytes: 0, mmap_offset: 0 }, 0x10)]),
        with("overlap", ALL, &[(Request::AddMemReg(REGION), 0)]),
        with("unknown-region", ALL, &[(Request::RemMemReg(OTHER), 0)]),
        with("two-rings", packed, &[running(1, packed), vec![(Request::SetMemTable(vec![]), 0)]].concat()),
        with("call-running", ALL, &[(Request::SetVringCall(vring(0, true)), 0)]),
        with("kick-running", ALL, &[(Request::SetVringKick(vring(0, true)), 0)]),
    ];
    all.push(story("start-refused", &[rest.to_vec(), vec![base], refused].concat()));
    let enabled = (Request::SetVringEnable { index: 1, enable: 1 }, 0);
    all.push(story("kick-refused", &[rest[..8].to_vec(), vec![enabled.clone(), kick]].concat()));
    let address = (Request::SetVringAddr(addr(1)), 0x40);
    let num = (Request::SetVringNum { index: 1, num: 16 }, 0x20);
    all.push(story(
        "address-refused",
        &[rest[..4].to_vec(), rest[8..].to_vec(), vec![enabled.clone(), rest[4].clone(), address]].concat(),
    ));
    all.push(story("size-refused", &[rest[..4].to_vec(), rest[5..].to_vec(), vec![enabled, num]].concat()));
    all
}

fn session() -> Vec<Seed> {
    let after_setup =
        |name: String, request: Request| story(&name, &[running(0, ALL), vec![(request, 0)]].concat());
    let mut all: Vec<Seed> = Vec::new();
    for request in each() {
        let code = request.code();
        all.push(story(&format!("bare-{code:?}"), &[(request.clone(), 0)]));
        all.push(after_setup(format!("running-{code:?}"), request));
    }
    all.extend(hostile().into_iter().map(|(name, request)| after_setup(name.to_owned(), request)));
    all.extend(moods());
    let [owner, table] = [Code::SetOwner, Code::SetMemTable].map(|code| (code as u32).to_le_bytes()[0]);
    all.push(("f01-unknown".to_owned(), vec![99, 0, 0, 0, owner, 0, 0, 0]));
    all.push(("f02-short-table".to_owned(), vec![table, 1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    all.push(("f03-descriptors".to_owned(), vec![owner, 3, 0, 0]));
    all.push(("f09-nine-regions".to_owned(), vec![table, 8, 8, 0, 9, 0, 0, 0, 0, 0, 0, 0]));
    all
}

/// Records: what; a region is four times (landmark, distance 16 bit), and a file.
const MEMORY: [(&str, &[u8]); 7] = [
    ("add", &[1, 4, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0]),
    (
        "adjacent",
        &[
            1, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 4, 0, 0, 1, 0, 0, 1, 4, 0, 0,
            0xf0, 0x0f, 0, 0x20, 0,
        ],
    ),
    ("overlap", &[1, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 4, 0, 0, 1, 0, 0, 1]),
    ("wraps", &[1, 9, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0]),
    (
        "pipe-and-read-only",
        &[1, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 7, 1, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 6],
    ),
    (
        "ring-part-past-region",
        &[1, 0, 0, 0, 0, 100, 0, 5, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 100, 0, 0, 6, 0, 0, 0, 0, 101, 0, 0],
    ),
    ("remove", &[0, 1, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 1, 7, 0, 0, 16, 0, 3, 0, 3, 0]),
];

/// Size, bits, bytes, next (16 bit), used (16 bit); then records. A descriptor is
/// `0 index landmark distance length more flags next`.
const SPLIT: [(&str, &[u8]); 20] = [
    ("one", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 3, 0, 0, 5, 0, 6, 0, 9, 0, 7]),
    ("g01-ahead", &[0, 0, 0, 0, 0, 0, 0, 3, 2, 100, 5, 0]),
    ("g01-back", &[0, 0, 0, 9, 0, 0, 0, 3, 2, 255, 5, 0]),
    ("g02-head", &[0, 0, 0, 0, 0, 0, 0, 3, 0, 255, 9, 0, 5, 0]),
    ("g03-loop", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 3, 0, 0, 5, 0]),
    ("g03-next", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 99, 3, 0, 0, 5, 0]),
    (
        "g05-indirect",
        &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 2, 0, 0, 0, 4, 0, 2, 0, 4, 0, 3, 0, 0, 5, 0, 6, 0, 9, 0],
    ),
    (
        "g05-across",
        &[
            0, 0, 0, 0, 0, 0, 0, 2, 7, 0, 0, 2, 0, 1, 8, 2, 8, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 2, 0, 1, 7, 0,
            0, 4, 0, 4, 0, 4, 0, 3, 0, 0, 5, 0,
        ],
    ),
    ("g05-nested", &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 4, 0, 0, 0, 4, 0, 2, 0, 4, 0, 3, 0, 0, 5, 0]),
    ("g05-with-next", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0, 5, 0, 3, 0, 0, 5, 0]),
    (
        "g05-length",
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 1, 4, 0, 0, 1, 4, 0, 0, 0, 4, 0, 3, 0, 0, 3, 0, 1, 5, 1],
    ),
    ("g05-not-negotiated", &[0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0, 4, 0, 3, 0, 0, 5, 0]),
    ("g05-outside", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 2, 0, 4, 0, 3, 0, 0, 5, 0]),
    ("g05-table-end", &[0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 1, 9, 0, 0, 4, 0, 2, 0, 4, 0, 3, 0, 0, 5, 0]),
    ("g07-empty", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 5, 0, 7]),
    ("g08-outside", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 2, 0, 2, 0, 3, 0, 0, 5, 0]),
    ("g08-long", &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 2, 0, 3, 0, 0, 5, 0]),
    ("g09-order", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 1, 0, 1, 0, 0, 2, 0, 0, 0, 3, 0, 0, 5, 0]),
    ("g10-twice", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 3, 0, 0, 3, 0, 0, 5, 1]),
    (
        "in-order-logged",
        &[
            0, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 1, 1, 0, 3, 0, 2, 0, 3, 0, 0, 3, 0, 1, 3, 3, 0,
            5, 1, 6, 1, 9, 0, 6, 0, 9, 0, 7,
        ],
    ),
];

/// Size, bits, bytes, beginning; then records. A descriptor is `0 index landmark distance length more flags id lap`.
const PACKED: [(&str, &[u8]); 12] = [
    ("one", &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 3, 0, 5, 0, 6, 0, 9, 0, 7]),
    ("chain", &[0, 0, 0, 0, 0, 1, 1, 0, 2, 0, 2, 3, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 5, 0, 6, 0, 9, 0, 7]),
    ("gp1-id", &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 255, 0, 5, 0]),
    ("gp1-twice", &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 2, 3, 0, 0, 1, 0, 0, 2, 0, 2, 3, 0, 5, 1]),
    ("gp2-not-available", &[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 5, 0]),
    ("gp2-too-long", &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 5, 0]),
    ("gp3-indirect-next", &[0, 0, 0, 0, 0, 0, 4, 0, 2, 0, 5, 0, 0, 0, 1, 4, 0, 2, 0, 0, 0, 0, 5, 0]),
    (
        "gp4-event",
        &[0, 2, 0, 0, 3, 1, 2, 0, 3, 0, 0xff, 0xff, 0, 0, 0, 0, 2, 0, 2, 3, 0, 5, 0, 6, 0, 9, 0, 7],
    ),
    (
        "indirect",
        &[0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 2, 1, 0, 0, 2, 0, 2, 0, 0, 0, 0, 4, 0, 3, 0, 4, 1, 0, 5, 0],
    ),
    ("g09-order", &[0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 5, 0]),
    (
        "lap",
        &[
            1, 12, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 5, 0, 6, 0, 9, 0, 7, 0, 0, 0, 0, 2, 0, 2, 0, 0, 5, 0, 6,
            0, 9, 0, 7,
        ],
    ),
    ("g07-empty", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 5, 0, 7]),
];
