//! Regions of requests in flight: what does not fit is refused, what they say is looked at before it is believed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use backends::proto::Inflight;
use tests::frontend::Region;
use tests::random::Random;
use tests::wait;

use super::*;

tests::against_every_daemon! {
    both: [
        f17_a_region_that_does_not_fit_is_refused,
        f17_a_content_that_makes_no_sense_breaks_the_ring,
        f17_garbage_is_harmless,
        f17_a_region_that_is_cut_short_ends_the_session,
        f17_a_region_without_room_for_the_ring_is_told,
        f18_however_often_it_is_asked_for_there_is_one_region,
    ],
}

/// More than a part of either kind needs for a queue of [`QUEUE_SIZE`].
const PART_BYTES: u64 = 4096;

fn shape(device: Device) -> Inflight {
    let queues = u16::from(device.queues);
    Inflight { size_bytes: PART_BYTES * u64::from(queues), mmap_offset: 0, queues, queue_size: QUEUE_SIZE }
}

fn region(device: Device) -> Region {
    let shape = shape(device);
    Region { inflight: shape, fd: memfd(shape.size_bytes, Backing::Sealed).into() }
}

/// Where the request queue's part begins.
fn part(device: Device) -> u64 {
    let bytes = match device.rings {
        tests::guest::format::RingKind::Split => 16 + 16 * u64::from(QUEUE_SIZE),
        tests::guest::format::RingKind::Packed => 32 + 32 * u64::from(QUEUE_SIZE),
    };
    bytes.next_multiple_of(64) * u64::from(device.queue)
}

fn f17_a_region_that_does_not_fit_is_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let fits = shape(device);
    let set = |machine: &mut Machine, shape: Inflight, fd: BorrowedFd<'_>| {
        assert_refused(machine.frontend.tell(Request::SetInflightFd(shape), &[fd]));
    };
    let file = memfd(fits.size_bytes, Backing::Sealed);
    set(&mut machine, fits, file.as_fd());
    machine.assert_serves(&mut ring);
    machine.frontend.stop(device.queue).unwrap();
    let wrong = [
        Inflight { queues: 0, ..fits },
        Inflight { queues: fits.queues + 1, ..fits },
        Inflight { queues: u16::MAX, ..fits },
        Inflight { queue_size: 0, ..fits },
        Inflight { queue_size: 32_769, ..fits },
        Inflight { queue_size: u16::MAX, ..fits },
        Inflight { size_bytes: 0, ..fits },
        Inflight { size_bytes: 512, ..fits },
        Inflight { size_bytes: fits.size_bytes + 1, ..fits },
        Inflight { size_bytes: u64::MAX, ..fits },
        Inflight { mmap_offset: 64, ..fits },
        Inflight { mmap_offset: u64::MAX, ..fits },
        Inflight { mmap_offset: u64::MAX - fits.size_bytes + 1, ..fits },
        Inflight { queue_size: 32_768, ..fits },
    ];
    for shape in wrong {
        set(&mut machine, shape, file.as_fd());
    }
    let (pipe, _end) = std::io::pipe().unwrap();
    set(&mut machine, fits, pipe.as_fd());
    set(&mut machine, fits, Event::new().as_fd());
    set(&mut machine, fits, File::open("/dev/null").unwrap().as_fd());
    let before = machine.daemon.counts();
    (0..100).for_each(|_| set(&mut machine, wrong[0], file.as_fd()));
    assert_eq!(machine.daemon.counts().fds, before.fds);
    machine.assert_restarts();
    machine.assert_serves_anew();
}

fn f17_a_content_that_makes_no_sense_breaks_the_ring(device: Device) {
    let mut machine = device.boot();
    let entries = QUEUE_SIZE.to_le_bytes();
    // Versions, entries and marks that there are not.
    let wrong: [&[u8]; 3] = [&[7, 0], &[1, 0, 255, 255], &[1, 0, entries[0], entries[1]]];
    for header in wrong {
        let region = region(device);
        region.write(part(device) + 8, header);
        region.write(part(device) + 32, &[9]);
        machine.frontend.set_inflight(&region).unwrap();
        let mut ring = machine.frontend.new_ring(QUEUE_SIZE);
        ring.add(&device.request());
        ring.publish();
        machine.frontend.start(device.queue, &ring, ring.base()).unwrap();
        assert!(ring.wait_broken(), "{header:?}");
        assert_eq!(ring.waiting(), 0, "{header:?}: it was served");
        // What was broken is nobody's any more, once the front-end has it back.
        machine.assert_restarts();
        machine.frontend.stop(device.queue).unwrap();
    }
    machine.assert_serves_anew();
}

fn f17_garbage_is_harmless(device: Device) {
    let mut machine = device.boot();
    let mut random = Random::from_env();
    for _ in 0..50 {
        let region = region(device);
        let bytes = usize::try_from(region.inflight.size_bytes).unwrap();
        let mut garbage = random.bytes(bytes);
        // Marks and links of small numbers, or hardly anything would be followed.
        garbage.iter_mut().for_each(|byte| *byte &= u8::try_from(1 << (*byte % 7)).unwrap());
        region.write(0, &garbage);
        region.write(part(device) + 8, &[1, 0, u8::try_from(QUEUE_SIZE).unwrap(), 0]);
        machine.frontend.set_inflight(&region).unwrap();
        let ring = machine.frontend.new_ring(QUEUE_SIZE);
        machine.frontend.start(device.queue, &ring, ring.base()).unwrap();
        machine.frontend.stop(device.queue).unwrap();
    }
    machine.assert_serves_anew();
}

fn f17_a_region_that_is_cut_short_ends_the_session(device: Device) {
    let mut machine = device.boot();
    let shape = shape(device);
    let file = memfd(shape.size_bytes, Backing::Unsealed);
    let region = Region { inflight: shape, fd: file.try_clone().unwrap().into() };
    machine.frontend.set_inflight(&region).unwrap();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    file.set_len(0).unwrap();
    ring.add(&device.request());
    ring.notify();
    assert!(wait::closed(&machine.frontend, wait::deadline()), "the session goes on");
    machine.assert_serves_anew();
}

fn f17_a_region_without_room_for_the_ring_is_told(device: Device) {
    let mut machine = device.boot();
    let shape = Inflight { queue_size: QUEUE_SIZE / 2, ..shape(device) };
    let region = Region { inflight: shape, fd: memfd(shape.size_bytes, Backing::Sealed).into() };
    machine.frontend.set_inflight(&region).unwrap();
    assert_refused(machine.start_queue().map(drop));
    let mut ring = machine.frontend.start_new(device.queue, QUEUE_SIZE / 2).unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f18_however_often_it_is_asked_for_there_is_one_region(device: Device) {
    let mut machine = device.boot();
    let queues = u16::from(device.queues);
    let inode = |region: &Region| {
        let file = File::from(region.fd.try_clone().unwrap());
        file.metadata().unwrap().ino()
    };
    let first = machine.frontend.inflight(queues, QUEUE_SIZE).unwrap();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let before = machine.daemon.counts();
    for _ in 0..1000 {
        let again = machine.frontend.inflight(queues, QUEUE_SIZE).unwrap();
        assert_eq!((again.inflight, inode(&again)), (first.inflight, inode(&first)));
    }
    let after = machine.daemon.counts();
    assert_eq!((after.fds, after.maps, after.threads), (before.fds, before.maps, before.threads));
    machine.assert_serves(&mut ring);
    for (queues, queue_size) in [(0, 16), (256, 16), (1, 0), (1, 32_769)] {
        machine.frontend.stop(device.queue).unwrap();
        assert!(machine.frontend.inflight(queues, queue_size).is_err(), "{queues} of {queue_size}");
    }
    machine.assert_serves_anew();
}
