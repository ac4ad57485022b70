//! What a run of `san perf` or `san ping` has measured: plain data, as JSON in a file and back.
//!
//! Times are in nanoseconds, sizes in bytes, rates in bytes a second.

use crate::problem::Problem;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// The form that this version writes and reads.
pub(crate) const FORMAT: u32 = 1;
/// Bytes of a saved run, at most.
const LONGEST: u64 = 16 << 20;
/// Steps of a histogram for a plot, a factor of two each.
const STEPS_TO_DOUBLE: f64 = 2.0;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) format: u32,
    /// Of this program.
    pub(crate) version: String,
    /// Seconds since 1970.
    pub(crate) time: u64,
    pub(crate) server: String,
    /// How long each figure was measured.
    pub(crate) seconds: f64,
    pub(crate) connections: usize,
    /// Why there are no figures of the SAN.
    pub(crate) no_san: Option<String>,
    /// The SAN's, if there are any, then TCP's.
    pub(crate) carriers: Vec<Carrier>,
}

/// The figures of one carrier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Carrier {
    /// `san` or `tcp`.
    pub(crate) name: String,
    /// As people read it.
    pub(crate) route: String,
    /// What connecting took.
    pub(crate) connect_ns: u64,
    pub(crate) latency: Vec<Latency>,
    pub(crate) throughput: Vec<Throughput>,
}

/// Round trips of messages of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) size: usize,
    pub(crate) count: u64,
    pub(crate) min_ns: u64,
    pub(crate) mean_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
    /// How many took at most so long, and longer than the step before.
    pub(crate) histogram: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) up_to_ns: u64,
    pub(crate) count: u64,
}

/// Messages of one size, one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Throughput {
    pub(crate) size: usize,
    pub(crate) direction: Direction,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) bytes_per_second: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

impl Latency {
    pub(crate) fn new(size: usize, histogram: &Histogram<u64>) -> Self {
        Latency {
            size,
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean().round() as u64,
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
            histogram: histogram
                .iter_log(1_000, STEPS_TO_DOUBLE)
                .map(|step| Step {
                    up_to_ns: step.value_iterated_to(),
                    count: step.count_since_last_iteration(),
                })
                .filter(|step| step.count > 0)
                .collect(),
        }
    }
}

impl Run {
    /// The figures of a carrier, by its name.
    pub(crate) fn carrier(&self, name: &str) -> Option<&Carrier> {
        self.carriers.iter().find(|carrier| carrier.name == name)
    }

    /// Reads a run that was saved with `--json`. The file may be anything: it is bounded and checked.
    pub(crate) fn load(path: &Path) -> Result<Self, Problem> {
        let shown = path.display();
        let mut text = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut text))
            .map_err(|error| Problem::of_file("cannot read", path, &error))?;
        let save = "save one: san perf HOST --json FILE";
        if text.len() as u64 > LONGEST {
            return Err(
                Problem::new(format!("{shown} is too long for a saved run")).with_remedy(save)
            );
        }
        let run: Run = serde_json::from_slice(&text).map_err(|error| {
            Problem::new(format!("{shown} is not a saved run: {error}")).with_remedy(save)
        })?;
        match run.format {
            FORMAT => Ok(run),
            other => Err(Problem::new(format!(
                "{shown} has form {other} of a saved run, and this version reads form {FORMAT}"
            ))
            .with_remedy(save)),
        }
    }
}

impl Carrier {
    pub(crate) fn latency_of(&self, size: usize) -> Option<&Latency> {
        self.latency.iter().find(|one| one.size == size)
    }

    pub(crate) fn throughput_of(&self, size: usize, direction: Direction) -> Option<&Throughput> {
        self.throughput
            .iter()
            .find(|one| one.size == size && one.direction == direction)
    }
}

impl Direction {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run of both carriers with two sizes; the SAN is four times as fast, and has twice the rate.
    pub(crate) fn run() -> Run {
        let carrier = |name: &str, factor: u64| Carrier {
            name: name.to_owned(),
            route: name.to_uppercase(),
            connect_ns: 1_000_000 * factor,
            latency: [(64, 1), (1 << 20, 1000)]
                .map(|(size, more)| {
                    let mut histogram = Histogram::new(3).unwrap();
                    let times = [1000, 2000, 2000, 2000, 3000];
                    for time in times {
                        histogram.record(time * factor * more).unwrap();
                    }
                    Latency {
                        p50_ns: 2000 * factor * more,
                        p99_ns: if factor == 1 {
                            3000 * more
                        } else {
                            12_000 * more
                        },
                        max_ns: 9000 * factor * more,
                        ..Latency::new(size, &histogram)
                    }
                })
                .into(),
            throughput: [64, 1 << 20]
                .into_iter()
                .flat_map(|size| [(size, Direction::Up), (size, Direction::Down)])
                .map(|(size, direction)| Throughput {
                    size,
                    direction,
                    bytes: 12_000_000_000,
                    seconds: 1.0,
                    bytes_per_second: if factor == 1 { 12e9 } else { 6e9 },
                })
                .collect(),
        };
        Run {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            time: 1_800_000_000,
            server: "10.0.7.2:7474".to_owned(),
            seconds: 0.5,
            connections: 1,
            no_san: None,
            carriers: vec![carrier("san", 1), carrier("tcp", 4)],
        }
    }

    #[test]
    fn a_histogram_keeps_every_round_trip() {
        let mut histogram = Histogram::new_with_bounds(1, 20_000_000_000, 3).unwrap();
        for time in 1..=1000 {
            histogram.record(time * 100).unwrap();
        }
        let latency = Latency::new(64, &histogram);
        assert_eq!(latency.count, 1000);
        assert_eq!(latency.histogram.iter().map(|s| s.count).sum::<u64>(), 1000);
        let within = |found: u64, wanted: u64| found.abs_diff(wanted) <= wanted / 500;
        assert!(within(latency.p50_ns, 50_000), "{}", latency.p50_ns);
        assert!(within(latency.p99_ns, 99_000), "{}", latency.p99_ns);
        assert!(within(latency.max_ns, 100_000), "{}", latency.max_ns);
    }

    fn loaded(text: &[u8]) -> Result<Run, Problem> {
        let name = format!("san-run-{}-{}", std::process::id(), text.len());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let run = Run::load(&path);
        std::fs::remove_file(&path).unwrap();
        run
    }

    #[test]
    fn a_saved_run_is_read_as_it_was_and_anything_else_is_told() {
        let saved = serde_json::to_vec(&run()).unwrap();
        assert_eq!(loaded(&saved).unwrap(), run());
        let other = Run { format: 7, ..run() };
        let other = loaded(&serde_json::to_vec(&other).unwrap()).unwrap_err();
        assert!(other.text().contains("form 7"), "{other}");
        for text in [&b""[..], b"{}", b"GIF89a", &saved[..saved.len() / 2]] {
            let problem = loaded(text).unwrap_err();
            assert!(problem.text().contains("is not a saved run"), "{problem}");
        }
        let long = loaded(&vec![b' '; LONGEST as usize + 1]).unwrap_err();
        assert!(long.text().contains("too long"), "{long}");
        let absent = Run::load(Path::new("/no/such/file")).unwrap_err();
        assert!(absent.text().contains("cannot read"), "{absent}");
    }
}
