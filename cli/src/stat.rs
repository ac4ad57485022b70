//! `san stat`: what a running process does with its switch, as a table or as JSON.
//!
//! Where the numbers come from is `san_switch::stat`'s business; this only prints them. What a
//! process says of itself is not trusted: text from it is stripped of what a terminal would obey.

use crate::args::StatArguments;
use crate::exporter;
use crate::output::{self, Output};
use crate::problem::Problem;
use crate::reports::{self, Reports};
use crate::table::{Table, plain};
use san_switch::stat::{
    ConnectionReport, LeftToTcp, ListenerReport, Numbers, ProviderReport, openmetrics,
};
use san_switch::{Report, StatError};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Prints the statistics once, or again and again.
pub(crate) fn run(arguments: &StatArguments) -> Result<ExitCode, Problem> {
    if let Some(place) = &arguments.serve {
        return exporter::serve(place).map(|never| match never {});
    }
    let Some(seconds) = arguments.watch else {
        return show(arguments).map(|()| ExitCode::SUCCESS);
    };
    loop {
        if io::stdout().is_terminal() && !arguments.json {
            // Home, and clear what is below.
            print!("\x1b[H\x1b[2J");
        }
        show(arguments)?;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn show(arguments: &StatArguments) -> Result<(), Problem> {
    let found = match arguments.pid {
        Some(pid) => Reports {
            reports: Report::of_process(pid)?,
            unanswered: 0,
        },
        None => reports::of_all(),
    };
    let mut out = Output::stdout();
    write(&mut out, arguments, &found)
        .and_then(|()| out.flush())
        .map_err(output::unwritten)
}

fn write(out: &mut impl Write, arguments: &StatArguments, found: &Reports) -> io::Result<()> {
    let width = output::table_width();
    let reports = &found.reports;
    if arguments.openmetrics {
        out.write_all(openmetrics(reports, found.unanswered).as_bytes())
    } else if arguments.json {
        // One line, so that those of --watch can be told apart.
        serde_json::to_writer(&mut *out, reports).map_err(io::Error::from)?;
        writeln!(out)
    } else if arguments.pid.is_some() {
        reports.iter().try_for_each(|one| print(out, one, width))
    } else if reports.is_empty() {
        writeln!(out, "no process of this user has a San Direct switch")?;
        let remedy = "-> start a program with one: san run -- PROGRAM; one with SAN_STAT=off or another \
            XDG_RUNTIME_DIR is not found";
        folded(out, remedy, width, 2)?;
        unanswered(out, found.unanswered)
    } else {
        overview(out, reports, width)?;
        unanswered(out, found.unanswered)
    }
}

fn unanswered(out: &mut impl Write, count: usize) -> io::Result<()> {
    match count {
        0 => Ok(()),
        n => writeln!(out, "{n} more did not answer"),
    }
}

impl From<StatError> for Problem {
    fn from(error: StatError) -> Self {
        let problem = Problem::new(plain(&error.to_string()));
        match &error {
            StatError::NoProcess { .. } => problem.with_remedy("see which there are: san stat"),
            StatError::NoSwitch { pid, .. } if has_library(*pid) => Problem::new(format!(
                "process {pid} runs with the library of san run, and none of its connections has come to the \
                 SAN so far: all go over TCP"
            ))
            .with_remedy(
                "a connection moves when it has carried SAN_UPGRADE_BYTES bytes; see the settings: san config",
            ),
            StatError::NoSwitch { .. } => problem.with_remedy(
                "statistics are off with SAN_STAT=off; see who has a switch: san stat",
            ),
            StatError::Foreign { uid, .. } => problem.with_remedy(format!(
                "ask as that user or as root: sudo -u '#{uid}' san stat"
            )),
            _ => problem,
        }
    }
}

/// Whether the process runs with the library that `san run` loads.
fn has_library(pid: u32) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.ends_with("/libsan.so"))
}

fn overview(out: &mut impl Write, reports: &[Report], width: usize) -> io::Result<()> {
    let mut table = Table::new(&[
        "PID",
        "PROGRAM",
        "UP",
        "SAN",
        "LISTENERS",
        "CONNECTIONS",
        "SAN",
        "TCP",
    ]);
    for report in reports {
        let san = report
            .connections
            .iter()
            .filter(|one| one.route == "san")
            .count();
        let providers: Vec<&str> = report
            .providers
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        let providers = match providers.is_empty() {
            true => "-".to_owned(),
            false => providers.join(","),
        };
        table.row(&[
            report.pid.to_string(),
            report.program.clone(),
            age(report.uptime_ms),
            providers,
            report.listeners.len().to_string(),
            (report.connections.len() + report.omitted).to_string(),
            san.to_string(),
            (report.connections.len() - san).to_string(),
        ]);
    }
    table.print(out, width)
}

fn print(out: &mut impl Write, report: &Report, width: usize) -> io::Result<()> {
    let program = plain(&report.program);
    writeln!(
        out,
        "process {} ({program}), up {}",
        report.pid,
        age(report.uptime_ms)
    )?;
    if let Some(why) = &report.no_san {
        folded(out, &format!("no SAN: {}", plain(why)), width, 0)?;
        folded(out, "-> see what is missing: san doctor", width, 2)?;
    }
    folded(
        out,
        &format!("switch: {}", counted(&report.switch)),
        width,
        0,
    )?;
    for one in &report.providers {
        provider(out, one, width)?;
    }
    match report.listeners.is_empty() {
        true if has_library(report.pid) => {
            let text = "no listener on the SAN: the kernel listens for a program of san run, unless its route is direct";
            folded(out, text, width, 0)?;
        }
        true => writeln!(out, "no listener")?,
        false => listeners(out, &report.listeners, width)?,
    }
    connections(out, &report.connections, report.omitted, width)?;
    left_to_tcp(out, &report.left_to_tcp, width)
}

/// A line, in several where the terminal is narrower; each but the first indented a little more.
fn folded(out: &mut impl Write, text: &str, width: usize, indent: usize) -> io::Result<()> {
    let before = " ".repeat(indent);
    writeln!(
        out,
        "{before}{}",
        output::wrap_behind(text, width, indent + 2).trim_start()
    )
}

fn provider(out: &mut impl Write, provider: &ProviderReport, width: usize) -> io::Result<()> {
    let (name, sockets) = (plain(&provider.name), provider.sockets);
    let counters = counted(&provider.counters);
    let text = format!("provider {name}: sockets {sockets}; {counters}");
    folded(out, &text, width, 0)?;
    for device in &provider.devices {
        if !device.counters.is_empty() {
            let name = plain(&device.name);
            // A kernel's device counts for all who use it, the soft fabric's for this process.
            let whose = match provider.name.as_str() {
                "soft" => "this process",
                _ => "all processes",
            };
            let counters = counted(&device.counters);
            folded(
                out,
                &format!("device {name}, {whose}: {counters}"),
                width,
                2,
            )?;
        }
    }
    Ok(())
}

fn listeners(out: &mut impl Write, listeners: &[ListenerReport], width: usize) -> io::Result<()> {
    let mut table = Table::new(&[
        "LISTENER",
        "BACKLOG",
        "WAITING",
        "SAN",
        "TCP",
        "REFUSED: BACKLOG",
        "CONDITION",
    ]);
    for listener in listeners {
        let number = |name| value(&listener.counters, name).to_string();
        // Past the provider's backlog, or past the switch's.
        let of_companions = |name| -> u64 {
            let companions = listener.companions.iter();
            companions.map(|one| value(&one.counters, name)).sum()
        };
        let full = value(&listener.counters, "refused_backlog") + of_companions("refused_backlog");
        table.row(&[
            listener.address.to_string(),
            listener.backlog.to_string(),
            listener.waiting.to_string(),
            number("san_accepted"),
            number("tcp_accepted"),
            full.to_string(),
            number("refused_condition"),
        ]);
    }
    table.print(out, width)?;
    for listener in listeners {
        for companion in &listener.companions {
            let counted = counted(&companion.counters);
            let held = companion.held;
            let state = plain(&companion.state);
            folded(out, &format!("{state}, holds {held}; {counted}"), width, 2)?;
        }
    }
    Ok(())
}

fn connections(
    out: &mut impl Write,
    connections: &[ConnectionReport],
    omitted: usize,
    width: usize,
) -> io::Result<()> {
    if connections.is_empty() {
        return writeln!(out, "no connection");
    }
    let mut table = Table::new(&[
        "LOCAL", "PEER", "ROUTE", "AGE", "SENT", "RECEIVED", "MESSAGES", "RECEIVED", "WAITED",
    ]);
    for connection in connections {
        let number = |name| value(&connection.counters, name).to_string();
        let why = connection.why.as_ref().or(connection.not_tried.as_ref());
        let route = match (&connection.device, why) {
            (Some(device), _) => format!("san {device}"),
            (None, Some(why)) => format!("tcp, since {why}"),
            (None, None) => "tcp".to_owned(),
        };
        table.row(&[
            connection.local.to_string(),
            connection.peer.to_string(),
            route,
            age(connection.age_ms),
            number("bytes_sent"),
            number("bytes_received"),
            number("messages_sent"),
            number("messages_received"),
            number("sends_delayed"),
        ]);
    }
    table.print(out, width)?;
    if omitted > 0 {
        writeln!(out, "and {omitted} more")?;
    }
    remedies(out, connections, width)
}

/// The last connects of an unmodified program that were left to TCP: the kernel has their connections.
fn left_to_tcp(out: &mut impl Write, left: &[LeftToTcp], width: usize) -> io::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["LEFT TO TCP", "AGO", "SINCE"]);
    let mut told = BTreeMap::new();
    for one in left {
        let why = plain(&one.why).to_string();
        table.row(&[one.peer.to_string(), age(one.age_ms), why]);
        told.entry(&one.why).or_insert(&one.remedy);
    }
    table.print(out, width)?;
    mended(out, told, width)
}

/// What mends each reason for TCP: one of the connections of each reason stands for all.
fn remedies(
    out: &mut impl Write,
    connections: &[ConnectionReport],
    width: usize,
) -> io::Result<()> {
    let mut told = BTreeMap::new();
    for one in connections {
        let why = one.why.as_ref().or(one.not_tried.as_ref());
        if let (Some(why), Some(remedy)) = (why, &one.remedy) {
            told.entry(why).or_insert(remedy);
        }
    }
    mended(out, told, width)
}

/// Each reason with its remedy.
fn mended(out: &mut impl Write, told: BTreeMap<&String, &String>, width: usize) -> io::Result<()> {
    for (why, remedy) in told {
        let text = format!("tcp, since {}", plain(why));
        writeln!(out, "{}", output::wrap(&text, width, 0))?;
        let remedy = format!("-> {}", plain(remedy));
        writeln!(out, "{}", output::wrap(&remedy, width, 2))?;
    }
    Ok(())
}

fn value(counters: &Numbers, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// What is not zero.
fn counted(counters: &Numbers) -> String {
    let some = counters.iter().filter(|(_, value)| **value > 0);
    let words: Vec<String> = some
        .map(|(name, value)| format!("{} {value}", plain(name)))
        .collect();
    match words.is_empty() {
        true => "nothing counted".to_owned(),
        false => words.join(", "),
    }
}

/// A time in words that are short: `5s`, `1h01m`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_counted_is_told() {
        let mut numbers = Numbers::new();
        numbers.insert("requests".to_owned(), 0);
        assert_eq!(counted(&numbers), "nothing counted");
        numbers.insert("accepted".to_owned(), 2);
        assert_eq!(counted(&numbers), "accepted 2");
    }

    #[test]
    fn reasons_are_told_once_and_fit_a_terminal_of_20_columns() {
        let connection = |why: &str, remedy: &str| -> ConnectionReport {
            serde_json::from_value(serde_json::json!({
                "local": "10.0.7.1:1", "peer": "10.0.7.2:2", "route": "tcp", "provider": null,
                "device": null, "why": why, "not_tried": null, "remedy": remedy, "age_ms": 1,
                "counters": {}
            }))
            .unwrap()
        };
        let all = [
            connection("nobody answers there", "on the peer: san doctor"),
            connection("nobody answers there", "on the peer: san doctor"),
            connection("a bad\x1b[2J one", "none"),
        ];
        let mut out = Vec::new();
        remedies(&mut out, &all, 20).unwrap();
        let text = String::from_utf8(out).unwrap();
        let wanted = "tcp, since a bad?[2J\none\n  -> none\n\
                      tcp, since nobody\nanswers there\n  -> on the peer:\n  san doctor\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn connects_that_were_left_to_tcp_are_told_with_each_reason_once() {
        let left = |port: u16| -> LeftToTcp {
            serde_json::from_value(serde_json::json!({
                "peer": format!("10.0.7.2:{port}"), "why": "nobody", "remedy": "ask", "age_ms": 1500
            }))
            .unwrap()
        };
        let mut out = Vec::new();
        left_to_tcp(&mut out, &[left(1), left(2)], 80).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("10.0.7.2:1") && text.contains("10.0.7.2:2"),
            "{text}"
        );
        assert_eq!(text.matches("-> ask").count(), 1, "{text}");
        let mut none = Vec::new();
        left_to_tcp(&mut none, &[], 80).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn where_no_process_has_a_switch_it_says_how_to_start_one() {
        let arguments = StatArguments {
            pid: None,
            json: false,
            openmetrics: false,
            serve: None,
            watch: None,
        };
        let nobody = Reports {
            reports: Vec::new(),
            unanswered: 0,
        };
        let mut out = Vec::new();
        write(&mut out, &arguments, &nobody).unwrap();
        let text = String::from_utf8(out).unwrap();
        for words in ["no process of this user", "san run", "XDG_RUNTIME_DIR"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_long_line_is_folded_to_a_narrow_terminal_and_left_alone_without_one() {
        let shown = |width, indent| {
            let mut out = Vec::new();
            folded(&mut out, "switch: one 1, two 2, three 3", width, indent).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(usize::MAX, 0), "switch: one 1, two 2, three 3\n");
        assert_eq!(shown(20, 0), "switch: one 1, two\n  2, three 3\n");
        assert_eq!(shown(20, 2), "  switch: one 1,\n    two 2, three 3\n");
    }

    #[test]
    fn ages_are_short() {
        let ages = [5, 1500, 61_000, 3_660_000, 90_000_000].map(age);
        assert_eq!(ages, ["5ms", "1s", "1m01s", "1h01m", "1d01h"]);
    }
}
