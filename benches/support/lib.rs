//! What the benches share: samples and their summary, the record of a run with its figures and
//! ratios, the output of the programs measured beside ours, servers in processes of their own, and the
//! switch that is measured.
//!
//! It measures nothing itself; `compare/` does, and `report/` puts the results together.

#![forbid(unsafe_code)]

pub mod peers;
pub mod process;
pub mod record;
pub mod server;
pub mod stats;
pub mod switch;

/// What a bench fails with: a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of a measurement.
pub type Result<T> = std::result::Result<T, Error>;
