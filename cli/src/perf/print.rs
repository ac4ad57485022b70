//! A run for people: tables, a histogram, and the comparison with an earlier run.

use super::report::{Direction, Latency, Run};
use super::units;
use crate::output;
use crate::table::Table;
use std::io::{self, Write};

/// The longest bar of a histogram.
const LONGEST_BAR: usize = 50;

/// Tables of all figures; with an earlier run, what the figures are of those.
pub(crate) fn tables(
    out: &mut impl Write,
    run: &Run,
    earlier: Option<&Run>,
    width: usize,
) -> io::Result<()> {
    heads(out, run, width)?;
    latency(out, run, earlier, width)?;
    throughput(out, run, earlier, width)
}

/// What was measured, and which way.
pub(crate) fn heads(out: &mut impl Write, run: &Run, width: usize) -> io::Result<()> {
    for carrier in &run.carriers {
        let line = format!(
            "{}: over {}, connected in {}",
            run.server,
            carrier.route,
            units::time(carrier.connect_ns)
        );
        writeln!(out, "{}", output::wrap(&line, width, 0))?;
    }
    if let Some(why) = &run.no_san {
        let line = format!("{}: not over the SAN, since {why}", run.server);
        writeln!(out, "{}", output::wrap(&line, width, 0))?;
        let line = format!("-> see more: san doctor {}", run.server);
        writeln!(out, "{}", output::wrap(&line, width, 5))?;
    }
    Ok(())
}

fn latency(out: &mut impl Write, run: &Run, earlier: Option<&Run>, width: usize) -> io::Result<()> {
    let sizes = run.carriers.first().map_or(&[][..], |one| &one.latency);
    if sizes.is_empty() {
        return Ok(());
    }
    let title = "\nRound trips, in microseconds:";
    writeln!(out, "{}", output::wrap(title, width, 0))?;
    let mut heads = vec!["SIZE".to_owned()];
    for carrier in &run.carriers {
        let name = carrier.name.to_uppercase();
        heads.extend(["P50", "P99", "MAX"].map(|what| format!("{name} {what}")));
        if earlier.is_some() {
            heads.push(format!("{name} P50/BEFORE"));
        }
    }
    let both = run.carriers.len() == 2;
    if both {
        heads.push("SAN/TCP".to_owned());
    }
    let mut table = Table::new(&heads);
    for size in sizes.iter().map(|one| one.size) {
        let mut row = vec![units::size(size)];
        let mut medians = Vec::new();
        for carrier in &run.carriers {
            let Some(one) = carrier.latency_of(size) else {
                continue;
            };
            row.extend([one.p50_ns, one.p99_ns, one.max_ns].map(units::microseconds));
            if let Some(earlier) = earlier {
                let before = earlier.carrier(&carrier.name);
                let before = before.and_then(|before| before.latency_of(size));
                row.push(before.map_or_else(
                    || "-".to_owned(),
                    |before| units::ratio(one.p50_ns as f64, before.p50_ns as f64),
                ));
            }
            medians.push(one.p50_ns as f64);
        }
        if let (true, [san, tcp]) = (both, &medians[..]) {
            row.push(units::ratio(*san, *tcp));
        }
        table.row(&row);
    }
    table.print(out, width)
}

fn throughput(
    out: &mut impl Write,
    run: &Run,
    earlier: Option<&Run>,
    width: usize,
) -> io::Result<()> {
    let first = run.carriers.first().map_or(&[][..], |one| &one.throughput);
    if first.is_empty() {
        return Ok(());
    }
    let connections = units::connections(run.connections);
    let title = format!("\nOne way, in megabytes (10^6) a second, by {connections}:");
    writeln!(out, "{}", output::wrap(&title, width, 0))?;
    let mut heads = vec!["SIZE".to_owned(), "WAY".to_owned()];
    for carrier in &run.carriers {
        let name = carrier.name.to_uppercase();
        heads.push(name.clone());
        if earlier.is_some() {
            heads.push(format!("{name}/BEFORE"));
        }
    }
    let both = run.carriers.len() == 2;
    if both {
        heads.push("SAN/TCP".to_owned());
    }
    let mut table = Table::new(&heads);
    for one in first {
        let (size, direction): (usize, Direction) = (one.size, one.direction);
        let mut row = vec![units::size(size), direction.word().to_owned()];
        let mut rates = Vec::new();
        for carrier in &run.carriers {
            let Some(one) = carrier.throughput_of(size, direction) else {
                continue;
            };
            row.push(units::megabytes(one.bytes_per_second));
            if let Some(earlier) = earlier {
                let before = earlier.carrier(&carrier.name);
                let before = before.and_then(|before| before.throughput_of(size, direction));
                row.push(before.map_or_else(
                    || "-".to_owned(),
                    |before| units::ratio(one.bytes_per_second, before.bytes_per_second),
                ));
            }
            rates.push(one.bytes_per_second);
        }
        if let (true, [san, tcp]) = (both, &rates[..]) {
            row.push(units::ratio(*san, *tcp));
        }
        table.row(&row);
    }
    table.print(out, width)
}

/// One histogram, and the quantiles in a line before it.
pub(crate) fn histogram(
    out: &mut impl Write,
    name: &str,
    latency: &Latency,
    width: usize,
) -> io::Result<()> {
    let line = format!(
        "\n{name}: {} round trips of {}: min {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        latency.count,
        units::size(latency.size),
        units::time(latency.min_ns),
        units::time(latency.p50_ns),
        units::time(latency.p90_ns),
        units::time(latency.p99_ns),
        units::time(latency.p999_ns),
        units::time(latency.max_ns),
    );
    writeln!(out, "{}", output::wrap(&line, width, 0))?;
    let most = latency.histogram.iter().map(|step| step.count).max();
    let most = most.unwrap_or(1).max(1);
    let digits = most.to_string().len();
    // "up to 123.4 us", the count, and what stands between them.
    let taken = 6 + 9 + 2 + digits + 2;
    let room = width.saturating_sub(taken).min(LONGEST_BAR);
    for step in &latency.histogram {
        let length = (step.count as f64 / most as f64 * room as f64).ceil();
        let bar = "#".repeat(length as usize);
        let (time, count) = (units::time(step.up_to_ns), step.count);
        let line = format!("up to {time:>9}  {count:>digits$}  {bar}");
        let line = line.trim_end();
        match line.len() <= width {
            true => writeln!(out, "{line}")?,
            false => writeln!(
                out,
                "{}",
                output::wrap(&format!("<{time}: {count}"), width, 0)
            )?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::report::tests::run;

    fn printed(earlier: Option<&Run>, width: usize) -> String {
        let mut out = Vec::new();
        tables(&mut out, &run(), earlier, width).unwrap();
        let latency = &run().carriers[0].latency[0];
        histogram(&mut out, "SAN", latency, width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn both_carriers_stand_side_by_side() {
        let text = printed(None, 100);
        let line = |start: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(start));
            lines.next().unwrap().split_whitespace().collect::<Vec<_>>()
        };
        let wanted = [
            "64", "B", "2.0", "3.0", "9.0", "8.0", "12.0", "36.0", "0.25",
        ];
        assert_eq!(line("64 B"), wanted);
        assert_eq!(
            line("1 MiB  up"),
            ["1", "MiB", "up", "12000", "6000", "2.00"]
        );
    }

    #[test]
    fn an_earlier_run_is_compared() {
        let mut earlier = run();
        earlier.carriers[0].latency[0].p50_ns *= 4;
        // Of TCP there was nothing then.
        earlier.carriers.truncate(1);
        let text = printed(Some(&earlier), 200);
        let row = text.lines().find(|line| line.starts_with("64 B")).unwrap();
        assert!(row.split_whitespace().any(|cell| cell == "-"), "{row}");
        assert!(text.contains("SAN P50/BEFORE"), "{text}");
        assert!(row.contains("0.25"), "{row}");
    }

    #[test]
    fn a_terminal_of_20_columns_has_it_all() {
        for earlier in [None, Some(&run())] {
            let text = printed(earlier, 20);
            for line in text.lines() {
                assert!(line.chars().count() <= 20, "{line}");
            }
            assert!(text.contains("SAN P50 2.0"), "{text}");
        }
    }
}
