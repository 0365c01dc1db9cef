//! Two daemons on one image: one serves, the other one is told who has it, and ends before it has done anything.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use backends::sys::{Lock, lock_file};
use rustix::io::Errno;
use tests::daemon::{Daemon, Exit, Launch};
use tests::guest::memory::Ram;
use tests::machine::{BLK, RAM_BYTES};
use tests::manager::Manager;
use xtask::skip::skip;

const BYTES: u64 = 1 << 20;

/// A directory with images, which outlives the daemons on them.
fn images<const N: usize>() -> (tempfile::TempDir, [PathBuf; N]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = std::array::from_fn(|nth| dir.path().join(format!("disk-{nth}.img")));
    paths.iter().for_each(|path| File::create(path).unwrap().set_len(BYTES).unwrap());
    (dir, paths)
}

fn launch(image: &Path, options: &[&str]) -> Launch {
    Launch::new("outboard-blk")
        .args(["--image".to_owned(), image.display().to_string()])
        .args(options.to_vec())
}

fn serve(image: &Path, options: &[&str]) -> Daemon {
    launch(image, options).serve().unwrap()
}

/// A daemon that is to be refused. It never gets as far as its socket.
fn refuse(image: &Path, options: &[&str]) -> Exit {
    let exit = launch(image, options).args(["--socket-path", "/nobody/gets/there"]).run();
    assert_eq!(exit.code, Some(4), "{exit}");
    assert!(exit.stderr.contains(&image.display().to_string()), "{exit}");
    exit
}

fn is_locked(image: &Path) -> bool {
    let file = File::options().read(true).write(true).open(image).unwrap();
    lock_file(file.as_fd(), Lock::Exclusive, 0, None) == Err(Errno::AGAIN)
}

#[test]
fn the_second_daemon_names_the_first_one() {
    let (_dir, [image]) = images();
    for options in [&[][..], &["--keeper", "off"], &["--direct"]] {
        let first = serve(&image, options);
        for second in [&[][..], &["--direct"], &["--read-only"]] {
            let told = refuse(&image, second).stderr;
            let holder = format!("process {} (outboard-blk) uses it", first.pid());
            assert!(told.contains(&holder) && told.lines().count() == 1, "{told}");
        }
        assert_eq!(first.terminate().code, Some(0));
        assert!(!is_locked(&image));
    }
}

#[test]
fn a_program_of_another_kind_is_named_too() {
    let (_dir, [image]) = images();
    let file = File::options().read(true).write(true).open(&image).unwrap();
    // QEMU locks single bytes at the beginning.
    lock_file(file.as_fd(), Lock::Shared, 100, Some(101)).unwrap();
    let told = refuse(&image, &["--direct"]).stderr;
    assert!(told.contains(&format!("process {} (", std::process::id())), "{told}");
    let reader = serve(&image, &["--read-only"]);
    drop(reader);
}

#[test]
fn readers_share_and_keep_writers_out() {
    let (_dir, [image]) = images();
    let first = serve(&image, &["--read-only"]);
    let second = serve(&image, &["--read-only", "--direct"]);
    refuse(&image, &[]);
    assert_eq!(first.terminate().code, Some(0));
    refuse(&image, &["--direct"]);
    assert_eq!(second.terminate().code, Some(0));
    serve(&image, &[]);
}

#[test]
fn n3_nobody_gets_the_lock_while_workers_die_and_follow() {
    let mut machine = BLK.boot_with(BLK.launch().args(["--direct"]), &Ram::new(RAM_BYTES), BLK.wants());
    let mut ring = machine.start_queue().unwrap();
    let image = machine.daemon.dir().join("disk.img");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let contender = scope.spawn(|| {
            let mut tries = 0_u32;
            while !over.load(Ordering::Relaxed) {
                assert!(is_locked(&image), "the image was free at try {tries}");
                tries += 1;
            }
            tries
        });
        for _ in 0..15 {
            machine.assert_serves(&mut ring);
            machine.daemon.kill_worker();
        }
        machine.assert_serves(&mut ring);
        over.store(true, Ordering::Relaxed);
        assert!(contender.join().unwrap() > 100);
    });
}

/// The service manager hands back what the keeper before had, whatever the file of options says by now.
#[test]
fn a_keeper_that_is_replaced_keeps_its_image_unless_another_one_is_meant() {
    let (dir, [image, other]) = images();
    let config = dir.path().join("blk.toml");
    let configure = |image: &Path, more: &str| {
        fs::write(&config, format!("image = \"{}\"\n{more}", image.display())).unwrap();
    };
    configure(&image, "");
    let manager = Manager::new(16);
    let launch =
        manager.of(Launch::new("outboard-blk").args(["--config".to_owned(), config.display().to_string()]));
    let mut daemon = launch.serve().unwrap();
    let until = tests::wait::deadline();
    while !daemon.stderr().contains("Listening") {
        assert!(Instant::now() < until, "{}", daemon.stderr());
    }
    // Read-only from here on, past the page cache, read-write again, and another one.
    let steps = [
        (&image, "", [true, false]),
        (&image, "read-only = true\n", [true, false]),
        (&image, "read-only = true\ndirect = true\n", [true, false]),
        (&image, "direct = true\n", [true, false]),
        (&image, "", [true, false]),
        (&other, "", [false, true]),
        (&image, "direct = true\n", [true, false]),
    ];
    for (nth, (now, more, locked)) in (2..).zip(steps) {
        configure(now, more);
        daemon.kill9();
        daemon.start_again(manager.stored());
        let serves = || daemon.stderr().matches("Listening").count() == nth;
        let until = tests::wait::deadline();
        // What was stored by the one before is stored no longer then.
        while !serves() || [&image, &other].map(|image| is_locked(image)) != locked {
            assert!(Instant::now() < until, "{now:?} {more}: {}", daemon.stderr());
        }
        let shared = more.contains("read-only");
        let file = File::open(now).unwrap();
        assert_eq!(lock_file(file.as_fd(), Lock::Shared, 0, None).is_ok(), shared, "{more}");
    }
    assert_eq!(daemon.stop().code, Some(0));
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(image: &Path) -> Result<Loop, String> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
        let made = made.map_err(|error| format!("losetup: {error}"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if made.status.success() { Ok(Loop(said(&made.stdout).into())) } else { Err(said(&made.stderr)) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_locked_like_a_file() {
    let (_dir, [image]) = images();
    let device = match Loop::over(&image) {
        Ok(device) => device,
        Err(obstacle) => return skip("loop-device", &obstacle),
    };
    let first = serve(&device.0, &["--direct"]);
    let told = refuse(&device.0, &[]).stderr;
    assert!(told.contains(&format!("process {} (outboard-blk)", first.pid())), "{told}");
    assert_eq!(first.terminate().code, Some(0));
    serve(&device.0, &["--read-only"]);
}
