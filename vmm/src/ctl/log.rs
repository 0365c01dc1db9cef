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
        match file {
            Some(file) => pass(&mut target, &file, Some(&json!({"file": whole(&file)})))?,
            None => pass_again(&mut target)?,
        }
    }
    if let Some(level) = level {
        target.change(Method::Put, "/log", Some(&json!({"level": level})), None)?;
    }
    let state: Value = target.read("/state")?;
    ctl.say(&state["log"], || screen(&serde_json::from_value(state["log"].clone()).unwrap_or_default()))
}

/// Opens the file that the log has by its name, and hands it over.
fn pass_again(target: &mut Target) -> Result<(), CtlError> {
    let file = target.read::<Answer>("/state")?.log.file.ok_or(CtlError::NoLogFile)?;
    pass(target, Path::new(&file), None)
}

/// Opens the file and hands it over, with its name if that is another.
fn pass(target: &mut Target, path: &Path, name: Option<&Value>) -> Result<(), CtlError> {
    let file = open(path).map_err(|cause| CtlError::LogFile { path: path.to_owned(), cause })?;
    target.change(Method::Post, "/log/reopen", name, Some(file.as_fd())).map(drop)
}

/// The path as other programs can use it.
fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
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
