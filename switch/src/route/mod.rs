//! Which way a connect takes: the table of SAN subnets, and who did not answer a moment ago.
//!
//! Answers only: no socket, no provider, no thread.

pub(crate) mod negative_cache;
pub(crate) mod table;
