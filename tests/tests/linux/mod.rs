//! Debian guests under our VMM, for the tests of them.

use std::path::Path;
use std::time::Duration;

use tests::daemon::binary;
use tests::vmm::{Ended, Run, Vmm};
use xtask::initramfs::Initramfs;
use xtask::kernel::{Flavour, Kernel};
use xtask::{kvm_host, skip};

/// A guest under a KVM that is itself emulated is up and down within this time.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A program and its libraries stand in a guest's memory twice while it boots.
const MEMORY: &str = "256M";
const MEMORY_WITH_PROGRAMS: &str = "512M";
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

/// `outboard run` with a Debian guest that loads `modules`, has `programs` of this host, and runs `script`.
pub fn guest(modules: &[&str], programs: &[&str], script: &str) -> Run {
    let kernel = Kernel::debian(Flavour::Cloud).unwrap();
    let archive = Initramfs::new(&kernel.modules(modules).unwrap(), script).unwrap();
    let archive = programs.iter().fold(archive, |archive, path| archive.program(path.as_ref()).unwrap());
    run(&kernel.image, archive).memory(if programs.is_empty() { MEMORY } else { MEMORY_WITH_PROGRAMS })
}

pub fn run(kernel: &Path, archive: Initramfs) -> Run {
    let run = Run::new(binary("outboard"));
    let initrd = run.dir().join("initrd");
    archive.write(&initrd).unwrap();
    run.option("--kernel", &kernel.display().to_string())
        .option("--initrd", &initrd.display().to_string())
        .option("--cmdline", COMMAND_LINE)
        .memory(MEMORY)
}

pub fn powered_off(vmm: Vmm) -> Ended {
    let ended = vmm.finish_within(LIMIT);
    ended.code(0);
    ended
}
