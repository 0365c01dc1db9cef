//! The state in which a vCPU starts, and to which a reset returns it.
//!
//! The boot CPU starts in the kernel; the others wait for INIT and SIPI, as KVM made them. What KVM made is kept
//! ([`Reset`]), because a vCPU cannot be made twice: after a reset of the guest it gets this state back, and every
//! register through which KVM would go on writing into guest memory (clock, steal time, async page faults) is off.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_fpu, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::{KvmError, call};
use crate::boot::{Entry, Protocol, params};
use crate::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS_CLEAR: u64 = 1 << 1;

/// Selectors of the Linux 64-bit entry; PVH does not care which they are.
const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TASK: u16 = 0x20;
/// Segment types: execute/read accessed, read/write accessed, busy 32-bit TSS.
const TYPE_CODE: u8 = 0xB;
const TYPE_DATA: u8 = 0x3;
const TYPE_TASK: u8 = 0xB;
/// Limit of the TSS that PVH prescribes.
const TASK_LIMIT: u32 = 0x67;

/// MSRs that firmware would have set on each CPU: fast string operations; MTRRs on, memory write-back by default.
const FIRMWARE_MSRS: [(u32, u64); 2] = [(0x1A0, 1), (0x2FF, 1 << 11 | 6)];

/// MSRs that a guest may have set and a reset clears. First those by which KVM writes into guest memory.
const RESET_MSRS: [(u32, u64); 18] = [
    (0x12, 0),                      // KVM_SYSTEM_TIME
    (0x11, 0),                      // KVM_WALL_CLOCK
    (0x4B56_4D00, 0),               // KVM_WALL_CLOCK_NEW
    (0x4B56_4D01, 0),               // KVM_SYSTEM_TIME_NEW
    (0x4B56_4D02, 0),               // KVM_ASYNC_PF_EN
    (0x4B56_4D03, 0),               // KVM_STEAL_TIME
    (0x4B56_4D04, 0),               // KVM_PV_EOI_EN
    (0x6E0, 0),                     // TSC_DEADLINE
    (0x174, 0),                     // SYSENTER_CS
    (0x175, 0),                     // SYSENTER_ESP
    (0x176, 0),                     // SYSENTER_EIP
    (0x277, 0x0007_0406_0007_0406), // PAT
    (0xC000_0081, 0),               // STAR
    (0xC000_0082, 0),               // LSTAR
    (0xC000_0083, 0),               // CSTAR
    (0xC000_0084, 0),               // SFMASK
    (0xC000_0102, 0),               // KERNEL_GS_BASE
    (0xC000_0103, 0),               // TSC_AUX
];

/// What KVM gave a new vCPU, kept for a reset.
pub struct Reset {
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
}

impl Reset {
    /// Prepares a vCPU that has not run yet.
    pub fn of(vcpu: &VcpuFd) -> Result<Reset, KvmError> {
        set_msrs(vcpu, &FIRMWARE_MSRS);
        Ok(Reset {
            sregs: vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?,
            lapic: vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?,
        })
    }

    /// Returns a vCPU that has stopped to the state it was made in.
    pub fn restore(&self, vcpu: &VcpuFd, boot: bool) -> Result<(), KvmError> {
        let regs = kvm_regs { rflags: RFLAGS_CLEAR, ..Default::default() };
        let fpu = kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() };
        let debug = kvm_debugregs { dr6: 0xFFFF_0FF0, dr7: 0x400, ..Default::default() };
        let mp_state = if boot { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
        set_msrs(vcpu, &RESET_MSRS);
        set_msrs(vcpu, &FIRMWARE_MSRS);
        vcpu.set_sregs(&self.sregs).map_err(call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))?;
        vcpu.set_fpu(&fpu).map_err(call("KVM_SET_FPU"))?;
        vcpu.set_debug_regs(&debug).map_err(call("KVM_SET_DEBUGREGS"))?;
        vcpu.set_vcpu_events(&kvm_vcpu_events::default()).map_err(call("KVM_SET_VCPU_EVENTS"))?;
        vcpu.set_lapic(&self.lapic).map_err(call("KVM_SET_LAPIC"))?;
        vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(call("KVM_SET_MP_STATE"))?;
        // Where the host has no XSAVE there is no XCR0 to reset.
        let _ = vcpu.set_xcrs(&initial_xcr0());
        Ok(())
    }

    /// Puts the boot CPU in front of the kernel's first instruction.
    pub fn enter(&self, vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
        let (sregs, regs) = match entry.protocol {
            Protocol::Pvh => (protected_mode(self.sregs), start(entry, layout::PVH_START_INFO, 0)),
            Protocol::Linux64 => (long_mode(self.sregs), start(entry, 0, layout::ZERO_PAGE)),
        };
        vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))?;
        Ok(())
    }
}

/// XCR0 as after power-on: x87 only.
fn initial_xcr0() -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = 1;
    xcrs
}

/// Sets each MSR that this KVM knows; the others do not exist for the guest either.
fn set_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) {
    for (index, data) in msrs {
        let entry = kvm_msr_entry { index: *index, data: *data, ..Default::default() };
        let known = Msrs::from_entries(&[entry]).map(|msrs| vcpu.set_msrs(&msrs));
        if !matches!(known, Ok(Ok(1))) {
            tracing::debug!(msr = format_args!("{index:#x}"), "this KVM does not take an MSR");
        }
    }
}

fn start(entry: Entry, rbx: u64, rsi: u64) -> kvm_regs {
    kvm_regs { rip: entry.address, rbx, rsi, rflags: RFLAGS_CLEAR, ..Default::default() }
}

/// Flat 32-bit segments, paging off (Xen PVH boot ABI).
fn protected_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    set_segments(&mut sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs
}

/// 64-bit code, the first 4 GiB mapped one to one (Linux x86 boot protocol, "64-bit boot protocol").
fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    set_segments(&mut sregs, true);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = params::GDT_LIMIT;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    let code = segment(SELECTOR_CODE, TYPE_CODE);
    sregs.cs = kvm_segment { l: u8::from(long), db: u8::from(!long), ..code };
    let data = segment(SELECTOR_DATA, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: TASK_LIMIT, s: 0, db: 0, g: 0, ..segment(SELECTOR_TASK, TYPE_TASK) };
}

fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { selector, type_, limit: u32::MAX, present: 1, s: 1, db: 1, g: 1, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::{self, Vm};
    use crate::memory::{GuestRam, MIN_RAM_BYTES};

    const KVM_SYSTEM_TIME_NEW: u32 = 0x4B56_4D01;

    fn msr(vcpu: &VcpuFd, index: u32) -> u64 {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).unwrap();
        assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
        msrs.as_slice()[0].data
    }

    #[test]
    fn a_reset_returns_a_vcpu_to_the_state_it_was_made_in() {
        let fd = kvm::create(&kvm::open().unwrap()).unwrap();
        let vm = Vm::new(fd, GuestRam::new(MIN_RAM_BYTES).unwrap()).unwrap();
        vm.show_ram().unwrap();
        for (index, mp_state) in [(0, KVM_MP_STATE_RUNNABLE), (1, KVM_MP_STATE_UNINITIALIZED)] {
            let vcpu = vm.fd().create_vcpu(index).unwrap();
            let reset = Reset::of(&vcpu).unwrap();
            let made = (vcpu.get_sregs().unwrap(), vcpu.get_lapic().unwrap());
            reset.enter(&vcpu, Entry { protocol: Protocol::Linux64, address: 0x10_0200 }).unwrap();
            set_msrs(&vcpu, &[(KVM_SYSTEM_TIME_NEW, 0x1000 | 1), (0xC000_0082, 0xFFFF)]);
            vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
            let mut lapic = made.1;
            lapic.regs[0xF0] = 0x7F;
            vcpu.set_lapic(&lapic).unwrap();

            reset.restore(&vcpu, index == 0).unwrap();
            assert_eq!(vcpu.get_sregs().unwrap(), made.0);
            assert_eq!(vcpu.get_lapic().unwrap().regs, made.1.regs);
            assert_eq!(vcpu.get_regs().unwrap().rip, 0);
            assert_eq!(vcpu.get_mp_state().unwrap().mp_state, mp_state);
            assert_eq!((msr(&vcpu, KVM_SYSTEM_TIME_NEW), msr(&vcpu, 0xC000_0082)), (0, 0));
        }
    }
}
