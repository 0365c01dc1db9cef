//! `outboard ctl log`: where a log goes, how much it tells, and a new file for it.
//!
//! The daemon opens nothing: the file is opened here, as the daemon would have at its start, and passed with the request.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backends::control::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Log;
use super::error::CtlError;
use super::socket::Target;
use super::{Ctl, Fields};

/// Of a log file that is made.
const MODE: u32 = 0o640;

/// What daemons and machines answer alike.
#[derive(Deserialize)]
struct Answer {
    log: Log,
}

/// Changes what the options ask for, and shows how it is then.
pub fn run(ctl: &Ctl<'_>, level: Option<String>, reopen: Option<Option<PathBuf>>) -> Result<(), CtlError> {
    let mut target = ctl.connect()?;
    if let Some(file) = reopen {
        let file = match file {
            Some(file) => file,
            None => target.read::<Answer>("/state")?.log.file.ok_or(CtlError::NoLogFile)?.into(),
        };
        pass_file(&mut target, &file)?;
    }
    if let Some(level) = level {
        target.change(Method::Put, "/log", Some(&json!({"level": level})), None)?;
    }
    let state: Value = target.read("/state")?;
    ctl.say(&state["log"], || screen(&serde_json::from_value(state["log"].clone()).unwrap_or_default()))
}

/// Opens the file and hands it over.
fn pass_file(target: &mut Target, path: &Path) -> Result<(), CtlError> {
    let file = open(path).map_err(|cause| CtlError::LogFile { path: path.to_owned(), cause })?;
    target.change(Method::Post, "/log/reopen", None, Some(file.as_fd())).map(drop)
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().append(true).create(true).mode(MODE).open(path)
}

fn screen(log: &Log) -> String {
    let mut fields = Fields::default();
    fields.add("level", log.level.clone()).add("format", log.format.clone());
    fields.add("file", log.file.as_deref().unwrap_or("none: standard error"));
    fields.render(None)
}
