//! Reports as OpenMetrics text (version 1.0), for Prometheus and what reads its form.
//!
//! Names follow the convention: `san_PART_NAME`, a unit at the end (`_bytes`, `_seconds`), `_total`
//! behind what only grows. What a switch counts under `bytes_sent` is `..._sent_bytes_total` here.
//! Connections are not listed one by one, since each would be a series of its own: they are counted by
//! their route, and those over TCP by the reason. Reports come from other processes: names are
//! cleaned, values escaped, and what would be one series twice is added up.
//!
//! Written here and not with a library, since this crate is loaded into other people's programs, and
//! the form is small.

use super::report::{ConnectionReport, ListenerReport, Numbers, ProviderReport, Report};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The `Content-Type` of the text.
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reasons for TCP that are told apart for each switch; the others count together.
const MOST_REASONS: usize = 16;
/// Characters of a label's value.
const LONGEST_VALUE: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Info,
}

struct Family {
    kind: Kind,
    unit: Option<&'static str>,
    help: String,
    /// By their labels, as they stand between the braces.
    samples: BTreeMap<String, f64>,
}

/// The families by their names, so that each stands together.
#[derive(Default)]
struct Families(BTreeMap<String, Family>);

/// The labels of a sample, in the order in which they were added.
#[derive(Clone, Default)]
struct Labels(String);

/// The text: all families of all reports, ended by `# EOF`. `unanswered` is how many processes seemed
/// to have a switch and gave no report.
///
/// ```
/// use san_switch::{FabricChoice, Switch, SwitchConfig, stat};
/// let switch = Switch::new(SwitchConfig::default().fabric(FabricChoice::Off))?;
/// let text = stat::openmetrics(&[switch.report()], 0);
/// assert!(text.ends_with("# EOF\n"));
/// # Ok::<(), san_switch::OpenError>(())
/// ```
#[must_use]
pub fn openmetrics(reports: &[Report], unanswered: usize) -> String {
    let mut families = Families::default();
    families.gauge(
        "san_exporter_unanswered_processes",
        "Processes that seem to have a switch and gave no report",
        &Labels::default(),
        unanswered as f64,
    );
    let mut last = (0, 0);
    for report in reports {
        // A process may have several switches; they come one after the other.
        last = match last {
            (pid, n) if pid == report.pid => (pid, n + 1),
            _ => (report.pid, 1),
        };
        families.report(report, last.1);
    }
    families.text()
}

impl Families {
    fn report(&mut self, report: &Report, nth: u32) {
        let labels = Labels::default()
            .with("pid", &report.pid.to_string())
            .with("switch", &nth.to_string())
            .with("program", &report.program);
        let reason = report.no_san.as_deref().unwrap_or_default();
        self.add(
            "san_switch",
            Kind::Info,
            None,
            "A process's switch; no_san says why it has no SAN, if it looked for one",
            &labels.with("no_san", reason),
            1.0,
        );
        self.add(
            "san_switch_uptime_seconds",
            Kind::Gauge,
            Some("seconds"),
            "How long the switch has been there",
            &labels,
            report.uptime_ms as f64 / 1e3,
        );
        self.counters("san_switch", "switch", &report.switch, &labels);
        self.connections(report, &labels);
        for provider in &report.providers {
            self.provider(provider, &labels);
        }
        for listener in &report.listeners {
            self.listener(listener, &labels);
        }
    }

    fn connections(&mut self, report: &Report, labels: &Labels) {
        let help = "Open connections, by the carrier that they took";
        let san = |one: &&ConnectionReport| one.route == "san";
        let on_san = report.connections.iter().filter(san).count();
        let on_tcp = report.connections.len() - on_san;
        for (route, count) in [
            ("san", on_san),
            ("tcp", on_tcp),
            ("not_listed", report.omitted),
        ] {
            let labels = labels.with("route", route);
            self.gauge("san_connections", help, &labels, count as f64);
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for why in report
            .connections
            .iter()
            .filter_map(|one| one.why.as_deref())
        {
            let is_known = reasons.contains_key(why);
            let why = match is_known || reasons.len() < MOST_REASONS {
                true => why,
                false => "other reasons",
            };
            *reasons.entry(why).or_default() += 1;
        }
        for (why, count) in reasons {
            self.gauge(
                "san_fallback_connections",
                "Open connections over TCP although the SAN was thought of, by the reason",
                &labels.with("reason", why),
                count as f64,
            );
        }
    }

    fn provider(&mut self, provider: &ProviderReport, labels: &Labels) {
        let labels = labels.with("provider", &provider.name);
        self.gauge(
            "san_provider_sockets",
            "Sockets of the provider that are open",
            &labels,
            provider.sockets as f64,
        );
        self.counters("san_provider", "provider", &provider.counters, &labels);
        for device in &provider.devices {
            let labels = labels.with("device", &device.name);
            for (event, value) in &device.counters {
                self.add(
                    "san_device_events",
                    Kind::Counter,
                    None,
                    "What the device counts by its own names; a kernel's counts for all processes",
                    &labels.with("event", event),
                    *value as f64,
                );
            }
        }
    }

    fn listener(&mut self, listener: &ListenerReport, labels: &Labels) {
        let labels = labels.with("address", &listener.address.to_string());
        self.gauge(
            "san_listener_backlog",
            "Connections that may wait",
            &labels,
            listener.backlog.into(),
        );
        self.gauge(
            "san_listener_waiting",
            "Connections over the SAN that wait for the application",
            &labels,
            listener.waiting as f64,
        );
        self.gauge(
            "san_listener_companions",
            "Companions of the listener on the SAN, those that could not be made among them",
            &labels,
            listener.companions.len() as f64,
        );
        self.counters("san_listener", "listener", &listener.counters, &labels);
        for companion in &listener.companions {
            self.gauge(
                "san_companion_held_requests",
                "Requests that the listener's companions hold",
                &labels,
                companion.held as f64,
            );
            self.counters("san_companion", "companion", &companion.counters, &labels);
        }
    }

    /// Everything that a part counts, each under a name of its own.
    fn counters(&mut self, prefix: &str, part: &str, numbers: &Numbers, labels: &Labels) {
        for (name, value) in numbers {
            let name = clean(name);
            let words = name.replace('_', " ");
            let (name, unit) = match name.strip_prefix("bytes_") {
                Some(rest) => (format!("{rest}_bytes"), Some("bytes")),
                None => match name.strip_prefix("rdma_bytes_") {
                    Some(rest) => (format!("rdma_{rest}_bytes"), Some("bytes")),
                    None => (name, None),
                },
            };
            self.add(
                &format!("{prefix}_{name}"),
                Kind::Counter,
                unit,
                &format!("Counted by the {part}: {words}"),
                labels,
                *value as f64,
            );
        }
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &Labels, value: f64) {
        self.add(name, Kind::Gauge, None, help, labels, value);
    }

    fn add(
        &mut self,
        name: &str,
        kind: Kind,
        unit: Option<&'static str>,
        help: &str,
        labels: &Labels,
        value: f64,
    ) {
        let family = self.0.entry(name.to_owned()).or_insert_with(|| Family {
            kind,
            unit,
            help: help.to_owned(),
            samples: BTreeMap::new(),
        });
        let sample = family.samples.entry(labels.0.clone()).or_default();
        *sample = match kind {
            Kind::Info => 1.0,
            Kind::Counter | Kind::Gauge => *sample + value,
        };
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.0 {
            let (kind, suffix) = match family.kind {
                Kind::Counter => ("counter", "_total"),
                Kind::Gauge => ("gauge", ""),
                Kind::Info => ("info", "_info"),
            };
            // Writing into a string cannot fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            if let Some(unit) = family.unit {
                let _ = writeln!(text, "# UNIT {name} {unit}");
            }
            let _ = writeln!(text, "# HELP {name} {}.", family.help);
            for (labels, value) in &family.samples {
                let _ = match labels.is_empty() {
                    true => writeln!(text, "{name}{suffix} {value}"),
                    false => writeln!(text, "{name}{suffix}{{{labels}}} {value}"),
                };
            }
        }
        text.push_str("# EOF\n");
        text
    }
}

impl Labels {
    /// These and one more.
    fn with(&self, name: &str, value: &str) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        Labels(format!("{}{comma}{name}=\"{}\"", self.0, escaped(value)))
    }
}

fn escaped(value: &str) -> String {
    let mut escaped = String::new();
    for c in value.chars().take(LONGEST_VALUE) {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A counter's name with nothing in it but what a name may have.
fn clean(name: &str) -> String {
    name.chars()
        .take(LONGEST_VALUE)
        .map(|c| match c.is_ascii_alphanumeric() {
            true => c.to_ascii_lowercase(),
            false => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::DeviceReport;

    fn numbers(all: &[(&str, u64)]) -> Numbers {
        all.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect()
    }

    fn connection(route: &str, why: Option<&str>) -> ConnectionReport {
        ConnectionReport {
            local: "10.0.7.1:1".parse().unwrap(),
            peer: "10.0.7.2:2".parse().unwrap(),
            route: route.to_owned(),
            provider: None,
            device: None,
            why: why.map(str::to_owned),
            not_tried: None,
            remedy: None,
            age_ms: 0,
            counters: Numbers::new(),
        }
    }

    fn report() -> Report {
        Report {
            format: Report::FORMAT,
            pid: 77,
            program: "odd\"\\\nname".to_owned(),
            uptime_ms: 1500,
            no_san: None,
            switch: numbers(&[("fallbacks", 3)]),
            providers: vec![ProviderReport {
                name: "soft".to_owned(),
                counters: numbers(&[("bytes_sent", 10), ("rdma_bytes_read", 4)]),
                sockets: 2,
                devices: vec![DeviceReport {
                    name: "soft0".to_owned(),
                    counters: numbers(&[("Odd Name", 1)]),
                }],
            }],
            listeners: vec![],
            connections: vec![
                connection("san", None),
                connection("tcp", Some("no answer")),
                connection("tcp", Some("no answer")),
                connection("tcp", None),
            ],
            omitted: 0,
            left_to_tcp: Vec::new(),
        }
    }

    fn lines(reports: &[Report]) -> Vec<String> {
        let text = openmetrics(reports, 0);
        text.lines().map(str::to_owned).collect()
    }

    const LABELS: &str = "pid=\"77\",switch=\"1\",program=\"odd\\\"\\\\\\nname\"";

    #[test]
    fn names_and_labels_follow_the_convention() {
        let lines = lines(&[report()]);
        for wanted in [
            "# TYPE san_switch info".to_owned(),
            format!("san_switch_info{{{LABELS},no_san=\"\"}} 1"),
            "# UNIT san_switch_uptime_seconds seconds".to_owned(),
            format!("san_switch_uptime_seconds{{{LABELS}}} 1.5"),
            format!("san_switch_fallbacks_total{{{LABELS}}} 3"),
            "# TYPE san_provider_sent_bytes counter".to_owned(),
            "# UNIT san_provider_sent_bytes bytes".to_owned(),
            format!("san_provider_sent_bytes_total{{{LABELS},provider=\"soft\"}} 10"),
            format!("san_provider_rdma_read_bytes_total{{{LABELS},provider=\"soft\"}} 4"),
            format!("san_provider_sockets{{{LABELS},provider=\"soft\"}} 2"),
            format!(
                "san_device_events_total{{{LABELS},provider=\"soft\",device=\"soft0\",\
                 event=\"Odd Name\"}} 1"
            ),
            format!("san_connections{{{LABELS},route=\"san\"}} 1"),
            format!("san_connections{{{LABELS},route=\"tcp\"}} 3"),
            format!("san_fallback_connections{{{LABELS},reason=\"no answer\"}} 2"),
            "san_exporter_unanswered_processes 0".to_owned(),
        ] {
            assert!(lines.contains(&wanted), "{wanted} is not in {lines:#?}");
        }
        assert_eq!(lines.last().unwrap(), "# EOF");
        assert_eq!(lines.iter().filter(|line| *line == "# EOF").count(), 1);
    }

    #[test]
    fn each_family_and_each_series_is_there_once() {
        let mut other = report();
        other.pid = 78;
        let twice = report();
        // The same listener twice, which no honest report has.
        let mut listeners = report();
        let listener = ListenerReport {
            address: "10.0.7.1:7000".parse().unwrap(),
            backlog: 4,
            waiting: 1,
            counters: numbers(&[("san_accepted", 2)]),
            companions: vec![],
        };
        listeners.listeners = vec![listener.clone(), listener];
        let lines = lines(&[report(), twice, other, listeners]);
        let mut types: Vec<_> = lines.iter().filter(|l| l.starts_with("# TYPE")).collect();
        let count = types.len();
        types.dedup();
        assert_eq!(types.len(), count);
        let mut series: Vec<&str> = lines
            .iter()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, _)| series)
            .collect();
        let count = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), count);
        // Two switches of one process are told apart.
        assert!(
            series
                .iter()
                .any(|one| one.contains("pid=\"77\",switch=\"2\""))
        );
    }

    #[test]
    fn reasons_without_number_are_counted_together() {
        let mut report = report();
        report.connections = (0..100)
            .map(|n| connection("tcp", Some(&format!("reason {n}"))))
            .collect();
        let lines = lines(&[report]);
        let reasons: Vec<_> = lines
            .iter()
            .filter(|line| line.starts_with("san_fallback_connections{"))
            .collect();
        assert_eq!(reasons.len(), MOST_REASONS + 1);
        let others = reasons.iter().find(|line| line.contains("other reasons"));
        assert!(
            others
                .unwrap()
                .ends_with(&format!(" {}", 100 - MOST_REASONS))
        );
    }

    #[test]
    fn a_counters_name_has_nothing_odd_in_it() {
        let mut report = report();
        report.switch = numbers(&[("a} 1\n# EOF", 1)]);
        let lines = lines(&[report]);
        assert!(lines.contains(&format!("san_switch_a__1___eof_total{{{LABELS}}} 1")));
    }
}
