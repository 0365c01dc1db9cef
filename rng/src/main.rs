//! `outboard-rng`, see the library.
fn main() -> std::process::ExitCode {
    backends::daemon::main::<outboard_rng::config::Options>()
}
