//! Debian guests under our VMM, for the tests of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::daemon::binary;
use tests::vmm::{Ended, Run, Vmm};
use xtask::initramfs::Initramfs;
use xtask::kernel::{Flavour, Kernel};
use xtask::{kvm_host, skip};

/// A guest under a KVM that is itself emulated is up and down within this time.
pub const LIMIT: Duration = Duration::from_secs(120);

const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off init_on_alloc=0 tsc=reliable";

/// Whether this host can run these tests; says so when it cannot.
pub fn can_run() -> bool {
    let vmm = binary("outboard");
    let obstacle = kvm_host::obstacle(vmm.parent().unwrap_or(Path::new(".")));
    if let Some(obstacle) = &obstacle {
        skip::skip("kvm-linux", &format!("this host's KVM cannot run Linux: {obstacle}"));
    }
    obstacle.is_none()
}

/// `outboard run` with a Debian guest that loads `modules` and runs `script`.
pub fn guest(modules: &[&str], script: &str) -> Run {
    let kernel = Kernel::debian(Flavour::Cloud).unwrap();
    run(&kernel.image, &kernel.modules(modules).unwrap(), script)
}

pub fn run(kernel: &Path, modules: &[PathBuf], script: &str) -> Run {
    let run = Run::new(binary("outboard"));
    let initrd = run.dir().join("initrd");
    Initramfs::new(modules, script).unwrap().write(&initrd).unwrap();
    run.option("--kernel", &kernel.display().to_string())
        .option("--initrd", &initrd.display().to_string())
        .option("--cmdline", COMMAND_LINE)
        .memory("256M")
}

pub fn powered_off(vmm: Vmm) -> Ended {
    let ended = vmm.finish_within(LIMIT);
    ended.code(0);
    ended
}
