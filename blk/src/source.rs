//! What a disk is made of: from the command line to a plan, and from that, in each worker, to a graph.
//!
//! In: the path of an image or of a graph. Out: in the first process all that it names, opened and locked; the text of a
//! graph goes on from there under the name [`GRAPH`], since a worker opens nothing, and one that changed its graph leaves
//! the new text there for the next, and for the next keeper. In a worker: the graph. An image is the graph of one volume, [`IMAGE`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use backends::daemon::Failure;
use backends::kept::Kept;
use backends::opened::Opened;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::pread;

use crate::graph::change;
use crate::graph::error::GraphError;
use crate::graph::kinds::KINDS;
use crate::graph::live::{self, Live};
use crate::graph::plan::Plan;
use crate::graph::registry::Purpose;
use crate::graph::volfile::{MAX_BYTES, VolumeText};
use crate::storage::image::Image;
use crate::tool::graph::{load, look, read};

/// Under which name the text of the graph is kept.
pub const GRAPH: &str = change::TEXT;
/// Name of the one volume of a disk that is one image.
const IMAGE: &str = "image";

/// What the command line names.
#[derive(Clone, Debug)]
pub enum Source {
    /// One image.
    Image(Image),
    /// A file with a graph.
    Graph(PathBuf),
}

impl Source {
    /// Whether it could be served if nobody else used it.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn check(&self) -> Result<(), Failure> {
        match self {
            Source::Image(image) => Ok(image.check()?),
            Source::Graph(path) => load(path).map(drop),
        }
    }

    /// Opens all that workers need.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn prepare(&self, opened: &mut Opened) -> Result<(), Failure> {
        if let Some(record) = opened.before(GRAPH) {
            let text = contents(&record).map_err(Failure::host)?;
            if live::is_record(&String::from_utf8_lossy(&text)) {
                return self.go_on(record, &text, opened);
            }
        }
        match self {
            Source::Image(image) => Ok(image.prepare(IMAGE, opened)?),
            Source::Graph(path) => {
                let text = read(path)?;
                let plan = self.plan(&text)?;
                // What volumes themselves refuse is told here, not by each worker.
                let (plan, _) = look(plan).map_err(self.refused())?;
                plan.prepare(Purpose::Serve, opened).map_err(self.refused())?;
                opened.hand_on(GRAPH, in_memory(&text).map_err(Failure::host)?);
                Ok(())
            }
        }
    }

    /// A keeper before this one had a graph that was changed live, and with it perhaps a guest whose data are there: it
    /// goes on, whatever the command line names.
    fn go_on(&self, record: OwnedFd, text: &[u8], opened: &mut Opened) -> Result<(), Failure> {
        let plan = self.plan(text)?;
        let text = String::from_utf8_lossy(text);
        for gift in live::recorded(&text) {
            if let Some(fd) = opened.before(gift) {
                opened.hand_on(gift, fd);
            }
        }
        let came_live = |name: &str| live::recorded(&text).any(|gift| live::volume_of(gift) == Some(name));
        plan.prepare_some(|planned| !came_live(&planned.text.name), opened).map_err(self.refused())?;
        opened.hand_on(GRAPH, record);
        Ok(())
    }

    /// What is to be served, of what was opened: the graph of whoever changed it last, or that of the command line.
    ///
    /// # Errors
    /// It was not opened, or has changed since then.
    pub fn find(&self, kept: &Kept) -> Result<Live, Failure> {
        let text = match (kept.take(GRAPH), self) {
            (None, Source::Image(_)) => None,
            (text, _) => {
                let text = text.ok_or_else(|| Failure::host("the graph is not open"))?;
                Some(contents(&text).map_err(Failure::host)?)
            }
        };
        let gifts = live::claim(&String::from_utf8_lossy(text.as_deref().unwrap_or_default()), kept);
        let plan = match (text, self) {
            (None, Source::Image(image)) => {
                Plan::of(vec![as_volume(image)], KINDS).map_err(self.refused())?
            }
            (text, _) => self.plan(&text.unwrap_or_default())?,
        };
        let graph = plan.graph(kept).map_err(self.refused())?;
        Ok(Live::new(plan, graph, gifts))
    }

    fn plan(&self, text: &[u8]) -> Result<Plan, Failure> {
        Plan::read(text).map_err(self.refused())
    }

    fn refused(&self) -> impl Fn(GraphError) -> Failure {
        let (Source::Image(Image { path, .. }) | Source::Graph(path)) = self;
        move |error| error.failure(path)
    }
}

/// The graph of one image.
fn as_volume(image: &Image) -> VolumeText {
    let on = |set: bool| if set { "on" } else { "off" }.to_owned();
    let options = [
        ("path", image.path.to_string_lossy().into_owned()),
        ("read-only", on(image.read_only)),
        ("direct", on(image.direct)),
        ("block-size", image.block_bytes.to_string()),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), value, 0)).into();
    VolumeText { options, ..VolumeText::new(IMAGE, "storage/file") }
}

/// A file of memory with this text.
///
/// # Errors
/// The host has no descriptor or no memory left.
pub fn in_memory(text: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("graph", MemfdFlags::CLOEXEC)?);
    file.write_all(text)?;
    Ok(file.into())
}

/// The text in a file of memory.
fn contents(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut text = vec![0; MAX_BYTES.saturating_add(1)];
    let mut count = 0;
    loop {
        let rest = text.get_mut(count..).unwrap_or_default();
        match pread(file, rest, count as u64)? {
            0 => break,
            more => count = count.saturating_add(more),
        }
    }
    text.truncate(count);
    Ok(text)
}
