//! `outboard-console`, see the library.
fn main() -> std::process::ExitCode {
    backends::daemon::main::<outboard_console::config::Options>()
}
