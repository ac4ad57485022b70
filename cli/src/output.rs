//! Standard output for people and for programs: its width, its colours, and its failures.
//!
//! Colours are for a terminal, and not where `NO_COLOR` is set. A reader that went away, as `head`
//! does, ends the command quietly; any other failure, such as a full disk, is an error.

use crate::problem::Problem;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Columns where there is no terminal.
const NO_TERMINAL: usize = 100;
/// The fewest columns that text is fitted to.
const NARROWEST: usize = 10;

/// Standard output, without colours where they are not wanted, written in one go.
#[derive(Debug)]
pub(crate) struct Output {
    inner: io::BufWriter<anstream::AutoStream<io::Stdout>>,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self {
            inner: io::BufWriter::new(anstream::AutoStream::auto(io::stdout())),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a message and the end of its line to standard error, in one piece: what two programs say at one terminal
/// stays in lines. Where nobody takes it, it is lost: there is no other place to say so.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
}

/// Prints a message to standard error, as `eprintln` does, by [`say`].
macro_rules! tell {
    ($($message:tt)*) => {
        $crate::output::say(::std::format_args!($($message)*))
    };
}
pub(crate) use tell;

/// Whether lines of the log may have colours: standard error is a terminal, and nothing forbids them.
pub(crate) fn log_has_colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// What it means when writing fails: the disk is full, or nobody reads any more.
pub(crate) fn unwritten(error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error.into(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Problem::new(format!("cannot write the output: {error}"))
                .with_remedy("make room where the output goes, or send it elsewhere: df -h")
        }
        _ => Problem::new(format!("cannot write the output: {error}")),
    }
}

/// The terminal's columns for text; `COLUMNS` goes before.
pub(crate) fn width() -> usize {
    columns().unwrap_or(NO_TERMINAL)
}

/// The terminal's columns for tables: where there is no terminal, a program may read them line by
/// line, so there is no limit.
pub(crate) fn table_width() -> usize {
    columns().unwrap_or(usize::MAX)
}

fn columns() -> Option<usize> {
    let asked = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok());
    let found = || match io::stdout().is_terminal() {
        true => terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)),
        false => None,
    };
    let width = asked.or_else(found).filter(|width| *width > 0);
    width.map(|width: usize| width.max(NARROWEST))
}

/// Text in lines of at most so many columns, each indented.
pub(crate) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let indentation = " ".repeat(indent);
    let options = textwrap::Options::new(width.max(indent + 1))
        .initial_indent(&indentation)
        .subsequent_indent(&indentation)
        .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit);
    textwrap::fill(text, options)
}

/// The same behind something that takes the place of the first line's indentation.
pub(crate) fn wrap_behind(text: &str, width: usize, indent: usize) -> String {
    let wrapped = wrap(text, width, indent);
    wrapped.get(indent..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indented_line_is_no_wider_either() {
        let text = wrap(&"word ".repeat(40), 30, 8);
        assert!(text.lines().all(|line| line.len() <= 30), "{text}");
    }

    #[test]
    fn text_is_wrapped_under_what_stands_before_it() {
        assert_eq!(wrap_behind("one two three", 12, 4), "one two\n    three");
        assert_eq!(wrap("one two three", 12, 4), "    one two\n    three");
        assert_eq!(wrap("one", 80, 0), "one");
    }
}
