//! The files that options name to be written: made last, and all of them or none.
//!
//! In: option and path. Out: an empty file. Between [`OutputFile::open`] and [`OutputFile::keep`] an old file
//! keeps its contents, and a new one goes away with the [`OutputFile`]; so whoever opens all files before the
//! first is kept leaves nothing behind when one of them cannot be had.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// A file that is open for writing, but not changed yet.
#[derive(Debug)]
pub struct OutputFile {
    option: &'static str,
    path: PathBuf,
    file: File,
    /// It was not there before.
    made: bool,
}

impl OutputFile {
    /// Opens the file that `option` names, and makes it if need be.
    ///
    /// # Errors
    /// [`Error::OutputFile`].
    pub fn open(option: &'static str, path: &Path) -> Result<OutputFile, Error> {
        let (file, made) = match File::options().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (File::options().write(true).create(true).truncate(false).open(path), false)
            }
            made => (made, true),
        };
        let file = file.map_err(refused(option, path))?;
        Ok(OutputFile { option, path: path.to_owned(), file, made })
    }

    /// Empties the file; it stays.
    ///
    /// # Errors
    /// [`Error::OutputFile`].
    pub fn keep(mut self) -> Result<File, Error> {
        let emptied = self.empty().map_err(refused(self.option, &self.path))?;
        self.made = false;
        Ok(emptied)
    }

    fn empty(&self) -> io::Result<File> {
        // A pipe or a terminal has no length.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.try_clone()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.made {
            // Somebody else may have been quicker; what counts is that it is gone.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn refused(option: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::OutputFile { option, path: path.clone(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_stays_only_if_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        drop(OutputFile::open("--x", &path).unwrap());
        assert!(!path.exists());
        OutputFile::open("--x", &path).unwrap().keep().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn an_old_file_is_emptied_only_if_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "old").unwrap();
        drop(OutputFile::open("--x", &path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        OutputFile::open("--x", &path).unwrap().keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn what_has_no_length_and_what_is_not_there_yet_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        OutputFile::open("--x", Path::new("/dev/null")).unwrap().keep().unwrap();
        std::os::unix::fs::symlink("target", dir.path().join("link")).unwrap();
        OutputFile::open("--x", &dir.path().join("link")).unwrap().keep().unwrap();
        assert!(dir.path().join("target").exists());
    }

    #[test]
    fn a_file_that_cannot_be_had_is_named_with_its_option() {
        let error = OutputFile::open("--x", Path::new("/nowhere/f")).unwrap_err().to_string();
        assert!(error.starts_with("--x /nowhere/f: "), "{error}");
        assert!(OutputFile::open("--x", Path::new("/")).is_err());
    }
}
