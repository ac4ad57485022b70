//! Reports in files: a name that cannot be written is told before anything is measured, a disk that
//! is full after the figures were shown.

use crate::output;
use crate::problem::Problem;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a report goes.
#[derive(Debug)]
pub(crate) enum Sink {
    StandardOutput,
    File(PathBuf, File),
}

impl Sink {
    /// `-` is standard output. What the file holds stays until [`Sink::write`].
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        if path == Path::new("-") {
            return Ok(Sink::StandardOutput);
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| unwritten(path, &error))?;
        Ok(Sink::File(path.to_owned(), file))
    }

    /// Writes all of it in place of what was there.
    pub(crate) fn write(self, text: &[u8]) -> Result<(), Problem> {
        match self {
            Sink::StandardOutput => {
                let mut out = io::stdout().lock();
                let written = out.write_all(text).and_then(|()| out.flush());
                written.map_err(output::unwritten)
            }
            Sink::File(path, mut file) => {
                // What is no regular file cannot be cut off, and need not be.
                let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                let cut = if is_regular { file.set_len(0) } else { Ok(()) };
                cut.and_then(|()| file.write_all(text))
                    .and_then(|()| if is_regular { file.sync_all() } else { Ok(()) })
                    .map_err(|error| unwritten(&path, &error))
            }
        }
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Problem {
    Problem::new(format!("cannot write {}: {error}", path.display()))
}
