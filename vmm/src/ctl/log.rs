//! `outboard ctl log`: where a daemon's log goes, how much it tells, and a new file for it.
//!
//! The daemon opens nothing: the file is opened here, as the daemon would have at its start, and passed with the request.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backends::control::Method;
use serde_json::{Value, json};

use super::answer::{DaemonState, Log};
use super::error::CtlError;
use super::socket::Target;
use super::{Ctl, Fields};

/// Of a log file that is made.
const MODE: u32 = 0o640;

/// Changes what the options ask for, and shows how it is then.
pub fn run(ctl: &Ctl<'_>, level: Option<String>, reopen: Option<Option<PathBuf>>) -> Result<(), CtlError> {
    let mut target = ctl.connect()?;
    if let Some(file) = reopen {
        pass_file(&mut target, file)?;
    }
    if let Some(level) = level {
        target.change(Method::Put, "/log", Some(&json!({"level": level})), None)?;
    }
    let state: Value = target.read("/state")?;
    ctl.say(state.get("log").unwrap_or(&Value::Null), || screen(&log_of(&state)))
}

/// Opens the file, or the one that the log has, and hands it over.
fn pass_file(target: &mut Target, file: Option<PathBuf>) -> Result<(), CtlError> {
    let path = match file {
        Some(path) => path,
        None => target.read::<DaemonState>("/state")?.log.file.ok_or(CtlError::NoLogFile)?.into(),
    };
    let file = open(&path).map_err(|cause| CtlError::LogFile { path: path.clone(), cause })?;
    let path = std::path::absolute(&path).unwrap_or(path);
    let body = json!({"file": path.display().to_string()});
    target.change(Method::Post, "/log/reopen", Some(&body), Some(file.as_fd())).map(drop)
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().append(true).create(true).mode(MODE).open(path)
}

fn log_of(state: &Value) -> Log {
    state.get("log").and_then(|log| serde_json::from_value(log.clone()).ok()).unwrap_or_default()
}

fn screen(log: &Log) -> String {
    let mut fields = Fields::default();
    fields.add("level", log.level.clone()).add("format", log.format.clone());
    fields.add("file", log.file.as_deref().unwrap_or("none: standard error"));
    fields.render(None)
}
