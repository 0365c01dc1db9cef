//! vCPUs: one thread each, from the first instruction until the machine stops it.
//!
//! A [`Vcpu`] belongs to whoever holds it: the builder, then the thread that runs it ([`Vcpu::spawn`]), then the
//! machine again ([`VcpuThread::stop`]), which may reset it and start it once more. A thread ends by itself only
//! when the guest asked for something that stops the machine, or when it crashed; the reason goes through the
//! [`Outbox`] to the main loop.
//!
//! Stopping is free of races: `immediate_exit` is set through a second mapping of the vCPU's shared page before the
//! signal is sent, so a thread that was just about to enter the guest comes straight back.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use backends::sandbox::Filter;
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::cpuid::Template;
use super::event::Event;
use super::registers::Reset;
use super::{KvmError, Vm, call};
use crate::boot::Entry;
use crate::bus::Bus;
use crate::layout::PAGE_BYTES;
use crate::memory::GuestRam;
use crate::power::Request;

/// A vCPU thread calls a few device models and writes a line at most.
const STACK_BYTES: usize = 256 << 10;
/// Longest x86 instruction.
const INSTRUCTION_BYTES: u64 = 15;
/// `KVM_INTERNAL_ERROR_EMULATION`, and its flag that instruction bytes follow.
const SUBERROR_EMULATION: u32 = 1;
const FLAG_INSTRUCTION_BYTES: u64 = 1;

/// Why a vCPU stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// The guest asked for it.
    Request(Request),
    /// The guest cannot go on.
    Crash(Crash),
    /// The thread itself failed; its own message is on standard error.
    Lost,
}

/// How a guest came to its end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crash {
    /// An exception in the handler of an exception in the handler of an exception.
    #[error("the guest crashed: triple fault on CPU {cpu}")]
    TripleFault {
        /// The vCPU.
        cpu: u8,
    },
    /// KVM gave up.
    #[error(
        "the guest was stopped by a KVM internal error: sub-error {suberror} ({}), CPU {cpu}, RIP {rip:#x}, code {code}; \
         `outboard check` tells which guests this host can run",
        suberror_name(*.suberror)
    )]
    InternalError {
        /// The vCPU.
        cpu: u8,
        /// `kvm_run.internal.suberror`.
        suberror: u32,
        /// Address of the instruction.
        rip: u64,
        /// The instruction.
        code: Code,
    },
    /// The processor refused the guest's state.
    #[error("the guest was stopped: the processor refused to enter it on CPU {cpu}, reason {reason:#x}")]
    FailEntry {
        /// The vCPU.
        cpu: u8,
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// The guest told KVM that it crashed.
    #[error("the guest reported a crash on CPU {cpu}")]
    Reported {
        /// The vCPU.
        cpu: u8,
    },
    /// An exit that this machine never asks for.
    #[error("the guest was stopped: unexpected KVM exit on CPU {cpu}: {exit}")]
    UnexpectedExit {
        /// The vCPU.
        cpu: u8,
        /// Its name.
        exit: String,
    },
    /// `KVM_RUN` itself failed.
    #[error("the guest was stopped: KVM_RUN failed on CPU {cpu}: {cause}")]
    Run {
        /// The vCPU.
        cpu: u8,
        /// What it said.
        cause: kvm_ioctls::Error,
    },
}

/// Instruction bytes, to be shown in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
pub struct Code(Vec<u8>);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("unreadable");
        }
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(" "))
    }
}

/// Names of `KVM_INTERNAL_ERROR_*`.
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        SUBERROR_EMULATION => "an instruction that KVM cannot emulate",
        2 => "simultaneous exceptions",
        3 => "an exception while an event was delivered",
        4 => "an unexpected exit reason",
        _ => "unknown",
    }
}

/// Carries the events of all vCPUs to the main loop and wakes it.
pub struct Outbox {
    sender: Sender<VcpuEvent>,
    wake: Arc<Event>,
}

impl Outbox {
    /// An outbox, the other end of it, and what is raised with each event.
    pub fn new() -> io::Result<(Arc<Outbox>, Receiver<VcpuEvent>, Arc<Event>)> {
        let (sender, receiver) = channel();
        let wake = Arc::new(Event::new()?);
        Ok((Arc::new(Outbox { sender, wake: Arc::clone(&wake) }), receiver, wake))
    }

    fn send(&self, event: VcpuEvent) {
        // Nobody listens any more only when the process is about to end.
        let _ = self.sender.send(event);
        self.wake.raise();
    }
}

/// A vCPU that does not run.
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    run_bytes: usize,
    reset: Reset,
    ram: Arc<GuestRam>,
}

impl Vcpu {
    /// Makes the vCPU of that index; index 0 is the boot CPU.
    pub fn new(vm: &Vm, cpuid: &Template, index: u8) -> Result<Vcpu, KvmError> {
        let fd = vm.fd().create_vcpu(u64::from(index)).map_err(call("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&cpuid.for_vcpu(index)?).map_err(call("KVM_SET_CPUID2"))?;
        let reset = Reset::of(&fd)?;
        Ok(Vcpu { index, fd, run_bytes: vm.fd().run_size(), reset, ram: Arc::clone(vm.ram()) })
    }

    /// Puts this vCPU, the boot CPU, in front of the kernel.
    pub fn enter(&self, entry: Entry) -> Result<(), KvmError> {
        self.reset.enter(&self.fd, entry)
    }

    /// Back to the state it was made in.
    pub fn reset(&mut self) -> Result<(), KvmError> {
        // An exit that was not answered yet (the write that asked for the reset) is finished by entering once more.
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
        self.reset.restore(&self.fd, self.index == 0)
    }

    /// Hands the vCPU to a thread of its own, which is confined by this filter before it enters the guest.
    pub fn spawn(self, bus: Arc<Bus>, outbox: Arc<Outbox>, filter: Filter) -> io::Result<VcpuThread> {
        let kick = KvmRunWrapper::mmap_from_fd(&self.fd, self.run_bytes)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .stack_size(STACK_BYTES)
            .spawn(move || self.thread(&bus, &outbox, &filter, &stopped))?;
        Ok(VcpuThread { thread, kick, stop })
    }

    fn thread(mut self, bus: &Bus, outbox: &Outbox, filter: &Filter, stop: &AtomicBool) -> Vcpu {
        let _farewell = Farewell(outbox);
        if let Err(error) = filter.apply() {
            tracing::error!("vCPU {} stands still: {error}", self.index);
            outbox.send(VcpuEvent::Lost);
        } else if let Some(event) = self.run(bus, stop) {
            outbox.send(event);
        }
        self
    }

    /// Runs the guest until it asks for something, crashes, or `stop` is set and the vCPU kicked.
    pub fn run(&mut self, bus: &Bus, stop: &AtomicBool) -> Option<VcpuEvent> {
        let cpu = self.index;
        loop {
            let exit = match self.fd.run() {
                Ok(exit) => exit,
                // EAGAIN: a vCPU that waited for its start-up message has just got it.
                Err(cause) if matches!(cause.errno(), libc::EINTR | libc::EAGAIN) => {
                    match stop.load(Ordering::Acquire) {
                        true => return None,
                        false => continue,
                    }
                }
                Err(cause) => return Some(VcpuEvent::Crash(Crash::Run { cpu, cause })),
            };
            bus.timings().kvm_exit();
            match exit {
                VcpuExit::IoIn(port, data) => bus.io_read(port, data),
                VcpuExit::MmioRead(gpa, data) => bus.mmio_read(gpa, data),
                VcpuExit::MmioWrite(gpa, data) => bus.mmio_write(gpa, data),
                VcpuExit::IoOut(port, data) => {
                    if let Some(request) = bus.io_write(port, data) {
                        return Some(VcpuEvent::Request(request));
                    }
                }
                VcpuExit::Intr => {}
                VcpuExit::InternalError => return Some(VcpuEvent::Crash(self.internal_error())),
                other => return Some(end(cpu, &other)),
            }
        }
    }

    fn internal_error(&mut self) -> Crash {
        // SAFETY: KVM has just reported KVM_EXIT_INTERNAL_ERROR, for which it fills this member of the union.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        let code = self.code_at(rip).unwrap_or_else(|| reported_code(internal.suberror, &internal.data));
        Crash::InternalError { cpu: self.index, suberror: internal.suberror, rip, code: Code(code) }
    }

    /// The bytes at a guest virtual address, as far as their page goes.
    fn code_at(&self, rip: u64) -> Option<Vec<u8>> {
        let translation = self.fd.translate_gva(rip).ok().filter(|t| t.valid != 0)?;
        let bytes = INSTRUCTION_BYTES.min(PAGE_BYTES - rip % PAGE_BYTES);
        let mut code = vec![0; usize::try_from(bytes).ok()?];
        self.ram.memory().read_slice(&mut code, GuestAddress(translation.physical_address)).ok()?;
        Some(code)
    }
}

/// The event of an exit after which the guest does not go on.
fn end(cpu: u8, exit: &VcpuExit) -> VcpuEvent {
    match exit {
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => VcpuEvent::Request(Request::PowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => VcpuEvent::Request(Request::Reset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => VcpuEvent::Crash(Crash::Reported { cpu }),
        VcpuExit::Shutdown => VcpuEvent::Crash(Crash::TripleFault { cpu }),
        VcpuExit::FailEntry(reason, _) => VcpuEvent::Crash(Crash::FailEntry { cpu, reason: *reason }),
        other => VcpuEvent::Crash(Crash::UnexpectedExit { cpu, exit: format!("{other:?}") }),
    }
}

/// The instruction that KVM itself reported with an emulation failure: flags, length, bytes.
fn reported_code(suberror: u32, data: &[u64; 16]) -> Vec<u8> {
    if suberror != SUBERROR_EMULATION || data[0] & FLAG_INSTRUCTION_BYTES == 0 {
        return Vec::new();
    }
    let bytes: Vec<u8> = data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
    let length = usize::from(bytes[0]).min(bytes.len() - 1);
    bytes[1..=length].to_vec()
}

/// Tells the main loop when a vCPU thread unwinds, which would otherwise leave the machine standing still.
struct Farewell<'a>(&'a Outbox);

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send(VcpuEvent::Lost);
        }
    }
}

/// A vCPU while it runs.
pub struct VcpuThread {
    thread: JoinHandle<Vcpu>,
    kick: KvmRunWrapper,
    stop: Arc<AtomicBool>,
}

impl VcpuThread {
    /// Stops the thread, wherever it is, and takes the vCPU back; `None` when the thread failed.
    pub fn stop(mut self) -> Option<Vcpu> {
        self.stop.store(true, Ordering::Release);
        self.kick.as_mut_ref().immediate_exit = 1;
        // A thread that has already ended cannot be signalled, and need not.
        let _ = self.thread.kill(SIGRTMIN());
        let mut vcpu = self.thread.join().ok()?;
        vcpu.fd.set_kvm_immediate_exit(0);
        Some(vcpu)
    }
}

/// Installs the handler of the signal that interrupts `KVM_RUN`; it has nothing to do but exist.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(register_signal_handler(SIGRTMIN(), kicked)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_that_kvm_reports_are_shown_up_to_their_length() {
        let mut data = [0; 16];
        data[0] = FLAG_INSTRUCTION_BYTES;
        data[1] = u64::from_le_bytes([9, 1, 2, 3, 4, 5, 6, 7]);
        data[2] = u64::from_le_bytes([8, 9, 10, 0, 0, 0, 0, 0]);
        assert_eq!(reported_code(SUBERROR_EMULATION, &data), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        data[1] |= 0xFF;
        assert_eq!(reported_code(SUBERROR_EMULATION, &data).len(), 15);
        assert!(reported_code(2, &data).is_empty());
        data[0] = 0;
        assert!(reported_code(SUBERROR_EMULATION, &data).is_empty());
    }

    #[test]
    fn an_internal_error_is_one_line_with_all_there_is_to_know() {
        let code = Code(vec![0x0F, 0x57, 0xC0]);
        let crash = Crash::InternalError { cpu: 1, suberror: 1, rip: 0x1234, code }.to_string();
        assert!(crash.contains(
            "sub-error 1 (an instruction that KVM cannot emulate), CPU 1, RIP 0x1234, code 0f 57 c0"
        ));
        assert_eq!(crash.lines().count(), 1);
        assert_eq!(Code(Vec::new()).to_string(), "unreadable");
    }
}
