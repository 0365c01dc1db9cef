//! `outboard-blk --graph`: a disk of several volumes, served by the daemon to the guest double.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use backends::session::Direction;
use tests::daemon::{Daemon, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::blk::{
    Blk, DISCARD, IOERR, OK, SECURE_ERASE, UNMAP, UNSUPP, WRITE_ZEROES, capacity_sectors,
};
use tests::guest::memory::Ram;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_SECURE_ERASE};

const RAM_BYTES: u64 = 64 << 20;
/// Of each of two images; the disk is a window on both.
const IMAGE_BYTES: usize = 1 << 20;
/// Where the window begins.
const START: usize = 4096;

/// Two images, one behind the other, without their first page.
fn graph(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "volume a\n type storage/file\n option path {dir}/a.img\nend-volume\n\
         volume b\n type storage/file\n option path {dir}/b.img\n option direct off\nend-volume\n\
         volume both\n type features/map\n subvolumes a b\nend-volume\n\
         volume window\n type features/offset\n option offset 4K\n subvolumes both\nend-volume\n"
    )
}

fn launch(text: impl Fn(&Path) -> String) -> Launch {
    let launch = Launch::new("outboard-blk");
    let dir = launch.dir().to_owned();
    for (name, byte) in [("a.img", 1), ("b.img", 2)] {
        fs::write(dir.join(name), vec![byte; IMAGE_BYTES]).unwrap();
    }
    fs::write(dir.join("disk.vol"), text(&dir)).unwrap();
    launch.args(["--graph", &dir.join("disk.vol").display().to_string()])
}

fn session(daemon: &Daemon) -> (Frontend, Blk) {
    let mut frontend = Frontend::session(daemon.socket(), &Ram::new(RAM_BYTES), Wants::default()).unwrap();
    let blk = Blk::new(frontend.start_new(0, 64).unwrap());
    (frontend, blk)
}

#[test]
fn a_graph_is_a_disk_over_the_death_of_its_worker() {
    for engine in ["io-uring", "epoll"] {
        let daemon = launch(graph).args(["--engine", engine]).serve().unwrap();
        let (_frontend, mut blk) = session(&daemon);
        // What stands behind the end of the first image and before the beginning of the second.
        let border = u64::try_from((IMAGE_BYTES - START) / 512).unwrap();
        let read = blk.read(border - 1, 1024).unwrap();
        assert_eq!(
            (read.status, &read.data[..512], &read.data[512..]),
            (Some(OK), &[1; 512][..], &[2; 512][..])
        );
        assert_eq!(blk.write(border - 1, &[7; 1024]).unwrap().status, Some(OK));
        daemon.kill_worker();
        assert_eq!(blk.read(border - 1, 1024).unwrap().data, [7; 1024]);
        assert_eq!(blk.flush().unwrap().status, Some(OK));
        let [a, b] = ["a.img", "b.img"].map(|name| fs::read(daemon.dir().join(name)).unwrap());
        assert_eq!((&a[IMAGE_BYTES - 512..], &b[..512]), (&[7; 512][..], &[7; 512][..]));
        assert!(a[..IMAGE_BYTES - 512].iter().all(|byte| *byte == 1), "the window begins behind it");
        let sectors = u64::try_from((2 * IMAGE_BYTES - START) / 512).unwrap();
        assert_eq!(blk.read(sectors - 1, 512).unwrap().status, Some(OK));
        assert_eq!(blk.read(sectors, 512).unwrap().status, Some(IOERR));
    }
}

/// An enciphered image under all that passes calls on.
fn layers(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "volume a\n type storage/file\n option path {dir}/a.img\nend-volume\n\
         volume below\n type debug/io-stats\n subvolumes a\nend-volume\n\
         volume secret\n type features/crypt\n option key-file {dir}/key\n option sector 4096\n subvolumes below\nend-volume\n\
         volume slow\n type features/throttle\n option ops 100000\n option group {dir}/group\n subvolumes secret\nend-volume\n\
         volume late\n type debug/delay-gen\n option delay 0\n option random 1ms\n subvolumes slow\nend-volume\n\
         volume seen\n type debug/trace\n subvolumes late\nend-volume\n"
    )
}

fn launch_layers(mode: u32) -> Launch {
    let launch = launch(layers);
    let key = launch.dir().join("key");
    fs::write(&key, (0..64).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    launch
}

#[test]
fn an_enciphered_disk_is_read_by_the_next_worker_and_by_nobody_else() {
    for engine in ["io-uring", "epoll"] {
        let daemon = launch_layers(0o600).args(["--engine", engine]).serve().unwrap();
        let (_frontend, mut blk) = session(&daemon);
        let text: Vec<u8> = b"nobody else can read this ".iter().copied().cycle().take(32 << 10).collect();
        assert_eq!(blk.write(8, &text).unwrap().status, Some(OK));
        daemon.kill_worker();
        assert!(blk.read(8, 32 << 10).unwrap().data == text);
        assert_eq!(blk.flush().unwrap().status, Some(OK));
        let image = fs::read(daemon.dir().join("a.img")).unwrap();
        let stored = &image[4096..4096 + text.len()];
        assert!(!stored.windows(8).any(|window| window == b"can read"));
        // It is no row of equal sectors either, as the text nearly is.
        assert!(stored[..4096] != stored[4096..8192]);
        assert!(image[..4096].iter().all(|byte| *byte == 1), "only what was written is enciphered");
    }
}

/// A key that is written over while its disk is served would make noise of the disk, and a second cipher of what is written.
#[test]
fn a_key_file_that_changes_is_not_the_key_of_the_next_worker() {
    let daemon = launch_layers(0o600).serve().unwrap();
    let (_frontend, mut blk) = session(&daemon);
    assert_eq!(blk.write(8, &[5; 4096]).unwrap().status, Some(OK));
    fs::write(daemon.dir().join("key"), (1..65).collect::<Vec<u8>>()).unwrap();
    daemon.kill_worker();
    assert!(blk.read(8, 4096).unwrap().data == [5; 4096]);
}

#[test]
fn a_group_that_is_cut_short_ends_no_disk() {
    let daemon = launch_layers(0o600).serve().unwrap();
    let (_frontend, mut blk) = session(&daemon);
    drop(fs::File::create(daemon.dir().join("group")).unwrap());
    assert_eq!(blk.read(8, 4096).unwrap().status, Some(OK));
    daemon.kill_worker();
    assert_eq!(blk.read(8, 4096).unwrap().status, Some(OK));
}

#[test]
fn a_key_that_others_can_read_is_refused_by_its_line() {
    let exit = launch_layers(0o644).start().wait_exit();
    assert_eq!(exit.code, Some(2), "{}", exit.stderr);
    assert!(exit.stderr.contains("disk.vol:11: volume secret: option key-file"), "{}", exit.stderr);
    assert!(exit.stderr.contains("(mode 644); chmod 600 it"), "{}", exit.stderr);
}

/// What grows in the middle of a disk would move all behind it: it does not, also not for the worker that comes next.
#[test]
fn no_byte_moves_when_an_image_in_the_middle_has_grown() {
    let daemon = launch(graph).serve().unwrap();
    let (mut frontend, mut blk) = session(&daemon);
    let sectors = u64::try_from((2 * IMAGE_BYTES - START) / 512).unwrap();
    let border = u64::try_from((IMAGE_BYTES - START) / 512).unwrap();
    let a = fs::File::options().write(true).open(daemon.dir().join("a.img")).unwrap();
    a.set_len(IMAGE_BYTES as u64 + 4096).unwrap();
    assert_eq!(capacity_sectors(&frontend.config(0, 8).unwrap()), Some(sectors));
    for _ in 0..2 {
        assert_eq!(blk.read(border, 512).unwrap().data, [2; 512]);
        assert_eq!(blk.read(sectors, 512).unwrap().status, Some(IOERR));
        daemon.kill_worker();
    }
}

#[test]
fn a_disk_in_memory_lasts_as_long_as_its_daemon() {
    let mem = |_: &Path| "volume m\n type storage/mem\n option size 1M\nend-volume\n".to_owned();
    let daemon = launch(mem).serve().unwrap();
    let (_frontend, mut blk) = session(&daemon);
    assert_eq!(blk.write(5, &[9; 512]).unwrap().status, Some(OK));
    daemon.kill_worker();
    assert_eq!(blk.read(5, 512).unwrap().data, [9; 512]);
    assert_eq!(blk.read(6, 512).unwrap().data, [0; 512]);
}

/// One image, of which nothing has room, with these options more.
fn image(options: &'static str) -> Daemon {
    let launch = launch(move |dir| {
        let dir = dir.display();
        format!("volume a\n type storage/file\n option path {dir}/a.img\n {options}\nend-volume\n")
    });
    let image = fs::File::create(launch.dir().join("a.img")).unwrap();
    image.set_len(1 << 20).unwrap();
    launch.serve().unwrap()
}

fn room(daemon: &Daemon) -> u64 {
    fs::metadata(daemon.dir().join("a.img")).unwrap().blocks() * 512
}

#[test]
fn room_that_was_reserved_is_kept() {
    let daemon = image("option preallocation falloc");
    assert!(room(&daemon) >= 1 << 20);
    let (frontend, mut blk) = session(&daemon);
    assert_eq!(frontend.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
    assert_eq!(blk.ranges(DISCARD, &[(0, 2048, 0)]).unwrap().status, Some(UNSUPP));
    assert_eq!(blk.write(8, &[5; 4096]).unwrap().status, Some(OK));
    assert_eq!(blk.ranges(WRITE_ZEROES, &[(0, 2048, UNMAP)]).unwrap().status, Some(OK));
    assert_eq!(blk.read(8, 4096).unwrap().data, [0; 4096]);
    assert!(room(&daemon) >= 1 << 20);
}

#[test]
fn what_is_erased_is_written_over_where_the_operator_says_that_it_can_be() {
    let daemon = image("option secure-erase overwrite");
    let (frontend, mut blk) = session(&daemon);
    assert_ne!(frontend.features() & 1 << VIRTIO_BLK_F_SECURE_ERASE, 0);
    assert_eq!(blk.write(8, &[5; 8192]).unwrap().status, Some(OK));
    assert_eq!(blk.ranges(SECURE_ERASE, &[(8, 8, 0)]).unwrap().status, Some(OK));
    assert_eq!(room(&daemon), 8192, "written over, and no hole");
    let data = blk.read(8, 8192).unwrap().data;
    assert_eq!((&data[..4096], &data[4096..]), (&[0; 4096][..], &[5; 4096][..]));
    // Otherwise nobody is told that it could be.
    let daemon = image("");
    let (frontend, mut blk) = session(&daemon);
    assert_eq!(frontend.features() & 1 << VIRTIO_BLK_F_SECURE_ERASE, 0);
    assert_eq!(blk.ranges(SECURE_ERASE, &[(8, 8, 0)]).unwrap().status, Some(UNSUPP));
}

/// The mode came from another daemon, and no front-end ever told of it.
#[test]
fn a_mode_that_was_taken_over_from_another_daemon_outlives_the_worker() {
    const THROUGH: u8 = 2;
    let daemon = launch(graph).serve().unwrap();
    let (mut frontend, blk) = session(&daemon);
    frontend.stop(0).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    frontend.carry_state(Direction::Load, reader.as_fd()).unwrap();
    writer.write_all(&[THROUGH]).unwrap();
    drop(writer);
    assert!(frontend.state_is_good().unwrap());
    for _ in 0..2 {
        assert_eq!(frontend.config(32, 1).unwrap(), [0]);
        daemon.kill_worker();
    }
    drop((frontend, blk));
    let (mut next, _blk) = session(&daemon);
    assert_eq!(next.config(32, 1).unwrap(), [1], "it begins anew for another front-end");
}

#[test]
fn two_daemons_do_not_serve_one_image_by_two_graphs() {
    let daemon = launch(graph).serve().unwrap();
    let path = daemon.dir().join("other.vol");
    let image = daemon.dir().join("b.img").display().to_string();
    fs::write(&path, format!("volume x\n type storage/file\n option path {image}\nend-volume\n")).unwrap();
    let exit = Launch::new("outboard-blk").args(["--graph", &path.display().to_string()]).start().wait_exit();
    assert_eq!(exit.code, Some(4), "{}", exit.stderr);
    assert!(exit.stderr.contains("other.vol:3: volume x: option path"), "{}", exit.stderr);
    assert!(exit.stderr.contains("uses it"), "{}", exit.stderr);
}

#[test]
fn what_is_wrong_with_a_graph_is_told_by_its_line() {
    for (text, code, told) in [
        ("volume a\n type storage/fil\nend-volume\n", 2, "disk.vol:2: "),
        ("volume a\n type storage/file\n option path /none.img\nend-volume\n", 2, "there is no such file"),
        ("volume a\n type storage/mem\n option size 5000\nend-volume\n", 2, "no multiple of block-size 512"),
        (
            "volume a\n type storage/file\n option path @/a.img\n option preallocation falloc\n option read-only on\n\
             end-volume\n",
            2,
            "disk.vol:4: volume a: option preallocation falloc: a disk that only reads takes no room",
        ),
    ] {
        let exit = launch(|dir| text.replace('@', &dir.display().to_string())).start().wait_exit();
        assert_eq!(exit.code, Some(code), "{}", exit.stderr);
        assert!(exit.stderr.contains(told) && exit.stderr.lines().count() == 1, "{}", exit.stderr);
    }
}
