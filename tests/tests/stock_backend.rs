//! An entropy device made with the stock `vhost-user-backend` and `virtio-queue` crates, as back-end of our VMM:
//! session, rings and threads share no line with ours.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;
use tests::daemon::binary;
use tests::frontend::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use tests::vmm::Run;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Fills what may be written with bytes of the kernel.
struct Entropy {
    protocol: VhostUserProtocolFeatures,
    memory: Memory,
    event_idx: bool,
    given_bytes: Arc<AtomicU64>,
}

impl Entropy {
    fn serve(&self, vring: &mut VringState) -> std::io::Result<()> {
        let memory = self.memory.memory();
        let before = vring.get_queue().next_used();
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let mut given_bytes = 0;
            for part in chain.writable() {
                let mut bytes = vec![0; usize::try_from(part.len()).unwrap()];
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
                memory.write_slice(&bytes, part.addr()).unwrap();
                given_bytes += part.len();
            }
            self.given_bytes.fetch_add(given_bytes.into(), Ordering::Relaxed);
            vring.add_used(head, given_bytes).unwrap();
        }
        // The guest takes an interrupt for an answer: none without one.
        let answered = vring.get_queue().next_used() != before;
        if answered && vring.needs_notification().unwrap() { vring.signal_used_queue() } else { Ok(()) }
    }
}

impl VhostUserBackendMut for Entropy {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    // Without one the crate waits for ever for the end of its own worker.
    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn update_memory(&mut self, memory: Memory) -> std::io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: EventSet, vrings: &[VringRwLock], _: usize) -> std::io::Result<()> {
        let mut vring = vrings[0].get_mut();
        if !self.event_idx {
            return self.serve(&mut vring);
        }
        loop {
            vring.disable_notification().unwrap();
            self.serve(&mut vring)?;
            if !vring.enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}

/// The back-end, in threads of this process, for one front-end.
struct Peer {
    dir: TempDir,
    given_bytes: Arc<AtomicU64>,
    session: JoinHandle<vhost_user_backend::Result<()>>,
}

impl Peer {
    fn listen(protocol: VhostUserProtocolFeatures) -> Peer {
        let dir = tempfile::tempdir().unwrap();
        let mut listener = Listener::from(UnixListener::bind(socket(dir.path())).unwrap());
        let given_bytes = Arc::new(AtomicU64::new(0));
        let memory = Memory::new(GuestMemoryMmap::new());
        let device =
            Entropy { protocol, memory: memory.clone(), event_idx: false, given_bytes: given_bytes.clone() };
        let device = Arc::new(Mutex::new(device));
        let mut daemon = VhostUserDaemon::new("stock".to_owned(), device, memory).unwrap();
        let session = std::thread::spawn(move || daemon.start(&mut listener).and_then(|()| daemon.wait()));
        Peer { dir, given_bytes, session }
    }

    fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    fn given_bytes(&self) -> u64 {
        self.given_bytes.load(Ordering::Relaxed)
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("vhost.sock")
}

fn all() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
}

fn guest(cmdline: &str, peer: &Peer) -> Run {
    Run::metal(binary("outboard"), cmdline).device("rng", &peer.socket())
}

/// The guest gets its entropy, all of it from the peer, whose session ends only because the VMM has gone.
#[track_caller]
fn assert_serves(protocol: VhostUserProtocolFeatures, options: &str) {
    let peer = Peer::listen(protocol);
    let ended = guest(&format!("metal=rng requests=1000 {options}"), &peer).finish();
    assert!(ended.ok().serial.contains("metal: rng 64000 bytes in 1000 requests\n"), "{ended:#?}");
    assert_eq!(peer.given_bytes(), 64_000);
    let over = peer.session.join().unwrap().unwrap_err();
    assert!(matches!(over, vhost_user_backend::Error::HandleRequest(_)), "{over}");
}

#[test]
fn a_stock_back_end_serves_a_guest_that_polls() {
    assert_serves(all(), "");
}

#[test]
fn a_stock_back_end_serves_a_guest_that_sleeps_until_the_interrupt() {
    assert_serves(all(), "irq");
}

#[test]
fn a_stock_back_end_serves_without_event_idx_and_indirect_descriptors() {
    assert_serves(all(), &format!("hide={}", F_EVENT_IDX | F_INDIRECT_DESC));
}

#[test]
fn a_stock_back_end_serves_without_any_protocol_feature() {
    assert_serves(VhostUserProtocolFeatures::empty(), "irq");
}

#[test]
fn a_stock_back_end_serves_again_after_the_guest_resets() {
    let peer = Peer::listen(all());
    let vmm = guest("metal=rng requests=100 irq then-reset", &peer).start();
    vmm.wait_for("metal: rng 6400 bytes in 100 requests\n", 3);
    drop(vmm);
    assert!(peer.given_bytes() >= 3 * 6400);
}
