//! The command line: what the operator types, and the one line that answers a mistake.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use backends::config::{self, ConfigError, Origin};
use backends::log;
use backends::options::one_line;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use signal_hook::consts::SIGXFSZ;

use crate::config::RunOptions;
use crate::error::{EXIT_OPTION, Error, system};
use crate::{builder, check, ctl};

const EXAMPLES: &str = "\
Examples:
  A Linux with a serial console and nothing else:
    outboard run --kernel vmlinuz --initrd initrd.img --memory 512M \\
        --cmdline console=ttyS0

  With a disk and a source of entropy, each served by a daemon of its own:
    outboard-blk --image disk.img --socket-path /run/vm/blk.sock &
    outboard-rng --socket-path /run/vm/rng.sock &
    outboard run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2 \\
        --device blk,socket=/run/vm/blk.sock \\
        --device rng,socket=/run/vm/rng.sock \\
        --cmdline 'console=ttyS0 root=/dev/vda'

  The same from a file, whose keys are the names of the options:
    outboard run --config vm.toml
      kernel = \"vmlinuz\"
      memory = \"1G\"
      cpus = 2
      [[device]]
      type = \"blk\"
      socket = \"/run/vm/blk.sock\"
      [[device]]
      type = \"rng\"
      socket = \"/run/vm/rng.sock\"

Keys and signals:
  Ctrl-A X          ends the machine, on a terminal
  SIGTERM, SIGINT   end it
  SIGUSR1, SIGUSR2  pause the guest, let it go on

Exit codes:
  0  the guest switched off, or a signal asked to end
  1  failure
  2  bad option or configuration
  3  this host cannot
  4  a device failed at start
  5  the guest crashed, or KVM could not go on
  6  the guest's kernel panicked";

/// A slim KVM core whose devices are vhost-user daemons
#[derive(Parser)]
#[command(name = "outboard", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a virtual machine
    #[command(after_help = EXAMPLES)]
    Run(Box<RunOptions>),
    /// Say whether this host can run virtual machines, and what to do if not
    Check {
        /// Print the answer as JSON too
        #[arg(long)]
        json: bool,
    },
    /// Speak to running daemons and machines: list them, see how they do, change settings
    #[command(after_help = ctl::EXAMPLES)]
    Ctl(ctl::CtlOptions),
}

/// The program, as its log has it.
const NAME: &str = "outboard";
/// The subcommand that takes a file of options.
const RUN: &str = "run";

/// The command line, as clap has it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program: parses, runs, and turns an error into one line and its exit code.
pub fn main() -> ExitCode {
    let start = Instant::now();
    let (args, origin) = match with_file(std::env::args_os().collect()) {
        Ok(found) => found,
        Err(error) => return tell(&error.into(), &Origin::default()),
    };
    match parse(args).and_then(|command| execute(command, start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Shown(code)) => code,
        Err(Stop::Error(error)) => tell(&error, &origin),
    }
}

/// One line on standard error.
fn tell(error: &Error, origin: &Origin) -> ExitCode {
    log::fail(NAME, &origin.located(error.to_string()));
    error.exit_code()
}

/// Why there is nothing more to do.
enum Stop {
    /// Help or the version was asked for and printed.
    Shown(ExitCode),
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.into())
    }
}

fn execute(command: Command, start: Instant) -> Result<(), Stop> {
    match command {
        Command::Run(options) if options.is_check() => {
            let praise = config::praise("outboard", options.file());
            options.log.check()?;
            builder::check(&options.into_plan()?)?;
            writeln!(std::io::stdout(), "{praise}").map_err(system("write to standard output"))?;
        }
        Command::Run(options) => {
            log::begin(NAME, &options.log)?;
            // A log or a serial line in a file at its size limit: the write fails, the guest goes on.
            signal_hook::flag::register(SIGXFSZ, Arc::default())
                .map_err(system("install signal handlers"))?;
            let plan = options.into_plan()?;
            builder::start(plan, start)?.run()?;
        }
        Command::Check { json } => check::run(json)?,
        Command::Ctl(options) => ctl::run(options)?,
    }
    Ok(())
}

fn parse(args: Vec<OsString>) -> Result<Command, Stop> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.command),
        Err(error) => {
            let help_only = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if error.use_stderr() && !help_only {
                return Err(Error::Usage(one_line(&error)).into());
            }
            // A closed pipe is no reason to complain about help that nobody reads.
            let _ = error.print();
            let code = if help_only { ExitCode::from(EXIT_OPTION) } else { ExitCode::SUCCESS };
            Err(Stop::Shown(code))
        }
    }
}

/// The command line, with what the file that `run --config` names says before the other options of `run`.
fn with_file(mut args: Vec<OsString>) -> Result<(Vec<OsString>, Origin), ConfigError> {
    let cli = command();
    let run = cli.find_subcommand(RUN).filter(|_| args.get(1).is_some_and(|arg| arg == RUN));
    let Some(run) = run else { return Ok((args, Origin::default())) };
    let (options, origin) = config::expand(run, args.split_off(1))?;
    args.extend(options);
    Ok((args, origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_file_says_stands_before_the_other_options_of_run() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "kernel = 'k'\ncpus = 1\ndevice = ['a', {type = 'b', queues = 2}]\n")
            .unwrap();
        let path = file.path().display().to_string();
        let line = ["outboard", "run", "--cpus", "2", "--config", &path, "--device=c"].map(OsString::from);
        let (args, _) = with_file(line.to_vec()).unwrap();
        let from_file = ["--kernel=k", "--device=a", "--device=b,queues=2"];
        let expected =
            [&["outboard", "run"][..], &from_file, &["--cpus", "2", "--config", &path, "--device=c"]];
        assert_eq!(args, expected.concat());
        assert!(Cli::try_parse_from(args).is_ok());
    }

    #[test]
    fn a_message_of_the_parser_becomes_one_line() {
        let Err(error) = Cli::try_parse_from(["outboard", "run", "--cpus", "many"]) else {
            panic!("--cpus many was accepted");
        };
        let line = one_line(&error);
        assert_eq!(line, "invalid value 'many' for '--cpus <N>': invalid digit found in string; see --help");
    }
}
