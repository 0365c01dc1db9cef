//! What can be typed behind `outboard ctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};

use super::socket::DIRECTORY;

/// Shortest and longest time between two looks, in seconds.
const PAUSES: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// Examples, and what the exit codes mean.
pub const EXAMPLES: &str = "\
A daemon listens on a control socket with --control-socket PATH, a machine with `outboard run --api-socket PATH`. \
Sockets called /run/outboard/NAME.control are found by `outboard ctl list`, and --socket NAME is enough for them.

Examples:
  What runs on this host, and how fast it works:
    outboard ctl list
    outboard ctl list --watch

  One daemon: its front-end, its queues, how long requests take:
    outboard ctl --socket blk state
    outboard ctl --socket /tmp/blk.control state --json

  Change settings of the device while it works:
    outboard ctl --socket rng device
    outboard ctl --socket rng set limit.bytes=1M limit.ops=1000

  More in the log for a while; a new file after the old one was moved:
    outboard ctl --socket rng log --level debug
    outboard ctl --socket rng log --reopen

  Go on with the executable that is there now; the guest notices nothing:
    outboard ctl --socket blk upgrade

  Stop a machine's CPUs, and let them go on:
    outboard ctl --socket vm1 pause
    outboard ctl --socket vm1 resume

Exit codes:
  0  done
  1  it could not be asked, or refused
  2  bad option or value";

/// Options of `outboard ctl`.
#[derive(Debug, Args)]
pub struct CtlOptions {
    /// The control socket of a daemon or machine: its path, or NAME for /run/outboard/NAME.control
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Print the answer as it came, for programs: JSON, and for `metrics` the text that Prometheus reads
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// List the daemons and machines of this host that have a control socket
    List {
        /// Where the sockets are, or one directory further down; their names end in .control
        #[arg(value_name = "DIR", default_value = DIRECTORY, value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show how things stand: processes, front-end, queues; or a machine and its devices
    State {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show counters and gauges, except counters that are 0
    Metrics {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show the settings of the device, which `set` changes
    Device {
        #[command(flatten)]
        watch: Watch,
    },
    /// Change settings of the device; all of them or, if one is refused, none
    Set {
        /// A setting as `device` calls it, and its value: a number, also with K, M, G or T behind it (powers of
        /// 1024), a word, or JSON; null takes it away
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Show where the log goes, change how much it tells, or begin a new file
    Log {
        /// Write lines of this level and above
        #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
        level: Option<String>,
        /// Go on in this file, or in a new one of the same name; it is opened with your rights
        #[arg(long, value_name = "FILE", num_args = 0..=1, value_hint = ValueHint::FilePath)]
        reopen: Option<Option<PathBuf>>,
    },
    /// Have a worker of the executable that is there now take over, and wait until it has
    Upgrade,
    /// Stop the CPUs of a machine
    Pause,
    /// Let the CPUs of a machine go on
    Resume,
}

/// Whether to look again and again.
#[derive(Clone, Copy, Debug, Args)]
pub struct Watch {
    /// Look again every so many seconds, and show what is counted a second [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = pause)]
    pub watch: Option<Duration>,
}

fn pause(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| PAUSES.contains(seconds));
    let (least, most) = PAUSES.into_inner();
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("give seconds, from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        ctl: CtlOptions,
    }

    fn parse(line: &str) -> Result<CtlOptions, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.ctl)
    }

    #[test]
    fn socket_and_json_stand_before_the_command_or_behind_it() {
        for line in ["ctl --socket x --json state", "ctl state --json --socket x"] {
            let options = parse(line).unwrap();
            assert_eq!((options.socket, options.json), (Some("x".into()), true), "{line}");
        }
    }

    #[test]
    fn watching_has_a_pause_that_makes_sense() {
        let watch = |line| match parse(line).unwrap().command {
            CtlCommand::State { watch } => watch.watch,
            other => panic!("{other:?}"),
        };
        assert_eq!(watch("ctl state"), None);
        assert_eq!(watch("ctl state --watch"), Some(Duration::from_secs(2)));
        assert_eq!(watch("ctl state --watch 0.5"), Some(Duration::from_millis(500)));
        for pause in ["0", "-1", "NaN", "x", "1e9"] {
            let error = parse(&format!("ctl state --watch={pause}")).unwrap_err().to_string();
            assert!(error.contains("give seconds, from 0.1 to 3600"), "{error}");
        }
    }

    #[test]
    fn a_log_is_reopened_under_its_own_name_or_another() {
        let reopen = |line| match parse(line).unwrap().command {
            CtlCommand::Log { reopen, .. } => reopen,
            other => panic!("{other:?}"),
        };
        assert_eq!(reopen("ctl log"), None);
        assert_eq!(reopen("ctl log --reopen"), Some(None));
        assert_eq!(reopen("ctl log --reopen /x"), Some(Some("/x".into())));
    }
}
