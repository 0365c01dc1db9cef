//! `outboard`: see `outboard --help` and [`outboard::cli`].

fn main() -> std::process::ExitCode {
    outboard::cli::main()
}
