//! `outboard-blk grow`: a disk becomes larger while it is used.
//!
//! In: the control socket of the daemon that serves it, and the image with the size that it is to have, unless somebody
//! has enlarged that already. Out: the size that the guest sees from then on. The image is enlarged here, with the rights
//! of whoever calls: a daemon can only look again. Which file that is must be said by the caller: a daemon that was taken
//! over could name any.
//! Refuses to make an image smaller, and says so where the daemon sees no more than before.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::control::Method;
use backends::control::client::{Client, ClientError};
use backends::daemon::Failure;
use clap::Args;
use serde_json::{Value, json};

use super::say;
use crate::create::disk_size;
use crate::graph::options::in_units;
use crate::growth::SIZE;

/// What `--help` says first.
pub const ABOUT: &str = "\
Make a disk larger while its guest runs. With --image and --to it enlarges that file, which the daemon serves; without them \
the daemon only looks again, as after lvextend. The guest is told at once.";
/// And last.
pub const EXAMPLES: &str = "\
Examples:
  outboard-blk grow --control-socket /run/outboard/vm1.control \\
      --image /srv/vm1.img --to 20G
  outboard-blk grow --control-socket /run/outboard/vm1.control

Exit codes:
  0  the guest has been told, if the disk has grown
  1  failure; the daemon cannot be asked, or sees no larger disk
  2  bad option, or the image is larger already";

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to grow.
#[derive(Debug, Args)]
pub struct Options {
    /// The daemon's --control-socket
    #[arg(long, value_name = "PATH")]
    control_socket: PathBuf,

    /// The image file that it serves
    #[arg(long, value_name = "PATH", requires = "to")]
    image: Option<PathBuf>,

    /// Bytes that the image is to have, as 20G
    #[arg(long, value_name = "SIZE", requires = "image", value_parser = disk_size)]
    to: Option<u64>,

    /// Say what became of it as JSON
    #[arg(long)]
    json: bool,
}

impl Options {
    /// Enlarges the image, and has the daemon look.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn run(&self) -> Result<(), Failure> {
        let mut daemon = Daemon::connect(&self.control_socket)?;
        let before = daemon.size(Method::Get, None)?;
        if let (Some(image), Some(bytes)) = (&self.image, self.to) {
            enlarge(image, bytes)?;
        }
        // At least what it was: that it is to look is all that is meant.
        let now = daemon.size(Method::Put, Some(&json!({ SIZE: before })))?;
        if let (Some(image), true) = (&self.image, now == before) {
            return Err(Failure::host(format!(
                "The disk has {} as before; see that the daemon at {} serves --image {}, and all of it",
                in_units(&now),
                self.control_socket.display(),
                image.display()
            )));
        }
        if self.json {
            return say(json!({ "before_bytes": before, "size_bytes": now }));
        }
        match now == before {
            true => say(format_args!("The disk has {} as before", in_units(&now))),
            false => say(format_args!("The disk has {} now, {} before", in_units(&now), in_units(&before))),
        }
    }
}

/// Its room is taken when the guest writes there.
fn enlarge(image: &Path, bytes: u64) -> Result<(), Failure> {
    let named = |problem: String| format!("--image {}: {problem}", image.display());
    let failed = |error: io::Error| Failure::host(named(format!("cannot enlarge it: {error}")));
    let file = File::options().write(true).open(image).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        let cure = "enlarge it by its own means, then leave out --image and --to";
        return Err(Failure::option(named(format!("this is no file; {cure}"))));
    }
    if meta.len() > bytes {
        let has = in_units(&meta.len());
        return Err(Failure::option(named(format!("it has {has} already; give --to that or more"))));
    }
    file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// Whom to ask.
struct Daemon<'a> {
    socket: &'a Path,
    client: Client,
}

impl Daemon<'_> {
    fn connect(socket: &Path) -> Result<Daemon<'_>, Failure> {
        let client = Client::connect(socket, PATIENCE).map_err(|error| refused(socket, &error))?;
        Ok(Daemon { socket, client })
    }

    /// What it answers as the size of its disk.
    fn size(&mut self, method: Method, body: Option<&Value>) -> Result<u64, Failure> {
        let reply = self.client.call(method, "/device", body, None);
        let reply = reply.map_err(|error| refused(self.socket, &error))?;
        let told: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let size = told.get(SIZE).and_then(Value::as_u64).filter(|_| reply.status < 300);
        size.ok_or_else(|| match told.get("error").and_then(Value::as_str) {
            Some(error) => self.failure(error.escape_debug()),
            None => self.failure("what answers there is no outboard-blk"),
        })
    }

    fn failure(&self, problem: impl std::fmt::Display) -> Failure {
        Failure::host(format!("--control-socket {}: {problem}", self.socket.display()))
    }
}

fn refused(socket: &Path, error: &ClientError) -> Failure {
    Failure::host(format!("--control-socket {}: {error}", socket.display()))
}
