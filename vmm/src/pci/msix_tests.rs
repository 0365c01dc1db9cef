#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
use proptest::prelude::*;

use super::*;
use crate::pci::testing::test_vm;

fn msix(queues: u16) -> Msix {
    Msix::new(&Arc::new(IrqRouter::new(test_vm())), queues).unwrap()
}

/// Writes an entry as Linux does: address, data, then control.
fn program(msix: &mut Msix, vector: usize, address: u64, control: u32) {
    msix.write_table(vector * 16, &address.to_le_bytes());
    msix.write_table(vector * 16 + 8, &0x31u32.to_le_bytes());
    msix.write_table(vector * 16 + 12, &control.to_le_bytes());
}

fn pending(msix: &Msix) -> u64 {
    let mut data = [0; 8];
    msix.read_pending(0, &mut data);
    u64::from_le_bytes(data)
}

/// KVM empties the eventfd of an attached line when it takes the line off.
fn delivered(msix: &mut Msix, line: usize) -> bool {
    let vector = msix.vector(line);
    msix.lines[line].vector = NO_VECTOR;
    msix.sync(|index, _| index == line);
    let kept = msix.event(line).unwrap().take();
    msix.lines[line].vector = vector;
    msix.sync(|index, _| index == line);
    !kept
}

#[test]
fn the_capability_tells_the_last_vector_and_both_places() {
    assert_eq!(msix(3).capability(0x4000, 0x6000), [3, 0, 0, 0x40, 0, 0, 0, 0x60, 0, 0]);
}

#[test]
fn a_table_reads_back_what_was_written_and_starts_masked() {
    let mut msix = msix(1);
    let mut entry = [0; 16];
    msix.read_table(16, &mut entry);
    assert_eq!(entry, RESET_ENTRY);
    program(&mut msix, 1, 0xfee0_1000, 0);
    msix.read_table(16, &mut entry);
    assert_eq!(entry, [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x31, 0, 0, 0, 0, 0, 0, 0]);
    let mut beyond = [0xff; 8];
    msix.read_table(32, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn what_is_raised_under_a_mask_is_pending_and_delivered_when_it_is_lifted() {
    let mut msix = msix(2);
    msix.set_control(CONTROL_ENABLE);
    msix.set_vector(queue_line(1), 2);
    msix.event(queue_line(1)).unwrap().raise();
    assert_eq!(pending(&msix), 0b100);
    program(&mut msix, 2, 0xfee0_0000, 0);
    assert_eq!(pending(&msix), 0);
    assert!(delivered(&mut msix, queue_line(1)));
    program(&mut msix, 2, 0xfee0_0000, 1);
    msix.event(queue_line(1)).unwrap().raise();
    assert_eq!(pending(&msix), 0b100, "masked again");
}

#[test]
fn the_function_mask_and_the_enable_bit_close_every_vector() {
    let mut msix = msix(1);
    program(&mut msix, 0, 0xfee0_0000, 0);
    msix.set_vector(CONFIG_LINE, 0);
    for control in [0, CONTROL_FUNCTION_MASK, CONTROL_ENABLE | CONTROL_FUNCTION_MASK] {
        msix.set_control(control);
        assert_eq!(msix.message(0), None, "{control:#x}");
    }
    msix.set_control(CONTROL_ENABLE | 0x3f);
    assert_eq!(msix.message(0), Some(MsiMessage { address: 0xfee0_0000, data: 0x31 }));
}

#[test]
fn a_line_changes_its_vector_while_it_runs() {
    let mut msix = msix(1);
    msix.set_control(CONTROL_ENABLE);
    program(&mut msix, 0, 0xfee0_0000, 0);
    program(&mut msix, 1, 0xfee0_1000, 1);
    let line = queue_line(0);
    msix.set_vector(line, 0);
    msix.set_vector(line, 1);
    msix.event(line).unwrap().raise();
    assert_eq!(pending(&msix), 0b10);
    msix.set_vector(line, 0);
    assert!(delivered(&mut msix, line));
}

#[test]
fn two_lines_share_a_vector() {
    let mut msix = msix(2);
    msix.set_control(CONTROL_ENABLE);
    msix.set_vector(queue_line(0), 1);
    msix.set_vector(queue_line(1), 1);
    msix.event(queue_line(1)).unwrap().raise();
    assert_eq!(pending(&msix), 0b10);
    program(&mut msix, 1, 0xfee0_0000, 0);
    assert!(delivered(&mut msix, queue_line(0)) && delivered(&mut msix, queue_line(1)));
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let mut msix = msix(1);
    msix.set_vector(CONFIG_LINE, 1);
    assert_eq!(msix.vector(CONFIG_LINE), 1);
    msix.set_vector(CONFIG_LINE, 2);
    assert_eq!(msix.vector(CONFIG_LINE), NO_VECTOR);
    msix.set_vector(99, 0);
    assert_eq!(msix.vector(99), NO_VECTOR);
}

#[test]
fn a_reset_leaves_nothing_pending() {
    let mut msix = msix(1);
    msix.set_control(CONTROL_ENABLE);
    msix.set_vector(queue_line(0), 1);
    msix.event(queue_line(0)).unwrap().raise();
    msix.forget_vectors();
    msix.set_vector(queue_line(0), 1);
    assert_eq!(pending(&msix), 0);
    program(&mut msix, 1, 0xfee0_0000, 0);
    msix.reset();
    let mut entry = [0; 16];
    msix.read_table(16, &mut entry);
    assert_eq!(entry, RESET_ENTRY);
}

#[test]
fn what_was_raised_while_no_vector_listened_is_owed_to_nobody() {
    let mut msix = msix(1);
    msix.event(queue_line(0)).unwrap().raise();
    msix.set_vector(queue_line(0), 1);
    assert_eq!(pending(&msix), 0);
    msix.event(queue_line(0)).unwrap().raise();
    msix.set_vector(queue_line(0), 0);
    assert_eq!(pending(&msix), 1, "but a change of the vector loses nothing");
}

#[test]
fn pending_bits_are_read_at_any_offset() {
    let mut msix = msix(40);
    msix.set_vector(queue_line(35), 36);
    msix.event(queue_line(35)).unwrap().raise();
    let mut high = [0; 4];
    msix.read_pending(4, &mut high);
    assert_eq!(u32::from_le_bytes(high), 1 << 4);
    msix.read_pending(5, &mut high);
    assert_eq!(high, [0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_hostile_guest_gets_no_panic_and_no_open_vector_that_is_masked(
        writes in prop::collection::vec((0usize..80, prop::collection::vec(any::<u8>(), 0..17), 0usize..4), 0..60),
    ) {
        let mut msix = msix(2);
        for (at, data, kind) in &writes {
            let word = u16::from_le_bytes([data.first().copied().unwrap_or(0), data.get(1).copied().unwrap_or(0)]);
            match kind {
                0 => msix.set_control(word),
                1 => msix.set_vector(at % 4, word % 5),
                _ => msix.write_table(*at, data),
            }
            let mut out = vec![0; data.len()];
            msix.read_table(*at, &mut out);
            msix.read_pending(*at, &mut out);
            for line in &msix.lines {
                let masked = msix.entries.get(usize::from(line.vector)).is_none_or(|e| e[12] & 1 != 0);
                prop_assert!(!masked || msix.message(line.vector).is_none());
            }
        }
    }
}
