//! A log file in the place of standard error.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use tests::daemon::Launch;
use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

/// A place for a log that outlives its daemon.
struct Log {
    path: PathBuf,
    _dir: TempDir,
}

impl Log {
    fn new() -> Log {
        let dir = TempDir::new().unwrap();
        Log { path: dir.path().join("log"), _dir: dir }
    }

    /// The option that names it.
    fn of(&self, launch: Launch) -> Launch {
        launch.args(["--log-file".to_owned(), self.path.display().to_string()])
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }
}

#[test]
fn keeper_and_workers_write_to_the_file_and_nothing_to_standard_error() {
    for device in DAEMONS {
        let file = Log::new();
        fs::write(&file.path, "from before\n").unwrap();
        let mut machine = device.boot_with(file.of(device.launch()), &Ram::new(RAM_BYTES), device.wants());
        machine.daemon.kill_worker();
        machine.assert_serves_anew();
        let (exit, log) = (machine.daemon.terminate(), file.text());
        assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
        assert!(log.starts_with("from before\n"), "{log}");
        for said in ["Listening", "another one goes on", "served"] {
            assert!(log.contains(said), "{said}: {log}");
        }
    }
}

#[test]
fn a_new_file_is_for_its_user_and_group_only() {
    for keeper in ["on", "off"] {
        let file = Log::new();
        let _daemon = file.of(RNG.launch().args(["--keeper", keeper])).serve().unwrap();
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
        wait::until(|| file.text().contains("Listening"));
    }
}

#[test]
fn why_it_does_not_start_is_told_where_it_was_started_from_too() {
    let file = Log::new();
    let wrong = ["--keeper", "off", "--socket-path", "/no/such/dir/s"];
    let exit = file.of(RNG.launch().args(wrong)).run();
    for told in [exit.stderr, file.text()] {
        assert!(told.contains("outboard-rng: --socket-path /no/such/dir/s: cannot listen there"), "{told:?}");
    }
}

#[test]
fn a_file_that_cannot_be_had_is_refused_by_start_and_check() {
    for (file, cause) in [("/no/such/dir/log", "No such file or directory"), ("/proc", "Is a directory")] {
        for check in [&[][..], &["--check"]] {
            let exit =
                RNG.launch().args(["--socket-path", "s", "--log-file", file]).args(check.to_vec()).run();
            let told = format!("outboard-rng: --log-file {file}: {cause}");
            assert!(exit.code == Some(1) && exit.stderr.starts_with(&told), "{exit}");
            assert_eq!(exit.stderr.lines().count(), 1, "{exit}");
        }
    }
    let both = ["--socket-path", "s", "--log-file", "log", "--log-format", "journal"];
    let exit = RNG.launch().args(both).run();
    assert!(exit.code == Some(2) && exit.stderr.contains("--log-file does not go with"), "{exit}");
}
