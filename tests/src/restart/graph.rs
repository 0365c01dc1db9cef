//! A disk over five layers: [`super::blk`]'s, with a graph between it and its images.
//!
//! ```text
//! counted   debug/io-stats
//! limited   features/throttle      a limit that is never reached: all that passes is counted against it
//! joined    features/map           the two below in three ranges, so that requests cross from one to the other
//! secret0, secret1  features/crypt in units of a sector: what is torn at a sector is torn between units
//! image0, image1    storage/file
//! ```

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{Launch, binary};
use crate::oracle::SECTOR_BYTES;

/// Names in the daemon's directory: of the graph, and of the control socket.
const FILE: &str = "disk.vol";
const CONTROL: &str = "blk.control";
/// Operations a second that nobody reaches.
const LIMIT: &str = "10000000";
const OTHER_LIMIT: &str = "9000000";
/// Names of the images beside it.
pub const IMAGES: [&str; 2] = ["image0.img", "image1.img"];

/// Options for a disk of so many sectors, a multiple of 4, over such a graph.
///
/// # Panics
/// There is no room for the files.
pub fn launch(launch: Launch, sectors: u64) -> Launch {
    let (dir, bytes) = (launch.dir(), sectors * SECTOR_BYTES as u64);
    for name in IMAGES {
        write(&dir.join(name), &vec![0; usize::try_from(bytes / 2).unwrap_or(0)]);
    }
    write(&dir.join("key"), &std::array::from_fn::<u8, 64, _>(|nth| nth.to_le_bytes()[0]));
    let file = dir.join(FILE);
    write(&file, text(dir, bytes).as_bytes());
    let words = ["--queues", "2", "--control-socket", CONTROL, "--graph"].map(str::to_owned);
    launch.args(words).args([file.display().to_string()])
}

/// Other graphs for such a daemon, with the same bytes: an option of one volume, a volume more, one less, two less.
#[derive(Debug)]
pub struct Changes {
    control: PathBuf,
    files: Vec<PathBuf>,
}

impl Changes {
    /// For the daemon in this directory, whose disk has so many sectors; the last change is back to how it began.
    ///
    /// # Panics
    /// There is no room for the files.
    pub fn new(dir: &Path, sectors: u64) -> Changes {
        let five = text(dir, sectors * SECTOR_BYTES as u64);
        let before =
            |name: &str| five.split(&format!("volume {name}\n")).next().unwrap_or_default().to_owned();
        let six = five.clone() + &volume("again", "debug/io-stats", &[], "counted");
        let texts = [five.replace(LIMIT, OTHER_LIMIT), six, before("counted"), before("limited"), five];
        let files = texts.iter().enumerate().map(|(nth, text)| {
            let path = dir.join(format!("change{nth}.vol"));
            write(&path, text.as_bytes());
            path
        });
        Changes { control: dir.join(CONTROL), files: files.collect() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// What makes one of them, without end if the daemon does not answer.
    pub fn apply(&self, nth: usize) -> Command {
        let mut command = Command::new(binary("outboard-blk"));
        command.args(["graph", "apply"]).arg(&self.files[nth % self.files.len()]);
        command.arg("--control-socket").arg(&self.control);
        command
    }

    /// Makes one of them.
    ///
    /// # Errors
    /// What it says when it is refused.
    pub fn make(&self, nth: usize) -> Result<(), String> {
        let output = self.apply(nth).output().map_err(|error| error.to_string())?;
        let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(said()) }
    }
}

/// The graph, of a disk of so many bytes, whose files are in `dir`.
pub fn text(dir: &Path, bytes: u64) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let side = |nth: usize| {
        volume(&format!("image{nth}"), "storage/file", &[("path", &path(IMAGES[nth]))], "")
            + &volume(
                &format!("secret{nth}"),
                "features/crypt",
                &[("key-file", &path("key"))],
                &format!("image{nth}"),
            )
    };
    let (half, quarter) = (bytes / 2, bytes / 4);
    let ranges = format!("secret0:0+{quarter} secret1:0+{half} secret0:{quarter}+{quarter}");
    side(0)
        + &side(1)
        + &volume("joined", "features/map", &[("ranges", &ranges)], "secret0 secret1")
        + &volume("limited", "features/throttle", &[("ops", LIMIT)], "joined")
        + &volume("counted", "debug/io-stats", &[], "limited")
}

/// One volume as a graph has it.
pub fn volume(name: &str, kind: &str, options: &[(&str, &str)], below: &str) -> String {
    let options: String =
        options.iter().map(|(key, value)| format!("  option {key} \"{value}\"\n")).collect();
    let below = if below.is_empty() { String::new() } else { format!("  subvolumes {below}\n") };
    format!("volume {name}\n  type {kind}\n{options}{below}end-volume\n")
}

/// For its owner alone, as keys have to be.
fn write(path: &Path, content: &[u8]) {
    let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(content));
    written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
