//! CPUID: what each vCPU says it is.
//!
//! In: what the host's KVM supports. Out: the same, with the topology of this machine (one package, one thread a
//! core), the APIC id of the one vCPU, and the bits that only user space can promise. Nothing is hidden: the guest
//! gets every feature that KVM offers.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, call};

/// Leaf 1: ECX bits.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1: EDX bit "EBX\[23:16\] is valid".
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001: ECX bit "HTT stands for cores" (AMD).
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0xB: level types in ECX\[15:8\].
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The host's answer, to be specialised for each vCPU.
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl Template {
    /// Asks the host once for all vCPUs of a machine.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Template, KvmError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        let mut template = Template { entries: supported.as_slice().to_vec(), cpus: u32::from(cpus) };
        template.replace_topology_leaf();
        // KVM's local APIC has the deadline timer even where the host's has not, but says so only by capability.
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            template.entries.iter_mut().filter(|e| e.function == 1).for_each(|e| e.ecx |= TSC_DEADLINE);
        }
        Ok(template)
    }

    /// The table of one vCPU, whose APIC id is its index.
    pub fn for_vcpu(&self, index: u8) -> Result<CpuId, KvmError> {
        let id = u32::from(index);
        let entries: Vec<_> = self.entries.iter().map(|entry| self.specialise(*entry, id)).collect();
        CpuId::from_entries(&entries).map_err(|_| KvmError::Capability("a CPUID table of usable size"))
    }

    /// Leaf 0xB as this machine needs it: thread level, core level, end of list.
    fn replace_topology_leaf(&mut self) {
        let known = self.entries.iter().any(|e| e.function == 0xB);
        self.entries.retain(|e| !matches!(e.function, 0xB | 0x1F));
        if !known {
            return;
        }
        let core_bits = self.cpus.next_power_of_two().trailing_zeros();
        for (index, eax, ebx, level) in
            [(0, 0, 1, LEVEL_THREAD), (1, core_bits, self.cpus, LEVEL_CORE), (2, 0, 0, 0)]
        {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            let ecx = level | index;
            self.entries.push(kvm_cpuid_entry2 {
                function: 0xB,
                index,
                flags,
                eax,
                ebx,
                ecx,
                ..Default::default()
            });
        }
    }

    fn specialise(&self, mut entry: kvm_cpuid_entry2, id: u32) -> kvm_cpuid_entry2 {
        let several = self.cpus > 1;
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0xFFFF) | self.cpus << 16 | id << 24;
                entry.ecx |= X2APIC | HYPERVISOR;
                set(&mut entry.edx, HTT, several);
            }
            // Cache sharing: level 3 by all cores, the others by none. EAX\[31:26\]: cores of the package (Intel).
            0x4 if entry.eax & 0x1F != 0 => {
                let cores = (self.cpus - 1).min(0x3F);
                entry.eax = (entry.eax & 0x3FFF) | self.sharing(entry.eax) | cores << 26;
            }
            0x8000_001D if entry.eax & 0x1F != 0 => {
                entry.eax = (entry.eax & 0x3FFF) | self.sharing(entry.eax);
            }
            0xB => entry.edx = id,
            0x8000_0001 if !several => entry.ecx &= !CMP_LEGACY,
            // Cores of the package and the width of their part of the APIC id (AMD; zero on Intel).
            0x8000_0008 if entry.ecx != 0 => {
                let bits = self.cpus.next_power_of_two().trailing_zeros();
                entry.ecx = (self.cpus - 1) | bits << 12;
            }
            0x8000_001E => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xFF, 0),
            _ => {}
        }
        entry
    }

    /// EAX\[25:14\] of a cache leaf: how many logical CPUs share the cache, less one.
    fn sharing(&self, eax: u32) -> u32 {
        let level = (eax >> 5) & 0b111;
        if level >= 3 { (self.cpus - 1) << 14 } else { 0 }
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(functions: &[(u32, u32)], cpus: u32) -> Template {
        let entries = functions
            .iter()
            .map(|(function, index)| kvm_cpuid_entry2 {
                function: *function,
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut template = Template { entries, cpus };
        template.replace_topology_leaf();
        template
    }

    fn entry(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let cpuid = template(&[(1, 0), (0xB, 0)], 3).for_vcpu(2).unwrap();
        let leaf = entry(&cpuid, 1, 0);
        assert_eq!((leaf.ebx >> 24, leaf.ebx >> 16 & 0xFF), (2, 3));
        assert_eq!((leaf.edx & HTT, leaf.ecx & HYPERVISOR), (HTT, HYPERVISOR));
        assert_eq!(entry(&cpuid, 0xB, 0).edx, 2);
    }

    #[test]
    fn topology_is_one_package_of_single_threaded_cores() {
        let cpuid = template(&[(0xB, 0), (0xB, 1), (0x1F, 0)], 3).for_vcpu(0).unwrap();
        let (thread, core) = (entry(&cpuid, 0xB, 0), entry(&cpuid, 0xB, 1));
        assert_eq!((thread.eax, thread.ebx, thread.ecx), (0, 1, 0x100));
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
        assert_eq!(entry(&cpuid, 0xB, 2).ecx, 2);
        assert!(cpuid.as_slice().iter().all(|e| e.function != 0x1F));
    }

    #[test]
    fn a_host_without_the_topology_leaf_does_not_get_one() {
        let cpuid = template(&[(1, 0)], 2).for_vcpu(0).unwrap();
        assert_eq!(cpuid.as_slice().len(), 1);
    }
}
