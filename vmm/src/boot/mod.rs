//! From files to a guest RAM that is ready to run.
//!
//! [`linux`] knows kernels and initramfs, [`params`] the data that a kernel finds when it starts, [`acpi`] the
//! tables that describe the machine. All of it is written once, before the first instruction; none is read back.

pub mod acpi;
pub mod linux;
pub mod params;

/// How the boot CPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 32-bit protected mode without paging, RBX points to the start info (Xen PVH boot ABI).
    Pvh,
    /// 64-bit long mode, RSI points to the zero page (Linux x86 boot protocol, "64-bit boot protocol").
    Linux64,
}

/// Where the boot CPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// How to enter.
    pub protocol: Protocol,
    /// Guest physical address of the first instruction.
    pub address: u64,
}
