//! A worker dies at each message of a session: before it was handled, and after it was, with no answer sent.
//!
//! Each step is taken once undisturbed; then again for each death. The answers are to be the same, acks included.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use backends::proto::{Code, Request, VringFd};
use backends::session::Direction;
use rustix::process::Signal;
use tests::dirty::DirtyLog;
use tests::frontend::{FrontendError, Wants};
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::ring::Ring;
use tests::machine::{Device, Machine, QUEUE_SIZE, RNG};

use super::processes::signal;

const REGION_BYTES: u64 = 4 << 20;
/// Deaths that a keeper takes without waiting.
const DEATHS: usize = 16;
const MOMENTS: [&str; 2] = ["before", "after"];

tests::against_every_daemon! {
    both: [
        k08_a_worker_that_dies_at_any_message_is_not_missed,
        k08_device_state_that_was_on_its_way_is_told_to_be_lost,
        k08_a_message_that_kills_three_workers_ends_its_session_only,
    ],
}

/// A session and what its steps need.
struct Life {
    machine: Machine,
    ring: Ring,
    log: DirtyLog,
}

type Step = (Code, fn(&mut Life) -> Result<String, FrontendError>);

/// What is answered, as text.
fn told(answer: Result<impl std::fmt::Debug, FrontendError>) -> Result<String, FrontendError> {
    answer.map(|answer| format!("{answer:?}"))
}

fn ask(life: &mut Life, request: Request) -> Result<String, FrontendError> {
    told(life.machine.frontend.ask(request))
}

fn tell(life: &mut Life, request: Request) -> Result<String, FrontendError> {
    told(life.machine.frontend.tell(request, &[]))
}

fn index(life: &Life) -> u32 {
    life.machine.device.queue.into()
}

fn vring(life: &Life) -> VringFd {
    VringFd { index: life.machine.device.queue, has_fd: true }
}

/// A session from its first message to its last.
const SESSION: [Step; 30] =
    [
        (Code::GetFeatures, |life| ask(life, Request::GetFeatures)),
        (Code::GetProtocolFeatures, |life| ask(life, Request::GetProtocolFeatures)),
        (Code::SetProtocolFeatures, |life| {
            let protocol = life.machine.frontend.protocol();
            told(life.machine.frontend.set_protocol_features(protocol))
        }),
        (Code::SetOwner, |life| tell(life, Request::SetOwner)),
        (Code::SetFeatures, |life| {
            let features = life.machine.frontend.features();
            tell(life, Request::SetFeatures(features))
        }),
        (Code::GetQueueNum, |life| ask(life, Request::GetQueueNum)),
        (Code::GetMaxMemSlots, |life| ask(life, Request::GetMaxMemSlots)),
        (Code::SetMemTable, |life| told(life.machine.frontend.set_mem_table())),
        (Code::RemMemReg, |life| {
            let ram = life.machine.ram();
            let gone = life.machine.frontend.remove_region(ram.regions()[1].table);
            // The step after this one adds it; without that this one could not be taken again.
            told(gone.and_then(|()| {
                life.machine.frontend.add_region(ram.regions()[1].table, ram.regions()[1].fd())
            }))
        }),
        (Code::AddMemReg, |life| {
            let ram = life.machine.ram();
            let gone = life.machine.frontend.remove_region(ram.regions()[1].table);
            told(gone.and_then(|()| {
                life.machine.frontend.add_region(ram.regions()[1].table, ram.regions()[1].fd())
            }))
        }),
        (Code::SetLogBase, |life| told(life.machine.frontend.set_log(&life.log))),
        (Code::SetLogFd, |life| {
            told(life.machine.frontend.tell(Request::SetLogFd, &[life.ring.err.as_fd()]))
        }),
        (Code::SetBackendReqFd, |life| told(life.machine.frontend.open_channel().map(drop))),
        (Code::SetStatus, |life| tell(life, Request::SetStatus(11))),
        (Code::GetStatus, |life| ask(life, Request::GetStatus)),
        (Code::GetConfig, |life| ask(life, Request::GetConfig { offset: 0, size: 8 })),
        (Code::GetInflightFd, |life| {
            let queues = u16::from(life.machine.device.queues);
            told(life.machine.frontend.inflight(queues, QUEUE_SIZE).map(drop))
        }),
        (Code::SetInflightFd, |life| {
            let queues = u16::from(life.machine.device.queues);
            let region = life.machine.frontend.inflight(queues, QUEUE_SIZE)?;
            told(life.machine.frontend.set_inflight(&region))
        }),
        (Code::SetVringNum, |life| {
            tell(life, Request::SetVringNum { index: index(life), num: QUEUE_SIZE.into() })
        }),
        (Code::SetVringBase, |life| {
            let request = Request::SetVringBase { index: index(life), base: life.ring.base() };
            tell(life, request)
        }),
        (Code::SetVringAddr, |life| {
            let addr = life.machine.frontend.vring_addr(index(life), &life.ring);
            tell(life, Request::SetVringAddr(addr))
        }),
        (Code::SetVringErr, |life| {
            told(life.machine.frontend.tell(Request::SetVringErr(vring(life)), &[life.ring.err.as_fd()]))
        }),
        (Code::SetVringCall, |life| {
            told(life.machine.frontend.tell(Request::SetVringCall(vring(life)), &[life.ring.call.as_fd()]))
        }),
        (Code::SetVringKick, |life| {
            told(life.machine.frontend.tell(Request::SetVringKick(vring(life)), &[life.ring.kick.as_fd()]))
        }),
        (Code::SetVringEnable, |life| {
            let enabled = tell(life, Request::SetVringEnable { index: index(life), enable: 1 })?;
            life.machine.assert_serves(&mut life.ring);
            Ok(enabled)
        }),
        (Code::SetMemTable, |life| {
            let table = told(life.machine.frontend.set_mem_table())?;
            life.machine.assert_serves(&mut life.ring);
            Ok(table)
        }),
        (Code::GetConfig, |life| {
            let config = ask(life, Request::GetConfig { offset: 0, size: 8 })?;
            life.machine.assert_serves(&mut life.ring);
            Ok(config)
        }),
        (Code::GetVringBase, |life| ask(life, Request::GetVringBase { index: index(life) })),
        (Code::ResetDevice, |life| tell(life, Request::ResetDevice)),
        (Code::SetFeatures, |life| {
            let features = life.machine.frontend.features();
            tell(life, Request::SetFeatures(features))
        }),
    ];

fn two_regions() -> Arc<Ram> {
    Ram::with(&[(RAM_BASE, REGION_BYTES), (RAM_BASE + 2 * REGION_BYTES, REGION_BYTES)], Backing::Sealed)
}

impl Life {
    /// A daemon that can be told to die at the messages of these steps, and a front-end that has said little.
    fn begin(device: Device, steps: &[Step], deaths: usize) -> Life {
        let launch = device.launch();
        let dir = launch.dir().to_owned();
        let mut points = Vec::new();
        for (code, _) in steps {
            for moment in MOMENTS {
                points.extend((0..deaths).map(|nth| {
                    format!("session.message.{code:?}.{moment}={}", death(&dir, *code, moment, nth).display())
                }));
            }
        }
        let launch = launch.env("OUTBOARD_FAILPOINTS", &points.join(","));
        let ram = two_regions();
        let machine = device.boot_with(launch, &ram, Wants::on(device.rings));
        let ring = machine.frontend.new_ring(QUEUE_SIZE);
        let log = DirtyLog::new(&ram);
        Life { machine, ring, log }
    }

    /// Takes a step while the worker is to die at its message.
    fn dying(&mut self, (code, step): Step, moment: &str, deaths: usize) -> Result<String, FrontendError> {
        let files: Vec<_> =
            (0..deaths).map(|nth| death(self.machine.daemon.dir(), code, moment, nth)).collect();
        let worker = self.machine.daemon.worker_pid();
        files.iter().for_each(|file| drop(File::create(file).unwrap()));
        let answer = step(self);
        assert!(files.iter().all(|file| !file.exists()), "nobody died {moment} {code:?}");
        assert_ne!(self.machine.daemon.worker_pid(), worker, "{moment} {code:?}");
        answer
    }
}

/// The file that stands for the nth death at a message.
fn death(dir: &std::path::Path, code: Code, moment: &str, nth: usize) -> PathBuf {
    dir.join(format!("{code:?}.{moment}.{nth}"))
}

fn k08_a_worker_that_dies_at_any_message_is_not_missed(device: Device) {
    for part in 0..SESSION.len().div_ceil(DEATHS / 2) {
        let dying = part * DEATHS / 2..(part + 1) * DEATHS / 2;
        let mut life = Life::begin(device, &SESSION, 1);
        for (nth, step) in SESSION.into_iter().enumerate() {
            let undisturbed = step.1(&mut life).unwrap();
            for moment in MOMENTS.iter().filter(|_| dying.contains(&nth)) {
                let answer = life.dying(step, moment, 1).unwrap();
                assert_eq!(answer, undisturbed, "{device:?}: {:?} {moment}", step.0);
            }
        }
        life.machine.assert_restarts();
        assert!(life.machine.daemon.is_running());
    }
}

fn k08_device_state_that_was_on_its_way_is_told_to_be_lost(device: Device) {
    let save: Step = (Code::SetDeviceStateFd, |life| {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let begun = told(life.machine.frontend.carry_state(Direction::Save, writer.as_fd()));
        drop(writer);
        let mut state = Vec::new();
        std::io::Read::read_to_end(&mut File::from(reader), &mut state).unwrap();
        begun
    });
    let check: Step = (Code::CheckDeviceState, |life| told(life.machine.frontend.state_is_good()));
    let mut life = Life::begin(device, &[save, check], 1);
    for moment in MOMENTS {
        // The one that begins is told again, and its state arrives.
        life.dying(save, moment, 1).unwrap();
        assert_eq!(check.1(&mut life).unwrap(), "true", "{moment}");
        save.1(&mut life).unwrap();
        assert_eq!(life.dying(check, moment, 1).unwrap(), "false", "{moment}");
    }
    save.1(&mut life).unwrap();
    assert_eq!(check.1(&mut life).unwrap(), "true");
}

fn k08_a_message_that_kills_three_workers_ends_its_session_only(device: Device) {
    let step: Step = (Code::GetConfig, |life| ask(life, Request::GetConfig { offset: 0, size: 8 }));
    let mut life = Life::begin(device, &[step], 3);
    assert!(life.dying(step, "before", 2).is_ok(), "two are not enough");
    for nth in 0..3 {
        let file = death(life.machine.daemon.dir(), step.0, "after", nth);
        drop(File::create(file).unwrap());
    }
    assert!(step.1(&mut life).unwrap_err().is_hangup());
    assert!(
        fs::read_dir(life.machine.daemon.dir())
            .unwrap()
            .flatten()
            .all(|file| { !file.file_name().to_string_lossy().starts_with("GetConfig") })
    );
    life.machine.assert_serves_anew();
    assert!(life.machine.daemon.stderr().contains("GetConfig was the end of 3 workers"));
}

/// Stopped, it is neither dead nor ever going to answer.
#[test]
fn k08_a_worker_that_is_mute_over_a_message_is_replaced() {
    let launch = RNG.launch();
    let limit = launch.dir().join("limit");
    let launch = launch.env("OUTBOARD_FAILPOINTS", &format!("keeper.mute={}", limit.display()));
    let mut machine = RNG.boot_with(launch, &two_regions(), RNG.wants());
    let mut ring = machine.start_queue().unwrap();
    let worker = machine.daemon.worker_pid();
    File::create(&limit).unwrap();
    signal(worker, Signal::STOP);
    machine.frontend.sync().unwrap();
    assert_ne!(machine.daemon.worker_pid(), worker);
    assert!(machine.daemon.stderr().contains("it does not answer"));
    machine.assert_serves(&mut ring);
}
