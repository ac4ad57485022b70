//! Samples of a duration, and what is told of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Samples of one duration.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    nanoseconds: Vec<u64>,
}

/// What is told of samples, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples there were.
    pub samples: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half the samples are no larger.
    pub median: f64,
    /// 99 of 100 are no larger.
    pub p99: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Samples {
    /// Room for `n` samples, so that none of them allocates.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Self {
            nanoseconds: Vec::with_capacity(n),
        }
    }

    /// Adds a sample.
    pub fn push(&mut self, sample: Duration) {
        let nanoseconds = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.push(nanoseconds);
    }

    /// Their summary; `None` without samples.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_unstable();
        let (first, last) = (*sorted.first()?, *sorted.last()?);
        let micros = |ns: u64| ns as f64 / 1000.0;
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        Some(Summary {
            samples: sorted.len(),
            mean: sorted.iter().map(|&ns| micros(ns)).sum::<f64>() / sorted.len() as f64,
            median: micros(rank(50)),
            p99: micros(rank(99)),
            min: micros(first),
            max: micros(last),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_nearest_ranks() {
        let mut samples = Samples::default();
        assert_eq!(samples.summary(), None);
        for n in (1..=200).rev() {
            samples.push(Duration::from_micros(n));
        }
        let summary = samples.summary().unwrap();
        assert_eq!(
            (summary.samples, summary.median, summary.p99),
            (200, 100.0, 198.0)
        );
        assert_eq!((summary.min, summary.max), (1.0, 200.0));
        assert!((summary.mean - 100.5).abs() < 1e-9);
    }

    #[test]
    fn one_sample_is_every_rank() {
        let mut samples = Samples::with_capacity(1);
        samples.push(Duration::from_nanos(1500));
        let summary = samples.summary().unwrap();
        assert_eq!((summary.median, summary.p99), (1.5, 1.5));
    }
}
