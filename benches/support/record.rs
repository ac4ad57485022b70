//! The record of a run: figures, ratios between them, what did not run, and under which versions.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::stats::{Samples, Summary};

/// A measured value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name: `subject.who.what`.
    pub key: String,
    /// What it is, for people.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// The value; of a duration the median.
    pub value: f64,
    /// How the samples lie, for a duration that was sampled.
    pub spread: Option<Summary>,
}

/// One figure divided by another of the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// What is compared, for people.
    pub what: String,
    /// The key of the figure above the line.
    pub of: String,
    /// The key of the figure below it.
    pub to: String,
    /// The ratio.
    pub value: f64,
    /// Where it should be: at most, or at least.
    pub goal: Option<Goal>,
}

/// A goal for a ratio. It is told whether it is met; nothing fails if it is not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The ratio should be no larger.
    AtMost(f64),
    /// The ratio should be no smaller.
    AtLeast(f64),
}

/// A measurement that did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// Everything about one run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Versions of what was measured and of what it ran on.
    pub versions: BTreeMap<String, String>,
    /// The figures, in the order of measuring.
    pub figures: Vec<Figure>,
    /// The ratios.
    pub ratios: Vec<Ratio>,
    /// What did not run.
    pub failures: Vec<Failure>,
}

impl Goal {
    /// Whether a ratio meets it.
    #[must_use]
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most:.2}"),
            Self::AtLeast(least) => write!(f, ">= {least:.2}"),
        }
    }
}

impl Record {
    /// Adds a figure.
    pub fn figure(&mut self, key: &str, what: &str, unit: &str, value: f64) {
        self.figures.push(Figure {
            key: key.into(),
            what: what.into(),
            unit: unit.into(),
            value,
            spread: None,
        });
    }

    /// Adds a duration with its samples, in microseconds.
    pub fn samples(&mut self, key: &str, what: &str, samples: &Samples) {
        let Some(spread) = samples.summary() else {
            self.failure(key, "no samples");
            return;
        };
        self.figures.push(Figure {
            key: key.into(),
            what: what.into(),
            unit: "us".into(),
            value: spread.median,
            spread: Some(spread),
        });
    }

    /// Adds what did not run.
    pub fn failure(&mut self, name: &str, why: impl std::fmt::Display) {
        self.failures.push(Failure {
            name: name.into(),
            why: why.to_string(),
        });
    }

    /// The value of a figure.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<f64> {
        self.figures.iter().find(|f| f.key == key).map(|f| f.value)
    }

    /// Adds the ratio of two figures, if both were measured.
    pub fn ratio(&mut self, what: &str, of: &str, to: &str, goal: Option<Goal>) {
        let (Some(above), Some(below)) = (self.value(of), self.value(to)) else {
            return;
        };
        if below == 0.0 {
            self.failure(what, format!("{to} is 0"));
            return;
        }
        self.ratios.push(Ratio {
            what: what.into(),
            of: of.into(),
            to: to.into(),
            value: above / below,
            goal,
        });
    }

    /// All of it as tables, in Markdown, which a terminal shows as well.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut out = String::new();
        let figures = self.figures.iter().map(|f| {
            let spread = f.spread.map_or(["", "", ""].map(String::from), |s| {
                [number(s.min), number(s.p99), s.samples.to_string()]
            });
            let [min, p99, samples] = spread;
            vec![
                f.what.clone(),
                number(f.value),
                f.unit.clone(),
                min,
                p99,
                samples,
            ]
        });
        let heads = ["Figure", "Value", "Unit", "Min", "p99", "Samples"];
        out.push_str(&table(&heads, figures.collect()));
        if !self.ratios.is_empty() {
            let ratios = self.ratios.iter().map(|r| {
                let (goal, met) = match r.goal {
                    Some(goal) if goal.is_met(r.value) => (goal.to_string(), "yes"),
                    Some(goal) => (goal.to_string(), "no"),
                    None => (String::new(), ""),
                };
                vec![r.what.clone(), format!("{:.3}", r.value), goal, met.into()]
            });
            let _ = write!(
                out,
                "\n{}",
                table(&["Ratio", "Value", "Goal", "Met"], ratios.collect())
            );
        }
        for failure in &self.failures {
            let _ = write!(out, "\nDID NOT RUN: {}: {}\n", failure.name, failure.why);
        }
        out
    }
}

/// A number with as many digits as tell something.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        a if a >= 1000.0 || value.fract() == 0.0 => format!("{value:.0}"),
        a if a >= 100.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A table in Markdown, its columns aligned.
#[must_use]
pub fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|h| h.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let mut line = String::from("|");
        for (n, (cell, width)) in cells.zip(&widths).enumerate() {
            let _ = match n {
                0 => write!(line, " {cell:<width$} |"),
                _ => write!(line, " {cell:>width$} |"),
            };
        }
        line.push('\n');
        line
    };
    let mut out = line(&mut heads.iter().map(ToString::to_string));
    out.push('|');
    for (n, &width) in widths.iter().enumerate() {
        let (dashes, end) = if n == 0 {
            (width, "")
        } else {
            (width - 1, ":")
        };
        let _ = write!(out, " {}{end} |", "-".repeat(dashes));
    }
    out.push('\n');
    for row in rows {
        out.push_str(&line(&mut row.into_iter()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_needs_both_figures() {
        let mut record = Record::default();
        record.figure("a", "A", "us", 3.0);
        record.ratio("a to b", "a", "b", None);
        assert!(record.ratios.is_empty());
        record.figure("b", "B", "us", 2.0);
        record.ratio("a to b", "a", "b", Some(Goal::AtMost(1.4)));
        assert_eq!(record.ratios[0].value, 1.5);
        assert!(record.tables().contains("<= 1.40"));
        assert!(record.tables().contains("no |"));
    }

    #[test]
    fn a_record_survives_json() {
        let mut record = Record::default();
        record.figure("a", "A", "us", 3.25);
        record.ratio("a to a", "a", "a", Some(Goal::AtLeast(0.95)));
        record.failure("b", "no device");
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn tables_are_markdown() {
        let rows = vec![
            vec!["x".into(), "1".into()],
            vec!["long".into(), "22".into()],
        ];
        let text = table(&["Name", "N"], rows);
        assert_eq!(
            text,
            "| Name |  N |\n| ---- | -: |\n| x    |  1 |\n| long | 22 |\n"
        );
    }
}
