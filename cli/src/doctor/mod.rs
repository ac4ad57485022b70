//! `san doctor`: why the SAN can be used on this machine, or cannot, and which way a connection to a
//! peer takes. Each line says what is and, if that is not well, what to type.
//!
//! `gather/` finds facts and does all I/O; `judge/` turns them into lines and does none.

mod facts;
mod gather;
mod judge;
mod line;

use crate::args::DoctorArguments;
use crate::output::{self, Output};
use crate::problem::Problem;
use anstyle::{AnsiColor, Style};
use facts::Facts;
use line::{Level, Line};
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// The form of the JSON report.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize)]
struct Diagnosis<'a> {
    format: u32,
    version: &'static str,
    /// Nothing failed.
    ok: bool,
    lines: &'a [Line],
    facts: &'a Facts,
}

/// Examines the machine, and the way to a peer. The exit status is 1 when something failed.
pub(crate) fn run(arguments: &DoctorArguments) -> Result<ExitCode, Problem> {
    let facts = gather::gather(arguments.peer.as_ref());
    let lines = judge::judge(&facts);
    let ok = lines.iter().all(|line| line.level != Level::Fail);
    let mut out = Output::stdout();
    let printed = match arguments.json {
        true => {
            let report = Diagnosis {
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION"),
                ok,
                lines: &lines,
                facts: &facts,
            };
            serde_json::to_writer_pretty(&mut out, &report)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        }
        false => print(&mut out, &lines, output::width()),
    };
    printed
        .and_then(|()| out.flush())
        .map_err(output::unwritten)?;
    Ok(match ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// The lines for people, in a terminal of this many columns.
fn print(out: &mut impl Write, lines: &[Line], width: usize) -> io::Result<()> {
    let names = lines.iter().map(|line| line.check.len());
    let names = names.max().unwrap_or(0);
    // In a narrow terminal the text stands under its name.
    let indent = match width < 4 * (names + 8) {
        true => 2,
        false => 6 + names + 2,
    };
    for line in lines {
        let style = style(line.level);
        let (word, check) = (line.level.word(), line.check);
        let head = format!("{word:<4}  {check:<names$}  ");
        let text = match indent < head.len() {
            true => {
                writeln!(out, "{style}{word:<4}{style:#}  {check}")?;
                output::wrap(&line.text, width, indent)
            }
            false => {
                write!(out, "{style}{word:<4}{style:#}  {check:<names$}  ")?;
                output::wrap_behind(&line.text, width, indent)
            }
        };
        writeln!(out, "{text}")?;
        if let Some(remedy) = &line.remedy {
            let remedy = format!("-> {remedy}");
            writeln!(out, "{}", output::wrap(&remedy, width, indent))?;
        }
    }
    let count = |level| lines.iter().filter(|line| line.level == level).count();
    let (warned, failed) = (count(Level::Warn), count(Level::Fail));
    let verdict = match (failed, warned) {
        (0, 0) => "all is well".to_owned(),
        (0, warned) => format!("it works; {warned} to look at"),
        (failed, 0) => format!("{failed} failed"),
        (failed, warned) => format!("{failed} failed, {warned} to look at"),
    };
    writeln!(out, "{}", output::wrap(&verdict, width, 0))
}

fn style(level: Level) -> Style {
    let color = match level {
        Level::Ok => AnsiColor::Green,
        Level::Warn => AnsiColor::Yellow,
        Level::Fail => AnsiColor::Red,
    };
    Style::new().fg_color(Some(color.into())).bold()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(width: usize) -> String {
        let lines = [
            Line::ok("fabric", "soft: RoCEv2 in user space, by UDP port 4791"),
            Line::fail(
                "memlock",
                "only 64 KiB may be locked in memory, and registered memory is locked",
                "ulimit -l unlimited",
            ),
        ];
        let mut out = Vec::new();
        print(&mut out, &lines, width).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn a_wide_terminal_has_columns() {
        let wanted = "ok    fabric   soft: RoCEv2 in user space, by UDP port 4791\n\
                      fail  memlock  only 64 KiB may be locked in memory, and registered memory is locked\n\
                      \x20              -> ulimit -l unlimited\n\
                      1 failed\n";
        assert_eq!(printed(100), wanted);
    }

    #[test]
    fn a_terminal_of_20_columns_has_all_the_words() {
        let text = printed(20);
        for line in text.lines() {
            assert!(line.chars().count() <= 20, "{line}");
        }
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&text), words(&printed(200)));
    }
}
