//! Disks that grow under a guest, by an operator (`outboard-blk grow`) and by themselves (block devices); and images that
//! become shorter, which no disk does.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backends::control::Method;
use backends::control::client::{Client, Reply};
use backends::proto::Connection;
use backends::proto::wire::BackendCode;
use serde_json::{Value, json};
use tests::daemon::{Launch, binary};
use tests::frontend::Frontend;
use tests::guest::blk::{Blk, IOERR, OK, capacity_sectors};
use tests::guest::memory::Ram;
use tests::machine::{BLK, DISK_SECTORS, Machine, RAM_BYTES};
use tests::wait;
use xtask::skip::skip;

const DISK_BYTES: u64 = DISK_SECTORS * 512;

/// A disk whose daemon can be asked.
struct Disk {
    machine: Machine,
    channel: Connection,
    image: PathBuf,
}

impl Disk {
    fn boot(options: &[&str]) -> Disk {
        let launch = BLK.launch();
        let image = launch.dir().join("disk.img");
        Disk::of(launch.args(options.iter().copied()), image)
    }

    fn of(launch: Launch, image: PathBuf) -> Disk {
        let control = launch.dir().join("control").display().to_string();
        let launch = launch.args(["--control-socket".to_owned(), control]);
        let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
        let channel = machine.frontend.open_channel().unwrap();
        Disk { machine, channel, image }
    }

    fn control(&self) -> PathBuf {
        self.machine.daemon.dir().join("control")
    }

    fn grow(&self, options: &[&str]) -> Output {
        let mut grow = Command::new(binary("outboard-blk"));
        grow.arg("grow").arg("--control-socket").arg(self.control()).args(options).output().unwrap()
    }

    fn grow_to(&self, bytes: u64) -> Output {
        self.grow(&["--image", &self.image.display().to_string(), "--to", &bytes.to_string()])
    }

    fn put(&self, settings: &Value) -> Reply {
        let mut client = Client::connect(&self.control(), wait::PATIENCE).unwrap();
        client.call(Method::Put, "/device", Some(settings), None).unwrap()
    }

    fn sectors(&mut self) -> u64 {
        capacity_sectors(&self.machine.frontend.config(0, 8).unwrap()).unwrap()
    }

    /// The front-end is told that something has changed.
    fn hears(&mut self) {
        let frame = self.channel.recv(wait::deadline()).unwrap();
        assert_eq!(frame.header.request, BackendCode::ConfigChange as u32);
    }

    fn said(&self, words: &str) -> bool {
        self.machine.daemon.stderr().contains(words)
    }
}

fn says(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_disk_grows_while_it_is_used() {
    for engine in ["io-uring", "epoll"] {
        let mut disk = Disk::boot(&["--engine", engine]);
        let mut blk = Blk::new(disk.machine.start_queue().unwrap());
        let beyond = DISK_SECTORS + 8;
        assert_eq!(blk.write(beyond, &[7; 512]).unwrap().status, Some(IOERR));
        let told = says(&disk.grow_to(2 * DISK_BYTES));
        assert_eq!(told, (Some(0), "The disk has 2M now, 1M before".to_owned()), "{engine}");
        disk.hears();
        assert_eq!(disk.sectors(), 2 * DISK_SECTORS);
        assert_eq!(blk.write(beyond, &[7; 512]).unwrap().status, Some(OK));
        assert_eq!(blk.read(beyond, 512).unwrap().data, [7; 512]);
        assert!(disk.said("The disk has grown"));
        // The worker that follows knows it, too, and takes up what was set.
        let killed = disk.machine.daemon.kill_worker();
        assert_eq!(blk.read(beyond, 512).unwrap().data, [7; 512]);
        assert_eq!(disk.sectors(), 2 * DISK_SECTORS);
        assert!(disk.machine.daemon.worker_pid() != killed && !disk.said("is not taken up"));
        assert_eq!(disk.machine.daemon.terminate().code, Some(0));
    }
}

#[test]
fn a_disk_that_did_not_grow_is_said_to_be_as_before() {
    let mut disk = Disk::boot(&["--block-size", "4096"]);
    assert_eq!(says(&disk.grow(&[])), (Some(0), "The disk has 1M as before".to_owned()));
    let told = says(&disk.grow(&["--json"]));
    assert_eq!(told, (Some(0), r#"{"before_bytes":1048576,"size_bytes":1048576}"#.to_owned()));
    // Less than a block is of no use, and no trouble for the next worker either.
    let (code, told) = says(&disk.grow_to(DISK_BYTES + 512));
    assert!(code == Some(1) && told.contains("1M as before; see that the daemon at"), "{told}");
    disk.machine.daemon.kill_worker();
    let mut blk = Blk::new(disk.machine.start_queue().unwrap());
    assert_eq!(blk.read(0, 4096).unwrap().status, Some(OK));
    assert_eq!(disk.sectors(), DISK_SECTORS);
}

#[test]
fn what_cannot_grow_is_refused_with_the_cure() {
    let disk = Disk::boot(&[]);
    let image = disk.image.display();
    let (code, told) = says(&disk.grow_to(512));
    let wanted = format!("--image {image}: it has 1M already; give --to that or more");
    assert!(code == Some(2) && told.contains(&wanted), "{told}");
    for (options, code, wanted) in [
        (&["--to", "1G"][..], 2, "--image <PATH>"),
        (&["--image", "/dev/null", "--to", "1G"], 2, "this is no file; enlarge it by its own means"),
        (&["--image", "/nowhere", "--to", "1G"], 1, "--image /nowhere: cannot enlarge it"),
        (&["--image", "/nowhere", "--to", "1000"], 2, "it is no size of a disk"),
    ] {
        let (ended, told) = says(&disk.grow(options));
        assert!(
            ended == Some(code) && told.contains(wanted) && told.lines().count() == 1,
            "{ended:?} {told}"
        );
    }
    let nobody = Command::new(binary("outboard-blk")).args(["grow", "--control-socket", "/nowhere"]).output();
    let (code, told) = says(&nobody.unwrap());
    assert!(code == Some(1) && told.contains("--control-socket /nowhere: there is no such socket"), "{told}");
    for (settings, wanted) in [
        (json!({ "size_bytes": DISK_BYTES + 512 }), "give at most 1048576, or enlarge the image first"),
        (json!({ "size_bytes": 0 }), "size_bytes: 0 is refused"),
        (json!({ "size": 1 }), "size: there is no such setting; set size_bytes"),
    ] {
        let reply = disk.put(&settings);
        let told = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(reply.status == 422 && told.contains(wanted), "{told}");
    }
}

#[test]
fn an_image_that_became_shorter_leaves_the_disk_as_it_was() {
    let mut disk = Disk::boot(&[]);
    let mut blk = Blk::new(disk.machine.start_queue().unwrap());
    File::options().write(true).open(&disk.image).unwrap().set_len(DISK_BYTES / 2).unwrap();
    let (code, told) = says(&disk.grow(&[]));
    assert_eq!((code, told.as_str()), (Some(0), "The disk has 1M as before"));
    assert_eq!(disk.sectors(), DISK_SECTORS);
    assert!(disk.said("The image is shorter than it was"), "{}", disk.machine.daemon.stderr());
    assert_eq!(blk.read(DISK_SECTORS - 1, 512).unwrap().status, Some(IOERR), "what is missing");
    assert_eq!(blk.read(0, 512).unwrap().status, Some(OK));
}

/// A loop device over a file, which goes with this.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Result<Loop, String> {
        losetup(&["-f", "--show", &file.display().to_string()]).map(Loop)
    }

    fn look_again(&self) -> Result<String, String> {
        losetup(&["-c", &self.0])
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = losetup(&["-d", &self.0]);
    }
}

fn losetup(args: &[&str]) -> Result<String, String> {
    let output = Command::new("losetup").args(args).output().map_err(|error| error.to_string())?;
    let (code, said) = says(&output);
    if code == Some(0) { Ok(said) } else { Err(said) }
}

#[test]
fn a_block_device_tells_itself_that_it_has_grown() {
    for engine in ["io-uring", "epoll"] {
        let launch = Launch::new("outboard-blk");
        let file = launch.dir().join("device.img");
        File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        let device = match Loop::over(&file) {
            Ok(device) => device,
            Err(obstacle) => return skip("loop-device", &obstacle),
        };
        let launch = launch.args(["--engine", engine, "--queues", "2", "--image", &device.0]);
        let mut disk = Disk::of(launch, file.clone());
        let grow = |times: u64| {
            File::options().write(true).open(&file).unwrap().set_len(times * DISK_BYTES).unwrap();
            device.look_again().unwrap();
        };
        assert_eq!(disk.sectors(), DISK_SECTORS);
        grow(2);
        assert_eq!(disk.sectors(), 2 * DISK_SECTORS, "{engine}: whoever asks is told");
        let mut blk = Blk::new(disk.machine.start_queue().unwrap());
        // Also by a worker that was not there when it was opened.
        for (times, kill) in [(3, false), (4, true)] {
            if kill {
                disk.machine.daemon.kill_worker();
                assert_eq!(blk.read(0, 512).unwrap().status, Some(OK), "{engine}: another one serves");
            }
            let last = times * DISK_SECTORS - 1;
            assert_eq!(blk.write(last, &[7; 512]).unwrap().status, Some(IOERR), "{engine}");
            while disk.channel.try_recv().unwrap().is_some() {}
            grow(times);
            disk.hears();
            assert_eq!(blk.write(last, &[7; 512]).unwrap().status, Some(OK), "{engine}");
            assert_eq!(disk.sectors(), times * DISK_SECTORS, "{engine}");
        }
        assert_eq!(disk.machine.daemon.terminate().code, Some(0));
    }
}

#[test]
fn a_new_front_end_sees_the_size_that_is() {
    let mut disk = Disk::boot(&[]);
    assert_eq!(disk.grow_to(3 * DISK_BYTES).status.code(), Some(0));
    disk.machine.hang_up();
    let ram = Ram::new(RAM_BYTES);
    disk.machine.frontend = Frontend::session(disk.machine.daemon.socket(), &ram, BLK.wants()).unwrap();
    assert_eq!(disk.sectors(), 3 * DISK_SECTORS);
}
