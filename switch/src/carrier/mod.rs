//! What carries the bytes of a connection.
//!
//! How a connection came about, and which way it took, is `net/`'s business.

pub(crate) mod san;
