//! Test binaries run by themselves, one after another, on this host or on the emulated one: several in one boot.
//!
//! In: binaries. Out: their cases, read from what libtest prints. A binary that dies before it has reported all its
//! tests is a failed case of its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binaries::Binary;
use super::case::{Case, Verdict};
use super::setting::Setting;
use crate::emulated::EmulatedHost;
use crate::explain::explain;
use crate::kvm_host::Place;
use crate::process::{Running, command};

const BEGIN: &str = "test-binary ";
const END: &str = "test-binary-exit ";

/// From the first binary's start to the last one's end.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs `binaries` at `place`.
pub fn run(binaries: &[&Binary], place: Place, setting: &Setting) -> Vec<Case> {
    let script = script(binaries, setting);
    let words = ["sh".into(), "-c".into(), OsString::from(script)];
    let output = match place {
        Place::Direct => direct(&words, &setting.file("libtest")),
        Place::Emulated => emulated(&words),
    };
    match output {
        Ok(output) => {
            eprint!("{output}");
            parse(&output)
        }
        Err(reason) => vec![Case::failed("libtest", reason)],
    }
}

fn direct(words: &[OsString; 3], output: &Path) -> Result<String, String> {
    let run = || -> Result<String, Box<dyn std::error::Error>> {
        let mut shell = command(&words[0]);
        shell.args(&words[1..]).stdout(File::create(output)?);
        Running::start("the test binaries", &mut shell)?.wait(LIMIT, || ())?;
        Ok(fs::read_to_string(output)?)
    };
    run().map_err(|error| explain(error.as_ref()))
}

fn emulated(words: &[OsString]) -> Result<String, String> {
    let host = EmulatedHost { limit: LIMIT, ..EmulatedHost::default() };
    let mut output = Vec::new();
    let ended = host.run_to(words, &mut output, &mut std::io::stderr());
    let output = String::from_utf8_lossy(&output).into_owned();
    ended.map_err(|error| format!("{}\n{output}", explain(&error)))?;
    Ok(output)
}

/// A shell script that runs each binary in its package's folder, between two lines that we know again.
fn script(binaries: &[&Binary], setting: &Setting) -> String {
    let export = |(name, value): (&str, PathBuf)| format!("export {name}='{}'\n", value.display());
    let mut script: String = setting.variables().into_iter().map(export).collect();
    for binary in binaries {
        // Emulation keeps both processors busy: its tests run one at a time.
        let threads = if binary.needs_kvm_linux() || binary.name.contains("qemu") { 1 } else { 2 };
        let ignored = if setting.full { "--include-ignored" } else { "" };
        let (name, directory, program) =
            (&binary.name, binary.directory.display(), binary.executable.display());
        script.push_str(&format!(
            "echo '{BEGIN}{name}'; (cd '{directory}' && '{program}' --test-threads={threads} {ignored}); echo \"{END}$?\"\n"
        ));
    }
    script
}

/// From libtest's output: `test NAME ... ok`, `FAILED` or `ignored, REASON`.
fn parse(output: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let (mut binary, mut first) = ("", 0);
    for line in output.lines() {
        if let Some(name) = line.strip_prefix(BEGIN) {
            (binary, first) = (name, cases.len());
        } else if let Some(code) = line.strip_prefix(END) {
            cases.extend(unreported_failure(binary, code, cases.get(first..).unwrap_or_default()));
        } else if let Some((name, result)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            cases.extend(case(&format!("{binary}::{name}"), result));
        }
    }
    cases
}

fn case(id: &str, result: &str) -> Option<Case> {
    match result {
        "ok" => Some(Case::passed(id)),
        "FAILED" => Some(Case::failed(id, "")),
        ignored if ignored.starts_with("ignored") => Some(Case::skipped(id, "it takes long: --full runs it")),
        _ => None,
    }
}

fn unreported_failure(binary: &str, code: &str, cases: &[Case]) -> Option<Case> {
    let reported = cases.iter().any(|case| matches!(case.verdict, Verdict::Failed(_)));
    (code != "0" && !reported)
        .then(|| Case::failed(binary, format!("it ended with code {code} before its tests did")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_a_silent_death_is_a_failure() {
        let output = "test-binary boot\n\nrunning 2 tests\ntest one ... ok\ntest two - should panic ... FAILED\n\
            test three ... ignored, long\ntest-binary-exit 101\ntest-binary acpi\ntest four ... ok\ntest five ... \n\
            fatal runtime error\ntest-binary-exit 134\ntest-binary pci\ntest-binary-exit 0\n";
        assert_eq!(
            parse(output),
            [
                Case::passed("boot::one"),
                Case::failed("boot::two - should panic", ""),
                Case::skipped("boot::three", "it takes long: --full runs it"),
                Case::passed("acpi::four"),
                Case::failed("acpi", "it ended with code 134 before its tests did"),
            ]
        );
    }

    #[test]
    fn binaries_run_where_cargo_would_run_them() {
        let scratch = tempfile::tempdir().unwrap();
        let name = "echoes".to_owned();
        let binary = Binary { name, executable: "/bin/echo".into(), directory: scratch.path().to_owned() };
        let setting = Setting { scratch: scratch.path().to_owned(), full: true, filter: None };
        let words = ["sh".into(), "-c".into(), OsString::from(script(&[&binary], &setting))];
        let output = direct(&words, &scratch.path().join("output")).unwrap();
        assert_eq!(output, "test-binary echoes\n--test-threads=2 --include-ignored\ntest-binary-exit 0\n");
    }
}
