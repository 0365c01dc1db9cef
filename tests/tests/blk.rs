//! `outboard-blk` as a process, driven by the guest double over its socket: what it does with good requests,
//! with bad ones (B01 to B08), and with a host that refuses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tests::daemon::{Daemon, Exit, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{
    self, Answer, Blk, DISCARD, Framing, IOERR, OK, Request, SECURE_ERASE, UNMAP, UNSUPP, WRITE_ZEROES,
    capacity_sectors,
};
use tests::guest::chain::Chain;
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::random::Random;

const RAM_BYTES: u64 = 64 << 20;
const QUEUE_SIZE: u16 = 128;
const DISK_SECTORS: u64 = 512;
const DISK_BYTES: usize = 512 * 512;
const RINGS: [RingKind; 2] = [RingKind::Split, RingKind::Packed];
/// Every engine on every kind of ring: all must do the same.
const WAYS: [(&str, RingKind); 4] = [
    ("io-uring", RingKind::Split),
    ("io-uring", RingKind::Packed),
    ("epoll", RingKind::Split),
    ("epoll", RingKind::Packed),
];

/// A daemon with an image of known content, and a guest.
struct Disk {
    daemon: Daemon,
    frontend: Frontend,
    content: Vec<u8>,
}

impl Disk {
    fn boot(options: &[&str]) -> Disk {
        Disk::boot_on(RingKind::Split, options)
    }

    fn boot_on(rings: RingKind, options: &[&str]) -> Disk {
        Disk::boot_with(&Ram::new(RAM_BYTES), Wants::on(rings), options)
    }

    fn boot_with(ram: &Arc<Ram>, wants: Wants, options: &[&str]) -> Disk {
        let content = Random::from_env().bytes(DISK_BYTES);
        let launch = Launch::new("outboard-blk").args(options.iter().copied());
        let launch = with_image(launch, &content);
        let daemon = launch.serve().unwrap();
        let frontend = Frontend::session(daemon.socket(), ram, wants).unwrap();
        Disk { daemon, frontend, content }
    }

    fn queue(&mut self, index: u8) -> Blk {
        Blk::new(self.frontend.start_new(index, QUEUE_SIZE).unwrap())
    }

    fn image(&self) -> Vec<u8> {
        fs::read(image_path(self.daemon.dir())).unwrap()
    }

    /// The bytes of these sectors as they were at the start.
    fn sectors(&self, first: usize, count: usize) -> &[u8] {
        &self.content[first * 512..(first + count) * 512]
    }
}

fn image_path(dir: &Path) -> PathBuf {
    dir.join("disk.img")
}

fn with_image(launch: Launch, content: &[u8]) -> Launch {
    let image = image_path(launch.dir());
    fs::write(&image, content).unwrap();
    launch.args(["--image".to_owned(), image.display().to_string()])
}

fn done(data: &[u8]) -> Answer {
    Answer { status: Some(OK), data: data.to_vec() }
}

/// What a failed request leaves: its status, and zeros where data would have been.
fn failed(status: u8, data_in: usize) -> Answer {
    Answer { status: Some(status), data: vec![0; data_in] }
}

#[test]
fn reads_writes_flushes_and_tells_its_serial_number() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine, "--serial", "outboard-1"]);
        let mut blk = disk.queue(0);
        assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)), "{engine} {rings:?}");
        assert_eq!(blk.read(3, 65_536).unwrap(), done(disk.sectors(3, 128)), "{engine} {rings:?}");
        let written = vec![0x77; 1024];
        assert_eq!(blk.write(10, &written).unwrap(), done(&[]), "{engine} {rings:?}");
        assert_eq!(blk.read(10, 1024).unwrap(), done(&written), "{engine} {rings:?}");
        assert_eq!(blk.flush().unwrap(), done(&[]), "{engine} {rings:?}");
        assert_eq!(blk.get_id().unwrap(), done(b"outboard-1\0\0\0\0\0\0\0\0\0\0"), "{engine} {rings:?}");
        let mut expected = disk.content.clone();
        expected[10 * 512..12 * 512].copy_from_slice(&written);
        assert_eq!(disk.image(), expected, "{engine} {rings:?}");
    }
}

#[test]
fn lengths_in_the_used_ring_are_true() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut ring = disk.queue(0).ring;
        let table = [
            (Request::read(0, 1024), 1025),
            (Request::read(DISK_SECTORS, 512), 513),
            (Request::write(0, &[1; 512]), 1),
            (Request::write(DISK_SECTORS, &[1; 512]), 1),
            (Request::bare(blk::FLUSH), 1),
            (Request { data_in: 20, ..Request::bare(blk::GET_ID) }, 21),
            (Request::bare(99), 1),
        ];
        for (request, len) in table {
            let completion = ring.run(&request.chain(&Framing::joined())).unwrap();
            assert_eq!(completion.len, len, "{request:?}");
        }
    }
}

#[test]
fn any_framing_is_served_2_7_4_1() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut blk = disk.queue(0);
        let mut framings = vec![Framing::joined(), Framing::usual(4096)];
        framings.extend([1, 3, 7, 15, 17, 100, 512, 1000].map(|len| Framing::pieces(len, 40)));
        framings.extend((1..16).map(|cut| Framing { out: vec![cut, 16 - cut], ..Framing::default() }));
        framings.push(Framing { input: vec![4095, 1], ..Framing::default() });
        framings.extend(framings.clone().into_iter().map(|framing| Framing { indirect: true, ..framing }));
        for (nth, framing) in (1..).zip(framings) {
            let written = vec![nth; 4096];
            let write = blk.run(&Request::write(8, &written), &framing).unwrap();
            assert_eq!(write, done(&[]), "{engine} {rings:?} {framing:?}");
            let read = blk.run(&Request::read(8, 4096), &framing).unwrap();
            assert_eq!(read, done(&written), "{engine} {rings:?} {framing:?}");
        }
        assert_eq!(disk.daemon.terminate().code, Some(0));
    }
}

#[test]
fn a_chain_of_more_buffers_than_the_host_takes_at_once_is_served() {
    // Each of these descriptors lies across two regions: 1,000 are 2,000 buffers for the host, which takes 1,024.
    let border = RAM_BASE + RAM_BYTES;
    let ram = Ram::with(&[(RAM_BASE, RAM_BYTES), (border, RAM_BYTES)], Backing::Sealed);
    ram.claim(border - 2, 4);
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_with(&ram, Wants::on(rings), &["--engine", engine]);
        let mut ring = disk.frontend.start_new(0, 1024).unwrap();
        let header = Request::read(0, 0).header();
        let across = |chain: Chain, _| chain.at(border - 2, 4, true);
        let chain = (0..1000).fold(Chain::new().readable(&header), across).writable(96).writable(1);
        let completion = ring.run(&chain).unwrap();
        assert_eq!((completion.len, completion.data.last()), (4097, Some(&OK)), "{engine} {rings:?}");
        assert_eq!(ram.read(border - 2, 4), disk.content[3996..4000], "{engine} {rings:?}: the last of them");
        assert_eq!(completion.data[4000..4096], disk.content[4000..4096], "{engine} {rings:?}");
    }
}

#[test]
fn b01_requests_without_header_or_status_come_back_empty() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut blk = disk.queue(0);
        let header = Request::read(0, 0).header();
        let table = [
            Chain::new().readable(&header[..15]).writable(513),
            Chain::new().writable(513),
            Chain::new().readable(&header),
            Chain::new().readable(&header).readable(&[0; 513]),
            Chain::new().readable(&[]).writable(1),
        ];
        for chain in table {
            assert_eq!(blk.ring.run(&chain).unwrap().len, 0, "{chain:?}");
            assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)), "the next one is served");
        }
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn b02_outside_the_disk_is_an_error_and_touches_nothing() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut blk = disk.queue(0);
        for sector in [DISK_SECTORS, DISK_SECTORS - 1, 1 << 55, u64::MAX / 512, u64::MAX] {
            assert_eq!(blk.read(sector, 1024).unwrap(), failed(IOERR, 1024), "read {sector:#x}");
            assert_eq!(blk.write(sector, &[9; 1024]).unwrap(), failed(IOERR, 0), "write {sector:#x}");
        }
        assert_eq!(blk.read(DISK_SECTORS - 1, 512).unwrap(), done(disk.sectors(511, 1)));
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn b03_broken_sectors_are_an_error_and_no_sector_is_fine() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut blk = disk.queue(0);
        for bytes in [1, 511, 513, 1000] {
            let data = vec![9; usize::try_from(bytes).unwrap()];
            assert_eq!(blk.read(0, bytes).unwrap(), failed(IOERR, data.len()), "read {bytes}");
            assert_eq!(blk.write(0, &data).unwrap(), failed(IOERR, 0), "write {bytes}");
        }
        assert_eq!(blk.read(0, 0).unwrap(), done(&[]));
        assert_eq!(blk.write(DISK_SECTORS, &[]).unwrap(), done(&[]));
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn b04_other_types_are_not_supported() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut blk = disk.queue(0);
        for kind in [2, 3, 5, 7, 9, 10, 14, 15, 16, 26, 0x8000_0000, 0x8000_0001, u32::MAX] {
            let request = Request { kind, ..Request::write(0, &[9; 512]) };
            assert_eq!(blk.run(&request, &Framing::usual(0)).unwrap(), failed(UNSUPP, 0), "type {kind:#x}");
        }
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn b05_a_read_only_disk_is_not_written() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &["--read-only"]);
        assert_ne!(disk.frontend.features() & 1 << 5, 0, "VIRTIO_BLK_F_RO is offered");
        let mut blk = disk.queue(0);
        assert_eq!(blk.write(0, &[9; 512]).unwrap(), failed(IOERR, 0));
        for kind in [DISCARD, WRITE_ZEROES, SECURE_ERASE] {
            assert_eq!(blk.ranges(kind, &[(0, 1, 0)]).unwrap(), failed(IOERR, 0), "type {kind}");
        }
        assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)));
        assert_eq!(blk.flush().unwrap(), done(&[]));
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn b05_holds_for_a_driver_that_did_not_acknowledge_it() {
    for rings in RINGS {
        let wants = Wants { features: !(1 << 5), ..Wants::on(rings) };
        let mut disk = Disk::boot_with(&Ram::new(RAM_BYTES), wants, &["--read-only"]);
        let mut blk = disk.queue(0);
        assert_eq!(blk.write(0, &[9; 512]).unwrap(), failed(IOERR, 0));
        assert_eq!(disk.image(), disk.content);
    }
}

/// Too many ranges, bytes that are no range, bad flags, too long, past the end; also after one that is right.
#[test]
fn b06_discards_and_zeroes_that_are_wrong_change_nothing() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &[]);
        let mut blk = disk.queue(0);
        let end = DISK_SECTORS;
        for (range, status) in [
            ((0, 8, 2), UNSUPP),
            ((0, 8, u32::MAX), UNSUPP),
            ((end, 1, 0), IOERR),
            ((end - 1, 2, 0), IOERR),
            ((u64::MAX, 1, 0), IOERR),
            ((u64::MAX / 512, 8, 0), IOERR),
            ((0, u32::MAX, 0), IOERR),
        ] {
            for kind in [DISCARD, WRITE_ZEROES] {
                assert_eq!(blk.ranges(kind, &[range]).unwrap(), failed(status, 0), "type {kind} {range:?}");
                assert_eq!(blk.ranges(kind, &[(0, 8, 0), range]).unwrap(), failed(status, 0), "{range:?}");
            }
        }
        assert_eq!(blk.ranges(DISCARD, &[(0, 8, UNMAP)]).unwrap(), failed(UNSUPP, 0));
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(blk.ranges(kind, &vec![(0, 0, 0); 257]).unwrap(), failed(IOERR, 0));
            for bytes in [1, 15, 17, 24] {
                let request = Request { kind, ..Request::write(0, &vec![0; bytes]) };
                assert_eq!(blk.run(&request, &Framing::usual(0)).unwrap(), failed(IOERR, 0), "{bytes} bytes");
            }
            assert_eq!(blk.ranges(kind, &[]).unwrap(), done(&[]));
            assert_eq!(blk.ranges(kind, &[(end, 0, 0)]).unwrap(), done(&[]));
        }
        assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)));
        assert_eq!(disk.image(), disk.content);
    }
}

#[test]
fn ranges_are_zeroed_and_discarded_wherever_they_are_cut_5_2_6() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut blk = disk.queue(0);
        let request = Request::ranges(WRITE_ZEROES, &[(1, 3, 0), (64, 128, UNMAP), (9, 0, 0), (511, 1, 0)]);
        let pieces = Framing { indirect: true, ..Framing::pieces(7, 10) };
        assert_eq!(blk.run(&request, &pieces).unwrap(), done(&[]), "{engine} {rings:?}");
        for range in [1..4, 64..192, 511..512] {
            disk.content[range.start * 512..range.end * 512].fill(0);
        }
        let all = u32::try_from(DISK_BYTES).unwrap();
        assert_eq!(blk.read(0, all).unwrap(), done(&disk.content), "{engine} {rings:?}");
        assert!(disk.image() == disk.content, "{engine} {rings:?}");

        let discard = [(0, 32, 0), (256, 128, 0)];
        assert_eq!(blk.ranges(DISCARD, &discard).unwrap(), done(&[]), "{engine} {rings:?}");
        let after = disk.image();
        assert!(after[32 * 512..256 * 512] == disk.content[32 * 512..256 * 512], "{engine}: the rest stays");
        assert!(after[384 * 512..] == disk.content[384 * 512..], "{engine}: the rest stays");
        let room = fs::metadata(image_path(disk.daemon.dir())).unwrap().blocks() * 512;
        // What was unmapped, and what was discarded: 256 + 32 sectors.
        assert!(room <= (DISK_BYTES - 288 * 512) as u64, "{engine}: {room} bytes are not given back");
        assert_eq!(blk.read(0, all).unwrap(), done(&after));
    }
}

#[test]
fn every_range_of_the_most_is_served() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut blk = disk.queue(0);
        let every_other: Vec<_> = (0..256).map(|nth| (2 * nth, 1, 0)).collect();
        assert_eq!(blk.ranges(WRITE_ZEROES, &every_other).unwrap(), done(&[]), "{engine} {rings:?}");
        disk.content.chunks_mut(1024).for_each(|pair| pair[..512].fill(0));
        assert!(disk.image() == disk.content, "{engine} {rings:?}");
    }
}

#[test]
fn b07_a_serial_number_without_room_is_an_error() {
    for rings in RINGS {
        let mut disk = Disk::boot_on(rings, &["--serial", "01234567890123456789"]);
        let mut blk = disk.queue(0);
        let mut get_id = |room: u32| {
            let request = Request { data_in: room, ..Request::bare(blk::GET_ID) };
            blk.run(&request, &Framing::usual(room)).unwrap()
        };
        assert_eq!(get_id(0), failed(IOERR, 0));
        assert_eq!(get_id(19), failed(IOERR, 19));
        assert_eq!(get_id(20), done(b"01234567890123456789"));
        assert_eq!(get_id(24), done(b"01234567890123456789\0\0\0\0"));
    }
}

#[test]
fn b08_of_two_overlapping_writes_each_sector_holds_one() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut ring = disk.queue(0).ring;
        for _ in 0..50 {
            ring.add(&Request::write(0, &[1; 8192]).chain(&Framing::usual(0)));
            ring.add(&Request::write(8, &[2; 8192]).chain(&Framing::usual(0)));
            ring.notify();
            assert!(ring.wait_all().unwrap().iter().all(|one| one.data == [OK]));
            let image = disk.image();
            let sectors: Vec<&[u8]> = image.chunks(512).collect();
            assert!(sectors[..8].iter().all(|sector| *sector == [1; 512]));
            assert!(sectors[8..16].iter().all(|sector| *sector == [1; 512] || *sector == [2; 512]));
            assert!(sectors[16..24].iter().all(|sector| *sector == [2; 512]));
        }
    }
}

/// Nobody looks into the image for a format: a guest could write one that names files of the host.
#[test]
fn b09_a_guest_that_writes_another_format_still_has_a_raw_disk() {
    let headers: [&[u8]; 4] = [b"QFI\xfb\0\0\0\x03", b"KDMV", b"conectix", b"vhdxfile"];
    for header in headers {
        let mut disk = Disk::boot(&[]);
        let mut sector = vec![0x55; 512];
        sector[..header.len()].copy_from_slice(header);
        assert_eq!(disk.queue(0).write(0, &sector).unwrap(), done(&[]));
        disk.content[..512].copy_from_slice(&sector);
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::copy(image_path(disk.daemon.dir()), &path).unwrap();
        assert_eq!(disk.daemon.terminate().code, Some(0));
        let image = ["--image".to_owned(), path.display().to_string()];
        let daemon = Launch::new("outboard-blk").args(image).serve().unwrap();
        let mut frontend =
            Frontend::session(daemon.socket(), &Ram::new(RAM_BYTES), Wants::default()).unwrap();
        assert_eq!(capacity_sectors(&frontend.config(0, 60).unwrap()), Some(DISK_SECTORS));
        let mut blk = Blk::new(frontend.start_new(0, QUEUE_SIZE).unwrap());
        let all = u32::try_from(DISK_BYTES).unwrap();
        assert_eq!(blk.read(0, all).unwrap(), done(&disk.content));
    }
}

#[test]
fn the_configuration_space_describes_the_disk_5_2_4() {
    let mut disk = Disk::boot(&["--queues", "3", "--block-size", "4096"]);
    let config = disk.frontend.config(0, 72).unwrap();
    assert_eq!(capacity_sectors(&config), Some(DISK_SECTORS));
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    let gib = 1 << 21;
    assert_eq!([8, 12, 16].map(word), [8 << 20, 126, 0], "size_max, seg_max, no geometry");
    assert_eq!((config[24..28].to_vec(), config[32]), (vec![0, 0, 1, 0], 1), "topology; a cache");
    assert_eq!([36, 40, 44].map(word), [gib, 256, 8], "discard");
    assert_eq!(([48, 52].map(word), config[56]), ([gib, 256], 1), "zeroes, which may unmap");
    assert_eq!([60, 64, 68].map(word), [0; 3], "no file can promise to erase");
    let offered = [1, 2, 6, 9, 10, 11, 12, 13, 14].iter().fold(0, |bits: u64, bit| bits | 1 << bit);
    assert_eq!(disk.frontend.features() & 0x00ff_ffff, offered);
    assert_eq!(config[20..24], 4096u32.to_le_bytes());
    assert_eq!(config[34..36], 3u16.to_le_bytes());
    assert!(disk.frontend.set_config(0, &[0; 8]).is_err(), "nothing there is writable");
    let mut blk = disk.queue(2);
    // Addresses are in sectors whatever the block size (§5.2.5). Less than a block is nobody's to change.
    assert_eq!(blk.read(8, 4096).unwrap(), done(disk.sectors(8, 8)));
    assert_eq!(blk.read(8, 512).unwrap(), failed(IOERR, 512));
    assert_eq!(blk.write(1, &[1; 4096]).unwrap(), failed(IOERR, 0));
}

#[test]
fn queues_share_the_disk() {
    let mut disk = Disk::boot(&["--queues", "4"]);
    let mut queues: Vec<Blk> = (0..4).map(|index| disk.queue(index)).collect();
    for (nth, blk) in (0u8..).zip(&mut queues) {
        assert_eq!(blk.write(u64::from(nth), &[nth; 512]).unwrap(), done(&[]));
    }
    let expected: Vec<u8> = (0..4).flat_map(|nth| [nth; 512]).collect();
    for blk in &mut queues {
        assert_eq!(blk.read(0, 2048).unwrap(), done(&expected));
    }
}

#[test]
fn direct_io_serves_aligned_and_odd_buffers() {
    for (engine, rings) in WAYS {
        // Beside the test itself: a temporary file system may be one without direct I/O.
        let here = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
        let content = Random::from_env().bytes(DISK_BYTES);
        let path = image_path(dir.path());
        fs::write(&path, &content).unwrap();
        let launch =
            Launch::new("outboard-blk").args(["--direct", "--block-size", "4096", "--engine", engine]);
        let daemon = launch.args(["--image".to_owned(), path.display().to_string()]).serve().unwrap();
        let ram = Ram::new(RAM_BYTES);
        let mut frontend = Frontend::session(daemon.socket(), &ram, Wants::on(rings)).unwrap();
        let mut blk = Blk::new(frontend.start_new(0, QUEUE_SIZE).unwrap());
        // The double's own buffers begin anywhere.
        assert_eq!(blk.read(8, 4096).unwrap(), done(&content[4096..8192]), "{engine} {rings:?}");
        assert_eq!(blk.write(16, &[7; 4096]).unwrap(), done(&[]), "{engine} {rings:?}");
        let at = ram.take(4096, 4096);
        let read = |sector| Chain::new().readable(&Request::read(sector, 0).header()).at(at, 4096, true);
        let completion = blk.ring.run(&read(16).writable(1)).unwrap();
        assert_eq!((&completion.data[..4096], completion.len), (&[7; 4096][..], 4097), "{engine} {rings:?}");
        let completion = blk.ring.run(&read(24).writable(1)).unwrap();
        assert_eq!(completion.data[..4096], content[12_288..16_384], "{engine} {rings:?}");
        assert_eq!(blk.flush().unwrap(), done(&[]));
    }
}

fn exit_with(options: &[&str], image: &Path) -> Exit {
    let image = ["--image".to_owned(), image.display().to_string()];
    Launch::new("outboard-blk").args(options.iter().copied()).args(image).args(["--socket-path", "s"]).run()
}

#[test]
fn an_image_in_use_is_refused_with_exit_code_4() {
    let disk = Disk::boot(&[]);
    let image = image_path(disk.daemon.dir());
    for options in [&[][..], &["--read-only"]] {
        let exit = exit_with(options, &image);
        let named =
            format!("--image {}: process {} (outboard-blk) uses it", image.display(), disk.daemon.pid());
        assert!(exit.code == Some(4) && exit.stderr.contains(&named), "{exit}");
    }
    assert_eq!(disk.daemon.terminate().code, Some(0));
    // The lock went with the process.
    let launch = Launch::new("outboard-blk");
    let image = image_path(with_image(launch, &[0; 512]).dir());
    assert_eq!(exit_with(&[], &image).code, Some(2), "and so did its directory");
}

#[test]
fn readers_share_an_image() {
    let disk = Disk::boot(&["--read-only"]);
    let image = image_path(disk.daemon.dir()).display().to_string();
    let second = Launch::new("outboard-blk").args(["--read-only", "--image", &image]).serve().unwrap();
    let mut frontend = Frontend::session(second.socket(), &Ram::new(RAM_BYTES), Wants::default()).unwrap();
    let mut blk = Blk::new(frontend.start_new(0, QUEUE_SIZE).unwrap());
    assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)));
    assert_eq!(exit_with(&[], Path::new(&image)).code, Some(4));
}

#[test]
fn the_conventions_name_the_image_blk_file() {
    let launch = Launch::new("outboard-blk");
    fs::write(image_path(launch.dir()), [0; 512]).unwrap();
    let image = image_path(launch.dir()).display().to_string();
    let daemon = launch.args(["--blk-file", &image, "--read-only"]).serve().unwrap();
    assert_eq!(daemon.terminate().code, Some(0));
    let exit = Launch::new("outboard-blk").args(["--print-capabilities"]).run();
    let said: serde_json::Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(said, serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] }));
}

#[test]
fn k16_a_write_that_the_host_has_no_room_for_fails_and_later_ones_succeed() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut blk = disk.queue(0);
        limit_file_size(&disk.daemon, Some(4096));
        assert_eq!(blk.write(64, &[9; 512]).unwrap(), failed(IOERR, 0), "{engine} {rings:?}");
        // Half of it fits: what the host leaves over must not be reported as done.
        assert_eq!(blk.write(7, &[9; 1024]).unwrap(), failed(IOERR, 0), "{engine} {rings:?}");
        assert_eq!(blk.write(0, &[8; 512]).unwrap(), done(&[]), "{engine} {rings:?}");
        assert_eq!(blk.read(64, 512).unwrap(), done(disk.sectors(64, 1)), "{engine} {rings:?}");
        limit_file_size(&disk.daemon, None);
        assert_eq!(blk.write(64, &[9; 512]).unwrap(), done(&[]), "{engine} {rings:?}");
        assert_eq!(disk.daemon.terminate().code, Some(0));
    }
}

/// Lets the daemon write below this many bytes only, as a full disk would.
fn limit_file_size(daemon: &Daemon, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(daemon.worker_pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

#[test]
fn an_image_that_shrinks_gives_errors_where_it_ends() {
    for (engine, rings) in WAYS {
        let mut disk = Disk::boot_on(rings, &["--engine", engine]);
        let mut blk = disk.queue(0);
        let image = fs::OpenOptions::new().write(true).open(image_path(disk.daemon.dir())).unwrap();
        image.set_len(1000).unwrap();
        assert_eq!(blk.read(0, 512).unwrap(), done(disk.sectors(0, 1)), "{engine} {rings:?}");
        let torn = blk.read(1, 1024).unwrap();
        assert_eq!(torn.status, Some(IOERR), "{engine} {rings:?}");
        assert_eq!(torn.data[488..], [0; 536], "no stale memory is shown as data");
        assert_eq!(blk.read(100, 512).unwrap(), failed(IOERR, 512), "{engine} {rings:?}");
    }
}

#[test]
fn k10_sigterm_under_load_finishes_what_is_in_flight() {
    let mut disk = Disk::boot(&["--queues", "2"]);
    let mut queues = [disk.queue(0).ring, disk.queue(1).ring];
    for ring in &mut queues {
        for sector in 0..40 {
            ring.add(&Request::write(sector * 8, &[3; 4096]).chain(&Framing::joined()));
        }
        ring.notify();
        ring.wait_used().unwrap();
    }
    let Disk { daemon, frontend, .. } = disk;
    let socket = daemon.socket().to_owned();
    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(!socket.exists());
    for ring in &mut queues {
        while let Some(completion) = ring.used().unwrap() {
            assert_eq!(completion.data, [OK]);
        }
    }
    drop(frontend);
}
