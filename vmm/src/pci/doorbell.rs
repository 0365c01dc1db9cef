//! Doorbells: the eventfds by which a driver's notifications reach the daemon without passing through here.
//!
//! Queue n has the notify address "BAR + notify area + 4 n" and one kick eventfd for its whole life. While the
//! queue runs and the BAR is decoded, that address is an ioeventfd: KVM raises the kick itself, whatever length
//! or value is written. A notification that comes before that, or where KVM refused the ioeventfd (a guest laid
//! one BAR over another), arrives as an ordinary write and is raised by [`Doorbells::ring`]; so none is lost.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::io;
use std::sync::Arc;

use backends::log::{self, Class};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};

use crate::kvm::event::Event;

/// Distance of the notify addresses of two queues (virtio 1.3 §4.1.4.4, notify_off_multiplier).
pub const STRIDE: u32 = 4;

struct Doorbell {
    kick: Arc<Event>,
    running: bool,
    /// Where KVM listens for it.
    at: Option<u64>,
}

/// The doorbells of one function.
pub struct Doorbells {
    vm: Arc<VmFd>,
    /// Address of the notify area, while it is decoded.
    area: Option<u64>,
    bells: Vec<Doorbell>,
}

impl Doorbells {
    /// One for each queue, none of them running.
    pub fn new(vm: &Arc<VmFd>, queues: u16) -> io::Result<Doorbells> {
        let bell = |_| Event::new().map(|kick| Doorbell { kick: Arc::new(kick), running: false, at: None });
        Ok(Doorbells {
            vm: Arc::clone(vm),
            area: None,
            bells: (0..queues).map(bell).collect::<Result<_, _>>()?,
        })
    }

    /// The kick eventfd of a queue.
    pub fn kick(&self, queue: u16) -> Option<&Arc<Event>> {
        self.bells.get(usize::from(queue)).map(|bell| &bell.kick)
    }

    /// The notify area is at another address now, or nowhere.
    pub fn place(&mut self, area: Option<u64>) {
        if self.area != area {
            self.area = area;
            self.listen();
        }
    }

    /// The queue starts or ends to be served by its daemon. A kick that is still in the eventfd of a queue that
    /// ends is dropped: it was meant for what ended.
    pub fn set_running(&mut self, queue: u16, running: bool) {
        if let Some(bell) = self.bells.get_mut(usize::from(queue)) {
            bell.running = running;
        }
        self.listen();
        if let Some(bell) = self.bells.get(usize::from(queue)).filter(|_| !running) {
            bell.kick.take();
        }
    }

    /// A notification that KVM did not take: `offset` is the one in the notify area.
    pub fn ring(&self, offset: u64) {
        let queue = offset.checked_div(u64::from(STRIDE)).and_then(|queue| usize::try_from(queue).ok());
        if let Some(bell) = queue.and_then(|queue| self.bells.get(queue)) {
            bell.kick.raise();
        }
    }

    /// Brings what KVM listens to in line with area and running queues.
    fn listen(&mut self) {
        let mut address = self.area;
        for bell in &mut self.bells {
            let want = address.filter(|_| bell.running);
            if bell.at != want {
                bell.silence(&self.vm);
                bell.at = want.filter(|at| bell.register(&self.vm, *at));
            }
            address = address.and_then(|at| at.checked_add(u64::from(STRIDE)));
        }
    }
}

impl Doorbell {
    fn register(&self, vm: &VmFd, at: u64) -> bool {
        let done = vm.register_ioevent(self.kick.for_kvm(), &IoEventAddress::Mmio(at), NoDatamatch);
        if let Err(error) = done {
            log::line!(
                debug,
                Class::Interrupts,
                "KVM refused an ioeventfd at {at:#x}, notifications there take the slow way: {error}"
            );
        }
        done.is_ok()
    }

    fn silence(&mut self, vm: &VmFd) {
        if let Some(at) = self.at.take() {
            // KVM knows this pair, since it was registered; there is nothing else that could fail.
            let _ = vm.unregister_ioevent(self.kick.for_kvm(), &IoEventAddress::Mmio(at), NoDatamatch);
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.bells.iter_mut().for_each(|bell| bell.silence(&self.vm));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pci::testing::test_vm;

    fn addresses(bells: &Doorbells) -> Vec<Option<u64>> {
        bells.bells.iter().map(|bell| bell.at).collect()
    }

    #[test]
    fn kvm_listens_where_the_queue_runs_and_the_bar_is() {
        let mut bells = Doorbells::new(&test_vm(), 3).unwrap();
        bells.set_running(0, true);
        bells.set_running(2, true);
        assert_eq!(addresses(&bells), [None; 3]);
        bells.place(Some(0xc000_3000));
        assert_eq!(addresses(&bells), [Some(0xc000_3000), None, Some(0xc000_3008)]);
        bells.place(Some(0xd000_3000));
        assert_eq!(addresses(&bells), [Some(0xd000_3000), None, Some(0xd000_3008)]);
        bells.set_running(0, false);
        bells.place(None);
        assert_eq!(addresses(&bells), [None; 3]);
    }

    #[test]
    fn an_address_is_free_again_after_move_and_drop() {
        let vm = test_vm();
        let mut first = Doorbells::new(&vm, 1).unwrap();
        first.set_running(0, true);
        first.place(Some(0xc000_0000));
        let mut second = Doorbells::new(&vm, 1).unwrap();
        second.set_running(0, true);
        second.place(Some(0xc000_0000));
        assert_eq!(addresses(&second), [None], "taken by the first");
        first.place(Some(0xd000_0000));
        second.place(None);
        second.place(Some(0xc000_0000));
        assert_eq!(addresses(&second), [Some(0xc000_0000)]);
        drop(first);
        second.place(Some(0xd000_0000));
        assert_eq!(addresses(&second), [Some(0xd000_0000)]);
    }

    #[test]
    fn a_notification_that_kvm_did_not_take_is_raised_here() {
        let mut bells = Doorbells::new(&test_vm(), 2).unwrap();
        bells.ring(4);
        assert!(bells.kick(1).unwrap().is_raised() && !bells.kick(0).unwrap().is_raised());
        bells.set_running(1, true);
        assert!(bells.kick(1).unwrap().is_raised(), "a kick before the start is kept for the daemon");
        bells.set_running(1, false);
        assert!(!bells.kick(1).unwrap().is_raised());
        bells.ring(8);
        bells.ring(u64::MAX);
    }
}
