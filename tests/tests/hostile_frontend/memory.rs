//! Memory: tables that make no sense, files that are none, regions that go away.

use std::collections::BTreeSet;

use tests::dirty::{DirtyLog, pages};
use tests::guest::raw::{Desc, WRITE};

use super::*;

tests::against_every_daemon! {
    both: [
        f09_bad_memory_tables_are_refused_and_the_old_one_stays,
        f09_bad_regions_are_refused,
        f10_a_file_that_shrinks_ends_that_session_only,
        f11_a_new_table_while_the_ring_runs,
        f12_memory_taken_from_under_a_ring_breaks_it,
        f21_bad_logs_are_refused,
        f21_pages_that_are_written_are_marked_and_no_others,
    ],
}

fn f09_bad_memory_tables_are_refused_and_the_old_one_stays(device: Device) {
    let (mut machine, mut ring) = running(device);
    let file = memfd(RAM_BYTES, Backing::Sealed);
    for (what, table) in bad_tables() {
        let fds = vec![file.as_fd(); table.len()];
        let answer = machine.frontend.tell(Request::SetMemTable(table), &fds);
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        machine.assert_serves(&mut ring);
    }
    for (what, fd) in bad_files() {
        let region = machine.ram().regions()[0].table;
        let answer = machine.frontend.tell(Request::SetMemTable(vec![region]), &[fd.as_fd()]);
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        machine.assert_serves(&mut ring);
    }
    let nine = vec![file.as_fd(); 9];
    let payload = [&9_u64.to_le_bytes()[..], &[0; 9 * 32]].concat();
    assert_raw_refused(&mut machine, Code::SetMemTable as u32, &payload, &nine);
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

fn f09_bad_regions_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let file = memfd(RAM_BYTES, Backing::Sealed);
    let taken = machine.ram().regions()[0].table;
    assert_refused(machine.frontend.add_region(taken, file.as_fd()));
    for (what, table) in bad_tables() {
        if let [region] = table[..] {
            let answer = machine.frontend.add_region(region, file.as_fd());
            assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
        }
    }
    let elsewhere = MemoryRegion { guest_addr: 0, user_addr: 0x1000, size_bytes: 0x1000, mmap_offset: 0 };
    for (what, fd) in bad_files() {
        let answer = machine.frontend.add_region(elsewhere, fd.as_fd());
        assert!(answer.is_err_and(|e| e.is_refusal()), "{what}");
    }
    assert_refused(machine.frontend.remove_region(elsewhere));
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// After the cut nothing here may touch the guest's memory, or SIGBUS ends the test instead of the daemon.
fn f10_a_file_that_shrinks_ends_that_session_only(device: Device) {
    let ram = Ram::with(&[(RAM_BASE, RAM_BYTES)], Backing::Unsealed);
    let mut machine = device.boot_with(device.launch(), &ram, device.wants());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    rustix::fs::ftruncate(ram.regions()[0].fd(), 0).unwrap();
    ring.kick();
    assert!(machine.frontend.hung_up(), "a session without memory goes on");
    machine.assert_serves_anew();
}

fn f11_a_new_table_while_the_ring_runs(device: Device) {
    let (mut machine, mut ring) = running(device);
    for _ in 0..50 {
        ring.add(&device.request());
        ring.notify();
        machine.frontend.set_mem_table().unwrap();
        assert!(device.accepts(&ring.wait_used().unwrap()));
        machine.assert_serves(&mut ring);
    }
    machine.assert_serves_anew();
}

fn f12_memory_taken_from_under_a_ring_breaks_it(device: Device) {
    let half = RAM_BYTES / 2;
    for pieces in [&[(RAM_BASE, RAM_BYTES)][..], &[(RAM_BASE, half), (RAM_BASE + RAM_BYTES, half)]] {
        let wants = Wants { memory: Memory::Slots, ..device.wants() };
        let mut machine = device.boot_with(device.launch(), &Ram::with(pieces, Backing::Sealed), wants);
        let mut ring = machine.start_queue().unwrap();
        machine.assert_serves(&mut ring);
        let ram = machine.ram();
        machine.frontend.remove_region(ram.regions()[0].table).unwrap();
        assert!(ring.wait_broken(), "{} regions", pieces.len());
        ring.add(&device.request());
        ring.publish();
        ring.kick();
        machine.frontend.sync().unwrap();
        assert_eq!(ring.used().unwrap(), None, "a ring without memory was served");
        machine.assert_serves_anew();
    }
}

/// Tables or regions that must be refused: (what, regions); each with a memfd of [`RAM_BYTES`].
fn bad_tables() -> Vec<(&'static str, Vec<MemoryRegion>)> {
    let good = MemoryRegion { guest_addr: 0, size_bytes: 0x1000, user_addr: 0x10_0000, mmap_offset: 0 };
    let twin = MemoryRegion { user_addr: 0x20_0000, ..good };
    let other = MemoryRegion { guest_addr: 0x10_0000, user_addr: good.user_addr + 0xfff, ..good };
    let with = |change: fn(&mut MemoryRegion)| {
        let mut region = good;
        change(&mut region);
        vec![region]
    };
    vec![
        ("overlap in the guest", vec![good, twin]),
        ("overlap in the front-end", vec![good, other]),
        ("no size", with(|r| r.size_bytes = 0)),
        ("guest addresses wrap", with(|r| r.guest_addr = u64::MAX - 0xffe)),
        ("user addresses wrap", with(|r| r.user_addr = u64::MAX - 0xffe)),
        ("offset and size wrap", with(|r| r.mmap_offset = u64::MAX - 0xfff)),
        ("offset past the end", with(|r| r.mmap_offset = RAM_BYTES)),
        ("size past the end", with(|r| r.size_bytes = RAM_BYTES + 0x1000)),
        ("all there is", with(|r| r.size_bytes = u64::MAX)),
    ]
}

/// Descriptors that cannot be guest memory.
fn bad_files() -> Vec<(&'static str, std::os::fd::OwnedFd)> {
    let (pipe, _) = std::io::pipe().unwrap();
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let device = std::fs::File::open("/dev/zero").unwrap();
    vec![
        ("a pipe", pipe.into()),
        ("a file opened to be read", read_only.into()),
        ("a device", device.into()),
        ("an empty file", memfd(0, Backing::Unsealed).into()),
    ]
}

fn f21_bad_logs_are_refused(device: Device) {
    let (mut machine, mut ring) = running(device);
    let file = memfd(0x2000, Backing::Sealed);
    let bad = [(0x3000, 0), (0x1000, 0x2000), (1, 0x2000), (0, 0), (u64::MAX, 0), (0x1000, u64::MAX - 0xfff)];
    for (size_bytes, mmap_offset) in bad {
        let payload = Request::SetLogBase { size_bytes, mmap_offset }.payload();
        assert_raw_refused(&mut machine, Code::SetLogBase as u32, &payload, &[file.as_fd()]);
    }
    let payload = Request::SetLogBase { size_bytes: 0x1000, mmap_offset: 0 }.payload();
    for (_, fd) in bad_files() {
        assert_raw_refused(&mut machine, Code::SetLogBase as u32, &payload, &[fd.as_fd()]);
    }
    machine.assert_serves(&mut ring);
    machine.assert_serves_anew();
}

/// With LOG_ALL and the ring's log flag: the pages of written buffers and of what the device writes of the ring
/// itself, and no others.
fn f21_pages_that_are_written_are_marked_and_no_others(device: Device) {
    let pieces: Vec<_> = (0..16).map(|nth| (RAM_BASE + nth * (2 << 20), 1 << 20)).collect();
    let ram = Ram::with(&pieces, Backing::Sealed);
    let wants = Wants { memory: Memory::Slots, ..device.wants() };
    let mut machine = device.boot_with(device.launch(), &ram, wants);
    let log = DirtyLog::new(&ram);
    machine.frontend.set_log(&log).unwrap();
    machine.frontend.log_writes(true).unwrap();
    let mut ring = machine.start_queue().unwrap();
    machine.frontend.log_ring(device.queue, &ring, true).unwrap();
    let head = ring.add(&device.request());
    let descs: Vec<Desc> = ring.entries(head).iter().map(|entry| ring.desc(*entry)).collect();
    let buffers = descs.iter().filter(|desc| desc.flags & WRITE != 0);
    let mut expected: BTreeSet<u64> = buffers.flat_map(|desc| pages(desc.addr, desc.len.into())).collect();
    expected.extend(ring.layout().written_by_device().into_iter().flat_map(|(addr, len)| pages(addr, len)));
    ring.notify();
    assert!(device.accepts(&ring.wait_used().unwrap()));
    machine.frontend.stop(device.queue).unwrap();
    assert_eq!(log.marked(), expected);
    machine.assert_serves_anew();
}
