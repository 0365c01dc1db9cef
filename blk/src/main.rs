//! `outboard-blk`, see the library.
fn main() -> std::process::ExitCode {
    backends::daemon::main::<outboard_blk::config::Options>()
}
