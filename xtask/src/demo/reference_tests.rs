//! The demo's guest and its talk with the host, on devices that are not ours: those of QEMU itself. When this passes
//! and the demo does not, the fault is in our devices.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::conversation::Conversation;
use super::{MODULES, disk, guest_script};
use crate::initramfs::Initramfs;
use crate::kernel::{Flavour, Kernel};
use crate::process::wait_until;
use crate::qemu::Machine;
use crate::{packages, workspace};

fn machine(dir: &Path) -> Machine {
    let kernel = Kernel::debian(Flavour::Cloud).unwrap();
    let initrd = dir.join("initrd");
    Initramfs::new(&kernel.modules(&MODULES).unwrap(), &guest_script()).unwrap().write(&initrd).unwrap();
    let drive = format!("if=none,id=disk,format=raw,file={}", dir.join("disk").display());
    let console = format!("socket,id=console,server=on,wait=off,path={}", dir.join("console").display());
    Machine::new(&kernel.image, &initrd, 256, 1, dir)
        .arguments(&["-device", "virtio-rng-pci", "-drive", &drive, "-device", "virtio-blk-pci,drive=disk"])
        .arguments(&[
            "-chardev",
            &console,
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=console",
        ])
}

#[test]
fn qemu_own_devices_pass_the_demo() {
    packages::ensure().unwrap();
    let scratch = workspace::scratch().unwrap();
    let image = scratch.path().join("disk");
    let before = disk::random(disk::DISK_BYTES).unwrap();
    fs::write(&image, &before).unwrap();

    let machine = machine(scratch.path());
    let mut qemu = machine.start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let console = scratch.path().join("console");
    assert!(wait_until(deadline, || console.exists()).unwrap(), "{}", machine.last_words());
    let mut guest = Conversation::new(UnixStream::connect(&console).unwrap(), deadline, || Ok(())).unwrap();
    guest.init().unwrap();
    guest.console().unwrap();
    guest.random().unwrap();
    guest.disk(&before).unwrap();
    let nonce = disk::nonce().unwrap();
    guest.write(&nonce).unwrap();
    assert!(qemu.wait(Duration::from_secs(60), || ()).unwrap().success());
    assert_eq!(disk::difference(&image, &disk::expected(&before, &nonce)).unwrap(), None);
}
