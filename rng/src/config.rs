//! Options of `outboard-rng`.

use backends::daemon::{Failure, Program};
use backends::kept::Kept;
use backends::limit::Limit;
use std::convert::Infallible;

use crate::Rng;
use crate::source::Source;

/// What the command line adds to the options of every daemon.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where random bytes come from
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub source: Source,

    /// Give at most so many bytes and requests a second, and let a guest that was idle go on without limit for so many
    /// milliseconds, like bytes=1M,ops=1000,burst_ms=20 [default burst_ms: 100]
    #[arg(long, value_name = "bytes=SIZE,ops=N,burst_ms=N")]
    pub limit: Option<Limit>,
}

impl Program for Options {
    type Device = Rng;
    type Tool = Infallible;
    const NAME: &'static str = "outboard-rng";
    const TYPE: &'static str = "rng";
    const ABOUT: &'static str = "vhost-user entropy device: random bytes for one virtual machine";
    const POLICY: &'static str = include_str!("../policy/seccomp.policy");
    const EXAMPLES: &'static str = "Examples:\n  \
        outboard-rng --socket-path /run/outboard/vm1/rng.sock\n  \
        outboard-rng --socket-path /run/outboard/vm1/rng.sock \\\n      \
        --limit bytes=1M,ops=1000,burst_ms=20\n  \
        outboard run ... --device rng,socket=/run/outboard/vm1/rng.sock\n  \
        qemu-system-x86_64 ... \\\n      \
        -chardev socket,id=rng,path=/run/outboard/vm1/rng.sock \\\n      \
        -device vhost-user-rng-pci,chardev=rng";

    fn open(self, _: &Kept) -> Result<Rng, Failure> {
        Rng::new(self.source, self.limit).map_err(Failure::host)
    }
}
