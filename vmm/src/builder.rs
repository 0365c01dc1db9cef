//! From a [`Plan`] to a running machine, one type a step.
//!
//! ```text
//! Plan ─open─► Opened ─create─► Created ─load─► Loaded ─attach─► Attached ─start─► Machine
//!      files          VM and RAM        kernel          devices           sandbox, threads
//! ```
//! A step that fails drops what the earlier ones made, so that nothing is left behind. Cheap mistakes come first:
//! files are opened before KVM is asked for anything. Files that are written come last: a start that is refused
//! neither makes one nor empties one.

use std::sync::Arc;
use std::time::Instant;

use backends::options::check_listen;
use kvm_ioctls::Kvm;
use tracing::debug;

use crate::api::{self, Api, ApiSocket, remote};
use crate::boot::linux::BootFiles;
use crate::boot::{Entry, acpi};
use crate::bus::Bus;
use crate::config::{OnReset, Plan};
use crate::error::{Error, system};
use crate::kvm::irq::IrqRouter;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::{self, KvmError, Vm, cpuid};
use crate::layout;
use crate::machine::{Machine, Parts};
use crate::memory::GuestRam;
use crate::output::OutputFile;
use crate::pci::PciRoot;
use crate::sandbox::Sandbox;
use crate::serial::{SerialMode, SerialPort};
use crate::timings::{Event, Timings};
use crate::vhost::{self, DeviceThread, VhostPciDevice};

/// Builds and starts the machine; `start` is when the process began.
pub fn start(plan: Plan, start: Instant) -> Result<Machine, Error> {
    Opened::open(plan, start)?.create()?.load()?.attach()?.start()
}

/// Looks at the files that the machine would be built from, and at nothing else of the host.
pub fn check(plan: &Plan) -> Result<(), Error> {
    BootFiles::open(&plan.kernel, plan.initrd.as_deref(), &plan.cmdline)?;
    if let Some(path) = &plan.api_socket {
        check_listen(api::OPTION, path)?;
    }
    Ok(())
}

/// The operator's files are open.
struct Opened {
    plan: Plan,
    files: BootFiles,
    timings: Timings,
    sandbox: Sandbox,
}

/// The virtual machine exists, with RAM and interrupt controllers.
struct Created {
    opened: Opened,
    kvm: Kvm,
    vm: Vm,
}

/// The kernel is in RAM.
struct Loaded {
    created: Created,
    acpi: Vec<u8>,
    entry: Entry,
}

/// Every device answered and sits on the bus.
struct Attached {
    loaded: Loaded,
    pci: Arc<PciRoot>,
    devices: Vec<Arc<VhostPciDevice>>,
    threads: Vec<DeviceThread>,
}

impl Opened {
    fn open(plan: Plan, start: Instant) -> Result<Opened, Error> {
        let timings = Timings::new(start);
        timings.event(Event::Main);
        let sandbox = Sandbox::new(plan.sandbox)?;
        let files = BootFiles::open(&plan.kernel, plan.initrd.as_deref(), &plan.cmdline)?;
        Ok(Opened { plan, files, timings, sandbox })
    }

    fn create(self) -> Result<Created, Error> {
        let kvm = kvm::open()?;
        let (asked, most) = (self.plan.cpus, kvm.get_max_vcpus());
        if usize::from(asked) > most {
            return Err(KvmError::Cpus { asked, most }.into());
        }
        let vm = kvm::create(&kvm)?;
        self.timings.event(Event::KvmReady);
        let vm = Vm::new(vm, GuestRam::new(self.plan.memory_bytes)?)?;
        self.timings.event(Event::Memory);
        Ok(Created { opened: self, kvm, vm })
    }
}

impl Created {
    fn load(self) -> Result<Loaded, Error> {
        let opened = &self.opened;
        let acpi = acpi::tables(opened.plan.cpus, opened.plan.serial != SerialMode::Off);
        let entry = opened.files.load(self.vm.ram(), &acpi)?;
        opened.timings.event(Event::KernelLoaded);
        Ok(Loaded { created: self, acpi, entry })
    }
}

impl Loaded {
    fn attach(self) -> Result<Attached, Error> {
        let vm = &self.created.vm;
        let irq = Arc::new(IrqRouter::new(Arc::clone(vm.fd())));
        let pci = Arc::new(PciRoot::new());
        let sandbox = &self.created.opened.sandbox;
        let (mut devices, mut threads) = (Vec::new(), Vec::new());
        for spec in &self.created.opened.plan.devices {
            let connect = || vhost::connect(spec, vm.ram(), vm.fd(), &irq);
            let (device, thread) = sandbox.as_later(connect)??;
            let slot = pci.add(Arc::clone(&device) as _)?;
            debug!(id = spec.id, slot, "device attached");
            devices.push(device);
            threads.push(thread);
        }
        self.created.opened.timings.event(Event::Devices);
        Ok(Attached { loaded: self, pci, devices, threads })
    }
}

impl Attached {
    fn start(self) -> Result<Machine, Error> {
        let Attached { loaded, pci, devices, threads } = self;
        let Loaded { created: Created { opened, kvm, vm }, acpi, entry } = loaded;
        let cpuid = cpuid::Template::new(&kvm, opened.plan.cpus)?;
        let vcpus = (0..opened.plan.cpus)
            .map(|index| Vcpu::new(&vm, &cpuid, index))
            .collect::<Result<Vec<_>, _>>()?;
        vm.show_ram()?;
        let Opened { plan, files, timings, sandbox } = opened;
        let (serial, timings, socket) = outputs(&plan, timings)?;
        if let Some(serial) = &serial {
            let line = vm.fd().register_irqfd(serial.irq().for_kvm(), layout::COM1_GSI);
            line.map_err(kvm::call("KVM_IRQFD"))?;
        }
        let (remote, orders) = remote::pair().map_err(system("make an eventfd"))?;
        let api = Api::new(&plan, &devices, &timings, remote);
        let parts = Parts {
            reboots: plan.on_reset == OnReset::Reboot,
            files,
            acpi,
            vm,
            bus: Arc::new(Bus::new(Arc::clone(&pci), serial.clone(), Arc::clone(&timings))),
            pci,
            devices,
            serial,
            stdin: plan.serial == SerialMode::Stdio,
            timings,
            sandbox: sandbox.clone(),
        };
        kvm::vcpu::install_kick_handler().map_err(system("install a signal handler"))?;
        let api = socket.map(|socket| socket.prepare(api)).transpose()?;
        let machine = Machine::new(parts, orders)?;
        // From here on nothing is opened, and from here on there are other threads.
        sandbox.enforce(plan.api_socket.as_deref())?;
        threads.into_iter().try_for_each(|thread| thread.start(sandbox.device()))?;
        machine.start(vcpus, entry, api)
    }
}

/// What the machine speaks through.
type Outputs = (Option<Arc<SerialPort>>, Arc<Timings>, Option<ApiSocket>);

/// Opens the API's socket, the serial line and the timings, and none of it if one cannot be had.
fn outputs(plan: &Plan, timings: Timings) -> Result<Outputs, Error> {
    let open = |option, path| OutputFile::open(option, path);
    let timings_file = plan.timings.as_deref().map(|path| open("--timings", path)).transpose()?;
    let api = plan.api_socket.as_deref().map(ApiSocket::listen).transpose()?;
    let serial = match &plan.serial {
        SerialMode::Off => None,
        SerialMode::Stdio => Some(SerialPort::stdio()),
        SerialMode::File(path) => Some(SerialPort::new(open("--serial", path)?.keep()?)),
    };
    let serial = serial.transpose().map_err(system("open the serial line"))?;
    let timings = timings.settled(timings_file.map(OutputFile::keep).transpose()?);
    Ok((serial.map(Arc::new), Arc::new(timings), api))
}
