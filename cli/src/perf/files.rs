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
    File(OpenFile),
}

/// A file that is open, and as it was.
#[derive(Debug)]
pub(crate) struct OpenFile {
    path: PathBuf,
    file: File,
    /// It was made for this, and has nothing in it: it goes again if nothing comes.
    is_ours: bool,
}

impl Sink {
    /// `-` is standard output. What a file holds stays until [`Sink::write`].
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        if path == Path::new("-") {
            return Ok(Sink::StandardOutput);
        }
        let mut options = OpenOptions::new();
        options.write(true);
        let made = options.clone().create_new(true).open(path);
        let is_ours = made.is_ok();
        let file = match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
            made => made,
        };
        Ok(Sink::File(OpenFile {
            file: file.map_err(|error| unwritten(path, &error))?,
            path: path.to_owned(),
            is_ours,
        }))
    }

    /// Writes all of it in place of what was there.
    pub(crate) fn write(self, text: &[u8]) -> Result<(), Problem> {
        match self {
            Sink::StandardOutput => {
                let mut out = io::stdout().lock();
                let written = out.write_all(text).and_then(|()| out.flush());
                written.map_err(output::unwritten)
            }
            Sink::File(mut file) => {
                let written = file.replace(text);
                file.is_ours &= written.is_err();
                written.map_err(|error| unwritten(&file.path, &error))
            }
        }
    }
}

impl OpenFile {
    fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        // What is no regular file cannot be cut off, and need not be.
        let is_regular = self.file.metadata()?.is_file();
        if is_regular {
            self.file.set_len(0)?;
        }
        self.file.write_all(text)?;
        match is_regular {
            true => self.file.sync_all(),
            false => Ok(()),
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Problem {
    Problem::of_file("cannot write", path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("san-files-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_report_takes_the_place_of_what_was_there() {
        let path = fresh("replaced");
        std::fs::write(&path, "a longer text than the next").unwrap();
        let sink = Sink::open(&path).unwrap();
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .starts_with("a longer")
        );
        sink.write(b"short").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
        std::fs::remove_file(&path).unwrap();
        assert!(Sink::open(Path::new("/no/such/directory/file")).is_err());
        let full = Sink::open(Path::new("/dev/full"))
            .unwrap()
            .write(b"x")
            .unwrap_err();
        assert!(full.text().contains("cannot write /dev/full"), "{full}");
        assert!(Path::new("/dev/full").exists());
    }

    #[test]
    fn where_nothing_is_measured_no_file_is_left_and_none_is_lost() {
        let (made, old) = (fresh("made"), fresh("old"));
        std::fs::write(&old, "old").unwrap();
        drop((Sink::open(&made).unwrap(), Sink::open(&old).unwrap()));
        assert!(!made.exists());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "old");
        std::fs::remove_file(&old).unwrap();
        Sink::open(&made).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&made).unwrap(), "new");
        std::fs::remove_file(&made).unwrap();
    }
}
