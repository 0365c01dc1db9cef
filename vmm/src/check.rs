//! `outboard check`: what this host can run, and what to do when that is not enough.
//!
//! It asks KVM what a machine needs, makes sealed RAM, and then runs a guest of 100 bytes that executes three
//! instructions without which Linux does not start: SSE, `cmpxchg16b` and `int3`. A KVM that is a software
//! implementation stops there with an internal error; it still runs small guests that avoid them. The kernel is asked
//! too what it can confine processes with.

use std::sync::Arc;
use std::time::Instant;

use backends::sandbox::{Filter, host};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{Entry, Protocol, params};
use crate::bus::Bus;
use crate::error::{Error, system};
use crate::kvm::cpuid::Template;
use crate::kvm::vcpu::{Crash, Outbox, Vcpu, VcpuEvent, install_kick_handler};
use crate::kvm::{self, Vm};
use crate::layout;
use crate::memory::{GuestRam, MIN_RAM_BYTES};
use crate::pci::PciRoot;
use crate::power::Request;
use crate::timings::Timings;

/// The guest gets this long for its 25 instructions.
const PROBE_DEADLINE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Where the guest notes which instruction it is about to try: an index into [`STEPS`], from 1.
const PROGRESS: u64 = 0x8000;
const STEPS: [&str; 3] = ["SSE", "cmpxchg16b", "int3"];
/// What LIDT loads, and the table it names: one gate, for vector 3.
const IDTR: u64 = 0x8030;
const IDT: u64 = 0x3000;
/// Offset of the handler in [`PROBE`].
const HANDLER: u64 = 0x64;

/// The guest, entered in long mode at 1 MiB.
#[rustfmt::skip]
const PROBE: [u8; 102] = [
    0xBC, 0x00, 0x50, 0x00, 0x00,                         // mov  esp, 0x5000
    0xC6, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 1,          // mov  byte [PROGRESS], 1
    0x0F, 0x20, 0xC0,                                     // mov  rax, cr0
    0x24, 0xFB,                                           // and  al, ~EM
    0x0C, 0x02,                                           // or   al, MP
    0x0F, 0x22, 0xC0,                                     // mov  cr0, rax
    0x0F, 0x20, 0xE0,                                     // mov  rax, cr4
    0x66, 0x0D, 0x00, 0x06,                               // or   ax, OSFXSR | OSXMMEXCPT
    0x0F, 0x22, 0xE0,                                     // mov  cr4, rax
    0x0F, 0x10, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,       // movups xmm0, [0x100000]
    0x0F, 0x11, 0x04, 0x25, 0x10, 0x80, 0x00, 0x00,       // movups [0x8010], xmm0
    0xC6, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 2,          // mov  byte [PROGRESS], 2
    0xBF, 0x20, 0x80, 0x00, 0x00,                         // mov  edi, 0x8020
    0xF0, 0x48, 0x0F, 0xC7, 0x0F,                         // lock cmpxchg16b [rdi]
    0xC6, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 3,          // mov  byte [PROGRESS], 3
    0x0F, 0x01, 0x1C, 0x25, 0x30, 0x80, 0x00, 0x00,       // lidt [IDTR]
    0xCC,                                                 // int3
    0xC6, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 4,          // mov  byte [PROGRESS], 4
    0x66, 0xBA, 0x00, 0x06,                               // mov  dx, SLEEP_CONTROL
    0xB0, 0x34,                                           // mov  al, S5 | SLP_EN
    0xEE,                                                 // out  dx, al
    0xF4,                                                 // hlt
    0x48, 0xCF,                                           // HANDLER: iretq
];

/// Which guests this host can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guests {
    /// Unmodified Linux.
    Linux,
    /// Guests that avoid what this KVM cannot execute.
    Small,
    /// None at all.
    None,
}

/// What processes can be confined with.
#[derive(Debug, Serialize)]
pub struct Sandbox {
    /// Filters of system calls.
    pub seccomp: bool,
    /// Landlock, by the number of its ABI.
    pub landlock_abi: Option<u8>,
}

/// The answer, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What can be run.
    pub guests: Guests,
    /// The instruction that this KVM stopped at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<&'static str>,
    /// What there is for sandboxes.
    pub sandbox: Sandbox,
    /// What is wrong, and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Prints what this host can run; an error (exit code 3) when that is not Linux.
pub fn run(json: bool) -> Result<(), Error> {
    let report = examine();
    if json {
        println!("{}", serde_json::to_string(&report).map_err(system("write JSON"))?);
    } else {
        if report.guests == Guests::Linux {
            println!("Linux guests: this host can run them");
        }
        println!("{}", report.sandbox.told());
    }
    match report.problem {
        Some(problem) => Err(Error::CheckFailed(problem)),
        None => Ok(()),
    }
}

impl Sandbox {
    fn told(&self) -> String {
        let seccomp = if self.seccomp { "seccomp" } else { "no seccomp" };
        match self.landlock_abi {
            Some(abi) => format!("Sandbox: {seccomp}, Landlock ABI {abi}"),
            None => format!("Sandbox: {seccomp}, no Landlock"),
        }
    }
}

/// Looks at this host.
pub fn examine() -> Report {
    let (guests, missing, no_guests) = examine_kvm();
    let (seccomp, landlock) = (host::seccomp(), host::landlock());
    let sandbox = Sandbox { seccomp: seccomp.is_ok(), landlock_abi: landlock.as_ref().ok().copied() };
    let no_sandbox = seccomp.and(landlock.map(drop)).err().map(|error| error.to_string());
    Report { guests, missing, sandbox, problem: no_guests.or(no_sandbox) }
}

/// Which guests can be run, which instruction cannot, and what is wrong.
fn examine_kvm() -> (Guests, Option<&'static str>, Option<String>) {
    match probe() {
        Ok(Outcome::Finished) => (Guests::Linux, None, None),
        Ok(Outcome::StoppedAt(step, how)) => {
            let problem = format!(
                "small guests only: this host's KVM cannot run {step} in a guest's kernel ({how}), so Linux will \
                 not start; use a host with hardware virtualisation (VMX or SVM), or an emulated one: \
                 `cargo xtask kvm-host -- COMMAND`"
            );
            (Guests::Small, Some(step), Some(problem))
        }
        Err(error) => (Guests::None, None, Some(format!("no guests: {error}"))),
    }
}

/// How far the probe came.
enum Outcome {
    Finished,
    StoppedAt(&'static str, String),
}

fn probe() -> Result<Outcome, Error> {
    let kvm = kvm::open()?;
    let vm = Vm::new(kvm::create(&kvm)?, GuestRam::new(MIN_RAM_BYTES)?)?;
    write_guest(vm.ram()).map_err(|_| system("write the probe")(std::io::Error::other("RAM")))?;
    let vcpu = Vcpu::new(&vm, &Template::new(&kvm, 1)?, 0)?;
    vm.show_ram()?;
    vcpu.enter(Entry { protocol: Protocol::Linux64, address: layout::HIGH_RAM })?;
    let event = run_guest(vcpu)?;
    let progress: u8 = vm.ram().memory().read_obj(GuestAddress(PROGRESS)).unwrap_or_default();
    let step = STEPS.get(usize::from(progress).saturating_sub(1)).copied();
    Ok(match (event, step) {
        (Some(VcpuEvent::Request(Request::PowerOff)), None) => Outcome::Finished,
        (Some(VcpuEvent::Crash(Crash::InternalError { suberror, .. })), step) => {
            Outcome::StoppedAt(step.unwrap_or("a guest"), format!("internal error, sub-error {suberror}"))
        }
        (Some(VcpuEvent::Crash(crash)), step) => {
            Outcome::StoppedAt(step.unwrap_or("a guest"), crash.to_string())
        }
        (_, step) => Outcome::StoppedAt(step.unwrap_or("a guest"), "it never ended".to_owned()),
    })
}

fn write_guest(ram: &GuestRam) -> Result<(), u64> {
    let handler = layout::HIGH_RAM + HANDLER;
    // A 64-bit interrupt gate: offset in three pieces, selector 0x10, present, type 14.
    let gate = (handler & 0xFFFF) | 0x10 << 16 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48;
    let idtr: [u8; 10] = {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&0x3Fu16.to_le_bytes());
        bytes[2..].copy_from_slice(&IDT.to_le_bytes());
        bytes
    };
    params::write_long_mode_tables(ram)?;
    let pieces: [(u64, &[u8]); 3] =
        [(layout::HIGH_RAM, &PROBE), (IDT + 3 * 16, &gate.to_le_bytes()), (IDTR, &idtr)];
    for (address, bytes) in pieces {
        ram.memory().write_slice(bytes, GuestAddress(address)).map_err(|_| address)?;
    }
    Ok(())
}

/// Runs the probe on a thread, because a KVM that never comes back must not hold up the answer.
fn run_guest(vcpu: Vcpu) -> Result<Option<VcpuEvent>, Error> {
    install_kick_handler().map_err(system("install a signal handler"))?;
    let timings = Timings::new(Instant::now()).settled(None);
    let bus = Bus::new(Arc::new(PciRoot::new()), None, Arc::new(timings));
    let (outbox, events, wake) = Outbox::new().map_err(system("make an eventfd"))?;
    let thread =
        vcpu.spawn(Arc::new(bus), outbox, Filter::default()).map_err(system("start a vCPU thread"))?;
    rustix::event::poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&PROBE_DEADLINE))
        .map_err(system("wait for the probe"))?;
    thread.stop();
    Ok(events.try_recv().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_ends_where_its_handler_begins() {
        assert_eq!(PROBE[usize::try_from(HANDLER).unwrap()..], [0x48, 0xCF]);
    }
}
