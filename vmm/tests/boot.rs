//! The machine without devices, on this host's KVM: what the guest finds, how it ends, how long it takes.
#![allow(clippy::unwrap_used)]

use tests::vmm::{Ended, Run};

fn metal(cmdline: &str) -> Run {
    Run::metal(env!("CARGO_BIN_EXE_outboard"), cmdline)
}

#[test]
fn a_guest_prints_and_powers_off() {
    let ended = metal("metal=hello").finish();
    assert_eq!(ended.ok().serial, "metal: hello\nmetal: ok\n");
    assert_eq!(ended.stderr, "", "a good run says nothing");
    report_times(&ended);
}

/// The target is 15 ms in all. Reported, not asserted: a loaded machine is no failure.
fn report_times(ended: &Ended) {
    let at = |event| ended.event(event, None).us;
    println!(
        "first guest instruction after {} us, power-off after {} us",
        at("first_entry"),
        at("power_off")
    );
    assert!(at("main") <= at("first_entry") && at("first_entry") < at("power_off"));
}

#[test]
fn the_tables_describe_the_machine() {
    let ended = metal("metal=info words on the command line").option("--cpus", "3").finish();
    let said = &ended.ok().serial;
    assert!(said.contains("metal: cmdline metal=info words on the command line\n"), "{said}");
    for table in ["FACP", "APIC", "MCFG"] {
        assert!(said.contains(&format!("metal: acpi {table}\n")), "{said}");
    }
    assert!(said.contains("metal: cpus [0, 1, 2]\n"), "{said}");
    assert_eq!(ram(said).last(), Some(&(0x10_0000, (64 << 20) - 0x10_0000)), "{said}");
}

/// Start and length of the ranges of RAM that the guest was told of.
fn ram(said: &str) -> Vec<(u64, u64)> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let lines = said.lines().filter_map(|line| line.strip_prefix("metal: ram "));
    lines.filter_map(|line| line.split_once(" +")).map(|(start, bytes)| (hex(start), hex(bytes))).collect()
}

#[test]
fn memory_above_the_pci_window_continues_at_four_gib() {
    let ended = metal("metal=info").memory("3584M").finish();
    let ranges = ram(&ended.ok().serial);
    assert_eq!(ranges.last(), Some(&(4 << 30, 512 << 20)), "{ended:#?}");
    assert!(ranges.contains(&(0x10_0000, (3 << 30) - 0x10_0000)), "{ended:#?}");
}

#[test]
fn every_cpu_starts() {
    for cpus in ["1", "2", "4"] {
        let ended = metal("metal=smp").option("--cpus", cpus).finish();
        assert!(ended.ok().serial.contains(&format!("metal: smp {cpus} CPUs\n")), "{ended:#?}");
    }
}

#[test]
fn options_from_a_file_make_the_same_machine() {
    let machine = metal("metal=smp then-reset");
    let file = machine.dir().join("vm.toml");
    std::fs::write(&file, "cpus = 3\non-reset = 'exit'\nmemory = '1T'\nkernel = '/nowhere'\n").unwrap();
    // Memory and kernel are on the command line too.
    let ended = machine.option("--config", file.to_str().unwrap()).finish();
    assert!(ended.code(0).serial.contains("metal: smp 3 CPUs\n"), "{ended:#?}");
}

#[test]
fn a_reset_ends_the_machine_when_asked_to() {
    let ended = metal("metal=reset").option("--on-reset", "exit").finish();
    assert_eq!(ended.code(0).serial, "metal: reset\n");
}

#[test]
fn a_reset_starts_the_guest_again_by_default() {
    metal("metal=reset").start().wait_for("metal: reset\n", 3);
}

#[test]
fn all_cpus_start_again_after_a_reset() {
    let vmm = metal("metal=smp then-reset").option("--cpus", "3").start();
    vmm.wait_for("metal: smp 3 CPUs\n", 3);
}

#[test]
fn a_guest_panic_is_told_from_a_power_off() {
    let ended = metal("metal=panic").finish();
    assert_eq!(ended.code(6).serial, "metal: panic\n");
    assert_one_line(&ended, &["panic"]);
}

#[test]
fn a_triple_fault_is_a_crash() {
    let ended = metal("metal=triple").finish();
    assert_eq!(ended.code(5).serial, "metal: triple fault\n");
    assert_one_line(&ended, &["triple fault"]);
}

#[test]
fn an_instruction_that_kvm_cannot_run_is_shown() {
    let ended = metal("metal=badop").finish();
    assert_eq!(ended.code(5).serial, "metal: badop\n");
    // xorps xmm0, [rax]: what the guest stopped at.
    assert_one_line(&ended, &["sub-error 1", "RIP 0x", "0f 57 00"]);
}

#[test]
fn the_serial_line_goes_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("serial.log");
    let ended = metal("metal=hello").option("--serial", &format!("file={}", file.display())).finish();
    assert_eq!(ended.code(0).serial, "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "metal: hello\nmetal: ok\n");
    assert_eq!(metal("metal=hello").option("--serial", "off").finish().code(0).serial, "");
}

#[test]
fn a_request_to_end_ends_the_machine() {
    let vmm = metal("metal=idle").start();
    vmm.wait_for("metal: idle\n", 1);
    vmm.terminate().code(0);
}

/// The VMM said why in one line that holds all these words.
fn assert_one_line(ended: &Ended, words: &[&str]) {
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{ended:#?}");
    let missing: Vec<_> = words.iter().filter(|word| !lines.concat().contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} is not in {lines:?}");
}
