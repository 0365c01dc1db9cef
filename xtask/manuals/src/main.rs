//! Man pages and shell completions of the programs: `manuals DIR`, called by `cargo xtask man`.
//!
//! In: the definitions with which each program parses its command line. Out: `DIR/man/NAME.1`, for subcommands too, and
//! `DIR/completions/` for bash, zsh and fish. Nothing is said here that `--help` does not say; the text after its options
//! becomes sections of its own. A package of its own, so that neither the programs nor `cargo xtask` carry it.
#![forbid(unsafe_code)]

mod page;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, Parser};
use clap_complete::Shell;

/// Shells that get completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

#[derive(Parser)]
struct Cli {
    /// Where to write man/ and completions/.
    dir: PathBuf,
}

/// The programs' command lines.
fn programs() -> [Command; 4] {
    [
        outboard::cli::command(),
        backends::daemon::command::<outboard_rng::config::Options>(),
        backends::daemon::command::<outboard_blk::config::Options>(),
        backends::daemon::command::<outboard_console::config::Options>(),
    ]
}

fn main() -> ExitCode {
    match write(&Cli::parse().dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manuals: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &Path) -> io::Result<()> {
    let [man, completions] = ["man", "completions"].map(|name| dir.join(name));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    for program in programs() {
        let mut shown = shown(&program);
        page::write_all(program, &man)?;
        for shell in SHELLS {
            let name = shown.get_name().to_owned();
            clap_complete::generate_to(shell, &mut shown, name, &completions)?;
        }
    }
    Ok(())
}

/// What people are shown of a program: bash would complete the rest too.
fn shown(program: &Command) -> Command {
    Command::new(program.get_name().to_owned())
        .version(program.get_version().unwrap_or_default().to_owned())
        .about(program.get_about().cloned().unwrap_or_default())
        .args(program.get_arguments().filter(|arg| !arg.is_hide_set()))
        .subcommands(program.get_subcommands().filter(|command| !command.is_hide_set()).map(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command and all below it, by the names of their pages.
    fn tree<'a>(name: &str, command: &'a Command) -> Vec<(String, &'a Command)> {
        let below =
            command.get_subcommands().flat_map(|sub| tree(&format!("{name}-{}", sub.get_name()), sub));
        below.chain([(name.to_owned(), command)]).collect()
    }

    #[test]
    fn every_program_and_subcommand_has_a_page_that_names_every_option_people_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let page =
            |name: &str| std::fs::read_to_string(dir.path().join("man").join(format!("{name}.1"))).unwrap();
        for program in programs() {
            for (name, command) in tree(program.get_name(), &program) {
                let page = page(&name).replace("\\-", "-");
                for arg in command.get_arguments() {
                    let place = || arg.get_value_names().unwrap()[0].to_string();
                    let shown = arg.get_long().map_or_else(place, |long| format!("--{long}"));
                    assert_eq!(page.contains(&shown), !arg.is_hide_set(), "{name} {shown}");
                }
            }
        }
        assert!(
            page("outboard-blk").contains(".SH \"EXAMPLES\"")
                && page("outboard-blk").contains(".SH \"EXIT CODES\"")
        );
    }

    /// A command that a terminal of 80 columns tears apart cannot be copied from it.
    #[test]
    fn what_help_shows_as_it_is_fits_a_terminal() {
        for program in programs() {
            for (name, command) in tree(program.get_name(), &program) {
                let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                for line in text.lines().filter(|line| line.starts_with(' ')) {
                    assert!(line.len() <= 80, "{name}: {line}");
                }
            }
        }
    }

    #[test]
    fn completions_know_options_and_their_values() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for file in ["outboard-blk.bash", "_outboard-blk", "outboard-blk.fish"] {
            let text = std::fs::read_to_string(dir.path().join("completions").join(file)).unwrap();
            for word in ["block-size", "4096", "io-uring"] {
                assert!(text.contains(word), "{word} in {file}");
            }
            assert!(!text.contains("--worker"), "{file}");
        }
    }
}
